"""What the benchmarks share: the environment they record, the file they write, and a check of what they time."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "torchrl", "tensordict", "numpy")
# A right provider fails its check once in a million runs.
SIGNIFICANCE = 1e-6


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "packages": versions(),
    }


def save(device: str, result: dict[str, Any]) -> Path:
    """Writes results/<device>/<date>.json and gives its path."""
    path = RESULTS / device / f"{datetime.date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile)."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return low, median, high


def frequency_fault(sample: Callable[[Tensor], Tensor], logits: Tensor) -> str | None:
    """Why `sample(logits)` is no draw of one-hot rows from the softmax of equal rows; None where it is.

    Pearson's chi-square over cells of neighbouring columns that expect ten draws at least.
    """
    hot = sample(logits)
    if hot.shape != logits.shape:
        return f"expected the shape {tuple(logits.shape)}, found {tuple(hot.shape)}"
    # F.gumbel_softmax gives h + p - p, which is one-hot but for rounding.
    hot = hot.double()
    if not torch.allclose(hot.sum(-1), torch.ones_like(hot[:, 0])) or not torch.allclose(hot, hot.round(), atol=1e-5):
        return "a row is not one-hot"
    expected = len(logits) * torch.softmax(logits[0].double(), -1)
    cell = (expected.cumsum(0) / 20).long()
    cells = int(cell[-1]) + 1
    counts = torch.zeros(2, cells, dtype=torch.float64, device=logits.device)
    counts[0].index_add_(0, cell, hot.round().sum(0))
    counts[1].index_add_(0, cell, expected)
    counts = counts[:, counts[1] > 0]
    chi_square = ((counts[0] - counts[1]) ** 2 / counts[1]).sum().cpu()
    freedom = torch.tensor(max(1, counts.shape[1] - 1), dtype=torch.float64)
    p = torch.special.gammaincc(freedom / 2, chi_square / 2).item()
    return None if p > SIGNIFICANCE else f"chi-square of the frequencies: p = {p:.1e}"


def density_fault(log_prob: Tensor, entropy: Tensor, draw: Tensor, logits: Tensor) -> str | None:
    """Why these are not the log-probability of `draw` and the entropy; None where they are, to float32 rounding."""
    exact = torch.log_softmax(logits.double(), -1)
    expected = {"log_prob": (exact * draw.double()).sum(-1), "entropy": -(exact.exp() * exact).sum(-1)}
    for name, found in {"log_prob": log_prob, "entropy": entropy}.items():
        error = (found.double() - expected[name]).abs().max().item()
        if not error < 1e-3:
            return f"{name} is off by {error:.1e}"
    return None
