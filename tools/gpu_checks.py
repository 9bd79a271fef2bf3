"""Compare the compiled kernels with their eager twins.

The first checks use the launches that are timed. Values that torch can compute on the GPU are compared in all rows.
Draws are compared one by one in the first and last rows, with a Philox in NumPy. The other checks use the cases and
bounds of tests/test_kernels.py, and add two that need a GPU: more than 2^31 elements, and CUDA graphs that draw anew.

No check fails by chance, in practice. A draw may differ from its twin's if two candidates are within a rounding of each
other, which by the spacing of float32 happens to 1e-6 of all draws. One of 2000 draws may differ; two differ in one of
500,000 checks. Frequencies fail with probability correctness.FAILURE_RATE. The other bounds are ten times the rounding
errors of the operation, or four times the error of the twin. All seeds are fixed, so a check that passes keeps passing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import test_kernels as cases
import torch
from correctness import frequency_fault
from philox import philox_relaxed_noise
from torch import Tensor

from onehot_triton import OneHotCategorical, ReparamGradientStrategy, tensors, use_backend
from onehot_triton.compute import EAGER, base
from onehot_triton.compute.base import Rows
from onehot_triton.kernels import entropy, log_prob, relaxed, sample, soft_grad, softmax_grad

Check = Callable[[torch.device, bool], None]
"""(device, small): raises AssertionError if a kernel is wrong. `small` asks for the small shapes of a dry run."""
ShapeCheck = Callable[[torch.device, int, int, torch.dtype], None]
"""(device, rows, columns, dtype): the same for logits of one shape and dtype."""

# Error bounds: of a relaxed sample, relative; of its gradient, relative to the largest entry.
RELAXED, RELAXED_GRAD = 1e-3, 3e-4
SEED, OFFSET = 5, 8


# Checks of the launches that are timed --------------------------------------------------------------------------------


def ends(rows: int, columns: int) -> Iterator[slice]:
    """Yield the first rows and the last rows, as many as a CPU draws quickly."""
    count = min(rows, max(2, min(1000, 200_000 // columns)))
    yield from (slice(0, count), slice(rows - count, rows))


def few_differ(found: Tensor, expected: Tensor) -> None:
    different = int((found.cpu() != expected).sum())
    assert different <= 1, f"{different} of {expected.numel()} draws are not the twin's"


def sample_at(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> None:
    logits = torch.randn(rows, columns, device=device).to(dtype)
    hot, index = sample.sample(logits, 1, dtype, SEED, OFFSET)[:2]
    assert ((index >= 0) & (index < columns)).all(), "an index is out of range"
    assert (hot[0].sum(-1) == 1).all(), "a row's sum is not 1"
    assert (hot.gather(-1, index[..., None]) == 1).all(), "the one-hot is not that of the index"
    for some in ends(rows, columns):
        few_differ(index[:, some], cases.twin_sample(logits[some].cpu(), 1, None, SEED, OFFSET, some.start)[1])


def softmax_grad_at(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> None:
    """Check softmax_grad as the backward of a PassThrough draw."""
    logits = torch.randn(rows, columns, device=device).to(dtype).requires_grad_()
    grad = torch.randn(rows, columns, device=device).to(dtype)
    draw = OneHotCategorical(logits=logits, grad_method=ReparamGradientStrategy.PassThrough).rsample()
    found = torch.autograd.grad(draw, logits, grad)[0]
    for some in torch.arange(rows, device=device).split(max(1, 2**25 // columns)):
        x, g = logits.detach()[some], grad[some]
        exact, twin = EAGER.softmax_grad(Rows(x.double()), g.double()), EAGER.softmax_grad(Rows(x), g)
        cases.assert_as_good_as(found[some], twin, exact, dtype)


def _temperature(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([0.3, 1.0, 3.0], dtype=tensors.compute_dtype(dtype), device=device).repeat(rows // 3 + 1)[:rows]


def relaxed_at(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> None:
    logits = torch.randn(rows, columns, device=device).to(dtype)
    t = _temperature(rows, dtype, device)
    found = relaxed.relaxed(logits, t, 1, SEED, OFFSET)
    for some in ends(rows, columns):
        noise = philox_relaxed_noise(SEED, OFFSET, some.start)
        expected = EAGER.relaxed_with(logits[some].cpu(), t[some].cpu(), 1, noise)
        rtol = max(RELAXED, 4 * torch.finfo(dtype).eps)
        torch.testing.assert_close(found[:, some].cpu(), expected, atol=1e-6, rtol=rtol)


def assert_relaxed_grad(found: Tensor, exact: Tensor, where: str = "") -> None:
    bound = RELAXED_GRAD * exact.abs().max() + 4 * torch.finfo(found.dtype).eps * exact.abs()
    off = ((found.cpu().double() - exact).abs() / bound).max().item()
    assert off <= 1, f"relaxed_grad{where} is off by {off:.1f} times what it may"


def relaxed_grad_at(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> None:
    logits = torch.randn(rows, columns, device=device).to(dtype)
    grad = torch.randn(1, rows, columns, device=device).to(dtype)
    t = _temperature(rows, dtype, device)
    _, index, logsumexp = sample.sample(logits, 1, None, SEED, OFFSET)
    found, _ = relaxed.relaxed_grad(logits, logsumexp, index, grad, t, SEED, OFFSET)
    for some in ends(rows, columns):
        x, g, i = logits[some].cpu().double(), grad[:, some].cpu().double(), index[:, some].cpu()
        noise = cases.posterior_noise(SEED, OFFSET, 1, len(x), columns, some.start)
        assert_relaxed_grad(found[some], EAGER.relaxed_grad_with(x, i, g, t[some].cpu().double(), *noise)[0])


# The checks above by operation.
AT_A_SHAPE: dict[str, ShapeCheck] = {
    "sample": sample_at,
    "softmax_grad": softmax_grad_at,
    "relaxed": relaxed_at,
    "relaxed_grad": relaxed_grad_at,
}


# The other checks -----------------------------------------------------------------------------------------------------


def _grid(small: bool) -> Iterator[tuple[int, torch.dtype]]:
    """Yield (columns, dtype): all lengths in bfloat16, and each kind of row once in the other dtypes.

    Compiling takes most of the time, hence the choice. Three lengths are added to those of the tests: a split row, a
    row of many tiles, and one whose rows do not start at multiples of 16 bytes.
    """
    if small:
        yield from ((18, torch.bfloat16), (1025, torch.float32))
        return
    for columns in (*cases.COLUMNS, 50_304, 70_001, 151_936):
        yield columns, torch.bfloat16
    for columns in (18, 1025, 9000, 70_001):
        yield from ((columns, dtype) for dtype in cases.DTYPES if dtype != torch.bfloat16)


def densities_and_gradients(of: str, device: torch.device, small: bool) -> None:
    """Check the cases of the tests whose names begin with `of`."""
    for columns, dtype in _grid(small):
        for case in (case for case in cases.CASES if case.name.startswith(of)):
            # The cases create further tensors on the default device.
            with torch.device(device):
                logits = cases.logits_of(3, columns, dtype)
                row_grad = torch.randn(2, 3, dtype=tensors.compute_dtype(dtype))
                grad = torch.randn(3, columns).to(dtype)
                exact = case.twin(logits.double(), grad.double(), row_grad.double())
                found, twin = case.kernel(logits, grad, row_grad), case.twin(logits, grad, row_grad)
            try:
                cases.assert_as_good_as(found, twin, exact, dtype)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, {columns} columns, {dtype}: {error}") from None


def rows_that_round(device: torch.device, small: bool) -> None:
    """Check peaked rows and logits far from 0, where rounding a product before its sum is visible."""
    # The tests create their tensors on the default device.
    with torch.device(device):
        for columns in (6,) if small else (6, 700, 5000):
            cases.test_entropies_of_peaked_rows(columns)
        for columns in (18,) if small else (18, 1500):
            cases.test_a_common_offset_changes_nothing(columns)


def category_masks(device: torch.device, small: bool) -> None:
    """Check that a mask gives the values of logits of -inf, up to the order of sums, and gradients of 0 where False."""
    for columns in (18,) if small else (18, 1025, 9000, 151_936):
        mask = cases.mask_of(4, columns).to(device)
        with torch.device(device):
            logits = torch.randn(4, columns)
            for name, run in cases.WITH_MASK.items():
                expected = cases.expected_with_mask(name, logits, mask)
                for found, e in zip(run(torch.where(mask, logits, torch.nan), mask), expected, strict=True):
                    where = f"{name}, {columns} columns"
                    torch.testing.assert_close(found, e, equal_nan=True, msg=partial("{}: {}".format, where))


def samples_draw_for_draw(device: torch.device, small: bool) -> None:
    for seed, (columns, dtype) in enumerate(_grid(small)):
        for draws in (1, 3):
            logits = cases.logits_of(3, columns, dtype)
            place = (seed, 8 * seed, 5)
            hot, index = sample.sample(logits.to(device), draws, torch.int64, *place)[:2]
            expected = cases.twin_sample(logits, draws, None, *place)[1]
            where = f"{columns} columns, {draws} draws, {dtype}"
            few_differ(index, expected)
            assert torch.equal(hot.cpu(), base.one_hot(index.cpu(), columns, torch.int64)), f"one-hot, {where}"
        # Rows whose start is not aligned for vector loads, and a seed on the device.
        wide = torch.randn(3, columns + 5, device=device).to(dtype)[:, 3 : columns + 3]
        index = sample.sample(wide, 1, None, *place)[1]
        again = sample.sample(wide.contiguous(), 1, None, torch.tensor([seed], device=device), *place[1:])[1]
        assert torch.equal(again, index), f"unaligned rows, {columns} columns, {dtype}"


def many_rows_draw_for_draw(device: torch.device, small: bool) -> None:
    """Check several rows per program, in enough rows that programs are shared."""
    rows = 10 if small else 3000
    for columns in (6,) if small else (2, 6, 18, 32, 100):
        logits = torch.randn(rows, columns)
        index = sample.sample(logits.to(device), 1, None, 3, 4)[1]
        few_differ(index, cases.twin_sample(logits, 1, torch.int64, 3, 4)[1])


def relaxed_samples_and_gradients(device: torch.device, small: bool) -> None:
    for columns, dtype in _grid(small):
        logits = cases.logits_of(3, columns, dtype)
        t = torch.tensor([0.3, 1.0, 3.0], dtype=tensors.compute_dtype(dtype))
        x, where = logits.to(device), f"{columns} columns, {dtype}"
        found = relaxed.relaxed(x, t.to(device), 2, 9, 4, 1)
        expected = EAGER.relaxed_with(logits, t, 2, philox_relaxed_noise(9, 4, 1))
        tolerance = max(RELAXED, 4 * torch.finfo(dtype).eps)
        torch.testing.assert_close(
            found.cpu(), expected, atol=1e-6, rtol=tolerance, msg=lambda m, w=where: f"relaxed, {w}: {m}"
        )
        _, index, logsumexp = sample.sample(x, 2, None, 2, 4)
        grad = torch.randn(2, 3, columns).to(dtype)
        found, _ = relaxed.relaxed_grad(x, logsumexp, index, grad.to(device), t.to(device), 2, 4)
        noise = cases.posterior_noise(2, 4, 2, 3, columns)
        exact = EAGER.relaxed_grad_with(logits.double(), index.cpu(), grad.double(), t.double(), *noise)[0]
        assert_relaxed_grad(found, exact, f", {where}")


def soft_gradients(device: torch.device, small: bool) -> None:
    """Check the gradients of soft samples in the logits and the temperature. Samples of 0 are among them."""
    for columns, dtype in _grid(small):
        for draws in (1, 3):
            y = torch.softmax(2 * torch.randn(draws, 3, columns, device=device), -1).to(dtype)
            y[..., 0] = 0
            grad = torch.randn(draws, 3, columns, device=device).to(dtype)
            t = _temperature(3, dtype, device)
            where = f"{columns} columns, {draws} draws, {dtype}"
            (dx, dt), (twin_dx, twin_dt) = (f(y, grad, t, True) for f in (soft_grad.soft_grad, EAGER.soft_grad))
            exact_dx, exact_dt = EAGER.soft_grad(y.double(), grad.double(), t.double(), True)
            assert dt is not None
            assert twin_dt is not None
            assert exact_dt is not None
            try:
                cases.assert_as_good_as(dx, twin_dx, exact_dx, dtype)
            except AssertionError as error:
                raise AssertionError(f"the gradient of the logits, {where}: {error}") from None
            # A GPU's log2 has an absolute error of 2^-22 near 1, where its result is near 0. It enters each product.
            few = 2.0**-18 * y.double().sum((0, 2)) * grad.double().abs().amax((0, 2)) / t + 1e-30
            off = ((dt - exact_dt).abs() / (4 * (twin_dt - exact_dt).abs() + few)).max().item()
            assert off <= 1, f"the gradient of the temperature, {where}: off by {off:.1f} times what it may"


def more_than_2_to_the_31_elements(device: torch.device, small: bool) -> None:
    """Compare the last rows of a batch in which 32-bit offsets would wrap with the same rows by themselves."""
    rows, columns, last = (5, 1500, 3) if small else (2**31 // 131_072 + 7, 131_072, 3)
    x = torch.randn(rows, columns, dtype=torch.bfloat16, device=device)
    tail = x[-last:].clone()
    hot, index, logsumexp = sample.sample(x, 1, torch.bool, 7, 4)
    expected_hot, expected, expected_sum = sample.sample(tail, 1, torch.bool, 7, 4, rows - last)
    assert torch.equal(index[:, -last:], expected), "index"
    assert torch.equal(hot[:, -last:], expected_hot), "one-hot"
    twin = cases.twin_sample(tail.cpu(), 1, torch.bool, 7, 4, rows - last)[1]
    assert torch.equal(expected.cpu(), twin), "index of the twin"
    assert (hot.sum(-1) == 1).all(), "one-hot, every row"
    value = log_prob.log_prob(x, None, hot)
    assert torch.equal(value[1], index), "log_prob's index"
    torch.testing.assert_close(value[0][:, -last:], EAGER.log_prob_index(Rows(tail), expected)[0])
    del hot, value
    torch.testing.assert_close(entropy.entropy(x)[0][-last:], entropy.entropy(tail)[0])
    t = torch.ones(rows, device=device)
    for name, function in {
        "softmax_grad": lambda x, s, i, t: softmax_grad.softmax_grad(x, s, x),
        "relaxed_grad": lambda x, s, i, t: relaxed.relaxed_grad(x, s, i, x[None], t, 7, 4, rows - len(x))[0],
        "relaxed": lambda x, s, i, t: relaxed.relaxed(x, t, 1, 7, 4, rows - len(x))[0],
    }.items():
        found = function(x, logsumexp, index, t)[-last:]
        expected_rows = function(tail, expected_sum, expected, t[-last:])
        torch.testing.assert_close(found, expected_rows, msg=lambda m, n=name: f"{n}: {m}")


def replays(device: torch.device, run: Callable[[], Tensor], clone: bool = True) -> Iterator[Tensor]:
    """Yield the result of `run` at each replay of a CUDA graph of it, or at each call if there is no GPU.

    Without `clone` the next replay overwrites the result.
    """
    if device.type != "cuda":
        while True:
            yield run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    while True:
        graph.replay()
        yield out.clone() if clone else out


def graphs_draw_anew(device: torch.device, small: bool) -> None:
    """Check that replays of one graph differ, and that their draws together have the right frequencies."""
    for rows, columns in ((6, 6),) if small else ((2000, 6), (64, 4096)):
        x = torch.randn(columns, device=device).expand(rows, columns).contiguous()
        drawn = replays(device, lambda x=x: OneHotCategorical(logits=x).sample())
        many = torch.cat([next(drawn) for _ in range(2 if small else 20)])
        halves = many.chunk(2)
        assert not torch.equal(*halves), f"{rows} x {columns}: two replays drew the same"
        why = frequency_fault(many, x[:1].expand(many.shape).contiguous())
        assert why is None, f"{rows} x {columns}: {why}"


def public_classes(device: torch.device, small: bool) -> None:
    """Check the class with the backend that a user gets: frequencies of draws, and that gradients are finite."""
    for rows, columns in ((6, 6),) if small else ((20000, 6), (512, 50_000)):
        x = torch.randn(columns, device=device).expand(rows, columns).contiguous()
        why = frequency_fault(OneHotCategorical(logits=x).sample(), x)
        assert why is None, f"{rows} x {columns}: {why}"
    for method in ReparamGradientStrategy:
        x = torch.randn(3 if small else 8, 50, device=device, requires_grad=True)
        dist = OneHotCategorical(logits=x, grad_method=method)
        draw = dist.rsample()
        (draw.square().sum() + dist.log_prob(draw.detach()).sum() + dist.entropy().sum()).backward()
        assert x.grad is not None, method.name
        assert x.grad.isfinite().all(), method.name
        assert ((draw == 0) | (draw == 1)).all(), method.name


# (check, name, operations that it vouches for). "classes" and "masks" are no operations that are timed.
CHECKS: tuple[tuple[Check, str, str], ...] = (
    (samples_draw_for_draw, "samples, draw for draw", "sample"),
    (many_rows_draw_for_draw, "many short rows, draw for draw", "sample"),
    (partial(densities_and_gradients, "log_prob"), "log_prob and its gradient", "log_prob"),
    (partial(densities_and_gradients, "entropy"), "entropy and its gradient", "entropy"),
    (partial(densities_and_gradients, "logsumexp"), "logsumexp", "entropy"),
    (partial(densities_and_gradients, "softmax_grad"), "softmax_grad", "softmax_grad"),
    (rows_that_round, "peaked rows, logits far from 0", "entropy log_prob"),
    (category_masks, "category masks", "masks"),
    (relaxed_samples_and_gradients, "relaxed samples and gradients", "relaxed relaxed_grad"),
    (soft_gradients, "gradients of soft samples", "soft_grad"),
    (public_classes, "the public classes", "classes"),
    (more_than_2_to_the_31_elements, "more than 2^31 elements", "limits"),
)


def checked(device: torch.device, small: bool, check: Callable[..., None], *arguments: object) -> None:
    """Run a check with a fixed seed and the Triton backend."""
    torch.manual_seed(20)
    with use_backend("triton" if small else "auto"), np.errstate(all="ignore"):
        check(device, *arguments)
