"""Properties that hold for any shape and dtype, by hypothesis."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as D

from onehot_triton import OneHotCategorical, RelaxedOneHotCategorical, ReparamGradientStrategy, tensors

pytestmark = pytest.mark.usefixtures("one_thread")

# Derandomised: a run is the same as the one before it, and no example is kept on disk.
quick = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    # `seed` of conftest.py runs once for all examples, which bring their own seeds.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Mostly not empty.
shapes = st.lists(st.sampled_from([1, 2, 3, 3, 2, 1, 0]), max_size=3).map(tuple)
# Few, and around the border between one group and several.
few_columns = st.integers(1, 33)
columns = st.one_of(few_columns, st.sampled_from([100, 511, 512, 513, 600]))
parameter_dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
sample_dtypes = st.sampled_from([torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float32])
seeds = st.integers(0, 2**32)


@st.composite
def parameters(draw: st.DrawFn, columns: st.SearchStrategy[int] = columns) -> tuple[str, Tensor]:
    """Logits or weights of any shape, dtype and layout, with categories that are never drawn."""
    batch, count, dtype = draw(shapes), draw(columns), draw(parameter_dtypes)
    generator = torch.Generator().manual_seed(draw(seeds))
    spread = draw(st.sampled_from([0.0, 1.0, 10.0, 100.0]))
    x = torch.randn(*batch, count, generator=generator) * spread
    if draw(st.booleans()) and count > 1:
        x[..., draw(st.integers(0, count - 1))] = -math.inf
    kind = draw(st.sampled_from(["logits", "probs"]))
    if kind == "probs":
        x = torch.softmax(x, -1)
    x = x.to(dtype)
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided"]))
    if layout == "transposed" and x.dim() > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided":
        x = torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return kind, x


@st.composite
def distributions(draw: st.DrawFn, columns: st.SearchStrategy[int] = columns) -> OneHotCategorical:
    kind, x = draw(parameters(columns))
    method = draw(st.sampled_from([None, *ReparamGradientStrategy]))
    temperatures = {
        None: [1.0],
        ReparamGradientStrategy.PassThrough: [1.0],
        ReparamGradientStrategy.ReinMax: [1.0, 1.5, 3.0],
    }
    return OneHotCategorical(
        **{kind: x},
        grad_method=method,
        temperature=draw(st.sampled_from(temperatures.get(method, [1.0, 3.0, 0.1]))),
        unimix=draw(st.sampled_from([0.0, 0.0, 0.01, 1.0])),
        dtype=draw(sample_dtypes),
        validate_args=draw(st.sampled_from([None, False])),
    )


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = max(8 * torch.finfo(dtype).eps, 1e-12)
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=8 * tolerance, equal_nan=True)


@quick
@given(distributions(), shapes, seeds)
def test_shapes_and_dtypes(dist, sample_shape, seed):
    torch.manual_seed(seed)
    batch, event = dist.batch_shape, dist.event_shape
    shape = (*sample_shape, *batch)
    drawn, soft = dist.sample(sample_shape), dist.rsample(sample_shape)
    assert drawn.shape == soft.shape == shape + event
    assert drawn.dtype == dist.dtype
    assert soft.dtype == dist._param.dtype
    index = dist.sample_index(sample_shape)
    assert (index.shape, index.dtype) == (shape, torch.int64)
    for log_prob in (dist.log_prob(drawn), dist.log_prob_index(index), dist.sample_and_log_prob(sample_shape)[1]):
        assert (log_prob.shape, log_prob.dtype) == (shape, tensors.compute_dtype(dist._param.dtype))
    assert (dist.entropy().shape, dist.entropy().dtype) == (batch, tensors.compute_dtype(dist._param.dtype))
    for of_each_category in (dist.logits, dist.probs, dist.mean, dist.variance, dist.mode):
        assert of_each_category.shape == batch + event == dist.param_shape


@quick
@given(distributions(), shapes, seeds)
def test_draws_are_one_hot_and_possible(dist, sample_shape, seed):
    torch.manual_seed(seed)
    for drawn in (dist.sample(sample_shape), dist.rsample(sample_shape), dist.mode):
        drawn = drawn.double()
        assert ((drawn == 0) | (drawn == 1)).all()
        assert (drawn.sum(-1) == 1).all()
    index = dist.sample_index(sample_shape)
    assert ((index >= 0) & (index < dist.num_samples)).all()
    assert (dist.log_prob_index(index) > -math.inf).all()


@quick
@given(distributions(), shapes, seeds)
def test_log_prob_of_a_draw_is_that_of_its_index(dist, sample_shape, seed):
    torch.manual_seed(seed)
    drawn, log_prob = dist.sample_and_log_prob(sample_shape)
    index = drawn.double().argmax(-1)
    assert torch.equal(dist.log_prob(drawn), dist.log_prob_index(index))
    close(log_prob, dist.log_prob_index(index), dist._param.dtype)


@quick
@given(distributions(few_columns))
def test_probabilities_of_the_support_sum_to_1(dist):
    log_prob = dist.log_prob(dist.enumerate_support())
    dtype = dist._param.dtype
    total = log_prob.double().exp().sum(0)
    # Logits of some hundred nats: a unit in the last place of a float32 log_prob is 3e-5.
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}.get(dtype, 16 * torch.finfo(dtype).eps)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)
    close(dist.probs, log_prob.double().exp().movedim(0, -1), dtype)


@quick
@given(distributions())
def test_results_agree_with_torch(dist):
    """Its own probabilities, in float64."""
    p = torch.softmax(dist._param.double(), -1) if dist._name == "logits" else dist._param.double()
    p = p / p.sum(-1, keepdim=True) * (1 - dist.unimix) + dist.unimix / dist.num_samples
    if p.numel() == 0:
        return
    oracle = D.OneHotCategorical(probs=p)
    dtype = dist._param.dtype
    close(dist.probs, oracle.probs, dtype)
    close(dist.entropy(), oracle.entropy(), dtype)
    assert (dist.entropy() <= math.log(dist.num_samples) * (1 + 2 * torch.finfo(dtype).eps) + 1e-6).all()


@quick
@given(distributions(), st.lists(st.integers(0, 3), max_size=2).map(tuple), seeds)
def test_expand_is_the_same_distribution(dist, lead, seed):
    expanded = dist.expand(lead + dist.batch_shape)
    assert expanded.batch_shape == lead + dist.batch_shape
    dtype = dist._param.dtype
    close(expanded.entropy(), dist.entropy().expand(expanded.batch_shape), dtype)
    torch.manual_seed(seed)
    drawn = expanded.sample()
    assert drawn.shape == expanded.param_shape
    close(expanded.log_prob(drawn), dist.log_prob(drawn), dtype)
    # Draws are a matter of the shape, not of how it came about.
    torch.manual_seed(seed)
    assert torch.equal(dist.sample(lead), drawn)


@quick
@given(parameters(), seeds)
def test_layout_changes_nothing(parameter, seed):
    kind, x = parameter
    dtype = x.dtype
    strided, plain = (OneHotCategorical(**{kind: t}) for t in (x, x.contiguous()))
    close(strided.entropy(), plain.entropy(), dtype)
    drawn = []
    for dist in (strided, plain):
        torch.manual_seed(seed)
        drawn.append(dist.sample((2,)))
    assert torch.equal(*drawn)
    close(strided.log_prob(drawn[0]), plain.log_prob(drawn[0]), dtype)


@quick
@given(parameters(), st.randoms(use_true_random=False))
def test_order_of_columns_and_rows_does_not_matter(parameter, random):
    kind, x = parameter
    x = x if x.dim() > 1 else x.unsqueeze(0)
    order, rows = list(range(x.shape[-1])), list(range(x.shape[0]))
    random.shuffle(order)
    random.shuffle(rows)
    dist, shuffled = OneHotCategorical(**{kind: x}), OneHotCategorical(**{kind: x[rows][..., order]})
    close(shuffled.entropy(), dist.entropy()[rows], x.dtype)
    close(shuffled.probs, dist.probs[rows][..., order], x.dtype)
    first, there = (torch.full(x.shape[:-1], at) for at in (0, order[0]))
    close(shuffled.log_prob_index(first), dist.log_prob_index(there)[rows], x.dtype)


@quick
@given(parameters(), shapes, st.sampled_from([0.1, 1.0, 3.0]), seeds)
def test_relaxed_samples_lie_on_the_simplex(parameter, sample_shape, temperature, seed):
    torch.manual_seed(seed)
    kind, x = parameter
    drawn = RelaxedOneHotCategorical(temperature, **{kind: x}).rsample(sample_shape)
    assert drawn.shape == (*sample_shape, *x.shape)
    assert drawn.dtype == x.dtype
    assert ((drawn >= 0) & (drawn <= 1)).all()
    total = drawn.double().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=x.shape[-1] * torch.finfo(x.dtype).eps)
    never = x == (-math.inf if kind == "logits" else 0)
    assert (drawn[..., never] == 0).all()
