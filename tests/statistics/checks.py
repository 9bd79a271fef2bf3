"""The statistical checks: each draws from a sampler and returns a p-value, and the smallest fault it is sure to see.

A check rejects where its p-value is below ALPHA. Its `detects` is the smallest departure that it rejects with a
probability of POWER, computed from the number of draws:

- fit: w = sqrt(sum_i p_i (d_i / p_i)^2), the root mean square relative error of the probabilities (noncentral
  chi-square);
- share: the absolute increase of one probability (binomial);
- position: the largest distance between the distribution functions (Dvoretzky-Kiefer-Wolfowitz), or a shift of the mean
  as a fraction of the row;
- independent: an excess of equal neighbours, a correlation, or a factor on the collisions;
- zero: the probability of what must never be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from samplers import EAGER_SHARE, Sampler
from scipy import optimize, stats
from torch import Tensor

ALPHA = 1e-6
POWER = 0.999
_Z = stats.norm.isf(ALPHA / 2) + stats.norm.ppf(POWER)
# Expected draws in a cell of a chi-square test. At 25, the discreteness moves a p-value of 1e-6 by a third of itself.
_CELL = 25


class Outcome(NamedTuple):
    """p: the p-value. detects: see above; unit: what it measures."""

    p: float
    draws: int
    detects: float
    unit: str


class Check(NamedTuple):
    """A check.

    Attributes:
        name: its first word is its kind.
        run: (sampler, draws, progress) -> Outcome; `progress` is called with numbers of draws done.
        columns: of its rows, and
        rows: how many, from which follows what a draw costs.
        budget: elements of noise in the quick suite; the thorough one has THOROUGH times as many.
        least: draws below which it is not worth running.
        floor: draws that every sampler of eager torch makes, whatever they cost.
        most: draws above which it is not worth running in the quick suite.
        thorough: True where the quick budget cannot show anything.
    """

    name: str
    run: Callable[[Sampler, int, Callable[[int], object]], Outcome]
    columns: int
    budget: float
    rows: int = 1
    least: int = 100
    floor: int = 0
    most: float = math.inf
    thorough: bool = False

    def draws(self, sampler: Sampler, thorough: bool) -> int:
        """How many draws `sampler` can afford; 0 where the check does not apply to it."""
        if not sampler.supports(self.name) or (self.thorough and not thorough):
            return 0
        budget = self.budget * sampler.share * (THOROUGH if thorough and not self.thorough else 1)
        cap = MOST_DRAWS[sampler.device] if thorough else self.most
        n = min(budget / self.rows / sampler.cost(self.columns), cap)
        if sampler.share >= EAGER_SHARE:
            n = max(n, self.floor)
        return int(n) if n >= self.least else 0

    def __call__(self, sampler: Sampler, thorough: bool = False, progress: Callable = lambda n: None) -> Outcome:
        torch.manual_seed(SEED)
        return self.run(sampler, self.draws(sampler, thorough), progress)


SEED = 20250817
THOROUGH = 40
MOST_DRAWS = {"cpu": 10**8, "cuda": 10**9}

# Rows ---------------------------------------------------------------------------------------------------------------


def row(shape: str, columns: int) -> Tensor:
    """float32 logits [columns]."""
    normal = torch.randn(columns, generator=torch.Generator().manual_seed(columns))
    if shape == "uniform":
        return torch.zeros(columns)
    if shape == "zipf":
        return -torch.arange(1.0, columns + 1).log()
    if shape == "peaked":
        # One category has nine tenths, where half of the columns are to its left.
        normal[columns // 2] = -torch.inf
        normal[columns // 2] = normal.logsumexp(-1) + math.log(9)
        return normal
    if shape == "heavy":
        # Log-normal weights with a spread of four nats.
        return 4 * normal
    raise ValueError(shape)


def nats_down(nats: float, columns: int) -> Tensor:
    """One category, in the last third of the row, and all others `nats` below it."""
    logits = torch.full((columns,), -float(nats))
    logits[columns * 2 // 3] = 0
    return logits


def first_at(p: float, columns: int) -> Tensor:
    """The first category has probability p, all others the same."""
    logits = torch.zeros(columns)
    logits[0] = math.log(p * (columns - 1) / (1 - p))
    return logits


def counts(sampler: Sampler, logits: Tensor, n: int, progress: Callable) -> np.ndarray:
    """How often each column was drawn."""
    total = torch.zeros(logits.shape[-1], dtype=torch.int64)
    for index in sampler.chunks(logits.unsqueeze(0), n):
        total += torch.bincount(index.flatten(), minlength=logits.shape[-1])
        progress(len(index))
    return total.numpy()


# p-values -----------------------------------------------------------------------------------------------------------


def chi_square(observed: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    """(p-value, w). Cells with an expectation below _CELL are pooled with their neighbours, so that an excess in a
    range of columns stays in sight."""
    n = observed.sum()
    expected = n * probs
    small = expected < _CELL
    mass = np.cumsum(expected[small])
    total = mass[-1] if small.any() else 0.0
    # Twice _CELL each, less the column that straddles a border.
    bins = max(1, int(total / (2 * _CELL))) if total else 0
    bin_of = np.minimum((mass * (bins / total)).astype(np.int64), bins - 1) if bins else np.zeros(0, np.int64)

    def cells(values: np.ndarray) -> np.ndarray:
        pooled = np.bincount(bin_of, weights=values[small], minlength=bins)
        return np.concatenate([values[~small], pooled])

    e, o = cells(expected), cells(observed.astype(np.float64))
    if len(e) > 1 and bins == 1 and e[-1] < _CELL:
        e, o = np.append(e[:-2], e[-2:].sum()), np.append(o[:-2], o[-2:].sum())
    df = len(e) - 1
    if df == 0:
        return 1.0, math.inf
    p = stats.chi2.sf(((o - e) ** 2 / e).sum(), df)
    critical = stats.chi2.isf(ALPHA, df)
    excess = optimize.brentq(lambda x: stats.ncx2.sf(critical, df, x) - POWER, 1e-3, 1e3 + 100 * math.sqrt(df))
    return float(p), math.sqrt(excess / n)


def binomial(k: int, n: int, p: float) -> tuple[float, float]:
    """(exact two-sided p-value, the smallest increase of p that is detected)."""
    law = stats.binom(n, p)
    value = min(1.0, 2 * min(law.cdf(k), law.sf(k - 1)))
    critical = law.isf(ALPHA / 2) + 1
    if critical > n:
        return value, math.inf
    return value, optimize.brentq(lambda q: stats.binom.sf(critical - 1, n, q) - POWER, p, 1.0) - p


def two_sided(z: float) -> float:
    return float(2 * stats.norm.sf(abs(z)))


# Checks -------------------------------------------------------------------------------------------------------------


def fit(shape: str, columns: int, budget: float) -> Check:
    def run(sampler, n, progress):
        logits = row(shape, columns)
        p, w = chi_square(counts(sampler, logits, n, progress), sampler.probs(logits).numpy())
        return Outcome(p, n, w, "relative error")

    return Check(f"fit {shape} {columns}", run, columns, budget, floor=150, most=4e6)


def first(p: float, columns: int, budget: float) -> Check:
    """A category of small probability in first place."""

    def run(sampler, n, progress):
        logits = first_at(p, columns)
        k = int(counts(sampler, logits, n, progress)[0])
        value, detects = binomial(k, n, float(sampler.probs(logits)[0]))
        return Outcome(value, n, detects, "probability")

    return Check(f"share first {columns}", run, columns, budget)


def tail(nats: float, columns: int, budget: float, thorough: bool = False) -> Check:
    """Categories far below the top, at their common rate."""

    def run(sampler, n, progress):
        logits = nats_down(nats, columns)
        top = int(logits.argmax())
        k = n - int(counts(sampler, logits, n, progress)[top])
        probs = sampler.probs(logits)
        # Not 1 - probs[top], which cancels.
        p = float(probs[:top].sum() + probs[top + 1 :].sum())
        value, detects = binomial(k, n, p)
        return Outcome(value, n, detects / p, "factor - 1")

    return Check(f"share {nats} nats down {columns}", run, columns, budget, thorough=thorough)


@lru_cache(maxsize=1)
def _positions(sampler: Sampler, columns: int, n: int) -> np.ndarray:
    chunks = sampler.chunks(torch.zeros(1, columns), n)
    return np.concatenate([index.flatten().numpy() for index in chunks])


def positions(sampler: Sampler, columns: int, n: int, progress: Callable) -> np.ndarray:
    """Which of `columns` equal categories won. Checks of one sampler that follow each other look at the same draws."""
    if n <= 10**6:
        return _positions(sampler, columns, n)
    parts = []
    for index in sampler.chunks(torch.zeros(1, columns), n):
        parts.append(index.flatten().numpy())
        progress(len(index))
    return np.concatenate(parts)


def ties(kind: str, columns: int, budget: float) -> Check:
    """Equal categories: no column is preferred. `kind` names the statistic."""

    def run(sampler, n, progress):
        index = positions(sampler, columns, n, progress)
        if kind == "mean":
            mean, spread = (columns - 1) / 2, math.sqrt((columns**2 - 1) / 12)
            z = (index.mean() - mean) / spread * math.sqrt(n)
            return Outcome(two_sided(z), n, _Z / math.sqrt(12 * n), "shift of the mean")
        if kind == "low columns":
            value, detects = binomial(int((index < columns // 16).sum()), n, 1 / 16)
            return Outcome(value, n, detects, "probability")
        # "KS": over the row; "KS mod 512": within the groups, of 512 columns or a multiple or a divisor of it.
        period = 512 if kind == "KS mod 512" else columns
        # A uniform jitter makes the law continuous, and its test exact.
        x = (index % period + np.random.default_rng(SEED).random(n)) / period
        p = stats.kstest(x, "uniform", method="asymp").pvalue
        reach = math.sqrt(math.log(2 / ALPHA) / 2) + math.sqrt(math.log(1 / (1 - POWER)) / 2)
        return Outcome(float(p), n, reach / math.sqrt(n), "distance")

    return Check(f"position {kind} {columns}", run, columns, budget, least=200)


def neighbours(draw_lag: int, row_lag: int, budget: float) -> Check:
    """Draws of equal categories agree with their neighbour's as often as independent ones: such agreements are
    themselves independent events, so their number is binomial."""
    columns, rows = 32, 64

    def run(sampler, n, progress):
        equal = pairs = 0
        for index in sampler.chunks(torch.zeros(rows, columns), n):
            a, b = index[draw_lag:, row_lag:], index[: len(index) - draw_lag, : rows - row_lag]
            equal, pairs = equal + int((a == b).sum()), pairs + a.numel()
            progress(len(index))
        value, detects = binomial(equal, pairs, 1 / columns)
        return Outcome(value, n, detects, "equal neighbours")

    return Check(f"independent draws {draw_lag} rows {row_lag}", run, columns, budget, rows, least=20)


def serial(budget: float) -> Check:
    """The correlation of a draw with the next one, of the same row and of the next row."""
    columns, rows = 1000, 8

    def run(sampler, n, progress):
        total, pairs = 0.0, 0
        for index in sampler.chunks(torch.zeros(rows, columns), n):
            x = (index.double() - (columns - 1) / 2) / math.sqrt((columns**2 - 1) / 12)
            flat = x.flatten()
            total, pairs = total + float((flat[1:] * flat[:-1]).sum()), pairs + len(flat) - 1
            progress(len(index))
        return Outcome(two_sided(total / math.sqrt(pairs)), n, _Z / math.sqrt(pairs), "correlation")

    return Check("independent serial", run, columns, budget, rows)


def calls(budget: float) -> Check:
    """Calls that follow each other without a new seed."""
    columns, rows = 32, 64

    def run(sampler, n, progress):
        logits = torch.zeros(rows, columns, device=sampler.device)
        each = [sampler.draw(logits, 1).cpu() for _ in range(n)]
        index = torch.cat(each)
        progress(n)
        equal = int((index[1:] == index[:-1]).sum())
        value, detects = binomial(equal, (n - 1) * rows, 1 / columns)
        return Outcome(value, n, detects, "equal neighbours")

    return Check("independent calls", run, columns, budget, rows, least=5, most=2000)


def collisions(columns: int, per_seed: int, budget: float) -> Check:
    """Birthdays: how many pairs among the first draws of seeds that differ by one agree. A Poisson number, since
    triples are rare."""

    def run(sampler, n, progress):
        logits = torch.zeros(1, columns, device=sampler.device)
        some = []
        for seed in range(n // per_seed):
            torch.manual_seed(SEED + seed)
            some.append(sampler.draw(logits, per_seed).cpu().flatten())
            progress(per_seed)
        index = torch.cat(some)
        times = index.unique(return_counts=True)[1].double()
        pairs, expected = int((times * (times - 1) / 2).sum()), len(index) * (len(index) - 1) / 2 / columns
        law = stats.poisson(expected)
        critical = law.isf(ALPHA / 2) + 1
        reach = optimize.brentq(lambda m: stats.poisson.sf(critical - 1, m) - POWER, expected, 1e3 + 9 * expected)
        value = min(1.0, 2 * min(law.cdf(pairs), law.sf(pairs - 1)))
        return Outcome(value, n, reach / expected - 1, "factor - 1")

    # What is not noise, a pass over the row per seed, dominates: about an element of noise for four columns.
    return Check(f"independent seeds {columns}", run, columns, budget, least=per_seed * 100, most=500 * per_seed)


def zero(place: str, columns: int, budget: float) -> Check:
    """Categories of probability 0 are never drawn."""

    def run(sampler, n, progress):
        logits = row("heavy", columns) / 4
        never = torch.zeros(columns, dtype=torch.bool)
        if place == "ends":
            never[0] = never[-1] = True
        elif place == "last group":
            never[columns // 1024 * 1024 :] = True
        elif place == "whole groups":
            never[:1024] = never[2048:3072] = True
        elif place == "all but one":
            never[:] = True
            never[columns // 3] = False
        logits[never] = -torch.inf
        # Masked categories are among them.
        k = int(counts(sampler, logits, n, progress)[(sampler.probs(logits) == 0).numpy()].sum())
        return Outcome(float(k == 0), n, -math.log(1 - POWER) / n, "probability")

    return Check(f"zero {place} {columns}", run, columns, budget, most=2e7)


COLUMNS = (2, 18, 32, 1000, 1025, 50257, 131072)
SHAPES = ("peaked", "zipf", "uniform", "heavy")

CHECKS = (
    *(fit(shape, columns, 2e7) for columns in COLUMNS for shape in SHAPES),
    first(1e-4, 2, 3e7),
    first(1e-4, 18, 5e7),
    first(1e-4, 1025, 6e7),
    tail(10, 16, 6e7),
    tail(10, 131072, 4e7),
    tail(14, 16, 2e8),
    tail(14, 131072, 4e7),
    tail(17, 128, 1e10, thorough=True),
    tail(20, 131072, 4e9, thorough=True),
    ties("KS", 2**18, 5e8),
    ties("KS mod 512", 2**18, 5e8),
    ties("low columns", 2**18, 5e8),
    ties("mean", 2**18, 5e8),
    ties("KS", 2**24, 3e7),
    ties("mean", 2**24, 3e7),
    neighbours(1, 0, 3e7),
    neighbours(0, 1, 3e7),
    neighbours(2, 1, 3e7),
    serial(3e7),
    calls(1e7),
    collisions(2**20, 16, 8e7),
    zero("ends", 5, 4e7),
    zero("ends", 131072, 4e7),
    zero("last group", 1025, 4e7),
    zero("whole groups", 4096, 4e7),
    zero("all but one", 3000, 4e7),
)
BY_NAME = {check.name: check for check in CHECKS}
