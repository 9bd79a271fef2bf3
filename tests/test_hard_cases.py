"""The hard cases of the design, one answer each, and what is said of bad input.

Each section is a row of the design's table.
"""

import copy
import enum
import math
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as D

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
    rng,
    use_backend,
)
from onehot_triton.compute import CPU, SMALL, cpu
from onehot_triton.compute.base import Rows
from onehot_triton.estimators import ESTIMATORS

INF, NAN = math.inf, math.nan
PASS, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot

pytestmark = pytest.mark.usefixtures("one_thread")

each_method = pytest.mark.parametrize("method", [PASS, RELAXED], ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)


def draws(dist: OneHotCategorical, n: int) -> list[Tensor]:
    """Indices by every way to draw."""
    return [
        dist.sample_index((n,)),
        dist.sample((n,)).argmax(-1),
        dist.rsample((n,)).argmax(-1),
        dist.sample_and_log_prob((n,))[0].argmax(-1),
    ]


# The search of the CPU path at its extremes ---------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [5, 40, 1500], ids="{} columns".format)
def test_the_uniforms_at_both_ends_fall_on_what_can_be_drawn(columns, small, set_uniforms):
    """0 and 1 - 2^-53, the ends of torch.rand in float64, on rows whose first and last categories are off."""
    x = torch.randn(2, columns)
    x[:, [0, -2, -1]] = -INF
    for u, expected in ((0.0, 1), (1 - 2.0**-53, columns - 3)):
        set_uniforms(u)
        for index in draws(OneHotCategorical(x), 3):
            assert (index == expected).all()


@pytest.mark.parametrize("columns", [5, 40], ids="{} columns".format)
def test_one_draw_at_both_ends(columns, set_uniforms):
    """The same of a single draw, which small batches make without a dimension for it."""
    x = torch.randn(2, columns)
    x[:, [0, -2, -1]] = -INF
    for u, expected in ((0.0, 1), (1 - 2.0**-53, columns - 3)):
        set_uniforms(u)
        assert (OneHotCategorical(x).sample_index() == expected).all()


