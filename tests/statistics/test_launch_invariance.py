"""For one seed, a sample depends on nothing but its row's number and logits: not on the launch, the strides, or the
batch that the row is part of."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from samplers import ON_GPU, kernels_run
from torch import Tensor

from onehot_triton import OneHotCategorical
from onehot_triton.compute import base

pytestmark = [
    pytest.mark.skipif(not kernels_run(), reason="needs a GPU, or TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
]

DEVICE = "cuda" if ON_GPU else "cpu"
SEED = (None, 1234, 8)
SHORT, LONG = ((5, 18), (3, 700)), ((2, 1025), (2, 5000))
SHAPES, EACH = SHORT + LONG, (SHORT[0], LONG[0])
# What launch.py chooses by: the programs that fill a GPU (more of them: fewer rows in each, draws and long rows shared
# by several), elements of a tile, the longest row in registers, groups in a tile, groups that race at once, and
# adjacent columns of a thread.
CHOICES = (
    (SHORT, {"FILL": 1}),
    (SHORT, {"FILL": 10**6, "TILE": 1024}),
    (SHORT, {"FILL": 2, "TILE": 2**14, "vector": 1}),
    (LONG, {"FILL": 1, "SAMPLE_GROUPS": 1, "RACE": 1, "ONE_TILE": 1024}),
    (LONG[1:], {"FILL": 10**6, "SAMPLE_GROUPS": 2, "RACE": 4, "TILE": 2048, "ONE_TILE": 1024, "vector": 1}),
)


def logits_of(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(columns)
    return (3 * torch.randn(rows, columns, generator=generator)).to(DEVICE)


def draw(logits: Tensor, draws: int, row_offset: int = 0, seed=SEED, mask: Tensor | None = None) -> list[Tensor]:
    """One-hot and index of the sample kernel, and the relaxed sample, which takes no mask."""
    ops = torch.ops.onehot_triton
    one_hot, index, _ = ops.sample(logits, draws, torch.bool, *seed, row_offset, mask)
    temperature = torch.full((logits.shape[0],), 0.7, device=DEVICE)
    return [one_hot, index, ops.relaxed(logits, temperature, 1.0, draws, *seed, row_offset)]


def grad(logits: Tensor, index: Tensor, rows: slice = slice(None), mask: Tensor | None = None) -> Tensor:
    """The RelaxedOneHot backward of two samples a draw, whose noise has the rows' numbers too."""
    g = torch.randn(*index.shape, logits.shape[-1], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    x = logits[rows]
    temperature = torch.full((x.shape[0],), 0.7, device=DEVICE)
    masked = x if mask is None else torch.where(mask, x, -torch.inf)
    args = (base.logsumexp(masked), index[:, rows].contiguous(), g[:, rows].contiguous(), temperature, 1.0)
    return torch.ops.onehot_triton.relaxed_grad(x, *args, *SEED, rows.start or 0, mask, False, 2)[0]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for f, e in zip(found, expected, strict=True):
        if e.is_floating_point():
            # The noise is the same; a sum over the row may be taken in another order.
            torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(f, e)


@lru_cache
def as_launched(shape: tuple[int, int], draws: int) -> list[Tensor]:
    """All that a seed decides, of several draws under a mask. One draw and several of a long row take different
    kernels, of the hard sample alone."""
    logits = logits_of(*shape)
    if draws == 1:
        return list(torch.ops.onehot_triton.sample(logits, 1, torch.bool, *SEED, 0, None)[:2])
    mask = logits_of(*shape).roll(1) > 0
    samples = draw(logits, draws, mask=mask)
    assert mask.expand(draws, *shape)[samples[0]].all()
    return [*samples, grad(logits, samples[1], mask=mask)]


@pytest.mark.parametrize(("shape", "choices"), [(shape, choices) for shapes, choices in CHOICES for shape in shapes])
@pytest.mark.parametrize("draws", [1, 2])
def test_launch(shape, choices: dict, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from onehot_triton.kernels import launch

    expected = as_launched(shape, draws)
    for name, value in choices.items():
        is_function = callable(getattr(launch, name))
        monkeypatch.setattr(launch, name, (lambda *args, value=value: value) if is_function else value)
    assert_same(as_launched.__wrapped__(shape, draws), expected)


@pytest.mark.parametrize("shape", EACH)
def test_strides(shape) -> None:
    logits = logits_of(*shape)
    rows, columns = shape
    expected = draw(logits, 2)
    wide = torch.full((rows, 2 * columns + 3), torch.nan, device=DEVICE)
    wide[:, :columns] = logits
    assert_same(draw(wide[:, :columns], 2), expected)
    wide[:, : 2 * columns : 2] = logits
    assert_same(draw(wide[:, : 2 * columns : 2], 2), expected)
    assert_same(draw(logits.t().contiguous().t(), 2), expected)


def test_expanded_rows() -> None:
    row = logits_of(1, 1025)
    assert_same(draw(row.expand(3, -1), 2), draw(row.repeat(3, 1), 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_halves_of_a_batch(shape) -> None:
    """Two halves, the second with a row_offset, are the whole."""
    logits, cut = logits_of(*shape), shape[0] // 2
    whole = draw(logits, 2)
    halves = zip(draw(logits[:cut], 2), draw(logits[cut:], 2, row_offset=cut), strict=True)
    assert_same([torch.cat(pair, 1) for pair in halves], whole)
    parts = [grad(logits, whole[1], rows) for rows in (slice(0, cut), slice(cut, shape[0]))]
    assert_same([torch.cat(parts)], [grad(logits, whole[1])])


@pytest.mark.parametrize("shape", EACH)
def test_seed_tensor(shape) -> None:
    """A seed on the device draws what the same seed from the host does."""
    logits = logits_of(*shape)
    at_host = draw(logits, 2, seed=(None, 987654321012345678, 0))
    assert_same(draw(logits, 2, seed=(torch.tensor(987654321012345678, device=DEVICE), 0, 0)), at_host)


def test_draws_are_numbered() -> None:
    """The first draws of many are the draws of few."""
    logits = logits_of(2, 1025)
    few, many = draw(logits, 2), draw(logits, 5)
    assert_same([m[:2] for m in many], few)


@pytest.mark.parametrize("columns", [2, 40, 1000, 5000])
def test_eager_strides(columns: int) -> None:
    """In eager torch too, a sample does not depend on strides."""
    logits = torch.randn(3, columns)
    samples = []
    for x in (logits, logits.t().contiguous().t(), torch.cat([logits, logits], 1)[:, :columns]):
        torch.manual_seed(5)
        samples.append(OneHotCategorical(x).sample_index((4,)))
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])
