"""Record what every run has in common: environment, memory bandwidth, clocks, and the file of raw times."""

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
    """Return the seconds that each of `times` calls takes."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def cuda_events(call: Callable[[], Any], times: int) -> list[float]:
    """Return the seconds that the GPU takes for each of `times` calls."""
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
    """Return the bytes per second that a copy on the device reads and writes, added up."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    clock = cuda_events if device.type == "cuda" else wall_clock
    return 2 * source.numel() / statistics.median(clock(lambda: target.copy_(source), 20))


def parallel_speedup(threads: int) -> float:
    """Return the speedup of `threads` threads over one on work that splits evenly.

    It is near `threads` on free cores. If other programs use the cores, each parallel region waits for a thread that is
    not running.
    """
    x = torch.randn(2**20)
    times = []
    for count in (1, threads):
        torch.set_num_threads(count)
        times.append(statistics.median(wall_clock(lambda: torch.exp(x), 20)))
    return round(times[0] / times[1], 3)


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return low, median, high


def _holds_an_object(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(part, dict) or _holds_an_object(part) for part in parts)


def dumps(value: Any, indent: str = "") -> str:
    """Return JSON with one line per record. A record is an object that holds no other object."""
    if not _holds_an_object(value):
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {dumps(part, inner)}" for key, part in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + dumps(part, inner) for part in value) + f"\n{indent}]"


def rounded(seconds: Sequence[float]) -> list[float]:
    """Round to five significant digits, which is more than the clock is good for."""
    return [float(f"{one:.5g}") for one in seconds]


def case_record(question: str, case: Any, providers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a case as a result file has it.

    A provider's record holds its times under "seconds", with its memory. If it was not timed, "wrong" or "cannot" gives
    the reason.
    """
    return {"question": question, **case._asdict(), "floor_bytes": case.floor_bytes, "providers": providers}


def result_path(device: str) -> Path:
    """Return results/<device>/<date>.json, with the date of today."""
    return RESULTS / device / f"{datetime.date.today().isoformat()}.json"


def save(device: str, result: dict[str, Any]) -> Path:
    """Write the result of a run, and return the path of its file."""
    path = result_path(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(result) + "\n")
    return path
