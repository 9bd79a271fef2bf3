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

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
_TWO_TO_MINUS_32 = tl.constexpr(2.0**-32)
_ONES = tl.constexpr(0xFFFFFFFF)


@constexpr_function
def _has_lg2_approx():
    return not knobs.runtime.interpret and is_cuda()


@triton.jit
def fast_log2(x):
    """log2 of positive float32, within 2^-22.6 absolutely between 1/2 and 2, and relatively elsewhere. `tl.log2` is a
    library call of 25 instructions on NVIDIA, and one instruction on AMD."""
    if _has_lg2_approx():
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def words(STAGE: tl.constexpr, call, row, draw, key, counter3):
    """Four uint32 words for each (call, row, draw), which broadcast against each other."""
    c0 = tl.to_tensor(call).to(tl.uint32) | (STAGE << 30)
    return tl.philox(
        key, c0, tl.to_tensor(row).to(tl.uint32), tl.to_tensor(draw).to(tl.uint32), tl.to_tensor(counter3).to(tl.uint32)
    )


@triton.jit
def _minus_log1p(v, complement):
    # -log(1 - v) in float32, complement = 1 - v. Near 0 by 2 atanh(z), z = v / (2 - v) < 1/7: the first term left out
    # is z^8 / 9 < 2e-8. Above, log2(complement) < -0.41 keeps lg2.approx's absolute error below 4e-7 of it.
    z = v / (2.0 - v)
    zz = z * z
    near = 2.0 * z * (1.0 + zz * (1.0 / 3.0 + zz * (0.2 + zz * (1.0 / 7.0))))
    return tl.where(v < 0.25, near, -0.6931471805599453 * fast_log2(complement))


@triton.jit
def _fraction64(hi, lo):
    # Rounding hi to 24 bits is a relative error: a small hi keeps all of its bits, and then lo counts.
    return (hi.to(tl.float32) + (lo.to(tl.float32) + 0.5) * _TWO_TO_MINUS_32) * _TWO_TO_MINUS_32


@triton.jit
def exponential64(hi, lo):
    """Exp(1) in float32 from v = (hi + (lo + 1/2) 2^-32) 2^-32, relative error below 1e-6 at both ends; 1e-20 .. 44.4.

    1 - v is the same fraction of the complemented words, exactly: neither end is the difference of rounded numbers.
    Float32 is enough, for float64 logits too: what matters is the relative precision.
    """
    return _minus_log1p(_fraction64(hi, lo), _fraction64(hi ^ _ONES, lo ^ _ONES))


@triton.jit
def exponential32(word):
    """Exp(1) in float32 from v = (word + 1/2) 2^-32: 1.2e-10 .. 22.9."""
    v = (word.to(tl.float32) + 0.5) * _TWO_TO_MINUS_32
    return _minus_log1p(v, ((word ^ _ONES).to(tl.float32) + 0.5) * _TWO_TO_MINUS_32)


@triton.jit
def load_key(seed_ptr, key, SEED_TENSOR: tl.constexpr):
    """The Philox key: the host's, or the seed on the device plus the host's part, which is what the offset adds."""
    if SEED_TENSOR:
        return tl.load(seed_ptr) + key
    else:
        return key


def seed_arguments(
    seed: int | Tensor, offset: int, row_offset: int, rows: int, columns: int, draws: int, placeholder: Tensor
) -> dict:
    """The arguments of a kernel that say which noise it draws.

    Args:
        seed: 64 bits as a signed integer, or one int64 element on the device.
        offset: of the generator, a multiple of four.
        row_offset: the number of the first row.
        rows: how many there are.
        columns: of a row.
        draws: of each row.
        placeholder: any tensor on the device, for a pointer that is not read.

    Raises:
        ValueError: more rows, columns or draws than the counter has bits for, or a negative offset.
    """
    for name, value, bound in (("columns", columns, 2**30 - 1), ("draws", draws, 2**32)):
        if value > bound:
            raise ValueError(f"{name}: expected at most {bound}, found {value}")
    if row_offset < 0 or row_offset + rows > 2**32:
        raise ValueError(f"row_offset: expected 0 .. {2**32 - rows} for {rows} rows, found {row_offset}")
    if offset < 0:
        raise ValueError(f"offset: expected at least 0, found {offset}")
    is_tensor = isinstance(seed, Tensor)
    key = ((0 if is_tensor else seed) + ((offset >> 33) << 32)) % 2**64
    return {
        "seed_ptr": seed if is_tensor else placeholder,
        "key": key - 2**64 if key >= 2**63 else key,
        "counter3": 2**31 | ((offset >> 2) & 0x7FFFFFFF),
        "row_offset": row_offset,
        "SEED_TENSOR": is_tensor,
    }
