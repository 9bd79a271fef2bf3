"""Noise: Philox words -> open-interval uniform -> exponential. Device functions, and what their launchers need.

A number is a pure function of (seed, offset, stage, draw, row, call), through one Philox 4x32-10 call each
(Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405):

    key       seed + ((offset >> 33) << 32)                          64 bits
    counter   c0 = stage << 30 | call                                2 + 30 bits
              c1 = row                                               32 bits
              c2 = draw                                              32 bits
              c3 = 1 << 31 | ((offset >> 2) & 0x7fffffff)            torch's offsets are multiples of four

torch's own kernels use the same key with a small c3; the top bit keeps our counters apart from theirs.

One call gives four words, and so serves two elements with 64 bits each, or four with 32. Elements that share a call lie
a half or a quarter of a group apart, so that each part of the group is one contiguous load:

    64 bits   half    H = min(512, next_power_of_2(columns) / 2)     call = group * 512 + i % H    words 2 (i // H), + 1
    32 bits   quarter Q = min(256, next_power_of_2(columns) / 4)     call = group * 256 + i % Q    word i // Q

with i the column within its group (H and Q at least 1). A group's own noise is call = group, words 0 and 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.language.target_info import is_cuda
from triton.runtime.jit import constexpr_function

# The columns of a group. Part of what a seed means: not a tuning parameter.
GROUP = 1024
ELEMENT = tl.constexpr(0)  # the race within a group
GROUPS = tl.constexpr(1)  # the race of the groups
RELAXED = tl.constexpr(2)  # soft samples
POSTERIOR = tl.constexpr(3)  # soft samples given their arg-max
WINNER_CALL = tl.constexpr(2**30 - 1)  # the stage POSTERIOR's noise of the winner, beyond every column

# The arguments that change from call to call, and with the place of the seed: no kernel has a variant for some of their
# values, or for where they lie.
PER_CALL = ["seed_ptr", "key", "counter3", "row_offset", "rows"]

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
_TWO_TO_MINUS_32 = tl.constexpr(2.0**-32)
_ONES = tl.constexpr(0xFFFFFFFF)


@constexpr_function
def _is_ptx():
    return not knobs.runtime.interpret and is_cuda()


@triton.jit
def fast_log2(x):
    """log2 of positive normal float32, within 2^-22 absolutely between 1/2 and 2, and relatively elsewhere. `tl.log2`
    is a library call of 25 instructions on NVIDIA, and one instruction on AMD."""
    if _is_ptx():
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def _product(a, M: tl.constexpr):
    """High and low word of a 32 x 32 bit product. As an instruction of its own, because the compiler takes two for a
    half of the products that it is given as 64-bit ones, and tl.philox for all of them."""
    if _is_ptx():
        wide: tl.constexpr = "{ .reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$1, $0}, p; }"
        return tl.inline_asm_elementwise(wide, "=r,=r,r,r", [a, M], (tl.uint32, tl.uint32), is_pure=True, pack=1)
    else:
        product = a.to(tl.uint64) * M
        return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _word(x):
    # Of a tensor or a number: a loop's counter is a number in the interpreter.
    return (tl.zeros([], tl.int64) + x).to(tl.uint32)


@triton.jit
def words(STAGE: tl.constexpr, call, row, draw, key, counter3):
    """Four uint32 words for each (call, row, draw), which broadcast against each other."""
    c0 = _word(call) | (STAGE << 30)
    c1 = _word(row)
    c2 = _word(draw)
    c3 = _word(counter3)
    key = (tl.zeros([], tl.int64) + key).to(tl.uint64)
    k0 = key.to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def word_pairs(STAGE: tl.constexpr, call, row, draw, key, counter3):
    """The same words as uint64 [..., 2], w0 | w1 << 32 and w2 | w3 << 32. Packed and joined they have one user, so that
    the compiler computes them in the layout of what they are used with; else it moves each through shared memory."""
    w0, w1, w2, w3 = words(STAGE, call, row, draw, key, counter3)
    return tl.join(w0.to(tl.uint64) | w1.to(tl.uint64) << 32, w2.to(tl.uint64) | w3.to(tl.uint64) << 32)


@triton.jit
def _minus_log1p(v4, complement):
    """-log(1 - v) / 64 in float32, from 4 v and 4/3 (1 - 2^-22) (1 - v), as

        -log(1 - min(v, 1/4)) + max(-log complement - 2^-22, 0)

    in 64ths. The first is the polynomial of least relative error, 4e-8 (from the tests' Remez fit, c_1 .. c_5 of
    -log(1 - v) / v = 1 + sum c_i v^i, here over 4^(i+1)). The second is 0 below v = 1/4, whatever lg2.approx makes of
    1: it is off by 2^-22 at most, which is 0.69 2^-22 here. Where it is not 0, the result is above 0.28, of which that
    is less than 6e-7. Without a comparison: between 0 and 1 a multiply-add saturates for nothing, and the largest
    result, 45, is below 64.
    """
    v4 = tl.minimum(tl.maximum(v4, 0.0), 1.0)
    far = fast_log2(tl.minimum(tl.maximum(complement, 0.0), 1.0)) * (-LN2 / 64) - 2.0**-22 / 64
    far = tl.minimum(tl.maximum(far, 0.0), 1.0)
    near = 0.1467033326625824 / 4**8 + v4 * (0.3357096314430237 / 4**9)
    near = 0.3329307138919830 / 4**6 + v4 * (0.2571102082729340 / 4**7 + v4 * near)
    return v4 * (1.0 / 4**4 + v4 * (0.5000072717666626 / 4**5 + v4 * near)) + far


# 4/3 (1 - 2^-22), of which a float32 has every digit.
_COMPLEMENT = tl.constexpr(1398101 / 2**20)


@triton.jit
def _fraction64(hi, lo, SCALE: tl.constexpr):
    # Rounding hi to 24 bits is a relative error: a small hi keeps all of its bits, and then lo counts.
    return (hi.to(tl.float32) + (lo.to(tl.float32) + 0.5) * _TWO_TO_MINUS_32) * (SCALE * _TWO_TO_MINUS_32)


@triton.jit
def exponential64(hi, lo):
    """Exp(1) / 64 in float32 from v = (hi + (lo + 1/2) 2^-32) 2^-32, relative error below 1e-6 at both ends; 64 of it
    are 2.7e-20 .. 45. A race does not see the factor.

    1 - v is the same fraction of the complemented words, exactly: neither end is the difference of rounded numbers.
    Float32 is enough, for float64 logits too: what matters is the relative precision.
    """
    return _minus_log1p(_fraction64(hi, lo, 4), _fraction64(hi ^ 0xFFFFFFFF, lo ^ 0xFFFFFFFF, _COMPLEMENT))


@triton.jit
def _fraction32(word, SCALE: tl.constexpr):
    # SCALE (word + 1/2) 2^-32 as one FMA.
    return word.to(tl.float32) * (SCALE * _TWO_TO_MINUS_32) + 0.5 * (SCALE * _TWO_TO_MINUS_32)


@triton.jit
def exponential32(word):
    """Exp(1) / 64 in float32 from v = (word + 1/2) 2^-32; 64 of it are 1.2e-10 .. 22.9."""
    return _minus_log1p(_fraction32(word, 4), _fraction32(word ^ 0xFFFFFFFF, _COMPLEMENT))


@triton.jit
def load_key(seed_ptr, key):
    """The Philox key: the seed on the device, 0 for a null pointer, plus `key`, the host's part of it. A choice at run
    time, not another variant of the kernel: a graph is captured with a seed on the device, by the kernels that calls
    with seeds of the host have compiled and loaded before."""
    return tl.load(seed_ptr, mask=seed_ptr.to(tl.int64) != 0, other=0) + key


# No element, so no memory: a null pointer on every device.
_NULL = torch.empty(0, dtype=torch.int64, device="cpu")


def seed_arguments(seed: int | Tensor, offset: int, row_offset: int, rows: int, columns: int, draws: int) -> dict:
    """The arguments of a kernel that say which noise it draws.

    Args:
        seed: 64 bits as a signed integer, or one int64 element on the device.
        offset: of the generator, a multiple of four.
        row_offset: the number of the first row.
        rows: how many there are.
        columns: of a row.
        draws: of each row.

    Raises:
        ValueError: more rows, columns or draws than the counter has bits for, a negative offset, or a seed that is no
            integer.
    """
    for name, value, bound in (("columns", columns, 2**30), ("draws", draws, 2**32)):
        if value > bound:
            raise ValueError(f"{name}: expected at most {bound}, found {value}")
    if row_offset < 0 or row_offset + rows > 2**32:
        raise ValueError(f"row_offset: expected 0 .. {2**32 - rows} for {rows} rows, found {row_offset}")
    if offset < 0:
        raise ValueError(f"offset: expected at least 0, found {offset}")
    is_tensor = isinstance(seed, Tensor)
    if is_tensor and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"seed: expected one int64 element, found {seed.dtype} of shape {list(seed.shape)}")
    if not is_tensor and not isinstance(seed, int):
        raise ValueError(f"seed: expected an int or an int64 tensor, found {seed!r}")
    key = ((0 if is_tensor else seed) + ((offset >> 33) << 32)) % 2**64
    return {
        "seed_ptr": seed if is_tensor else _NULL,
        "key": key - 2**64 if key >= 2**63 else key,
        "counter3": 2**31 | ((offset >> 2) & 0x7FFFFFFF),
        "row_offset": row_offset,
    }
