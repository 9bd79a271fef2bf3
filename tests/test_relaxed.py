"""RelaxedOneHotCategorical and ExpRelaxedOneHotCategorical, against torch.distributions and their definition."""

import copy
import inspect
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as D
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraints
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from onehot_triton import ExpRelaxedOneHotCategorical, RelaxedOneHotCategorical, use_backend

COLUMNS = 5

pytestmark = pytest.mark.usefixtures("one_thread")

INF = math.inf
each_batch = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
each_kind = pytest.mark.parametrize("kind", ["logits", "probs"])
each_temperature = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0], ids="temperature {}".format)


def parameter(kind: str, batch: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(*batch, COLUMNS, dtype=torch.float64)
    return (x if kind == "logits" else torch.softmax(x, -1)).to(dtype)


def by_torch(temperature: float | Tensor, **param: Tensor) -> D.RelaxedOneHotCategorical:
    """Of the same numbers, in float64."""
    temperature = torch.as_tensor(temperature, dtype=torch.float64)
    ((kind, values),) = param.items()
    values = values.detach().double()
    if kind == "probs":
        values = values / values.sum(-1, keepdim=True)
    return D.RelaxedOneHotCategorical(temperature, **{kind: values})


def test_signature_is_torchs():
    ours, theirs = (
        list(inspect.signature(c).parameters) for c in (RelaxedOneHotCategorical, D.RelaxedOneHotCategorical)
    )
    assert ours == [*theirs, "mask"]
    theirs = list(inspect.signature(ExpRelaxedCategorical).parameters)
    assert list(inspect.signature(ExpRelaxedOneHotCategorical).parameters) == [*theirs, "mask"]


def test_members():
    dist = RelaxedOneHotCategorical(0.5, logits=torch.zeros(2, 3, COLUMNS))
    assert isinstance(dist, D.Distribution)
    assert (dist.batch_shape, dist.event_shape, dist.param_shape) == ((2, 3), (COLUMNS,), (2, 3, COLUMNS))
    assert dist.has_rsample
    assert dist.support is constraints.simplex
    assert set(dist.arg_constraints) == {"logits", "probs"}
    assert "0.5" in repr(dist)
    assert "(2, 3, 5)" in repr(dist)


@each_kind
@each_dtype
def test_logits_and_probs(dtype, kind):
    param = parameter(kind, (2, 3), dtype)
    ours, oracle = RelaxedOneHotCategorical(0.5, **{kind: param}), by_torch(0.5, **{kind: param})
    for member in ("logits", "probs"):
        found = getattr(ours, member)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), getattr(oracle, member), rtol=torch.finfo(dtype).eps, atol=1e-6)


# The density ----------------------------------------------------------------------------------------------------------


@each_temperature
@each_kind
@each_dtype
@each_batch
def test_log_prob(batch, dtype, kind, temperature):
    param = parameter(kind, batch, dtype)
    ours, oracle = RelaxedOneHotCategorical(temperature, **{kind: param}), by_torch(temperature, **{kind: param})
    for lead in ((), (4,)):
        value = oracle.rsample(lead).clamp(min=1e-6)
        value = (value / value.sum(-1, keepdim=True)).to(torch.float32 if dtype != torch.float64 else dtype)
        found, expected = ours.log_prob(value), oracle.log_prob(value.double())
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=max(tolerance, 1e-13) * 10)


@pytest.mark.parametrize("lead", [(), (3,), (1,), (2, 1), (4, 2, 3), (4, 1, 1)], ids=str)
def test_log_prob_broadcasts(lead):
    param = parameter("logits", (2, 3))
    value = torch.softmax(torch.randn(*lead, COLUMNS, dtype=torch.float64), -1)
    ours, oracle = RelaxedOneHotCategorical(0.7, logits=param), by_torch(0.7, logits=param)
    torch.testing.assert_close(ours.log_prob(value), oracle.log_prob(value))


def test_density_integrates_to_1():
    """Over the one-dimensional simplex of two categories, by the midpoint rule in the logit of y."""
    z = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    y = torch.stack([torch.sigmoid(z), torch.sigmoid(-z)], -1)
    dist = RelaxedOneHotCategorical(0.7, logits=torch.tensor([1.0, -0.5], dtype=torch.float64), validate_args=False)
    # dy = y (1 - y) dz
    total = (dist.log_prob(y).exp() * y.prod(-1)).sum() * (z[1] - z[0])
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


@each_kind
def test_log_prob_gradcheck_and_gradgradcheck(kind):
    """In the parameters, the temperature and the value."""
    value = torch.softmax(torch.randn(3, 2, COLUMNS, dtype=torch.float64), -1).requires_grad_()
    param = parameter(kind, (2,)).requires_grad_()
    temperature = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)

    def function(param: Tensor, temperature: Tensor, value: Tensor) -> Tensor:
        return RelaxedOneHotCategorical(temperature, **{kind: param}, validate_args=False).log_prob(value)

    assert gradcheck(function, (param, temperature, value))
    assert gradgradcheck(function, (param, temperature, value))


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "lead"),
    [((), ()), (None, ()), (4, (4,)), ([4, 2], (4, 2)), (torch.Size([1]), (1,)), ((0,), (0,))],
    ids=str,
)
@each_dtype
@each_batch
def test_sample_shape_and_dtype(batch, dtype, given, lead):
    dist = RelaxedOneHotCategorical(0.7, logits=parameter("logits", batch, dtype))
    for drawn in (dist.sample(given), dist.rsample(given)):
        assert drawn.shape == (*lead, *batch, COLUMNS)
        assert drawn.dtype == dtype
        assert ((drawn >= 0) & (drawn <= 1)).all()
        torch.testing.assert_close(
            drawn.double().sum(-1), torch.ones((*lead, *batch)).double(), rtol=0, atol=COLUMNS * torch.finfo(dtype).eps
        )


