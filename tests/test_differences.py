"""Every row of docs/coming-from.md: a call to the installed peer, and to us. A row is a test of its name.

A test that fails after an upgrade of a peer says that its row is to be changed.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as D

pytest.importorskip("torchrl", reason="TorchRL is not installed")

from torchrl.modules import MaskedOneHotCategorical as TheirMaskedOneHotCategorical
from torchrl.modules import OneHotCategorical as TheirOneHotCategorical
from torchrl.modules import ReparamGradientStrategy as TheirStrategy

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, RelaxedOneHotCategorical, ReparamGradientStrategy

# Importing TorchRL turned it off, for every test of this process.
D.Distribution.set_default_validate_args(__debug__)

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
LOGITS = torch.tensor([[0.3, -1.0, 0.8, 0.1, -0.4], [1.2, 0.0, -0.7, 0.5, 0.9]])
PASS_THROUGH, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot


def test_the_page_and_the_tests_are_of_each_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    tests = [name for name in globals() if name.startswith("test_") and name not in NO_ROWS]
    assert sorted("test_" + row for row in rows) == sorted(tests)


def test_the_page_states_the_installed_versions() -> None:
    """Without the patch release, which changes nothing that the page compares."""

    def numbers(version: str) -> list[int]:
        return [int(number) for number in version.split(".")[:2]]

    for package in ("torchrl", "tensordict", "torch"):
        stated = re.search(rf"\b{package} (\d+\.\d+)(?: to (\d+\.\d+))?", PAGE.read_text(), re.IGNORECASE)
        assert stated, package
        installed = importlib.metadata.version(package)
        assert numbers(stated[1]) <= numbers(installed) <= numbers(stated[2] or stated[1]), f"{package} {installed}"


# The last is a sentence of the page, where torch does the same.
NO_ROWS = {
    "test_the_page_and_the_tests_are_of_each_other",
    "test_the_page_states_the_installed_versions",
    "test_mode_and_cdf",
}


# Gradients ------------------------------------------------------------------------------------------------------------


def gradient(dist_of, incoming: Tensor) -> tuple[Tensor, Tensor]:
    """A draw and the gradient of the logits."""
    logits = LOGITS.clone().requires_grad_()
    draw = dist_of(logits).rsample()
    (grad,) = torch.autograd.grad(draw, logits, incoming)
    return draw.detach(), grad


def test_relaxed_gradient() -> None:
    g = torch.randn_like(LOGITS)

    def theirs(x: Tensor) -> TheirOneHotCategorical:
        return TheirOneHotCategorical(x, grad_method=TheirStrategy.RelaxedOneHot)

    # Theirs, exactly: the backward of softmax at a saved output that was overwritten by the one-hot h, so h (g - g_k),
    # which is 0, through exp and log_softmax gives g_k (h - y) with y the softmax of the logits' noise.
    torch.manual_seed(1)
    h, grad = gradient(theirs, g)
    torch.manual_seed(1)
    relaxed = D.RelaxedOneHotCategorical(torch.tensor(1.0), logits=LOGITS).rsample()
    g_k = (h * g).sum(-1, keepdim=True)
    torch.testing.assert_close(grad, g_k * (h - relaxed))

    # Ours has the mean of the straight-through Gumbel-softmax gradient y (g - <y, g>) / t; theirs is far from it.
    def mean_and_error(dist_of, draws: int = 4000) -> tuple[Tensor, Tensor]:
        logits = LOGITS.expand(draws, *LOGITS.shape).clone().requires_grad_()
        (grads,) = torch.autograd.grad(dist_of(logits).rsample(), logits, g.expand_as(logits))
        return grads.mean(0), grads.std(0) / draws**0.5

    y = D.RelaxedOneHotCategorical(torch.tensor(1.0), logits=LOGITS).rsample((100_000,))
    expected = (y * (g - (y * g).sum(-1, keepdim=True))).mean(0)
    ours, error = mean_and_error(lambda x: OneHotCategorical(x, grad_method=RELAXED))
    assert ((ours - expected).abs() < 6 * error).all()
    their_mean, their_error = mean_and_error(theirs)
    assert ((their_mean - expected).abs() > 6 * their_error).any()


def test_relaxed_temperature() -> None:
    with pytest.raises(TypeError, match="temperature"):
        TheirOneHotCategorical(LOGITS, temperature=0.5)
    assert OneHotCategorical(LOGITS, grad_method=RELAXED, temperature=0.5).temperature == 0.5


def test_pass_through_rows() -> None:
    logits = 3 * torch.randn(2000, 32)
    theirs = TheirOneHotCategorical(logits, grad_method=TheirStrategy.PassThrough).rsample()
    assert (theirs.sum(-1) != 1).any()
    assert ((theirs != 0) & (theirs != 1)).any()
    torchs = D.OneHotCategoricalStraightThrough(logits=logits).rsample()
    ours = OneHotCategorical(logits, grad_method=PASS_THROUGH).rsample()
    for draw in (torchs, ours):
        assert (draw.sum(-1) == 1).all()
        assert ((draw == 0) | (draw == 1)).all()


def test_has_rsample() -> None:
    assert not TheirOneHotCategorical(LOGITS, grad_method=TheirStrategy.PassThrough).has_rsample
    assert not OneHotCategorical(LOGITS).has_rsample
    assert OneHotCategorical(LOGITS, grad_method=PASS_THROUGH).has_rsample


# Samples --------------------------------------------------------------------------------------------------------------


def test_sample_shape() -> None:
    for shape in (None, 3):
        with pytest.raises(TypeError):
            TheirOneHotCategorical(LOGITS).sample(shape)
    assert OneHotCategorical(LOGITS).sample(None).shape == (2, 5)
    assert OneHotCategorical(LOGITS).sample(3).shape == (3, 2, 5)


def test_event_shape() -> None:
    theirs, ours = TheirOneHotCategorical(LOGITS), OneHotCategorical(LOGITS)
    assert (theirs.batch_shape, theirs.event_shape) == ((2,), ())
    assert (ours.batch_shape, ours.event_shape) == ((2,), (5,))
    # Their Independent sums over a dimension that is no event of theirs, and both give the same number.
    draw = ours.sample()
    theirs, ours = D.Independent(theirs, 1), D.Independent(ours, 1)
    torch.testing.assert_close(theirs.log_prob(draw), ours.log_prob(draw))


def test_one_column() -> None:
    """Theirs takes [rows, 1] for a row of `rows` categories."""
    logits = torch.zeros(4, 1)
    theirs, ours = TheirOneHotCategorical(logits), OneHotCategorical(logits)
    assert theirs.batch_shape == ()
    assert theirs.probs.shape == (4,)
    assert ours.batch_shape == (4,)
    assert torch.equal(ours.sample(), torch.ones(4, 1, dtype=torch.int64))


def test_sample_dtype() -> None:
    assert TheirOneHotCategorical(LOGITS).sample().dtype == torch.int64
    assert D.OneHotCategorical(logits=LOGITS).sample().dtype == torch.float32
    assert OneHotCategorical(LOGITS).sample().dtype == torch.int64
    assert OneHotCategorical(LOGITS, dtype=torch.bool).sample().dtype == torch.bool
    method = ReparamGradientStrategy.PassThrough
    assert OneHotCategorical(LOGITS, grad_method=method).mode.dtype == LOGITS.dtype


def test_mode_at_ties() -> None:
    tie = torch.tensor([0.0, 1.0, 1.0])
    assert TheirOneHotCategorical(tie).mode.tolist() == [0, 1, 1]
    assert D.OneHotCategorical(logits=tie).mode.tolist() == [0, 1, 0]
    assert OneHotCategorical(tie).mode.tolist() == [0, 1, 0]


def test_enumerate_support() -> None:
    assert TheirOneHotCategorical(LOGITS).enumerate_support().tolist() == [[i, i] for i in range(5)]
    assert OneHotCategorical(LOGITS).enumerate_support().shape == (5, 2, 5)
    torch.testing.assert_close(
        OneHotCategorical(LOGITS).enumerate_support().float(), D.OneHotCategorical(logits=LOGITS).enumerate_support()
    )


def test_support() -> None:
    assert isinstance(TheirOneHotCategorical(LOGITS).support, type(D.constraints.integer_interval(0, 1)))
    assert OneHotCategorical(LOGITS).support is D.constraints.one_hot


def test_generator() -> None:
    with pytest.raises(TypeError, match="generator"):
        TheirOneHotCategorical(LOGITS).sample((), generator=torch.Generator())
    draws = [OneHotCategorical(LOGITS).sample(9, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_other_numbers_from_a_seed() -> None:
    draws = []
    for dist in (TheirOneHotCategorical(LOGITS), D.OneHotCategorical(logits=LOGITS), OneHotCategorical(LOGITS)):
        torch.manual_seed(0)
        draws.append(dist.sample((50,)).argmax(-1))
    assert not torch.equal(draws[2], draws[0])
    assert not torch.equal(draws[2], draws[1])


# Densities ------------------------------------------------------------------------------------------------------------


def test_zero_probability() -> None:
    probs, value = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0, 0, 1])
    clamped = math.log(torch.finfo(torch.float32).eps)
    theirs = TheirOneHotCategorical(probs=probs)
    assert theirs.log_prob(value).item() == pytest.approx(clamped)
    assert D.OneHotCategorical(probs=probs).log_prob(value.float()).item() == pytest.approx(clamped)
    assert clamped == pytest.approx(-15.9424, abs=1e-4)
    # The clamped category has a gradient, and their RelaxedOneHot, which draws from the clamped logits, draws it.
    many = TheirOneHotCategorical(
        probs=torch.cat([torch.ones(1), torch.zeros(2**17)]), grad_method=TheirStrategy.RelaxedOneHot
    )
    assert many.rsample((500,))[:, 1:].sum() > 0
    ours = OneHotCategorical(probs=probs)
    assert ours.log_prob(value).item() == -math.inf
    assert ours.logits[2] == -1e4
    filled = OneHotCategorical(probs=probs, neg_inf=clamped)
    assert filled.log_prob(value).item() == filled.logits[2].item() == pytest.approx(clamped)
    many = OneHotCategorical(probs=torch.cat([torch.ones(1), torch.zeros(2**17)]), grad_method=RELAXED)
    assert many.rsample((500,))[:, 1:].sum() == 0


def test_bool_values() -> None:
    value = F.one_hot(torch.tensor([1, 2]), 5).bool()
    with pytest.raises(RuntimeError, match="does not support bool"):
        TheirOneHotCategorical(LOGITS).log_prob(value)
    expected = D.OneHotCategorical(logits=LOGITS).log_prob(value.float())
    torch.testing.assert_close(OneHotCategorical(LOGITS).log_prob(value), expected)


def test_values_that_are_not_one_hot() -> None:
    bad = torch.full((2, 5), 7.0)
    for validate in (False, True):
        assert TheirOneHotCategorical(LOGITS, validate_args=validate).log_prob(bad).isfinite().all()
    with pytest.raises(ValueError, match="within the support"):
        D.OneHotCategorical(logits=LOGITS, validate_args=True).log_prob(bad)
    with pytest.raises(ValueError, match="value: expected one-hot rows"):
        OneHotCategorical(LOGITS, validate_args=True).log_prob(bad)
    # Not validated, the first maximum counts, as in TorchRL.
    ours, theirs = OneHotCategorical(LOGITS, validate_args=False), TheirOneHotCategorical(LOGITS, validate_args=False)
    torch.testing.assert_close(ours.log_prob(bad), theirs.log_prob(bad))


def test_mean_and_variance() -> None:
    theirs = TheirOneHotCategorical(LOGITS)
    assert theirs.mean.isnan().all()
    assert theirs.variance.isnan().all()
    ours, torchs = OneHotCategorical(LOGITS), D.OneHotCategorical(logits=LOGITS)
    torch.testing.assert_close(ours.mean, torchs.mean)
    torch.testing.assert_close(ours.variance, torchs.variance)


def test_mode_and_cdf() -> None:
    for dist in (OneHotCategorical(LOGITS), D.OneHotCategorical(logits=LOGITS)):
        assert isinstance(dist.mode, Tensor)
        for name in ("cdf", "icdf"):
            with pytest.raises(NotImplementedError) as error:
                getattr(dist, name)(dist.sample())
            # Ours says why.
            assert str(error.value).startswith(f"{name}: expected") == isinstance(dist, OneHotCategorical)


def test_half_precision() -> None:
    logits = 4 * torch.randn(64, 1000)
    half = logits.bfloat16()
    exact = D.OneHotCategorical(logits=half.double())
    index = exact.sample().argmax(-1)
    value = F.one_hot(index, 1000)

    def error(dist: D.Distribution) -> float:
        return (dist.log_prob(value).double() - exact.log_prob(value.double())).abs().mean().item()

    def entropy_error(dist: D.Distribution) -> float:
        return (dist.entropy().double() - exact.entropy()).abs().mean().item()

    assert OneHotCategorical(half).log_prob(value).dtype == OneHotCategorical(half).entropy().dtype == torch.float32
    assert TheirOneHotCategorical(half).log_prob(value).dtype == torch.bfloat16
    assert error(OneHotCategorical(half)) < error(TheirOneHotCategorical(half))
    assert entropy_error(OneHotCategorical(half)) < entropy_error(TheirOneHotCategorical(half)) / 2


# House ----------------------------------------------------------------------------------------------------------------


def test_expand() -> None:
    with pytest.raises(NotImplementedError, match="expand"):
        TheirOneHotCategorical(LOGITS).expand((3, 2))
    assert OneHotCategorical(LOGITS, dtype=torch.bool).expand((3, 2)).sample().shape == (3, 2, 5)


def test_validation_default() -> None:
    """Importing TorchRL changes torch's default for every distribution of the process; importing us changes nothing."""

    def default_after(module: str) -> str:
        code = f"import torch, {module}; print(torch.distributions.Distribution._validate_args)"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    assert default_after("torchrl.modules.distributions") == "False"
    assert default_after("onehot_triton") == "True"


