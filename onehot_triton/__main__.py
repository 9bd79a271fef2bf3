"""`python -m onehot_triton`: the library at work on this machine, checked against torch.distributions in float64.

Exit status 1 if any check is off.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributions as D

from . import OneHotCategorical, ReparamGradientStrategy, __version__
from .compute import uses_kernels

ROWS, COLUMNS = 64, 131_072
# So many draws of each of ROWS equal rows, in so many calls: few enough in each that a draw takes two stages.
DRAWS, DRAW_CALLS = 2000, 10
# Each statistical check fails a right sampler once in a million runs or less.
SIGNIFICANCE = 1e-6
# RelaxedOneHot gradients: of few columns, which are drawn in one stage, and of many, drawn in two; so many equal rows
# of each, so many times.
RELAXED_ROWS, RELAXED_STEPS = {8: 2**14, 1024: 2**11}, 10
RELAXED_TEMPERATURE, RELAXED_CELLS = 0.5, 8


def progress(label: str, steps: int) -> Iterator[int]:
    """Counts to `steps`, with a bar on the terminal while it does."""
    bar = sys.stderr.isatty()
    for step in range(steps):
        yield step
        if bar:
            done = 30 * (step + 1) // steps
            print(f"\r  {label:28} [{'#' * done}{'.' * (30 - done)}]", end="", file=sys.stderr, flush=True)
    if bar:
        print("\r" + " " * 64 + "\r", end="", file=sys.stderr, flush=True)


def environment(device: torch.device) -> None:
    found = importlib.util.find_spec("triton")
    triton = importlib.metadata.version("triton") if found else "not installed"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    backend = "compiled Triton kernels" if uses_kernels(device) else "eager torch"
    print(f"onehot_triton {__version__} | torch {torch.__version__} | triton {triton}")
    print(f"device: {name} | served by: {backend}\n")


def example() -> None:
    """The example of the README, whose numbers are those of a CPU."""
    torch.manual_seed(0)
    logits = torch.randn(4)
    dist = OneHotCategorical(logits=logits)
    print(">>> OneHotCategorical(logits=logits).rsample((3,))")
    print(dist.rsample((3,)), "\n")


def zipf_logits(rows: int, columns: int, device: torch.device) -> Tensor:
    """Rows shaped as a language model's next-token distribution: rank r has a weight near 1/r, ranks in any order."""
    ranks = torch.arange(1, columns + 1, device=device, dtype=torch.float32)
    logits = -ranks.log() + 0.5 * torch.randn(rows, columns, device=device)
    return logits[:, torch.randperm(columns, device=device)].contiguous()