# 3 temperatures x 2 kinds x 3 columns: a right sampler fails one of 18 checks at 1e-7 twice in a million seeds.
@each_temperature
@each_kind
def test_samples_have_torchs_law(kind, temperature):
    """Two-sample Kolmogorov-Smirnov tests of the largest, the first and the last coordinate."""
    n, param = 20_000, parameter(kind, ())
    ours = RelaxedOneHotCategorical(temperature, **{kind: param}).sample((n,))
    theirs = by_torch(temperature, **{kind: param}).sample((n,))
    for coordinate in (lambda y: y.amax(-1), lambda y: y[:, 0], lambda y: y[:, -1]):
        assert stats.ks_2samp(coordinate(ours), coordinate(theirs), method="asymp").pvalue > 1e-7


# A right sampler fails one of 3 x 5 z-scores beyond 6 three times in 1e8 seeds.
@each_temperature
def test_mean_of_samples(temperature):
    n, param = 100_000, parameter("logits", ())
    ours = RelaxedOneHotCategorical(temperature, logits=param).sample((n,))
    theirs = by_torch(temperature, logits=param).sample((n,))
    z = (ours.mean(0) - theirs.mean(0)) / ((ours.var(0) + theirs.var(0)) / n).sqrt()
    assert z.abs().max() < 6


def test_sample_has_no_gradient():
    x = torch.zeros(COLUMNS, requires_grad=True)
    dist = RelaxedOneHotCategorical(0.5, logits=x)
    assert not dist.sample().requires_grad
    assert dist.rsample().requires_grad


TEMPERATURES: dict[str, Any] = {
    "float": 0.7,
    "0-d": torch.tensor(0.7),
    "(1,)": torch.tensor([0.7]),
    "batch": torch.tensor([[0.5, 0.7, 1.0], [2.0, 3.0, 4.0]]),
    "rows of the batch": torch.tensor([0.5, 0.7, 2.0]),
    "columns of the batch": torch.tensor([[0.5], [2.0]]),
}


@pytest.mark.interpreted(form=["0-d", "batch"], lead=[(4,)], kind=["logits"])
@each_kind
@pytest.mark.parametrize("lead", [(), (4,)], ids=str)
@pytest.mark.parametrize("form", TEMPERATURES)
def test_rsample_gradient_in_parameters_and_temperature(form, lead, kind, backend):
    """y = softmax((log p + noise) / t): the noise, up to a number in each row which moves nothing, follows from y."""
    dtype = torch.float64 if backend == "eager" else torch.float32
    param = parameter(kind, (2, 3), dtype).requires_grad_()
    temperature = TEMPERATURES[form]
    if isinstance(temperature, Tensor):
        temperature = temperature.to(dtype).requires_grad_()
    drawn = RelaxedOneHotCategorical(temperature, **{kind: param}).rsample(lead)
    grad = torch.randn(drawn.shape, dtype=dtype)

    logits = param if kind == "logits" else param.log()
    scale = torch.as_tensor(temperature, dtype=dtype)
    # A number in itself, not a dimension of the batch.
    scale = (scale.reshape(()) if scale.numel() == 1 else scale).unsqueeze(-1)
    noise = (scale * drawn.log() - logits).detach()
    again = torch.softmax((logits + noise) / scale, -1)
    torch.testing.assert_close(again, drawn)
    inputs = [t for t in (param, temperature) if isinstance(t, Tensor)]
    found = torch.autograd.grad(drawn, inputs, grad)
    expected = torch.autograd.grad(again, inputs, grad)
    torch.testing.assert_close(found, expected, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-5)


def test_rsample_second_derivative():
    """Of y = softmax((x + noise) / t), again by autograd of its definition."""
    x = parameter("logits", (3,)).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    grad, weight = torch.randn(2, 3, COLUMNS, dtype=torch.float64)
    drawn = RelaxedOneHotCategorical(temperature, logits=x).rsample()
    noise = (temperature * drawn.log() - x).detach()

    def second(y: Tensor) -> tuple[Tensor, ...]:
        dx, dt = torch.autograd.grad(y, (x, temperature), grad, create_graph=True)
        return torch.autograd.grad((dx * weight).sum() + dt, (x, temperature))

    torch.testing.assert_close(second(drawn), second(torch.softmax((x + noise) / temperature, -1)))


@each_dtype
def test_rsample_gradient_in_each_dtype(dtype):
    """That of float64 with the same noise."""
    param, grads = parameter("logits", (3,), dtype), []
    for x in (param.clone().requires_grad_(), param.double().requires_grad_()):
        torch.manual_seed(1)
        drawn = RelaxedOneHotCategorical(0.7, logits=x).rsample((2,))
        grad = torch.linspace(-1, 1, drawn.numel()).reshape(drawn.shape).to(dtype)
        drawn.backward(grad.to(x.dtype))
        assert x.grad is not None
        assert x.grad.dtype == x.dtype
        grads.append(x.grad.double())
    torch.testing.assert_close(*grads, rtol=0, atol=8 * torch.finfo(dtype).eps)