def test_invalid_rows() -> None:
    bad = torch.tensor([[0.0, 0.0], [math.nan, 0.0]])
    with pytest.raises(RuntimeError, match="probability tensor contains either"):
        TheirOneHotCategorical(bad, validate_args=False).sample()
    with pytest.raises(ValueError, match=r"logits: .*found nan at \[1, 0\]"):
        OneHotCategorical(bad, validate_args=True)
    ours = OneHotCategorical(bad, validate_args=False)
    assert ours.sample()[1].tolist() == [0, 0]
    assert ours.entropy()[1].isnan()


def test_graph_breaks() -> None:
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda x: TheirOneHotCategorical(x).sample(), fullgraph=True, backend="eager")(LOGITS)
    # As torch.compile does itself when it first meets a distribution of torch's in a process.
    D.Distribution.set_default_validate_args(False)
    for function in (
        lambda x: OneHotCategorical(x).sample(),
        lambda x: D.OneHotCategorical(logits=x).sample(),
        lambda x: F.gumbel_softmax(x, hard=True),
    ):
        torch._dynamo.reset()
        draw = torch.compile(function, fullgraph=True, backend="eager")(LOGITS)
        torch.testing.assert_close(draw.sum(-1).float(), torch.ones(2))


def test_grad_method_none() -> None:
    with pytest.raises(AttributeError, match="reparam_strategy"):
        TheirOneHotCategorical(LOGITS, grad_method=None).rsample()
    logits = LOGITS.clone().requires_grad_()
    assert OneHotCategorical(logits, grad_method=None).rsample().requires_grad


