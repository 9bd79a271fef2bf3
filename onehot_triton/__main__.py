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

import torch
from torch import Tensor
from torch import distributions as D

from . import OneHotCategorical, ReparamGradientStrategy, __version__
from .ops import uses_kernels

ROWS, COLUMNS = 64, 131_072
DRAWS = 100_000
# Each statistical check fails a right sampler once in a million runs.
SIGNIFICANCE = 1e-6
# How often torch's and our RelaxedOneHot gradient are drawn to compare their means, and the sums they are compared by.
GRADIENT_DRAWS, GRADIENT_CELLS = 200, 64


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


def goodness_of_fit(logits: Tensor) -> float:
    """The p-value of Pearson's chi-square of `DRAWS` draws of one row, in cells of at least ten expected draws."""
    dist = OneHotCategorical(logits)
    counts = torch.zeros(logits.shape[-1], dtype=torch.float64, device=logits.device)
    steps = 20
    for _ in progress(f"{DRAWS:,} draws", steps):
        counts += dist.sample_index((DRAWS // steps,)).bincount(minlength=logits.shape[-1])
    probs, order = torch.softmax(logits.double(), -1).sort(descending=True)
    expected = DRAWS * probs
    # Likely categories are a cell each; the tail is cut wherever ten more draws are expected.
    cell = torch.where(expected >= 10, torch.arange(len(probs), device=logits.device), -1)
    likely = int((expected >= 10).sum())
    tail = (expected[likely:].cumsum(0) / 10).floor().long()
    # The last cell of the tail is not full: it joins the one before.
    cell[likely:] = likely + tail.clamp(max=max(0, int(tail.max()) - 1) if len(tail) else 0)
    cells = int(cell.max()) + 1
    observed = torch.zeros(cells, dtype=torch.float64, device=logits.device).index_add_(0, cell, counts[order])
    expected = torch.zeros_like(observed).index_add_(0, cell, expected)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((cells - 1) / 2, dtype=torch.float64), chi_square.cpu() / 2).item()


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


def relaxed_z_score(logits: Tensor, temperature: float = 1.0) -> float:
    """The largest z-score between the mean RelaxedOneHot gradients of one row, ours and torch.distributions', each
    summed over `GRADIENT_CELLS` sets of columns."""
    row = logits[0]
    grad = torch.randn_like(row)
    cells = torch.randint(GRADIENT_CELLS, row.shape, device=row.device)

    def ours() -> Tensor:
        x = row.clone().requires_grad_()
        method = ReparamGradientStrategy.RelaxedOneHot
        OneHotCategorical(x, grad_method=method, temperature=temperature).rsample().backward(grad)
        assert x.grad is not None
        return x.grad.double()

    def theirs() -> Tensor:
        x = row.double().requires_grad_()
        D.RelaxedOneHotCategorical(torch.tensor(temperature, device=row.device), logits=x).rsample().backward(
            grad.double()
        )
        assert x.grad is not None
        return x.grad

    sums = torch.zeros(2, GRADIENT_DRAWS, GRADIENT_CELLS, dtype=torch.float64, device=row.device)
    for i in progress("RelaxedOneHot gradients", GRADIENT_DRAWS):
        sums[0, i].index_add_(0, cells, ours())
        sums[1, i].index_add_(0, cells, theirs())
    difference = sums[0].mean(0) - sums[1].mean(0)
    return (difference / (sums.var(1).sum(0) / GRADIENT_DRAWS).sqrt()).abs().max().item()


def self_check(device: torch.device) -> bool:
    torch.manual_seed(1)
    logits = zipf_logits(ROWS, COLUMNS, device)
    print(f"self-check: Zipf logits [{ROWS}, {COLUMNS}] float32, against torch.distributions in float64")
    errors = density_errors(logits)
    p_value = goodness_of_fit(logits[0])
    # The largest of 64 normal variates passes 6.5 about once in 2e8.
    checks = [
        (f"{DRAWS:,} draws, chi-square p-value", p_value, p_value > SIGNIFICANCE, f"> {SIGNIFICANCE:g}"),
        ("log_prob, largest error in nats", errors["log_prob"], errors["log_prob"] < 2e-5, "< 2e-5"),
        ("entropy, largest error in nats", errors["entropy"], errors["entropy"] < 2e-5, "< 2e-5"),
    ]
    error = pass_through_error(logits)
    checks.append(("PassThrough gradient, relative error", error, error < 1e-5, "< 1e-5"))
    z = relaxed_z_score(logits)
    checks.append(("RelaxedOneHot gradient, z-score of mean", z, z < 6.5, "< 6.5"))
    for name, value, good, bound in checks:
        print(f"  {'ok ' if good else 'OFF'}  {name:42} {value:10.3g}   ({bound})")
    print()
    return all(good for _, _, good, _ in checks)


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
    print("sample() from logits, construction included:")
    print(f"  {'rows x columns':>16} {'onehot_triton':>15} {'torch.distributions':>21} {'ratio':>7}")
    for rows, columns in ((1024, 32), (64, 4096), (16, 131_072)):
        x = torch.randn(rows, columns, device=device)
        ours = median_ms(lambda x=x: OneHotCategorical(x).sample(), device)
        theirs = median_ms(lambda x=x: D.OneHotCategorical(logits=x).sample(), device)
        print(f"  {f'{rows} x {columns}':>16} {ours:12.3f} ms {theirs:18.3f} ms {theirs / ours:6.1f}x")


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment(device)
    example()
    good = self_check(device)
    table(device)
    if not good:
        print("\nA check is OFF: the library computes wrongly on this machine.", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
