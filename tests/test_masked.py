"""MaskedOneHotCategorical: everything is as with logits of -inf, or probabilities of 0, where the mask is False."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as D
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, ReparamGradientStrategy, use_backend

INF, NAN = math.inf, math.nan
PASS, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot

pytestmark = pytest.mark.usefixtures("one_thread")

each_kind = pytest.mark.parametrize("kind", ["logits", "probs"])
each_method = pytest.mark.parametrize("method", [PASS, RELAXED], ids=str)

# One shape for each kind of row: one group, several groups.
SHAPES = [(2, 3, 6), (2, 1500)]
interpreted = pytest.mark.interpreted(kind=["logits"])


@pytest.fixture(autouse=True)
def numpy_as_quiet_as_a_gpu() -> Iterator[None]:
    """The interpreter computes log 0 in NumPy, which warns where a GPU does not."""
    with np.errstate(all="ignore"):
        yield


def mask_of(shape: tuple[int, ...]) -> Tensor:
    """About half is True, the last category always."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(shape[-1])) > 0.5
    mask[..., -1] = True
    return mask


def both(shape: tuple[int, ...], kind: str = "logits", dtype: torch.dtype = torch.float32, **options: Any):
    """The masked distribution, whose masked parameters are rubbish, and its equal without a mask; and their leaves."""
    x, mask = torch.randn(shape, dtype=torch.float64), mask_of(shape)
    x = (x if kind == "logits" else x.exp()).to(dtype)
    rubbish = torch.tensor([NAN, INF, -INF, -3.0, 80.0]).to(dtype)[torch.arange(x.numel()) % 5].view(shape)
    masked = torch.where(mask, x, rubbish).requires_grad_()
    plain = x.masked_fill(~mask, -INF if kind == "logits" else 0).requires_grad_()
    ours = MaskedOneHotCategorical(**{kind: masked}, mask=mask, **options)
    return ours, OneHotCategorical(**{kind: plain}, **options), masked, plain


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


# Values ---------------------------------------------------------------------------------------------------------------

MEMBERS: dict[str, Callable[[OneHotCategorical], Tensor]] = {
    "logits": lambda d: d.logits,
    "probs": lambda d: d.probs,
    "mean": lambda d: d.mean,
    "variance": lambda d: d.variance,
    "mode": lambda d: d.mode,
    "entropy": lambda d: d.entropy(),
    "log_prob": lambda d: d.log_prob(F.one_hot(_index(d), d.num_samples)),
    "log_prob_index": lambda d: d.log_prob_index(_index(d)),
    "kl": lambda d: D.kl_divergence(d, OneHotCategorical(torch.zeros(d.param_shape, dtype=d._param.dtype))),
}


def _index(dist: OneHotCategorical) -> Tensor:
    """Two of each row."""
    return torch.arange(2 * dist.batch_shape.numel()).view(2, *dist.batch_shape) * 7 % dist.num_samples


