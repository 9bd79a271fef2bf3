"""The classes of `onehot_triton.integrations.pyro` in Pyro's models, beside Pyro's own."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

pytest.importorskip("pyro", reason="Pyro is not installed: pip install pyro-ppl")

import pyro
import pyro.distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, ReparamGradientStrategy
from onehot_triton.integrations.pyro import MaskedOneHotCategorical as PyroMaskedOneHotCategorical
from onehot_triton.integrations.pyro import OneHotCategorical as PyroOneHotCategorical
from onehot_triton.integrations.pyro import RelaxedOneHotCategorical as PyroRelaxed
from onehot_triton.integrations.pyro import RelaxedOneHotCategoricalStraightThrough as PyroStraightThrough

PASS = ReparamGradientStrategy.PassThrough


@pytest.fixture(autouse=True)
def clear_params() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 3, 4)


def test_a_call_is_a_sample(logits: Tensor) -> None:
    draw = PyroOneHotCategorical(logits=logits)()
    assert draw.shape == (2, 3, 4)
    assert (draw.sum(-1) == 1).all()
    assert draw.dtype == torch.float32
    assert PyroOneHotCategorical(logits=logits, dtype=torch.bool)().dtype == torch.bool
    assert (
        PyroOneHotCategorical(logits=logits, grad_method=ReparamGradientStrategy.PassThrough)().dtype == torch.float32
    )


def test_shapes(logits: Tensor) -> None:
    ours = PyroOneHotCategorical(logits=logits)
    assert ours.shape() == (2, 3, 4)
    assert ours.shape((5,)) == (5, 2, 3, 4)
    assert ours.event_dim == 1


def test_expand_by(logits: Tensor) -> None:
    ours = PyroOneHotCategorical(logits=logits, unimix=0.1, dtype=torch.bool).expand_by([5])
    assert type(ours) is PyroOneHotCategorical
    assert ours.batch_shape == (5, 2, 3)
    assert ours.sample().dtype == torch.bool
    torch.testing.assert_close(ours.entropy()[1], OneHotCategorical(logits, unimix=0.1).entropy())


def test_to_event(logits: Tensor) -> None:
    ours = PyroOneHotCategorical(logits=logits).to_event(1)
    assert (ours.batch_shape, ours.event_shape) == ((2,), (3, 4))
    value = ours.sample()
    torch.testing.assert_close(ours.log_prob(value), OneHotCategorical(logits).log_prob(value).sum(-1))


def test_mask(logits: Tensor) -> None:
    mask = torch.tensor([True, False, True])
    base = PyroOneHotCategorical(logits=logits)
    value = base.sample()
    torch.testing.assert_close(base.mask(mask).log_prob(value), base.log_prob(value) * mask)
    assert (base.mask(False).log_prob(value) == 0).all()


@pytest.mark.parametrize("expand", [True, False])
def test_enumerate_support(logits: Tensor, expand: bool) -> None:
    ours, theirs = PyroOneHotCategorical(logits=logits), dist.OneHotCategorical(logits=logits)
    assert ours.has_enumerate_support
    support = ours.enumerate_support(expand=expand)
    assert torch.equal(support.float(), theirs.enumerate_support(expand=expand))
    torch.testing.assert_close(ours.log_prob(support), theirs.log_prob(support.float()))
    torch.testing.assert_close(ours.log_prob(support).exp().sum(0), torch.ones(2, 3))


def test_support_is_pyros(logits: Tensor) -> None:
    assert (
        PyroOneHotCategorical(logits=logits).support
        is dist.OneHotCategorical(logits=logits).support
        is constraints.one_hot
    )


def test_the_conventions_are_pyros() -> None:
    probs = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    ours, theirs = PyroOneHotCategorical(probs), dist.OneHotCategorical(probs)
    torch.testing.assert_close(ours.probs, theirs.probs)
    for found, expected in ((ours(), theirs()), (ours.mode, theirs.mode)):
        assert found.dtype == expected.dtype == torch.float64
    assert torch.equal(ours.enumerate_support(), theirs.enumerate_support())
    torch.testing.assert_close(torch.distributions.kl_divergence(ours, theirs), torch.zeros(2, dtype=torch.float64))
    for cls in (PyroOneHotCategorical, PyroMaskedOneHotCategorical):
        assert cls.infer_shapes(probs=probs.shape) == (ours.batch_shape, ours.event_shape)
        assert cls.infer_shapes(logits=probs.shape) == (ours.batch_shape, ours.event_shape)
        with pytest.raises(ValueError, match="exactly one of the two, found neither"):
            cls()
    masked = PyroMaskedOneHotCategorical
    for name in ("mask", "indices"):
        shapes = {"logits": torch.Size([3, 4]), name: torch.Size([2, 1, 4])}
        assert masked.infer_shapes(**shapes) == ((2, 3), (4,))


CATEGORIES = torch.tensor([[True, True, False, True]])


def test_a_mask_of_categories_and_one_of_observations(logits: Tensor) -> None:
    """`.mask()` is Pyro's, and the mask of categories stays in force below it."""
    observed = torch.tensor([True, False, True])
    ours = PyroMaskedOneHotCategorical(logits=logits, mask=CATEGORIES, unimix=0.1)
    assert torch.equal(ours.category_mask, CATEGORIES.expand(2, 3, 4))
    value = ours()
    assert value[..., 2].count_nonzero() == 0
    expected = MaskedOneHotCategorical(logits, mask=CATEGORIES, unimix=0.1).log_prob(value)
    torch.testing.assert_close(ours.log_prob(value), expected)
    torch.testing.assert_close(ours.mask(observed).log_prob(value), expected * observed)
    torch.testing.assert_close(
        ours.expand_by([5]).mask(observed).log_prob(value), (expected * observed).expand(5, 2, 3)
    )
    by_indices = PyroMaskedOneHotCategorical(logits=logits, indices=torch.tensor([0, 1, 3]), unimix=0.1)
    torch.testing.assert_close(by_indices.log_prob(value), expected)


