"""Compare drawing a token from sharded logits with gathering the logits first: bytes received, and time.

    python benchmarks/bench_sharded.py           # prints a table
    python benchmarks/bench_sharded.py --save    # also writes results/sharded.json

No rank holds a whole row. Ranks are processes with one thread each, over gloo. The providers take turns call by call. A
call begins when all ranks are ready, and its time is that of the slowest rank.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import RESULTS, dumps, environment, quartiles, rounded
from correctness import fault
from providers import OURS, race_index
from torch import Tensor
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from onehot_triton import OneHotCategorical

WORLDS = (2, 4)
SHAPES = ((8, 151936, "bfloat16"), (64, 151936, "bfloat16"), (8, 32768, "float32"), (64, 32768, "float32"))
# Limits per case and provider: seconds, and calls.
SECONDS, MOST_CALLS, WARM_UP = 0.7, 40, 2


PROVIDERS: dict[str, Callable[[DTensor], Tensor]] = {
    OURS: lambda x: OneHotCategorical(x, validate_args=False).sample_index(),
    "full_tensor, then onehot_triton": lambda x: OneHotCategorical(x.full_tensor(), validate_args=False).sample_index(),
    "full_tensor, then an exponential race": lambda x: race_index(x.full_tensor()),
}


class Received(TorchDispatchMode):
    """Count the collectives, and the bytes that this rank receives in them."""

    collectives = bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            # DTensor then calls the operators on its local parts, which come here again.
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        name = func._opname
        if func.namespace == "_c10d_functional" and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            # The formula below is that of an all-gather.
            assert name == "all_gather_into_tensor", name
            self.collectives += 1
            self.bytes += result.nbytes - args[0].nbytes
        return result


def place(x: Tensor, mesh: DeviceMesh) -> DTensor:
    """Return this rank's columns of a tensor that every rank holds, without communication."""
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).redistribute(mesh, [Shard(-1)])


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds that one call takes on the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    call()
    taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


def measured(logits: list[DTensor]) -> dict[str, dict[str, Any]]:
    """Return the bytes and times of every provider, on rotating inputs."""
    records: dict[str, dict[str, Any]] = {}
    for name, draw in PROVIDERS.items():
        with Received() as received:
            draw(logits[0])
        records[name] = {"collectives": received.collectives, "bytes": received.bytes, "seconds": []}
    slowest = max(min(seconds_of(partial(draw, logits[0])) for _ in range(WARM_UP)) for draw in PROVIDERS.values())
    for i in range(max(5, min(MOST_CALLS, int(SECONDS / slowest)))):
        for name, draw in PROVIDERS.items():
            records[name]["seconds"].append(seconds_of(partial(draw, logits[i % len(logits)])))
    return records


def run(rank: int, world: int, folder: str) -> None:
    """Run one rank. The first rank writes the cases to `folder`."""
    store = FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (world,))
    # After a gather, equal seeds make all ranks draw the same.
    torch.manual_seed(1)
    for name, draw in PROVIDERS.items():
        forwards = {"sample_index": lambda x, _, draw=draw: whole(draw(place(x, mesh)))}
        for dtype in dict.fromkeys(dtype for *_, dtype in SHAPES):
            why = fault(forwards, "sample_index", dtype, torch.device("cpu"))
            assert why is None, f"{name}, {dtype}: {why}"
    cases = []
    for rows, columns, dtype in SHAPES:
        local = [torch.randn(rows, columns // world, dtype=getattr(torch, dtype)) for _ in range(2)]
        logits = [DTensor.from_local(one, mesh, [Shard(-1)]) for one in local]
        for record in (records := measured(logits)).values():
            record["seconds"] = rounded(record["seconds"])
        cases.append({"ranks": world, "rows": rows, "columns": columns, "dtype": dtype, "providers": records})
    if rank == 0:
        Path(folder, "cases").write_text(json.dumps(cases))
    dist.destroy_process_group()


def whole(index: Tensor) -> Tensor:
    return index.full_tensor() if isinstance(index, DTensor) else index


def main() -> None:
    parser = argparse.ArgumentParser(description="compare drawing from sharded logits with gathering them first")
    parser.add_argument("--save", action="store_true", help="also write results/sharded.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"environment": environment(), "threads": 1, "cases": []}
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            # A forked rank has the imports already, which take most of the time of a new process.
            start_processes(run, (world, folder), world, start_method="fork")
            result["cases"] += json.loads(Path(folder, "cases").read_text())
    for case in result["cases"]:
        print(f"{case['ranks']} ranks, {case['rows']} x {case['columns']}, {case['dtype']}")
        for name, record in case["providers"].items():
            low, middle, high = (1e3 * t for t in quartiles(record["seconds"]))
            row_bytes = record["bytes"] / case["rows"]
            print(f"    {name:38} {row_bytes:9,.0f} bytes per row  {low:.2f} {middle:.2f} {high:.2f} ms")
    if args.save:
        (RESULTS / "sharded.json").write_text(dumps(result) + "\n")


if __name__ == "__main__":
    main()
