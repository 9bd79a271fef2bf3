"""What every run records: its environment, the bandwidth of its memory, and the file that holds the raw times."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "torchrl", "tensordict", "numpy", "flashinfer-python")
COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}


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


def wall_clock(call: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of `times` calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def cuda_events(call: Callable[[], Any], times: int) -> list[float]:
    """Seconds of the GPU for each of `times` calls."""
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(times)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(times)]
    torch.cuda.synchronize()
    for start, end in zip(starts, ends, strict=True):
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    clock = cuda_events if device.type == "cuda" else wall_clock
    return 2 * source.numel() / statistics.median(clock(lambda: target.copy_(source), 20))


def parallel_speedup(threads: int) -> float:
    """How many times as fast `threads` threads are as one, on work that splits: near `threads` where the cores are
    free. On cores that others use, each parallel region waits for a thread that is not running."""
    x = torch.randn(2**20)
    times = []
    for count in (1, threads):
        torch.set_num_threads(count)
        times.append(statistics.median(wall_clock(lambda: torch.exp(x), 20)))
    return round(times[0] / times[1], 3)


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile)."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return low, median, high


def _holds_an_object(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(part, dict) or _holds_an_object(part) for part in parts)


def dumps(value: Any, indent: str = "") -> str:
    """JSON with a line for each record, which is what holds no other object."""
    if not _holds_an_object(value):
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {dumps(part, inner)}" for key, part in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + dumps(part, inner) for part in value) + f"\n{indent}]"


def rounded(seconds: Sequence[float]) -> list[float]:
    """To a tenth of a nanosecond, or as many digits as say anything."""
    return [float(f"{one:.5g}") for one in seconds]


def case_record(question: str, case: Any, providers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A case of `operations.py` in a result file. A provider's record holds its times in seconds and what is known of
    it, or, under "wrong" or "cannot", why there are none."""
    return {"question": question, **case._asdict(), "floor_bytes": case.floor_bytes, "providers": providers}


def result_path(device: str) -> Path:
    """results/<device>/<date>.json"""
    return RESULTS / device / f"{datetime.date.today().isoformat()}.json"


def save(device: str, result: dict[str, Any]) -> Path:
    """Writes it and gives its path."""
    path = result_path(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(result) + "\n")
    return path