def draw_scores(row: Tensor) -> tuple[float, float]:
    """Scores of `DRAWS` draws of each of `ROWS` rows equal to `row`, all counted together.

    Returns:
        The p-value of Pearson's chi-square, in cells of at least ten expected draws: small too where rows share noise,
        as counts then vary more than those of independent draws; and the z-score of the mean log-probability of what
        was drawn, which is minus the entropy: large where the draws follow p^a for an `a` near 1.
    """
    dist = OneHotCategorical(row.expand(ROWS, -1))
    counts = torch.zeros(len(row), dtype=torch.float64, device=row.device)
    for _ in progress(f"{ROWS * DRAWS:,} draws", DRAW_CALLS):
        counts += dist.sample_index((DRAWS // DRAW_CALLS,)).flatten().bincount(minlength=len(row))
    draws = ROWS * DRAWS
    log_probs = torch.log_softmax(row.double(), -1)
    mean = (log_probs.exp() * log_probs).sum()
    variance = (log_probs.exp() * (log_probs - mean) ** 2).sum()
    z = ((counts @ log_probs / draws - mean) / (variance / draws).sqrt()).abs().item()
    probs, order = log_probs.exp().sort(descending=True)
    expected = draws * probs
    # Likely categories are a cell each; the tail is cut wherever ten more draws are expected.
    cell = torch.where(expected >= 10, torch.arange(len(probs), device=row.device), -1)
    likely = int((expected >= 10).sum())
    tail = (expected[likely:].cumsum(0) / 10).floor().long()
    # The last cell of the tail is not full: it joins the one before.
    cell[likely:] = likely + tail.clamp(max=max(0, int(tail.max()) - 1) if len(tail) else 0)
    cells = int(cell.max()) + 1
    observed = torch.zeros(cells, dtype=torch.float64, device=row.device).index_add_(0, cell, counts[order])
    expected = torch.zeros_like(observed).index_add_(0, cell, expected)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    p = torch.special.gammaincc(torch.tensor((cells - 1) / 2, dtype=torch.float64), chi_square.cpu() / 2).item()
    return p, z


def density_errors(logits: Tensor) -> dict[str, float]:
    """Largest errors of log_prob and entropy, in nats, against torch.distributions in float64."""
    ours, oracle = OneHotCategorical(logits), D.OneHotCategorical(logits=logits.double())
    value = ours.sample()
    return {
        "log_prob": (ours.log_prob(value) - oracle.log_prob(value.double())).abs().max().item(),
        "entropy": (ours.entropy() - oracle.entropy()).abs().max().item(),
    }


def pass_through_error(logits: Tensor) -> float:
    """Largest error of the PassThrough gradient, over the largest entry of the gradient itself."""
    grad = torch.randn_like(logits)
    x = logits.clone().requires_grad_()
    OneHotCategorical(x, grad_method=ReparamGradientStrategy.PassThrough).rsample().backward(grad)
    oracle = logits.double().requires_grad_()
    D.OneHotCategoricalStraightThrough(logits=oracle).rsample().backward(grad.double())
    assert x.grad is not None
    assert oracle.grad is not None
    return ((x.grad - oracle.grad).abs().max() / oracle.grad.abs().max()).item()


def relaxed_z_score(columns: int, device: torch.device) -> float:
    """The largest z-score between RelaxedOneHot gradients of equal rows, ours and those that the relaxed sample of
    torch.distributions has, by the mean of

        sum over the columns of cell a of the gradient, where the draw fell in cell b, else 0

    for each pair of cells: a gradient whose noise is not that of its draw is off, too.
    """
    rows = RELAXED_ROWS[columns]
    logits = zipf_logits(1, columns, device).expand(rows, columns)
    # Neighbours, which the second stage of a draw chooses between, are of different cells.
    cell = torch.arange(columns, device=device) % RELAXED_CELLS
    of_cell = torch.nn.functional.one_hot(cell, RELAXED_CELLS).double()
    # The same for all of a cell: else the gradients of its many columns cancel, and little is left to compare.
    grad = torch.randn(RELAXED_CELLS, device=device)[cell].expand(rows, columns)

    def ours() -> tuple[Tensor, Tensor]:
        x = logits.clone().requires_grad_()
        method = ReparamGradientStrategy.RelaxedOneHot
        draw = OneHotCategorical(x, grad_method=method, temperature=RELAXED_TEMPERATURE).rsample()
        return draw, torch.autograd.grad(draw, x, grad)[0]

    def theirs() -> tuple[Tensor, Tensor]:
        x = logits.double().requires_grad_()
        soft = D.RelaxedOneHotCategorical(torch.tensor(RELAXED_TEMPERATURE, device=device), logits=x).rsample()
        draw = torch.nn.functional.one_hot(soft.argmax(-1), columns)
        return draw, torch.autograd.grad(soft, x, grad.double())[0]

    # Of each side: the sum and the sum of squares over all rows, for each pair of cells.
    sums = torch.zeros(2, 2, RELAXED_CELLS, RELAXED_CELLS, dtype=torch.float64, device=device)
    for _ in progress("RelaxedOneHot gradients", RELAXED_STEPS):
        for side, function in enumerate((ours, theirs)):
            draw, gradient = (tensor.double() @ of_cell for tensor in function())
            sums[side, 0] += gradient.T @ draw
            sums[side, 1] += gradient.square().T @ draw
    mean, square = (sums / (RELAXED_STEPS * rows)).unbind(1)
    error = ((square - mean**2).sum(0) / (RELAXED_STEPS * rows)).sqrt()
    return ((mean[0] - mean[1]) / error).abs().max().item()


class Check(NamedTuple):
    """One line of the self-check: it is off unless `good`."""

    name: str
    value: float
    good: bool
    bound: str


def checks(device: torch.device) -> list[Check]:
    """What is computed on `device`, against torch.distributions in float64."""
    logits = zipf_logits(ROWS, COLUMNS, device)
    errors = density_errors(logits)
    p_value, z = draw_scores(logits[0])
    error = pass_through_error(logits)

    def at_most(name: str, value: float, bound: float) -> Check:
        # NaN is not below it.
        return Check(name, value, value < bound, f"< {bound:g}")

    # A normal variate passes 5.5 four times in 1e8; one of 64, 6.5 once in 2e8.
    return [
        Check("draws, chi-square p-value", p_value, p_value > SIGNIFICANCE, f"> {SIGNIFICANCE:g}"),
        at_most("draws, z-score of the mean log_prob", z, 5.5),
        at_most("log_prob, largest error in nats", errors["log_prob"], 2e-5),
        at_most("entropy, largest error in nats", errors["entropy"], 2e-5),
        at_most("PassThrough gradient, relative error", error, 1e-5),
        *(
            at_most(f"RelaxedOneHot gradient, {n} columns, z-score", relaxed_z_score(n, device), 6.5)
            for n in RELAXED_ROWS
        ),
    ]


def self_check(device: torch.device) -> list[str]:
    """Prints every check, and names those that are off."""
    torch.manual_seed(1)
    print(f"self-check: Zipf logits [{ROWS}, {COLUMNS}] float32, against torch.distributions in float64")
    found = checks(device)
    for check in found:
        print(f"  {'ok ' if check.good else 'OFF'}  {check.name:46} {check.value:10.3g}   ({check.bound})")
    print()
    return [check.name for check in found if not check.good]


def median_ms(function: Callable[[], object], device: torch.device) -> float:
    """The median time of a call, over calls for about a third of a second."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    warm = max(once(), once(), 1e-6)
    return statistics.median(once() for _ in range(max(5, min(1000, int(0.3 / warm))))) * 1e3


def table(device: torch.device) -> None:
    print("sample() from logits, construction included, nothing validated:")
    print(f"  {'rows x columns':>16} {'onehot_triton':>15} {'torch.distributions':>21} {'ratio':>7}")
    for rows, columns in ((1024, 32), (64, 4096), (16, 131_072)):
        x = torch.randn(rows, columns, device=device)
        # Validated, torch's class refuses its own softmax now and then: of 131072 numbers, it may be 1e-6 off 1.
        ours = median_ms(lambda x=x: OneHotCategorical(x, validate_args=False).sample(), device)
        theirs = median_ms(lambda x=x: D.OneHotCategorical(logits=x, validate_args=False).sample(), device)
        print(f"  {f'{rows} x {columns}':>16} {ours:12.3f} ms {theirs:18.3f} ms {theirs / ours:6.1f}x")


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment(device)
    example()
    off = self_check(device)
    table(device)
    if off:
        print(f"\nThe library computes wrongly on this machine: {'; '.join(off)}.", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