@pytest.mark.interpreted(kind=["logits"], dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_kind
def test_members_are_those_without_the_masked_categories(kind, shape, dtype, backend):
    for member in MEMBERS.values():
        ours, plain, *_ = both(shape, kind, dtype)
        assert_same(member(ours).detach(), member(plain).detach())


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_kind
def test_gradients_are_those_without_the_masked_categories(kind, shape, backend):
    for name in ("logits", "probs", "variance", "entropy", "kl"):
        ours, plain, masked, unmasked = both(shape, kind)
        for dist in (ours, plain):
            out = MEMBERS[name](dist)
            finite = torch.where(out > -INF, out, 0.0)
            (finite * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        assert_same(masked.grad, unmasked.grad)
        assert masked.grad[~ours.mask].count_nonzero() == 0


def test_gradient_of_the_log_prob_of_a_masked_category_is_0_there(backend):
    ours, _, masked, _ = both((3, 6))
    ours.log_prob(ours.enumerate_support()).backward(torch.ones(6, 3))
    # Those that are allowed: sum_k (onehot(k) - p), over all k as over all draws.
    expected = 1 - 6 * ours.probs
    assert_same(masked.grad[ours.mask], expected[ours.mask].detach())
    assert masked.grad[~ours.mask].count_nonzero() == 0


@interpreted
@pytest.mark.parametrize("unimix", [0.0, 0.2])
@pytest.mark.parametrize("member", ["log_prob", "entropy"])
@each_kind
def test_gradcheck_and_gradgradcheck(member, kind, unimix, backend):
    mask = torch.tensor([[True, True, False, True], [False, True, True, True]])

    def function(param: Tensor) -> Tensor:
        dist = MaskedOneHotCategorical(**{kind: param}, mask=mask, unimix=unimix)
        return dist.log_prob_index(torch.tensor([3, 1])) if member == "log_prob" else dist.entropy()

    x = torch.randn(2, 4, dtype=torch.float64)
    param = (x if kind == "logits" else x.exp()).requires_grad_()
    assert gradcheck(function, (param,), fast_mode=True)
    assert gradgradcheck(function, (param,), fast_mode=True)


# Draws ----------------------------------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_method
@each_kind
def test_a_draw_and_its_gradient_are_those_without_the_masked_categories(kind, method, shape, backend):
    g, results = torch.linspace(-1, 1, 2 * math.prod(shape)).view(2, *shape), []
    t = 1.0 if method is PASS else 0.7
    *dists, masked, unmasked = both(shape, kind, grad_method=method, temperature=t)
    for dist, leaf in zip(dists, (masked, unmasked), strict=True):
        torch.manual_seed(3)
        draw = dist.rsample((2,))
        draw.backward(g)
        results.append((draw, leaf.grad, dist.sample(), dist.sample_index((5,)), *dist.sample_and_log_prob()))
    for found, expected in zip(*results, strict=True):
        assert_same(found, expected)
    assert masked.grad[~dists[0].mask].count_nonzero() == 0


@pytest.mark.interpreted(unimix=[0.0], kind=["logits"])
@pytest.mark.parametrize("unimix", [0.0, 0.5])
@each_kind
def test_a_masked_category_is_never_drawn(kind, unimix, backend):
    n = 50 if backend == "triton" else 20_000
    ours, *_ = both((3, 6), kind, unimix=unimix)
    many = ours.expand((n, 3))
    draws = torch.cat([many.sample(), many.rsample().long(), many.sample_and_log_prob()[0]])
    assert (draws.sum(-1) == 1).all()
    assert draws[:, ~ours.mask].count_nonzero() == 0
    # And every other one is.
    assert (draws.sum(0)[ours.mask] > 0).all()


def test_unimix_is_uniform_over_what_is_allowed(backend):
    x, mask = torch.randn(2, 5), torch.tensor([[True, False, True, True, False], [False] * 4 + [True]])
    p = torch.softmax(x.masked_fill(~mask, -INF), -1) * 0.8 + 0.2 * mask / mask.sum(-1, keepdim=True)
    assert_same(MaskedOneHotCategorical(x, mask=mask, unimix=0.2).probs, p)
    assert_same(MaskedOneHotCategorical(probs=x.exp(), mask=mask, unimix=0.2).probs, p)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, (tuple, list)) else [out]
        # A view is none of it: expand, detach and view make nothing.
        if not func.is_view:
            self.sizes += [t.numel() for t in results if isinstance(t, Tensor)]
        return out


def test_kernels_need_no_masked_copy_of_the_logits():
    """No operator beside the kernels makes anything of the logits' size."""
    x, mask = torch.randn(4, 300), mask_of((4, 300))
    with use_backend("triton"), Operators() as operators:
        dist = MaskedOneHotCategorical(x, mask=mask, validate_args=False)
        index = dist.sample_index()
        dist.log_prob_index(index)
        dist.entropy()
    assert operators.sizes
    assert max(operators.sizes) < 300


# Indices, neg_inf -----------------------------------------------------------------------------------------------------


def test_indices_are_a_mask():
    x = torch.randn(2, 5)
    dist = MaskedOneHotCategorical(x, indices=torch.tensor([[3, 1], [4, 4]]))
    expected = torch.tensor([[False, True, False, True, False], [False] * 4 + [True]])
    assert torch.equal(dist.mask, expected)
    assert_same(dist.probs, MaskedOneHotCategorical(x, mask=expected).probs)
    # For the whole batch.
    dist = MaskedOneHotCategorical(x, indices=torch.tensor([0]))
    assert torch.equal(dist.mask, torch.tensor([True, False, False, False, False]).expand(2, -1))


@pytest.mark.parametrize("padding", [-1, 0, 99])
def test_padding_stands_for_no_category(padding):
    indices = torch.tensor([[3, padding, 1], [4, padding, padding]])
    dist = MaskedOneHotCategorical(torch.randn(2, 5), indices=indices, padding_value=padding)
    assert torch.equal(dist.mask, torch.tensor([[False, True, False, True, False], [False] * 4 + [True]]))


def test_neg_inf_is_the_log_prob_of_a_masked_category():
    x, mask = torch.zeros(4), torch.tensor([True, False, True, False])
    dist = MaskedOneHotCategorical(x, mask=mask, neg_inf=-50.0)
    expected = torch.where(mask, -math.log(2), -50.0)
    assert_same(dist.log_prob(torch.eye(4)), expected)
    assert_same(dist.log_prob(torch.eye(4)[:, None]), expected[:, None])
    assert_same(dist.log_prob_index(torch.arange(4)), expected)
    assert_same(dist.logits, expected)
    # It is a number that is given, and no weight.
    assert_same(dist.probs, mask / 2)
    assert_same(dist.entropy(), torch.tensor(math.log(2)))


# House ----------------------------------------------------------------------------------------------------------------


def test_a_mask_broadcasts():
    x = torch.randn(2, 3, 5)
    for mask in (mask_of((5,)), mask_of((3, 5)), mask_of((2, 1, 5)), torch.tensor(True)):
        dist = MaskedOneHotCategorical(x, mask=mask)
        assert torch.equal(dist.mask, mask.expand(2, 3, 5))
        assert_same(dist.probs, x.masked_fill(~mask, -INF).softmax(-1))


# The parameters, the mask, and the batch that they make.
WIDER = [((5,), (7, 5), (7,)), ((3, 5), (2, 3, 5), (2, 3)), ((3, 1, 5), (4, 5), (3, 4)), ((1, 5), (2, 1, 1), (2, 1))]


@interpreted
@pytest.mark.parametrize(("of", "by", "batch"), WIDER, ids=str)
@each_kind
def test_a_mask_may_widen_the_batch(kind, of, by, batch, backend, small):
    """One policy with a mask for each state: values by torch in float64, and the gradient summed over the states."""
    x, mask, g = torch.randn(of), mask_of(by), torch.randn(*batch, 5)
    param = (x if kind == "logits" else x.exp()).requires_grad_()
    ours = MaskedOneHotCategorical(**{kind: param}, mask=mask, grad_method=PASS)
    assert ours.param_shape == (*batch, 5)
    assert ours.batch_shape == batch
    assert torch.equal(ours.mask, mask.expand(*batch, 5))
    assert ours._param.data_ptr() == param.data_ptr()
    wide = param.detach().double().requires_grad_()
    logits = wide if kind == "logits" else wide.log()
    oracle = D.OneHotCategorical(logits=logits.expand(*batch, 5).masked_fill(~mask, -1e30))
    index = torch.full(batch, 4)
    draw, entropy, log_prob = ours.rsample(), ours.entropy(), ours.log_prob_index(index)
    assert draw.shape == (*batch, 5)
    assert draw[~ours.mask].count_nonzero() == 0
    assert_same(ours.log_prob(draw.detach()).detach().double(), oracle.log_prob(draw.detach().double()).detach())
    expected = oracle.entropy(), oracle.log_prob(F.one_hot(index, 5).double())
    assert_same(entropy.detach().double(), expected[0].detach())
    assert_same(log_prob.detach().double(), expected[1].detach())
    (found,) = torch.autograd.grad((entropy + log_prob).sum() + (draw * g).sum(), param)
    # The gradient of a draw is that of its mean.
    total = (expected[0] + expected[1]).sum() + (oracle.probs * g.double()).sum()
    assert_same(found.double(), torch.autograd.grad(total, wide)[0])
    new = ours.expand((2, *batch))
    assert_same(new.entropy().detach(), entropy.detach().expand(2, *batch))


@pytest.mark.filterwarnings("ignore:.*lru_cache.*")
def test_a_mask_that_widens_the_batch_everywhere():
    """As indices, compiled, under vmap, with draws of a relaxed gradient and a temperature for each state."""
    x, mask = torch.randn(5, requires_grad=True), mask_of((7, 5))
    indices = torch.where(mask, torch.arange(5), -1)
    by_indices = MaskedOneHotCategorical(x, indices=indices, padding_value=-1)
    assert torch.equal(by_indices.mask, mask)

    def gradient(x: Tensor, mask: Tensor) -> Tensor:
        return torch.autograd.grad(MaskedOneHotCategorical(x, mask=mask).entropy().sum(), x)[0]

    def step(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        dist = MaskedOneHotCategorical(x, mask=mask)
        return dist.entropy(), dist.rsample()

    torch._dynamo.reset()
    entropy, draw = torch.compile(step, fullgraph=True, backend="aot_eager")(x, mask)
    assert draw[~mask].count_nonzero() == 0
    assert_same(entropy, by_indices.entropy())
    assert_same(torch.autograd.grad(entropy.sum(), x)[0], gradient(x, mask))
    many = torch.randn(2, 5)
    found = torch.func.vmap(lambda x: MaskedOneHotCategorical(x, mask=mask).entropy())(many)
    assert_same(found, MaskedOneHotCategorical(many[:, None], mask=mask).entropy())
    temperature, grads = torch.linspace(0.5, 2, 7, requires_grad=True), []
    for logits in (x, x.expand(7, 5)):
        torch.manual_seed(1)
        dist = MaskedOneHotCategorical(logits, mask=mask, grad_method=RELAXED, temperature=temperature)
        grads.append(torch.autograd.grad((dist.rsample() * torch.arange(5)).sum(), (x, temperature)))
    for found, expected in zip(*grads, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_a_mask_of_0_and_1_in_another_dtype(dtype, backend):
    x, mask = torch.randn(2, 5), mask_of((2, 5))
    other = mask.to(dtype)
    dist = MaskedOneHotCategorical(x, mask=other, validate_args=True)
    assert torch.equal(dist.mask, mask)
    assert_same(dist.entropy(), MaskedOneHotCategorical(x, mask=mask).entropy())
    # The distribution has a copy.
    assert torch.equal(other, mask.to(dtype))
    # Nobody looks: a number other than 0 is True.
    assert torch.equal(MaskedOneHotCategorical(x, mask=3 * mask.int(), validate_args=False).mask, mask)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.float32])
def test_a_mask_of_numpy(dtype, backend):
    """Also one that torch cannot take as it is: with negative strides, or that nobody may write to."""
    x, mask = torch.randn(2, 5), mask_of((5,))
    array = mask.numpy().astype(dtype)
    for other in (array, array[::-1].copy()[::-1], np.broadcast_to(array, (2, 5))):
        dist = MaskedOneHotCategorical(x, mask=other, validate_args=True)
        assert torch.equal(dist.mask, mask.expand(2, 5))
        assert_same(dist.entropy(), MaskedOneHotCategorical(x, mask=mask).entropy())
    array[:] = 1
    assert torch.equal(dist.mask, mask.expand(2, 5))
    indices = np.array([[3, 1], [4, -1]])
    dist = MaskedOneHotCategorical(x, indices=indices, padding_value=-1)
    assert torch.equal(dist.mask, MaskedOneHotCategorical(x, indices=torch.tensor(indices), padding_value=-1).mask)


def test_a_bool_mask_is_not_looked_at_or_copied():
    """Nothing is computed of it: the operators of a distribution with a mask are views."""
    x, mask = torch.randn(2, 3, 5), mask_of((3, 5))
    with use_backend("triton"), Operators() as operators:
        dist = MaskedOneHotCategorical(x, mask=mask, validate_args=False)
    assert operators.sizes == []
    assert dist.mask.data_ptr() == mask.data_ptr()


@pytest.mark.parametrize("kind", ["uint8", "numpy"])
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.filterwarnings("ignore:.*lru_cache.*")
def test_compiled_with_a_mask_of_0_and_1(kind, validate):
    def step(x: Tensor, mask: Any) -> tuple[Tensor, ...]:
        dist = MaskedOneHotCategorical(x, mask=mask, validate_args=validate)
        return dist.mask, dist.entropy()

    x, mask = torch.randn(4, 20), mask_of((4, 20))
    other = mask.byte() if kind == "uint8" else mask.numpy().astype(np.float32)
    torch._dynamo.reset()
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(x, other)
    assert torch.equal(found[0], mask)
    assert_same(found[1], MaskedOneHotCategorical(x, mask=mask).entropy())


def test_expand_copy_and_pickle_keep_everything(backend):
    dist, *_ = both((3, 6), grad_method=RELAXED, temperature=0.5, dtype=torch.bfloat16)
    dist.neg_inf = -9.0
    copies = [copy.deepcopy(dist), pickle.loads(pickle.dumps(dist)), dist.expand((3,)), dist.expand((4, 3))]
    for new in copies:
        assert type(new) is MaskedOneHotCategorical
        assert new.grad_method is RELAXED
        assert new.neg_inf == -9.0
        assert torch.equal(new.mask, dist.mask.expand(*new.batch_shape, 6))
        assert_same(new.entropy().detach(), dist.entropy().detach().expand(new.batch_shape))
        assert new.sample()[..., ~dist.mask].count_nonzero() == 0


def test_a_mask_that_is_changed_in_place_counts(backend):
    mask = torch.tensor([True, True, False])
    dist = MaskedOneHotCategorical(torch.zeros(3), mask=mask)
    assert_same(dist.entropy(), torch.tensor(math.log(2)))
    mask[2] = True
    assert_same(dist.entropy(), torch.tensor(math.log(3)))
    assert_same(dist.log_prob_index(torch.tensor(2)), torch.tensor(-math.log(3)))


def test_another_backend_later():
    x, mask = torch.randn(2, 5), mask_of((2, 5))
    with use_backend("triton"):
        dist = MaskedOneHotCategorical(x, mask=mask)
        expected = dist.entropy(), dist.log_prob(torch.eye(5)[:, None])
    assert_same(dist.entropy(), expected[0])
    with use_backend("triton"):
        assert_same(dist.log_prob(torch.eye(5)[:, None]), expected[1])


def test_independent():
    ours, plain, *_ = both((2, 3, 40))
    draw = plain.sample()
    assert_same(D.Independent(ours, 1).log_prob(draw).detach(), D.Independent(plain, 1).log_prob(draw).detach())


# Each method with each validation is for the class without a mask, in test_compile_matrix.py.
@pytest.mark.parametrize(("validate", "method"), [(True, PASS), (False, RELAXED)], ids=str)
@pytest.mark.filterwarnings("ignore:.*lru_cache.*")
def test_compiled_as_one_graph(validate, method):
    def step(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        dist = MaskedOneHotCategorical(x, mask=mask, grad_method=method, validate_args=validate)
        draw = dist.rsample()
        return draw, dist.log_prob(draw.detach()), dist.entropy(), dist.mode

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 7):
        x, mask = torch.randn(rows, 20, requires_grad=True), mask_of((rows, 20))
        draw, log_prob, entropy, mode = compiled(x, mask)
        (draw.square().sum() + log_prob.sum()).backward()
        dist = MaskedOneHotCategorical(x, mask=mask)
        assert_same(log_prob, dist.log_prob(draw))
        assert_same(entropy, dist.entropy())
        assert torch.equal(mode, dist.mode)
        assert draw[~mask].count_nonzero() == 0
        assert x.grad[~mask].count_nonzero() == 0


@pytest.mark.parametrize("of", [(3, 4), (3, 1), (4,), (2, 1, 3, 1)], ids=str)
@pytest.mark.filterwarnings("ignore:.*lru_cache.*")
def test_compiled_with_a_batch_of_several_dimensions(of, backend):
    """Also of a mask that is no rows; its gradient, of which a compiler may ask for no stride."""
    batch = (2, 2, 3, 2) if len(of) == 4 else (3, 4)
    x, mask = torch.randn(*batch, 20, requires_grad=True), mask_of((*of, 20))
    index = torch.full(batch, 19)

    def step(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        dist = MaskedOneHotCategorical(x, mask=mask, grad_method=PASS, validate_args=False)
        log_prob, entropy = dist.log_prob_index_and_entropy(index)
        return log_prob, entropy, dist.entropy(), dist.log_prob_index(index), dist.rsample()

    torch._dynamo.reset()
    # The draws differ, but not their gradient, p (g - <p, g>).
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        outs = function(x, mask)
        grads = [torch.ones_like(out) for out in outs[:-1]] + [x.detach()]
        results.append((*outs[:-1], *torch.autograd.grad(outs, x, grads)))
    for expected, found in zip(*results, strict=True):
        assert_same(found, expected)


def test_under_vmap(backend):
    x, mask = torch.randn(4, 3, 6), mask_of((4, 3, 6))

    def densities(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        dist = MaskedOneHotCategorical(x, mask=mask)
        return dist.entropy(), dist.log_prob_index(torch.tensor([5, 5, 5]))

    dist = MaskedOneHotCategorical(x, mask=mask)
    entropy, log_prob = torch.func.vmap(densities)(x, mask)
    assert_same(entropy, dist.entropy())
    assert_same(log_prob, dist.log_prob_index(torch.full((4, 3), 5)))
    assert_same(torch.func.vmap(densities)(x, mask.byte())[0], dist.entropy())
    found = torch.func.vmap(lambda x: densities(x, mask[0])[0])(x)
    assert_same(found, MaskedOneHotCategorical(x, mask=mask[0]).entropy())


# Bad input ------------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3)
MASK = torch.ones(2, 3, dtype=torch.bool)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"logits": X}, "mask, indices: expected exactly one of the two, found neither"),
    ({"logits": X, "mask": MASK, "indices": torch.tensor([0])}, "mask, indices: .*found both"),
    ({"logits": X, "probs": X, "mask": MASK}, "logits, probs: .*found both"),
    ({"logits": X, "mask": 2 * MASK.int().triu()}, r"mask: expected 0 and 1, found 2 at \[0, 0\]"),
    ({"logits": X, "mask": torch.tensor([1.0, 0.5, 1.0])}, r"mask: expected 0 and 1, found 0.5 at \[1\]"),
    ({"logits": X, "mask": torch.tensor([0.0, -INF, 0.0])}, r"mask: expected 0 and 1, found -inf at \[1\]"),
    ({"logits": X, "mask": torch.tensor([1.0, 0.0, NAN])}, r"mask: expected 0 and 1, found nan at \[2\]"),
    ({"probs": X + 1, "mask": np.array([[1], [-1]])}, r"mask: expected 0 and 1, found -1 at \[1, 0\]"),
    ({"logits": X, "mask": [True]}, "mask: expected a tensor or a NumPy array, found list"),
    (
        {"logits": X, "mask": np.array([1, 0, None])},
        "mask: expected numbers that torch knows, found object",
    ),
    ({"logits": X, "mask": torch.ones(3, device="meta")}, "mask: expected a tensor on cpu, as the parameters"),
    ({"logits": X, "mask": MASK[:, :2]}, r"mask: expected a last dimension of 1 or 3, found shape \[2, 2\]"),
    ({"logits": X[:, :1], "mask": MASK}, r"mask: expected a last dimension of 1 or 1, found shape \[2, 3\]"),
    ({"logits": X, "mask": MASK[:1].expand(4, 3)}, r"mask: .* broadcast with the batch \[2\], found \[4\]"),
    ({"logits": X, "indices": X}, "indices: expected an integer tensor, found torch.float32"),
    ({"logits": X, "indices": torch.tensor(1)}, r"indices: expected \[\*batch, n\], found shape \[\]"),
    (
        {"logits": X, "indices": torch.zeros(3, 1, dtype=int)},
        r"indices: .* broadcast with the batch \[2\], found \[3\]",
    ),
    ({"logits": X, "indices": torch.tensor([0, 3])}, r"indices: expected 0 .. 2, found 3 at \[1\]"),
    ({"logits": X, "indices": torch.tensor([0, -1])}, r"indices: expected 0 .. 2, found -1 at \[1\]"),
    ({"logits": X, "indices": torch.tensor([0, -1, 3]), "padding_value": -1}, r"indices: .* found 3 at \[2\]"),
    ({"logits": X, "indices": torch.tensor([0, -1, -2]), "padding_value": -1}, r"indices: .* found -2 at \[2\]"),
    ({"logits": X, "indices": torch.tensor([0]), "padding_value": 0.5}, "padding_value: expected an int"),
    ({"logits": X, "mask": MASK, "neg_inf": 3.0}, "neg_inf: expected None or a number below 0, found 3.0"),
    ({"logits": X, "mask": MASK, "neg_inf": NAN}, "neg_inf: .*found nan"),
    ({"logits": X, "mask": torch.tensor([[True], [False]])}, r"mask: expected an allowed category .*none at \[1\]"),
    ({"probs": X + 1, "mask": torch.tensor([[True], [False]])}, r"mask: .*found none at \[1\]"),
    ({"logits": torch.tensor([[NAN, 0.0]]), "mask": MASK[:1, :2]}, r"logits: .*found nan at \[0, 0\]"),
    ({"probs": -torch.ones(2, 3), "mask": MASK.triu(1) | MASK.tril(-1)}, r"probs: .*found -1.0 at \[0, 1\]"),
    ({"probs": torch.tensor([0.0, 1.0]), "mask": torch.tensor([True, False])}, "probs: expected a positive sum"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedOneHotCategorical(**arguments, validate_args=True)


def test_a_row_with_nothing_allowed_is_no_distribution(backend):
    mask = torch.tensor([[True, True], [False, False]])
    dist = MaskedOneHotCategorical(torch.zeros(2, 2), mask=mask, validate_args=False)
    assert dist.sample()[1].tolist() == [0, 0]
    assert dist.sample_index().tolist()[1] == -1
    assert dist.mode.tolist() == [[1, 0], [0, 0]]
    assert dist.entropy()[1].isnan()
    assert dist.log_prob_index(torch.zeros(2, dtype=torch.int64))[1].isnan()


@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("bad", [-1, -2, 3, 100])
def test_an_index_of_no_category_unchecked_allows_none(bad, padding):
    dist = MaskedOneHotCategorical(
        torch.zeros(3), indices=torch.tensor([0, bad, 2]), padding_value=padding, validate_args=False
    )
    assert dist.mask.tolist() == [True, False, True]


# A row in which nothing is allowed ------------------------------------------------------------------------------------

REINMAX, GAPPED = ReparamGradientStrategy.ReinMax, ReparamGradientStrategy.GappedStraightThrough


def with_an_empty_row(columns: int) -> tuple[Tensor, Tensor]:
    """Logits [4, columns], rubbish where they are masked, and a mask of which the last row allows nothing."""
    x, mask = torch.randn(4, columns, dtype=torch.float64), mask_of((4, columns))
    mask[3] = False
    return torch.where(mask, x, torch.tensor([NAN, INF, 80.0])[torch.arange(columns) % 3]), mask


DENSITIES: dict[str, Callable[[MaskedOneHotCategorical, Tensor], tuple[Tensor, ...]]] = {
    "log_prob": lambda d, k: (d.log_prob(F.one_hot(k, d.num_samples)),),
    "log_prob_index": lambda d, k: (d.log_prob_index(k),),
    "entropy": lambda d, k: (d.entropy(),),
    "log_prob_and_entropy": lambda d, k: d.log_prob_and_entropy(F.one_hot(k, d.num_samples)),
    "log_prob_index_and_entropy": lambda d, k: d.log_prob_index_and_entropy(k),
}


@pytest.mark.parametrize("columns", [6, 1500])
@pytest.mark.parametrize("name", DENSITIES)
def test_densities_of_an_empty_row_have_gradient_0(backend, name, columns):
    """Agents that do not act, whose loss is left out, leave the weights alone: the first and second derivatives are
    those of torch's operations on the other rows, and 0 in the empty one, whose values stay NaN."""
    x, mask = with_an_empty_row(columns)
    index = mask.int().argmax(-1)
    leaf, weight = x.clone().requires_grad_(), torch.ones(4, dtype=x.dtype, requires_grad=True)
    found = DENSITIES[name](MaskedOneHotCategorical(leaf, mask=mask, validate_args=False), index)
    assert all(v[3].isnan() and v[:3].isfinite().all() for v in found)
    acts = mask.any(-1)
    loss = sum((torch.where(acts, v, 0.0) * weight).square().sum() for v in found)
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    second, of_weight = torch.autograd.grad(first.square().sum(), (leaf, weight))
    if backend == "triton":
        assert of_weight.isfinite().all()

    leaf = x[:3].clone().requires_grad_()
    log_p = torch.where(mask[:3], leaf, -INF).log_softmax(-1)
    chosen, h = log_p.gather(-1, index[:3, None]), -(log_p.exp() * log_p.clamp_min(-1e9)).sum(-1)
    wanted = {"entropy": (h,), "log_prob": (chosen,), "log_prob_index": (chosen,)}.get(name, (chosen, h))
    expected = torch.autograd.grad(sum(v.square().sum() for v in wanted), leaf, create_graph=True)
    expected += torch.autograd.grad(expected[0].square().sum(), leaf)
    for f, e in zip((first, second), expected, strict=True):
        torch.testing.assert_close(f[:3], e)
        assert f[~mask].count_nonzero() == 0


@pytest.mark.parametrize("columns", [6, 1500])
@pytest.mark.parametrize("draws", [(), (2,)], ids=str)
@pytest.mark.parametrize(
    ("method", "samples"),
    [(PASS, 1), (RELAXED, 1), (RELAXED, 3), (REINMAX, 1), (GAPPED, 1)],
    ids=["PassThrough", "RelaxedOneHot", "Gumbel-Rao", "ReinMax", "Gapped"],
)
def test_draws_of_an_empty_row_have_gradient_0(backend, method, samples, draws, columns):
    """As without that row; also where what comes in as its gradient is NaN, as from a normalisation of its zeros."""
    x, mask = with_an_empty_row(columns)
    other, weight = torch.randn(4, columns), torch.randn(4, columns)

    def gradient(rows: int) -> Tensor:
        torch.manual_seed(3)
        leaf = x[:rows].float().requires_grad_()
        options = {"temperature": 1.5, "relaxed_samples": samples} if method is not PASS else {}
        dist = MaskedOneHotCategorical(leaf, mask=mask[:rows], validate_args=False, grad_method=method, **options)
        drawn = dist.rsample(draws)
        assert drawn.sum(-1).eq(mask[:rows].any(-1)).all()
        share = drawn * other[:rows].exp()
        share = torch.where(mask[:rows].any(-1, keepdim=True), share / share.sum(-1, keepdim=True), 0.0)
        (share * weight[:rows]).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    found = gradient(4)
    assert found.isfinite().all()
    assert found[~mask].count_nonzero() == 0
    if backend == "triton":
        # One seed is the same noise in the other rows.
        assert torch.equal(found[:3], gradient(3))


@pytest.mark.parametrize("method", [PASS, REINMAX, GAPPED], ids=str)
def test_second_derivative_of_a_draw_of_an_empty_row_is_0(method):
    """By the kernels' path: of the logits, and of what made the incoming gradient."""
    x, mask = with_an_empty_row(6)
    leaf, weight = x.clone().requires_grad_(), torch.randn(4, 6, dtype=x.dtype, requires_grad=True)
    with use_backend("triton"):
        drawn = MaskedOneHotCategorical(leaf, mask=mask, validate_args=False, grad_method=method).rsample()
        loss = torch.where(mask.any(-1), (drawn * weight).sum(-1), 0.0).square().sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        of_leaf, of_weight = torch.autograd.grad(first.square().sum(), (leaf, weight))
    for found in (first, of_leaf, of_weight):
        assert found.isfinite().all()
        assert found[:3].count_nonzero() > 0
        assert found[3].count_nonzero() == 0
    assert first[~mask].count_nonzero() == of_leaf[~mask].count_nonzero() == 0


@pytest.mark.parametrize("columns", [6, 1500])
def test_a_draw_with_both_of_an_empty_row_has_gradient_0(backend, columns):
    x, mask = with_an_empty_row(columns)
    weight = torch.randn(4, columns, dtype=x.dtype)
    leaf, oracle = x.clone().requires_grad_(), x[:3].clone().requires_grad_()
    dist = MaskedOneHotCategorical(leaf, mask=mask, validate_args=False, grad_method=PASS)
    drawn, log_prob, h = dist.rsample_log_prob_and_entropy()
    assert drawn[3].count_nonzero() == 0
    loss = torch.where(mask.any(-1), (drawn * weight).sum(-1) + 2 * log_prob + 3 * h, 0.0).sum()
    (found,) = torch.autograd.grad(loss, leaf)
    log_p = torch.where(mask[:3], oracle, -INF).log_softmax(-1)
    log_p = log_p.masked_fill(~mask[:3], 0)
    p = log_p.exp() * mask[:3]
    loss = (p * weight[:3]).sum() + 2 * log_p[drawn[:3].detach() == 1].sum() - 3 * (p * log_p).sum()
    torch.testing.assert_close(found[:3], torch.autograd.grad(loss, oracle)[0])
    assert found[~mask].count_nonzero() == 0


@pytest.mark.parametrize("columns", [6, 1500])
@pytest.mark.parametrize("kind", ["logits", "probs", "unimix"])
def test_an_empty_row_has_no_part_in_a_learned_temperature(backend, small, kind, columns):
    """Nothing is drawn from it, nor from a row that allows only logits of -inf or probabilities of 0."""
    x, mask = with_an_empty_row(columns)
    x, acting = x.float(), 3
    if kind != "unimix":
        acting, mask[2], x[2, 1] = 2, torch.arange(columns) == 1, -INF
    x = x.exp() if kind == "probs" else x

    def gradient(rows: int) -> Tensor:
        torch.manual_seed(3)
        t = torch.tensor(0.7, requires_grad=True)
        dist = MaskedOneHotCategorical(
            **{"probs" if kind == "probs" else "logits": x[:rows]}, mask=mask[:rows], validate_args=False,
            grad_method=RELAXED, temperature=t, unimix=0.1 * (kind == "unimix"),
        )  # fmt: skip
        drawn = dist.rsample()
        assert drawn.sum(-1).tolist() == [1.0] * acting + [0.0] * (rows - acting)
        (drawn * torch.linspace(-1, 1, columns)).sum().backward()
        assert t.grad is not None
        return t.grad

    found = gradient(4)
    assert found.isfinite()
    assert found != 0
    if backend == "triton":
        assert torch.equal(found, gradient(acting))
