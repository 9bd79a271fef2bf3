"""The class as a distribution of Pyro, mixed with Pyro's TorchDistributionMixin, beside Pyro's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

pytest.importorskip("pyro", reason="Pyro is not installed: pip install pyro-ppl")

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO

from onehot_triton import OneHotCategorical, ReparamGradientStrategy


class PyroOneHotCategorical(OneHotCategorical, TorchDistributionMixin):
    """All that it takes."""


@pytest.fixture(autouse=True)
def clear_params() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 3, 4)


def test_a_call_is_a_sample(logits: Tensor) -> None:
    draw = PyroOneHotCategorical(logits)()
    assert draw.shape == (2, 3, 4)
    assert (draw.sum(-1) == 1).all()
    assert PyroOneHotCategorical(logits, grad_method=ReparamGradientStrategy.PassThrough)().dtype == torch.float32


def test_shapes(logits: Tensor) -> None:
    ours = PyroOneHotCategorical(logits)
    assert ours.shape() == (2, 3, 4)
    assert ours.shape((5,)) == (5, 2, 3, 4)
    assert ours.event_dim == 1


def test_expand_by(logits: Tensor) -> None:
    ours = PyroOneHotCategorical(logits, unimix=0.1, dtype=torch.bool).expand_by([5])
    assert type(ours) is PyroOneHotCategorical
    assert ours.batch_shape == (5, 2, 3)
    assert ours.sample().dtype == torch.bool
    torch.testing.assert_close(ours.entropy()[1], OneHotCategorical(logits, unimix=0.1).entropy())


def test_to_event(logits: Tensor) -> None:
    ours = PyroOneHotCategorical(logits).to_event(1)
    assert (ours.batch_shape, ours.event_shape) == ((2,), (3, 4))
    value = ours.sample()
    torch.testing.assert_close(ours.log_prob(value), OneHotCategorical(logits).log_prob(value).sum(-1))


def test_mask(logits: Tensor) -> None:
    mask = torch.tensor([True, False, True])
    base = PyroOneHotCategorical(logits)
    value = base.sample()
    torch.testing.assert_close(base.mask(mask).log_prob(value), base.log_prob(value) * mask)
    assert (base.mask(False).log_prob(value) == 0).all()


@pytest.mark.parametrize("expand", [True, False])
def test_enumerate_support(logits: Tensor, expand: bool) -> None:
    ours, theirs = PyroOneHotCategorical(logits), dist.OneHotCategorical(logits=logits)
    assert ours.has_enumerate_support
    support = ours.enumerate_support(expand=expand)
    assert torch.equal(support.float(), theirs.enumerate_support(expand=expand))
    torch.testing.assert_close(ours.log_prob(support), theirs.log_prob(support.float()))
    torch.testing.assert_close(ours.log_prob(support).exp().sum(0), torch.ones(2, 3))


def test_support_is_pyros(logits: Tensor) -> None:
    assert PyroOneHotCategorical(logits).support is dist.OneHotCategorical(logits=logits).support is constraints.one_hot


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
            latent = pyro.sample("latent", PyroOneHotCategorical(torch.zeros(3), grad_method=method))
            pyro.sample("observed", dist.Normal((latent * values).sum(-1), 0.5), obs=torch.full((64,), 2.0))

    def posterior() -> None:
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", 64):
            pyro.sample("latent", PyroOneHotCategorical(logits, grad_method=method))

    method, values = ReparamGradientStrategy.PassThrough, torch.tensor([-2.0, 0.0, 2.0])
    svi = SVI(model, posterior, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert losses[-1] < losses[0] / 2
    assert pyro.param("logits").argmax() == 2