def test_a_masked_class_in_a_masked_model(logits: Tensor) -> None:
    """pyro.poutine.mask and pyro.sample's obs_mask call `.mask()`."""
    ours = PyroMaskedOneHotCategorical(logits=logits, mask=CATEGORIES).to_event(1)
    value, observed = ours(), torch.tensor([True, False])

    def model() -> None:
        with pyro.plate("batch", 2), pyro.poutine.mask(mask=observed):
            pyro.sample("masked", ours, obs=value)

    trace = pyro.poutine.trace(model).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), (ours.log_prob(value) * observed).sum())


# Relaxed classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "theirs"),
    [
        (PyroRelaxed, dist.RelaxedOneHotCategorical),
        (PyroStraightThrough, dist.RelaxedOneHotCategoricalStraightThrough),
    ],
)
def test_a_relaxed_class_is_pyros(logits: Tensor, cls: Any, theirs: Any) -> None:
    """Its order of arguments, its shapes and methods, and the density that Pyro's class gives of the same draw."""
    t = torch.tensor(0.7)
    probs = logits.softmax(-1)
    ours, theirs = cls(t, probs), theirs(t, probs)
    assert ours.has_rsample
    draw = ours()
    assert draw.shape == ours.shape() == (2, 3, 4)
    torch.testing.assert_close(ours.log_prob(draw), theirs.log_prob(draw), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.to_event(1).log_prob(draw), ours.log_prob(draw).sum(-1))
    observed = torch.tensor([True, False, True])
    torch.testing.assert_close(ours.mask(observed).log_prob(draw), ours.log_prob(draw) * observed)
    many = ours.expand_by([5])
    assert type(many) is cls
    assert many.batch_shape == (5, 2, 3)
    assert many().shape == (5, 2, 3, 4)
    assert cls.infer_shapes(temperature=t.shape, logits=logits.shape) == (ours.batch_shape, ours.event_shape)
    assert not ours.has_rsample_(False).expand_by([5])().requires_grad


def test_a_straight_through_draw_is_one_hot_with_the_gradient_of_the_relaxed_one(logits: Tensor) -> None:
    logits.requires_grad_()
    t, g = torch.tensor(0.7, requires_grad=True), torch.randn(5, 2, 3, 4)
    ours = PyroStraightThrough(t, logits=logits)
    draw: Any = ours.rsample((5,))
    soft = draw._unquantize
    assert torch.equal(draw, torch.nn.functional.one_hot(soft.argmax(-1), 4).float())
    found = torch.autograd.grad(draw, (logits, t), g, retain_graph=True)
    for ours_, expected in zip(found, torch.autograd.grad(soft, (logits, t), g, retain_graph=True), strict=True):
        torch.testing.assert_close(ours_, expected)
    # Pyro's class, of Pyro's draw.
    theirs = dist.RelaxedOneHotCategoricalStraightThrough(t, logits=logits)
    other = theirs.rsample()
    torch.testing.assert_close(ours.log_prob(other), theirs.log_prob(other), rtol=1e-4, atol=1e-4)
    hot = PyroStraightThrough(5.0, logits=torch.zeros(200, 50)).rsample()
    assert hot.unique().tolist() == [0, 1]
    # At a temperature at which float32 has no room for most of y.
    cold = PyroStraightThrough(0.02, logits=torch.zeros(8, 100, requires_grad=True), validate_args=True)
    draw = cold.rsample()
    log_prob = cold.log_prob(draw)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad((log_prob.sum(), draw.square().sum()), cold._param)[0].isfinite().all()


def test_a_category_that_is_off_has_no_mass_in_a_straight_through_draw() -> None:
    logits = torch.zeros(64, 5)
    logits[:, 3] = -torch.inf
    law = PyroStraightThrough(0.05, logits=logits, validate_args=True)
    draw: Any = law.rsample()
    assert (draw._unquantize[:, 3] == 0).all()
    assert law.log_prob(draw).isfinite().all()


