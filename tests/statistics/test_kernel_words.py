"""The words of the noise and what is made of them: Philox against its published answers, the kernels' words against it,
and the exponentials at their extremes against mpmath."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from philox import exponential, philox4x32, relaxed_exponential, words
from samplers import ON_GPU, kernels_run

from onehot_triton import rng

TOP = 2**32 - 1
# kat_vectors of Random123, https://github.com/DEShawResearch/random123: (counter, key, answer), 10 rounds.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((TOP, TOP, TOP, TOP), (TOP, TOP), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
# Both ends, their neighbours, and the borders between the formulas: v = 1/4, 1/2, and where a float32 rounds.
EDGES = (0, 1, 2, 255, 2**24 - 1, 2**24, 2**24 + 1, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 1, 2**31, 2**31 + 1)
EDGES += (TOP - 2**24, TOP - 2**8, TOP - 2, TOP - 1, TOP)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer) -> None:
    assert tuple(map(int, philox4x32(counter, key))) == answer


def test_counters_are_an_array() -> None:
    """Philox broadcasts, and its words are those of each counter alone."""
    c0 = np.arange(5)
    together = philox4x32((c0[:, None], 7, np.arange(3), 9), (1, 2))
    for i, j in np.ndindex(5, 3):
        alone = philox4x32((c0[i], 7, j, 9), (1, 2))
        assert all(int(w[i, j]) == int(a) for w, a in zip(together, alone, strict=True))


def exact(v_times_2_64: int, half: bool) -> mpmath.mpf:
    """-log(1 - v) to 60 digits, v a multiple of 2^-64, and a half of it more."""
    with mpmath.workdps(60):
        return -mpmath.log1p(-(mpmath.mpf(v_times_2_64) + (0.5 if half else 0)) / mpmath.mpf(2) ** 64)


def assert_close(found: np.ndarray, expected: list[mpmath.mpf], tolerance: float) -> None:
    assert np.isfinite(found).all()
    assert (found > 0).all()
    worst = max(abs(float(f) / e - 1) for f, e in zip(found.tolist(), expected, strict=True))
    assert worst < tolerance, f"relative error {float(worst):.2g}"


def word_pairs() -> tuple[np.ndarray, np.ndarray, list[mpmath.mpf]]:
    """Edges crossed with edges, and 2,000 others: (high, low, exponential)."""
    random = np.random.default_rng(0).integers(0, 2**32, (2, 2000), dtype=np.uint64)
    pairs = np.array([(h, lo) for h in EDGES for lo in (0, 1, 2**31, TOP)], dtype=np.uint64).T
    high, low = np.concatenate([pairs, random], 1)
    return high, low, [exact((int(h) << 32) + int(lo), True) for h, lo in zip(high, low, strict=True)]


def single_words() -> tuple[np.ndarray, list[mpmath.mpf]]:
    word = np.concatenate([EDGES, np.random.default_rng(1).integers(0, 2**32, 2000)]).astype(np.uint64)
    return word, [exact((int(w) << 32) + 2**31, False) for w in word]


def test_oracle_exponential() -> None:
    high, low, expected = word_pairs()
    assert_close(exponential(high, low), expected, 1e-14)
    word, expected = single_words()
    assert_close(relaxed_exponential(word), expected, 1e-14)


def test_float32_exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rng.exponential_float32`, of devices without float64."""
    high, low, expected = word_pairs()
    fed = torch.from_numpy(np.stack([high, low]).astype(np.int64))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: fed)
    found = -rng.exponential_float32((len(high),), torch.device("cpu"))
    assert found.dtype == torch.float32
    assert_close(found.numpy(), expected, 1e-6)


def test_float64_exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rng.exponential`. torch's uniforms are multiples of 2^-53: where 1 - v is small, and the variate loses its
    race, v is a float64 next to 1 and 1 - v right to half of its distance from the next."""
    k = np.array([0, 1, 2, 3, 1000, 2**30, 2**45, 2**51, 2**52 - 1, 2**52, 2**52 + 1, 2**53 - 2**20, 2**53 - 1])
    k = np.concatenate([k, np.random.default_rng(2).integers(0, 2**53, 2000), 2 ** np.arange(53)])
    u = torch.from_numpy(k.astype(np.float64) * 2.0**-53)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: u.clone())
    found = -rng.exponential(u.shape, torch.device("cpu")).numpy()
    # v = u (1 - 2^-52) + 2^-54, in 2^-106ths.
    v = [int(i) * (2**53 - 2) + 2**52 for i in k]
    with mpmath.workdps(60):
        unit = mpmath.mpf(2) ** -106
        inner = [i for i, x in enumerate(v) if x < (1 - 2.0**-20) * 2**106]
        assert_close(found[inner], [-mpmath.log1p(-v[i] * unit) for i in inner], 1e-9)
        survival = [abs(mpmath.exp(-float(f)) - (1 - x * unit)) for f, x in zip(found.tolist(), v, strict=True)]
    assert np.isfinite(found).all()
    assert found.min() >= 2.0**-54
    assert max(survival) <= 2.0**-53


# The kernels' own functions -------------------------------------------------------------------------------------------

needs_kernels = pytest.mark.skipif(not kernels_run(), reason="needs a GPU, or TRITON_INTERPRET=1")


def run_kernel(function: Callable, outputs: list[np.ndarray], *inputs: np.ndarray | int) -> list[np.ndarray]:
    """Calls a kernel of `_device_functions` on all elements at once, as many as a power of two."""
    device = "cuda" if ON_GPU else "cpu"
    n = len(outputs[0])
    size = 1 << (n - 1).bit_length()

    def padded(array: np.ndarray) -> torch.Tensor:
        array = (
            np.pad(array.astype(np.int64), (0, size - n)) if array.dtype.kind in "iu" else np.pad(array, (0, size - n))
        )
        return torch.from_numpy(array).to(device)

    out = [padded(o) for o in outputs]
    function[(1,)](*out, *(padded(i) if isinstance(i, np.ndarray) else i for i in inputs), SIZE=size)
    return [o.cpu().numpy()[:n] for o in out]


@needs_kernels
def test_kernel_exponentials() -> None:
    import device_functions

    high, low, expected = word_pairs()
    (found,) = run_kernel(device_functions.exponentials64, [np.zeros(len(high), np.float32)], high, low)
    assert_close(found, expected, 1e-6)
    word, expected = single_words()
    (found,) = run_kernel(device_functions.exponentials32, [np.zeros(len(word), np.float32)], word)
    assert_close(found, expected, 1e-6)


@needs_kernels
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (2**63 - 1, 4), (-5, 2**33 + 8), (1 << 40, 2**62 + 2**34 + 12)])
def test_kernel_words(stage: int, seed: int, offset: int) -> None:
    """The four words of a call, for rows and draws up to 2^32 - 1, calls up to 2^30 - 1, and offsets beyond 2^33."""
    import device_functions

    from onehot_triton.kernels.noise import seed_arguments

    generator = np.random.default_rng(3)
    call = np.append(generator.integers(0, 2**30, 60), [0, 1, 2**30 - 1])
    row, draw = (np.append(generator.integers(0, 2**32, 60), [0, 2**31, TOP]) for _ in range(2))
    arguments = seed_arguments(seed, offset, 0, 1, 1, 1)
    found = run_kernel(
        device_functions.four_words[stage],
        [np.zeros(len(call), np.int64) for _ in range(4)],
        *(call, row, draw, arguments["key"], arguments["counter3"]),
    )
    for f, e in zip(found, words(seed, offset, stage, call, row, draw), strict=True):
        assert np.array_equal(f, e.astype(np.int64))
