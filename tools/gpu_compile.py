"""Compiles what `make bench-gpu` will launch, in processes that share Triton's cache on disk.

The launches are those of ahead_of_time.py, for tensors without memory, so the processes need no GPU. What Triton keeps
is found again by source, signature, options and target. That a launch on a GPU then finds it cannot be shown without
one; where it does not, the kernel is compiled when it is first launched, within its step's limit.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from typing import Any

# (operation of ahead_of_time.py, rows, columns, dtype of the logits, dtype of the one-hot, draws)
Wanted = tuple[str, int, int, str, "str | None", int]


def compile_one(job: tuple[Wanted, str, int | None]) -> str | None:
    """Compiles one launch for an architecture and so many multiprocessors, in a process of its own; gives why it could
    not."""
    import ahead_of_time
    import torch

    from onehot_triton.kernels import launch as launches

    (operation, rows, columns, dtype, out_dtype, draws), arch, launches.MULTIPROCESSORS = job
    out = None if out_dtype is None else getattr(torch, out_dtype)
    launch = ahead_of_time.Launch(operation, rows, columns, getattr(torch, dtype), out, draws)
    try:
        major_minor = int(arch.removeprefix("sm_"))
        with ahead_of_time.compiling(ahead_of_time.GPUTarget("cuda", major_minor, 32)):
            launch.run()
    except Exception as error:
        return f"{launch}: {type(error).__name__}: {error}"
    return None


def compile_all(
    wanted: Sequence[Wanted], arch: str, seconds: float, multiprocessors: int | None, processes: int | None = None
) -> dict[str, Any]:
    """As many as are done within `seconds`; what failed will fail again where it is launched, and is told there. The
    processes have no GPU to ask for its multiprocessors, by which a launch is chosen: None is the usual number.

    Returns:
        {"launches": wanted, "compiled": of them in time, "failed": why, "seconds": taken, "processes"}.
    """
    start = time.perf_counter()
    processes = processes or os.cpu_count() or 1
    done, failed = 0, []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        # Leaving the block ends the processes, whatever they are at.
        results = pool.imap_unordered(compile_one, [(one, arch, multiprocessors) for one in wanted])
        while done < len(wanted):
            try:
                why = results.next(max(0.0, start + seconds - time.perf_counter()))
            except multiprocessing.TimeoutError:
                break
            done += 1
            if why is not None:
                failed.append(why)
    took = round(time.perf_counter() - start, 3)
    return {
        "launches": len(wanted), "compiled": done - len(failed), "failed": failed, "seconds": took,
        "processes": processes,
    }  # fmt: skip
