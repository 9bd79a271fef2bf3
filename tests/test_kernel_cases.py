"""Every launcher in every way that it launches, between canaries, against its twin in float64.

A case says how rows meet programs (several short ones share one, one to a program, walked in tiles, split over
programs) and how the tensors lie in memory. Small stand-ins for the sizes of launch.py make each way cheap; that a case
is launched in the way that it names is asserted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from philox import GROUP, philox_relaxed_noise, posterior_noise, twin_sample
from torch import Tensor

from onehot_triton import tensors
from onehot_triton.compute import EAGER, base
from onehot_triton.compute.base import Rows

pytest.importorskip("triton")
import triton
import triton.language as tl
from guarded import Guards
from triton.runtime.interpreter import InterpreterError

from onehot_triton.kernels import (
    entropy,
    launch,
    log_prob,
    noise,
    relaxed,
    sample,
    soft_grad,
    softmax_grad,
    straight_through,
)
from onehot_triton.kernels import log_prob_and_entropy as joint

pytestmark = pytest.mark.usefixtures("one_thread", "numpy_as_quiet_as_a_gpu")

SEED, OFFSET, ROW_OFFSET = -7, 2**33 + 20, 3


# The cases ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """How rows are launched and how tensors lie in memory.

    Attributes:
        kind: shared (several rows a program, several programs, the last one with fewer rows), alone (a row that is no
            longer than a short tile, one a program), one tile, walked, split (a program for each tile), or split in
            few (programs take several tiles of a row).
        rows, columns: of the logits.
        layout: of the logits and the incoming gradient, see `stride_of`.
        mask: none, full, one row of it for all, one for each of the pairs of rows, or one for both halves of them.
        temperature: the stride of the temperatures.
        dtype: of the logits.
    """

    kind: str
    rows: int
    columns: int
    layout: str
    mask: str
    temperature: int
    dtype: torch.dtype = torch.float32


CASES = [
    Case("shared", 11, 20, "contiguous", "none", 1),
    Case("shared", 11, 37, "padded", "full", 2),
    Case("shared", 9, 32, "aligned", "one row", 0),
    Case("shared", 10, 5, "transposed", "pairs", 1, torch.float64),
    Case("shared", 10, 19, "expanded", "one row", 2),
    Case("alone", 3, 48, "misaligned", "full", 2),
    Case("alone", 2, 1, "contiguous", "none", 1),
    Case("one tile", 3, 1500, "padded", "full", 2),
    Case("one tile", 2, 2048, "contiguous", "none", 0),
    Case("one tile", 2, 1600, "misaligned", "one row", 1),
    Case("walked", 3, 2600, "contiguous", "none", 1),
    Case("walked", 2, 2600, "padded", "full", 2, torch.bfloat16),
    Case("walked", 4, 4096, "aligned", "halves", 0),
    Case("split", 2, 2600, "padded", "full", 2),
    Case("split", 2, 4096, "contiguous", "none", 1),
    Case("split", 2, 2600, "expanded", "one row", 1),
    Case("split in few", 4, 3500, "padded", "pairs", 2),
]


def case_id(case: Case) -> str:
    dtype = "" if case.dtype == torch.float32 else f" {case.dtype}".replace("torch.", "")
    mask = {"none": "", "full": " masked", "one row": " masked alike"}.get(case.mask, f" masked in {case.mask}")
    return f"{case.kind} {case.rows}x{case.columns} {case.layout}{mask} t{case.temperature}{dtype}"


def stride_of(layout: str, rows: int, columns: int) -> tuple[int, int]:
    return {
        "contiguous": (columns, 1),
        "misaligned": (columns, 1),
        "padded": (columns + 13, 1),
        "aligned": (columns + 16, 1),
        "transposed": (1, rows + 3),
        "expanded": (0, 1),
    }[layout]


def laid_out(guards: Guards, tensor: Tensor, layout: str) -> Tensor:
    """[rows, columns], or [draws, rows, columns] with padding of its own, between canaries, in that layout."""
    rows, columns = tensor.shape[-2:]
    stride = stride_of(layout, rows, columns + 16 * (tensor.dim() == 3 and layout in ("padded", "aligned")))
    lead = (max(1, rows * stride[0], columns * stride[1]),) if tensor.dim() == 3 else ()
    return guards.place(tensor, (*lead, *stride), shift=int(layout == "misaligned"))


# The operations -------------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """What an operation takes; grad, row_grad, index, value and soft are for two draws. One draw is the second: what is
    read beyond its last row is not the other draw."""

    x: Tensor
    mask: Tensor | None
    logsumexp: Tensor
    entropy: Tensor
    grad: Tensor
    row_grad: Tensor
    index: Tensor
    value: Tensor
    temperature: Tensor
    soft: Tensor


class Operation(NamedTuple):
    """A launcher beside its twin, which is given float64 logits that are masked already.

    Attributes:
        tile: how it is launched, as (whether a row is in a tile whole, rows of a tile, columns of a tile, parts).
        sizes: stand-ins for the sizes of launch.py, with which the cases' columns are launched as they say.
        draws: of which the launch depends.
        takes_mask: else the logits that it is given are masked.
    """

    name: str
    kernel: Callable[[Given], tuple[Tensor, ...]]
    twin: Callable[[Given], tuple[Tensor, ...]]
    tile: Callable[[Given], tuple[bool, int, int, int]]
    sizes: dict[str, int]
    draws: int = 1
    takes_mask: bool = True


def _tile(*others: str, draws: int = 1, twice: bool = False):
    def tile(given: Given) -> tuple[bool, int, int, int]:
        tensors = (getattr(given, name)[:draws] for name in others)
        t = launch.tile(given.x, *tensors, draws=draws, twice=twice)
        return t.one, t.rows, t.columns, t.parts

    return tile


def _soft_tile(draws: int):
    def tile(given: Given) -> tuple[bool, int, int, int]:
        t = launch.tile(given.soft[0], given.grad[0], draws=draws)
        return t.one, t.rows, t.columns, t.parts

    return tile


def _noise_tile(draws: int):
    def tile(given: Given) -> tuple[bool, int, int, int]:
        t = launch.noise_tile(given.x, 4, draws)
        return t.one, t.rows, 4 * t.columns, t.parts

    return tile


def _sample_tile(given: Given) -> tuple[bool, int, int, int]:
    rows, columns = given.x.shape
    if columns <= GROUP:
        t = launch.noise_tile(given.x, 2)
        return t.one, t.rows, 2 * t.columns, t.parts
    block = GROUP * launch.SAMPLE_GROUPS
    return block >= columns, 1, block, launch.splits(given.x, rows, -(-columns // block))


def _relaxed_grad(samples: int) -> tuple[Callable, Callable]:
    def kernel(given: Given) -> tuple[Tensor, Tensor]:
        args = given.index, given.grad, given.temperature, SEED, OFFSET, ROW_OFFSET, given.mask, True, samples
        return relaxed.relaxed_grad(given.x, given.logsumexp, *args)

    def twin(given: Given) -> tuple[Tensor, Tensor]:
        noise = posterior_noise(SEED, OFFSET, 2 * samples, *given.x.shape, ROW_OFFSET)
        dx, dt = EAGER.relaxed_grad_with(given.x, given.index, given.grad, given.temperature, *noise, samples)
        # A row that a mask leaves without anything to draw has no part in the temperature's gradient.
        nothing = (given.x == -torch.inf).all(-1) & (given.mask is not None)
        return _nothing_where_masked(dx, given), dt.masked_fill(nothing, 0)

    return kernel, twin


def _straight_through(name: str, draws: int, number: float | None = None) -> tuple[Callable, Callable]:
    """At a temperature for each row, or at a number."""

    def kernel(given: Given) -> tuple[Tensor]:
        args = given.index[-draws:], given.grad[-draws:], number or given.temperature, given.mask
        return (getattr(straight_through, name)(given.x, given.logsumexp, *args),)

    def twin(given: Given) -> tuple[Tensor]:
        args = given.index[-draws:], given.grad[-draws:], number or given.temperature
        return (_nothing_where_masked(getattr(EAGER, name)(Rows(given.x), *args), given),)

    return kernel, twin


def _sample(draws: int, dtype: torch.dtype | None) -> tuple[Callable, Callable]:
    def kernel(given: Given) -> tuple[Tensor, ...]:
        one_hot, index, logsumexp = sample.sample(given.x, draws, dtype, SEED, OFFSET, ROW_OFFSET, given.mask)
        rest = (index, logsumexp.sum(0))
        return rest if dtype is None else (one_hot, *rest)

    def twin(given: Given) -> tuple[Tensor, ...]:
        one_hot, index, _ = twin_sample(given.x, draws, dtype, SEED, OFFSET, ROW_OFFSET)
        rest = (index, base.logsumexp(given.x).sum(0))
        return rest if one_hot is None else (one_hot, *rest)

    return kernel, twin


def _log_prob(draws: int, known: bool) -> tuple[Callable, Callable]:
    def kernel(given: Given) -> tuple[Tensor, ...]:
        known_sum = given.logsumexp if known else None
        out, index, logsumexp = log_prob.log_prob(given.x, known_sum, given.value[-draws:], given.mask)
        return out, index, logsumexp.sum(0)

    def twin(given: Given) -> tuple[Tensor, ...]:
        logsumexp, index = base.logsumexp(given.x), EAGER.argmax(given.value[-draws:])
        return EAGER.log_prob_index(Rows(given.x), index)[0], index, logsumexp.sum(0)

    return kernel, twin


def _joint(log_prob: Tensor, entropy: Tensor, logsumexp: Tensor) -> tuple[Tensor, ...]:
    return log_prob, entropy, logsumexp.sum(0)


def _joint_grad(draws: int, of_draw: bool) -> tuple[Callable, Callable]:
    def kernel(g: Given) -> tuple[Tensor, ...]:
        args = g.index[-draws:], g.row_grad[-draws:], g.row_grad[0], g.mask, g.grad[1] if of_draw else None
        return (joint.log_prob_and_entropy_grad(g.x, g.logsumexp, g.entropy, *args),)

    def twin(g: Given) -> tuple[Tensor, ...]:
        grad = g.grad[1] if of_draw else None
        args = g.index[-draws:], g.row_grad[-draws:], g.row_grad[0]
        return (_nothing_where_masked(EAGER.log_prob_and_entropy_grad(Rows(g.x), *args, grad=grad), g),)

    return kernel, twin


ONE = {"TILE": 1024, "ONE_TILE": 2048}
TWO = {"TILE": 1024, "ONE_TILE": 4096}
NOISE = {"TILE": 2048, "ONE_TILE": 2048}
SAMPLE = {"TILE": 2048, "SAMPLE_GROUPS": 2, "RACE": 2}

OPERATIONS = [
    Operation("sample_bool", *_sample(1, torch.bool), _sample_tile, SAMPLE),
    Operation("sample_index", *_sample(1, None), _sample_tile, SAMPLE),
    Operation("sample_draws", *_sample(2, torch.bfloat16), _sample_tile, SAMPLE),
    Operation(
        "relaxed",
        lambda g: (relaxed.relaxed(g.x, g.temperature, 2, SEED, OFFSET, ROW_OFFSET),),
        lambda g: (EAGER.relaxed_with(g.x, g.temperature, 2, philox_relaxed_noise(SEED, OFFSET, ROW_OFFSET)),),
        _noise_tile(2),
        NOISE,
        draws=2,
        takes_mask=False,
    ),
    Operation("relaxed_grad", *_relaxed_grad(1), _noise_tile(2), NOISE, draws=2),
    Operation("relaxed_samples", *_relaxed_grad(2), _noise_tile(4), NOISE, draws=4),
    Operation(
        "softmax_grad",
        lambda g: (softmax_grad.softmax_grad(g.x, g.logsumexp, g.grad[1], g.mask),),
        lambda g: (_nothing_where_masked(EAGER.softmax_grad(Rows(g.x), g.grad[1]), g),),
        _tile("grad", twice=True),
        TWO,
    ),
    Operation("reinmax_grad", *_straight_through("reinmax_grad", 1), _tile("grad", twice=True), TWO),
    Operation("reinmax_grad_at_1", *_straight_through("reinmax_grad", 1, 1.0), _tile("grad", twice=True), TWO),
    Operation("gapped_grad", *_straight_through("gapped_grad", 2), _tile("grad", draws=2, twice=True), TWO, draws=2),
    *(
        Operation(
            f"soft_grad_{draws}",
            lambda g, n=draws: soft_grad.soft_grad(g.soft[-n:], g.grad[-n:], g.temperature, True),
            lambda g, n=draws: EAGER.soft_grad(g.soft[-n:], g.grad[-n:], g.temperature, True),
            _soft_tile(draws),
            TWO,
            draws=draws,
        )
        for draws in (1, 2)
    ),
    Operation("log_prob", *_log_prob(1, False), _tile("value"), TWO),
    Operation("log_prob_known", *_log_prob(2, True), _tile("value", draws=2), TWO, draws=2),
    Operation(
        "log_prob_index",
        lambda g: (log_prob.log_prob_index(g.x, g.logsumexp, g.index, g.mask),),
        lambda g: (EAGER.log_prob_index(Rows(g.x), g.index)[0],),
        _tile(),
        {**ONE, "INDEX_BLOCK": 4},
    ),
    *(
        Operation(
            f"log_prob_grad_{draws}",
            lambda g, n=draws: (log_prob.log_prob_grad(g.x, g.logsumexp, g.index[-n:], g.row_grad[-n:], g.mask),),
            lambda g, n=draws: (
                _nothing_where_masked(EAGER.log_prob_grad(Rows(g.x), g.index[-n:], g.row_grad[-n:]), g),
            ),
            _tile(),
            ONE,
        )
        for draws in (1, 2)
    ),
    Operation(
        "logsumexp",
        lambda g: (entropy.logsumexp(g.x, g.mask).sum(0),),
        lambda g: (base.logsumexp(g.x).sum(0),),
        _tile(),
        ONE,
    ),
    Operation(
        "entropy",
        lambda g: (lambda entropy, logsumexp: (entropy, logsumexp.sum(0)))(*entropy.entropy(g.x, g.mask)),
        lambda g: (EAGER.entropy(Rows(g.x))[0], base.logsumexp(g.x).sum(0)),
        _tile(),
        ONE,
    ),
    Operation(
        "entropy_grad",
        lambda g: (entropy.entropy_grad(g.x, g.logsumexp, g.entropy, g.row_grad[1], g.mask),),
        lambda g: (_nothing_where_masked(EAGER.entropy_grad(Rows(g.x), g.row_grad[1]), g),),
        _tile(),
        ONE,
    ),
    Operation(
        "log_prob_and_entropy",
        lambda g: _joint(*joint.log_prob_and_entropy(g.x, g.index, g.mask)),
        lambda g: _joint(EAGER.log_prob_index(Rows(g.x), g.index)[0], EAGER.entropy(Rows(g.x))[0], base.logsumexp(g.x)),
        _tile(),
        ONE,
    ),
    Operation("gradient_of_both_1", *_joint_grad(1, False), _tile(), ONE),
    Operation("gradient_of_both_2", *_joint_grad(2, False), _tile(), ONE),
    Operation("gradient_of_both_and_a_draw", *_joint_grad(1, True), _tile("grad"), TWO),
]


def _nothing_where_masked(grad: Tensor, given: Given) -> Tensor:
    """A category that is switched off has gradient 0, also where it is the index, where the others of its row have NaN,
    and where nothing else is left in the row, whatever gradient comes in."""
    return grad if given.mask is None else grad.masked_fill(~given.mask, 0)


# The test -------------------------------------------------------------------------------------------------------------


def numbers_of(case: Case) -> tuple[Given, Given]:
    """Give the arguments of a kernel and of its twin. The second of three rows is invalid, the third of more has a NaN,
    and a mask of each row leaves the first one nothing, where NaN comes in as the gradient. A long first row starts
    with a group that is all -inf."""
    rows, columns, dtype = case.rows, case.columns, case.dtype
    compute = tensors.compute_dtype(dtype)
    x = (3 * torch.randn(rows, columns)).to(dtype)
    if columns > 1100:
        x[0, :1100] = -torch.inf
    if columns > 4:
        x[0, 3] = x[-1, columns // 2] = -torch.inf
    # Never the last one: what is not written is NaN, too.
    if rows > 2 and case.layout != "expanded":
        x[1] = -torch.inf
    if rows > 3 and case.layout != "expanded":
        x[2, -1] = torch.nan
    mask, masked = None, x
    grad, row_grad = torch.randn(2, rows, columns).to(dtype), torch.randn(2, rows, dtype=compute)
    if case.layout == "expanded":
        x, grad = x[:1].expand(rows, -1), grad[:, :1].expand(-1, rows, -1)
        masked = x
    if case.mask != "none":
        mask = torch.rand(rows, columns) > 1 / 3
        if case.mask == "full" and rows > 2:
            mask[0], grad[:, 0], row_grad[:, 0] = False, torch.nan, torch.nan
        if case.mask == "one row":
            mask = mask[-1:].expand(rows, -1)
        elif case.mask != "full":
            mask = mask[: rows // 2]
            mask = mask.repeat_interleave(2, 0) if case.mask == "pairs" else mask.repeat(2, 1)
        masked = torch.where(mask, x, -torch.inf)
        # Whatever stands in the place of what is switched off.
        nothing = torch.tensor([torch.nan, torch.inf, 80.0], dtype=dtype).repeat(rows * columns)[: rows * columns]
        x = torch.where(mask, x, nothing.view(rows, columns)) if case.layout != "expanded" else x
    index = twin_sample(masked, 2, None, 1, 0)[1]
    # Also an index whose category is switched off.
    index[1] = index[1].where(index[1] < 0, torch.arange(rows) * 7 % columns)
    # The maximum once more at the end: the first one counts.
    value = torch.zeros(2, rows, columns).scatter_(-1, index.clamp(min=0).unsqueeze(-1), 1)
    value[..., -1] = 1
    exact = masked.double()
    temperature = torch.linspace(0.5, 2, rows, dtype=compute)
    temperature = temperature if case.temperature else temperature[:1].expand(rows)
    logsumexp, h = base.logsumexp(exact).to(compute), EAGER.entropy(Rows(exact))[0].to(compute)
    soft = (4 * torch.randn(2, rows, columns)).softmax(-1)
    soft[:, :, 0] = 0
    if rows > 2:
        soft[:, 1] = torch.nan
    soft = soft.to(dtype)
    given = Given(x, mask, logsumexp, h, grad, row_grad, index, value, temperature, soft)
    return given, given._replace(
        x=exact, grad=grad.double(), row_grad=row_grad.double(), temperature=temperature.double(), soft=soft.double()
    )


def guarded(guards: Guards, case: Case, given: Given) -> Given:
    others = {name: guards.place(getattr(given, name)) for name in ("logsumexp", "entropy", "row_grad", "index")}
    mask = given.mask
    if mask is not None:
        # A row stride of its own, of which nothing is a multiple.
        row = case.columns + 5
        shape, stride = {
            "full": ((case.rows,), (row,)),
            "one row": ((case.rows,), (0,)),
            "pairs": ((case.rows // 2, 2), (row, 0)),
            "halves": ((2, case.rows // 2), (0, row)),
        }[case.mask]
        mask = guards.place(mask.view(*shape, -1), (*stride, 1))
    return Given(
        x=laid_out(guards, given.x, case.layout),
        mask=mask,
        grad=laid_out(guards, given.grad, case.layout),
        soft=laid_out(guards, given.soft, "contiguous" if case.layout == "expanded" else case.layout),
        value=guards.place(given.value),
        temperature=guards.place(given.temperature, (case.temperature,)),
        **others,
    )


def launched_as(case: Case, one: bool, rows: int, columns: int, parts: int) -> bool:
    tiles = -(-case.columns // columns)
    return {
        "shared": one and 1 < rows < case.rows and case.rows % rows > 0,
        "alone": one and rows == 1,
        "one tile": one and rows == 1,
        "walked": not one and parts == 1 < tiles,
        "split": not one and parts == tiles > 1,
        "split in few": not one and 1 < parts < tiles,
    }[case.kind]


def assert_same(found: Tensor, expected: Tensor, case: Case) -> None:
    assert found.shape == expected.shape
    if expected.dtype != torch.float64:
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        return
    # Rows have the logits' dtype, numbers of rows the one that is computed in.
    rows = found.shape[-1] == case.columns
    assert found.dtype == (case.dtype if rows else tensors.compute_dtype(case.dtype))
    # NaN where the twin is NaN, and nowhere else. The kernels' noise is float32, for float64 too.
    eps = {torch.float64: 2e-6, torch.float32: 2e-5, torch.bfloat16: 2**-7}[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=eps, atol=1e-2 * eps, equal_nan=True)


# Several samples go the ways of several draws: one case of each.
LAUNCHED = [
    (o, c) for o in OPERATIONS for c in CASES if o.name != "relaxed_samples" or (c.layout, c.mask) == ("padded", "full")
]


@pytest.mark.parametrize(
    ("operation", "case"), LAUNCHED, ids=lambda of: of.name if isinstance(of, Operation) else case_id(of)
)
def test_launch(operation: Operation, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = {"walked": 1, "split": 10**6, "split in few": 2 * case.rows * operation.draws}
    sizes = {**operation.sizes, "FILL": fill.get(case.kind, 264), "MULTIPROCESSORS": 2}
    if "SAMPLE_GROUPS" in sizes and case.kind == "split in few":
        sizes["SAMPLE_GROUPS"] = 1
    if case.kind in ("shared", "alone"):
        # Four rows a program, or one.
        sizes["TILE"] = (8 if case.kind == "shared" else 2) * launch.next_power_of_2(case.columns)
    for name, size in sizes.items():
        monkeypatch.setattr(launch, name, size)
    given, exact = numbers_of(case)
    if not operation.takes_mask:
        given = given._replace(x=exact.x.to(case.dtype), mask=None)
    with Guards() as guards:
        inputs = guarded(guards, case, given)
        assert launched_as(case, *operation.tile(inputs))
        found = operation.kernel(inputs)
    guards.check()
    for f, e in zip(found, operation.twin(exact), strict=True):
        assert_same(f, e, case)


# What the guards are worth --------------------------------------------------------------------------------------------


@triton.jit
def _copy(source, target, READ: tl.constexpr, WRITE: tl.constexpr):
    tl.store(target + WRITE, tl.load(source + READ))


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="of the interpreter")
@pytest.mark.parametrize("at", [-1, 3, 4, 10, 10**9])
def test_an_access_beside_a_tensor_is_an_assertion(at: int) -> None:
    """Before it, behind it, and in the padding between its two rows, which are at 0 .. 2 and 5 .. 7."""
    with Guards() as guards:
        x, y = (guards.place(torch.zeros(2, 3), (5, 1)) for _ in range(2))
        _copy[(1,)](x, y, READ=7, WRITE=5)
        with pytest.raises(InterpreterError, match=r"read (beside a|outside of every) tensor"):
            _copy[(1,)](x, y, READ=at, WRITE=0)
        with pytest.raises(InterpreterError, match=r"written (beside a|outside of every) tensor"):
            _copy[(1,)](x, y, READ=0, WRITE=at)
    guards.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bool, torch.int64])
def test_canaries_see_a_write(dtype: torch.dtype) -> None:
    for at in (-1, 3, 4, 8):
        guards = Guards()
        x = guards.place(torch.ones(2, 3, dtype=dtype), (5, 1))
        guards.check()
        torch.as_strided(x, (), (), x.storage_offset() + at).zero_()
        with pytest.raises(AssertionError, match="written beside a tensor"):
            guards.check()


def test_what_is_allocated_starts_as_canaries() -> None:
    with Guards():
        for like in (torch.empty(3), torch.empty_like(torch.zeros(3)), torch.zeros(3).new_empty(3)):
            assert like.isnan().all()
        assert torch.empty(3, dtype=torch.bool).all()
        assert (torch.empty(3, dtype=torch.int64) > 2**40).all()
        assert torch.zeros(3).tolist() == [0, 0, 0]


def test_log_prob_index_reads_no_logit_beside_the_row() -> None:
    with Guards() as guards:
        x = guards.place(torch.zeros(2, 3), (5, 1))
        index = guards.place(torch.tensor([[-1, 3], [2, 0], [4, -5], [2**40, -(2**40)]]))
        found = log_prob.log_prob_index(x, guards.place(torch.zeros(2, 2)), index)
    guards.check()
    assert found[1].tolist() == [0, 0]
    assert found[[0, 2, 3]].isnan().all()


def test_wide_loads_of_aligned_rows_alone() -> None:
    """128 bits where every row starts on 16 bytes, as Triton is to assume of them."""
    x = torch.zeros(8 * 64 + 16)
    for dtype, width in ((torch.float64, 2), (torch.float32, 4), (torch.bfloat16, 8)):
        assert launch.vector(x.to(dtype)[:512].view(8, 64)) == width
        assert launch.vector(x.to(dtype)[1:513].view(8, 64)) == 1
        assert launch.vector(x.to(dtype)[:512].view(8, 64)[:, :60]) == 1
        assert launch.vector(x.to(dtype)[: 8 * 60].view(8, 60)[:, :48]) == 1


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("draws", [1, 2])
def test_sample_where_the_first_groups_are_switched_off(
    draws: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of the groups reads one of them at a time; it starts with two that have nothing."""
    monkeypatch.setattr(launch, "RACE", 1)
    x, mask = torch.randn(2, 3000), torch.ones(2, 3000, dtype=torch.bool)
    mask[0, :2100] = False
    x_masked = torch.where(mask, x, -torch.inf)
    _, index, logsumexp = sample.sample(
        x if masked else x_masked, draws, None, SEED, OFFSET, 0, mask if masked else None
    )
    assert torch.equal(index, twin_sample(x_masked, draws, None, SEED, OFFSET)[1])
    assert (index[:, 0] >= 2100).all()
    torch.testing.assert_close(logsumexp, base.logsumexp(x_masked))