@each_kind
def test_a_category_that_is_never_drawn(kind, backend):
    """It has value 0 in every sample, and no gradient."""
    x = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf, 0.0, -math.inf]])
    never = x == -math.inf
    param = (x if kind == "logits" else x.exp()).requires_grad_()
    temperature = torch.tensor(0.5, requires_grad=True)
    drawn = RelaxedOneHotCategorical(temperature, **{kind: param}).rsample((10,))
    assert (drawn[:, never] == 0).all()
    assert (drawn[:, 1, 1] == 1).all()
    (drawn * torch.randn(10, 2, 3)).sum().backward()
    assert param.grad is not None
    assert temperature.grad is not None
    assert (param.grad[never] == 0).all()
    assert param.grad.isfinite().all()
    assert temperature.grad.isfinite()


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures(temperature):
    x = torch.randn(100, COLUMNS, requires_grad=True)
    t = torch.tensor(temperature, requires_grad=True)
    drawn = RelaxedOneHotCategorical(t, logits=x).rsample()
    (drawn * torch.randn(100, COLUMNS)).sum().backward()
    assert drawn.isfinite().all()
    for leaf in (x, t):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    if temperature > 1:
        torch.testing.assert_close(drawn, torch.full_like(drawn, 1 / COLUMNS), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "view", [lambda x: x.expand(4, 3, COLUMNS), lambda x: x.mT.contiguous().mT, lambda x: x[:0]],
    ids=["expanded", "transposed", "empty"],
)  # fmt: skip
def test_strided_and_empty_logits(view, backend):
    x, found = torch.randn(3, COLUMNS, requires_grad=True), []
    for logits in (view(x), view(x).contiguous()):
        torch.manual_seed(1)
        drawn = RelaxedOneHotCategorical(0.7, logits=logits).rsample((2,))
        found.append((drawn, *torch.autograd.grad(drawn.pow(2).sum(), x)))
    torch.testing.assert_close(*found)


def test_a_temperature_of_one_element_is_a_number():
    """Of shape (1,), it adds no dimension to a batch that has none."""
    x, t = torch.randn(COLUMNS), torch.tensor([0.5], requires_grad=True)
    dist = RelaxedOneHotCategorical(t, logits=x)
    drawn = dist.rsample((3,))
    assert dist.batch_shape == ()
    assert drawn.shape == (3, COLUMNS)
    value = torch.softmax(torch.randn(3, COLUMNS), -1)
    torch.testing.assert_close(dist.log_prob(value), by_torch(0.5, logits=x).log_prob(value.double()).float())
    assert dist.log_prob(value[0]).shape == ()
    (drawn.sum() + dist.log_prob(value).sum()).backward()
    assert t.grad.shape == (1,)


# Categories that are off, and values that are 0 -----------------------------------------------------------------------


