"""log_prob and entropy together, and with a draw: each is what it is alone, the one gradient the sum of theirs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, ReparamGradientStrategy, use_backend
from onehot_triton.compute import CPU, EAGER
from onehot_triton.compute.base import Rows

MAKE = {
    "logits": OneHotCategorical,
    "probs": lambda x: OneHotCategorical(probs=x.softmax(-1)),
    "unimix": lambda x: OneHotCategorical(x, unimix=0.1),
    "mask": lambda x: MaskedOneHotCategorical(x, mask=torch.arange(x.shape[-1]) % 3 != 1),
    "expanded": lambda x: OneHotCategorical(x[:1]).expand(x.shape[:-1]),
}


@pytest.fixture(params=["eager", "triton"])
def backend(request: pytest.FixtureRequest):
    if request.param == "triton":
        pytest.importorskip("triton")
    with use_backend(request.param):
        yield request.param


def logits_of(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """With a category that is off, a row in which one has nearly all, and one with a common offset of 1e4."""
    x = 2 * torch.randn(rows, columns)
    x[0, 3], x[-1, 0] = -torch.inf, 30.0
    x[1] = x[1].round() + (1e4 if dtype == torch.float32 else 0.0)
    return x.to(dtype).requires_grad_()


def assert_gradients_agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], x: Tensor) -> None:
    """Of the outputs, each weighted by noise, and of each alone."""
    weights = [torch.randn_like(out) for out in expected]
    for some in [range(len(expected)), *([i] for i in range(len(expected)))]:
        grads = [
            torch.autograd.grad([outs[i] for i in some], x, [weights[i] for i in some], retain_graph=True)[0]
            for outs in (found, expected)
        ]
        eps = torch.finfo(x.dtype).eps
        torch.testing.assert_close(*grads, rtol=4 * eps, atol=max(8 * eps, 8e-6))


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("columns", [6, 700])
def test_both_of_a_value_and_of_an_index(backend: str, columns: int, kind: str) -> None:
    x = logits_of(4, columns)
    dist = MAKE[kind](x)
    index = dist.sample_index((2,))
    value = torch.nn.functional.one_hot(index, columns)
    expected = dist.log_prob_index(index), dist.entropy()
    for found in (dist.log_prob_and_entropy(value), dist.log_prob_index_and_entropy(index)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)
        assert_gradients_agree(found, expected, x)
    # The last draw, and one without leading dimensions.
    draw = dist.sample()
    torch.testing.assert_close(dist.log_prob_and_entropy(draw)[0], dist.log_prob(draw), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("columns", [6, 700, 40_000])
def test_both_in_other_dtypes(backend: str, columns: int, dtype: torch.dtype) -> None:
    if backend == "triton" and columns > 700:
        pytest.skip("tests/test_kernel_cases.py has long rows")
    x = logits_of(3, columns, dtype)
    dist, index = OneHotCategorical(x), torch.tensor([0, 5, columns - 1])
    found, expected = dist.log_prob_index_and_entropy(index), (dist.log_prob_index(index), dist.entropy())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_gradients_agree(found, expected, x)


@pytest.mark.parametrize("columns", [700, 40_000])
def test_a_cpu_in_blocks_is_as_right_as_the_formula(columns: int) -> None:
    x = logits_of(60 if columns > 700 else 900, columns).detach()
    x[5], x[6, 7], x[7, 1] = -torch.inf, torch.nan, torch.inf
    index = torch.randint(columns, (2, len(x)))
    row_grad, grad = torch.randn(2, len(x)), torch.randn(len(x), columns)
    exact = EAGER.log_prob_index(Rows(x.double()), index)[0], EAGER.entropy(Rows(x.double()))[0]
    log_prob, entropy, logsumexp = CPU.log_prob_and_entropy(Rows(x), index)
    torch.testing.assert_close((log_prob.double(), entropy.double()), exact, rtol=1e-6, atol=3e-6, equal_nan=True)
    for of_draw in (None, grad):
        args = index, row_grad, row_grad[0]
        found = CPU.log_prob_and_entropy_grad(Rows(x, None, logsumexp, entropy), *args, of_draw)
        args = index, row_grad.double(), row_grad[0].double()
        exact = EAGER.log_prob_and_entropy_grad(
            Rows(x.double()), *args, grad=None if of_draw is None else of_draw.double()
        )
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-6, equal_nan=True)


def test_an_index_that_widens_the_batch_or_is_no_column(backend: str) -> None:
    dist = OneHotCategorical(torch.randn(4, 1, 6), validate_args=False)
    log_prob, entropy = dist.log_prob_index_and_entropy(torch.tensor([0, 1, 2]))
    assert log_prob.shape == (4, 3)
    assert entropy.shape == (4, 1)
    assert dist.log_prob_index_and_entropy(torch.full((4, 1), 6))[0].isnan().all()
    no_rows = OneHotCategorical(torch.randn(0, 6)).log_prob_index_and_entropy(torch.zeros(3, 0, dtype=torch.int64))
    assert [out.shape for out in no_rows] == [(3, 0), (0,)]


@pytest.mark.parametrize("method", [None, *ReparamGradientStrategy])
@pytest.mark.parametrize("sample_shape", [(), (3,)])
@pytest.mark.parametrize("columns", [6, 30_000])
def test_a_draw_with_both(backend: str, columns: int, sample_shape: tuple[int, ...], method) -> None:
    if backend == "triton" and columns > 6:
        pytest.skip("tests/test_kernel_cases.py has long rows")
    x = logits_of(4, columns)
    dist = OneHotCategorical(x, grad_method=method)
    torch.manual_seed(5)
    found = dist.rsample_log_prob_and_entropy(sample_shape)
    torch.manual_seed(5)
    draw = dist.rsample(sample_shape)
    expected = draw, dist.log_prob(draw.detach()), dist.entropy()
    assert torch.equal(found[0], draw)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=4e-6)
    if method is not ReparamGradientStrategy.RelaxedOneHot:
        assert_gradients_agree(found, expected, x)
    torch.testing.assert_close(dist.log_prob(found[0].detach()), found[1].detach(), rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("sample_shape", [(), (3,)])
@pytest.mark.parametrize("columns", [6, 2000])
def test_a_draw_of_a_row_that_is_no_distribution(backend: str, columns: int, sample_shape: tuple[int, ...]) -> None:
    x = torch.randn(4, columns)
    x[0, 1], x[2, -1], x[3] = torch.nan, torch.inf, -torch.inf
    dist = OneHotCategorical(x.requires_grad_(), validate_args=False)
    draw, log_prob, entropy = dist.rsample_log_prob_and_entropy(sample_shape)
    assert (draw.sum(-1) == torch.tensor([0, 1, 0, 0])).all()
    assert (log_prob.isnan() == torch.tensor([True, False, True, True])).all()
    assert entropy.isnan().tolist() == [True, False, True, True]


def test_losses_that_are_differentiated_separately(backend: str) -> None:
    # More than a CPU's small batches, of which autograd records several nodes.
    x = torch.randn(300 if backend == "eager" else 3, 300, requires_grad=True)
    draw, log_prob, entropy = OneHotCategorical(x).rsample_log_prob_and_entropy()
    draw.square().sum().backward(retain_graph=True)
    log_prob.sum().backward(retain_graph=True)
    entropy.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        log_prob.sum().backward()


@pytest.mark.parametrize("rows", [3, 300])
def test_second_derivatives(backend: str, rows: int) -> None:
    if backend == "triton" and rows > 3:
        pytest.skip("the formulas, whatever the size")
    x = torch.randn(rows, 300, dtype=torch.float64, requires_grad=True)
    dist, index, v = OneHotCategorical(x), torch.arange(rows), torch.randn(rows, 300, dtype=torch.float64)

    def product(outs: tuple[Tensor, ...]) -> Tensor:
        (g,) = torch.autograd.grad(sum((out * (1 + out)).sum() for out in outs), x, create_graph=True)
        return torch.autograd.grad((g * v).sum(), x)[0]

    expected = product((dist.log_prob_index(index), dist.entropy()))
    torch.testing.assert_close(product(dist.log_prob_index_and_entropy(index)), expected)


def test_under_vmap_and_compile(backend: str) -> None:
    x, index = torch.randn(3, 4, 300), torch.randint(300, (3, 4))

    def loss(x: Tensor, index: Tensor) -> Tensor:
        log_prob, entropy = OneHotCategorical(x, validate_args=False).log_prob_index_and_entropy(index)
        return (log_prob * 3 + entropy).sum()

    expected = torch.stack([torch.func.grad(loss)(*one) for one in zip(x, index, strict=True)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x, index), expected)
    torch._dynamo.reset()
    y = x[0].clone().requires_grad_()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(y, index[0]).backward()
    torch.testing.assert_close(y.grad, expected[0])


# A draw with both, where something is unlike the rest ---------------------------------------------------------------


MEMBERS = ["of a value", "of an index", "of a draw"]
each_member = pytest.mark.parametrize("member", MEMBERS)


def of(dist: OneHotCategorical, member: str, index: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """(draw, log_prob, entropy), of `index` where nothing is drawn, of as many draws where something is."""
    if member == "of a value":
        return None, *dist.log_prob_and_entropy(torch.nn.functional.one_hot(index, dist.num_samples))
    if member == "of an index":
        return None, *dist.log_prob_index_and_entropy(index)
    return dist.rsample_log_prob_and_entropy(index.shape[: index.dim() - len(dist.batch_shape)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", MAKE)
def test_a_draw_of_every_kind_with_both(backend: str, kind: str, dtype: torch.dtype) -> None:
    x = logits_of(4, 6, dtype)
    dist = MAKE[kind](x)
    torch.manual_seed(5)
    found = dist.rsample_log_prob_and_entropy((2,))
    torch.manual_seed(5)
    draw = dist.rsample((2,))
    assert torch.equal(found[0], draw)
    assert found[0].dtype == dtype
    expected = draw, dist.log_prob(draw.detach()), dist.entropy()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=4e-6)
    assert_gradients_agree(found, expected, x)


@each_member
@pytest.mark.parametrize("rows", [4, 4000])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_no_distribution(backend: str, bad: float, rows: int, member: str) -> None:
    """They are NaN, and so is their gradient, their draw is all zero; of the others all is as without them."""
    if backend == "triton" and rows > 4:
        pytest.skip("tests/test_kernel_cases.py has many rows")
    x = torch.randn(rows, 20)
    x[1, slice(None) if bad < 0 else 7] = bad
    x.requires_grad_()
    index = torch.zeros(2, rows, dtype=torch.int64)
    draw, log_prob, entropy = of(OneHotCategorical(x, validate_args=False), member, index)
    good = torch.arange(rows) != 1
    if draw is not None:
        assert torch.equal(draw.detach().sum(-1), good.float().expand(2, -1))
        index = draw.detach().argmax(-1)
    assert all(torch.equal(out.isnan(), ~good.expand(out.shape)) for out in (log_prob, entropy))
    y = x[good].detach().requires_grad_()
    alone = OneHotCategorical(y)
    expected = alone.log_prob_index(index[:, good]), alone.entropy()
    torch.testing.assert_close((log_prob[:, good], entropy[good]), expected, rtol=1e-6, atol=2e-6)
    (grad,) = torch.autograd.grad(log_prob[:, good].sum() + entropy.nansum(), x)
    torch.testing.assert_close(grad[good], torch.autograd.grad(expected[0].sum() + expected[1].sum(), y)[0])
    assert grad[1].isnan().all()


@each_member
def test_no_rows_and_no_draws(backend: str, member: str) -> None:
    for batch, draws in (((0,), 2), ((4,), 0), ((0, 3), 0)):
        x = torch.randn(*batch, 6, requires_grad=True)
        dist = OneHotCategorical(x)
        draw, *both = of(dist, member, torch.zeros(draws, *batch, dtype=torch.int64))
        assert [out.shape for out in both] == [(draws, *batch), batch]
        (grad,) = torch.autograd.grad([out.sum() for out in (draw, *both) if out is not None], x)
        torch.testing.assert_close(grad, torch.autograd.grad(dist.entropy().sum(), x)[0])


def test_second_derivatives_of_a_draw_with_both(backend: str) -> None:
    """The draw fixed by a seed."""
    x = torch.randn(3, 300, dtype=torch.float64, requires_grad=True)
    dist, v = OneHotCategorical(x), torch.randn(3, 300, dtype=torch.float64)

    def product(outs: tuple[Tensor, ...]) -> Tensor:
        weighted = (outs[0] * v).sum(), *((out * (1 + out)).sum() for out in outs[1:])
        (g,) = torch.autograd.grad(sum(weighted), x, create_graph=True)
        return torch.autograd.grad((g * v).sum(), x)[0]

    torch.manual_seed(5)
    found = dist.rsample_log_prob_and_entropy()
    torch.manual_seed(5)
    draw = dist.rsample()
    torch.testing.assert_close(product(found), product((draw, dist.log_prob(draw.detach()), dist.entropy())))


def test_a_draw_with_both_under_vmap_and_compile(backend: str) -> None:
    """Of logits whose draw is known: category 1, which is nearly certain, and whose gradient is not 0."""
    x = torch.randn(3, 4, 300).double()
    x[..., 1] += 30
    w = torch.randn(300).double()

    def loss(x: Tensor) -> Tensor:
        draw, log_prob, entropy = OneHotCategorical(x / 8, validate_args=False).rsample_log_prob_and_entropy()
        # At a temperature at which the rest has a part; the draw itself is left out but for its gradient.
        return (draw * w - (draw * w).detach()).sum() + (entropy * entropy).sum() + 0 * log_prob.sum()

    def by_hand(x: Tensor) -> Tensor:
        p = (x / 8).softmax(-1)
        return (p * w).sum() + ((p * p.log()).sum(-1) ** 2).sum()

    expected = torch.stack([torch.func.grad(by_hand)(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss), randomness="different")(x), expected)
    torch._dynamo.reset()
    y = x[0].clone().requires_grad_()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(y).backward()
    torch.testing.assert_close(y.grad, expected[0])


def test_a_draw_with_both_in_forward_mode(backend: str) -> None:
    x, v = torch.randn(2, 3, 6).double()
    with forward_ad.dual_level():
        dist = OneHotCategorical(forward_ad.make_dual(x, v), validate_args=False)
        hot, *others = (forward_ad.unpack_dual(out) for out in dist.rsample_log_prob_and_entropy())

    def by_hand(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_p = x.log_softmax(-1)
        return log_p.exp(), (log_p * hot.primal).sum(-1), -(log_p.exp() * log_p).sum(-1)

    (_, *values), tangents = torch.func.jvp(by_hand, (x,), (v,))[:2]
    assert torch.equal(hot.primal.sum(-1), torch.ones(3).double())
    torch.testing.assert_close([other.primal for other in others], values)
    torch.testing.assert_close([hot.tangent, *(other.tangent for other in others)], [*tangents])


@each_member
def test_of_fake_tensors(backend: str, member: str) -> None:
    with FakeTensorMode():
        x = torch.randn(4, 3, 6, dtype=torch.bfloat16, requires_grad=True)
        dist = OneHotCategorical(x, validate_args=False)
        draw, *both = of(dist, member, torch.zeros(2, 4, 3, dtype=torch.int64))
        assert [out.shape for out in both] == [(2, 4, 3), (4, 3)]
        assert [out.dtype for out in both] == [torch.float32, torch.float32]
        (grad,) = torch.autograd.grad([out.sum() for out in (draw, *both) if out is not None], x)
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype)


class _Made(TorchDispatchMode):
    """The bytes of each tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            self.bytes.append(out.untyped_storage().nbytes())
        return out


def test_no_scratch_of_the_size_of_the_logits_on_a_cpu() -> None:
    x = torch.randn(200, 20_000).bfloat16()
    index, row_grad = torch.zeros(1, 200, dtype=torch.int64), torch.randn(1, 200)
    with _Made() as made:
        _, entropy, logsumexp = CPU.log_prob_and_entropy(Rows(x), index, True)
        CPU.log_prob_and_entropy_grad(Rows(x, None, logsumexp, entropy), index, row_grad, row_grad[0])
    # The gradient itself, and two blocks of scratch in each direction.
    assert sorted(made.bytes)[-1] == x.nbytes
    assert sorted(made.bytes)[-2] <= 2 * 2**21
