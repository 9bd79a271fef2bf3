"""The project's own tests of its kernels, with compiled kernels on the emulator in place of interpreted ones."""

from __future__ import annotations

import os

import pytest


class Plugin:
    def __init__(self, emulator) -> None:
        self.emulator, self.launches, self.faults = emulator, 0, {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        self.emulator.reports.clear()
        self.emulator.seed += 1
        yield
        self.launches += len(self.emulator.reports)
        for report in self.emulator.reports:
            for kind, texts in report.faults.items():
                if not kind.startswith("same write"):
                    self.faults.setdefault(item.nodeid, []).append(f"{kind}: {texts[0]}")

    def pytest_terminal_summary(self, terminalreporter) -> None:
        terminalreporter.write_line(f"{self.launches} launches on the emulator, faults in {len(self.faults)} tests")
        for test, lines in self.faults.items():
            terminalreporter.write_line(f"{test}: {lines[:2]}")


def main(emulator, arguments: list[str]) -> int:
    import torch
    import triton

    # What the tests take for a sign that kernels run on CPU tensors; Triton itself is not to hear of it.
    triton.knobs.runtime.interpret = False
    os.environ["TRITON_INTERPRET"] = "1"
    # The tests compare with what torch gives in its usual state.
    torch.use_deterministic_algorithms(False)
    plugin = Plugin(emulator)
    arguments = arguments or ["tests/test_kernels.py"]
    code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[plugin])
    return int(code) or bool(plugin.faults)
