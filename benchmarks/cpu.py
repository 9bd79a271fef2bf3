"""`make bench`: the library against its peers on this CPU, in one run.

    python benchmarks/cpu.py [--seconds 10]

Each provider's result is checked before it is timed, and a wrong one is reported as wrong. The providers take turns, so
that whatever else the machine does falls on all of them alike, and each call gets another input. Writes
results/cpu/<date>.json with every time, and prints medians, quartiles and ratios.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import density_fault, environment, frequency_fault, quartiles, save
from providers import Provider, providers
from torch import Tensor
from torch import distributions as D
from tqdm import tqdm

SHAPES = ((64, 6), (1024, 32), (64, 4096), (16, 131072))
# The last-level cache that the inputs of a shape are to exceed together, and the most of them that are made.
CACHE_BYTES, MOST_INPUTS = 2**26, 256
# One entry of the raw times is the mean of so many seconds of calls, and at least one call.
TURN_SECONDS = 0.02
MOST_TURNS = 200


def fault(provider: Provider) -> str | None:
    """Why the provider's results are wrong; None where they are right."""
    for rows, columns in ((20000, 6), (64, 4096)):
        x = torch.randn(columns).expand(rows, columns).contiguous()
        why = frequency_fault(provider.sample, x)
        if why is None and provider.step is not None:
            draw, log_prob, entropy = provider.step(x)
            why = frequency_fault(lambda _, draw=draw: draw, x) or density_fault(log_prob, entropy, draw, x)
        if why is not None:
            return f"{rows} x {columns}: {why}"
    return None


def inputs(rows: int, columns: int) -> list[Tensor]:
    count = min(MOST_INPUTS, max(4, CACHE_BYTES // (4 * rows * columns)))
    return [torch.randn(rows, columns) for _ in range(count)]


def turn(function: Callable[[Tensor], Any], many: list[Tensor], first: int, calls: int) -> float:
    """Seconds of a call, over `calls` of them."""
    start = time.perf_counter()
    for i in range(calls):
        function(many[(first + i) % len(many)])
    return (time.perf_counter() - start) / calls


def parallel_speedup(threads: int) -> float:
    """How many times as fast `threads` threads are as one, on work that splits: near `threads` where the cores are
    free. On cores that others use, each parallel region waits for a thread that is not running."""
    x = torch.randn(2**20)
    times = []
    for count in (1, threads):
        torch.set_num_threads(count)
        times.append(quartiles([turn(torch.exp, [x], 0, 4) for _ in range(25)])[1])
    return times[0] / times[1]


def measure(functions: dict[str, Callable[[Tensor], Any]], shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Seconds of a call, many times, by name."""
    many = inputs(*shape)
    calls = {}
    for name, function in functions.items():
        turn(function, many, 0, 2)
        calls[name] = max(1, min(1000, int(TURN_SECONDS / turn(function, many, 2, 3))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    end, first = time.perf_counter() + seconds, 0
    while len(times["onehot_triton"]) < 5 or (time.perf_counter() < end and len(times["onehot_triton"]) < MOST_TURNS):
        for name, function in functions.items():
            times[name].append(turn(function, many, first, calls[name]))
        first += max(calls.values())
    return {"calls": calls, "seconds": times}


def show(records: list[dict[str, Any]], names: list[str]) -> None:
    others = names[1:]
    print(
        f"\n{'':9}{'rows x columns':>15}  {'onehot_triton, ms (quartiles)':>31}" + "".join(f"{n:>23}" for n in others)
    )
    for record in records:
        times = record["seconds"]
        low, ours, high = (1e3 * t for t in quartiles(times["onehot_triton"]))
        line = (
            f"{record['operation']:9}{record['rows']:>7} x {record['columns']:<6}{ours:15.4f} ({low:.4f} .. {high:.4f})"
        )
        for name in others:
            ratio = quartiles(times[name])[1] * 1e3 / ours if name in times else None
            line += f"{'-':>23}" if ratio is None else f"{f'{ratio:.2f} times ours':>23}"
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description="times the library against its peers on this CPU")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each shape and operation")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    speedup = parallel_speedup(args.threads)
    torch.manual_seed(1)
    before = D.Distribution._validate_args
    found, missing = providers()
    validation = {
        "torch.distributions before torchrl was imported": before,
        **{provider.name: provider.validate_args for provider in found},
    }
    info = environment()
    print(f"{info['cpu']}, {args.threads} of {info['cores']} threads, load {info['load']:.1f} at the start")
    if speedup < 0.75 * args.threads:
        print(
            f"BUSY: {args.threads} threads are {speedup:.2f} times as fast as one. Others use these cores, and what",
            end=" ",
        )
        print("follows measures the waiting of threads; take a quiet moment, or --threads 1")
    print(", ".join(f"{name} {version}" for name, version in info["packages"].items()))
    print(
        f"torch.distributions validates arguments by default: {before}; with torchrl imported, which turns that off for"
    )
    print(
        f"the whole process: {D.Distribution._validate_args}. Each class runs with its own default, which is then: ",
        end="",
    )
    print(", ".join(f"{p.name} {p.validate_args}" for p in found if p.validate_args is not None))
    for name, why in missing.items():
        print(f"{name}: not timed, {why}")
    wrong = {provider.name: why for provider in found if (why := fault(provider)) is not None}
    for name, why in wrong.items():
        print(f"{name}: WRONG, not timed: {why}")
    right = [provider for provider in found if provider.name not in wrong]
    if "onehot_triton" in wrong:
        return 1

    records = []
    with tqdm(total=2 * len(SHAPES), unit="table row") as bar:
        for operation in ("sample", "step"):
            functions = {p.name: f for p in right if (f := getattr(p, operation)) is not None}
            for shape in SHAPES:
                bar.set_description(f"{operation} {shape[0]} x {shape[1]}")
                raw = measure(functions, shape, args.seconds)
                records.append(
                    {"operation": operation, "rows": shape[0], "columns": shape[1], "dtype": "float32", **raw}
                )
                bar.update()
    result = {
        "environment": info, "threads": args.threads, "parallel_speedup": speedup, "validate_args": validation,
        "missing": missing, "wrong": wrong,
        "operations": {"sample": "construct + sample", "step": "construct + rsample + log_prob + entropy"},
        "times": records,
    }  # fmt: skip
    show(records, [provider.name for provider in right])
    print(
        f"\nstep is construct + rsample + log_prob + entropy. Every time is in {os.path.relpath(save('cpu', result))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