@pytest.fixture(params=["auto", "eager", "triton"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each way to compute a density; a CPU's own looks at values, the kernels have none of it."""
    if request.param == "triton":
        if torch.cuda.is_available():
            pytest.skip("compiled kernels take no CPU tensors")
        request.getfixturevalue("few_programs")
    with use_backend(request.param):
        yield


def density(x: Tensor, t: Tensor, log_y: Tensor) -> Tensor:
    """Equation (10) of Maddison et al. 2017, of a row."""
    n = len(x)
    log_p = x.log_softmax(-1)
    return (
        math.lgamma(n)
        + (n - 1) * t.log()
        - n * (log_p - t * log_y).logsumexp(-1)
        + (log_p - (t + 1) * log_y).sum()
    )  # fmt: skip


OFF = torch.tensor([[False, False, True, False], [True, False, False, True], [False, True, True, True]])


@pytest.mark.parametrize("kind", ["logits", "probs", "mask", "masked probs"])
def test_density_of_the_categories_that_are_on(kind, way):
    """Compare with torch's class for the 3, 2 and 1 of 4 categories that are on."""
    x = torch.randn(3, 4, dtype=torch.float64)
    y = torch.randn(2, 3, 4, dtype=torch.float64).masked_fill(OFF, -INF).softmax(-1).requires_grad_()
    t = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    # With a mask, a parameter may be anything where it is off.
    off_value = -INF if kind == "logits" else 0.0 if kind == "probs" else torch.nan
    param = (x.exp() if "probs" in kind else x).masked_fill(OFF, off_value).requires_grad_()
    name = "probs" if "probs" in kind else "logits"
    mask = ~OFF if "mask" in kind else None
    found = RelaxedOneHotCategorical(t, **{name: param}, mask=mask, validate_args=True).log_prob(y)

    rows = []
    for draw in range(2):
        for row in range(3):
            on = ~OFF[row]
            rows.append(D.RelaxedOneHotCategorical(t[row], **{name: param[row][on]}).log_prob(y[draw, row][on]))
    expected = torch.stack(rows).view(2, 3)
    torch.testing.assert_close(found, expected)
    inputs = (param, t, y)
    grads, expected_grads = (torch.autograd.grad(out.sum(), inputs) for out in (found, expected))
    torch.testing.assert_close(grads, expected_grads)
    assert (grads[0][OFF] == 0).all()


def test_density_where_a_logit_is_minus_infinity():
    dist = RelaxedOneHotCategorical(0.5, logits=torch.tensor([0.3, 1.0, -INF]))
    torch.testing.assert_close(dist.log_prob(torch.tensor([0.4, 0.6, 0.0])), torch.tensor(-0.7135), rtol=0, atol=1e-4)


# n categories that are on, m of them with value 0, the temperature, and the limit's sign, 0 where it is finite.
LIMITS = [
    (2, 1, 0.5, 1),
    (2, 1, 2.0, -1),
    (2, 1, 1.0, 0),
    (4, 3, 3.0, 0),
    (4, 1, 1 / 3, 0),
    (4, 1, 0.33, 1),
    (4, 1, 0.34, -1),
    (50, 49, 49.0, 0),
    (50, 1, 1 / 49, 0),
    (5, 4, 0.05, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["number", "tensor"])
@pytest.mark.parametrize(("n", "zeros", "temperature", "sign"), LIMITS)
def test_zeros_have_the_limit_of_values_that_become_0_together(n, zeros, temperature, sign, form, dtype, way):
    x = torch.randn(n + 1, dtype=torch.float64)
    x[1] = -INF
    on = x > -INF
    log_y = torch.full((n + 1,), -INF, dtype=torch.float64)
    log_y[on.nonzero().flatten()[zeros:]] = torch.randn(n - zeros, dtype=torch.float64).log_softmax(-1)
    is_zero = on & (log_y == -INF)
    t = torch.tensor(temperature, dtype=torch.float64)
    # Independent of the code: the density of ever smaller values.
    near, nearer = (density(x[on], t, log_y[on].clamp_min(small)) for small in (-1e7, -1e8))
    assert sign == (0 if (near - nearer).abs() < 1e-3 else (nearer - near).sign())

    leaves = [v.to(dtype).requires_grad_() for v in (x, log_y.exp(), t)]
    found = RelaxedOneHotCategorical(leaves[2] if form == "tensor" else temperature, logits=leaves[0]).log_prob(
        leaves[1]
    )
    grads = torch.autograd.grad(found, leaves if form == "tensor" else leaves[:2])
    if sign:
        assert found == sign * INF
        assert all((grad == 0).all() for grad in grads)
        return
    # The formula of docs/what-is-tested.md, and its derivatives.
    x, y, t = (leaf.detach().double().requires_grad_() for leaf in leaves)
    log_p = x[on].log_softmax(-1)
    expected = (
        math.lgamma(n)
        + (n - 1) * t.log()
        - n * log_p[is_zero[on]].logsumexp(-1)
        + log_p.sum()
        - (t + 1) * y[y > 0].log().sum()
    )
    torch.testing.assert_close(expected.detach(), nearer, rtol=1e-5, atol=1e-3)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=10 * tolerance)
    expected_grads = torch.autograd.grad(expected, (x, y, t) if form == "tensor" else (x, y))
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), other, rtol=10 * tolerance, atol=10 * tolerance)


def test_each_row_has_a_limit_of_its_own(way):
    """Compare one value under a temperature per row."""
    t = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    x = torch.zeros(3, 2, requires_grad=True)
    found = RelaxedOneHotCategorical(t, logits=x).log_prob(torch.tensor([1.0, 0.0]))
    assert found[[0, 2]].tolist() == [INF, -INF]
    torch.testing.assert_close(found[1], torch.tensor(0.0))
    for grad in torch.autograd.grad(found.sum(), (x, t)):
        assert (grad[[0, 2]] == 0).all()
        assert (grad[1] != 0).any()


def test_mass_where_a_category_is_off(way):
    x = torch.tensor([[0.0, 1.0, -INF], [0.0, 1.0, 2.0]], requires_grad=True)
    y = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    found = RelaxedOneHotCategorical(0.5, logits=x, validate_args=False).log_prob(y)
    assert found[0] == -INF
    assert found[1].isfinite()
    dx, dy = torch.autograd.grad(found.sum(), (x, y))
    assert (dx[0] == 0).all()
    (expected,) = torch.autograd.grad(RelaxedOneHotCategorical(0.5, logits=x[1]).log_prob(y), y)
    torch.testing.assert_close(dy, expected)
    # Beside a zero, which alone would make it +inf.
    value = torch.tensor([0.0, 0.7, 0.3])
    assert RelaxedOneHotCategorical(0.5, logits=x[:1], validate_args=False).log_prob(value) == -INF