@pytest.mark.parametrize("race", [1, 1024])
@pytest.mark.parametrize("draws", [1, 2])
def test_a_row_of_nan_has_no_draw(draws: int, race: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every version of Triton: NumPy, which may look for the least of the groups, refuses a row without any."""
    monkeypatch.setattr(launch, "RACE", race)
    x = torch.randn(3, 2048)
    x[1] = torch.nan
    one_hot, index, logsumexp = sample.sample(x, draws, torch.bool, SEED, OFFSET)
    assert torch.equal(index, twin_sample(x, draws, None, SEED, OFFSET)[1])
    assert index[:, 1].tolist() == [-1] * draws
    assert not one_hot[:, 1].any()
    assert logsumexp[1, 1].isnan()
    assert sample.shard_race(x, draws, SEED, OFFSET, 0, 0)[0][:, 1].tolist() == [-1] * draws


@pytest.mark.parametrize("columns", [7, 3000])
def test_a_sample_and_its_zeros_are_all_that_is_written(columns: int) -> None:
    """Of no draw, the logsumexp alone; of no row, nothing."""
    x = torch.randn(3, columns)
    one_hot, index, logsumexp = sample.sample(x, 0, torch.bool, SEED, OFFSET)
    assert (one_hot.shape, index.shape) == ((0, 3, columns), (0, 3))
    torch.testing.assert_close(logsumexp, base.logsumexp(x))
    one_hot, index, logsumexp = sample.sample(x[:0], 2, torch.bool, SEED, OFFSET)
    assert (one_hot.shape, index.shape, logsumexp.shape) == ((2, 0, columns), (2, 0), (2, 0))


# Noise ----------------------------------------------------------------------------------------------------------------


def test_every_bit_of_the_offset_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's offsets are multiples of four: bits 2 .. 63. Each alone makes another draw, that of the oracle."""
    monkeypatch.setattr(launch, "FILL", 1)
    x = torch.randn(16, 30)
    drawn = set()
    for offset in (0, *(1 << bit for bit in range(2, 64))):
        index = sample.sample(x, 1, None, 1, offset)[1]
        assert torch.equal(index, twin_sample(x, 1, None, 1, offset)[1])
        drawn.add(tuple(index.flatten().tolist()))
    assert len(drawn) == 63


def test_every_bit_of_the_seed_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a number and of a tensor on the device, to which the offset's part of the key is added."""
    monkeypatch.setattr(launch, "FILL", 1)
    x = torch.randn(16, 30)
    drawn = set()
    for seed in (0, *(1 << bit for bit in range(0, 63, 2)), -(2**63)):
        index = sample.sample(x, 1, None, seed, OFFSET)[1]
        assert torch.equal(index, twin_sample(x, 1, None, seed, OFFSET)[1])
        if seed in (0, 1, 2**62, -(2**63)):
            assert torch.equal(sample.sample(x, 1, None, torch.tensor([seed]), OFFSET)[1], index)
        drawn.add(tuple(index.flatten().tolist()))
    assert len(drawn) == 34


@pytest.mark.parametrize("seed", [1, -1, 2**63 - 1])
def test_the_key_and_the_counter_of_an_offset(seed: int) -> None:
    for offset in (0, 4, 2**32, 2**33 - 4, 2**33, 2**40 + 12, 2**63):
        arguments = noise.seed_arguments(seed, offset, 7, 2, 3, 4)
        assert arguments["key"] % 2**64 == (seed + offset // 2**33 * 2**32) % 2**64
        assert -(2**63) <= arguments["key"] < 2**63
        assert arguments["counter3"] == 2**31 + offset // 4 % 2**31
        assert arguments["row_offset"] == 7


@pytest.mark.parametrize(
    ("name", "most"), [("columns", 2**30), ("draws", 2**32), ("rows", 2**32), ("row_offset", 2**32 - 1)]
)
def test_the_counter_has_room_for_so_many(name: str, most: int) -> None:
    arguments = {"seed": 1, "offset": 0, "row_offset": 0, "rows": 1, "columns": 1, "draws": 1}
    noise.seed_arguments(**{**arguments, name: most})
    with pytest.raises(ValueError, match=r"^(columns|draws|row_offset): expected .*, found "):
        noise.seed_arguments(**{**arguments, name: most + 1})


@pytest.mark.parametrize(("columns", "sizes"), [(40, {"FILL": 1}), (1500, {"ONE_TILE": GROUP, "FILL": 1})])
def test_relaxed_noise_of_a_seed_on_the_device(
    columns: int, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in sizes.items():
        monkeypatch.setattr(launch, name, size)
    x, t = torch.randn(2, columns), torch.tensor([0.5, 2.0])
    index, logsumexp = sample.sample(x, 1, None, SEED, OFFSET)[1:]
    seed = torch.tensor(SEED)
    assert torch.equal(relaxed.relaxed(x, t, 1, seed, OFFSET), relaxed.relaxed(x, t, 1, SEED, OFFSET))
    grad = torch.randn(1, 2, columns)
    expected, _ = relaxed.relaxed_grad(x, logsumexp, index, grad, t, SEED, OFFSET)
    assert torch.equal(relaxed.relaxed_grad(x, logsumexp, index, grad, t, seed, OFFSET)[0], expected)
