"""How little a call does beside its kernel: operators dispatched, kernels launched, memory on the CPU path."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
    use_backend,
)

interpreter = pytest.importorskip("triton.runtime.interpreter")


# Kernels --------------------------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """The names of the operators dispatched from Python; what an operator does inside is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels launched, which do not run: what the interpreter does for a launch a GPU does not."""
    names: list[str] = []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names.append(self.fn.__name__)

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", launch)
    return names


def sample(x: Tensor) -> None:
    OneHotCategorical(logits=x, validate_args=False).sample()


def step(x: Tensor) -> None:
    dist = OneHotCategorical(logits=x, grad_method=ReparamGradientStrategy.PassThrough, validate_args=False)
    draw = dist.rsample()
    dist.log_prob(draw)
    dist.entropy()


# Two numbers: for rows, and for a batch of more dimensions, which adds the views that make it rows and back. A step has
# one of the hint where the ones of its draw are, which saves a kernel the value.
@pytest.mark.parametrize("shape", [(8, 32), (300, 5000), (2, 20_000), (3, 4, 32)])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("call", "at_most"), [(sample, (5, 6)), (step, (11, 15))])
def test_operators_dispatched(
    launched: list[str],
    call: Callable[[Tensor], None],
    at_most: tuple[int, int],
    shape: tuple[int, ...],
    requires_grad: bool,
) -> None:
    x = torch.randn(shape, requires_grad=requires_grad)
    with use_backend("triton"), Operators() as operators:
        call(x)
    assert launched
    assert len(operators.names) <= at_most[len(shape) > 2], operators.names


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 32), ["_short_kernel"]),
        ((3, 4, 32), ["_short_kernel"]),
        ((300, 5000), ["_row_kernel"]),
        # Few long rows are split over programs.
        ((2, 20_000), ["_row_kernel", "_row_kernel"]),
    ],
)
def test_kernels_launched_by_a_sample(launched: list[str], shape: tuple[int, ...], expected: list[str]) -> None:
    x = torch.randn(shape)
    with use_backend("triton"):
        OneHotCategorical(logits=x, validate_args=False).sample()
        assert launched == expected
        launched.clear()
        OneHotCategorical(logits=x, validate_args=False).rsample()
        assert launched == expected
        launched.clear()
        OneHotCategorical(logits=x, validate_args=False).sample_index()
        assert launched == expected


def test_log_prob_of_a_draw_is_one_kernel_whose_results_nobody_waits_for(launched: list[str]) -> None:
    """Also of the last draw, which only the host could look at; and nothing of the draw is kept for it."""
    with use_backend("triton"):
        dist = OneHotCategorical(logits=torch.randn(3, 5000), validate_args=False)
        drawn = dist.rsample()
        launched.clear()
        with Operators() as operators:
            dist.log_prob(drawn)
        assert launched == ["_log_prob_kernel"]
        assert "aten._local_scalar_dense.default" not in operators.names


@pytest.mark.parametrize("shape", [(8, 32), (300, 5000), (300, 20_000), (2, 20_000)])
def test_log_prob_with_entropy_is_one_kernel_each_way(launched: list[str], shape: tuple[int, int]) -> None:
    """Of several indices a row, too, and after a draw. For rows that programs share it is launched again, and joins
    what they left; a draw's <p, g> of rows that no tile holds is one kernel more. New are results, and O(rows)."""
    split, long = shape[0] == 2, shape[1] == 20_000
    x = torch.randn(*shape, requires_grad=True)
    index = torch.zeros(3, shape[0], dtype=torch.int64)
    forward = ["_forward_kernel"] * (1 + split)
    with use_backend("triton"):
        dist = OneHotCategorical(x, validate_args=False)
        with Allocations(x, index) as allocations:
            out = dist.log_prob_index_and_entropy(index)
        assert launched == forward
        assert sum(size for _, size in allocations.changes if size > 0) < 400 * shape[0]
        launched.clear()
        grads = [torch.ones_like(one) for one in out]
        with Allocations(x, index, *out, *grads) as allocations:
            (dx,) = torch.autograd.grad(out, x, grads)
        assert launched == ["_backward_kernel"]
        assert allocations.most_beside(dx) < 400 * shape[0]
        launched.clear()
        dist.sample()
        drawing = [*launched]
        launched.clear()
        out = dist.rsample_log_prob_and_entropy()
        assert launched == [*drawing, *forward]
        launched.clear()
        grads = [torch.ones_like(one) for one in out]
        with Allocations(x, *out, *grads) as allocations:
            (dx,) = torch.autograd.grad(out, x, grads)
        assert launched == ["_dot_kernel"] * long + ["_backward_kernel"]
        assert allocations.most_beside(dx) < 400 * shape[0]


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "ReinMax": lambda x: OneHotCategorical(x, grad_method=ReparamGradientStrategy.ReinMax).rsample((3,)),
    "GappedStraightThrough": lambda x: OneHotCategorical(
        x, grad_method=ReparamGradientStrategy.GappedStraightThrough, temperature=0.5
    ).rsample((3,)),
    "Gumbel-Rao": lambda x: OneHotCategorical(
        x, grad_method=ReparamGradientStrategy.RelaxedOneHot, relaxed_samples=4
    ).rsample((3,)),
    "with log_prob and entropy": lambda x: OneHotCategorical(x).rsample_log_prob_and_entropy((3,))[0],
}


