"""The library's compiled kernels, run without a GPU, against their eager twins and float64.

    make ptx                                        the detectors, then every operation, compiled for sm_90
    make ptx ARGS="--quick --arch sm_80 --only sample"
    make ptx ARGS=--large                           more than 2^31 elements
    make ptx ARGS="--suite tests/test_kernels.py"   the project's own tests of kernels (pytest arguments), compiled

One line for each operation; exit status 1 if anything is wrong. Approximate instructions are off by as much as the PTX
ISA allows, in a way that depends on the seed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter

import driver
import machine
import numpy as np
import self_test
import suite
import torch
from philox import (
    GROUP,
    element_words,
    exponential,
    group_words,
    philox_noise,
    relaxed_exponential,
    relaxed_words,
    words,
)  # fmt: skip
from torch import Tensor

from onehot_triton import tensors
from onehot_triton.compute import EAGER, base
from onehot_triton.compute.base import Rows
from onehot_triton.kernels import entropy, launch, log_prob, relaxed, sample, soft_grad, softmax_grad, straight_through
from onehot_triton.kernels import log_prob_and_entropy as joint

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
COLUMNS = (1, 2, 6, 18, 32, 100, 1000, 1023, 1024, 1025, 4096, 5000, 20000, 33000, 140000)
# Notes, not faults.
HARMLESS = ("same write",)  # of what a fault's kind starts with


class Case:
    """A batch of logits and what goes with it.

    Attributes:
        kind: "plain", "huge" (1e4), "special" (rows with NaN, +inf, -inf), "peaked" (one category has it all).
        layout: "dense", "wide" (rows of a wider tensor, aligned), "odd" (of any stride, from any element on),
            "expanded" (stride 0), "transposed" (no unit stride).
        mask: None, "full", "shared" (row stride 0) or "pairs" (one for two rows each).
        tuning: what to set in launch.py.
    """

    def __init__(self, rows, columns, dtype, *, kind="plain", layout="dense", mask=None, draws=1, hot=torch.int64,
                 seed_tensor=False, tuning=None, number=0) -> None:  # fmt: skip
        self.rows, self.columns, self.dtype, self.kind, self.layout = rows, columns, dtype, kind, layout
        self.mask, self.draws, self.hot, self.seed_tensor, self.tuning = mask, draws, hot, seed_tensor, tuning or {}
        self.compute = tensors.compute_dtype(dtype)
        self.random = torch.Generator().manual_seed(1000 * number + columns)
        self.seed, self.offset, self.row_offset = (-7, 5, 2**40 + 3)[number % 3], (8, 2**35 + 4)[number % 2], number % 5
        self.logits = self._layout(self._values())
        self.allowed = self._mask()
        # What the kernels see, for the twins: a switched off category has a logit of -inf.
        allowed = None if self.allowed is None else self.allowed.reshape(rows, columns)
        self.seen = self.logits if allowed is None else self.logits.masked_fill(~allowed, -torch.inf)
        self.grad = self._layout(torch.randn(rows, columns, generator=self.random).to(dtype))
        self.index = torch.randint(columns, (draws, rows), generator=self.random)
        # One that is sampled has a probability; a masked one is asked for where no mask makes it 0 only.
        if allowed is not None:
            self.index = allowed.int().expand(draws, rows, columns).argmax(-1)
        self.row_grad = torch.randn(draws, rows, generator=self.random).to(self.compute)
        self.temperature = torch.tensor([0.1, 0.3, 1.0, 5.0]).to(self.compute).repeat(rows // 4 + 1)[:rows]

    def __str__(self) -> str:
        names = [f"{self.rows}x{self.columns}", str(self.dtype)[6:], self.kind, self.layout]
        names += [f"mask {self.mask}"] * bool(self.mask) + [f"draws {self.draws}", f"hot {str(self.hot)[6:]}"]
        return " ".join(names + ["seed tensor"] * self.seed_tensor + [str(self.tuning)] * bool(self.tuning))

    def _values(self) -> Tensor:
        x = torch.randn(self.rows, self.columns, generator=self.random)
        x = x * (1e4 if self.kind == "huge" else 3)
        if self.kind == "peaked":
            x = x / 3 - 40
            x[:, self.columns // 2] += 90
        if self.kind == "special":
            last = self.columns - 1
            for row, (column, value) in enumerate([(0, torch.nan), (last, torch.inf), (slice(None), -torch.inf),
                                                   (slice(1, None, 2), -torch.inf), (last, torch.nan)]):  # fmt: skip
                if row < self.rows:
                    x[row, column] = value
        return x.clamp(-60000, 60000).to(self.dtype) if self.kind == "huge" else x.to(self.dtype)

    def _layout(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        if self.layout == "wide":
            wide = torch.full((rows, columns + 32), torch.nan, dtype=x.dtype)[:, 16 : 16 + columns]
        elif self.layout == "odd":
            wide = torch.full((rows * (columns + 3) + 1,), torch.nan, dtype=x.dtype)[1:].view(rows, -1)[:, :columns]
        elif self.layout == "transposed":
            wide = torch.empty(columns, rows, dtype=x.dtype).t()
        elif self.layout == "expanded":
            return x[rows // 2].clone().expand(rows, -1)
        else:
            return x
        return wide.copy_(x)

    def _mask(self) -> Tensor | None:
        if self.mask is None:
            return None
        mask = torch.rand(1 if self.mask == "shared" else self.rows, self.columns, generator=self.random) > 1 / 3
        if self.mask == "full" and self.rows > 2:
            mask[0] = False
            mask[1], mask[1, -1] = False, True
        mask[-1, 0] = True
        return mask[::2].unsqueeze(1).expand(-1, 2, -1) if self.mask == "pairs" else mask.expand(self.rows, -1)

    def zero_where_off(self, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Twins' gradients with 0 where the mask is False, whatever the row has."""
        if self.allowed is None:
            return gradients
        off = ~self.allowed.reshape(self.rows, self.columns)
        return tuple(gradient.masked_fill(off, 0) for gradient in gradients)

    @property
    def noise(self) -> tuple:
        """The place of the noise, as launchers take it."""
        return (torch.tensor([self.seed]) if self.seed_tensor else self.seed, self.offset, self.row_offset)

    @property
    def logsumexp(self) -> Tensor:
        return base.logsumexp(self.seen.double()).to(self.compute)


