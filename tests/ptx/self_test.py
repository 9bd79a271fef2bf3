"""Whether the emulator finds what it is for: kernels that are wrong on purpose, and kernels of the library from which
one instruction is taken out. And its arithmetic, where NumPy has no function for it."""

from __future__ import annotations

import re
import struct
from fractions import Fraction

import machine
import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def reverse(x_ptr, out_ptr, BARRIER: tl.constexpr):
    # Each thread reads what a thread of another warp wrote to global memory.
    at = tl.arange(0, 128)
    tl.store(out_ptr + at, tl.load(x_ptr + at))
    if BARRIER:
        tl.debug_barrier()
    tl.store(out_ptr + 128 + at, tl.load(out_ptr + 127 - at))


@triton.jit
def copy(x_ptr, out_ptr, n, MASK: tl.constexpr):
    at = tl.program_id(0) * 128 + tl.arange(0, 128)
    if MASK:
        tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)
    else:
        tl.store(out_ptr + at, tl.load(x_ptr + at))


@triton.jit
def same_place(out_ptr):
    tl.store(out_ptr, tl.program_id(0))


@triton.jit
def row_sum(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    x -= tl.max(x, 0)
    tl.store(out_ptr + at, x / tl.sum(tl.exp(x), 0))


BY_HAND = """.extern .shared .align 16 .b8 global_smem[];
.visible .entry by_hand(
	.param .u64 .ptr .global .align 1 by_hand_param_0
)
.reqntid 64
{
	.reg .pred %p<2>;
	.reg .b32 %r<4>;
	.reg .b64 %rd<2>;
	ld.param.b64 %rd1, [by_hand_param_0];
	mov.u32 %r0, %tid.x;
	setp.lt.u32 %p0, %r0, 32;
	setp.lt.u32 %p1, %r0, 7;
BODY
	ret;
}
"""


def by_hand(emulator, x: torch.Tensor, body: str) -> None:
    """Runs a line of PTX, of two warps: %r0 is the thread, %p0 the first warp, %p1 seven threads, %rd1 = &x."""
    start = x.data_ptr()
    memory = machine.Range(start, start + 4 * x.numel(), "x")
    program = machine.Program(BY_HAND.replace("BODY", body))
    emulator.reports.append(machine.Machine(program, [struct.pack("<Q", start)], [memory], (1, 1, 1), 128).run())


def fails(emulator, what: str, launch) -> bool:
    """Runs it, and whether a fault that starts with `what` ("" for none) was reported."""
    emulator.reports.clear()
    launch()
    kinds = [kind for report in emulator.reports for kind in report.faults if not kind.startswith("same write")]
    good = any(kind.startswith(what) for kind in kinds) if what else not kinds
    print(f"{'ok   ' if good else 'WRONG'} {what or 'no fault':22} {', '.join(sorted(set(kinds))) or 'none'}")
    return good


def mutants(emulator, what: str, pattern: str, launch) -> bool:
    """Takes each instruction that matches out of the kernels that `launch` runs, one at a time: how many of these
    mutants are reported. (Without a store, memory that an earlier one has written is not uninitialised.)"""
    emulator.reports.clear()
    expected = launch()
    programs = [(text, program) for text, program in emulator.programs.items() if program.used]
    caught, silent, unseen = 0, 0, []
    for text, program in programs:
        for match in list(re.finditer(pattern, text)):
            broken = machine.Program(text[: match.start()] + re.sub(r"[^\n]", " ", match[0]) + text[match.end() :])
            saved = program.blocks, program.registers
            program.blocks, program.registers = broken.blocks, broken.registers
            emulator.reports.clear()
            try:
                wrong = not torch.equal(launch(), expected)
            except machine.MachineError:
                wrong = True
            program.blocks, program.registers = saved
            kinds = {k for report in emulator.reports for k in report.faults if not k.startswith("same write")}
            found = any(kind.startswith(what) for kind in kinds)
            caught += found
            silent += wrong and not found
            if not found:
                unseen.append(text[: match.start()].count("\n") + 1)
    total = caught + len(unseen)
    print(
        f"{'ok   ' if not silent and caught else '     '} {what:22} {caught} of {total} mutants without {pattern!r}; "
        f"of the rest {silent} give a wrong result" + f", lines {unseen[:8]}" * bool(unseen)
    )
    return caught > 0 and not silent


def arithmetic() -> bool:
    random = np.random.default_rng(1)
    good = True
    a, b, c = (random.standard_normal(500) * 2.0 ** random.integers(-30, 30, 500) for _ in range(3))
    c[:200] = -a[:200] * b[:200]
    exact = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)]
    good &= bool((machine.fma64(a, b, c) == exact).all())
    bits = random.integers(0, 2**32, 5000, dtype=np.uint32)
    x = torch.from_numpy(bits.view(np.float32).copy())
    want = x.bfloat16().view(torch.int16).numpy().view(np.uint16)
    got = machine.to_bf16(bits.view(np.float32))
    good &= bool(((got == want) | np.isnan(bits.view(np.float32))).all())
    good &= int(machine.prmt(0x33221180, 0x77665544, 0x7610)) == 0x77661180
    good &= int(machine.prmt(0x33221180, 0x77665544, 0x0008)) == 0x808080FF
    good &= machine.div_int(np.array([-7, 7, -8]), np.array([2, -2, 4])).tolist() == [-3, -3, -2]
    good &= machine.bfe(np.array([0xF0], np.uint32), 4, 4).tolist() == [15]
    good &= machine.bfe(np.array([0xF0], np.int32), 4, 4).tolist() == [-1]
    nan = np.array([np.nan], np.float32)
    good &= [bool(machine.compare(op, nan, nan)[0]) for op in ("eq", "ne", "lt", "equ", "neu", "geu")] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 128, -127, 10], np.float32)
    with np.errstate(all="ignore"):
        want = np.array([1, 1, np.inf, 0, np.nan, 1, 1, np.inf, 0, 1024], np.float32)
        good &= np.array_equal(machine.ex2(special, 3, True), want, equal_nan=True)
        want = np.array([-np.inf, -np.inf, np.inf, np.nan, np.nan, -np.inf, -np.inf, 7, np.nan], np.float32)
        good &= np.array_equal(machine.lg2(special[:-1], None, True), want, equal_nan=True)
        x = random.uniform(0.01, 10, 20000).astype(np.float32)
        for seed in (None, 1, 2):
            error = np.abs(machine.ex2(x, seed, True) / np.exp2(x.astype(np.float64)) - 1)
            good &= bool(error.max() <= 2.0**-22) and (seed is None or bool(error.max() > 2.0**-22.6))
            exact = np.log2(x.astype(np.float64))
            error = np.abs(machine.lg2(x, seed, True) - exact) / np.where((x > 0.5) & (x < 2), 1, np.abs(exact))
            good &= bool(error.max() <= 2.0**-22)
    print(f"{'ok   ' if good else 'WRONG'} arithmetic")
    return good


