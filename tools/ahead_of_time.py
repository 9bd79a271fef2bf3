"""Compile every kernel as its launcher launches it, without a GPU.

    python tools/ahead_of_time.py [--arch sm_80 sm_90 sm_100 gfx942] [--spread]

The launchers run on tensors without memory. Each launch becomes a warm-up for a stub of a driver, so the signature, the
specialisation of the arguments and the options are those of the real launch. The program prints a line per compiled
kernel. The exit status is 1 if a kernel fails to compile, or if no launch reaches it.

The test suite uses `--spread`: each architecture compiles every kernel by every path, and the variants of dtype and
temperature are dealt out to the architectures in turn.
"""

from __future__ import annotations

import os

# Triton reads this at its import. A process that interprets kernels cannot compile, so this file has its own process.
os.environ["TRITON_INTERPRET"] = "0"
# Line numbers change no instruction, and writing them takes half of the assembler's time.
os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from onehot_triton.kernels import (
    entropy,
    log_prob,
    log_prob_and_entropy,
    relaxed,
    sample,
    soft_grad,
    softmax_grad,
    straight_through,
)

MODULES = (entropy, log_prob, log_prob_and_entropy, relaxed, sample, soft_grad, softmax_grad, straight_through)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
INT64, BOOL = torch.int64, torch.bool
SEED, OFFSET = 5, 8


# Launches turned into compilations ------------------------------------------------------------------------------------