@pytest.mark.parametrize("name", KEPT)
def test_a_draw_keeps_its_index_and_numbers_of_its_rows(launched: list[str], name: str) -> None:
    """From its forward to its backward, beside the logits: an index a draw, the logsumexp's two numbers and, with it,
    the entropy a row, and the seed where the noise is drawn again."""
    x = torch.randn(8, 5000, requires_grad=True)
    with use_backend("triton"):
        node = KEPT[name](x).grad_fn
    saved = [t for t in node.saved_tensors if t is not None]  # pyright: ignore
    assert any(t.data_ptr() == x.data_ptr() for t in saved)
    kept = sum(t.untyped_storage().nbytes() for t in saved if t.data_ptr() != x.data_ptr())
    assert 3 * 8 * 8 <= kept <= 3 * 8 * 8 + 3 * 8 * 4 + 16


@pytest.mark.parametrize("backend", ["triton", "eager"])
def test_rmode_keeps_its_index(backend: str) -> None:
    """Beside the logits, 8 bytes a row, where `rsample` also keeps the logsumexp."""
    x = torch.randn(8, 10_000, requires_grad=True)
    with use_backend(backend):
        node = OneHotCategorical(x).rmode.grad_fn
    saved = [t for t in node.saved_tensors if t is not None]  # pyright: ignore
    assert sorted(t.untyped_storage().nbytes() for t in saved) == [8 * 8, 8 * 10_000 * 4]
    assert any(t.data_ptr() == x.data_ptr() for t in saved)


def test_the_log_prob_of_the_last_draw_reads_one_number_a_row() -> None:
    x = torch.randn(8, 5000)
    with use_backend("eager"):
        dist = OneHotCategorical(logits=x, validate_args=True)
        drawn = dist.sample()
        for value, gathers_alone in ((drawn, True), (drawn.detach(), True), (drawn.clone(), False)):
            with Operators() as operators:
                dist.log_prob(value)
            reads = [name for name in operators.names if name.startswith(("aten.sum", "aten.argmax", "aten._to_copy"))]
            # One sum is that of the logits.
            assert (len(reads) == 1) == gathers_alone, operators.names


def test_indices_are_checked_in_one_pass() -> None:
    dist = OneHotCategorical(logits=torch.randn(8, 5000), validate_args=True)
    with Operators() as operators:
        dist.log_prob_index(torch.zeros(8, dtype=torch.int64))
    assert operators.names.count("aten.aminmax.default") == 1
    assert "aten.any.default" not in operators.names


# Memory on the CPU path -----------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """The life of each storage that an operator made."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        # The storages alive, by address, and all changes in order: an address is used again.
        self.live = {tensor.untyped_storage().data_ptr(): -1 for tensor in given}
        self.changes: list[tuple[int, int]] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.live:
                storage = tensor.untyped_storage()
                self.live[storage.data_ptr()] = self.count
                self.changes.append((self.count, storage.nbytes()))
                weakref.finalize(storage, self.forget, storage.data_ptr(), storage.nbytes())
                self.count += 1
        return out

    def forget(self, address: int, size: int) -> None:
        self.changes.append((self.live.pop(address), -size))

    def most_beside(self, result: Tensor) -> int:
        """The most bytes alive at once, the result's not counted."""
        left_out = self.live[result.untyped_storage().data_ptr()]
        return max(accumulate(size for storage, size in self.changes if storage != left_out), default=0)