@pytest.mark.parametrize("draws", [(), (2,)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("bad", [math.nan, INF, None], ids=str)
def test_a_bad_row_has_no_relaxed_draw(bad, temperature, draws):
    """Of a small batch: zeros, and -1 for an index; the other rows have their draws and gradients."""
    x = torch.randn(3, 5)
    x[1, 3] = bad if bad is not None else 0.0
    x[1] = x[1] if bad is not None else -INF
    x.requires_grad_()
    dist = OneHotCategorical(x, grad_method=RELAXED, temperature=temperature, validate_args=False)
    drawn = dist.rsample(draws)
    assert drawn.sum(-1).eq(torch.tensor([1.0, 0.0, 1.0])).all()
    (grad,) = torch.autograd.grad((drawn * torch.randn(5)).sum(), x)
    assert grad[[0, 2]].isfinite().all()
    assert grad[[0, 2]].abs().sum() > 0
    args = math.prod(draws), x.dtype, rng.Seed(), ESTIMATORS[RELAXED], temperature, 1
    index = SMALL.straight_through(Rows(x), *args).index
    assert (index.view(-1, 3)[:, 1] == -1).all()


@pytest.mark.parametrize("columns", [5, 40], ids="{} columns".format)
def test_a_uniform_beside_a_border_falls_on_its_side(columns, set_uniforms):
    """Borders are right to 2e-15 of the whole, against exact rational sums: rates 20 nats down to a millionth."""
    x = torch.full((columns,), -20.0)
    x[columns // 2] = 0.0
    weights = [Fraction(w) for w in x.exp().tolist()]
    borders = [float(sum(weights[: k + 1]) / sum(weights)) for k in range(columns - 1)]
    for k, border in enumerate(borders):
        for u, expected in ((border - 2e-15, k), (border + 2e-15, k + 1)):
            u = round(u * 2**53) * 2.0**-53
            set_uniforms(u)
            assert OneHotCategorical(x).sample_index().item() == expected


# logit -inf, probability 0 --------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("kind", ["logits", "probs"])
@pytest.mark.parametrize("columns", [4, 40], ids="{} columns".format)
def test_a_category_of_probability_0_is_never_drawn(kind, dtype, columns):
    x = torch.randn(2, columns)
    x[:, [0, -1]] = -INF
    x[1, 2] = -INF
    dist = OneHotCategorical(**{kind: (x if kind == "logits" else x.exp()).to(dtype)})
    never = x == -INF
    for index in draws(dist, 5000):
        assert not never.expand(*index.shape, columns).gather(-1, index.unsqueeze(-1)).any()
    log_prob = dist.log_prob_index(torch.arange(columns).unsqueeze(-1)).t()
    assert torch.equal(log_prob == -INF, never)
    assert torch.equal(dist.log_prob(dist.enumerate_support()).t() == -INF, never)
    assert torch.equal(dist.probs == 0, never)
    assert torch.equal(dist.logits == torch.tensor(-1e4, dtype=dtype), never)
    expected = D.OneHotCategorical(
        logits=x.to(dtype).double() if kind == "logits" else x.exp().to(dtype).double().log()
    )
    torch.testing.assert_close(dist.entropy().double(), expected.entropy(), rtol=0.01, atol=1e-5)


def test_a_category_of_probability_0_on_each_backend(backend):
    x = torch.tensor([[-INF, 0.0, -INF], [1.0, -INF, -INF]])
    dist = OneHotCategorical(x)
    for index in draws(dist, 5):
        assert torch.equal(index, torch.tensor([1, 0]).expand(5, 2))
    assert dist.log_prob_index(torch.tensor([0, 0])).tolist() == [-INF, 0.0]
    assert dist.log_prob(torch.eye(3)[:2]).tolist() == [-INF, -INF]
    assert dist.entropy().tolist() == [0.0, 0.0]


def test_a_value_that_float32_cannot_tell_from_0_is_still_drawn_as_often_as_it_should():
    """A subnormal weight beside one of its own size. Fails a right sampler once in a million seeds."""
    index = OneHotCategorical(probs=torch.tensor([1e-42, 0.0, 3e-42])).sample_index((20_000,))
    weights = torch.tensor([1e-42, 0.0, 3e-42]).double()
    counts = index.bincount(minlength=3)
    assert counts[1] == 0
    assert stats.binomtest(int(counts[0]), 20_000, float(weights[0] / weights.sum())).pvalue > 1e-6


# A row all -inf, NaN, +inf --------------------------------------------------------------------------------------------

BAD_ROWS = {
    "NaN": ("logits", [0.0, NAN, 0.0], "logits: expected neither NaN nor +inf, found nan at [1, 1]"),
    "+inf": ("logits", [0.0, 0.0, INF], "logits: expected neither NaN nor +inf, found inf at [1, 2]"),
    "+inf and -inf": ("logits", [INF, -INF, 0.0], "logits: expected neither NaN nor +inf, found inf at [1, 0]"),
    "NaN and +inf": ("logits", [NAN, INF, 0.0], "logits: expected neither NaN nor +inf, found nan at [1, 0]"),
    "all -inf": (
        "logits",
        [-INF, -INF, -INF],
        "logits: expected a value above -inf in every row, found a row of -inf alone at [1]",
    ),
    "negative weight": ("probs", [0.5, -0.5, 0.0], "probs: expected values >= 0 and finite, found -0.5 at [1, 1]"),
    "NaN weight": ("probs", [0.5, 0.5, NAN], "probs: expected values >= 0 and finite, found nan at [1, 2]"),
    "infinite weight": ("probs", [INF, 0.5, 0.0], "probs: expected values >= 0 and finite, found inf at [1, 0]"),
    "all weights 0": (
        "probs",
        [0.0, 0.0, 0.0],
        "probs: expected a positive sum in every row, found a row of 0.0 alone at [1]",
    ),
}
# NumPy, which interprets the kernels, warns of the very NaN and -inf that are asked for.
makes_nan = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
each_bad_row = pytest.mark.parametrize(("kind", "row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)


def with_bad_row(kind: str, row: list[float]) -> dict[str, Tensor]:
    """Rows 1 and 2 of three are bad: the first of them is to be named."""
    return {kind: torch.tensor([[0.1, 0.2, 0.7], row, row])}


@each_bad_row
@pytest.mark.parametrize("validate", [None, True])
@pytest.mark.parametrize("unimix", [0.0, 0.1])
def test_bad_row_checked(kind, row, message, validate, unimix):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        OneHotCategorical(**with_bad_row(kind, row), validate_args=validate, unimix=unimix)
    assert str(error.value) == message


@pytest.mark.interpreted(columns=[3], row=[BAD_ROWS[name][1] for name in ("NaN", "+inf", "all -inf")])
@makes_nan
@each_bad_row
@pytest.mark.parametrize("columns", [3, 40], ids="{} columns".format)
def test_bad_row_unchecked(kind, row, message, columns, backend):
    """log_prob NaN, an all-zero sample, and the rows beside it as if it were not there."""
    params = {k: torch.cat([v, v[:, :1].expand(3, columns - 3)], -1) for k, v in with_bad_row(kind, row).items()}
    param = params[kind].requires_grad_()
    dist = OneHotCategorical(**params, validate_args=False)
    alone = OneHotCategorical(**{kind: param.detach()[:1]})
    for one_hot in (dist.sample((5,)), dist.rsample((5,)), dist.sample_and_log_prob((5,))[0], dist.mode.unsqueeze(0)):
        assert (one_hot[:, 1:] == 0).all()
        assert (one_hot[:, 0].sum(-1) == 1).all()
    index = dist.sample_index((5,))
    assert (index[:, 1:] == -1).all()
    assert ((index[:, 0] >= 0) & (index[:, 0] < columns)).all()
    for k in range(3):
        value = torch.eye(columns)[k].expand(3, columns)
        for log_prob in (dist.log_prob(value), dist.log_prob_index(torch.tensor([k] * 3))):
            assert log_prob[1:].isnan().all()
            torch.testing.assert_close(log_prob[:1], alone.log_prob(value[:1]))
    assert dist.sample_and_log_prob()[1][1:].isnan().all()
    assert dist.entropy()[1:].isnan().all()
    torch.testing.assert_close(dist.entropy()[:1], alone.entropy())
    torch.testing.assert_close(dist.probs[:1], alone.probs)


@makes_nan
@each_method
def test_bad_row_does_not_spoil_the_gradients_of_others(method, backend):
    x = torch.tensor([[0.1, 0.2, 0.7], [NAN, 0.0, 0.0], [-INF, -INF, -INF]])
    grad, found = torch.randn(1, 3), []
    # Rows as many, for the same noise.
    for param in (x, x[:1].repeat(3, 1)):
        param.requires_grad_()
        dist = OneHotCategorical(param, grad_method=method, validate_args=False)
        torch.manual_seed(1)
        (dist.rsample() * grad).sum().backward()
        (dist.entropy() + dist.log_prob_index(torch.zeros(3, dtype=torch.int64))).sum().backward()
        assert param.grad is not None
        found.append(param.grad[0])
    torch.testing.assert_close(*found)
    assert found[0].isfinite().all()


@pytest.mark.interpreted(index=[3, -(2**40)])
@pytest.mark.parametrize("index", [-1, 3, 2**40, -(2**40)])
def test_index_out_of_bounds_unchecked(index, backend):
    """NaN there, no access out of bounds, and no gradient to another column."""
    x = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], requires_grad=True)
    dist = OneHotCategorical(x, validate_args=False)
    log_prob = dist.log_prob_index(torch.tensor([index, 1]))
    assert log_prob[0].isnan()
    torch.testing.assert_close(log_prob[1], dist.logits[1, 1])
    log_prob[1].backward()
    assert x.grad is not None
    assert (x.grad[0] == 0).all()
    torch.testing.assert_close(x.grad[1], torch.tensor([0.0, 1.0, 0.0]) - dist.probs[1].detach())


# Ties in mode ---------------------------------------------------------------------------------------------------------


@each_dtype
def test_mode_is_the_first_of_ties(dtype):
    x = torch.tensor([[0, 3, 3, 1], [2, 2, 2, 2], [0, 0, 0, 5]], dtype=dtype)
    for param in ({"logits": x}, {"probs": x}):
        assert OneHotCategorical(**param).mode.argmax(-1).tolist() == [1, 0, 3]
        assert (OneHotCategorical(**param).mode.sum(-1) == 1).all()


def test_mode_of_a_long_row_of_ties():
    assert OneHotCategorical(torch.zeros(100_000)).mode.nonzero().tolist() == [[0]]


@pytest.mark.parametrize("columns", [3, 100, 2048, 2049, 50_257])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64], ids=str)
def test_argmax_is_the_first_maximum(dtype, columns):
    few = torch.randint(-2, 3, (2, 50, columns))
    rows = [few.to(dtype), torch.zeros_like(few).to(dtype), -few.abs().to(dtype)]
    if dtype.is_floating_point:
        rows += [
            torch.full(few.shape, -INF, dtype=dtype),
            rows[0].masked_fill(torch.rand(few.shape) < 2 / columns, NAN),
        ]
    for row in rows:
        assert torch.equal(CPU.argmax(row), row.argmax(-1))


# Many small terms behind a large one ----------------------------------------------------------------------------------

# The longest row whose softmax is torch's as it is.
SHORT = 64 * cpu._LANES


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("columns", "error"), [(SHORT, 2e-6), (SHORT + 1, 5e-7), (2**15, 5e-7), (2**20, 5e-7)])
def test_no_small_term_is_lost_behind_a_large_one(columns, error, requires_grad):
    """torch's softmax and log_softmax add up one term after the other: of 2^20 terms e^-17 they lose a 16th."""
    x = torch.full((2, columns), -17.0)
    x[:, columns // 3] = 0.0
    exact = D.Categorical(logits=x.double())
    x.requires_grad_(requires_grad)
    at = torch.tensor([columns // 3, 0])
    dists = [OneHotCategorical(x, validate_args=False) for _ in range(3)]
    # What these compute leaves its logsumexp to log_prob.
    dists[1].entropy()
    dists[2].sample_index()
    for dist in dists:
        log_prob, entropy = dist.log_prob_index(at).detach(), dist.entropy().detach()
        torch.testing.assert_close(log_prob.double(), exact.log_prob(at), rtol=2e-7, atol=error)
        torch.testing.assert_close(entropy.double(), exact.entropy(), rtol=1e-6, atol=error)
        torch.testing.assert_close(dist.probs.detach().double(), exact.probs, rtol=2 * error, atol=0)
        torch.testing.assert_close(dist.logits.detach().double(), exact.logits, rtol=2e-7, atol=error)
        if requires_grad:
            # e_0 - p, to what torch's own backward loses.
            (grad,) = torch.autograd.grad(dist.log_prob_index(torch.zeros_like(at)).sum(), x)
            torch.testing.assert_close(-grad[:, 1:].double(), exact.probs[:, 1:], rtol=4e-3, atol=0)
    if columns > SHORT + 1:
        assert (torch.log_softmax(x, -1)[0, at[0]] - exact.log_prob(at)[0]).abs() > 1e-5


# validate_args --------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_default_off() -> Any:
    D.Distribution.set_default_validate_args(False)
    yield
    D.Distribution.set_default_validate_args(True)


def bad_things(validate: bool | None) -> list[Callable[[], object]]:
    """What only a check of values can catch."""
    dist = OneHotCategorical(torch.zeros(3), validate_args=validate)
    return [
        lambda: OneHotCategorical(torch.tensor([NAN, 0.0]), validate_args=validate),
        lambda: OneHotCategorical(
            torch.zeros(1, 3), grad_method=RELAXED, temperature=torch.tensor([0.0]), validate_args=validate
        ),
        lambda: dist.log_prob(torch.ones(3)),
        lambda: dist.log_prob_index(torch.tensor(3)),
    ]


@pytest.mark.parametrize("thing", range(4), ids=["logits", "temperature", "log_prob", "log_prob_index"])
def test_validate_args_none_is_torchs_default_on_the_cpu(thing, request):
    for validate in (None, True):
        with pytest.raises(ValueError, match="expected"):
            bad_things(validate)[thing]()
    bad_things(False)[thing]()
    request.getfixturevalue("torch_default_off")
    bad_things(None)[thing]()
    with pytest.raises(ValueError, match="expected"):
        bad_things(True)[thing]()


@pytest.mark.gpu
@pytest.mark.parametrize("thing", range(2), ids=["logits", "temperature"])
def test_validate_args_none_is_off_on_a_gpu(thing):
    with torch.device("cuda"):
        bad_things(None)[thing]()
        with pytest.raises(ValueError, match="expected"):
            bad_things(True)[thing]()


def test_no_global_is_changed():
    """Not torch's default validation, nor its random state, dtype, threads or gradient mode, by import and use."""
    script = """
import torch
from torch import distributions as D
def state():
    return (D.Distribution._validate_args, torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.get_rng_state().sum().item(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.is_anomaly_enabled())
before, kl = state(), D.kl_divergence(D.OneHotCategorical(torch.ones(2)), D.OneHotCategorical(torch.ones(2)))
import onehot_triton
dist = onehot_triton.OneHotCategorical(torch.randn(3, generator=torch.Generator()), validate_args=False)
dist.log_prob(dist.sample(generator=torch.Generator())); dist.entropy(); dist.expand((2,))
onehot_triton.RelaxedOneHotCategorical(1.0, torch.ones(2))
assert state() == before, (before, state())
assert D.kl_divergence(D.OneHotCategorical(torch.ones(2)), D.OneHotCategorical(torch.ones(2))) == kl
assert D.OneHotCategorical(torch.ones(2))._validate_args
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# Bad one-hot values ---------------------------------------------------------------------------------------------------

BAD_VALUES = {
    "no one": ([0, 0, 0], "0 ones and 0 other values than 0 and 1"),
    "two ones": ([1, 0, 1], "2 ones and 0 other values than 0 and 1"),
    "not a one": ([0, 0.5, 0], "0 ones and 1 other values than 0 and 1"),
    "soft": ([0.5, 0.5, 0], "0 ones and 2 other values than 0 and 1"),
    "one and -1": ([1, -1, 0], "1 ones and 1 other values than 0 and 1"),
    "ones whose sum is 1": ([1, -1, 1], "2 ones and 1 other values than 0 and 1"),
    "NaN": ([1, NAN, 0], "1 ones and 1 other values than 0 and 1"),
    "two": ([0, 0, 2], "0 ones and 1 other values than 0 and 1"),
}


@pytest.mark.parametrize(("row", "found"), BAD_VALUES.values(), ids=BAD_VALUES)
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_bad_one_hot_values_are_caught(row, found, lead):
    value = torch.tensor([[0, 0, 1.0], [0, 1, 0], row]).expand(*lead, 3, 3)
    at = [0] * len(lead) + [2]
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        OneHotCategorical(torch.zeros(3, 3)).log_prob(value)
    assert str(error.value) == f"value: expected one-hot rows, a single 1 among zeros, found {found} at {at}"


def test_bad_one_hot_values_unchecked_count_by_their_first_maximum(backend):
    dist = OneHotCategorical(torch.arange(3.0), validate_args=False)
    value = torch.tensor([[0.2, 0.7, 0.1], [1, 0, 1], [0, 0, 0]])
    assert torch.equal(dist.log_prob(value), dist.log_prob_index(torch.tensor([1, 0, 0])))


# Empty, 0-d, strided, long --------------------------------------------------------------------------------------------


@pytest.mark.interpreted(batch=[(2, 0)], sample_shape=[(2,)])
@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("sample_shape", [(), (2,), (0,)], ids=str)
@each_method
def test_empty_batch(batch, sample_shape, method, backend):
    x = torch.zeros(*batch, 5, requires_grad=True)
    dist = OneHotCategorical(x, grad_method=method)
    shape = sample_shape + batch
    assert dist.sample(sample_shape).shape == (*shape, 5)
    assert dist.sample_index(sample_shape).shape == shape
    drawn, log_prob = dist.rsample_and_log_prob(sample_shape)
    assert drawn.shape == (*shape, 5)
    assert log_prob.shape == dist.log_prob(drawn).shape == shape
    assert dist.entropy().shape == batch
    assert dist.log_prob_index(drawn.long().argmax(-1)).shape == shape
    (drawn.sum() + log_prob.sum() + dist.entropy().sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert dist.mode.shape == dist.probs.shape == (*batch, 5)
    assert D.kl_divergence(dist, dist).shape == batch


@pytest.mark.parametrize("columns", [5, 700])
@each_method
def test_sample_shape_0(method, columns, small, backend):
    x = torch.zeros(3, columns, requires_grad=True)
    dist = OneHotCategorical(x, grad_method=method)
    drawn, log_prob = dist.rsample_and_log_prob((0,))
    assert drawn.shape == dist.sample((0,)).shape == (0, 3, columns)
    assert log_prob.shape == dist.sample_index((0,)).shape == dist.log_prob(drawn).shape == (0, 3)
    (drawn.sum() + log_prob.sum()).backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    torch.testing.assert_close(dist.log_prob_index(torch.tensor(0)), torch.full((3,), 1 / columns).log())


@pytest.mark.parametrize("columns", [3, 5, 5000])
@each_method
def test_the_default_device_is_not_asked(method, columns, small):
    x = torch.randn(2, columns, requires_grad=True)
    with torch.device("meta"):
        dist = OneHotCategorical(x, grad_method=method)
        drawn, log_prob = dist.rsample_and_log_prob((2,))
        checked = (
            dist.log_prob(drawn) + dist.log_prob_index(drawn.argmax(-1)) + dist.entropy() + (drawn * dist.mode).sum(-1)
        )
        (drawn.sum() + log_prob.sum() + checked.sum()).backward()
    assert x.grad is not None
    assert {t.device.type for t in (drawn, log_prob, checked, x.grad, dist.sample())} == {"cpu"}


@each_method
def test_no_batch(method, backend):
    dist = OneHotCategorical(torch.zeros(5), grad_method=method)
    assert dist.batch_shape == ()
    assert dist.sample().shape == dist.rsample().shape == (5,)
    assert dist.sample_index().shape == dist.entropy().shape == dist.log_prob(dist.sample()).shape == ()


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "every other column": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "expanded batch": lambda x: x[:1].expand(4, *x.shape[1:]),
    "expanded row": lambda x: x[..., :1].expand(x.shape),
    "flipped batch": lambda x: x.flip(0),
}


@pytest.mark.interpreted(view=["transposed", "expanded batch"])
@pytest.mark.parametrize("view", STRIDED)
def test_strided_logits(view, backend):
    """The layout changes nothing: neither values nor draws, but those of what a stride of 0 repeats, by kernels."""
    strided = STRIDED[view](torch.randn(4, 3, 30))
    dist, same = (OneHotCategorical(x) for x in (strided, strided.contiguous()))
    value = torch.nn.functional.one_hot(torch.randint(30, (4, 3)), 30)
    torch.testing.assert_close(dist.entropy(), same.entropy())
    torch.testing.assert_close(dist.log_prob(value), same.log_prob(value))
    drawn = []
    for d in (dist, same):
        torch.manual_seed(1)
        drawn.append(d.sample((2,)))
    assert torch.equal(*drawn) or (backend, view) == ("triton", "expanded batch")


def test_draws_x_columns_above_2_to_the_31():
    """Indices of elements pass 2^31; nothing so large is made."""
    columns, n = 2**20, 2**11 + 1
    x = torch.full((columns,), -INF)
    x[-1] = 0
    assert (OneHotCategorical(x).sample_index((n,)) == columns - 1).all()


@pytest.mark.gpu
@each_method
def test_rows_x_columns_above_2_to_the_31(method):
    """The last rows of a batch with more than 2^31 elements, in memory and expanded."""
    rows, columns = 2**14 + 8, 2**17
    for x in (torch.zeros(1, columns, device="cuda"), torch.zeros(rows, columns, device="cuda", dtype=torch.bfloat16)):
        x[-1] = -INF
        x[-1, -1] = 0
        dist = OneHotCategorical(x.expand(rows, columns), grad_method=method, dtype=torch.bool)
        assert dist.sample()[-1, -1]
        assert dist.sample_index()[-1] == columns - 1
        assert dist.log_prob_index(torch.full((rows,), columns - 1, device="cuda"))[-1] == 0
        assert dist.entropy()[-1] == 0


# bool one-hot values --------------------------------------------------------------------------------------------------


def test_bool_one_hot_values(backend):
    dist = OneHotCategorical(torch.randn(4, 5), dtype=torch.bool)
    drawn, log_prob = dist.sample_and_log_prob((3,))
    assert drawn.dtype == torch.bool
    torch.testing.assert_close(dist.log_prob(drawn), log_prob)
    unchecked = OneHotCategorical(dist.logits, validate_args=False)
    torch.testing.assert_close(unchecked.log_prob(drawn), log_prob)


# More than 2^24 categories --------------------------------------------------------------------------------------------


def test_more_than_2_to_the_24_categories():
    """float32 holds no odd number above 2^24: two neighbours there, each with half of the probability. Fails a right
    sampler once in 2^39 seeds."""
    columns, k = 2**24 + 6, 2**24 + 2
    x = torch.full((columns,), -INF)
    x[[k, k + 1]] = 0
    dist = OneHotCategorical(x, dtype=torch.bool)
    index = dist.sample_index((40,))
    assert index.unique().tolist() == [k, k + 1]
    torch.testing.assert_close(dist.log_prob_index(index), torch.full((40,), 0.5).log())
    x[k + 1] = 1
    assert dist.mode.nonzero().item() == k + 1
    drawn, log_prob = dist.sample_and_log_prob()
    torch.testing.assert_close(dist.log_prob(drawn), log_prob)


# In-place change of the parameter -------------------------------------------------------------------------------------

READS: dict[str, Callable[[OneHotCategorical], Tensor]] = {
    "log_prob": lambda d: d.log_prob(torch.eye(4)[:2]),
    "log_prob of draws": lambda d: d.log_prob(d.enumerate_support()),
    "log_prob_index": lambda d: d.log_prob_index(torch.arange(2)),
    "entropy": lambda d: d.entropy(),
    "probs": lambda d: d.probs,
    "logits": lambda d: d.logits,
    "mode": lambda d: d.mode,
    "sample": lambda d: d.sample((5,)),
    "sample_and_log_prob": lambda d: d.sample_and_log_prob((5,))[1],
    "rsample_and_log_prob": lambda d: d.rsample_and_log_prob((5,))[1],
    "kl": lambda d: D.kl_divergence(d, OneHotCategorical(torch.zeros(4))),
    "expand": lambda d: d.expand((3, 2)).log_prob_index(torch.zeros(3, 2, dtype=torch.int64)),
}


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference_mode"])
@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize(("kind", "unimix"), [("logits", 0.0), ("probs", 0.0), ("logits", 0.1)], ids=str)
@pytest.mark.parametrize("read", READS)
def test_change_in_place_after_construction(read, kind, unimix, validate, inference):
    """Results are those of the old values or of the new ones, never of the logsumexp of the old with the new."""
    with torch.inference_mode(inference):
        old = torch.rand(2, 4) + 0.1
        # Where a maximum must be subtracted now, and was not before.
        new = torch.tensor([[100.0, 0.2, 90.0, 0.3], [0.1, 0.2, 100.0, 0.4]])
        param = old.clone()

        def make(values: Tensor) -> OneHotCategorical:
            return OneHotCategorical(**{kind: values}, unimix=unimix, validate_args=validate)

        def result(dist: OneHotCategorical) -> Tensor:
            torch.manual_seed(1)
            return READS[read](dist).double()

        dist = make(param)
        expanded = dist.expand((3, 2))
        for d in (dist, expanded):  # what can be remembered, is
            d.entropy()
            d.log_prob(d.sample())
        param.copy_(new)
        for d, batch in ((dist, (2,)), (expanded, (3, 2))):
            found = result(d)
            expected = [result(make(v).expand(batch)) for v in (old, new)]
            assert any(found.shape == e.shape and torch.allclose(found, e) for e in expected)


def test_change_in_place_between_forward_and_backward_changes_no_gradient():
    """A small batch keeps what its gradient needs; a large one keeps the logits themselves, and then it is an error."""
    x = torch.randn(4, requires_grad=True)
    logits = x * 1
    log_prob = OneHotCategorical(logits).log_prob_index(torch.tensor(0))
    logits.mul_(2)
    log_prob.backward()
    torch.testing.assert_close(x.grad, torch.eye(4)[0] - torch.softmax(x.detach(), -1))


def test_change_in_place_between_forward_and_backward_is_an_error(monkeypatch):
    monkeypatch.setattr(cpu, "_SMALL", 0)
    x = torch.randn(4, requires_grad=True)
    logits = x * 1
    log_prob = OneHotCategorical(logits).log_prob_index(torch.tensor(0))
    logits.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_prob.backward()


# The last draw, whose index is remembered -----------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["sample", "rsample", "sample_and_log_prob", "rsample_and_log_prob"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_the_log_prob_of_the_last_draw_is_that_of_its_copy(draw, shape, small, backend, monkeypatch):
    monkeypatch.setattr(cpu, "ONE_THREAD", 0)
    x = torch.randn(4, 5, requires_grad=True)
    dist = OneHotCategorical(x)
    drawn = getattr(dist, draw)(shape)
    drawn = drawn[0] if isinstance(drawn, tuple) else drawn
    (expected,) = torch.autograd.grad(dist.log_prob(drawn.clone()).exp().sum(), x)
    if backend == "eager":  # where the ones are is not looked for
        monkeypatch.setattr(cpu.Cpu, "argmax", None)
    for value in (drawn, drawn.detach()):
        log_prob = dist.log_prob(value)
        assert log_prob.shape == (*shape, 4)
        torch.testing.assert_close(log_prob, (drawn * torch.log_softmax(x, -1)).sum(-1))
        torch.testing.assert_close(torch.autograd.grad(log_prob.exp().sum(), x)[0], expected)


@pytest.mark.parametrize("validate", [True, False])
def test_what_is_no_longer_the_last_draw_is_looked_at(validate, backend):
    """Changed in place, another view of its memory, a draw before the last, or new memory where an old draw was."""
    logits = torch.randn(4, 4)
    dist = OneHotCategorical(logits, validate_args=validate)

    def assert_right(value: Tensor) -> None:
        expected = (value * torch.log_softmax(logits, -1)).sum(-1)
        torch.testing.assert_close(dist.log_prob(value), expected)

    first, drawn = dist.sample(), dist.sample()
    for value in (first, drawn, drawn[:2].repeat(2, 1), drawn.flip(0), drawn.bool(), drawn.t().contiguous().t()):
        assert_right(value)
    with torch.no_grad():
        drawn.copy_(drawn.roll(1, -1))
    assert_right(drawn)
    for _ in range(20):
        dist.sample()
        assert_right(torch.eye(4, dtype=torch.int64))
    # The parameter may change; the draw is the same.
    drawn = dist.sample()
    logits.copy_(60 * torch.eye(4).roll(1, -1))
    assert_right(drawn)
    drawn = dist.sample()
    assert_right(drawn.t())


@pytest.mark.parametrize("validate", [True, False])
def test_a_number_written_beside_the_ones_of_the_last_draw_is_seen(validate, backend):
    logits = torch.tensor([[0.0, 1.0, -torch.inf]] * 4)
    dist = OneHotCategorical(logits, validate_args=validate)
    drawn = dist.sample()
    drawn[2, 2] = 2
    if validate:
        with pytest.raises(ValueError, match=r"^value: expected one-hot rows"):
            dist.log_prob(drawn)
    else:  # the maximum counts
        assert dist.log_prob(drawn)[2] == -torch.inf


def through_an_alias(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage(), 0, tensor.shape, tensor.stride())


# The same memory by another way, of which torch's count of changes does not know.
BEHIND_TORCH: dict[str, Callable[[Tensor], Any]] = {
    "numpy": lambda t: t.detach().numpy(),
    "data": lambda t: t.data,
    "from_numpy": lambda t: torch.from_numpy(t.detach().numpy()),
    "dlpack": lambda t: torch.from_dlpack(t.detach()),
    "storage alias": through_an_alias,
}


@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("draw", ["sample", "rsample"])
@pytest.mark.parametrize("way", BEHIND_TORCH)
def test_log_prob_of_a_draw_that_was_changed_behind_torch(way, draw, validate, small, backend):
    """Some rows of the last draw replaced, as epsilon-greedy exploration does."""
    x = torch.randn(4, 6, requires_grad=draw == "rsample")
    dist = OneHotCategorical(x, validate_args=validate)
    drawn = getattr(dist, draw)()
    version = drawn._version
    k = (drawn.argmax(-1) + 1) % 6
    memory = BEHIND_TORCH[way](drawn)
    rows = [0, 2]
    memory[rows] = 0
    memory[rows, k[rows]] = 1
    assert drawn._version == version, "torch has seen the change: the case is none"
    for value in (drawn, drawn.detach()):
        expected = torch.log_softmax(x, -1).gather(-1, value.argmax(-1, keepdim=True)).squeeze(-1)
        torch.testing.assert_close(dist.log_prob(value), expected)
    memory[1] = 0
    if validate:
        with pytest.raises(ValueError, match=r"value: expected one-hot rows.* at \[1\]"):
            dist.log_prob(drawn)


@pytest.mark.parametrize("columns", [6, 1500])
def test_log_prob_of_the_last_draw_reads_one_number_a_row_in_the_kernel(columns):
    """What is read no more is 7 here, where a search would find it."""
    pytest.importorskip("triton")
    with use_backend("triton"):
        dist = OneHotCategorical(torch.randn(3, columns), validate_args=False)
        drawn = dist.sample((2,))
        expected = dist.log_prob(drawn.clone())
        memory = drawn.numpy()
        memory[memory == 0] = 7
        torch.testing.assert_close(dist.log_prob(drawn), expected)
        assert not torch.equal(dist.log_prob(drawn.clone()), expected)


@pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("kind", ["logits", "probs", "unimix", "mask"])
@pytest.mark.parametrize("way", BEHIND_TORCH)
def test_parameter_that_was_changed_behind_torch(way, kind, validate):
    """Logits count as they are now; what was computed from a parameter stays as it was, and all members use that."""
    old, new = torch.rand(2, 4) + 0.1, torch.tensor([[100.0, 0.2, 90.0, 0.3], [0.1, 0.2, 100.0, 0.4]])
    param = old.clone()
    cls: Any = MaskedOneHotCategorical if kind == "mask" else OneHotCategorical
    options = {"unimix": {"unimix": 0.1}, "mask": {"mask": torch.tensor([True, False, True, True])}}.get(kind, {})

    def make(values: Tensor) -> OneHotCategorical:
        return cls(**{"probs" if kind == "probs" else "logits": values}, **options, validate_args=validate)

    def results(dist: OneHotCategorical) -> list[Tensor]:
        torch.manual_seed(1)
        return [read(dist) for read in READS.values()]

    dist = make(param)
    dist.entropy()  # what could be remembered, would be
    dist.log_prob(dist.sample())
    BEHIND_TORCH[way](param)[:] = new.numpy() if way == "numpy" else new
    torch.testing.assert_close(results(dist), results(make(new if kind == "logits" else old)))


@pytest.mark.parametrize("columns", [3, 40, 2000])
def test_parameter_that_was_filled_with_nan_behind_torch(columns, small, backend):
    x = torch.zeros(2, columns)
    dist = OneHotCategorical(x, grad_method=PASS, validate_args=True)
    dist.log_prob(dist.sample())
    x.data[:, 1] = NAN
    assert dist.sample_index().tolist() == [-1, -1]
    for one_hots in (dist.sample(), dist.rsample(), dist.mode):
        assert one_hots.count_nonzero() == 0
    for density in (dist.sample_and_log_prob()[1], dist.rsample_and_log_prob()[1], dist.entropy()):
        assert density.isnan().all()
    with pytest.raises(ValueError, match="value: expected one-hot rows"):
        dist.log_prob(dist.sample())


@pytest.mark.parametrize("method", ReparamGradientStrategy, ids=str)
def test_a_batch_of_gradients_is_each_gradient(method, backend):
    x = torch.randn(3, 5, requires_grad=True)
    drawn = OneHotCategorical(x, grad_method=method).rsample((2,))
    given = torch.randn(4, 2, 3, 5)
    (found,) = torch.autograd.grad(drawn, x, given, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(drawn, x, g, retain_graph=True)[0] for g in given]
    torch.testing.assert_close(found, torch.stack(each))


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)], ids=repr)
def test_numbers_of_numpy_and_torch(number):
    x = torch.randn(3, 5)
    for name in ("unimix", "temperature"):
        options: Any = {name: number}
        dist = OneHotCategorical(x, **options, grad_method=RELAXED)
        torch.testing.assert_close(dist.probs, OneHotCategorical(x, **{name: 0.5}, grad_method=RELAXED).probs)
        assert dist.rsample().shape == (3, 5)


@pytest.mark.parametrize("number", [np.int64(2), torch.tensor(2), torch.tensor([2, 2, 2])], ids=repr)
def test_an_integer_is_a_temperature(number, backend):
    x, grad = torch.randn(3, 5, requires_grad=True), torch.randn(2, 3, 5)

    def gradients(temperature: Any) -> list[Tensor]:
        found = []
        for method in list(ReparamGradientStrategy)[1:]:
            torch.manual_seed(0)
            drawn = OneHotCategorical(x, grad_method=method, temperature=temperature).rsample((2,))
            found += torch.autograd.grad(drawn, x, grad)
        torch.manual_seed(0)
        soft = RelaxedOneHotCategorical(temperature, logits=x)
        return [*found, *torch.autograd.grad(soft.log_prob(soft.rsample()).sum(), x)]

    for found, expected in zip(gradients(number), gradients(2.0), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (np.int64(2), (2,)),
        (np.int64(0), (0,)),
        ((np.int32(2), 3), (2, 3)),
        ([np.uint8(2), np.int64(3)], (2, 3)),
        (np.array([2, 3]), (2, 3)),
    ],
    ids=repr,
)
def test_sample_shapes_of_numpy(shape, expected):
    dist = OneHotCategorical(torch.zeros(4, 5))
    for drawn in (
        dist.sample(shape),
        dist.rsample(shape),
        RelaxedOneHotCategorical(1, logits=dist.logits).sample(shape),
    ):
        assert drawn.shape == (*expected, 4, 5)
        # Not NumPy's, which torch.Size would keep.
        assert all(type(n) is int for n in drawn.shape)


class Weights(Tensor):
    """A subclass that says what it is, and no more."""


class NamedParameter(torch.nn.Parameter):
    pass


class Traced(Tensor):
    """A subclass that is told of each call."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


SUBCLASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "subclass": lambda x: x.as_subclass(Weights),
    "subclass with __torch_function__": lambda x: x.as_subclass(Traced),
    "parameter": NamedParameter,
}


@pytest.mark.parametrize("make", SUBCLASSES.values(), ids=SUBCLASSES)
@pytest.mark.parametrize("rows", [3, 3000], ids=["small", "large"])
def test_a_subclass_is_checked_and_computed_of_as_a_tensor(make, rows):
    x = torch.randn(rows, 40)
    bad = x.clone()
    bad[1, 2] = NAN
    with pytest.raises(ValueError, match=r"logits: expected neither NaN nor \+inf, found nan at \[1, 2\]"):
        OneHotCategorical(make(bad))
    ours, plain = (OneHotCategorical(p, grad_method=ReparamGradientStrategy.PassThrough) for p in (make(x), x))
    with pytest.raises(ValueError, match="value: expected one-hot rows"):
        ours.log_prob(torch.ones(rows, 40))
    with pytest.raises(ValueError, match=r"index: expected 0 \.\. 39, found 40"):
        ours.log_prob_index(torch.tensor(40))
    draws = []
    for dist in (ours, plain):
        torch.manual_seed(0)
        draw = dist.rsample((2,))
        draws.append((draw, dist.log_prob(draw), dist.entropy()))
    for found, expected in zip(*draws, strict=True):
        torch.testing.assert_close(found.detach().as_subclass(Tensor), expected)


def test_a_draw_that_is_not_one_hot_is_still_an_error():
    logits = torch.zeros(2, 3)
    dist = OneHotCategorical(logits, validate_args=True)
    logits[1] = NAN
    with pytest.raises(ValueError, match="value: expected one-hot rows"):
        dist.log_prob(dist.sample())
    unchecked = OneHotCategorical(logits, validate_args=False)
    log_prob = unchecked.log_prob(unchecked.sample())
    assert log_prob.isnan().tolist() == [False, True]


def test_the_last_draw_is_not_kept_alive():
    dist = OneHotCategorical(torch.zeros(2, 3))
    drawn = weakref.ref(dist.sample())
    assert drawn() is None
    kept = dist.sample()
    for copied in (pickle.loads(pickle.dumps(dist)), copy.deepcopy(dist), dist.expand((2,))):
        torch.testing.assert_close(copied.log_prob(kept), torch.full((2,), 1 / 3).log())


def test_an_optimiser_step_is_seen():
    x = torch.zeros(4, requires_grad=True)
    dist = OneHotCategorical(x)
    optimiser = torch.optim.SGD([x], lr=1.0)
    dist.log_prob_index(torch.tensor(2)).backward()
    optimiser.step()
    torch.testing.assert_close(dist.log_prob_index(torch.arange(4)), torch.log_softmax(x, -1))


# Bad input: argument, what was expected, what was found, and where ----------------------------------------------------

METHODS = (
    "ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot, ReparamGradientStrategy.ReinMax or "
    "ReparamGradientStrategy.GappedStraightThrough"
)
ZEROS = torch.zeros(2, 3)
DIST = OneHotCategorical(ZEROS)


DTYPES = (
    "one of torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, "
    "torch.float32, torch.float64"
)


def wrong(value: Any) -> Any:
    """What a type checker would not let pass."""
    return cast(Any, value)


class _GeneratorElsewhere(torch.Generator):
    """A generator of another device, which a CPU-only torch cannot make."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


BAD_INPUT: dict[str, tuple[Callable[[], object], str]] = {
    "both parameters": (
        lambda: OneHotCategorical(ZEROS, ZEROS),
        "logits, probs: expected exactly one of the two, found both",
    ),
    "no parameter": (lambda: OneHotCategorical(), "logits, probs: expected exactly one of the two, found neither"),
    "logits no tensor": (lambda: OneHotCategorical(wrong([0.0, 1.0])), "logits: expected a tensor, found list"),
    "probs no tensor": (lambda: OneHotCategorical(probs=wrong(0.5)), "probs: expected a tensor, found float"),
    "integer logits": (
        lambda: OneHotCategorical(torch.tensor([0, 1])),
        "logits: expected float16, bfloat16, float32 or float64, found torch.int64",
    ),
    "0-d logits": (
        lambda: OneHotCategorical(torch.tensor(0.0)),
        "logits: expected [*batch, columns] with at least one column, found shape []",
    ),
    "no columns": (
        lambda: OneHotCategorical(probs=torch.zeros(2, 0)),
        "probs: expected [*batch, columns] with at least one column, found shape [2, 0]",
    ),
    "grad_method by name": (
        lambda: OneHotCategorical(ZEROS, grad_method=wrong("PassThrough")),
        f"grad_method: expected None, {METHODS}, found 'PassThrough'",
    ),
    "grad_method by number": (
        lambda: OneHotCategorical(ZEROS, grad_method=wrong(1)),
        f"grad_method: expected None, {METHODS}, found 1",
    ),
    "grad_method of another enumeration": (
        lambda: OneHotCategorical(ZEROS, grad_method=wrong(enum.Enum("Strategy", ["PassThrough"]).PassThrough)),
        f"grad_method: expected None, {METHODS}, found <Strategy.PassThrough: 1>",
    ),
    "grad_method that is not here": (
        lambda: OneHotCategorical(ZEROS, grad_method=wrong(enum.Enum("ReparamGradientStrategy", ["Other"]).Other)),
        f"grad_method: expected None, {METHODS}, found <ReparamGradientStrategy.Other: 1>",
    ),
    "ReinMax below 1": (
        lambda: OneHotCategorical(ZEROS, grad_method=ReparamGradientStrategy.ReinMax, temperature=0.5),
        "temperature: expected at least 1 for ReinMax, found 0.5",
    ),
    "ReinMax below 1 in a row": (
        lambda: OneHotCategorical(
            torch.zeros(2, 3), grad_method=ReparamGradientStrategy.ReinMax, temperature=torch.tensor([1.0, 0.5])
        ),
        "temperature: expected finite numbers of at least 1 for ReinMax, found 0.5 at [1]",
    ),
    "a learned temperature without a gradient": (
        lambda: OneHotCategorical(
            ZEROS,
            grad_method=ReparamGradientStrategy.GappedStraightThrough,
            temperature=torch.ones((), requires_grad=True),
        ),
        "temperature: expected a tensor without a gradient for GappedStraightThrough, found one that requires a "
        "gradient, which it would not get",
    ),
    "no relaxed sample": (
        lambda: OneHotCategorical(ZEROS, relaxed_samples=0),
        "relaxed_samples: expected an integer of at least 1, found 0",
    ),
    "half a relaxed sample": (
        lambda: OneHotCategorical(ZEROS, relaxed_samples=wrong(1.5)),
        "relaxed_samples: expected an integer of at least 1, found 1.5",
    ),
    "unimix below 0": (
        lambda: OneHotCategorical(ZEROS, unimix=-0.1),
        "unimix: expected a number in [0, 1], found -0.1",
    ),
    "unimix above 1": (
        lambda: OneHotCategorical(ZEROS, unimix=1.5),
        "unimix: expected a number in [0, 1], found 1.5",
    ),
    "unimix NaN": (
        lambda: OneHotCategorical(ZEROS, unimix=NAN),
        "unimix: expected a number in [0, 1], found nan",
    ),
    "unimix no number": (
        lambda: OneHotCategorical(ZEROS, unimix=wrong("a")),
        "unimix: expected a number in [0, 1], found 'a'",
    ),
    "unimix tensor above 1": (
        lambda: OneHotCategorical(ZEROS, unimix=torch.tensor(1.5)),
        "unimix: expected a number in [0, 1], found 1.5",
    ),
    "unimix tensor NaN": (
        lambda: OneHotCategorical(ZEROS, unimix=torch.tensor([NAN])),
        "unimix: expected a number in [0, 1], found nan",
    ),
    "unimix of each row": (
        lambda: OneHotCategorical(ZEROS, unimix=torch.zeros(2)),
        "unimix: expected a number in [0, 1], found shape [2]",
    ),
    "complex unimix": (
        lambda: OneHotCategorical(ZEROS, unimix=torch.tensor(0.1j)),
        "unimix: expected a number in [0, 1], found torch.complex64",
    ),
    "dtype by name": (
        lambda: OneHotCategorical(ZEROS, dtype=wrong("int64")),
        f"dtype: expected {DTYPES}, found 'int64'",
    ),
    "complex dtype": (
        lambda: OneHotCategorical(ZEROS, dtype=torch.complex64),
        f"dtype: expected {DTYPES}, found torch.complex64",
    ),
    "temperature 0": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=0),
        "temperature: expected a finite number above 0, found 0",
    ),
    "temperature below 0": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=-1.0),
        "temperature: expected a finite number above 0, found -1.0",
    ),
    "temperature infinite": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=INF),
        "temperature: expected a finite number above 0, found inf",
    ),
    "temperature NaN": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=NAN),
        "temperature: expected a finite number above 0, found nan",
    ),
    "temperature no number": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=wrong("hot")),
        "temperature: expected a finite number above 0, found 'hot'",
    ),
    "bool temperature tensor": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=torch.tensor(True)),
        "temperature: expected a floating or integer tensor, found torch.bool",
    ),
    "temperature that no gradient takes": (
        lambda: OneHotCategorical(ZEROS, temperature=0.1),
        "temperature: expected 1 for grad_method None, since only the gradients of RelaxedOneHot, ReinMax and "
        "GappedStraightThrough take one (to sample at a temperature, divide the logits), found 0.1",
    ),
    "temperature tensor that no gradient takes": (
        lambda: MaskedOneHotCategorical(
            ZEROS,
            mask=ZEROS == 0,
            grad_method=ReparamGradientStrategy.PassThrough,
            temperature=torch.ones(2, requires_grad=True),
        ),
        "temperature: expected 1 for grad_method PassThrough, since only the gradients of RelaxedOneHot, ReinMax and "
        "GappedStraightThrough take one (to sample at a temperature, divide the logits), found a tensor of shape [2]",
    ),
    "relaxed samples without a gradient": (
        lambda: OneHotCategorical(ZEROS, relaxed_samples=8),
        "relaxed_samples: expected 1 for grad_method None, since only RelaxedOneHot takes more, found 8",
    ),
    "relaxed samples of another gradient": (
        lambda: OneHotCategorical(ZEROS, grad_method=ReparamGradientStrategy.ReinMax, relaxed_samples=2),
        "relaxed_samples: expected 1 for grad_method ReinMax, since only RelaxedOneHot takes more, found 2",
    ),
    "temperature of another batch": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=torch.ones(3)),
        "temperature: expected a shape that broadcasts to the batch [2], found [3]",
    ),
    "temperature of too many dimensions": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=torch.ones(2, 2)),
        "temperature: expected a shape that broadcasts to the batch [2], found [2, 2]",
    ),
    "temperature tensor 0": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=torch.tensor(0.0)),
        "temperature: expected finite numbers above 0, found 0.0 at []",
    ),
    "sparse logits": (
        lambda: OneHotCategorical(ZEROS.to_sparse()),
        "logits: expected a dense tensor, found layout torch.sparse_coo",
    ),
    "nested logits": (
        lambda: OneHotCategorical(torch.nested.nested_tensor([[0.0], [0.0, 1.0]], layout=torch.jagged)),
        "logits: expected a dense tensor, found a nested one",
    ),
    "learned unimix": (
        lambda: OneHotCategorical(ZEROS, unimix=torch.tensor(0.1, requires_grad=True)),
        "unimix: expected a number in [0, 1], found a tensor that requires a gradient, which it would not get",
    ),
    "temperature NaN in a row": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=torch.tensor([1.0, NAN])),
        "temperature: expected finite numbers above 0, found nan at [1]",
    ),
    "temperature infinite in a row": (
        lambda: OneHotCategorical(ZEROS, grad_method=RELAXED, temperature=torch.tensor([1.0, INF])),
        "temperature: expected finite numbers above 0, found inf at [1]",
    ),
    "sample_shape by name": (
        lambda: DIST.sample(wrong("ab")),
        "sample_shape: expected None, an int or a sequence of ints, found 'ab'",
    ),
    "sample_shape float": (
        lambda: DIST.rsample(wrong(1.5)),
        "sample_shape: expected None, an int or a sequence of ints, found 1.5",
    ),
    "sample_shape of floats": (
        lambda: DIST.sample_index(wrong((2, 1.5))),
        "sample_shape: expected None, an int or a sequence of ints, found (2, 1.5)",
    ),
    "sample_shape negative": (
        lambda: DIST.sample_and_log_prob((2, -1)),
        "sample_shape: expected no negative dimension, found [2, -1]",
    ),
    "generator no generator": (
        lambda: DIST.sample(generator=wrong(0)),
        "generator: expected a torch.Generator or None, found int",
    ),
    "generator elsewhere": (
        lambda: DIST.rsample(generator=_GeneratorElsewhere()),
        "generator: expected one on cpu, as the parameters, found one on cuda:0",
    ),
    "value no tensor": (lambda: DIST.log_prob(wrong([0, 0, 1])), "value: expected a tensor, found list"),
    "value of another length": (
        lambda: DIST.log_prob(torch.eye(4)),
        "value: expected [..., 3] with a column for each category, found shape [4, 4]",
    ),
    "value 0-d": (
        lambda: DIST.log_prob(torch.tensor(1)),
        "value: expected [..., 3] with a column for each category, found shape []",
    ),
    "complex value": (
        lambda: DIST.log_prob(torch.eye(3, dtype=torch.complex64)[:2]),
        "value: expected a real tensor, found torch.complex64",
    ),
    "value of another batch": (
        lambda: DIST.log_prob(torch.eye(3)),
        "value: expected leading dimensions that broadcast with the batch [2], found [3]",
    ),
    "index no tensor": (lambda: DIST.log_prob_index(wrong(1)), "index: expected an integer tensor, found int"),
    "float index": (
        lambda: DIST.log_prob_index(torch.zeros(2)),
        "index: expected an integer tensor, found torch.float32",
    ),
    "bool index": (
        lambda: DIST.log_prob_index(torch.zeros(2, dtype=torch.bool)),
        "index: expected an integer tensor, found torch.bool",
    ),
    "index of another batch": (
        lambda: DIST.log_prob_index(torch.zeros(3, dtype=torch.int64)),
        "index: expected leading dimensions that broadcast with the batch [2], found [3]",
    ),
    "index too large": (
        lambda: DIST.log_prob_index(torch.tensor([[0, 2], [1, 3]])),
        "index: expected 0 .. 2, found 3 at [1, 1]",
    ),
    "index negative": (
        lambda: DIST.log_prob_index(torch.tensor([-1, 0])),
        "index: expected 0 .. 2, found -1 at [0]",
    ),
    "kl of other lengths": (
        lambda: D.kl_divergence(DIST, OneHotCategorical(torch.zeros(2, 4))),
        "q: expected 3 categories, as in p, found 4",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        call()
    assert str(error.value) == message


@pytest.mark.gpu
def test_generator_of_another_device():
    dist = OneHotCategorical(torch.zeros(3, device="cuda"))
    with pytest.raises(ValueError, match="generator: expected one on cuda, as the parameters, found one on cpu"):
        dist.sample(generator=torch.Generator())


# Devices without float64: the noise of rng.exponential_float32 --------------------------------------------------

WORD = 2**32 - 1


def test_float32_noise_is_exponential():
    """Its sign is reversed. Fails right noise once in a million seeds."""
    noise = rng.exponential_float32((200_000,), torch.device("cpu"))
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert (noise < 0).all()
    assert stats.kstest(-noise.double(), "expon").pvalue > 1e-6


def test_float32_noise_follows_the_generator():
    one, same, other = (
        rng.exponential_float32((5,), torch.device("cpu"), torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("hi", "lo"),
    [
        (0, 0), (0, 1), (0, WORD), (1, 0), (WORD, WORD), (WORD, WORD - 1), (WORD, 0), (WORD - 1, 5),
        (2**31, 0), (2**31 - 1, WORD), (2**27, 12345), (WORD - 2**27, 12345), (123456789, 987654321),
    ],
)  # fmt: skip
def test_float32_noise_of_extreme_words(hi, lo, monkeypatch):
    """log(1 - v) for v = (hi + (lo + 1/2) 2^-32) 2^-32, from the smallest v to the largest, with all digits."""
    words = torch.tensor([hi, lo]).unsqueeze(-1)
    monkeypatch.setattr(torch, "randint", lambda *args, **options: words)
    (found,) = rng.exponential_float32((1,), torch.device("cpu"))
    with mpmath.workdps(60):
        v = (mpmath.mpf(hi) + (mpmath.mpf(lo) + mpmath.mpf("0.5")) / 2**32) / 2**32
        expected = mpmath.log(1 - v)
        assert abs(mpmath.mpf(found.item()) / expected - 1) < 1e-6


def test_draws_with_float32_noise(monkeypatch):
    """As on a device without float64. Fails a right sampler once in a million seeds."""
    monkeypatch.setattr(rng, "exponential", rng.exponential_float32)
    n, x = 40_000, torch.randn(50)
    counts = OneHotCategorical(x).sample_index((n,)).bincount(minlength=50)
    assert stats.chisquare(counts, torch.softmax(x.double(), -1) * n).pvalue > 1e-6
    x.requires_grad_()
    OneHotCategorical(x, grad_method=RELAXED).rsample((3,)).pow(2).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_float64_noise_is_never_0_and_never_infinite(monkeypatch):
    """At both ends of torch.rand: u = 0 and u = 1 - 2^-53."""
    for u in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *args, u=u, **options: torch.tensor([u], dtype=torch.float64))
        noise = rng.exponential((1,), torch.device("cpu"))
        assert noise.isfinite().all()
        assert (noise < 0).all()
