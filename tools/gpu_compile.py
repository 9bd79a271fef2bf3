"""Compile the kernels that `make bench-gpu` will launch, in processes that share Triton's cache on disk.

The launches are those of ahead_of_time.py, on tensors without memory, so the processes need no GPU. Triton finds a
compiled kernel again by source, signature, options and target. Without a GPU nobody can show that a launch on it finds
the kernel. If it does not, the first launch compiles the kernel, within the time limit of its step.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from typing import Any

# (operation in ahead_of_time.py, rows, columns, dtype of the logits, dtype of the one-hot, draws)
Wanted = tuple[str, int, int, str, "str | None", int]


def compile_one(job: tuple[Wanted, str, int | None]) -> str | None:
    """Compile a launch for an architecture and a number of multiprocessors, in a worker process.

    Returns:
        Why it failed, or None.
    """
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
    """Compile as many of `wanted` as `seconds` allow.

    A launch that does not compile here will fail again where it is launched, and is reported there.

    Args:
        multiprocessors: number of multiprocessors of the GPU, by which launches are configured; None for the usual
            number. The worker processes have no GPU to ask.

    Returns:
        {"launches": number wanted, "compiled": number done, "failed": reasons, "seconds": time taken, "processes"}.
    """
    start = time.perf_counter()
    processes = processes or os.cpu_count() or 1
    done, failed = 0, []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        # Leaving the block ends the processes, even in the middle of a compilation.
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