def test_strategies_of_both() -> None:
    assert TheirStrategy is not ReparamGradientStrategy
    assert {s.name: s.value for s in TheirStrategy}.items() <= {
        s.name: s.value for s in ReparamGradientStrategy
    }.items()
    for theirs in TheirStrategy:
        for ours in (
            OneHotCategorical(LOGITS, grad_method=theirs),
            MaskedOneHotCategorical(LOGITS, mask=MASK, grad_method=theirs),
        ):
            assert ours.grad_method is ReparamGradientStrategy[theirs.name]
            assert ours.has_rsample
            assert ours.rsample().requires_grad == LOGITS.requires_grad


# The masked class -----------------------------------------------------------------------------------------------------

MASK = torch.tensor([True, False, True, True, False]).expand(2, -1)
INDICES = torch.tensor([[0, 2, 3], [3, 2, 0]])
NOTHING = torch.zeros(2, 5, dtype=torch.bool)


def test_masked_log_prob_of_draws() -> None:
    theirs = TheirMaskedOneHotCategorical(logits=LOGITS, mask=MASK)
    ours = MaskedOneHotCategorical(logits=LOGITS, mask=MASK)
    draws = ours.sample((4,))
    with pytest.raises(ValueError, match="batch_size"):
        theirs.log_prob(draws)
    torch.testing.assert_close(ours.log_prob(draws), torch.stack([theirs.log_prob(draw) for draw in draws]))


