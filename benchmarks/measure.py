"""Measure a provider at a case, on any device: check it, warm it up, take its memory. The callers time it in turns."""

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

# Otherwise Kineto, the profiler, reports every start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
WARM_UP = 2
# With at most this many elements, the overhead of a call on a CPU exceeds its arithmetic.
SMALL = 2**16


def rotating(case: Case, device: torch.device) -> Callable[[], Inputs]:
    """Return a function that gives the inputs of the case in turn."""
    return partial(next, cycle(make_inputs(case, device)))


class Contest:
    """The providers that can run on a device, and which of their operations are wrong there."""

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
        """Add the compiled form of each eager provider."""
        why = providers.why_nothing_compiles(self.device)
        for name in providers.EAGER:
            if name in self._providers and name + COMPILED not in self._providers:
                if why is None:
                    self._providers[name + COMPILED] = providers.compiled(self._providers[name])
                else:
                    self.missing[name + COMPILED] = why

    def entrants(self, case: Case) -> list[str]:
        """Return the names of the providers that take part in the case."""
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
        """Return why the provider's operation is wrong, or None. It is checked once per dtype."""
        key = (name, case.operation, case.dtype)
        if key not in self._right and key not in self.wrong:
            why = fault(self._providers[name].forwards, case.operation, case.dtype, self.device, self._drawn)
            if why is None:
                self._right.add(key)
            else:
                self.wrong[key] = why
        return self.wrong.get(key)

    def begin(self, case: Case, name: str, given: Callable[[], Inputs]) -> dict[str, Any]:
        """Start the record of a provider at a case.

        Returns:
            {"wrong": why} or {"cannot": why}, or an empty list of "seconds" with the "peak_bytes" of a call and, on a
            GPU, its "launches".
        """
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
            # Out of memory, or too many categories for a library: the report tells the reason.
            return {"cannot": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}


def _bytes_of(results: Any) -> int:
    if isinstance(results, tuple):
        return sum(map(_bytes_of, results))
    return results.untyped_storage().nbytes()


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak memory of a call beside its inputs and results."""
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
    """Return the number of kernels, copies and fills that a call starts on a GPU, or None if the profiler sees none."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiler.events() or []) or None