class Tally:
    def __init__(self) -> None:
        self.cases, self.launches, self.worst, self.ties, self.draws = 0, 0, 0.0, 0, 0
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []


# Comparisons ----------------------------------------------------------------------------------------------------------


def as_good_as(found: Tensor, twin: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """The error over what tests/test_kernels.py allows: four times the twin's, and a few units."""
    if found.dtype != twin.dtype or found.shape != twin.shape:
        raise AssertionError(f"{found.dtype} {list(found.shape)} for {twin.dtype} {list(twin.shape)}")
    if not torch.equal(found.isnan(), exact.isnan()):
        where = (found.isnan() != exact.isnan()).nonzero()[0].tolist()
        raise AssertionError(f"NaN at {where}: found {found[tuple(where)]}, expected {exact[tuple(where)]}")
    infinite = exact.to(found.dtype).isinf()
    if not torch.equal(found[infinite], exact.to(found.dtype)[infinite]):
        raise AssertionError("infinities differ")
    finite = ~infinite & ~exact.isnan()
    if not finite.any():
        return 0.0
    error, twin_error = (found.double() - exact)[finite].abs(), (twin.double() - exact)[finite].abs()
    few = 16 if dtype == F64 else 8
    unit = max(torch.finfo(found.dtype).eps * exact[finite].abs().max().item(),
               few * torch.finfo(tensors.compute_dtype(dtype)).eps)  # fmt: skip
    return (error.max() / (4 * twin_error.max() + unit)).item()


def logsumexp_as_good_as(case: Case, found: Tensor) -> float:
    """The same of a logsumexp, whose maximum is one of the logits."""
    valid = ~found[1].isnan()
    if not torch.equal(found[0, valid], case.seen.amax(-1)[valid].to(found.dtype)):
        raise AssertionError("a logsumexp's maximum is not that of the row")
    twin, exact = base.logsumexp(case.seen), base.logsumexp(case.seen.double())
    return as_good_as(found[1], twin[1], exact[1], case.dtype)


def race_values(case: Case, row: int, draw: int, columns: list[int]) -> list[tuple[float, float]]:
    """(E / w of the group, E / w of the element), in float64, of columns of a row."""
    x = case.seen[row].double()
    x = x - x.max()
    seed, out = case.seed % 2**64, []
    for column in columns:
        group = column // GROUP
        high, low = group_words(seed, case.offset, row + case.row_offset, draw, group)
        total = x[group * GROUP : (group + 1) * GROUP].exp().sum().item()
        e = exponential(*element_words(seed, case.offset, case.columns, row + case.row_offset, draw, column))
        out.append((float(exponential(high, low)) / total, float(e) / x[column].exp().item()))
    return out


def same_draws(tally: Tally, case: Case, found: Tensor, expected: Tensor) -> None:
    tally.draws += found.numel()
    for draw, row in (found != expected).nonzero().tolist():
        a, b = found[draw, row].item(), expected[draw, row].item()
        if min(a, b) < 0:
            raise AssertionError(f"draw {draw}, row {row}: found {a}, expected {b}")
        one, other = race_values(case, row, draw, [a, b])
        at = a // GROUP == b // GROUP
        gap = abs(np.log(one[at] / other[at]))
        if not gap < 5e-6:
            raise AssertionError(f"draw {draw}, row {row}: found {a}, expected {b}, {gap} apart")
        tally.ties += 1


# Operations: each runs a case, raises AssertionError, and gives error over bound --------------------------------------


def run_sample(tally: Tally, case: Case) -> float:
    hot, index, logsumexp = sample.sample(case.logits, case.draws, case.hot, *case.noise, case.allowed)
    noise = philox_noise(case.seed % 2**64, case.offset, case.columns, case.draws, case.row_offset)
    twin = base.sample_index(case.seen, case.draws, noise, GROUP)
    same_draws(tally, case, index, twin)
    if case.hot is not None:
        expected = base.one_hot(index, case.columns, case.hot)
        if hot.dtype != case.hot or not torch.equal(hot, expected):
            raise AssertionError("one-hot is not that of the index")
    return logsumexp_as_good_as(case, logsumexp)


def run_entropy(tally: Tally, case: Case) -> float:
    found, logsumexp = entropy.entropy(case.logits, case.allowed)
    alone = entropy.logsumexp(case.logits, case.allowed)
    # tests/test_distribution.py asks it of interpreted kernels.
    if (found < 0).any():
        raise AssertionError(
            f"{int((found < 0).sum())} of {len(found)} entropies are negative, least {found.nan_to_num(0).min():.2e}"
        )
    return max(
        as_good_as(found, EAGER.entropy(Rows(case.seen))[0], EAGER.entropy(Rows(case.seen.double()))[0], case.dtype),
        logsumexp_as_good_as(case, logsumexp),
        logsumexp_as_good_as(case, alone),
    )


def run_entropy_grad(tally: Tally, case: Case) -> float:
    g = case.row_grad[0]
    exact_entropy = EAGER.entropy(Rows(case.seen.double()))[0].to(case.compute)
    found = entropy.entropy_grad(case.logits, case.logsumexp, exact_entropy, g, case.allowed)
    twin, exact = EAGER.entropy_grad(Rows(case.seen), g), EAGER.entropy_grad(Rows(case.seen.double()), g.double())
    return as_good_as(found, *case.zero_where_off(twin, exact), case.dtype)


def run_log_prob_and_entropy(tally: Tally, case: Case) -> float:
    log_prob, entropy, logsumexp = joint.log_prob_and_entropy(case.logits, case.index, case.allowed)
    seen, exact = case.seen, case.seen.double()
    return max(
        as_good_as(log_prob, *(EAGER.log_prob_index(Rows(x), case.index)[0] for x in (seen, exact)), case.dtype),
        as_good_as(entropy, *(EAGER.entropy(Rows(x))[0] for x in (seen, exact)), case.dtype),
        logsumexp_as_good_as(case, logsumexp),
    )


def run_log_prob_and_entropy_grad(tally: Tally, case: Case) -> float:
    worst = 0.0
    exact_entropy = EAGER.entropy(Rows(case.seen.double()))[0].to(case.compute)
    for grad in (None, case.grad):
        # A tensor of its own: memory that two arguments share is watched as that of one.
        given = case.index, case.row_grad, case.row_grad[0].clone()
        found = joint.log_prob_and_entropy_grad(case.logits, case.logsumexp, exact_entropy, *given, case.allowed, grad)
        twin = EAGER.log_prob_and_entropy_grad(Rows(case.seen), *given, grad=grad)
        given = case.index, case.row_grad.double(), case.row_grad[0].double()
        grad = None if grad is None else grad.double()
        exact = EAGER.log_prob_and_entropy_grad(Rows(case.seen.double()), *given, grad=grad)
        worst = max(worst, as_good_as(found, *case.zero_where_off(twin, exact), case.dtype))
    return worst


def run_softmax_grad(tally: Tally, case: Case) -> float:
    found = softmax_grad.softmax_grad(case.logits, case.logsumexp, case.grad, case.allowed)
    exact = EAGER.softmax_grad(Rows(case.seen.double()), case.grad.double())
    twin = EAGER.softmax_grad(Rows(case.seen), case.grad)
    return as_good_as(found, *case.zero_where_off(twin, exact), case.dtype)


def run_reinmax_grad(tally: Tally, case: Case) -> float:
    # Of one draw 1, which has a variant of the kernel.
    return run_straight_through(case, "reinmax_grad", 1.0 if case.draws == 1 else case.temperature)


def run_gapped_grad(tally: Tally, case: Case) -> float:
    return run_straight_through(case, "gapped_grad", case.temperature)


def run_straight_through(case: Case, name: str, t: Tensor | float) -> float:
    grad = torch.randn(case.draws, case.rows, case.columns, generator=case.random).to(case.dtype)
    found = getattr(straight_through, name)(case.logits, case.logsumexp, case.index, grad, t, case.allowed)
    twin = getattr(EAGER, name)(Rows(case.seen), case.index, grad, t)
    exact_t = t.double() if isinstance(t, Tensor) else t
    exact = getattr(EAGER, name)(Rows(case.seen.double()), case.index, grad.double(), exact_t)
    twin, exact = case.zero_where_off(twin, exact)
    if name == "gapped_grad":
        # What is rounded is of the size of `grad`, before it is divided by t, in the twin too.
        found, twin, exact = (dx * case.temperature.unsqueeze(-1).to(dx.dtype) for dx in (found, twin, exact))
    return as_good_as(found, twin, exact, case.dtype)


def run_soft_grad(tally: Tally, case: Case) -> float:
    shape = (case.draws, case.rows, case.columns)
    y = (4 * torch.randn(shape, generator=case.random)).softmax(-1).to(case.dtype)
    # Also where it is 0, and in a row that is no distribution.
    y[..., 0] = 0
    y[:, 1:2] = torch.nan
    grad = torch.randn(shape, generator=case.random).to(case.dtype)
    found = soft_grad.soft_grad(y, grad, case.temperature, True)
    twin = EAGER.soft_grad(y, grad, case.temperature, True)
    exact = EAGER.soft_grad(y.double(), grad.double(), case.temperature.double(), True)
    # lg2.approx is off by 2^-22 where its result is near 0: of each product, where y is near 1.
    unit = 4 * y.double().nan_to_num().sum((0, 2)) * grad.double().abs().amax((0, 2)) / case.temperature.double()
    dt = (found[1].double() - exact[1]).abs() / (4 * (twin[1].double() - exact[1]).abs() + 2.0**-20 * unit)
    if not torch.equal(found[1].isnan(), exact[1].isnan()):
        raise AssertionError("NaN of dt")
    return max(as_good_as(found[0], twin[0], exact[0], case.dtype), dt.nan_to_num().max().item())


def run_log_prob(tally: Tally, case: Case) -> float:
    value = base.one_hot(case.index, case.columns, case.hot or case.dtype)
    found, index, logsumexp = log_prob.log_prob(case.logits, None, value, case.allowed)
    known, known_index, _ = log_prob.log_prob(case.logits, case.logsumexp, value, case.allowed)
    hint = case.index.clone()
    hint[:, ::2] = -1
    hinted, hinted_index, _ = log_prob.log_prob(case.logits, None, value, case.allowed, hint)
    if not all(torch.equal(found, case.index) for found in (index, known_index, hinted_index)):
        raise AssertionError("index")
    exact = EAGER.log_prob_index(Rows(case.seen.double()), case.index)[0]
    twin = EAGER.log_prob_index(Rows(case.seen), case.index)[0]
    return max(
        as_good_as(found, twin, exact, case.dtype),
        as_good_as(known, twin, exact, case.dtype),
        as_good_as(hinted, twin, exact, case.dtype),
        logsumexp_as_good_as(case, logsumexp),
    )


def run_log_prob_index(tally: Tally, case: Case) -> float:
    index = case.index.clone()
    index[0, 0] = (-1, case.columns, 2**40)[case.columns % 3]
    found = log_prob.log_prob_index(case.logits, case.logsumexp, index, case.allowed)
    exact = EAGER.log_prob_index(Rows(case.seen.double()), index)[0]
    return as_good_as(found, EAGER.log_prob_index(Rows(case.seen), index)[0], exact, case.dtype)


def run_log_prob_grad(tally: Tally, case: Case) -> float:
    found = log_prob.log_prob_grad(case.logits, case.logsumexp, case.index, case.row_grad, case.allowed)
    twin = EAGER.log_prob_grad(Rows(case.seen), case.index, case.row_grad)
    exact = EAGER.log_prob_grad(Rows(case.seen.double()), case.index, case.row_grad.double())
    return as_good_as(found, *case.zero_where_off(twin, exact), case.dtype)


def relaxed_noise(case: Case, stage: int, samples: int = 1) -> np.ndarray:
    draw = np.arange(case.draws * samples)[:, None, None]
    row = case.row_offset + np.arange(case.rows)[None, :, None]
    seed = case.seed % 2**64
    return relaxed_exponential(
        relaxed_words(seed, case.offset, case.columns, row, draw, np.arange(case.columns), stage=stage)
    )


def run_relaxed(tally: Tally, case: Case) -> float:
    if case.allowed is not None:
        raise NotImplementedError
    found = relaxed.relaxed(case.logits, case.temperature, case.draws, *case.noise)
    gumbel = -torch.from_numpy(relaxed_noise(case, 2)).log()
    x = case.seen.double()
    top = x.amax(-1, keepdim=True)
    exact = (((x - top) + gumbel) / case.temperature.double()[:, None]).softmax(-1)
    exact = torch.where((top.isnan() | top.isinf()).expand_as(exact), torch.nan, exact)
    if found.dtype != case.dtype or not torch.equal(found.isnan(), exact.isnan()):
        raise AssertionError("NaN or dtype")
    good = ~exact.isnan()
    if not good.any():
        return 0.0
    # The bound of tests/test_kernels.py.
    bound = 1e-6 + exact.abs() * max(1e-4, 4 * torch.finfo(case.dtype).eps)
    return ((found.double() - exact).abs() / bound)[good].max().item()


def run_relaxed_grad(tally: Tally, case: Case) -> float:
    index = case.index
    grad = torch.randn(case.draws, case.rows, case.columns, generator=case.random).to(case.dtype)
    samples = 1 + case.columns % 2
    found, dt = relaxed.relaxed_grad(
        case.logits, case.logsumexp, index, grad, case.temperature, *case.noise, case.allowed, True, samples
    )
    draw, row = np.arange(case.draws * samples)[:, None], case.row_offset + np.arange(case.rows)[None, :]
    high, low, _, _ = words(case.seed % 2**64, case.offset, 3, 2**30 - 1, row, draw)
    noise = torch.from_numpy(relaxed_noise(case, 3, samples)), torch.from_numpy(exponential(high, low))
    args = case.seen.double(), index, grad.double(), case.temperature.double(), *noise
    exact, exact_dt = EAGER.relaxed_grad_with(*args, samples)
    (exact,) = case.zero_where_off(exact)
    if case.allowed is not None:
        # A row with nothing to draw has no part in the temperature's gradient either.
        exact_dt = exact_dt.masked_fill((case.seen == -torch.inf).all(-1), 0)
    if dt.dtype != case.compute or not torch.equal(dt.isnan(), exact_dt.isnan()):
        raise AssertionError("NaN or dtype of dt")
    if found.dtype != case.dtype or not torch.equal(found.isnan(), exact.isnan()):
        raise AssertionError("NaN or dtype")
    good = ~exact.isnan()
    if not good.any():
        return 0.0
    # That of tests/test_kernels.py, by rows: 3e-5 of the weights, at temperature 0.1 more.
    t = case.temperature.double()[:, None]
    size = exact.nan_to_num().abs().amax(-1, keepdim=True) + 0.03 * grad.double().abs().amax((0, -1))[:, None] / t
    bound = 3e-5 / t.clamp(max=1) * size + 4 * torch.finfo(case.dtype).eps * exact.abs()
    part_dt = 1e-3 * (exact_dt.abs() + grad.double().abs().amax((0, -1)) / t[:, 0])
    worst_dt = ((dt.double() - exact_dt).abs() / part_dt).nan_to_num().max().item()
    return max(((found.double() - exact).abs() / bound)[good].max().item(), worst_dt)


OPERATIONS = {
    "sample": run_sample, "relaxed": run_relaxed, "relaxed_grad": run_relaxed_grad, "log_prob": run_log_prob,
    "log_prob_index": run_log_prob_index, "log_prob_grad": run_log_prob_grad, "entropy": run_entropy,
    "entropy_grad": run_entropy_grad, "softmax_grad": run_softmax_grad, "soft_grad": run_soft_grad,
    "log_prob_and_entropy": run_log_prob_and_entropy, "log_prob_and_entropy_grad": run_log_prob_and_entropy_grad,
    "reinmax_grad": run_reinmax_grad, "gapped_grad": run_gapped_grad,
}  # fmt: skip
NOISY = ("sample", "relaxed", "relaxed_grad")

# Ways to launch that need many rows, or many columns, on small ones.
WALKED = {"ONE_TILE": GROUP, "FILL": 1, "MULTIPROCESSORS": 2}
SPLIT = {"ONE_TILE": GROUP, "FILL": 10**6}
HOTS = (torch.int64, torch.bool, BF16, F32, None, torch.uint8, F64, F16)


def cases(operation: str, quick: bool) -> list[Case]:
    out: list[Case] = []
    number = itertools.count(len(operation))
    dtypes, hots = itertools.cycle((F32, F16, F64)), itertools.cycle(HOTS)

    def add(rows: int, columns: int, dtype: torch.dtype, **more) -> None:
        at = next(number)
        more.setdefault("draws", 1 + 2 * (at % 2))
        if dtype == F64 and columns > 3000:
            more["draws"] = 1
        out.append(Case(rows, columns, dtype, hot=next(hots), seed_tensor=at % 3 == 0, number=at, **more))

    for columns in COLUMNS:
        rows = 64 if columns <= 1025 else 3 if columns < 10**5 else 1
        if not quick or columns in (1, 18, 1024, 1025, 5000, 33000):
            add(rows, columns, BF16)
        if not quick or columns in (6, 1000, 20000):
            add(min(rows, 3), columns, next(dtypes))
    # Many rows a program, and programs that take several draws.
    add(1100, 6, BF16, draws=1)
    add(70, 18, F32, draws=40 if operation in NOISY else 3)
    for tuning in (WALKED, SPLIT):
        for columns, dtype in ((9216, BF16), (5001, F32)) if quick else ((9216, BF16), (5001, F32), (9216, F64)):
            add(3 if dtype != F64 else 2, columns, dtype, tuning=tuning, draws=1)
    for kind, (rows, columns, dtype) in itertools.product(
        ("special", "huge"), ((6, 6, F32), (6, 1024, BF16), (6, 5000, F32), (6, 9216, F16))
    ):
        if not quick or columns in (6, 5000):
            add(rows, columns, dtype, kind=kind)
    for tuning in (WALKED, SPLIT):
        add(6, 5000, F32, kind="special", tuning=tuning)
    add(64, 6, F32, kind="peaked")
    add(6, 5000, BF16, kind="peaked")
    for layout in ("wide", "odd", "expanded", "transposed"):
        for columns, dtype in ((32, BF16), (1000, F32), (4096, BF16), (5000, F16)):
            if not quick or (columns, layout) in ((32, "odd"), (4096, "wide"), (1000, "expanded")):
                add(5, columns, dtype, layout=layout)
    if operation not in ("relaxed", "soft_grad"):
        for mask, (rows, columns, dtype) in itertools.product(
            ("full", "shared"), ((70, 6, BF16), (5, 1024, F32), (4, 1025, F16), (3, 20000, BF16))
        ):
            if not quick or (columns, mask) in ((6, "full"), (1025, "shared")):
                add(rows, columns, dtype, mask=mask)
        add(70, 6, BF16, mask="pairs")
        add(4, 5000, F32, mask="pairs")
        add(3, 9216, BF16, mask="full", tuning=WALKED)
        add(3, 9216, F32, mask="full", tuning=SPLIT)
        add(2, 100, F64, mask="full")
    return out


def run(operation: str, emulator: driver.Emulator, quick: bool) -> Tally:
    tally = Tally()
    start = time.perf_counter()
    for case in cases(operation, quick):
        before = {name: getattr(launch, name) for name in case.tuning}
        for name, value in case.tuning.items():
            setattr(launch, name, value)
        emulator.reports.clear()
        emulator.seed += 1
        try:
            ratio = OPERATIONS[operation](tally, case)
            tally.worst = max(tally.worst, ratio)
            if not ratio <= 1:
                tally.wrong.append(f"{case}: {ratio:.2f} times the bound")
        except (AssertionError, machine.MachineError) as error:
            tally.wrong.append(f"{case}: {error}")
        finally:
            for name, value in before.items():
                setattr(launch, name, value)
        tally.cases += 1
        tally.launches += len(emulator.reports)
        for report in emulator.reports:
            for kind, texts in report.faults.items():
                tally.faults[kind] += 1
                if not kind.startswith(HARMLESS) and not any(kind == w.split(":")[0] for w in tally.wrong):
                    tally.wrong += [f"{kind}: {case}: {text}" for text in texts[:2]]
    took = time.perf_counter() - start

    def count(*kinds: str) -> int:
        return sum(n for kind, n in tally.faults.items() if kind.startswith(kinds))

    draws = f"  draws {tally.draws}, near ties {tally.ties}" if tally.draws else ""
    print(
        f"{operation:15} {tally.cases:3} cases, {tally.launches:4} launches  worst error/bound {tally.worst:5.2f}  "
        f"races {count('race')}  same writes {count('same')}  out of bounds {count('out', 'misaligned')}  "
        f"uninitialised {count('uninit')}  other {count('barrier', 'conv', 'grid')}{draws}  {took:.0f} s"
        f"{'' if not tally.wrong else '  WRONG'}",
        flush=True,
    )
    for line in tally.wrong[:12]:
        print(f"    {line}")
    return tally


def large(emulator: driver.Emulator) -> int:
    """The last rows of batches of more than 2^31 elements, by the programs that have them, against the same rows by
    themselves. The rest of the memory is never touched, and so takes none."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    rows, columns, last = 2**31 // 131072 + 7, 131072, 2
    x, grad = (torch.empty(rows, columns, dtype=BF16) for _ in range(2))
    x[-last:], grad[-last:] = torch.randn(2, last, columns)
    row_grad, t = torch.ones(1, rows), torch.ones(rows)

    def some(grid: tuple[int, int, int]) -> np.ndarray:
        programs = np.arange(grid[0] * grid[1])
        return programs[programs % grid[0] >= grid[0] - grid[0] // rows * last]

    def each(x: Tensor, grad: Tensor, row_offset: int, emulate) -> dict[str, Tensor]:
        n = len(x)
        emulator.only = emulate
        hot, index, logsumexp = sample.sample(x, 1, torch.bool, 7, 4, row_offset)
        found = {"sample": index.t(), "one-hot": hot[0], "logsumexp": logsumexp.t()}
        found["log_prob"], found["log_prob index"], _ = (
            o.t() if o.dim() > 1 else o for o in log_prob.log_prob(x, None, hot)
        )
        found["entropy"], _ = entropy.entropy(x)
        found["entropy_grad"] = entropy.entropy_grad(x, logsumexp, found["entropy"], row_grad[0, :n])
        found["log_prob_grad"] = log_prob.log_prob_grad(x, logsumexp, index, row_grad[:, :n])
        found["relaxed"] = relaxed.relaxed(x, t[:n], 1, 7, 4, row_offset)[0]
        found["relaxed_grad"], _ = relaxed.relaxed_grad(x, logsumexp, index, grad[None], t[:n], 7, 4, row_offset)
        return found

    emulator.reports.clear()
    found = each(x, grad, 0, some)
    expected = each(x[-last:].clone(), grad[-last:].clone(), rows - last, None)

    def is_good(found: Tensor, expected: Tensor, name: str) -> bool:
        # The errors of approximate instructions are others in another place; another element is far off.
        exact = found.dtype in (torch.bool, torch.int64)
        close = torch.allclose(found.double(), expected.double(), 0 if exact else 1e-2, 0 if exact else 1e-6)
        print(f"{'ok   ' if close else 'WRONG'} {name}")
        return close

    good = True
    for name, value in found.items():
        good &= is_good(value[-last:], expected[name], f"{name} of {rows}x{columns}")
    # A row stride of more than 2^30 elements.
    buffer = torch.empty(2 * (2**30 + 64) + 5000, dtype=BF16)
    wide = buffer.as_strided((3, 5000), (2**30 + 64, 1))
    wide.copy_(torch.randn(3, 5000))
    near = wide.clone()
    emulator.only = None
    s = entropy.logsumexp(near)
    for name, run_one in {
        "sample": lambda x: sample.sample(x, 1, torch.bool, 1, 4)[1], "entropy": lambda x: entropy.entropy(x)[0],
        "softmax_grad": lambda x: softmax_grad.softmax_grad(x, s, x),
        "relaxed": lambda x: relaxed.relaxed(x, t[:3], 1, 1, 4),
    }.items():  # fmt: skip
        good &= is_good(run_one(wide), run_one(near), f"{name}, row stride 2^30 + 64")
    for report in emulator.reports:
        for kind, texts in report.faults.items():
            if not kind.startswith(HARMLESS):
                good = False
                print(f"WRONG {kind}: {texts[0]}")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arch", default="sm_90", choices=("sm_80", "sm_90", "sm_100"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--suite", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    # Fresh memory is NaN, and the greatest integer: what is read before it is written, or never written, shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    emulator = driver.activate(args.arch)
    emulator.seed, emulator.jitter = 1000 * args.seed, args.seed
    if args.self_test:
        return self_test.main(emulator)
    if args.suite is not None:
        return suite.main(emulator, args.suite)
    if args.large:
        return large(emulator)
    start = time.perf_counter()
    tallies = [run(operation, emulator, args.quick) for operation in args.only]
    wrong = sum(bool(tally.wrong) for tally in tallies)
    print(
        f"{args.arch}, triton {driver.triton.__version__}: {sum(t.cases for t in tallies)} cases, "
        f"{sum(t.launches for t in tallies)} launches, {wrong} operations wrong, {time.perf_counter() - start:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
