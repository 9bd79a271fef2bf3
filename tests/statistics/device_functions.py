"""Kernels that do nothing but call a function of kernels/noise.py on every element. Exponentials are stored whole, not
in 64ths."""

import triton
import triton.language as tl

from onehot_triton.kernels.noise import exponential32, exponential64, words


@triton.jit
def exponentials64(out_ptr, high_ptr, low_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    high, low = tl.load(high_ptr + i).to(tl.uint32), tl.load(low_ptr + i).to(tl.uint32)
    tl.store(out_ptr + i, 64 * exponential64(high, low))


@triton.jit
def exponentials32(out_ptr, word_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, 64 * exponential32(tl.load(word_ptr + i).to(tl.uint32)))


@triton.jit
def _four_words(
    w0_ptr, w1_ptr, w2_ptr, w3_ptr, call_ptr, row_ptr, draw_ptr, key: tl.int64, counter3: tl.int64,
    STAGE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, SIZE)
    call, row, draw = tl.load(call_ptr + i), tl.load(row_ptr + i), tl.load(draw_ptr + i)
    w0, w1, w2, w3 = words(STAGE, call.to(tl.uint32), row, draw, key, counter3)  # pyright: ignore
    tl.store(w0_ptr + i, w0.to(tl.int64))
    tl.store(w1_ptr + i, w1.to(tl.int64))
    tl.store(w2_ptr + i, w2.to(tl.int64))
    tl.store(w3_ptr + i, w3.to(tl.int64))


class _AtStage:
    """`_four_words` of one stage, launched as a kernel is."""

    def __init__(self, stage: int) -> None:
        self.stage = stage

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args, SIZE: _four_words[grid](*args, STAGE=self.stage, SIZE=SIZE)


four_words = tuple(map(_AtStage, range(4)))
