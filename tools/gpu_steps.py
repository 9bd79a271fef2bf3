"""The order of `make bench-gpu`: a list of steps, each with a limit, whose results are on disk after each of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Say = Callable[[str], None]


class Step(NamedTuple):
    """One thing to find out.

    Attributes:
        question: what it belongs to, in the order of the plan.
        name: what it is, once in a plan.
        run: gives what is to be kept; it raises where it cannot, and a check also where a kernel is wrong.
        limit: seconds after which it is stopped. It does not begin where fewer are left.
        peak_bytes: the most that it holds on the GPU.
        vouches: operations that are wrong if this fails: a check.
        needs: operations that must not be wrong.
        record: the list of the result that gets what `run` gives.
    """

    question: str
    name: str
    run: Callable[[], Any]
    limit: float
    peak_bytes: int = 0
    vouches: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    record: str = ""


# No Exception, which the measurements take for an answer of what they measure.
class OutOfTime(BaseException):
    """A step has reached its limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in what takes longer, as soon as it is back in Python."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write(path: Path, text: str) -> None:
    """All of it or nothing: whenever the process is killed, `path` holds the last that was written in full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def run_steps(
    steps: Sequence[Step],
    result: dict[str, Any],
    end: float,
    say: Say,
    wrong: dict[str, str],
    path: Path | None = None,
    dumps: Callable[[Any], str] = json.dumps,
) -> None:
    """Runs the steps in turn.

    `result` gets what the steps found, and why others found nothing, by name: under "wrong" what a check found, under
    "failed" what raised or reached its limit, under "skipped" what did not begin, under "remaining" what is still to
    come. It is written to `path` after each step.

    Args:
        end: no step begins that could be running then, of time.perf_counter().
        wrong: gets the operations that are wrong, each with the check that found it. A step may look into it.
    """
    for kind in ("wrong", "failed", "skipped"):
        result.setdefault(kind, {})
    for step in steps:
        if step.record:
            result.setdefault(step.record, [])
    for number, step in enumerate(steps):
        not_right = sorted(step.needs & wrong.keys())
        if not_right:
            result["skipped"][step.name] = f"{', '.join(not_right)}: wrong"
        elif time.perf_counter() + step.limit > end:
            result["skipped"][step.name] = "out of time"
        else:
            try:
                with limited(step.limit):
                    found = step.run()
                if step.record:
                    result[step.record] += found if isinstance(found, list) else [found]
                if step.vouches:
                    say(f"right  {step.name}")
            except (Exception, OutOfTime) as error:
                # A kernel that does not compile, crashes or hangs is as wrong as one that miscounts.
                late = isinstance(error, OutOfTime)
                why = f"stopped after {step.limit:.0f} s" if late else f"{type(error).__name__}: {error}"
                result["wrong" if step.vouches else "failed"][step.name] = why
                wrong |= dict.fromkeys(step.vouches, step.name)
                say(f"{'WRONG ' if step.vouches else 'failed'} {step.name}: {why}")
        if step.name in result["skipped"]:
            say(f"skipped {step.name}: {result['skipped'][step.name]}")
        result["remaining"] = [later.name for later in steps[number + 1 :]]
        if path is not None:
            write(path, dumps(result))