def test_masked_neg_inf() -> None:
    masked = F.one_hot(torch.tensor([1, 4]), 5)
    theirs = TheirMaskedOneHotCategorical(logits=LOGITS, mask=MASK, neg_inf=-50.0)
    assert (theirs.log_prob(masked) < -50.1).all()
    assert MaskedOneHotCategorical(LOGITS, mask=MASK, neg_inf=-50.0).log_prob(masked).tolist() == [-50, -50]
    assert MaskedOneHotCategorical(LOGITS, mask=MASK).log_prob(masked).tolist() == [-math.inf, -math.inf]
    assert (MaskedOneHotCategorical(LOGITS, mask=MASK).logits[~MASK.expand(2, -1)] == -1e4).all()


def test_masked_nothing_allowed() -> None:
    D.Distribution.set_default_validate_args(False)  # as the import of TorchRL leaves it
    theirs = TheirMaskedOneHotCategorical(logits=LOGITS, mask=NOTHING)
    assert theirs.entropy().tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="probability tensor contains either"):
        theirs.sample()
    with pytest.raises(ValueError, match="mask: expected an allowed category"):
        MaskedOneHotCategorical(LOGITS, mask=NOTHING, validate_args=True)
    ours = MaskedOneHotCategorical(LOGITS, mask=NOTHING, validate_args=False)
    assert ours.entropy().isnan().all()
    assert ours.sample().count_nonzero() == 0