def test_allocations_are_seen_while_they_live() -> None:
    x = torch.randn(1000)
    with Allocations(x) as allocations:
        for _ in range(3):
            x.exp()
        z = x.view(10, 100).exp().log()
        result = z.exp()
    assert allocations.most_beside(result) == 8000
    assert allocations.most_beside(z) == 4000


ROWS, COLUMNS = 200, 131_072
# Three float32 blocks of 2^19 elements at once, and numbers for each row and group: a 16th of the logits' 100 MiB.
SCRATCH = 6.25 * 2**20


@pytest.fixture
def logits() -> Iterator[Tensor]:
    with use_backend("eager"):
        yield torch.randn(ROWS, COLUMNS)


@pytest.mark.parametrize(
    "call",
    [
        lambda dist, draw: dist.sample(),
        lambda dist, draw: dist.sample_index(),
        lambda dist, draw: dist.rsample(),
        lambda dist, draw: dist.log_prob(draw),
        lambda dist, draw: dist.entropy(),
    ],
    ids=["sample", "sample_index", "rsample", "log_prob", "entropy"],
)
def test_cpu_path_allocates_blocks_alone(logits: Tensor, call: Callable[[Any, Tensor], Tensor]) -> None:
    draw = OneHotCategorical(logits=logits).sample()
    with Allocations(logits, draw) as allocations:
        result = call(OneHotCategorical(logits=logits), draw)
    extra = allocations.most_beside(result)
    assert extra <= SCRATCH, f"{extra / 2**20:.1f} MiB"


@pytest.mark.parametrize("columns", [100, 5000, 131_072])
def test_many_draws_share_the_sums_of_their_row(columns: int) -> None:
    """A row is added up once, and its draws come in few pieces, of which each takes O(draws)."""
    x = torch.randn(columns)
    with use_backend("eager"), Operators() as operators, Allocations(x) as allocations:
        index = OneHotCategorical(logits=x).sample_index((300_000,))
    assert sum(name.startswith("aten.cumsum") for name in operators.names) == 1
    assert len(operators.names) < 60
    # The row's probabilities in float32 and their sums in float64; and the pieces, which are joined.
    assert allocations.most_beside(index) <= 12 * x.numel() + index.nbytes + SCRATCH


@pytest.mark.parametrize(
    "call",
    [
        lambda x: OneHotCategorical(x, grad_method=ReparamGradientStrategy.PassThrough).rsample(),
        lambda x: OneHotCategorical(x, grad_method=ReparamGradientStrategy.RelaxedOneHot).rsample(),
        lambda x: RelaxedOneHotCategorical(0.5, logits=x).rsample(),
        lambda x: OneHotCategorical(x).log_prob_index(torch.zeros(ROWS, dtype=torch.int64)),
        lambda x: OneHotCategorical(x).entropy(),
    ],
    ids=["PassThrough", "RelaxedOneHot", "soft", "log_prob", "entropy"],
)
def test_cpu_backward_allocates_blocks_alone(logits: Tensor, call: Callable[[Tensor], Tensor]) -> None:
    out = call(logits.requires_grad_())
    given = torch.ones_like(out)
    with Allocations(logits, out, given) as allocations:
        (result,) = torch.autograd.grad(out, logits, given)
    extra = allocations.most_beside(result)
    assert extra <= SCRATCH, f"{extra / 2**20:.1f} MiB"


