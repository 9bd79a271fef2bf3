"""Time the host's share of a call, with launches that do nothing. No GPU is needed.

    python tools/host_cost.py

Tensors are on the CPU, where creating them and autograd's additions cost least. Everything else is as on a GPU: the
operators, Triton's search for the variant of a kernel, and all Python code. Triton's own launches are timed separately,
with the arguments that the call gave them, and subtracted.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Wanted microseconds above Triton's own launches.
TARGETS = {"sample": 25.0, "train step": 90.0, "as one node": 90.0}
TURNS, TURN_SECONDS = 300, 0.002


def calls(rows: int, columns: int) -> dict[str, Callable[[], Any]]:
    import torch

    from onehot_triton import OneHotCategorical, ReparamGradientStrategy

    x = torch.randn(rows, columns)
    leaf = x.clone().requires_grad_()
    grads = torch.randn(rows, columns), torch.randn(rows), torch.randn(rows)

    def sample() -> Any:
        return OneHotCategorical(x, validate_args=False).sample()

    def step() -> Any:
        dist = OneHotCategorical(leaf, grad_method=ReparamGradientStrategy.PassThrough, validate_args=False)
        draw = dist.rsample()
        return torch.autograd.grad([draw, dist.log_prob(draw), dist.entropy()], leaf, grads)

    def joint() -> Any:
        dist = OneHotCategorical(leaf, grad_method=ReparamGradientStrategy.PassThrough, validate_args=False)
        return torch.autograd.grad(dist.rsample_log_prob_and_entropy(), leaf, grads)

    return {"sample": sample, "train step": step, "as one node": joint}


def microseconds(call: Callable[[], Any]) -> float:
    """Return the microseconds of a call: the least mean of many short turns, because other load only adds time."""
    start, many = time.perf_counter(), 0
    while time.perf_counter() - start < TURN_SECONDS:
        call()
        many += 1
    means = []
    for _ in range(TURNS):
        start = time.perf_counter()
        for _ in range(many):
            call()
        means.append((time.perf_counter() - start) / many)
    return 1e6 * min(means)


def main() -> None:
    # Triton reads this at its import.
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

    import pytest
    import torch
    from fake_gpus import on_tensors_of_a_cpu
    from triton.runtime.interpreter import InterpretedFunction

    from onehot_triton import use_backend

    torch.set_num_threads(1)
    print(f"{'':11} {'rows x columns':>14} {'all':>7} {'launches':>12} {'above':>7} {'target':>7}   microseconds")
    for shape in ((64, 18), (64, 32), (2, 5000)):
        for name, call in calls(*shape).items():
            with pytest.MonkeyPatch.context() as patch, use_backend("triton"):
                # Recorded launches would keep their tensors alive, so that each call would touch fresh memory.
                on_tensors_of_a_cpu(patch).launches = deque(maxlen=0)
                # Asking whether kernels are interpreted takes a microsecond with os.environ. On a GPU nobody asks.
                patch.setattr(os, "environ", dict(os.environ))
                stub, launched = InterpretedFunction.run, []
                call()

                def record(*args: Any, stub: Any = stub, launched: Any = launched, **kwargs: Any) -> None:
                    launched.append((args, kwargs))
                    stub(*args, **kwargs)

                def launch(stub: Any = stub, launched: Any = launched) -> None:
                    for args, kwargs in launched:
                        stub(*args, **kwargs)

                with pytest.MonkeyPatch.context() as recording:
                    recording.setattr(InterpretedFunction, "run", record)
                    call()
                every, own = microseconds(call), microseconds(launch)
            print(
                f"{name:11} {shape[0]:>6} x {shape[1]:<5} {every:7.1f} {len(launched):3} in {own:5.1f} "
                f"{every - own:7.1f} {TARGETS[name]:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
