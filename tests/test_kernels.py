"""The kernels, interpreted, against their eager twins and float64.

Densities and gradients: the error against float64 is bounded by the twin's own error in the same dtype. Samples: draw
for draw, the twin being fed the words of a Philox that is not Triton's (philox.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from philox import GROUP, philox_noise, philox_relaxed_noise, posterior_noise, twin_sample
from torch import Tensor

from onehot_triton import blocks, tensors
from onehot_triton.compute import EAGER, base, cpu
from onehot_triton.compute.base import Rows

pytest.importorskip("triton")
from onehot_triton.kernels import entropy, launch, log_prob, relaxed, sample, softmax_grad, straight_through
from onehot_triton.kernels import log_prob_and_entropy as joint

pytestmark = pytest.mark.usefixtures("one_thread", "numpy_as_quiet_as_a_gpu")

# 2 and 3: fewer columns than parts of a group. 1023 .. 1025: the edges of a group. 5000: a masked last tile, and a last
# group that is short. 9000: more than one whole tile, and more than a row's tile of any kernel.
COLUMNS = (1, 2, 3, 18, 100, 1023, 1024, 1025, 5000, 9000)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def dtypes_at(columns: int) -> tuple[torch.dtype, ...]:
    """Each in a row of each kind, a short one and a long one; an interpreted kernel differs by it nowhere else."""
    return DTYPES if columns in (18, 1025) else (torch.float32,)


def logits_of(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    logits = (3 * torch.randn(rows, columns)).to(dtype)
    if columns > 2:
        logits[0, columns // 2] = -torch.inf
    return logits


class Case(NamedTuple):
    """A kernel beside its twin: both as functions of (logits, grad [rows, columns], row_grad [2, rows])."""

    name: str
    kernel: Callable[..., Tensor]
    twin: Callable[..., Tensor]


def _index(columns: int, rows: int) -> Tensor:
    return torch.arange(2 * rows).view(2, rows) * 7 % columns


def _drawn(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, float]:
    """The index of one draw, its incoming gradient, and the temperature 1."""
    return _index(x.shape[1], x.shape[0])[:1], grad[None], 1.0


def _hot(x: Tensor, draws: int) -> Tensor:
    """One-hots of `_index`, [draws, rows, columns]."""
    index = _index(x.shape[1], x.shape[0])[:draws]
    return torch.zeros(*index.shape, x.shape[1]).scatter_(-1, index[..., None], 1)


def _joint_grad(x: Tensor, grad: Tensor | None, r: Tensor, mask: Tensor | None = None) -> Tensor:
    index = _index(x.shape[1], x.shape[0])[: len(r)]
    _, h, kept = joint.log_prob_and_entropy(x, index, mask)
    return joint.log_prob_and_entropy_grad(x, kept, h, index, r, r[0], mask, grad)


CASES = [
    Case("logsumexp", lambda x, g, r: entropy.logsumexp(x).sum(0), lambda x, g, r: base.logsumexp(x).sum(0)),
    Case(
        "logsumexp_of_entropy",
        lambda x, g, r: entropy.entropy(x)[1].sum(0),
        lambda x, g, r: base.logsumexp(x).sum(0),
    ),
    Case("entropy", lambda x, g, r: entropy.entropy(x)[0], lambda x, g, r: EAGER.entropy(Rows(x))[0]),
    Case(
        "entropy_grad",
        lambda x, g, r: entropy.entropy_grad(x, *reversed(entropy.entropy(x)), r[0]),
        lambda x, g, r: EAGER.entropy_grad(Rows(x), r[0]),
    ),
    Case(
        "gradient_of_both",
        lambda x, g, r: _joint_grad(x, None, r),
        lambda x, g, r: EAGER.log_prob_and_entropy_grad(Rows(x), _index(x.shape[1], x.shape[0]), r, r[0]),
    ),
    Case(
        "gradient_of_both_and_a_draw",
        lambda x, g, r: _joint_grad(x, g, r[:1]),
        lambda x, g, r: EAGER.log_prob_and_entropy_grad(
            Rows(x), _index(x.shape[1], x.shape[0])[:1], r[:1], r[0], grad=g
        ),
    ),
    Case(
        "softmax_grad",
        lambda x, g, r: softmax_grad.softmax_grad(x, entropy.logsumexp(x), g),
        lambda x, g, r: EAGER.softmax_grad(Rows(x), g),
    ),
    *(
        Case(
            name,
            lambda x, g, r, name=name: getattr(straight_through, name)(x, entropy.logsumexp(x), *_drawn(x, g)),
            lambda x, g, r, name=name: getattr(EAGER, name)(Rows(x), *_drawn(x, g)),
        )
        for name in ("reinmax_grad", "gapped_grad")
    ),
    Case(
        "log_prob",
        lambda x, g, r: log_prob.log_prob(x, None, _hot(x, 2))[0],
        lambda x, g, r: EAGER.log_prob_index(Rows(x), _index(x.shape[1], x.shape[0]))[0],
    ),
    Case(
        "log_prob_of_one_draw",
        lambda x, g, r: log_prob.log_prob(x, None, _hot(x, 1))[0],
        lambda x, g, r: EAGER.log_prob_index(Rows(x), _index(x.shape[1], x.shape[0])[:1])[0],
    ),
    Case(
        "log_prob_index",
        lambda x, g, r: log_prob.log_prob_index(x, entropy.logsumexp(x), _index(x.shape[1], x.shape[0])),
        lambda x, g, r: EAGER.log_prob_index(Rows(x), _index(x.shape[1], x.shape[0]))[0],
    ),
    Case(
        "log_prob_grad",
        lambda x, g, r: log_prob.log_prob_grad(x, entropy.logsumexp(x), _index(x.shape[1], x.shape[0]), r),
        lambda x, g, r: EAGER.log_prob_grad(Rows(x), _index(x.shape[1], x.shape[0]), r),
    ),
    Case(
        "log_prob_grad_of_one_draw",
        lambda x, g, r: log_prob.log_prob_grad(x, entropy.logsumexp(x), _index(x.shape[1], x.shape[0])[:1], r[:1]),
        lambda x, g, r: EAGER.log_prob_grad(Rows(x), _index(x.shape[1], x.shape[0])[:1], r[:1]),
    ),
]


def assert_as_good_as(found: Tensor, twin: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """The error of `found`, largest and root mean square, is at most four times the twin's, and a few units of the last
    place of the result or of the computation where the twin's happens to be less."""
    assert found.dtype == twin.dtype
    assert found.shape == twin.shape
    infinite = exact.isinf()
    assert torch.equal(found[infinite].double(), exact[infinite])
    finite = ~infinite & ~exact.isnan()
    assert torch.equal(found.isnan(), exact.isnan())
    error = (found.double() - exact)[finite].abs()
    twin_error = (twin.double() - exact)[finite].abs()
    if not error.numel():
        return
    size = exact[finite].abs().max()
    # log p is a difference of two numbers near 8, within 8 eps, and a gradient is a product of it with numbers up to 2.
    # The exact value of float64 is the twin's own, with its error.
    few = 16 if dtype == torch.float64 else 8
    unit = max(torch.finfo(found.dtype).eps * size, few * torch.finfo(tensors.compute_dtype(dtype)).eps)
    assert error.max() <= 4 * twin_error.max() + unit
    assert error.square().mean().sqrt() <= 4 * twin_error.square().mean().sqrt() + unit


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_as_good_as_its_twin(case: Case, columns: int) -> None:
    for dtype in dtypes_at(columns):
        logits = logits_of(3, columns, dtype)
        grad, row_grad = torch.randn(3, columns).to(dtype), torch.randn(2, 3).to(tensors.compute_dtype(dtype))
        exact = case.twin(logits.double(), grad.double(), row_grad.double())
        found, twin = case.kernel(logits, grad, row_grad), case.twin(logits, grad, row_grad)
        assert_as_good_as(found, twin, exact, dtype)