def test_masked_repeated_indices() -> None:
    twice = torch.tensor([0, 0, 2])
    theirs = TheirMaskedOneHotCategorical(logits=torch.zeros(3), indices=twice)
    torch.testing.assert_close(theirs.probs, torch.full((3,), 1 / 3))  # of category 0, of category 0, of category 2
    ours = MaskedOneHotCategorical(logits=torch.zeros(3), indices=twice)
    assert ours.probs.tolist() == [0.5, 0, 0.5]


def test_masked_shape_of_probs() -> None:
    theirs = TheirMaskedOneHotCategorical(logits=LOGITS, indices=INDICES)
    ours = MaskedOneHotCategorical(logits=LOGITS, indices=INDICES)
    assert (theirs.probs.shape, ours.probs.shape) == ((2, 3), (2, 5))
    torch.testing.assert_close(ours.probs.gather(-1, INDICES), theirs.probs)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_masked_indices_of_the_batch() -> None:
    with pytest.raises(RuntimeError, match="same number of dimensions"):
        TheirMaskedOneHotCategorical(logits=LOGITS, indices=INDICES[0])
    assert torch.equal(MaskedOneHotCategorical(logits=LOGITS, indices=INDICES[0]).mask, MASK)


def test_masked_expand() -> None:
    with pytest.raises(NotImplementedError, match="expand"):
        TheirMaskedOneHotCategorical(logits=LOGITS, mask=MASK).expand((3, 2))
    assert MaskedOneHotCategorical(LOGITS, mask=MASK).expand((3, 2)).sample().shape == (3, 2, 5)


# torch.distributions and F.gumbel_softmax -----------------------------------------------------------------------------


