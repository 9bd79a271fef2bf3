"""log_prob and entropy together, and with a draw: each is what it is alone, the one gradient the sum of theirs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, ReparamGradientStrategy, use_backend
from onehot_triton._backends import cpu, eager

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
    exact = eager.log_prob_index(x.double(), index)[0], eager.entropy(x.double())[0]
    log_prob, entropy, logsumexp = cpu.log_prob_and_entropy(x, index)
    torch.testing.assert_close((log_prob.double(), entropy.double()), exact, rtol=1e-6, atol=3e-6, equal_nan=True)
    for of_draw in (None, grad):
        args = index, row_grad, row_grad[0]
        found = cpu.log_prob_and_entropy_grad(x, *args, None, logsumexp, entropy, of_draw)
        args = index, row_grad.double(), row_grad[0].double()
        exact = eager.log_prob_and_entropy_grad(x.double(), *args, grad=None if of_draw is None else of_draw.double())
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
        _, entropy, logsumexp = cpu.log_prob_and_entropy(x, index, None, True)
        cpu.log_prob_and_entropy_grad(x, index, row_grad, row_grad[0], None, logsumexp, entropy)
    # The gradient itself, and two blocks of scratch in each direction.
    assert sorted(made.bytes)[-1] == x.nbytes
    assert sorted(made.bytes)[-2] <= 2 * 2**21
