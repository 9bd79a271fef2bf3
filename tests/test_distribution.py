"""OneHotCategorical, member by member, against torch.distributions in float64 as an independent oracle."""

import copy
import inspect
import math
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as D
from torch.distributions import constraints

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    ReparamGradientStrategy,
    compute,
    tensors,
    use_backend,
)

PARAMETER_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGER_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
VALUE_DTYPES = [torch.bool, *INTEGER_DTYPES, *PARAMETER_DTYPES]
COLUMNS = 7
PASS, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot

pytestmark = pytest.mark.usefixtures("one_thread")

each_batch = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
each_dtype = pytest.mark.parametrize("dtype", PARAMETER_DTYPES, ids=str)
each_kind = pytest.mark.parametrize("kind", ["logits", "probs"])
each_unimix = pytest.mark.parametrize("unimix", [0.0, 0.01], ids="unimix {}".format)
each_method = pytest.mark.parametrize("method", [None, *ReparamGradientStrategy], ids=str)
# Checked and unchecked values take different ways through log_prob.
each_validate = pytest.mark.parametrize("validate", [True, False], ids=["checked", "unchecked"])


class Case(NamedTuple):
    """Ours in some dtype, torch's in that dtype, and torch's of the very same numbers in float64."""

    ours: OneHotCategorical
    low: D.OneHotCategorical
    oracle: D.OneHotCategorical


def parameter(kind: str, batch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Logits that spread over some ten nats, or weights that do not sum to 1."""
    x = torch.randn(*batch, COLUMNS, dtype=torch.float64) * 2
    return (x if kind == "logits" else x.exp()).to(dtype)


def by_torch(kind: str, param: Tensor, unimix: float = 0.0) -> D.OneHotCategorical:
    """torch's distribution; a mixture by its definition (1 - e) p + e / V."""
    if unimix:
        p = torch.softmax(param, -1) if kind == "logits" else param / param.sum(-1, keepdim=True)
        kind, param = "probs", (1 - unimix) * p + unimix / param.shape[-1]
    # torch asks for probabilities that sum to 1 within 1e-6, which those of half precision do not, and does not hand
    # validate_args=False on to the Categorical within.
    D.Distribution.set_default_validate_args(False)
    try:
        return D.OneHotCategorical(**{kind: param})
    finally:
        D.Distribution.set_default_validate_args(True)


def make(kind: str, batch: tuple[int, ...], dtype: torch.dtype, unimix: float = 0.0, **options: Any) -> Case:
    param = parameter(kind, batch, dtype)
    ours = OneHotCategorical(**{kind: param}, unimix=unimix, **options)
    return Case(ours, by_torch(kind, param, unimix), by_torch(kind, param.double(), unimix))


def assert_accurate(ours: Tensor, low: Tensor, oracle: Tensor) -> None:
    """Beside the rounding of the result, our error is at most four times torch's own in this dtype, of a few numbers,
    and never more than that of a computation in float32. `test_error_over_many_rows` is sharper."""
    assert ours.dtype in (low.dtype, tensors.compute_dtype(low.dtype))
    assert ours.shape == oracle.shape
    eps = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps
    result = torch.finfo(ours.dtype)
    scale = max(1.0, oracle.abs().max().item())
    torch_error = (low.double() - oracle).abs().max().item()
    # In float64 torch is the oracle, and its own error is not known.
    of_torch = torch.inf if ours.dtype == torch.float64 else 4 * torch_error
    allowed = min(of_torch, 12 * eps * scale) + 4 * eps * scale
    error = (ours.double() - oracle).abs()
    assert (error <= allowed + result.eps * oracle.abs() + result.smallest_normal * result.eps).all(), error.max()


def one_hot(index: Tensor, dtype: torch.dtype = torch.int64, columns: int = COLUMNS) -> Tensor:
    return torch.nn.functional.one_hot(index, columns).to(dtype)


# Construction ---------------------------------------------------------------------------------------------------------


def test_positional_order_is_that_of_torchrl():
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    order = [p.name for p in inspect.signature(OneHotCategorical).parameters.values() if p.kind is positional]
    assert order == ["logits", "probs", "grad_method"]


def test_is_a_torch_distribution_of_torch_shapes():
    dist = OneHotCategorical(torch.zeros(2, 3, COLUMNS))
    assert isinstance(dist, D.Distribution)
    assert (dist.batch_shape, dist.event_shape) == ((2, 3), (COLUMNS,))


def test_document_example_prints_the_same_numbers(capsys):
    torch.manual_seed(0)
    logits = torch.randn(4)
    dist = OneHotCategorical(logits=logits)
    print(dist.rsample((3,)))
    assert capsys.readouterr().out == (
        "tensor([[1., 0., 0., 0.],\n        [0., 0., 0., 1.],\n        [1., 0., 0., 0.]])\n"
    )


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "OneHotCategorical(logits: (2, 3))"),
        ({"grad_method": RELAXED}, "RelaxedOneHot"),
        ({"temperature": 0.5, "grad_method": RELAXED}, "temperature: 0.5)"),
        ({"temperature": torch.ones(2), "grad_method": RELAXED}, "temperature: (2,))"),
        ({"temperature": torch.tensor(1), "grad_method": RELAXED}, "temperature: ())"),
        ({"unimix": 0.01}, "unimix: 0.01)"),
        ({"unimix": torch.tensor(0.01)}, "unimix: ())"),
        ({"dtype": torch.bool}, "dtype: torch.bool"),
    ],
    ids=lambda option: next(iter(option), "") if isinstance(option, dict) else "",
)
def test_repr_shows_what_is_not_the_default(options, shown):
    assert shown in repr(OneHotCategorical(torch.zeros(2, 3), **options))