def test_a_row_that_is_invalid_stays_nan(way):
    """With the gradient that `OneHotCategorical` has: NaN, and 0 in a row that a mask leaves empty."""
    bad = torch.tensor([[0.0, 1.0, 2.0], [-INF, -INF, -INF], [0.0, torch.nan, -INF], [INF, 0.0, -INF]])
    for value in ([0.2, 0.8, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]):
        x = bad.clone().requires_grad_()
        found = RelaxedOneHotCategorical(0.5, logits=x, validate_args=False).log_prob(torch.tensor(value))
        assert found.isnan().tolist() == [False, True, True, True]
        (grad,) = torch.autograd.grad(found.sum(), x)
        assert grad[0].isfinite().all()
        assert grad[1:3].isnan().all()
        assert grad[3].isnan().any()
    # A value that is NaN, beside a zero and where all is on.
    unchecked = RelaxedOneHotCategorical(0.5, logits=torch.zeros(3), validate_args=False)
    assert unchecked.log_prob(torch.tensor([0.0, torch.nan, 0.5])).isnan()
    x, t = torch.randn(2, 3, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    dist = RelaxedOneHotCategorical(t, logits=x, mask=mask, validate_args=False)
    for law, y in ((dist, torch.tensor([0.4, 0.0, 0.6])), (dist.base_dist, torch.tensor([0.4, 0.0, 0.6]).log())):
        found = law.log_prob(y)
        assert found.isnan().tolist() == [False, True]
        (grad,) = torch.autograd.grad(found.sum(), x)
        assert grad[0].isfinite().all()
        assert (grad[1] == 0).all()


@each_kind
@pytest.mark.parametrize("form", ["0-d", "rows of the batch"])
def test_a_row_that_a_mask_leaves_empty_has_no_gradient(form, kind, backend):
    """An agent that does not act leaves its loss out: parameters, temperature and value then have gradient 0."""
    param = parameter(kind, (3,), torch.float32).requires_grad_()
    t = TEMPERATURES[form].clone().requires_grad_()
    mask = torch.tensor([[True, False, True, True, True], [False] * 5, [True] * 5])
    dist = RelaxedOneHotCategorical(t, **{kind: param}, mask=mask, validate_args=False)
    acts = mask.any(-1)
    for law in (dist, dist.base_dist):
        drawn = law.rsample((2,))
        assert drawn[:, 1].isnan().all()
        assert not drawn[:, acts].isnan().any()
        value = drawn.detach().requires_grad_()
        log_prob = law.log_prob(value)
        assert log_prob.isnan().equal((~acts).expand(2, 3))
        finite = drawn.masked_fill(drawn == -INF, 0.0)
        assert torch.autograd.grad(log_prob[:, acts].sum(), param, retain_graph=True)[0].isfinite().all()
        loss = torch.where(acts, finite.square().sum(-1), 0.0).sum() + torch.where(acts, log_prob, 0.0).sum()
        for grad in torch.autograd.grad(loss, (param, t, value)):
            assert grad.isfinite().all()
            assert (grad != 0).any()


@pytest.mark.parametrize(
    ("temperature", "shape", "dtype"),
    [(0.05, (20, 100), dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    + [(1.0, (2, 50_000), torch.float16), (0.1, (50, 20), torch.float16), (0.1, (50, 20), torch.float32)],
    ids=str,
)
def test_draws_have_densities_and_pass_their_own_validation(temperature, shape, dtype, way):
    """Half of such a draw is 0. No density is NaN, and no gradient, through the draw either."""
    x = torch.randn(shape).to(dtype).requires_grad_()
    t = torch.tensor(temperature, requires_grad=True)
    dist = RelaxedOneHotCategorical(t, logits=x, validate_args=True)
    y = dist.rsample()
    found = dist.log_prob(y)
    assert not found.isnan().any()
    if dtype != torch.float64:
        assert not dist.log_prob(y.float()).isnan().any()
    grads = torch.autograd.grad(found.sum(), (x, t), retain_graph=True)
    assert all(grad.isfinite().all() for grad in grads)
    (of_value,) = torch.autograd.grad(found.sum(), y)
    assert of_value.isfinite().all()
    base = dist.base_dist
    log_y = base.rsample()
    found = base.log_prob(log_y)
    assert found.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), (x, t)))


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (torch.float16, [0.5, 0.4995], [0.5, 0.49]),
        (torch.bfloat16, [0.5, 0.498], [0.5, 0.48]),
        (torch.float32, [0.5, 0.5 - 5e-7], [0.5, 0.49999]),
        (torch.float64, [0.5, 0.5 - 5e-7], [0.5, 0.49999]),
    ],
    ids=str,
)
def test_a_sum_is_checked_to_what_the_dtype_can_tell(dtype, good, bad):
    dist = RelaxedOneHotCategorical(1.0, logits=torch.zeros(2, dtype=dtype), validate_args=True)
    dist.log_prob(torch.tensor(good, dtype=dtype))
    with pytest.raises(ValueError, match="value: expected rows that sum to 1, found a sum of 0"):
        dist.log_prob(torch.tensor(bad, dtype=dtype))


def test_a_long_row_is_on_the_simplex():
    """torch's softmax misses 1 by more than 1e-6 there, and float16 rounds each 1 / 50,000 up by 1.4e-3 of it."""
    for y in (torch.softmax(3 * torch.randn(2, 151_936), -1), torch.full((50_000,), 1 / 50_000, dtype=torch.float16)):
        dist = RelaxedOneHotCategorical(1.0, logits=torch.zeros(y.shape[-1], dtype=y.dtype), validate_args=True)
        assert dist.log_prob(y).isfinite().all()


# The logarithm --------------------------------------------------------------------------------------------------------


