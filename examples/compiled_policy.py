"""One policy step, eager and compiled, with this class and with TorchRL's: time and graph breaks side by side.

A step is an actor's: a small net, a draw with its log-probability, the entropy, and the backward of a loss of them.

    pip install 'onehot_triton[torchrl]'
    python examples/compiled_policy.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

try:
    from torchrl.modules import OneHotCategorical as TorchRLOneHotCategorical
except ImportError as error:
    raise SystemExit(f"{error.name} is not installed: pip install 'onehot_triton[torchrl]'") from None

from onehot_triton import OneHotCategorical

OBSERVATIONS = 64
Step = Callable[[Tensor], tuple[Tensor, Tensor]]


def make_step(distribution_class: Any, net: nn.Module) -> Step:
    def step(observation: Tensor) -> tuple[Tensor, Tensor]:
        dist = distribution_class(logits=net(observation))
        action = dist.sample()
        return action, dist.log_prob(action).mean() + 0.01 * dist.entropy().mean()

    return step


def graph_breaks(step: Step, observation: Tensor) -> tuple[int, str]:
    """How often the compiler gave up within a step, and where first."""
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(step)(observation)
    where = [f"in {reason.user_stack[-1].name}: {reason.user_stack[-1].line}" for reason in explanation.break_reasons]
    return explanation.graph_break_count, where[0] if where else ""


def median_times(steps: dict[str, Step], observation: Tensor, repetitions: int) -> dict[str, float]:
    """Milliseconds of forward and backward; the steps take turns, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step(observation)[1].backward()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A policy step, eager and compiled, with this class and with TorchRL's."
    )
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--actions", type=int, default=1024)
    parser.add_argument("--backend", default="inductor", help="of torch.compile; inductor needs a C++ compiler")
    parser.add_argument("--quick", action="store_true", help="aot_eager, which needs none, and few repetitions")
    args = parser.parse_args()
    backend, repetitions = ("aot_eager", 10) if args.quick else (args.backend, 100)
    torch.manual_seed(0)
    # So that the times are of the work, and not of waiting for a second core that is busy.
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Linear(OBSERVATIONS, 64), nn.Tanh(), nn.Linear(64, args.actions))
    observation = torch.randn(args.rows, OBSERVATIONS)

    ours = make_step(OneHotCategorical, net)
    theirs = make_step(TorchRLOneHotCategorical, net)
    breaks = {"onehot_triton": graph_breaks(ours, observation), "TorchRL": graph_breaks(theirs, observation)}
    torch._dynamo.reset()
    steps: dict[str, Step] = {
        "onehot_triton": ours,
        "onehot_triton, compiled": torch.compile(ours, backend=backend, fullgraph=True),
        "TorchRL": theirs,
        # Not fullgraph: that raises at the first break.
        "TorchRL, compiled": torch.compile(theirs, backend=backend),
    }
    for name, step in steps.items():
        start = time.perf_counter()
        for _ in range(2):
            step(observation)[1].backward()
        if "compiled" in name:
            print(f"{name}: first two steps in {time.perf_counter() - start:.1f} s")

    times = median_times(steps, observation, repetitions)
    print(f"\n{args.rows} rows, {args.actions} actions, backend {backend}, medians of {repetitions} steps:")
    print(f"  {'step':26} {'forward and backward':>20} {'graph breaks':>13}")
    for name, value in times.items():
        count = str(breaks[name.removesuffix(", compiled")][0]) if "compiled" in name else ""
        print(f"  {name:26} {value:17.2f} ms {count:>13}")
    for name, (count, where) in breaks.items():
        if count:
            print(f"\n{name} breaks the graph first {where}")


if __name__ == "__main__":
    main()