# Parameters, moments and entropy --------------------------------------------------------------------------------------

MOMENTS = {
    "logits": lambda d: d.logits,
    "probs": lambda d: d.probs,
    "mean": lambda d: d.mean,
    "variance": lambda d: d.variance,
    "entropy": lambda d: d.entropy(),
}


@each_unimix
@each_kind
@each_dtype
@each_batch
@pytest.mark.parametrize("member", MOMENTS)
def test_moment(member, batch, dtype, kind, unimix):
    case = make(kind, batch, dtype, unimix)
    assert_accurate(*map(MOMENTS[member], case))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("level", [0, 30, 55, 1000], ids="level {}".format)
@pytest.mark.parametrize("member", [*MOMENTS, "log_prob"])
def test_error_over_many_rows_is_that_of_torch(member, level, dtype):
    """The largest of 4000 errors is no more than twice torch's, wherever the logits lie, in units of the result."""
    x = (torch.randn(4000, COLUMNS) * 4 + level).to(dtype)
    function = MOMENTS.get(member, lambda d: d.log_prob(d.enumerate_support()).t())
    ours, low, oracle = (
        function(d) for d in (OneHotCategorical(x), by_torch("logits", x), by_torch("logits", x.double()))
    )
    error, torch_error = ((found.double() - oracle).abs().max().item() for found in (ours, low))
    assert error <= 2 * torch_error + torch.finfo(dtype).eps


def test_entropy_of_peaked_rows_is_not_negative(backend):
    x = torch.full((200, COLUMNS), -20.0)
    x[:, 2] = 50 + torch.rand(200)
    entropy = OneHotCategorical(x).entropy()
    assert (entropy >= 0).all()
    assert (entropy < 1e-20).all()


@each_kind
@each_dtype
def test_stddev_is_the_root_of_the_variance(dtype, kind):
    case = make(kind, (2, 3), dtype)
    rtol = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(case.ours.stddev**2, case.ours.variance, rtol=2 * rtol, atol=1e-6)
    torch.testing.assert_close(
        case.ours.stddev.double(), case.oracle.stddev, rtol=rtol, atol=1e-2 * torch.finfo(dtype).eps ** 0.5
    )


def test_unimix_1_is_uniform():
    dist = OneHotCategorical(torch.randn(3, COLUMNS), unimix=1.0)
    torch.testing.assert_close(dist.probs, torch.full((3, COLUMNS), 1 / COLUMNS))
    torch.testing.assert_close(dist.entropy(), torch.full((3,), math.log(COLUMNS)))


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight", [torch.tensor(0.1), torch.tensor([[0.1]]), torch.tensor(1)], ids=repr)
def test_unimix_as_a_tensor(weight, dtype, kind):
    given = weight.to(dtype if weight.is_floating_point() else weight.dtype, copy=True)
    number = given.item()
    case = make(kind, (2, 3), dtype, number)
    dist = OneHotCategorical(**{kind: case.ours._param}, unimix=given)
    # It is read where the distribution is made.
    given.zero_()
    for same in (dist, dist.expand((2, 3)), pickle.loads(pickle.dumps(dist))):
        assert_accurate(*(d.entropy() for d in (same, *case[1:])))
        torch.testing.assert_close(same.probs, case.ours.probs)
        assert same.unimix.item() == number


@pytest.mark.parametrize("weight", [-0.1, 1.5, math.nan])
def test_a_bad_unimix_that_is_not_looked_at_makes_every_row_invalid(weight):
    dist = OneHotCategorical(torch.randn(3, COLUMNS), unimix=torch.tensor(weight), validate_args=False)
    assert dist.log_prob_index(torch.tensor(0)).isnan().all()
    assert (dist.sample_index() == -1).all()


def test_unimix_of_a_map_and_of_a_compiled_program():
    x, weights = torch.randn(2, COLUMNS, requires_grad=True), torch.tensor([0.0, 0.3, 0.9, 1.0, 0.1])

    def score(weight: Any, x: Tensor = x, **options: Any) -> Tensor:
        dist = MaskedOneHotCategorical(x, mask=torch.arange(COLUMNS) > 0, unimix=weight, **options)
        return dist.log_prob_index(torch.tensor([2, 1])).sum() + dist.entropy().sum()

    def results(function: Any, weight: Any) -> list[Tensor]:
        out = function(weight)
        return [out.detach(), *torch.autograd.grad(out, x)]

    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    mapped = torch.vmap(score)(weights)
    of_gradients = torch.vmap(torch.func.grad(score, argnums=1), (0, None))(weights, x.detach())
    with torch._dynamo.config.patch(recompile_limit=1):
        for weight, value, grad in zip(weights, mapped, of_gradients, strict=True):
            expected = results(score, weight.item())
            torch.testing.assert_close(results(compiled, weight), expected)
            torch.testing.assert_close([value.detach(), grad], expected)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"unimix: expected a number in \[0, 1\]"):
        torch.compile(score, fullgraph=True, backend="aot_eager")(torch.tensor(1.5), validate_args=True)


def test_unimix_gives_every_category_a_share():
    dist = OneHotCategorical(torch.tensor([0.0, -math.inf, -1e4]), unimix=0.3)
    torch.testing.assert_close(dist.probs, torch.tensor([0.8, 0.1, 0.1]))
    torch.testing.assert_close(dist.log_prob_index(torch.tensor([1, 2])), torch.tensor([0.1, 0.1]).log())