@each_temperature
@each_kind
@each_batch
def test_log_density_of_log_y_is_torchs(batch, kind, temperature, way):
    param = parameter(kind, batch).requires_grad_()
    t = torch.full(batch, temperature, dtype=torch.float64, requires_grad=True)
    value = torch.randn(4, *batch, COLUMNS, dtype=torch.float64).log_softmax(-1).requires_grad_()
    # torch's takes no temperature of a batch.
    column = t if not batch else t.unsqueeze(-1)
    found = ExpRelaxedOneHotCategorical(t, **{kind: param}).log_prob(value)
    theirs = ExpRelaxedCategorical(t.new_tensor(temperature), **{kind: param})
    score = theirs.logits - column * value
    expected = (score - score.logsumexp(-1, keepdim=True)).sum(-1) + math.lgamma(COLUMNS) + (COLUMNS - 1) * t.log()
    torch.testing.assert_close(expected, theirs.log_prob(value))
    torch.testing.assert_close(found, expected)
    inputs = (param, t, value)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), inputs) for out in (found, expected)))
    # The change of variables: the density of y is that of log y over the product of all y.
    of_y = RelaxedOneHotCategorical(t, **{kind: param}).log_prob(value.exp())
    torch.testing.assert_close(of_y, found - value.sum(-1))


@each_temperature
def test_log_y_has_the_law_of_torchs(temperature):
    n, param = 20_000, parameter("logits", ())
    ours = ExpRelaxedOneHotCategorical(temperature, logits=param).sample((n,))
    theirs = ExpRelaxedCategorical(torch.tensor(temperature, dtype=torch.float64), logits=param).sample((n,))
    # A right sampler fails one of 9 checks at 1e-7 once in a million seeds.
    for coordinate in (lambda y: y.amax(-1), lambda y: y[:, 0], lambda y: y[:, -1]):
        assert stats.ks_2samp(coordinate(ours), coordinate(theirs), method="asymp").pvalue > 1e-7


@pytest.mark.interpreted(form=["0-d", "batch"], lead=[(4,)])
@pytest.mark.parametrize("lead", [(), (4,)], ids=str)
@pytest.mark.parametrize("form", TEMPERATURES)
def test_gradient_of_log_y_in_parameters_and_temperature(form, lead, backend):
    """As of y, and second derivatives: log y = log_softmax((log p + noise) / t)."""
    x = parameter("logits", (2, 3))
    x[0, 1, 2] = -INF
    x.requires_grad_()
    temperature = TEMPERATURES[form]
    if isinstance(temperature, Tensor):
        temperature = temperature.double().requires_grad_()
    drawn = ExpRelaxedOneHotCategorical(temperature, logits=x).rsample(lead)
    off = drawn == -INF
    assert torch.equal(off, (x == -INF).expand_as(off))
    weight = torch.randn(drawn.shape, dtype=torch.float64).masked_fill(off, 0.0)
    scale = torch.as_tensor(temperature, dtype=torch.float64)
    scale = (scale.reshape(()) if scale.numel() == 1 else scale).unsqueeze(-1)
    finite = x.masked_fill(x == -INF, 0.0)
    noise = (scale * drawn.masked_fill(off, 0.0) - finite).detach()
    again = ((finite + noise) / scale).masked_fill(off, -INF).log_softmax(-1)
    torch.testing.assert_close(again, drawn)
    inputs = [v for v in (x, temperature) if isinstance(v, Tensor)]

    def derivatives(y: Tensor) -> tuple[Tensor, ...]:
        y = y.masked_fill(off, 0.0)
        first = torch.autograd.grad((y.square() * weight).sum(), inputs, create_graph=True)
        return *first, *torch.autograd.grad(sum(d.square().sum() for d in first), inputs)

    found = derivatives(drawn)
    assert (found[0][x == -INF] == 0).all()
    torch.testing.assert_close(found, derivatives(again))


@each_dtype
def test_log_y_is_the_logarithm_of_y(dtype, backend):
    """On a CPU of the same seed; in float32 at least, where float16 ends."""
    x = parameter("logits", (3,), dtype)
    dist = RelaxedOneHotCategorical(1e-4, logits=x)
    log_y = dist.base_dist.sample((50,))
    assert log_y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert log_y.isfinite().all()
    assert log_y.min() < -65504
    assert dist.base_dist.log_prob(log_y).isfinite().all()
    total = log_y.logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-5)
    if backend == "eager":
        soft, seen = RelaxedOneHotCategorical(0.7, logits=x), []
        for law in (soft, soft.base_dist):
            seen.append(law.sample((50,), generator=torch.Generator().manual_seed(3)))
        torch.testing.assert_close(seen[1].exp().to(dtype), seen[0])