@pytest.mark.parametrize("columns", [32, 5000])
def test_the_backward_of_soft_samples_is_kernels_that_read_what_is_there(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Sample and gradient as they are, a gradient that is one for all draws too; new are the results and a few numbers
    a row."""
    read = []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        read.append((kwargs["y_ptr"].data_ptr(), kwargs["grad_ptr"].data_ptr()))

    x, t = torch.randn(8, columns, requires_grad=True), torch.ones(8, 1, requires_grad=True)
    with use_backend("triton"):
        monkeypatch.setattr(interpreter.InterpretedFunction, "run", lambda *args, **kwargs: None)
        y = RelaxedOneHotCategorical(t.squeeze(-1), logits=x).rsample((3,))
        monkeypatch.setattr(interpreter.InterpretedFunction, "run", launch)
        for grad in (torch.ones_like(y), torch.ones(8, columns).expand(3, -1, -1)):
            with Allocations(x, t, y, grad) as allocations:
                dx, _ = torch.autograd.grad(y, (x, t), grad, retain_graph=True)
            assert set(read) == {(y.data_ptr(), grad.data_ptr())}
            assert allocations.most_beside(dx) <= 100 * len(x)
            read.clear()


# Expanded batches: [R, V] given as [100, R, V] or [R, 8, V] by a stride of 0. What is allowed beside the result is a
# part of the R rows, where a copy of the batch would be many times them.

EXPANDED = {
    "sample_index of many": lambda x: OneHotCategorical(x).expand((100, len(x))).sample_index(),
    "sample_index beside each other": lambda x: OneHotCategorical(x.unsqueeze(1).expand(-1, 8, -1)).sample_index(),
    "rsample": lambda x: (
        OneHotCategorical(x.requires_grad_().expand(8, -1, -1), grad_method=ReparamGradientStrategy.PassThrough)
        .rsample()
        .detach()
    ),
    "log_prob_index of many": lambda x: (
        OneHotCategorical(x)
        .expand((100, len(x)))
        .log_prob_index(torch.zeros((), dtype=torch.int64).expand(100, len(x)))
    ),
    "log_prob_index, wider": lambda x: OneHotCategorical(x.unsqueeze(1)).log_prob_index(
        torch.zeros((), dtype=torch.int64).expand(len(x), 8)
    ),
    "entropy": lambda x: OneHotCategorical(x).expand((100, len(x))).entropy(),
    "log_prob and entropy of many": lambda x: (
        OneHotCategorical(x)
        .expand((100, len(x)))
        .log_prob_index_and_entropy(torch.zeros((), dtype=torch.int64).expand(100, len(x)))[0]
    ),
    "rsample, log_prob and entropy": lambda x: (
        OneHotCategorical(x.requires_grad_().expand(8, -1, -1)).rsample_log_prob_and_entropy()[0].detach()
    ),
}
expanded = pytest.mark.parametrize("call", EXPANDED.values(), ids=EXPANDED)


@expanded
def test_cpu_path_copies_no_expanded_batch(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(16, 40_000)
    with use_backend("eager"), Allocations(x) as allocations:
        result = call(x)
    # Three blocks of scratch, that are no more than the rows here, and their sums in float64.
    extra = allocations.most_beside(result)
    assert extra <= 3.1 * x.nbytes, f"{extra / x.nbytes:.2f} times the rows"


def test_cpu_path_masks_an_expanded_batch_once() -> None:
    x, mask = torch.randn(16, 1, 40_000), torch.rand(16, 1, 40_000) > 0.5
    with use_backend("eager"), Allocations(x, mask) as allocations:
        result = MaskedOneHotCategorical(x.expand(-1, 8, -1), mask=mask).sample_index()
    assert allocations.most_beside(result) <= 4.1 * x.nbytes
    # Beside logits of their own, each row of the mask is read eight times; what is made are the masked logits.
    x = torch.randn(16, 8, 5000)
    with use_backend("eager"), Allocations(x, mask) as allocations:
        MaskedOneHotCategorical(x, mask=mask[..., :5000])
    assert max(size for _, size in allocations.changes) <= x.nbytes
    assert sum(size > x.nbytes / 8 for _, size in allocations.changes) == 1


@pytest.mark.parametrize("columns", [32, 5000])
@expanded
def test_kernels_read_an_expanded_batch_where_it_is(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Tensor], Tensor], columns: int
) -> None:
    read: list[int] = []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        logits = kwargs["logits_ptr"] if "logits_ptr" in kwargs else args[0]
        read.append(logits.data_ptr())
        assert len(logits) == 16

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", launch)
    x = torch.randn(16, columns)
    with use_backend("triton"), Allocations(x) as allocations:
        result = call(x)
    assert set(read) == {x.data_ptr()}
    # An index for each repetition, and the entropy beside a log-probability.
    assert allocations.most_beside(result) < 8 * 4 * 8 * len(x) + 100 * len(x) * (8 + 4)


# Batches of 128 rows, and those of their masks.
MASKS = {
    "a mask a row of eight": ((16, 8), (16, 1)),
    "eight masks for all rows": ((16, 8), (8,)),
    "a mask a row of eight, of a longer batch": ((2, 8, 8, 1), (2, 8, 1, 1)),
    "a mask a row of eight and of two": ((2, 8, 4, 2), (2, 1, 4, 1)),
}


@pytest.mark.parametrize(("batch", "of"), MASKS.values(), ids=MASKS)
def test_kernels_read_a_mask_that_is_no_rows_where_it_is(
    monkeypatch: pytest.MonkeyPatch, batch: tuple[int, ...], of: tuple[int, ...]
) -> None:
    """As rows in two dimensions, of any strides. What has three is copied, a byte a category, once: where the
    distribution is made. Calls make O(rows)."""
    copied = of == (2, 1, 4, 1)
    read: set[tuple[int, int]] = set()

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        logits = kwargs["logits_ptr"] if "logits_ptr" in kwargs else args[0]
        read.add((logits.data_ptr(), kwargs["allowed_ptr"].data_ptr()))

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", launch)
    # A dimension of one has a stride that is no row's.
    x, mask = torch.randn(*batch, 5000), (torch.rand(*of[:-1], of[-1] + 1, 5000) > 0.5)[..., : of[-1], :]
    index = torch.zeros(batch, dtype=torch.int64)
    with use_backend("triton"):
        with Allocations(x, mask) as allocations:
            dist = MaskedOneHotCategorical(x, mask=mask, validate_args=False)
        assert dist._mask_to_apply is not None
        assert [size for _, size in allocations.changes] == ([x.numel()] if copied else [])
        assert (dist._mask_to_apply.data_ptr() != mask.data_ptr()) is copied
        with Allocations(x, mask, dist._mask_to_apply) as allocations:
            dist.sample_index()
            dist.log_prob_index(index)
            dist.entropy()
            dist.log_prob_index_and_entropy(index)
        assert sum(size for _, size in allocations.changes if size > 0) < 400 * index.numel()
        assert read == {(x.data_ptr(), dist._mask_to_apply.data_ptr())}
        # One that is changed in place counts as it is then.
        mask.logical_not_()
        dist._current_logits()
        assert torch.equal(dist._mask_to_apply, mask.expand(x.shape))
        # Rows as they are, and what repeats itself as the logits do.
        repeated = torch.randn(*of, 5000)
        with Allocations(x, mask, repeated) as allocations:
            MaskedOneHotCategorical(x, mask=mask[(0,) * len(of)], validate_args=False)
            MaskedOneHotCategorical(repeated.expand(x.shape), mask=mask, validate_args=False)
        assert allocations.changes == []


@pytest.mark.interpreted
@pytest.mark.parametrize("of", [(3, 1), (4,), (2, 1, 3, 1)], ids=str)
def test_a_mask_that_is_no_rows_is_read_as_its_copy_is(of: tuple[int, ...], backend: str) -> None:
    columns, batch = 37, (2, 2, 3, 2) if len(of) == 4 else (3, 4)
    # Of rows that lie apart.
    x, mask = torch.randn(*batch, columns, requires_grad=True), (torch.rand(*of, columns + 3) > 0.4)[..., :-3]
    mask[..., 2] = True
    index = torch.arange(2 * 12 if len(of) < 4 else 2 * 24).view(2, *batch) % columns

    def results(mask: Tensor) -> Iterator[Tensor]:
        for method in ReparamGradientStrategy:
            dist = MaskedOneHotCategorical(x, mask=mask, grad_method=method)
            torch.manual_seed(0)
            draw = dist.rsample((2,))
            yield from (draw, *torch.autograd.grad((draw * x).sum(), x), dist.sample_index())
        dist = MaskedOneHotCategorical(x, mask=mask)
        joint, entropy = dist.log_prob_index_and_entropy(index)
        densities = dist.log_prob_index(index), dist.log_prob(one_hot(index, columns)), dist.entropy(), joint, entropy
        yield from densities
        (dx,) = torch.autograd.grad([d[d.isfinite()].square().sum() for d in densities], x, create_graph=True)
        yield from (dx, *torch.autograd.grad(dx.square().sum(), x))

    for copied, found in zip(*map(results, (mask.expand(x.shape).contiguous(), mask)), strict=True):
        assert torch.equal(copied, found)


@pytest.mark.interpreted
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_a_mask_that_is_no_rows_is_mapped(dim: int | None, backend: str) -> None:
    """By vmap: one for all, or one of each, its dimension in front or not."""
    x, mask = torch.randn(2, 3, 4, 37), torch.rand(2, 3, 1, 37) > 0.4
    mask[..., 2] = True
    given = mask[0] if dim is None else mask.movedim(0, dim)

    def entropy(x: Tensor, mask: Tensor) -> Tensor:
        return MaskedOneHotCategorical(x, mask=mask, validate_args=False).entropy()

    expected = torch.stack([entropy(one, mask[0] if dim is None else each) for one, each in zip(x, mask, strict=True)])
    torch.testing.assert_close(torch.vmap(entropy, (0, dim))(x, given), expected)


@pytest.mark.interpreted
@pytest.mark.parametrize("shape", [(4, 3, 2), (3, 4, 2)], ids=str)
def test_an_expanded_batch_is_computed_as_its_copy_is(shape: tuple[int, ...], backend: str) -> None:
    """Densities, entropies and gradients; and draws that differ from one repetition to the next."""
    columns = 37
    at = shape.index(4)
    x = torch.randn([1 if d == at else size for d, size in enumerate(shape)] + [columns])
    results = []
    for logits in (x.expand(*shape, columns), x.repeat([4 if d == at else 1 for d in range(4)])):
        leaf = (logits if logits.is_contiguous() else x.clone()).requires_grad_()
        dist = OneHotCategorical(leaf.expand(*shape, columns))
        torch.manual_seed(0)
        draw = dist.sample((2,))
        index = torch.arange(2 * 24).view(2, *shape) % columns
        h, p = dist.entropy(), dist.log_prob_index(index)
        torch.testing.assert_close(dist.log_prob_index_and_entropy(index), (p, h))
        torch.testing.assert_close(dist.log_prob_and_entropy(one_hot(index, columns)), (p, h))
        drawn, *both = dist.rsample_log_prob_and_entropy((2,))
        torch.testing.assert_close(both, [dist.log_prob(drawn.detach().clone()), h])
        grad = torch.autograd.grad([h, p], leaf, [torch.linspace(1, 2, 24).view(shape), torch.ones_like(p)])[0]
        results.append((h, p, dist.log_prob(draw), draw, grad))
    (h, p, log_p, draw, grad), (h2, p2, _, _, grad2) = results
    torch.testing.assert_close((h, p), (h2, p2))
    torch.testing.assert_close(grad, grad2.sum(at, keepdim=True))
    assert draw.shape == (2, *shape, columns)
    assert torch.equal(draw.sum(-1), torch.ones(2, *shape, dtype=torch.int64))
    torch.testing.assert_close(log_p, OneHotCategorical(x.expand(*shape, columns).clone()).log_prob(draw.clone()))
    repetitions = draw.argmax(-1).movedim(1 + at, 0)
    assert all((a != b).any() for i, a in enumerate(repetitions) for b in repetitions[:i])


@pytest.mark.interpreted
def test_draws_of_an_expanded_batch_are_draws_of_its_rows(backend: str) -> None:
    x = torch.randn(3, 37)

    def drawn(dist: OneHotCategorical, *args: Any) -> Tensor:
        torch.manual_seed(0)
        return dist.sample_index(*args)

    expected = drawn(OneHotCategorical(x), (8,))
    assert torch.equal(drawn(OneHotCategorical(x).expand((8, 3))), expected)
    assert torch.equal(drawn(OneHotCategorical(x).expand((4, 3)), (2,)), expected.view(2, 4, 3))
    if backend == "triton":
        assert torch.equal(drawn(OneHotCategorical(x.unsqueeze(1).expand(-1, 8, -1))), expected.t())


@pytest.mark.interpreted
def test_what_an_expanded_batch_repeats_has_a_mask_of_its_own(backend: str) -> None:
    mask = (torch.arange(4).unsqueeze(-1) == torch.arange(5)).unsqueeze(1).expand(4, 3, 5)
    dist = MaskedOneHotCategorical(torch.randn(3, 5).expand(4, 3, 5), mask=mask)
    expected = torch.arange(4).unsqueeze(-1).expand(4, 3)
    assert torch.equal(dist.sample_index(), expected)
    assert torch.equal(dist.log_prob_index(expected), torch.zeros(4, 3))
    assert torch.equal(dist.entropy(), torch.zeros(4, 3))