@pytest.mark.parametrize("level", [1e4, -1e4])
def test_results_do_not_depend_on_the_level_of_the_logits(level):
    x = torch.tensor([0.0, 1.0, 3.0, 3.0]) + level
    dist, oracle = OneHotCategorical(x), D.OneHotCategorical(logits=x.double())
    for member in MOMENTS.values():
        torch.testing.assert_close(member(dist).double(), member(oracle), rtol=1e-6, atol=1e-6)
    # log_prob is a logit minus the logsumexp, as in torch: it cannot be finer than a unit in the last place of both.
    torch.testing.assert_close(dist.log_prob_index(torch.tensor(1)).double(), oracle.logits[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("level", [3e38, -3e38])
def test_equal_logits_at_the_ends_of_their_range(level):
    dist = OneHotCategorical(torch.full((4,), level))
    torch.testing.assert_close(dist.probs, torch.full((4,), 0.25))
    torch.testing.assert_close(dist.entropy(), torch.tensor(math.log(4)))
    assert dist.sample().sum() == 1


@pytest.mark.parametrize("level", [3e38, -3e38])
def test_maxima_whose_sum_overflows_are_still_distributions(level):
    """The check of all rows at once, by the sum of their maxima, has to look again."""
    dist = OneHotCategorical(torch.full((4, 3), level), validate_args=True)
    torch.testing.assert_close(dist.entropy(), torch.full((4,), math.log(3)))


def test_spread_of_the_logits_up_to_the_largest_number_of_their_dtype():
    dist = OneHotCategorical(torch.tensor([3e38, -3e38, 0.0]))
    assert torch.equal(dist.probs, torch.tensor([1.0, 0.0, 0.0]))
    assert dist.entropy() == 0
    assert torch.equal(dist.sample(), torch.tensor([1, 0, 0]))


@each_kind
def test_param_shape_num_samples_num_params(kind):
    dist = make(kind, (2, 3), torch.float32).ours
    assert dist.param_shape == (2, 3, COLUMNS)
    assert dist.num_samples == COLUMNS
    assert dist.num_params == 1


def test_support_and_arg_constraints():
    dist = OneHotCategorical(torch.zeros(COLUMNS))
    assert dist.support is constraints.one_hot
    assert dist.support.check(dist.sample((5,))).all()
    assert set(dist.arg_constraints) == {"logits", "probs"}
    for name, constraint in dist.arg_constraints.items():
        assert constraint.check(getattr(dist, name)).all()


# Samples --------------------------------------------------------------------------------------------------------------

DRAWS = {
    "sample": lambda d, *a, **k: d.sample(*a, **k),
    "rsample": lambda d, *a, **k: d.rsample(*a, **k),
    "sample_index": lambda d, *a, **k: one_hot(d.sample_index(*a, **k), columns=d.num_samples),
    "sample_and_log_prob": lambda d, *a, **k: d.sample_and_log_prob(*a, **k)[0],
    "rsample_and_log_prob": lambda d, *a, **k: d.rsample_and_log_prob(*a, **k)[0],
}
each_draw = pytest.mark.parametrize("draw", DRAWS)


@pytest.mark.parametrize(
    ("given", "lead"),
    [((), ()), (None, ()), (4, (4,)), ([4, 2], (4, 2)), ((2, 1), (2, 1)), (torch.Size([3]), (3,)), (0, (0,))],
    ids=str,
)
@each_batch
@each_draw
def test_sample_shape(draw, batch, given, lead):
    dist = make("logits", batch, torch.float32).ours
    drawn = DRAWS[draw](dist, given)
    assert drawn.shape == (*lead, *batch, COLUMNS)
    assert ((drawn == 0) | (drawn == 1)).all()
    assert (drawn.sum(-1) == 1).all()


@each_draw
def test_sample_shape_may_be_left_out(draw):
    assert DRAWS[draw](OneHotCategorical(torch.zeros(3, COLUMNS))).shape == (3, COLUMNS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype_option", VALUE_DTYPES, ids=str)
def test_dtype_of_sample_mode_and_support(dtype_option, dtype):
    dist = OneHotCategorical(torch.randn(3, COLUMNS).to(dtype), dtype=dtype_option)
    drawn = dist.sample((2,))
    for one_hots in (drawn, dist.mode, dist.deterministic_sample, dist.enumerate_support()):
        assert one_hots.dtype == dtype_option
        assert (one_hots.double().sum(-1) == 1).all()
    assert dist.rsample().dtype == dtype
    assert dist.sample_index().dtype == torch.int64
    assert dist.sample_and_log_prob()[0].dtype == dtype_option


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", [None, PASS, RELAXED], ids=str)
@pytest.mark.parametrize("cls", [OneHotCategorical, MaskedOneHotCategorical])
def test_default_dtype_is_that_of_rsample_where_a_grad_method_was_given(cls, method, dtype):
    mask = {} if cls is OneHotCategorical else {"mask": torch.ones(3, dtype=torch.bool)}
    made = cls(torch.zeros(2, 3, dtype=dtype), grad_method=method, **mask)
    for dist in (made, made.expand((4, 2)), pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        for one_hots in (dist.sample(), dist.mode, dist.deterministic_sample, dist.enumerate_support()):
            assert one_hots.dtype == (dtype if method else torch.int64)
        assert dist.rsample().dtype == dtype
        assert "dtype" not in repr(dist)
    other = cls(torch.zeros(2, 3, dtype=dtype), grad_method=method, dtype=torch.bool, **mask)
    assert "dtype: torch.bool" in repr(other)
    assert other.expand((4, 2)).sample().dtype == torch.bool


@pytest.mark.parametrize("dtype", PARAMETER_DTYPES, ids=str)
@pytest.mark.parametrize("cls", [OneHotCategorical, MaskedOneHotCategorical])
def test_densities_are_float32_at_least_and_moments_of_the_parameters(cls, dtype, backend):
    mask = {} if cls is OneHotCategorical else {"mask": torch.tensor([True, True, False]), "neg_inf": -1e4}
    x = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    dist = cls(x, grad_method=PASS, **mask)
    drawn = dist.sample()
    densities = [
        *(dist.log_prob(value) for value in (drawn, drawn.clone(), drawn.expand(2, 2, 3))),
        dist.log_prob_index(torch.zeros(2, dtype=torch.int64)),
        dist.sample_and_log_prob()[1],
        dist.rsample_and_log_prob()[1],
        dist.entropy(),
        D.kl_divergence(dist, dist),
    ]
    for density in densities:
        assert density.dtype == tensors.compute_dtype(dtype)
    for moment in (dist.rsample(), dist.probs, dist.logits, dist.mean, dist.variance, dist.stddev):
        assert moment.dtype == dtype
    sum(density.sum() for density in densities).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@pytest.mark.interpreted(method=[RELAXED])
@each_method
@each_draw
def test_every_way_to_draw_gives_the_same_draw(draw, method, backend):
    """But for small batches on a CPU, whose RelaxedOneHot draw is the arg-max of a relaxed sample."""
    dist = OneHotCategorical(torch.randn(3, 20), grad_method=method)
    apart = backend == "eager" and method is RELAXED and draw.startswith("rsample")
    torch.manual_seed(1)
    expected = dist.rsample((2,)) if apart else dist.sample((2,))
    torch.manual_seed(1)
    assert torch.equal(DRAWS[draw](dist, (2,)).long(), expected.long())


@each_method
def test_sample_has_no_gradient_and_rsample_has_one(method):
    x = torch.randn(3, COLUMNS, requires_grad=True)
    dist = OneHotCategorical(x, grad_method=method, dtype=torch.float32)
    assert not dist.sample().requires_grad
    assert not dist.sample_and_log_prob()[0].requires_grad
    assert dist.rsample().requires_grad
    assert dist.rsample_and_log_prob()[0].requires_grad
    assert dist.sample_and_log_prob()[1].requires_grad


@pytest.mark.parametrize("method", [None, *ReparamGradientStrategy], ids=str)
def test_has_rsample_where_a_grad_method_was_given(method):
    dist = OneHotCategorical(torch.zeros(3), grad_method=method)
    assert dist.has_rsample is (method is not None)
    # The class has a bool, as each of torch's classes, not a property, which is always true.
    assert OneHotCategorical.has_rsample is MaskedOneHotCategorical.has_rsample is False
    # A value that was set stays.
    dist.has_rsample = method is None
    assert dist.expand((2,)).has_rsample is copy.deepcopy(dist).has_rsample is (method is None)
    assert OneHotCategorical(torch.zeros(3)).has_enumerate_support


# A right sampler fails each of these once in a million seeds; the seed is fixed. Sharper tests of the sampler are in
# tests/statistics.
@pytest.mark.parametrize("columns", [5, 40])
@each_unimix
@each_kind
def test_draws_follow_the_probabilities(kind, unimix, columns):
    n = 40_000
    param = torch.randn(columns) if kind == "logits" else torch.rand(columns) + 0.1
    index = OneHotCategorical(**{kind: param}, unimix=unimix).sample_index((n,))
    expected = by_torch(kind, param.double(), unimix).probs * n
    assert stats.chisquare(index.bincount(minlength=columns), expected).pvalue > 1e-6


def test_unimix_draws_what_the_logits_alone_never_would():
    """Fails a right sampler once in a million seeds: 40,000 draws at probability 0.02 are some 800."""
    drawn = OneHotCategorical(torch.tensor([0.0, -math.inf]), unimix=0.04).sample_index((40_000,))
    assert stats.binomtest(int(drawn.sum()), 40_000, 0.02).pvalue > 1e-6


@pytest.mark.parametrize("draw", ["sample_and_log_prob", "rsample_and_log_prob"])
@each_unimix
@each_dtype
@each_batch
def test_sample_and_log_prob(draw, batch, dtype, unimix):
    case = make("logits", batch, dtype, unimix)
    drawn, log_prob = getattr(case.ours, draw)((4,))
    assert drawn.dtype == (torch.int64 if draw == "sample_and_log_prob" else dtype)
    assert_accurate(log_prob, case.low.log_prob(drawn), case.oracle.log_prob(drawn))


@each_dtype
@each_batch
def test_mode_and_deterministic_sample(batch, dtype):
    case = make("logits", batch, dtype)
    assert torch.equal(case.ours.mode, case.oracle.mode.long())
    assert torch.equal(case.ours.deterministic_sample, case.ours.mode)


def test_mode_of_probs_and_unimix():
    assert OneHotCategorical(probs=torch.tensor([0.2, 0.5, 0.3]), unimix=0.9).mode.tolist() == [0, 1, 0]


@pytest.mark.parametrize("expand", [True, False])
@each_batch
def test_enumerate_support(batch, expand):
    case = make("logits", batch, torch.float32)
    values = case.ours.enumerate_support(expand=expand)
    assert torch.equal(values, case.oracle.enumerate_support(expand=expand).long())
    assert case.ours.log_prob(values).shape == (COLUMNS, *batch)


# log_prob -------------------------------------------------------------------------------------------------------------

# batch -> leading shapes of a value or of an index: the batch's own, with draws before it, fewer, and broadcast.
LEADS = {
    (): [(), (5,), (4, 5)],
    (1,): [(1,), (), (4,), (4, 1)],
    (3,): [(3,), (), (1,), (2, 3), (2, 1), (4, 2, 3)],
    (2, 3): [(2, 3), (), (3,), (1,), (1, 3), (2, 1), (5, 2, 3), (5, 1, 1), (5, 1, 3)],
}
each_batch_of_leads = pytest.mark.parametrize("batch", LEADS, ids=str)


@each_validate
@each_kind
@each_dtype
@each_batch_of_leads
def test_log_prob(batch, dtype, kind, validate):
    for lead in LEADS[batch]:
        case = make(kind, batch, dtype, validate_args=validate)
        value = one_hot(torch.randint(COLUMNS, lead), torch.float64)
        low, oracle = case.low.log_prob(value), case.oracle.log_prob(value)
        assert_accurate(case.ours.log_prob(value), low, oracle)
        # Once more, now that the logsumexp is known.
        assert_accurate(case.ours.log_prob(value), low, oracle)


@each_validate
@pytest.mark.parametrize("value_dtype", VALUE_DTYPES, ids=str)
def test_log_prob_of_values_of_any_dtype(value_dtype, validate):
    case = make("logits", (2, 3), torch.float32, validate_args=validate)
    index = torch.randint(COLUMNS, (4, 2, 3))
    oracle = case.oracle.log_prob(one_hot(index).double())
    assert_accurate(case.ours.log_prob(one_hot(index, value_dtype)), case.low.log_prob(one_hot(index)), oracle)


@each_validate
@each_unimix
@each_dtype
@each_batch_of_leads
def test_log_prob_index(batch, dtype, unimix, validate):
    for lead in LEADS[batch]:
        case = make("logits", batch, dtype, unimix, validate_args=validate)
        index = torch.randint(COLUMNS, lead)
        value = one_hot(index).double()
        assert_accurate(case.ours.log_prob_index(index), case.low.log_prob(value), case.oracle.log_prob(value))


@pytest.mark.parametrize("index_dtype", INTEGER_DTYPES, ids=str)
def test_log_prob_index_of_any_integer_dtype(index_dtype):
    dist = make("logits", (3,), torch.float32).ours
    index = torch.tensor([0, 3, COLUMNS - 1])
    assert torch.equal(dist.log_prob_index(index.to(index_dtype)), dist.log_prob(one_hot(index)))


@each_validate
@pytest.mark.parametrize(
    "value", [lambda v: v.expand(4, 2, 3, COLUMNS), lambda v: v.mT.contiguous().mT], ids=["expanded", "transposed"]
)
def test_log_prob_of_strided_values(value, validate):
    case = make("logits", (2, 3), torch.float32, validate_args=validate)
    plain = one_hot(torch.randint(COLUMNS, (2, 3)), torch.float64)
    assert_accurate(*(d.log_prob(value(plain)) for d in case))


# expand ---------------------------------------------------------------------------------------------------------------

OPTIONS = {
    "grad_method": RELAXED,
    "temperature": 0.5,
    "unimix": 0.1,
    "dtype": torch.bool,
}


@pytest.mark.parametrize("validate", [True, False])
@each_kind
def test_expand_keeps_every_option(kind, validate):
    dist = OneHotCategorical(**{kind: torch.rand(3, COLUMNS)}, **OPTIONS, validate_args=validate)
    expanded = dist.expand((2, 3))
    assert {name: getattr(expanded, name) for name in OPTIONS} == OPTIONS
    assert expanded.has_rsample
    assert expanded.sample().dtype == torch.bool
    assert expanded._validate_args is validate
    assert type(expanded) is OneHotCategorical


@each_kind
@each_unimix
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_expand_gives_the_same_distribution(kind, unimix, used):
    case = make(kind, (3,), torch.float32, unimix)
    if used:  # so that there are statistics to expand
        case.ours.entropy()
        case.ours.sample()
    expanded = case.ours.expand(torch.Size([4, 2, 3]))
    assert expanded.batch_shape == (4, 2, 3)
    assert expanded.param_shape == (4, 2, 3, COLUMNS)
    assert expanded.sample((5,)).shape == (5, 4, 2, 3, COLUMNS)
    assert torch.equal(expanded.mode, case.ours.mode.expand(4, 2, 3, COLUMNS))
    value = one_hot(torch.randint(COLUMNS, (4, 2, 3))).double()
    assert_accurate(expanded.log_prob(value), case.low.log_prob(value), case.oracle.log_prob(value))
    for member in MOMENTS.values():
        wide = case.low.expand((4, 2, 3)), case.oracle.expand((4, 2, 3))
        assert_accurate(member(expanded), *map(member, wide))


def test_expand_to_the_right_keeps_each_row_its_own():
    """(3, 1) to (3, 4): what is remembered of a row is repeated for the rows made of it, not scattered over others."""
    x = torch.randn(3, 1, COLUMNS)
    dist = OneHotCategorical(x)
    dist.log_prob(dist.sample())
    expanded, wide = dist.expand((3, 4)), x.expand(3, 4, COLUMNS)
    index = torch.randint(COLUMNS, (3, 4))
    expected = by_torch("logits", wide.double()).log_prob(one_hot(index).double())
    torch.testing.assert_close(expanded.log_prob_index(index).double(), expected)
    torch.testing.assert_close(expanded.log_prob(one_hot(index)).double(), expected)
    torch.testing.assert_close(expanded.entropy(), dist.entropy().expand(3, 4))


def test_expand_keeps_bad_rows_bad():
    """Unvalidated rows without a distribution: no draw, no mode, as before."""
    dist = OneHotCategorical(torch.tensor([[[0.0, 1.0]], [[math.nan, 0.0]]]), validate_args=False)
    expanded = dist.expand((2, 3))
    bad = torch.tensor([[False] * 3, [True] * 3])
    assert torch.equal(expanded.sample_index() == -1, bad)
    assert torch.equal(expanded.mode.sum(-1) == 0, bad)
    assert torch.equal(expanded.entropy().isnan(), bad)


def test_expand_copies_no_memory():
    x = torch.randn(3, COLUMNS)
    assert OneHotCategorical(x).expand((100, 3))._param.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("batch", [(3,), (3, 1)], ids=str)
def test_expand_of_a_temperature_per_row(batch):
    """The gradient is that of the distribution of the expanded logits, from the same noise."""
    temperature = torch.tensor([0.5, 2.0, 1.0]).view(batch)
    large = (2, 3) if batch == (3,) else (3, 4)
    x, found = torch.randn(*batch, COLUMNS, requires_grad=True), []
    for dist in (
        OneHotCategorical(x, grad_method=RELAXED, temperature=temperature).expand(large),
        OneHotCategorical(x.expand(*large, COLUMNS), grad_method=RELAXED, temperature=temperature.expand(large)),
    ):
        torch.manual_seed(1)
        found.append(torch.autograd.grad((dist.rsample() * torch.arange(COLUMNS)).sum(), x)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found)


def test_expand_of_a_subclass_needs_its_own():
    class Narrow(OneHotCategorical):
        def __init__(self) -> None:
            super().__init__(torch.zeros(3))

    with pytest.raises(NotImplementedError, match="Narrow"):
        Narrow().expand((2,))


# Probability 0 -------------------------------------------------------------------------------------------------------

OFF = torch.tensor([False, True, False, True, False])


def with_zeros(kind: str, neg_inf: float | None, x: Tensor, **options: Any) -> OneHotCategorical:
    """A distribution of softmax(x) without the categories that are `OFF`."""
    if kind == "mask":
        return MaskedOneHotCategorical(x, None, ~OFF, None, neg_inf, **options)
    if kind == "probs":
        return OneHotCategorical(probs=torch.where(OFF, 0.0, x.exp()), neg_inf=neg_inf, **options)
    return OneHotCategorical(x.masked_fill(OFF, -math.inf), neg_inf=neg_inf, **options)


each_kind_of_zero = pytest.mark.parametrize("kind", ["logits", "probs", "mask"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("neg_inf", [None, -50.0, -math.inf, -1e300, -7])
@each_kind_of_zero
def test_neg_inf_stands_where_a_probability_is_0(kind, neg_inf, dtype):
    x = torch.randn(3, 5).to(dtype).requires_grad_()
    dist = with_zeros(kind, neg_inf, x)
    exact = x.double().masked_fill(OFF, -math.inf).log_softmax(-1)

    def expected(value: float, dtype: torch.dtype) -> Tensor:
        return exact.to(dtype).masked_fill(OFF, max(value, torch.finfo(dtype).min) if value > -math.inf else value)

    wide = torch.promote_types(dtype, torch.float32)
    error = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    logits = dist.logits
    torch.testing.assert_close(logits, expected(-1e4 if neg_inf is None else neg_inf, dtype), **error)
    assert (logits[:, OFF] == logits[0, 1]).all()
    log_probs = expected(-math.inf if neg_inf is None else neg_inf, wide)
    index, eye = torch.arange(5).unsqueeze(-1), torch.eye(5).unsqueeze(1)
    for found in (
        dist.log_prob(eye),
        dist.log_prob_index(index),
        dist.log_prob_and_entropy(eye)[0],
        dist.log_prob_index_and_entropy(index)[0],
    ):
        torch.testing.assert_close(found.t(), log_probs, **error)
    if neg_inf != -math.inf:
        (grad,) = torch.autograd.grad(logits[:, OFF].sum(), x)
        assert grad.count_nonzero() == 0


@each_kind_of_zero
def test_neg_inf_changes_nothing_else(kind):
    x = torch.randn(2, 3, 5)
    plain, filled = (with_zeros(kind, neg_inf, x[0]) for neg_inf in (None, -2.0))
    other = OneHotCategorical(x[1])
    for member in (
        lambda d: d.entropy(),
        lambda d: d.probs,
        lambda d: d.variance,
        lambda d: d.mode,
        lambda d: d.sample((50,), generator=torch.Generator().manual_seed(3)),
        lambda d: d.rsample((50,), generator=torch.Generator().manual_seed(3)),
        lambda d: D.kl_divergence(d, other),
        lambda d: D.kl_divergence(other, d),
    ):
        assert torch.equal(member(plain), member(filled))
    assert repr(plain) == repr(filled)
    for copy_of in (filled.expand((2, 3)), copy.deepcopy(filled), pickle.loads(pickle.dumps(filled))):
        assert copy_of.neg_inf == -2.0
        assert (copy_of.logits[..., OFF] == -2).all()
    invalid = with_zeros(kind, -2.0, torch.full((1, 5), math.nan), validate_args=False)
    assert invalid.logits.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@each_kind_of_zero
def test_logits_make_the_same_law_and_finite_sums(kind, dtype):
    """sum p (alpha log p - q), as a discrete actor-critic has it."""
    x = torch.randn(3, 5).to(dtype).requires_grad_()
    q = torch.randn(3, 5)
    dist = with_zeros(kind, None, x)
    again = OneHotCategorical(logits=dist.logits)
    assert (again.probs[:, OFF] == 0).all()
    torch.testing.assert_close(again.probs, dist.probs)
    assert not again.sample((200,))[..., OFF].any()
    found = (dist.probs * (0.2 * dist.logits - q)).sum()
    (grad,) = torch.autograd.grad(found, x)
    double = x.detach().double().requires_grad_()
    log_p = double[:, ~OFF].log_softmax(-1)
    exact = (log_p.exp() * (0.2 * log_p - q[:, ~OFF])).sum()
    error = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=error, atol=error)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(exact, double)[0], rtol=error, atol=error)


# Kullback-Leibler divergence ------------------------------------------------------------------------------------------

# Who is p, who is q.
PAIRS = {"ours, ours": (0, 0), "ours, torch": (0, 1), "torch, ours": (1, 0)}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@each_pair
@each_kind
@each_unimix
@each_dtype
def test_kl_divergence(pair, kind, unimix, dtype):
    for batch_p, batch_q in (((), ()), ((2, 3), (2, 3)), ((2, 3), (3,)), ((), (3,))):
        p, q = make(kind, batch_p, dtype, unimix), make(kind, batch_q, dtype, unimix)
        found = D.kl_divergence(p[pair[0]], q[pair[1]])
        low, oracle = D.kl_divergence(p.low, q.low), D.kl_divergence(p.oracle, q.oracle)
        if pair == (0, 0):
            assert_accurate(found, low, oracle)
            continue
        # A torch distribution in half precision hands over probabilities with torch's error.
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        error = 2 * (low.double() - oracle).abs().max() + 4 * torch.finfo(dtype).eps * (1 + oracle)
        assert ((found.double() - oracle).abs() <= error).all()


@each_pair
def test_kl_divergence_of_equals_is_0(pair):
    x = torch.randn(3, COLUMNS)
    both = OneHotCategorical(x), D.OneHotCategorical(logits=x)
    torch.testing.assert_close(D.kl_divergence(both[pair[0]], both[pair[1]]), torch.zeros(3))


@each_pair
@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ([0.0, 0.5, 0.5], [0.0, 0.5, 0.5], 0.0),
        ([0.0, 0.5, 0.5], [0.5, 0.25, 0.25], math.log(2)),
        ([0.5, 0.5, 0.0], [0.0, 0.5, 0.5], math.inf),
        ([0.5, 0.25, 0.25], [0.0, 0.5, 0.5], math.inf),
    ],
    ids=["0 in both", "0 in p", "0 in each", "0 in q"],
)
@each_kind
def test_kl_divergence_at_probability_0(pair, kind, p, q, expected):
    def both(weights: list[float]) -> tuple[D.Distribution, D.Distribution]:
        w = torch.tensor(weights)
        param = {kind: w.log() if kind == "logits" else w}
        return OneHotCategorical(**param), D.OneHotCategorical(**param)

    found = D.kl_divergence(both(p)[pair[0]], both(q)[pair[1]])
    torch.testing.assert_close(found, torch.tensor(expected))


@each_pair
def test_kl_gradient_where_both_are_never_drawn(pair):
    """The same as without that category, whatever torch makes of it."""
    leaves = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    never = torch.full((3, 1), -math.inf, dtype=torch.float64)

    p, q = (
        (OneHotCategorical, D.OneHotCategorical)[of_torch](logits=torch.cat([leaf, never], -1))
        for of_torch, leaf in zip(pair, leaves, strict=True)
    )
    found = torch.autograd.grad(D.kl_divergence(p, q).sum(), leaves)
    p, q = (D.OneHotCategorical(logits=leaf) for leaf in leaves)
    torch.testing.assert_close(found, torch.autograd.grad(D.kl_divergence(p, q).sum(), leaves))


@each_kind
def test_kl_gradient_at_probability_0_is_0(kind):
    w = torch.tensor([0.0, 0.3, 0.7])
    leaves = [(v.log() if kind == "logits" else v).requires_grad_() for v in (w, w.flip(-1).roll(1))]
    p, q = (OneHotCategorical(**{kind: leaf}) for leaf in leaves)
    D.kl_divergence(p, q).backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad[0] == 0
        assert leaf.grad.isfinite().all()


def exact_kl(x: Tensor, y: Tensor) -> Tensor:
    """KL(softmax(x) || softmax(y)) in float64, as a sum of terms that are not negative."""
    log_p, d = x.double().log_softmax(-1), y.double().log_softmax(-1) - x.double().log_softmax(-1)
    return (log_p.exp() * (d.expm1() - d)).sum(-1)


def laws_apart(columns: int, divergence: float, rows: int) -> tuple[Tensor, Tensor]:
    """Logits of `rows` pairs in float32, of that divergence."""
    x, step = torch.randn(2, rows, columns)
    size = torch.full((rows, 1), (2 * divergence) ** 0.5)
    for _ in range(4):
        size *= (divergence / exact_kl(x, x + size.double() * step).unsqueeze(-1)).sqrt()
    return x, x + size * step


@pytest.mark.parametrize("path", ["auto", "eager"])
@pytest.mark.parametrize(("divergence", "error"), [(5e-5, 2e-5), (4e-7, 2e-4), (5e-9, 2e-3)])
@pytest.mark.parametrize("columns", [4, 32, 5000])
def test_kl_divergence_of_near_laws(columns, divergence, error, path):
    """As a sum of p (log p - log q), float32 rounding is 1 % of 5e-5, 84 % of 4e-7, and half of the rows of 5e-9 are
    negative."""
    x, y = laws_apart(columns, divergence, 256 if columns < 1000 else 32)
    exact = exact_kl(x, y)
    with use_backend(path):
        p, q = [(OneHotCategorical(logits=v), D.OneHotCategorical(logits=v)) for v in (x, y)]
        for pair in PAIRS.values():
            found = D.kl_divergence(p[pair[0]], q[pair[1]])
            assert found.dtype == torch.float32
            relative = (found.double() - exact) / exact
            # torch's class rounds its logits once before they are taken.
            assert relative.abs().max() < (1.2 if pair == (0, 0) else 2) * error
            assert relative.mean().abs() < error / 5
            assert found.min() > -1e-9


@each_pair
@pytest.mark.parametrize("kind", ["near", "apart", "a gap of 95", "a gap of 120"])
def test_kl_gradients_are_those_of_the_plain_formula(kind, pair):
    """In float32 against sum p (log p - log q) in float64. Beyond 88 nats exp(d) overflows, beyond 104 p is 0 although
    its logarithm is finite; either times 0 would be NaN in a branch that is not taken."""
    x, y = {"near": laws_apart(32, 5e-5, 3), "apart": torch.randn(2, 3, 32)}.get(kind, torch.randn(2, 3, 5))
    if kind.startswith("a gap"):
        gap = float(kind.split()[-1])
        x[0, 1] -= gap
        y[1, 2] -= gap
        x[2, 1], y[2, 1] = -gap, -gap - 0.5
    leaves = [v.clone().requires_grad_() for v in (x, y)]
    p, q = [(OneHotCategorical(logits=v), D.OneHotCategorical(logits=v)) for v in leaves]
    found = D.kl_divergence(p[pair[0]], q[pair[1]])
    doubles = [v.double().requires_grad_() for v in (x, y)]
    log_p, log_q = (v.log_softmax(-1) for v in doubles)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=1e-8)
    for one, other in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(exact.sum(), doubles), strict=True
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


@each_pair
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kl_divergence_where_the_supports_differ(pair, dtype):
    """Mass that q alone has is part of the sum of q - p. Mass that p alone has makes the divergence inf, with the
    gradient of the other categories."""
    x, y = torch.randn(2, 4, 6).to(dtype)
    x[:, 1], x[0, 4], y[0, 4], x[1, 4], y[2, 3] = (-math.inf,) * 5
    leaves, doubles = ([v.clone().to(t).requires_grad_() for v in (x, y)] for t in (dtype, torch.float64))
    # torch's own constraint on logits is that they are finite.
    D.Distribution.set_default_validate_args(False)
    p, q = [(OneHotCategorical(logits=v), D.OneHotCategorical(logits=v)) for v in leaves]
    found = D.kl_divergence(p[pair[0]], q[pair[1]])
    log_p, log_q = (v.log_softmax(-1) for v in doubles)
    of_both = (x.isfinite() & y.isfinite()).double()
    oracle = (of_both * log_p.exp() * (log_p.clamp_min(-1e3) - log_q.clamp_min(-1e3))).sum(-1)
    # torch normalises half precision in half precision.
    error = 4 * torch.finfo(dtype).eps if pair != (0, 0) else 1e-5
    expected = torch.where(torch.arange(4) == 2, math.inf, oracle)
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)
    grads, expected = torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(oracle.sum(), doubles)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=8 * torch.finfo(dtype).eps)


