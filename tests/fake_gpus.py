"""GPUs that are not there: Triton's JIT as on one, up to the compiler, on tensors of a CPU or on fake CUDA tensors.

    gpus = FakeGpus(monkeypatch)        # kernels are specialised as for a GPU, counted, and do not run
    with gpus.tensors():                # torch.empty(..., device="cuda:1") gives a tensor without memory
        ...
    gpus.launches, gpus.compiled

    on_tensors_of_a_cpu(monkeypatch)    # the same, for the time and the calls of the host

Signature, specialisation and cache of kernels are Triton's own. In the place of the compiler is one that gives a
stand-in for a kernel. What torch and Triton ask of a GPU (which one is the current one, whether its stream is being
captured, its generator) these answer.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from onehot_triton import distribution, rng, tensors
from onehot_triton.kernels import launch


class Launch(NamedTuple):
    """A launch of a kernel; `variant` is what Triton has compiled it for, `arguments` all that it was given."""

    kernel: str
    device: int
    stream: int
    grid: tuple[int, int, int]
    variant: int
    arguments: tuple[Any, ...]


class Generator:
    """As much as is asked of a CUDA generator."""

    def __init__(self, device: int, seed: int = 7) -> None:
        self.device, self.seed, self.offset = torch.device("cuda", device), seed, 0

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


class _Driver:
    """As much of Triton's driver as a launch asks for."""

    def __init__(self, gpus: FakeGpus) -> None:
        self.gpus = gpus

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.gpus.current

    def get_current_stream(self, device: int) -> int:
        return 1000 + device


class _Kernels(TorchDispatchMode):
    """Runs the launchers, where fake tensors would ask for shapes alone; and keeps the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(str(func))
        if func.namespace == "onehot_triton":
            return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class FakeGpus:
    """Attributes:
    current: the number of the current GPU.
    captured: the GPUs whose current stream is being captured.
    switches: how often another GPU was made the current one.
    launches: of kernels, in order.
    compiled: the kernels that were compiled and loaded, in order; once a variant and device.
    generators: the default one of each GPU.
    multiprocessors: of each GPU.
    asked: the GPUs whose properties were asked for, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> None:
        if os.environ["TRITON_INTERPRET"] != "1":
            pytest.skip("kernels are for the GPU that is here")
        self.current, self.captured, self.switches = 0, set[int](), 0
        self.launches: list[Launch] | deque[Launch] = []
        self.compiled: list[str] = []
        self.generators = [Generator(device) for device in range(count)]
        self.multiprocessors, self.asked = [132] * count, list[int]()
        compiled: dict[Any, JITFunction[Any]] = {}

        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            if function not in compiled:
                compiled[function] = JITFunction(function.fn, **function.kwargs)
            return compiled[function].run(*args, grid=grid, warmup=warmup, **kwargs)

        def compile_(kernel: Any, key: Any, signature: Any, device: int, *_: Any) -> Any:
            self.compiled.append(kernel.fn.__name__)
            variant = len(self.compiled)

            def run_kernel(
                x: int, y: int, z: int, stream: int, _f: Any, _p: Any, _m: Any, _b: Any, _e: Any, *args: Any
            ):
                self.launches.append(Launch(kernel.fn.__name__, device, stream, (x, y, z), variant, args))

            stand_in = SimpleNamespace(
                run=run_kernel, launch_metadata=lambda *_: None, function=None, packed_metadata=None
            )
            kernel.device_caches[device][0][key] = stand_in
            return stand_in

        @contextmanager
        def switched(device: int | torch.device) -> Iterator[None]:
            before, self.current = self.current, device if isinstance(device, int) else device.index
            self.switches += 1
            try:
                yield
            finally:
                self.current = before

        def data_ptr(tensor: Tensor) -> int:
            """As of an allocator that aligns every storage."""
            return 2**30 + int(tensor.storage_offset()) * tensor.element_size() if tensor.numel() else 0

        def properties(device: int) -> Any:
            self.asked.append(device)
            return SimpleNamespace(multi_processor_count=self.multiprocessors[device])

        # What was asked of other GPUs.
        monkeypatch.setattr(launch, "_multiprocessors", cache(launch._multiprocessors.__wrapped__))
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(InterpretedFunction, "run", run)
        monkeypatch.setattr(JITFunction, "_do_compile", compile_)
        monkeypatch.setattr(driver, "_active", _Driver(self))
        monkeypatch.setattr(FakeTensor, "data_ptr", data_ptr, raising=False)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: self.current)
        monkeypatch.setattr(torch.accelerator, "device_index", switched)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", switched)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.current in self.captured)
        monkeypatch.setattr(torch.cuda, "default_generators", self.generators)

    @contextmanager
    def tensors(self) -> Iterator[list[str]]:
        """Within it, tensors on "cuda:0" and so on can be made, and operators launch their kernels. Gives the names of
        the operators, in order."""
        with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), _Kernels() as kernels:
            # A fake tensor is a sign of a program that is recorded: here it is not.
            for module in (rng, tensors, distribution):
                patch.setattr(module, "is_recorded", lambda tensor: False)
            yield kernels.operators


class _Logits:
    """All that `next_seed` asks of logits."""

    requires_grad = False
    device = torch.device("cuda", 0)


def on_tensors_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """Tensors of the CPU, which cost the least, with the seeds that a GPU would have."""
    gpus, next_seed = FakeGpus(monkeypatch), cast(Any, rng.next_seed)
    monkeypatch.setattr(rng, "is_recorded", lambda tensor: False)
    monkeypatch.setattr(rng, "next_seed", lambda logits, generator: next_seed(_Logits, generator))
    return gpus
