"""Run the steps of `make bench-gpu` in order, each with a time limit, and write the results to disk after each step."""

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
    """One check or measurement.

    Attributes:
        question: the heading that it belongs to in the plan.
        name: its name, unique in the plan.
        run: returns what to record. It raises if it fails; a check also raises if a kernel is wrong.
        limit: seconds after which it is stopped. It is skipped if fewer are left.
        peak_bytes: the most memory that it holds on the GPU.
        vouches: the operations that are wrong if this step fails. Only a check has some.
        needs: the operations that must not be wrong for this step to run.
        record: the list in the result that gets what `run` returns.
    """

    question: str
    name: str
    run: Callable[[], Any]
    limit: float
    peak_bytes: int = 0
    vouches: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    record: str = ""


# Not an Exception, because the measurements catch those and record them.
class OutOfTime(BaseException):
    """A step has reached its time limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after `seconds`, as soon as it executes Python."""

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
    """Write a file in one step: if the process is killed, `path` holds the text before or after, in full."""
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
    """Run the steps in turn.

    Args:
        result: gets what the steps return. It also gets names of steps, with reasons: under "wrong" checks that found a
            wrong kernel, under "failed" steps that raised or reached their limit, under "skipped" steps that did not
            begin. "remaining" lists the steps still to come.
        end: time.perf_counter() at which no step may still be running.
        say: prints a line.
        wrong: gets the wrong operations, each with the check that found it. Steps may read it.
        path: file to which the result is written after each step, or None.
        dumps: turns the result into text.
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
                # A kernel that does not compile, crashes or hangs counts as wrong, too.
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