# The ways to launch a row that is longer than a group: as launch.py does, with a row in a tile as long as it fits; from
# 1025 columns on walked in tiles by one program; and by as many programs as there are tiles.
LAUNCHES = {
    "as launched": {},
    "rows walked": {"ONE_TILE": GROUP, "FILL": 1},
    "rows split": {"ONE_TILE": GROUP, "FILL": 10**6},
}


@pytest.fixture
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in LAUNCHES[request.param].items():
        monkeypatch.setattr(launch, name, value)
    return request.param


def each_launch(*columns: int) -> pytest.MarkDecorator:
    """The columns, and the ways to launch them: one, where they are no more than a group."""
    cases = [(n, name) for n in columns for name in LAUNCHES if n > GROUP or name == "as launched"]
    return pytest.mark.parametrize(("columns", "launched"), cases, indirect=["launched"])


@each_launch(5000, 9216)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_of_long_rows(case: Case, columns: int, launched: str) -> None:
    """Rows that start anywhere and rows aligned for 128-bit loads; among them rows that are no distribution."""
    dtype = {5000: torch.bfloat16, 9216: torch.float32}[columns]
    logits = logits_of(4, columns, dtype)
    logits[1], logits[2, -1] = -torch.inf, torch.nan
    grad, row_grad = torch.randn(4, columns).to(dtype), torch.randn(2, 4)
    exact = case.twin(logits.double(), grad.double(), row_grad.double())
    found, twin = case.kernel(logits, grad, row_grad), case.twin(logits, grad, row_grad)
    assert_as_good_as(found, twin, exact, dtype)


