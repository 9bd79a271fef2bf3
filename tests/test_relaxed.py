"""RelaxedOneHotCategorical, against torch.distributions in float64 and against its definition."""

import inspect
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as D
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraints

from onehot_triton import RelaxedOneHotCategorical

COLUMNS = 5

pytestmark = pytest.mark.usefixtures("one_thread")

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
    "generator of another kind": (
        lambda: RelaxedOneHotCategorical(1.0, logits=ZEROS).sample(generator=0),  # pyright: ignore[reportArgumentType]
        "generator: expected a torch.Generator or None, found int",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        call()
    assert str(error.value) == message


def test_value_off_the_simplex():
    dist = RelaxedOneHotCategorical(1.0, logits=ZEROS)
    with pytest.raises(ValueError, match="value"):
        dist.log_prob(torch.tensor([0.5, 0.6, 0.1]))
    unchecked = RelaxedOneHotCategorical(1.0, logits=ZEROS, validate_args=False)
    assert unchecked.log_prob(torch.tensor([0.5, 0.6, 0.1])).isfinite().all()