def test_positional_order() -> None:
    """torch's first argument is probs, TorchRL's and ours is logits."""
    weights = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(D.OneHotCategorical(weights).probs, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(OneHotCategorical(weights).probs, weights.softmax(-1))
    torch.testing.assert_close(TheirOneHotCategorical(weights).probs, weights.softmax(-1))


@pytest.mark.parametrize(("offset", "dtype"), [(1e8, torch.float32), (1e3, torch.bfloat16)])
def test_gumbel_softmax_offset(offset: float, dtype: torch.dtype) -> None:
    logits = torch.full((2000, 2), offset, dtype=dtype)
    assert F.gumbel_softmax(logits, hard=True)[:, 0].double().mean() > 0.7
    ours = OneHotCategorical(logits, grad_method=RELAXED).rsample()
    assert abs(ours[:, 0].double().mean() - 0.5) < 6 * 0.5 / len(logits) ** 0.5


def test_gumbel_softmax_soft() -> None:
    y = RelaxedOneHotCategorical(torch.tensor(0.7), logits=LOGITS).rsample()
    torch.testing.assert_close(y.sum(-1), torch.ones(2))
    assert y.shape == F.gumbel_softmax(LOGITS, tau=0.7).shape


def test_dreamer_mode() -> None:
    """Theirs adds log p - log p.detach() to the mode."""

    class OneHotDist(D.OneHotCategorical):
        def mode(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            hot = F.one_hot(self.logits.argmax(-1), self.logits.shape[-1])
            return hot + self.logits - self.logits.detach()

    g, p = torch.randn_like(LOGITS), LOGITS.softmax(-1)
    logits = LOGITS.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(OneHotDist(logits=logits).mode(), logits, g)
    torch.testing.assert_close(theirs, g - p * g.sum(-1, keepdim=True))
    dist = OneHotCategorical(logits)
    (ours,) = torch.autograd.grad(dist.rmode, logits, g)
    torch.testing.assert_close(ours, p * (g - (p * g).sum(-1, keepdim=True)))
    (same,) = torch.autograd.grad(dist.mode + dist.logits - dist.logits.detach(), logits, g)
    torch.testing.assert_close(same, theirs)


def test_straight_through_class() -> None:
    """One class with two gradients, in place of a class for one: the PassThrough gradients are the same."""
    g = torch.randn_like(LOGITS)
    _, theirs = gradient(lambda x: D.OneHotCategoricalStraightThrough(logits=x), g)
    _, torchrl = gradient(lambda x: TheirOneHotCategorical(x, grad_method=TheirStrategy.PassThrough), g)
    _, ours = gradient(lambda x: OneHotCategorical(x, grad_method=PASS_THROUGH), g)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, torchrl)


def test_relaxed_zeros() -> None:
    y, t = torch.tensor([0.4, 0.6, 0.0]), torch.tensor(0.5)
    off = torch.tensor([0.3, 1.0, -torch.inf])
    assert D.RelaxedOneHotCategorical(t, logits=off).log_prob(y).isnan()
    assert D.RelaxedOneHotCategorical(t, probs=off.exp()).log_prob(y).isnan()
    others = D.RelaxedOneHotCategorical(t, logits=off[:2]).log_prob(y[:2])
    torch.testing.assert_close(RelaxedOneHotCategorical(t, logits=off).log_prob(y), others)
    low = {"temperature": torch.tensor(0.05), "logits": torch.zeros(200, 100), "validate_args": False}
    theirs, ours = D.RelaxedOneHotCategorical(**low), RelaxedOneHotCategorical(**low)
    draw = theirs.sample()
    assert theirs.log_prob(draw).isnan().double().mean() > 0.5
    assert not ours.log_prob(draw).isnan().any()
    assert ours.base_dist.log_prob(ours.base_dist.sample()).isfinite().all()


def test_log_relaxed_dtype() -> None:
    logits = torch.zeros(20, 100, dtype=torch.float16)
    theirs = D.RelaxedOneHotCategorical(torch.tensor(1e-4).half(), logits=logits).base_dist.sample()
    assert theirs.dtype == torch.float16
    assert theirs.isinf().any()
    ours = RelaxedOneHotCategorical(1e-4, logits=logits).base_dist.sample()
    assert ours.dtype == torch.float32
    assert ours.isfinite().all()
