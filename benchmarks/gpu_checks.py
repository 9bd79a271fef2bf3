"""The compiled kernels against their eager twins, before anything is timed.

The cases and the bounds are those of tests/test_kernels.py, whose samples are compared draw for draw with a Philox in
NumPy; and what only a GPU can show: more than 2^31 elements, and CUDA graphs that draw anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from correctness import frequency_fault
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
import test_kernels as cases  # pyright: ignore[reportMissingImports]
from philox import philox_relaxed_noise  # pyright: ignore[reportMissingImports]

from onehot_triton import OneHotCategorical, ReparamGradientStrategy, reference, use_backend
from onehot_triton.kernels import entropy, log_prob, relaxed, sample, softmax_grad

Check = Callable[[torch.device, bool], None]
"""Raises AssertionError where a kernel is wrong. The flag asks for small shapes: a dry run, interpreted."""


def _grid(small: bool) -> Iterator[tuple[int, torch.dtype]]:
    """(columns, dtype): every length in bfloat16, and of the other dtypes each kind of row once, because what takes the
    time is to compile. A split row, a row of many tiles, and one that starts on no multiple of 16 bytes are added."""
    if small:
        yield from ((columns, dtype) for columns in (18, 1025) for dtype in cases.DTYPES[1:3])
        return
    for columns in (*cases.COLUMNS, 50_304, 70_001, 151_936):
        yield columns, torch.bfloat16
    for columns in (18, 1025, 9000, 70_001):
        yield from ((columns, dtype) for dtype in cases.DTYPES if dtype != torch.bfloat16)


def densities_and_gradients(device: torch.device, small: bool) -> None:
    for columns, dtype in _grid(small):
        for case in cases.CASES:
            # The cases make tensors of their own.
            with torch.device(device):
                logits = cases.logits_of(3, columns, dtype)
                row_grad = torch.randn(2, 3, dtype=reference.compute_dtype(dtype))
                grad = torch.randn(3, columns).to(dtype)
                exact = case.twin(logits.double(), grad.double(), row_grad.double())
                found, twin = case.kernel(logits, grad, row_grad), case.twin(logits, grad, row_grad)
            try:
                cases.assert_as_good_as(found, twin, exact, dtype)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, {columns} columns, {dtype}: {error}") from None


def category_masks(device: torch.device, small: bool) -> None:
    """As logits of -inf; sums may be taken in another order."""
    for columns in (18, 1025) if small else (18, 1025, 9000, 151_936):
        mask = cases.mask_of(4, columns).to(device)
        with torch.device(device):
            logits = torch.randn(4, columns)
            for name, run in cases.WITH_MASK.items():
                expected = run(torch.where(mask, logits, -torch.inf), None)
                for found, e in zip(run(torch.where(mask, logits, torch.nan), mask), expected, strict=True):
                    where = f"{name}, {columns} columns"
                    torch.testing.assert_close(found, e, equal_nan=True, msg=partial("{}: {}".format, where))


def samples_draw_for_draw(device: torch.device, small: bool) -> None:
    for seed, (columns, dtype) in enumerate(_grid(small)):
        for draws in (1, 3):
            logits = cases.logits_of(3, columns, dtype)
            place = (seed, 8 * seed, 5)
            hot, index, logsumexp = sample.sample(logits.to(device), draws, torch.int64, *place)
            expected_hot, expected, _ = cases.twin_sample(logits, draws, torch.int64, *place)
            where = f"{columns} columns, {draws} draws, {dtype}"
            assert torch.equal(index.cpu(), expected), f"index, {where}"
            assert torch.equal(hot.cpu(), expected_hot), f"one-hot, {where}"
            exact = logits.double().logsumexp(-1)
            twin = reference.logsumexp(logits)
            cases.assert_as_good_as(logsumexp.cpu(), twin, exact, dtype)
        # Rows that start where no vector can be loaded, and the seed on the device.
        wide = torch.randn(3, columns + 5, device=device).to(dtype)[:, 3 : columns + 3]
        index = sample.sample(wide, 1, None, *place)[1]
        again = sample.sample(wide.contiguous(), 1, None, torch.tensor([seed], device=device), *place[1:])[1]
        assert torch.equal(again, index), f"unaligned rows, {columns} columns, {dtype}"


def many_rows_draw_for_draw(device: torch.device, small: bool) -> None:
    """Several rows a program, and programs enough that rows share one."""
    rows = 70 if small else 3000
    for columns in (2, 6, 18, 32, 100):
        logits = torch.randn(rows, columns)
        index = sample.sample(logits.to(device), 1, None, 3, 4)[1]
        expected = cases.twin_sample(logits, 1, torch.int64, 3, 4)[1]
        # Two candidates within a rounding of each other may be told apart differently, at 1e-7 a draw.
        assert (index.cpu() != expected).sum() <= 1, f"{columns} columns"


def relaxed_samples_and_gradients(device: torch.device, small: bool) -> None:
    for columns, dtype in _grid(small):
        logits = cases.logits_of(3, columns, dtype)
        t = torch.tensor([0.3, 1.0, 3.0], dtype=reference.compute_dtype(dtype))
        x, where = logits.to(device), f"{columns} columns, {dtype}"
        found = relaxed.relaxed(x, t.to(device), 2, 9, 4, 1)
        expected = reference.relaxed(logits, t, 2, philox_relaxed_noise(9, 4, 1))
        tolerance = max(1e-4, 4 * torch.finfo(dtype).eps)
        torch.testing.assert_close(
            found.cpu(), expected, atol=1e-6, rtol=tolerance, msg=lambda m, w=where: f"relaxed, {w}: {m}"
        )
        index = sample.sample(x, 2, None, 2, 4)[1]
        grad = torch.randn(2, 3, columns).to(dtype)
        found = relaxed.relaxed_grad(x, entropy.logsumexp(x), index, grad.to(device), t.to(device), 2, 4)
        noise = cases.posterior_noise(2, 4, 2, 3, columns)
        exact = reference.relaxed_grad(logits.double(), index.cpu(), grad.double(), t.double(), *noise)
        bound = 3e-5 * exact.abs().max() + 4 * torch.finfo(dtype).eps * exact.abs()
        assert ((found.cpu().double() - exact).abs() <= bound).all(), f"relaxed_grad, {where}"


def more_than_2_to_the_31_elements(device: torch.device, small: bool) -> None:
    """The last rows of a batch so large that 32-bit offsets would wrap, against the same rows by themselves."""
    rows, columns, last = (40, 1500, 3) if small else (2**31 // 131_072 + 7, 131_072, 3)
    x = torch.randn(rows, columns, dtype=torch.bfloat16, device=device)
    tail = x[-last:].clone()
    hot, index, logsumexp = sample.sample(x, 1, torch.bool, 7, 4)
    expected_hot, expected, expected_sum = sample.sample(tail, 1, torch.bool, 7, 4, rows - last)
    assert torch.equal(index[:, -last:], expected), "index"
    assert torch.equal(hot[:, -last:], expected_hot), "one-hot"
    # Sums are added up in another order where a row is split.
    torch.testing.assert_close(logsumexp[-last:], expected_sum)
    twin = cases.twin_sample(tail.cpu(), 1, torch.bool, 7, 4, rows - last)[1]
    assert torch.equal(expected.cpu(), twin), "index of the twin"
    assert (hot.sum(-1) == 1).all(), "one-hot, every row"
    value = log_prob.log_prob(x, None, hot)
    assert torch.equal(value[1], index), "log_prob's index"
    torch.testing.assert_close(value[0][:, -last:], reference.log_prob(tail, expected, expected_sum))
    del hot, value
    torch.testing.assert_close(entropy.entropy(x)[0][-last:], entropy.entropy(tail)[0])
    t = torch.ones(rows, device=device)
    for name, function in {
        "softmax_grad": lambda x, s, i, t: softmax_grad.softmax_grad(x, s, x),
        "relaxed_grad": lambda x, s, i, t: relaxed.relaxed_grad(x, s, i, x[None], t, 7, 4, rows - len(x)),
        "relaxed": lambda x, s, i, t: relaxed.relaxed(x, t, 1, 7, 4, rows - len(x))[0],
    }.items():
        found = function(x, logsumexp, index, t)[-last:]
        expected_rows = function(tail, expected_sum, expected, t[-last:])
        torch.testing.assert_close(found, expected_rows, msg=lambda m, n=name: f"{n}: {m}")


def replays(device: torch.device, run: Callable[[], Tensor]) -> Iterator[Tensor]:
    """What `run` gives each time a CUDA graph of it is replayed; off a GPU, each time it is called."""
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
        yield out.clone()


def graphs_draw_anew(device: torch.device, small: bool) -> None:
    """Replays of one graph differ, and together they fit."""
    for rows, columns in ((200, 6),) if small else ((2000, 6), (64, 4096)):
        x = torch.randn(columns, device=device).expand(rows, columns).contiguous()
        drawn = replays(device, lambda x=x: OneHotCategorical(logits=x).sample())
        many = torch.cat([next(drawn) for _ in range(4 if small else 20)])
        halves = many.chunk(2)
        assert not torch.equal(*halves), f"{rows} x {columns}: two replays drew the same"
        why = frequency_fault(many, x[:1].expand(many.shape).contiguous())
        assert why is None, f"{rows} x {columns}: {why}"


def public_classes(device: torch.device, small: bool) -> None:
    """The class's own draws fit their law, and its gradients are finite, by the choice of backend that a user gets."""
    for rows, columns in ((300, 6),) if small else ((20000, 6), (512, 50_000)):
        x = torch.randn(columns, device=device).expand(rows, columns).contiguous()
        why = frequency_fault(OneHotCategorical(logits=x).sample(), x)
        assert why is None, f"{rows} x {columns}: {why}"
    for method in ReparamGradientStrategy:
        x = torch.randn(8, 50, device=device, requires_grad=True)
        dist = OneHotCategorical(logits=x, grad_method=method)
        draw = dist.rsample()
        (draw.square().sum() + dist.log_prob(draw.detach()).sum() + dist.entropy().sum()).backward()
        assert x.grad is not None, method.name
        assert x.grad.isfinite().all(), method.name
        assert ((draw == 0) | (draw == 1)).all(), method.name


CHECKS: tuple[Check, ...] = (
    samples_draw_for_draw,
    many_rows_draw_for_draw,
    densities_and_gradients,
    category_masks,
    relaxed_samples_and_gradients,
    public_classes,
    graphs_draw_anew,
    more_than_2_to_the_31_elements,
)


def failures(device: torch.device, small: bool, progress: Callable[[str], None]) -> list[str]:
    """Runs every check; gives what is wrong."""
    found = []
    backend = "triton" if small else "auto"
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        torch.manual_seed(20)
        try:
            with use_backend(backend), np.errstate(all="ignore"):
                check(device, small)
            progress(f"ok     {name}")
        except Exception as error:
            # A kernel that does not compile or crashes is as wrong as one that miscounts.
            found.append(name)
            progress(f"WRONG  {name}: {type(error).__name__}: {error}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found