def test_kl_divergence_of_an_invalid_row_is_nan():
    x, y = torch.zeros(2, 3, 4)
    x[0, 1], y[1, 1], x[2] = math.nan, math.inf, -math.inf
    p, q = OneHotCategorical(x, validate_args=False), OneHotCategorical(y, validate_args=False)
    for found in (D.kl_divergence(p, q), D.kl_divergence(q, p)):
        assert found.isnan().all()


def test_kl_divergence_from_small_probabilities_of_torch():
    """torch's class clamps the logarithm of a probability at 1.2e-7. Its `probs` say what it was given."""
    w = torch.tensor([1.0, 1e-9, 1e-12])
    exact = exact_kl(torch.zeros(3), w.log())
    torch.testing.assert_close(
        D.kl_divergence(OneHotCategorical(torch.zeros(3)), D.OneHotCategorical(w)).double(), exact
    )


# Backends -------------------------------------------------------------------------------------------------------------


def test_members_on_each_backend(backend):
    """A walk through the class on both backends; the kernels' own, finer tests are in tests/test_kernels.py."""
    x = torch.randn(3, 20)
    dist, oracle = OneHotCategorical(x, dtype=torch.bool), D.OneHotCategorical(logits=x.double())
    drawn, log_prob = dist.sample_and_log_prob((2,))
    assert drawn.dtype == torch.bool
    assert (drawn.sum(-1) == 1).all()
    for found in (log_prob, dist.log_prob(drawn), dist.log_prob_index(drawn.long().argmax(-1))):
        torch.testing.assert_close(found.double(), oracle.log_prob(drawn.double()), rtol=1e-5, atol=1e-5)
    for member in MOMENTS.values():
        torch.testing.assert_close(member(dist).double(), member(oracle), rtol=1e-5, atol=1e-6)
    assert torch.equal(dist.mode, oracle.mode.bool())


def test_use_backend_nests_and_restores():
    with use_backend("eager"):
        with pytest.raises(KeyError), use_backend("triton"):
            raise KeyError
        assert not compute.uses_kernels(torch.device("cuda"))
    assert compute.uses_kernels(torch.device("cuda"))
    assert not compute.uses_kernels(torch.device("cpu"))


def test_use_backend_says_which_names_there_are():
    expected = "name: expected one of 'auto', 'triton', 'eager', found 'cuda'"
    with pytest.raises(ValueError, match=f"^{expected}$"), use_backend("cuda"):
        pass


def test_use_backend_triton_says_why_it_cannot_run(monkeypatch):
    dist = OneHotCategorical(torch.zeros(3))
    with use_backend("triton"):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(RuntimeError, match="do not run on cpu tensors; TRITON_INTERPRET=1"):
            dist.entropy()
        monkeypatch.setattr(compute, "_TRITON_IS_THERE", False)
        with pytest.raises(RuntimeError, match="Triton is not installed"):
            dist.entropy()