def test_base_dist_has_the_parameters():
    x, mask = torch.randn(3, COLUMNS), torch.arange(COLUMNS) != 1
    t = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    dist = RelaxedOneHotCategorical(t, logits=x, mask=mask, validate_args=True)
    base = dist.base_dist
    assert type(base) is ExpRelaxedOneHotCategorical
    assert (base.batch_shape, base.event_shape, base.param_shape) == (dist.batch_shape, dist.event_shape, x.shape)
    assert base.temperature is t
    assert base._param.data_ptr() == x.data_ptr()
    assert base._validate_args
    assert torch.equal(base.probs, dist.probs)
    assert torch.equal(base.logits, dist.logits)
    assert base.mask is not None
    assert torch.equal(base.mask, mask.expand(3, -1))
    expanded = base.expand((2, 3))
    assert type(expanded) is ExpRelaxedOneHotCategorical
    log_y = expanded.rsample((4,))
    assert log_y.shape == (4, 2, 3, COLUMNS)
    torch.testing.assert_close(expanded.log_prob(log_y), base.log_prob(log_y))
    for other in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert torch.equal(other.log_prob(log_y), base.log_prob(log_y))
    assert repr(base) == "ExpRelaxedOneHotCategorical(temperature: (3,), logits: (3, 5), mask)"
    assert repr(RelaxedOneHotCategorical(0.5, x.exp())) == "RelaxedOneHotCategorical(temperature: 0.5, probs: (3, 5))"


def test_log_density_where_a_value_is_minus_infinity(way):
    """No mass there, and where a category is off, all is as without it; elsewhere the limit is -inf."""
    x = torch.tensor([[0.0, 1.0, -INF], [0.0, 1.0, 2.0]], requires_grad=True)
    value = torch.tensor([-1.0, math.log1p(-math.exp(-1.0)), -INF], requires_grad=True)
    found = ExpRelaxedOneHotCategorical(0.5, logits=x, validate_args=True).log_prob(value)
    expected = ExpRelaxedCategorical(torch.tensor(0.5), logits=x[0, :2]).log_prob(value[:2])
    torch.testing.assert_close(found, torch.stack([expected, torch.tensor(-INF)]))
    found_grads, expected_grads = (
        torch.autograd.grad(out.sum(), (x, value), retain_graph=True) for out in (found, expected)
    )
    torch.testing.assert_close(found_grads, expected_grads)
    unchecked = ExpRelaxedOneHotCategorical(0.5, logits=x, validate_args=False)
    assert unchecked.log_prob(torch.tensor([-1.0, -2.0, -200.0]))[0] == -INF


# A mask ---------------------------------------------------------------------------------------------------------------


@each_kind
def test_a_mask_switches_categories_off(kind, backend):
    """Whatever the parameter is there: no mass, no gradient, and the others as if it were not."""
    off = torch.tensor([False, True, False, False, True])
    param = parameter(kind, (2, 3), torch.float32)
    other = param.masked_fill(off, -INF if kind == "logits" else 0.0)
    param = param.masked_fill(off, torch.nan).requires_grad_()
    t = torch.tensor(0.7, requires_grad=True)
    dist = RelaxedOneHotCategorical(t, **{kind: param}, mask=~off, validate_args=True)
    plain = RelaxedOneHotCategorical(t, **{kind: other})
    assert dist.mask is not None
    assert dist.mask.shape == (2, 3, COLUMNS)
    torch.testing.assert_close(dist.probs, plain.probs)
    torch.testing.assert_close(dist.logits, plain.logits)
    for law, none in ((dist, 0.0), (dist.base_dist, -INF)):
        drawn = law.rsample((4,))
        assert (drawn[..., off] == none).all()
        assert drawn[..., ~off].isfinite().all()
        loss = (drawn[..., ~off].square() * torch.arange(3)).sum() + law.log_prob(drawn.detach()).sum()
        for grad in torch.autograd.grad(loss, (param, t)):
            assert grad.isfinite().all()
            assert (grad != 0).any()
        assert (torch.autograd.grad(law.rsample()[..., 0].sum(), param)[0][..., off] == 0).all()
    expanded = dist.expand((4, 2, 3))
    assert (expanded.rsample()[..., off] == 0).all()


@pytest.mark.parametrize("shape", [(COLUMNS,), (3, COLUMNS), (2, 1, COLUMNS), (2, 3, COLUMNS)], ids=str)
def test_a_mask_broadcasts_to_the_parameters(shape):
    mask = torch.rand(shape) < 0.6
    mask[..., 0] = True
    x = parameter("logits", (2, 3))
    dist = RelaxedOneHotCategorical(0.5, logits=x, mask=mask)
    whole = RelaxedOneHotCategorical(0.5, logits=x.masked_fill(~mask, -INF))
    y = whole.sample((3,))
    torch.testing.assert_close(dist.log_prob(y), whole.log_prob(y))
    assert (dist.sample((3,)) == 0).equal((~mask).expand(3, 2, 3, COLUMNS))