@pytest.mark.parametrize("columns", [2**15, 50_257, 131_072, 2**18])
@pytest.mark.parametrize("rows", [1, 3, 8, 64, 200])
def test_few_long_rows_fill_the_gpu(rows: int, columns: int) -> None:
    """At least a program for each multiprocessor, or for each tile; at most four; and lanes for all of them."""
    logits = torch.empty(rows, columns, dtype=torch.bfloat16, device="meta")
    of_sample = -(-columns // (GROUP * launch.SAMPLE_GROUPS))
    parts = [(launch.splits(logits, rows, of_sample), of_sample)]
    noise = launch.noise_tile(logits, 4)
    for tile, of in ((launch.tile(logits), 4096), (launch.tile(logits, logits), 2048), (noise, 4 * noise.columns)):
        tiles = -(-columns // of)
        assert tiles <= tile.part_lanes < 2 * tiles
        parts.append((tile.parts, tiles))
    for n, most in parts:
        assert n == most or (n < most and 132 <= n * rows <= 4 * 132 + rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_of_no_rows(case: Case) -> None:
    logits, row_grad = torch.empty(0, 5), torch.empty(2, 0)
    assert case.kernel(logits, logits, row_grad).shape == case.twin(logits, logits, row_grad).shape


# Each launcher that takes a category mask, as a function of (logits, mask), of whose rows the first allows nothing.
SEED = (5, 8, 0)
WITH_MASK: dict[str, Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]] = {
    "sample": lambda x, m: sample.sample(x, 1, torch.bool, *SEED, m),
    "sample_of_several_draws": lambda x, m: sample.sample(x, 3, torch.int64, *SEED, m),
    "sample_of_no_draw": lambda x, m: sample.sample(x, 0, torch.bool, *SEED, m),
    "logsumexp": lambda x, m: (entropy.logsumexp(x, m),),
    "entropy": lambda x, m: entropy.entropy(x, m),
    "entropy_grad": lambda x, m: (entropy.entropy_grad(x, *reversed(entropy.entropy(x, m)), torch.ones(len(x)), m),),
    "log_prob_and_entropy": lambda x, m: joint.log_prob_and_entropy(x, _index(x.shape[1], len(x)), m),
    "softmax_grad": lambda x, m: (softmax_grad.softmax_grad(x, entropy.logsumexp(x, m), _ramp(x), m),),
    "reinmax_grad": lambda x, m: (straight_through.reinmax_grad(x, entropy.logsumexp(x, m), *_drawn(x, _ramp(x)), m),),
    "gapped_grad": lambda x, m: (straight_through.gapped_grad(x, entropy.logsumexp(x, m), *_drawn(x, _ramp(x)), m),),
    "log_prob": lambda x, m: log_prob.log_prob(x, None, _one_hot(x, 1), m),
    "log_prob_of_several_draws": lambda x, m: log_prob.log_prob(x, None, _one_hot(x, 3), m),
    "log_prob_known": lambda x, m: log_prob.log_prob(x, entropy.logsumexp(x, m), _one_hot(x, 1), m),
    "log_prob_index": lambda x, m: (log_prob.log_prob_index(x, entropy.logsumexp(x, m), _one_hot(x, 3).argmax(-1), m),),
    "relaxed_grad": lambda x, m: _relaxed_grad(x, m),
}


def _ramp(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel()).view_as(x)


def _one_hot(x: Tensor, draws: int) -> Tensor:
    index = torch.arange(draws * len(x)).view(draws, -1, 1) * 7 % x.shape[1]
    return torch.zeros(draws, len(x), x.shape[1]).scatter_(-1, index, 1)


def _relaxed_grad(x: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor]:
    _, index, logsumexp = sample.sample(x, 2, None, *SEED, m)
    grad, t = _ramp(x).expand(2, -1, -1), torch.full((len(x),), 0.7)
    return relaxed.relaxed_grad(x, logsumexp, index, grad, t, *SEED, m, True)


def mask_of(rows: int, columns: int) -> Tensor:
    """About a third is False; the first row allows nothing, the second its last category alone."""
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(columns)) > 1 / 3
    mask[0], mask[1], mask[2:, 0] = False, False, True
    mask[1, -1] = True
    return mask


def expected_with_mask(name: str, logits: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Give what logits of -inf give in place of a mask. A gradient is 0 where the mask is False, and a row with nothing
    to draw gives 0 to its temperature too."""
    expected = WITH_MASK[name](torch.where(mask, logits, -torch.inf), None)
    if not name.endswith("_grad"):
        return expected
    return tuple(e.masked_fill(~(mask if e.dim() == 2 else mask.any(-1)), 0) for e in expected)


@pytest.mark.parametrize("columns", [1, 18, 5000])
@pytest.mark.parametrize("name", WITH_MASK)
def test_a_masked_category_is_one_with_a_logit_of_minus_infinity(name: str, columns: int) -> None:
    logits, mask = torch.randn(4, columns), mask_of(4, columns)
    expected = expected_with_mask(name, logits, mask)
    # Whatever stands in its place.
    logits[~mask] = torch.tensor([torch.nan, torch.inf, 80.0])[torch.arange(int((~mask).sum())) % 3]
    for found, e in zip(WITH_MASK[name](logits, mask), expected, strict=True):
        assert torch.equal(found.nan_to_num(-7.0), e.nan_to_num(-7.0))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("columns", [18, 5000])
def test_log_prob_grad_of_a_masked_category_is_0(columns: int, draws: int) -> None:
    logits, mask = torch.randn(4, columns, dtype=torch.float64), mask_of(4, columns)
    index, grad = _one_hot(logits, draws).argmax(-1), torch.randn(draws, 4, dtype=torch.float64)
    found = log_prob.log_prob_grad(logits, entropy.logsumexp(logits, mask), index, grad, mask)
    x = logits.clone().requires_grad_()
    log_p = torch.where(mask, x, -torch.inf).log_softmax(-1).gather(-1, index.t()).t()
    (expected,) = torch.autograd.grad(log_p, x, grad)
    torch.testing.assert_close(found, expected)
    assert found[~mask].count_nonzero() == 0


@pytest.mark.parametrize("columns", [1300, 5000])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float64])
def test_log_prob_of_every_value_dtype(dtype: torch.dtype, columns: int) -> None:
    logits = torch.randn(4, columns)
    index = torch.tensor([[0, columns - 1, 1024, 7]])
    value = torch.zeros(1, 4, columns, dtype=dtype).scatter_(-1, index.unsqueeze(-1), 1)
    for logsumexp in (None, base.logsumexp(logits)):
        out, found, _ = log_prob.log_prob(logits, logsumexp, value)
        assert torch.equal(found, index)
        torch.testing.assert_close(out[0], logits.log_softmax(-1).gather(1, index.t())[:, 0])


@each_launch(40, 1300, 9000)
def test_log_prob_takes_the_first_maximum(columns: int, launched: str) -> None:
    """As torch's argmax, for which NaN is the maximum."""
    value = torch.full((2, 6, columns), -2.0)
    value[:, 0, [7, columns - 1]] = 5
    value[:, 1, columns - 1] = -1
    value[:, 3] = torch.nan
    value[:, 4, [3, columns - 3, columns - 2]] = torch.tensor([9.0, torch.nan, torch.nan])
    value[:, 5] = -torch.inf
    logits = torch.randn(6, columns)
    expected = value.argmax(-1)
    assert torch.equal(expected, EAGER.argmax(value))
    for logsumexp in (None, base.logsumexp(logits)):
        found, index, _ = log_prob.log_prob(logits, logsumexp, value)
        assert torch.equal(index, expected)
        torch.testing.assert_close(found, EAGER.log_prob_index(Rows(logits), expected)[0])


@each_launch(6, 1300, 9000)
def test_log_prob_where_a_hint_says(columns: int, launched: str) -> None:
    """What a right hint spares is not read: it is NaN here, which a search would find. A wrong one is searched."""
    logits, index = torch.randn(5, columns), torch.tensor([[0, columns - 1, 3, 2, 5], [1, 2, 3, 4, columns - 2]])
    value = torch.zeros(2, 5, columns).scatter_(-1, index.unsqueeze(-1), 1)
    logsumexp = entropy.logsumexp(logits)
    expected = log_prob.log_prob_index(logits, logsumexp, index)
    wrong = index.clone()
    wrong[0, 1:] = torch.tensor([-1, columns, 2**40, 4])
    spared = value.clone()
    spared[value == 0] = torch.nan
    for known, draws in ((None, 1), (logsumexp, 1), (logsumexp, 2)):
        for hint, v in ((index, spared), (wrong, value), (torch.full_like(index, -1), value)):
            out, found, _ = log_prob.log_prob(logits, known, v[:draws], None, hint[:draws])
            assert torch.equal(found, index[:draws])
            torch.testing.assert_close(out, expected[:draws])


@pytest.mark.parametrize("columns", [18, 1500])
def test_a_common_offset_changes_nothing(columns: int) -> None:
    """Densities and gradients of x + c are those of x, also from the logsumexp of a draw; log_prob is at most 0."""
    # Of which x + c has every digit.
    logits = (3 * torch.randn(3, columns)).mul(2**9).round().div(2**9)
    logits[0, 1] = 60.0
    grad, index = torch.randn(3, columns), torch.tensor([[1, 0, 1]])

    def results(x: Tensor) -> dict[str, Tensor]:
        kept = sample.sample(x, 1, None, *SEED)[2]
        return {
            "entropy": entropy.entropy(x)[0],
            "entropy's twin": EAGER.entropy(Rows(x))[0],
            "log_prob": log_prob.log_prob_index(x, kept, index),
            "log_prob's twin": EAGER.log_prob_index(Rows(x), index)[0],
            "softmax_grad": softmax_grad.softmax_grad(x, kept, grad),
            "softmax_grad's twin": EAGER.softmax_grad(Rows(x), grad),
            "reinmax_grad": straight_through.reinmax_grad(x, kept, index, grad[None], 1.5),
            "reinmax_grad's twin": EAGER.reinmax_grad(Rows(x), index, grad[None], 1.5),
            "gapped_grad": straight_through.gapped_grad(x, kept, index, grad[None], 0.5),
            "gapped_grad's twin": EAGER.gapped_grad(Rows(x), index, grad[None], 0.5),
            "log_prob_grad": log_prob.log_prob_grad(x, kept, index, ones),
            "log_prob_grad's twin": EAGER.log_prob_grad(Rows(x), index, ones),
            "entropy_grad": entropy.entropy_grad(x, kept, entropy.entropy(x)[0], ones[0]),
            "entropy_grad's twin": EAGER.entropy_grad(Rows(x), ones[0]),
            "log_prob of both": joint.log_prob_and_entropy(x, index)[0],
            "entropy of both": joint.log_prob_and_entropy(x, index)[1],
            "gradient of both": joint.log_prob_and_entropy_grad(x, kept, entropy.entropy(x)[0], index, ones, ones[0]),
            "gradient of both's twin": EAGER.log_prob_and_entropy_grad(Rows(x), index, ones, ones[0]),
            "relaxed_grad": relaxed.relaxed_grad(x, kept, index, grad[None], ones[0], *SEED)[0],
            "relaxed_grad's twin": EAGER.relaxed_grad_with(x, index, grad[None], ones[0], *noise)[0],
        }

    ones, noise = torch.ones(1, 3), [e.to(logits.device) for e in posterior_noise(5, 8, 1, 3, columns)]
    expected = results(logits)
    assert min(expected["entropy"].min(), expected["entropy's twin"].min()) >= 0
    for offset in (0.0, -1e4, 500.0, 1e4):
        for name, found in results(logits + offset).items():
            torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-7, msg=f"{name}, {offset}")
            if name in ("log_prob", "log_prob's twin", "log_prob of both"):
                assert found.max() <= 0


@pytest.mark.parametrize("columns", [6, 700, 5000])
def test_entropies_of_peaked_rows(columns: int) -> None:
    """Not negative, and right to 1e-6 of what they are, though the sum of the weights differs from 1 by less than a
    rounding; where the others are more than 20 nats down, to the rounding of their exponents."""
    for gap in (5.0, 10.0, 20.0, 80.0):
        logits = (torch.randn(4, columns).clamp(-3, 3) - gap).mul(2**6).round().div(2**6)
        logits[:, columns // 2] = 0
        rest = logits.double().exp()
        rest[:, columns // 2] = 0
        total = rest.sum(-1)
        exact = total.log1p() - (rest * logits.double()).sum(-1) / (1 + total)
        for offset in (0.0, 300.0):
            found = entropy.entropy(logits + offset)[0]
            torch.testing.assert_close(found.double(), exact, rtol=1e-6 * max(1, gap / 20), atol=0)


@pytest.mark.parametrize("columns", [6, 1500, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_as_large_as_a_dtype_has(dtype: torch.dtype, columns: int) -> None:
    """Rows all finfo.min, as masks are often written, and rows that span the dtype: as the twin has them."""
    info, compute = torch.finfo(dtype), tensors.compute_dtype(dtype)
    logits = torch.full((3, columns), info.min, dtype=dtype)
    logits[1, 2], logits[2, -3:] = 0, info.max
    index, grad = torch.tensor([[1, 2, columns - 2]]), torch.randn(3, columns).to(dtype)
    drawn, logsumexp = sample.sample(logits, 4, None, *SEED)[1:]
    assert torch.equal(drawn, twin_sample(logits, 4, None, *SEED)[1])
    assert len(set(drawn[:, 0].tolist())) > 1
    assert torch.equal(logsumexp, entropy.logsumexp(logits))
    torch.testing.assert_close(logsumexp, base.logsumexp(logits))
    h, ones = entropy.entropy(logits)[0], torch.ones(3, dtype=compute)
    exact = torch.tensor([columns, 1, 3], dtype=compute).log()
    torch.testing.assert_close(h, exact, rtol=1e-6, atol=0)
    pairs = (
        (log_prob.log_prob_index(logits, logsumexp, index), EAGER.log_prob_index(Rows(logits), index)[0]),
        (
            log_prob.log_prob_grad(logits, logsumexp, index, ones[None]),
            EAGER.log_prob_grad(Rows(logits), index, ones[None]),
        ),
        (softmax_grad.softmax_grad(logits, logsumexp, grad), EAGER.softmax_grad(Rows(logits), grad)),
        (entropy.entropy_grad(logits, logsumexp, h, ones), EAGER.entropy_grad(Rows(logits), ones)),
        (
            joint.log_prob_and_entropy_grad(logits, logsumexp, h, index, ones[None], ones, None, grad),
            EAGER.log_prob_and_entropy_grad(Rows(logits), index, ones[None], ones, grad=grad),
        ),
    )
    for found, twin in pairs:
        torch.testing.assert_close(found, twin, rtol=4 * info.eps, atol=1e-6)
    soft, twin = (
        relaxed.relaxed(logits, ones, 2, *SEED),
        EAGER.relaxed_with(logits, ones, 2, philox_relaxed_noise(*SEED)),
    )
    torch.testing.assert_close(soft, twin, rtol=1e-2, atol=1e-4)


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [*COLUMNS, 70_000])
@pytest.mark.parametrize("draws", [1, 3])
def test_sample_is_the_twins_draw_for_draw(columns: int, draws: int) -> None:
    """Two candidates within a float32 rounding of each other may be told apart differently: at 1e-7 a draw, some 1e-4
    over this whole test, whose seeds are fixed."""
    for seed, dtype in enumerate(dtypes_at(columns)):
        logits = logits_of(3, columns, dtype)
        one_hot, index, logsumexp = sample.sample(logits, draws, torch.int64, seed, 8 * seed, 5)
        expected_one_hot, expected, _ = twin_sample(logits, draws, torch.int64, seed, 8 * seed, 5)
        assert torch.equal(index, expected)
        assert torch.equal(one_hot, expected_one_hot)
        exact = logits.double().logsumexp(-1)
        assert_as_good_as(logsumexp.sum(0), base.logsumexp(logits).sum(0), exact, dtype)


@pytest.mark.parametrize("columns", [100, 5000])
def test_a_cpu_draws_the_same_in_pieces(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of rows, and of draws, of which the race of groups takes more at a time than that of elements: with the
    noise of the kernels, the draws of the formulas, which take all at once."""
    logits = torch.randn(3, columns)
    _, expected, logsumexp = twin_sample(logits, 500, None, 7, 0)
    for block in (2**14, 2**16):
        monkeypatch.setattr(blocks, "_BLOCK", block)
        noise = philox_noise(7, 0, columns, 500)
        found, by_product, all_valid = cpu.sample_index(logits, 500, cpu.race(noise), GROUP)
        assert torch.equal(found, expected)
        assert all_valid
        if by_product is not None:
            torch.testing.assert_close(by_product.sum(0), logsumexp.sum(0))


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("offset", [0, 4, 2**33, 2**40 + 12])
def test_sample_takes_every_seed_and_offset(seed: int, offset: int) -> None:
    logits = torch.randn(2, 1500)
    expected = twin_sample(logits, 2, torch.int64, seed % 2**64, offset, 2**32 - 2)[1]
    assert torch.equal(sample.sample(logits, 2, None, seed, offset, 2**32 - 2)[1], expected)
    assert torch.equal(sample.sample(logits, 2, None, torch.tensor(seed), offset, 2**32 - 2)[1], expected)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_sample_of_every_dtype(dtype: torch.dtype) -> None:
    for columns in (3, 700, 1500):
        one_hot, index, _ = sample.sample(torch.randn(2, columns), 1, dtype, 3, 4)
        assert one_hot.dtype == dtype
        assert torch.equal(one_hot.double(), torch.nn.functional.one_hot(index, columns).double())


def test_sample_does_not_depend_on_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program a row, rows split over programs, more or fewer groups at once, more or fewer draws a program: one
    sample. The groups' sums are what decides, and a bit of one would show in the logsumexp, which is of them all."""
    short, long = torch.randn(5, 60), 3 * torch.randn(3, 7000)
    drawn = [[], []]
    for fill, groups in ((1, 1), (1, 4), (264, 1), (264, 2), (10**6, 4)):
        monkeypatch.setattr(launch, "FILL", fill)
        monkeypatch.setattr(launch, "SAMPLE_GROUPS", groups)
        for x, found in zip((short, long), drawn, strict=True):
            each = [sample.sample(x, draws, None, seed, 4)[1:] for seed in (11, 12) for draws in (1, 4)]
            # The one draw is the first of four.
            assert all(torch.equal(one[0][0], four[0][0]) for one, four in (each[:2], each[2:]))
            found.append(torch.cat([n.double().flatten() for index_and_sum in each for n in index_and_sum]))
    for found in drawn:
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_sums_of_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a warp has lanes: of 40 programs here."""
    for name, size in {"TILE": 1024, "ONE_TILE": 1024, "FILL": 10**6}.items():
        monkeypatch.setattr(launch, name, size)
    logits, grad = torch.randn(2, 40 * 512), torch.randn(2, 40 * 512)
    assert launch.tile(logits, grad, twice=True).parts == 40
    found = softmax_grad.softmax_grad(logits, entropy.logsumexp(logits), grad)
    torch.testing.assert_close(found, EAGER.softmax_grad(Rows(logits), grad), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("race", [1, 2, 4])
def test_groups_race_in_turns(race: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2^20 columns the race reads its groups in several turns, of one to four groups here."""
    logits = 3 * torch.randn(3, 7000)
    expected = sample.sample(logits, 4, None, 11, 4)
    monkeypatch.setattr(launch, "RACE", race)
    found = sample.sample(logits, 4, None, 11, 4)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-6, atol=0)


@each_launch(8, 1030, 5000)
@pytest.mark.parametrize("draws", [1, 2])
def test_rows_that_are_no_distribution(columns: int, launched: str, draws: int) -> None:
    logits = torch.randn(5, columns)
    logits[0] = -torch.inf
    logits[1, 3], logits[2, columns - 1], logits[3, :] = torch.nan, torch.inf, torch.nan
    one_hot, index, logsumexp = sample.sample(logits, draws, torch.int64, 1, 0)
    assert (index[:, :4] == -1).all()
    assert (one_hot[:, :4] == 0).all()
    assert logsumexp[1, :4].isnan().all()
    assert (one_hot[:, 4].sum(-1) == 1).all()
    for value in (entropy.logsumexp(logits)[1], entropy.entropy(logits)[0], entropy.entropy(logits)[1][1]):
        assert value[:4].isnan().all()
    torch.testing.assert_close(logsumexp[:, 4].sum(), logits[4].logsumexp(-1))
    for value, expected in zip(entropy.entropy(logits), entropy.entropy(logits[4:]), strict=True):
        assert torch.equal(value[..., 4:], expected)
    value = torch.eye(columns)[None, :1].expand(draws, 5, -1)
    assert log_prob.log_prob(logits, None, value)[0][:, :4].isnan().all()
    assert log_prob.log_prob_index(logits, logsumexp, index)[:, :4].isnan().all()
    y = relaxed.relaxed(logits, torch.ones(5), draws, 1, 0)
    assert y[:, :4].isnan().all()
    torch.testing.assert_close(y[:, 4:], relaxed.relaxed(logits[4:], torch.ones(1), draws, 1, 0, 4))


def test_log_prob_index_of_no_column_is_nan() -> None:
    logits = torch.zeros(1, 4)
    index = torch.tensor([[-1], [0], [3], [4], [2**40]])
    found = log_prob.log_prob_index(logits, base.logsumexp(logits), index)
    assert found.isnan().tolist() == [[True], [False], [False], [True], [True]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row_offset": -1}, "row_offset: expected 0 .. 4294967294 for 2 rows, found -1"),
        ({"row_offset": 2**32 - 1}, "row_offset: expected 0 .. 4294967294 for 2 rows, found 4294967295"),
        ({"seed": 0.5}, "seed: expected an int or an int64 tensor, found 0.5"),
        ({"seed": torch.zeros(1)}, r"seed: expected one int64 element, found torch.float32 of shape \[1\]"),
        (
            {"seed": torch.zeros(2, dtype=torch.int64)},
            r"seed: expected one int64 element, found torch.int64 of shape \[2\]",
        ),
        ({"offset": -4}, "offset: expected at least 0, found -4"),
        ({"draws": 2**32 + 1}, "draws: expected at most 4294967296, found 4294967297"),
    ],
)
def test_seeds_and_counters_that_do_not_fit(arguments: dict, message: str) -> None:
    arguments = {"draws": 1, "dtype": None, "seed": 0, "offset": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        sample.sample(torch.zeros(2, 3), **arguments)


# Relaxed samples ------------------------------------------------------------------------------------------------------

# Interpreted noise is slow. Tiles of every kind, several draws of long rows and seeds on the device are cases of
# test_kernel_cases.py.
NOISE_COLUMNS = (1, 3, 18, 1024, 1025, 5000)


@each_launch(*NOISE_COLUMNS)
def test_relaxed_is_the_twins(columns: int, launched: str) -> None:
    temperature = torch.tensor([0.1, 1.0, 3.0])
    for dtype in dtypes_at(columns):
        logits = logits_of(3, columns, dtype)
        t = temperature.to(tensors.compute_dtype(dtype))
        found = relaxed.relaxed(logits, t, 2, 9, 4, 1)
        expected = EAGER.relaxed_with(logits, t, 2, philox_relaxed_noise(9, 4, 1))
        # The noise is float32: 1e-6 of the exponential is 1e-5 of y at temperature 0.1.
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=max(1e-4, 4 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@each_launch(18, 1025)
def test_a_temperature_for_all_rows_may_be_a_number(columns: int, launched: str, dtype: torch.dtype) -> None:
    """Bit for bit that of a tensor, which takes a launch to fill."""
    logits, grad = logits_of(3, columns, dtype), torch.randn(2, 3, columns).to(dtype)
    t = torch.full((3,), 0.3, dtype=tensors.compute_dtype(dtype))
    assert torch.equal(relaxed.relaxed(logits, 0.3, 2, 9, 4), relaxed.relaxed(logits, t, 2, 9, 4))
    _, index, logsumexp = sample.sample(logits, 2, None, 2, 4)
    found, expected = (
        relaxed.relaxed_grad(logits, logsumexp, index, grad, u, 2, 4, with_temperature=True) for u in (0.3, t)
    )
    assert all(map(torch.equal, found, expected))


@each_launch(50, 3000)
def test_relaxed_keeps_its_noise_beside_large_logits(columns: int, launched: str) -> None:
    """Logits of 1e6 that differ by little: the same sample as without the 1e6. Added to such a number, a float32 Gumbel
    would keep three of its bits."""
    logits = torch.randint(-8, 8, (2, columns)) / 4.0
    t = torch.ones(2)
    near, far = relaxed.relaxed(logits, t, 1, 1, 0), relaxed.relaxed(logits + 2.0**20, t, 1, 1, 0)
    torch.testing.assert_close(far, near)
    assert torch.equal(sample.sample(logits, 4, None, 1, 0)[1], sample.sample(logits + 2.0**20, 4, None, 1, 0)[1])


@each_launch(*NOISE_COLUMNS)
def test_relaxed_grad_is_the_twins(columns: int, launched: str) -> None:
    for dtype, draws in itertools.product(dtypes_at(columns), (1, 3) if columns <= GROUP else (1,)):
        logits = logits_of(3, columns, dtype)
        t = torch.tensor([0.3, 1.0, 3.0], dtype=tensors.compute_dtype(dtype))
        index = sample.sample(logits, draws, None, 2, 4)[1]
        grad = torch.randn(draws, 3, columns).to(dtype)
        found, _ = relaxed.relaxed_grad(logits, entropy.logsumexp(logits), index, grad, t, 2, 4)
        noise = posterior_noise(2, 4, draws, 3, columns)
        exact = EAGER.relaxed_grad_with(logits.double(), index, grad.double(), t.double(), *noise)[0]
        assert found.dtype == dtype
        # 1e-5 relative of the weights, whose sum and whose <y, g> every component shares.
        bound = 3e-5 * exact.abs().max() + 4 * torch.finfo(dtype).eps * exact.abs()
        assert ((found.double() - exact).abs() <= bound).all()