@pytest.mark.parametrize("cls", [PyroRelaxed, PyroStraightThrough])
def test_a_relaxed_latent_trains(cls: Any) -> None:
    def model() -> None:
        with pyro.plate("data", 64):
            latent = pyro.sample("latent", cls(torch.tensor(0.5), logits=torch.zeros(3)))
            pyro.sample("observed", dist.Normal((latent * values).sum(-1), 0.5), obs=torch.full((64,), 2.0))

    def posterior() -> None:
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", 64):
            pyro.sample("latent", cls(torch.tensor(0.5), logits=logits))

    values = torch.tensor([-2.0, 0.0, 2.0])
    svi = SVI(model, posterior, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert losses[-1] < losses[0] / 2
    assert pyro.param("logits").argmax() == 2


# Gradients or none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [PyroOneHotCategorical, partial(PyroMaskedOneHotCategorical, mask=CATEGORIES)])
def test_has_rsample_is_set_as_pyros(logits: Tensor, make: Callable[..., Any]) -> None:
    """Pyro then takes the score function's gradient, and a draw has none; expanded and copied too."""
    logits.requires_grad_()
    ours = make(logits=logits, grad_method=PASS)
    assert ours.has_rsample is True
    assert ours().requires_grad
    assert ours.has_rsample_(False) is ours
    for new in (ours, ours.expand_by([5]), ours.to_event(1), copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert new.has_rsample is False
        assert not new().requires_grad
    parts = ours.score_parts(ours())
    torch.testing.assert_close(parts.score_function, parts.log_prob)
    # And the other way.
    assert make(logits=logits)().requires_grad is False
    assert make(logits=logits).has_rsample_(True)().requires_grad


@pytest.mark.parametrize("has_rsample", [True, False])
def test_graph_elbo_takes_what_has_rsample_says(has_rsample: bool) -> None:
    """The score function has the exact gradient in mean. By the draw it is exact for the reward, which is linear; none
    comes through the densities, which read an index of the value, as those of torch's straight-through class do."""
    values = torch.tensor([-1.0, 0.0, 1.0])

    def latent(logits: Tensor) -> Any:
        return PyroOneHotCategorical(logits=logits, grad_method=PASS).has_rsample_(has_rsample)

    def model() -> None:
        with pyro.plate("data", 4000):
            z = pyro.sample("z", latent(torch.zeros(3)))
            pyro.factor("reward", (z * values).sum(-1), has_rsample=has_rsample)

    def posterior() -> None:
        with pyro.plate("data", 4000):
            pyro.sample("z", latent(pyro.param("logits", torch.tensor([0.5, 0.0, -0.5]))))

    TraceGraph_ELBO().loss_and_grads(model, posterior)
    x = pyro.param("logits").detach().requires_grad_()
    p = x.softmax(-1)
    through_densities = 0.0 if has_rsample else p.log() - math.log(1 / 3)
    loss = (p * (through_densities - values)).sum()
    (expected,) = torch.autograd.grad(loss, x)
    found = pyro.param("logits").grad
    assert found is not None
    torch.testing.assert_close(found / 4000, expected, rtol=0, atol=0.06)


@pytest.mark.parametrize("make", [PyroOneHotCategorical, partial(PyroMaskedOneHotCategorical, mask=CATEGORIES)])
def test_copies(logits: Tensor, make: Callable[..., Any]) -> None:
    ours = make(logits=logits)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        torch.testing.assert_close(other.entropy(), ours.entropy())


# Models: a mixture of three components, whose assignments are summed out.

DATA = torch.tensor([-2.1, -1.9, 0.1, 0.0, 2.2, 1.8])


def mixture(make: Callable[..., object]) -> Callable[[], None]:
    def model() -> None:
        weights = pyro.param("weights", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
        means = pyro.param("means", torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("data", len(DATA)):
            assignment = pyro.sample("assignment", make(probs=weights), infer={"enumerate": "parallel"})
            pyro.sample("observed", dist.Normal((assignment * means).sum(-1), 1.0), obs=DATA)

    return model


def guide() -> None:
    pass


def test_an_enumerated_model_is_pyros_to_the_digit() -> None:
    results = []
    for make in (PyroOneHotCategorical, dist.OneHotCategorical):
        pyro.clear_param_store()
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(mixture(make), guide)
        parameters = [pyro.param(name).unconstrained() for name in ("weights", "means")]
        results.append((loss, *torch.autograd.grad(loss, parameters)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_sampled_latent_trains() -> None:
    """A straight-through latent: no enumeration, the gradient through the draw itself."""

    def model() -> None:
        with pyro.plate("data", 64):
            latent = pyro.sample("latent", PyroOneHotCategorical(logits=torch.zeros(3), grad_method=method))
            pyro.sample("observed", dist.Normal((latent * values).sum(-1), 0.5), obs=torch.full((64,), 2.0))

    def posterior() -> None:
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", 64):
            pyro.sample("latent", PyroOneHotCategorical(logits=logits, grad_method=method))

    method, values = ReparamGradientStrategy.PassThrough, torch.tensor([-2.0, 0.0, 2.0])
    svi = SVI(model, posterior, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert losses[-1] < losses[0] / 2
    assert pyro.param("logits").argmax() == 2