def main(emulator) -> int:
    x, out = torch.randn(128), torch.empty(256)
    short = torch.empty(100)
    wide = torch.randn(512)
    good = [
        arithmetic(),
        fails(emulator, "", lambda: reverse[(1,)](x, out, True)),
        fails(emulator, "race (global)", lambda: reverse[(1,)](x, out, False)),
        fails(emulator, "race between programs", lambda: same_place[(2,)](torch.empty(1, dtype=torch.int32))),
        fails(emulator, "", lambda: copy[(1,)](x, short, 100, True)),
        fails(emulator, "out of bounds", lambda: copy[(1,)](x, short, 100, False)),
        fails(emulator, "out of bounds", lambda: copy[(1,)](x[28:], out, 100, False)),
        fails(emulator, "", lambda: row_sum[(1,)](wide, torch.empty(512), 512)),
        fails(emulator, "misaligned", lambda: by_hand(emulator, wide, "ld.global.v2.b32 {%r1, %r2}, [%rd1 + 4];")),
        fails(emulator, "uninitialised", lambda: by_hand(emulator, wide, "ld.shared.b32 %r1, [global_smem+64];")),
        fails(emulator, "out of bounds", lambda: by_hand(emulator, wide, "st.shared.b32 [global_smem+128], %r0;")),
        fails(
            emulator, "race within a warp", lambda: by_hand(emulator, wide, "@%p1 st.shared.b32 [global_smem], %r0;")
        ),
        fails(emulator, "barrier", lambda: by_hand(emulator, wide, "@%p0 bra $L0; bar.sync 0; $L0:")),
        fails(
            emulator,
            "convergence",
            lambda: by_hand(emulator, wide, "@%p1 bra $L0; shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1; $L0:"),
        ),
        fails(emulator, "grid", lambda: copy[(1, 70000)](x, out, 128, True)),
    ]

    def summed() -> torch.Tensor:
        result = torch.empty(512)
        row_sum[(1,)](wide, result, 512)
        return result

    def sampled() -> torch.Tensor:
        from onehot_triton.kernels import launch, sample

        logits = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
        before = launch.FILL, launch.MULTIPROCESSORS
        launch.FILL, launch.MULTIPROCESSORS = 1, 2
        hot, index, logsumexp = sample.sample(logits, 1, torch.int64, 1, 4)
        launch.FILL, launch.MULTIPROCESSORS = before
        return torch.cat([hot.flatten().double(), index.flatten().double(), logsumexp.flatten().double()])

    for name, run in (("row_sum", summed), ("sample", sampled)):
        print(f"      {name}")
        for program in emulator.programs.values():
            program.used = False
        good.append(mutants(emulator, "race", r"bar\.sync[^\n]*", run))
        mutants(emulator, "uninitialised", r"(@%p\d+ )?st\.shared[^\n]*", run)
    return 0 if all(good) else 1