class _Driver:
    """The part of a driver that compilation needs. A target is a device of its own, because Triton caches by device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, device: object) -> int:
        return 0


@contextmanager
def compiling(target: GPUTarget) -> Iterator[list[Any]]:
    """Make launches compile for `target` and run nothing. The compiled kernels are appended to the list it yields."""
    run, compiled = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(kernel)
        return kernel

    active: Any = _Driver(target)
    driver.set_active(active)
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run


# Every operation, by its launcher -------------------------------------------------------------------------------------


class Launch(NamedTuple):
    """One call of a launcher with logits [rows, columns] of `dtype`.

    Attributes:
        operation: a name in `OPERATIONS`.
        out_dtype: dtype of the one-hot that is written or read, if there is one.
    """

    operation: str
    rows: int
    columns: int
    dtype: torch.dtype
    out_dtype: torch.dtype | None = None
    draws: int = 1

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.out_dtype) if dtype is not None]
        draws = f" draws={self.draws}" if self.draws > 1 else ""
        return f"{self.operation} {self.rows}x{self.columns} {' '.join(names)}{draws}"

    def run(self) -> None:
        OPERATIONS[self.operation](self)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype if dtype is None else dtype, device="meta")

    @property
    def logits(self) -> torch.Tensor:
        return self.empty(self.rows, self.columns)

    @property
    def per_row(self) -> torch.Tensor:
        return self.empty(self.rows, dtype=FP64 if self.dtype == FP64 else FP32)

    @property
    def per_draw(self) -> torch.Tensor:
        return self.empty(self.draws, self.rows, dtype=FP64 if self.dtype == FP64 else FP32)

    @property
    def per_element(self) -> torch.Tensor:
        return self.empty(self.draws, self.rows, self.columns)

    @property
    def index(self) -> torch.Tensor:
        return self.empty(self.draws, self.rows, dtype=INT64)

    @property
    def value(self) -> torch.Tensor:
        return self.empty(self.draws, self.rows, self.columns, dtype=self.out_dtype)

    @property
    def allowed(self) -> torch.Tensor:
        return self.empty(self.rows, self.columns, dtype=BOOL)

    @property
    def allowed_in_pairs(self) -> torch.Tensor:
        return self.allowed.view(self.rows // 2, 2, self.columns)

    def log_prob_and_entropy_grad(
        self, allowed: torch.Tensor | None = None, grad: torch.Tensor | None = None
    ) -> torch.Tensor:
        args = self.per_row, self.per_row, self.index, self.per_draw, self.per_row, allowed, grad
        return log_prob_and_entropy.log_prob_and_entropy_grad(self.logits, *args)


OPERATIONS: dict[str, Callable[[Launch], object]] = {
    "sample": lambda a: sample.sample(a.logits, a.draws, a.out_dtype, SEED, OFFSET),
    "sample_index": lambda a: sample.sample(a.logits, a.draws, None, SEED, OFFSET),
    "log_prob": lambda a: log_prob.log_prob(a.logits, None, a.value),
    "log_prob_known": lambda a: log_prob.log_prob(a.logits, a.per_row, a.value),
    "log_prob_index": lambda a: log_prob.log_prob_index(a.logits, a.per_row, a.index),
    "log_prob_grad": lambda a: log_prob.log_prob_grad(a.logits, a.per_row, a.index, a.per_draw),
    "entropy": lambda a: entropy.entropy(a.logits),
    "logsumexp": lambda a: entropy.logsumexp(a.logits),
    "entropy_grad": lambda a: entropy.entropy_grad(a.logits, a.per_row, a.per_row, a.per_row),
    "softmax_grad": lambda a: softmax_grad.softmax_grad(a.logits, a.per_row, a.logits),
    "log_prob_and_entropy": lambda a: log_prob_and_entropy.log_prob_and_entropy(a.logits, a.index),
    "log_prob_and_entropy_grad": lambda a: a.log_prob_and_entropy_grad(),
    "rsample_log_prob_and_entropy_grad": lambda a: a.log_prob_and_entropy_grad(grad=a.logits),
    "relaxed": lambda a: relaxed.relaxed(a.logits, 0.5, a.draws, SEED, OFFSET),
    "relaxed_temperatures": lambda a: relaxed.relaxed(a.logits, a.per_row, a.draws, SEED, OFFSET),
    "relaxed_grad": lambda a: relaxed.relaxed_grad(a.logits, a.per_row, a.index, a.per_element, 0.5, SEED, OFFSET),
    "relaxed_grad_temperatures": lambda a: relaxed.relaxed_grad(
        a.logits, a.per_row, a.index, a.per_element, a.per_row, SEED, OFFSET
    ),
    "relaxed_samples": lambda a: relaxed.relaxed_grad(
        a.logits, a.per_row, a.index, a.per_element, 0.5, SEED, OFFSET, 0, None, False, 8
    ),
    "reinmax_grad": lambda a: straight_through.reinmax_grad(a.logits, a.per_row, a.index, a.per_element, 1.0),
    "gapped_grad": lambda a: straight_through.gapped_grad(a.logits, a.per_row, a.index, a.per_element, 1.0),
    "reinmax_grad_temperatures": lambda a: straight_through.reinmax_grad(
        a.logits, a.per_row, a.index, a.per_element, a.per_row
    ),
    "soft_grad": lambda a: soft_grad.soft_grad(a.per_element, a.per_element, 0.5),
    "soft_grad_temperatures": lambda a: soft_grad.soft_grad(a.per_element, a.per_element, a.per_row, True),
    # The same operations with a category mask.
    "masked_sample": lambda a: sample.sample(a.logits, a.draws, a.out_dtype, SEED, OFFSET, 0, a.allowed),
    "masked_log_prob": lambda a: log_prob.log_prob(a.logits, None, a.value, a.allowed),
    "masked_log_prob_index": lambda a: log_prob.log_prob_index(a.logits, a.per_row, a.index, a.allowed_in_pairs),
    "masked_log_prob_grad": lambda a: log_prob.log_prob_grad(a.logits, a.per_row, a.index, a.per_draw, a.allowed),
    "masked_entropy": lambda a: entropy.entropy(a.logits, a.allowed_in_pairs),
    "masked_entropy_grad": lambda a: entropy.entropy_grad(a.logits, a.per_row, a.per_row, a.per_row, a.allowed),
    "masked_softmax_grad": lambda a: softmax_grad.softmax_grad(a.logits, a.per_row, a.logits, a.allowed),
    "masked_log_prob_and_entropy": lambda a: log_prob_and_entropy.log_prob_and_entropy(a.logits, a.index, a.allowed),
    "masked_log_prob_and_entropy_grad": lambda a: a.log_prob_and_entropy_grad(a.allowed),
    "masked_rsample_log_prob_and_entropy_grad": lambda a: a.log_prob_and_entropy_grad(a.allowed, a.logits),
    "masked_reinmax_grad": lambda a: straight_through.reinmax_grad(
        a.logits, a.per_row, a.index, a.per_element, 1.0, a.allowed
    ),
    "masked_relaxed_grad": lambda a: relaxed.relaxed_grad(
        a.logits, a.per_row, a.index, a.per_element, 0.5, SEED, OFFSET, 0, a.allowed
    ),
}

JOINT = ("log_prob_and_entropy", "log_prob_and_entropy_grad", "rsample_log_prob_and_entropy_grad")
# Rows that share a program, a row in one tile, a row walked in tiles, and a few rows that are split.
SHORT, ONE_TILE, LONG, FEW = (32768, 32), (1024, 4096), (1024, 128256), (8, 151936)


def paths() -> list[Launch]:
    """Return launches that reach every kernel by every path of its launcher."""
    return [
        *(Launch("sample", *shape, BF16, INT64) for shape in (SHORT, LONG, FEW)),
        Launch("sample", *LONG, BF16, INT64, draws=4),
        *(Launch("log_prob", *shape, BF16, BF16) for shape in (SHORT, LONG, FEW)),
        *(Launch("log_prob_known", *shape, BF16, INT64) for shape in (LONG, FEW)),
        *(Launch(name, *SHORT, BF16) for name in ("log_prob_index", "log_prob_grad", "entropy_grad", "logsumexp")),
        *(Launch("entropy", *shape, BF16) for shape in (SHORT, LONG, FEW)),
        *(
            Launch(name, *shape, BF16)
            for name in ("softmax_grad", "relaxed", "relaxed_grad", "soft_grad")
            for shape in (SHORT, ONE_TILE, LONG, FEW)
        ),
        *(Launch("log_prob_and_entropy", *shape, BF16) for shape in (SHORT, LONG, FEW)),
        *(Launch("log_prob_and_entropy_grad", *shape, BF16) for shape in (SHORT, LONG)),
        *(Launch("rsample_log_prob_and_entropy_grad", *shape, BF16) for shape in (SHORT, LONG, FEW)),
        *(Launch("reinmax_grad", *shape, BF16) for shape in (SHORT, LONG, FEW)),
        *(Launch("gapped_grad", *shape, BF16) for shape in (SHORT, FEW)),
    ]


def variants() -> list[Launch]:
    """Return launches with other dtypes, widths of the one-hot, numbers of draws, alignments and temperatures."""
    many = [
        *(Launch("sample", *LONG, BF16, dtype) for dtype in (BF16, BOOL)),
        *(Launch("sample_index", *shape, BF16) for shape in (SHORT, FEW)),
        Launch("sample", *SHORT, BF16, INT64, draws=4),
        *(Launch("relaxed_grad", *shape, BF16, draws=4) for shape in (SHORT, LONG, FEW)),
        *(Launch("relaxed_samples", *shape, BF16) for shape in (SHORT, FEW)),
        Launch("gapped_grad", *SHORT, BF16, draws=4),
        Launch("reinmax_grad_temperatures", *SHORT, BF16),
        Launch("masked_reinmax_grad", *LONG, BF16),
        # The number of columns and the starts of rows are no multiples of 16.
        Launch("sample", 65536, 18, BF16, BF16),
        *(Launch(name, 1024, 5003, BF16, BF16) for name in ("sample", "log_prob", "entropy", "relaxed_grad")),
        *(Launch(name, 8, 50257, BF16, INT64) for name in ("log_prob", "entropy", "softmax_grad", "relaxed")),
        *(Launch("log_prob", *LONG, BF16, dtype) for dtype in (INT64, BOOL, FP64)),
        *(Launch("log_prob_grad", *LONG, BF16, draws=n) for n in (1, 4)),
        *(Launch(name, *SHORT, BF16) for name in ("relaxed_temperatures", "relaxed_grad_temperatures")),
        *(Launch("soft_grad_temperatures", *shape, BF16, draws=4) for shape in (SHORT, LONG, FEW)),
    ]
    for shape in (SHORT, LONG, FEW):
        masked = ("masked_sample", "masked_log_prob", "masked_entropy", "masked_softmax_grad", "masked_relaxed_grad")
        many += [Launch(name, *shape, BF16, BF16) for name in masked]
    for name in ("masked_log_prob_index", "masked_log_prob_grad", "masked_entropy_grad"):
        many.append(Launch(name, *LONG, BF16))
    many += [Launch(f"masked_{name}", *LONG, BF16, draws=n) for name, n in zip(JOINT, (1, 4, 1), strict=True)]
    for dtype in (FP32, FP64):
        many += [Launch("sample", *shape, dtype, INT64) for shape in (SHORT, LONG, FEW)]
        many += [Launch(name, *shape, dtype) for name in ("relaxed", "relaxed_grad") for shape in (SHORT, LONG, FEW)]
        many += [Launch(name, *FEW, dtype, dtype) for name in ("log_prob", "entropy", "softmax_grad", "soft_grad")]
        many += [Launch(name, *LONG, dtype) for name in ("entropy", "entropy_grad", "softmax_grad", "log_prob_grad")]
        many += [Launch(name, *LONG, dtype) for name in JOINT]
        many += [Launch("log_prob", *LONG, dtype, dtype), Launch("log_prob_index", *SHORT, dtype)]
    return many


def compile_for(arch: str, spread: bool) -> tuple[list[str], int]:
    """Compile for `arch`, and return a line per kernel and the number of failures."""
    lines, failures = [], 0
    seen: set[int] = set()
    left = {id(fn): name for module in MODULES for name, fn in vars(module).items() if name.endswith("_kernel")}
    turn = list(TARGETS).index(arch)
    for launch in paths() + (variants()[turn :: len(TARGETS)] if spread else variants()):
        start = time.perf_counter()
        with compiling(TARGETS[arch]) as kernels:
            try:
                launch.run()
            except Exception as error:
                # The compiler may raise anything. The other kernels are compiled all the same.
                failures += 1
                lines.append(f"{arch:7} FAILED {launch}: {type(error).__name__}: {error}")
        took = time.perf_counter() - start
        new = [kernel for kernel in kernels if id(kernel) not in seen]
        seen.update(map(id, new))
        for kernel in new:
            left.pop(id(kernel.src.fn), None)
            if not kernel.metadata.enable_fp_fusion:
                failures += 1
                lines.append(f"{arch:7} FAILED {launch}: {kernel.name} fuses no products and sums")
            binary = kernel.asm.get("cubin") or kernel.asm["hsaco"]
            lines.append(
                f"{arch:7} ok     {launch!s:52} {kernel.name:28} warps {kernel.metadata.num_warps}"
                f"  shared {kernel.metadata.shared:6}  binary {len(binary):6} bytes  {took:5.2f} s"
            )
    lines += [f"{arch:7} FAILED {name}: no launch reaches it" for name in left.values()]
    return lines, failures + len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description="compile every kernel ahead of time, without a GPU")
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--spread", action="store_true", help="compile each variant for one architecture only, in turn")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="number of architectures at once")
    args = parser.parse_args()
    start, failures, count = time.perf_counter(), 0, 0
    with ProcessPoolExecutor(args.jobs) as pool:
        for lines, failed in pool.map(compile_for, args.arch, repeat(args.spread)):
            print("\n".join(lines), flush=True)
            failures += failed
            count += len(lines) - failed
    took = time.perf_counter() - start
    print(f"triton {triton.__version__}: {count} kernels compiled, {failures} failed, {took:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