def test_vmap_of_densities_with_a_mask():
    x, mask = torch.randn(3, COLUMNS), torch.arange(COLUMNS) < torch.tensor([[2], [3], [5]])
    y = torch.randn(3, COLUMNS).masked_fill(~mask, -INF).softmax(-1)

    def both(x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        dist = RelaxedOneHotCategorical(0.5, logits=x, mask=mask)
        return torch.stack([dist.log_prob(y), dist.base_dist.log_prob(y.log())])

    found = torch.func.vmap(both)(x, mask, y)
    expected = torch.stack([both(*row) for row in zip(x, mask, y, strict=True)])
    torch.testing.assert_close(found, expected)
    grads = torch.func.vmap(torch.func.grad(lambda *a: both(*a).sum()))(x, mask, y)
    x.requires_grad_()
    total = sum(both(*row).sum() for row in zip(x, mask, y, strict=True))
    torch.testing.assert_close(grads, torch.autograd.grad(total, x)[0])  # pyright: ignore[reportArgumentType]


# expand ---------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("form", ["float", "0-d", "(1,)", "rows of the batch"])
def test_expand(form, kind):
    temperature, param = TEMPERATURES[form], parameter(kind, (3,))
    dist = RelaxedOneHotCategorical(temperature, **{kind: param}, validate_args=True)
    expanded = dist.expand(torch.Size([2, 3]))
    assert type(expanded) is RelaxedOneHotCategorical
    assert (expanded.batch_shape, expanded.event_shape) == ((2, 3), (COLUMNS,))
    assert torch.equal(torch.as_tensor(expanded.temperature), torch.as_tensor(dist.temperature))
    assert expanded._validate_args
    assert expanded._param.data_ptr() == param.data_ptr()
    drawn = expanded.rsample((4,))
    assert drawn.shape == (4, 2, 3, COLUMNS)
    torch.testing.assert_close(expanded.log_prob(drawn), dist.log_prob(drawn))


# Bad input ------------------------------------------------------------------------------------------------------------

ZEROS = torch.zeros(2, 3)
HALF_OFF = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -INF]])
BAD = {
    "both parameters": (
        lambda: RelaxedOneHotCategorical(1.0, ZEROS, ZEROS),
        "logits, probs: expected exactly one of the two, found both",
    ),
    "no parameter": (
        lambda: RelaxedOneHotCategorical(1.0),
        "logits, probs: expected exactly one of the two, found neither",
    ),
    "temperature 0": (
        lambda: RelaxedOneHotCategorical(0.0, logits=ZEROS),
        "temperature: expected a finite number above 0, found 0.0",
    ),
    "temperature -1 in a row": (
        lambda: RelaxedOneHotCategorical(torch.tensor([1.0, -1.0]), logits=ZEROS),
        "temperature: expected finite numbers above 0, found -1.0 at [1]",
    ),
    "temperature of another batch": (
        lambda: RelaxedOneHotCategorical(torch.ones(3), logits=ZEROS),
        "temperature: expected a shape that broadcasts to the batch [2], found [3]",
    ),
    "NaN logit": (
        lambda: RelaxedOneHotCategorical(1.0, logits=torch.tensor([[0.0, 1.0], [0.0, math.nan]])),
        "logits: expected neither NaN nor +inf, found nan at [1, 1]",
    ),
    "negative weight": (
        lambda: RelaxedOneHotCategorical(1.0, probs=torch.tensor([0.5, -0.5])),
        "probs: expected values >= 0 and finite, found -0.5 at [1]",
    ),
    "value of another length": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS).log_prob(torch.full((4,), 0.25)),
        "value: expected [..., 3] with a column for each category, found shape [4]",
    ),
    "negative value": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS).log_prob(torch.tensor([0.5, -0.25, 0.75])),
        "value: expected values >= 0, found -0.25 at [1]",
    ),
    "values that do not sum to 1": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS).log_prob(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])),
        "value: expected rows that sum to 1, found a sum of 1.5 at [1]",
    ),
    "mass where a category is off": (
        lambda: RelaxedOneHotCategorical(1.0, logits=HALF_OFF).log_prob(torch.tensor([0.5, 0.25, 0.25])),
        "value: expected 0 where a category is off, found 0.25 at [1, 2]",
    ),
    "mass where a mask is False": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS, mask=HALF_OFF == 0).log_prob(
            torch.tensor([0.5, 0.25, 0.25])
        ),
        "value: expected 0 where a category is off, found 0.25 at [1, 2]",
    ),
    "log y with mass where a category is off": (
        lambda: ExpRelaxedOneHotCategorical(1.0, logits=HALF_OFF).log_prob(torch.tensor([0.0, -INF, -200.0])),
        "value: expected -inf where a category is off, found -200.0 at [1, 2]",
    ),
    "y for log y": (
        lambda: ExpRelaxedOneHotCategorical(1.0, logits=ZEROS).log_prob(torch.tensor([1.0, 0.0, 0.0])),
        "value: expected rows whose exponentials sum to 1, found a sum of 4.71828",
    ),
    "log y that is NaN": (
        lambda: ExpRelaxedOneHotCategorical(1.0, logits=ZEROS).log_prob(torch.tensor([0.0, torch.nan, -INF])),
        "value: expected no NaN, found nan at [1]",
    ),
    "a mask that leaves nothing": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS, mask=torch.tensor([[True] * 3, [False] * 3])),
        "mask: expected an allowed category in every row, found none at [1]",
    ),
    "a mask of another shape": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS, mask=torch.ones(4, dtype=torch.bool)),
        "mask: expected a last dimension of 1 or 3, found shape [4]",
    ),
    "generator of another kind": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS).sample(generator=0),  # pyright: ignore[reportArgumentType]
        "generator: expected a torch.Generator or None, found int",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        call()
    assert str(error.value).startswith(message)


def test_value_off_the_simplex():
    dist = RelaxedOneHotCategorical(1.0, logits=ZEROS)
    with pytest.raises(ValueError, match="value"):
        dist.log_prob(torch.tensor([0.5, 0.6, 0.1]))
    unchecked = RelaxedOneHotCategorical(1.0, logits=ZEROS, validate_args=False)
    assert unchecked.log_prob(torch.tensor([0.5, 0.6, 0.1])).isfinite().all()
