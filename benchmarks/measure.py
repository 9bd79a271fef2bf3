"""What a measurement is, on any device: checked first, then timed in turns, then its memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import providers
import torch
from correctness import DRAWN, Drawn, fault
from operations import OPERATIONS, Case, Inputs, call_of, make_inputs
from providers import COMPILED, Provider
from torch.profiler import ProfilerActivity, profile

# Kineto tells on stderr of every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
WARM_UP = 2
# Up to so many elements, a call on a CPU costs more than its work.
SMALL = 2**16


def rotating(case: Case, device: torch.device) -> Callable[[], Inputs]:
    """Gives another input each time."""
    return partial(next, cycle(make_inputs(case, device)))


class Contest:
    """The providers that are there and right on a device."""

    def __init__(self, device: torch.device, drawn: Drawn = DRAWN) -> None:
        self.device = device
        self._drawn = drawn
        found, self.missing = providers.providers()
        self._providers = {provider.name: provider for provider in found}
        self.wrong: dict[tuple[str, str, str], str] = {}
        self._right: set[tuple[str, str, str]] = set()

    def __iter__(self) -> Iterator[Provider]:
        return iter(self._providers.values())

    def compile(self) -> None:
        """Adds the compiled form of each eager provider."""
        why = providers.why_nothing_compiles(self.device)
        for name in providers.EAGER:
            if name in self._providers and name + COMPILED not in self._providers:
                if why is None:
                    self._providers[name + COMPILED] = providers.compiled(self._providers[name])
                else:
                    self.missing[name + COMPILED] = why

    def entrants(self, case: Case) -> list[str]:
        """Names of those that have the operation."""
        if case.field == "compiled":
            self.compile()
        forward = OPERATIONS[case.operation].forward
        names = [provider.name for provider in self if forward in provider.forwards]
        if case.field == "ours":
            return names[:1]
        if case.field != "eager" or self.device.type != "cpu" or case.rows * case.columns > SMALL:
            names = [name for name in names if name != providers.OPERATORS]
        return [name for name in names if case.field == "compiled" or not name.endswith(COMPILED)]

    def call(self, case: Case, name: str) -> Callable[[Any], Any]:
        return call_of(self._providers[name].forwards[OPERATIONS[case.operation].forward], case.operation)

    def fault(self, case: Case, name: str) -> str | None:
        """Why the provider's operation is wrong; found out once for each dtype."""
        key = (name, case.operation, case.dtype)
        if key not in self._right and key not in self.wrong:
            why = fault(self._providers[name].forwards, case.operation, case.dtype, self.device, self._drawn)
            if why is None:
                self._right.add(key)
            else:
                self.wrong[key] = why
        return self.wrong.get(key)

    def begin(self, case: Case, name: str, given: Callable[[], Inputs]) -> dict[str, Any]:
        """What is known of a provider at a case before it is timed: {"wrong": why} or {"cannot": why}; or no times yet,
        and the memory of a call, and on a GPU its launches."""
        why = self.fault(case, name)
        if why is not None:
            return {"wrong": why}
        call = self.call(case, name)
        try:
            for _ in range(WARM_UP):
                call(given())
            record = {"seconds": [], "peak_bytes": peak_bytes(partial(call, given()), self.device)}
            return record | ({"launches": launches(partial(call, given()))} if self.device.type == "cuda" else {})
        except Exception as error:
            # Out of memory, or more categories than a library takes: an answer too.
            return {"cannot": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}


def _bytes_of(results: Any) -> int:
    if isinstance(results, tuple):
        return sum(map(_bytes_of, results))
    return results.untyped_storage().nbytes()


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory that is held at once, less that of the results: what a call needs beside its inputs and them."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = call()
        return torch.cuda.max_memory_allocated() - before - _bytes_of(results)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            most = max(most, held)
    return max(0, most - _bytes_of(results))


def launches(call: Callable[[], Any]) -> int | None:
    """Kernels, copies and fills that a call starts on a GPU; None where the profiler sees none."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiler.events() or []) or None
