"""A language model whose head is tensor-parallel: each rank has a part of the vocabulary's logits, and none has a row.

The body is the same on all ranks; the head is `ColwiseParallel` with its output left as it is, a DTensor that is
sharded on the vocabulary. `OneHotCategorical` takes that: a token costs 20 bytes from each other rank, where a
gathered row costs two or four for each of its words. Where shards start at multiples of 1024 words, as here, the
kernels draw the tokens that one process draws of that seed; on a CPU they are interpreted. Then some steps of
training, by straight-through draws of the next word, whose gradients are placed as the head is.

    python examples/tensor_parallel_decode.py
    torchrun --nproc-per-node 2 examples/tensor_parallel_decode.py
"""

from __future__ import annotations

import argparse
import os

# Read when Triton is imported. Without a GPU, the kernels are interpreted: slow, and to the bit what they are.
os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from onehot_triton import OneHotCategorical, ReparamGradientStrategy, use_backend

VOCABULARY, WIDTH, STREAMS = 4096, 32, 2


class Model(nn.Module):
    """(words so far) -> logits of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(words))[0][:, -1])


def whole(tensor: Tensor) -> Tensor:
    """A result of few numbers, as a plain tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def say(*words: object, end: str = "\n") -> None:
    """Prints, on one rank."""
    if dist.get_rank() == 0:
        print(*words, end=end, flush=True)


def stream(model: Model, words: int) -> Tensor:
    """Draws word after word, [STREAMS, words], and prints the first stream as it comes."""
    found = torch.zeros(STREAMS, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(words):
            index = OneHotCategorical(model(found), validate_args=False).sample_index()
            found = torch.cat([found, whole(index).unsqueeze(-1)], -1)
            say(found[0, -1].item(), end=" ")
    return found[:, 1:]


def step(model: Model, words: Tensor) -> float:
    """One step towards next words of a low number, by the gradient of straight-through draws."""
    logits = model(words)
    policy = OneHotCategorical(logits, grad_method=ReparamGradientStrategy.ReinMax)
    cost = torch.linspace(0, 1, VOCABULARY)
    if isinstance(logits, DTensor):
        cost = DTensor.from_local(cost, logits.device_mesh, [Replicate()], run_check=False)
    loss = (policy.rsample((4,)) * cost).sum(-1).mean() - 1e-3 * policy.entropy().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad  # pyright: ignore[reportOperatorIssue]
    return whole((policy.probs * cost).sum(-1).mean()).item()


def decode_and_train(ranks: int, words: int, steps: int) -> tuple[Tensor, list[float]]:
    """The words streamed, and the cost after each step, of a model whose head is on so many ranks."""
    torch.manual_seed(0)
    model = Model()
    nn.init.normal_(model.head.weight)
    placed: object = "one process"
    if ranks > 1:
        plan = {"head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}
        parallelize_module(model, init_device_mesh("cpu", (ranks,)), plan)  # pyright: ignore[reportArgumentType]
        assert isinstance(model.head.weight, DTensor)
        placed = model.head.weight.placements
    say(f"{VOCABULARY} words, {VOCABULARY // ranks} on each of {ranks} ranks")
    with use_backend("triton"):
        torch.manual_seed(1)
        found = stream(model, words)
        say()
        torch.manual_seed(2)
        costs = [step(model, found) for _ in range(steps)]
    say(f"mean number of the next word, as a part of all: {costs[0]:.3f} -> {costs[-1]:.3f}; head: {placed}")
    return found, costs


def main() -> None:
    parser = argparse.ArgumentParser(description="decoding and steps of training with a tensor-parallel head")
    parser.add_argument("--quick", action="store_true", help="a few words, to see that it runs")
    args = parser.parse_args()
    # torchrun sets these; alone, a process is a world of one.
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    decode_and_train(dist.get_world_size(), *((4, 2) if args.quick else (64, 50)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
