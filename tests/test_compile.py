"""Graphs: what is traced of the CUDA branch, and that a recorded program draws anew each time it runs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.replace_random import replace_random_passes
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from onehot_triton import OneHotCategorical, RelaxedOneHotCategorical, ReparamGradientStrategy, use_backend

METHODS = [ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot]


def operators(graph: torch.fx.Graph) -> Counter[str]:
    """How often each operator of ours, and each random one of torch's, stands in the graph."""
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return Counter(name.split(".")[1] for name in names if name.startswith("onehot_triton") or ".rand" in name)


def rl_step(logits: Tensor, method: ReparamGradientStrategy) -> Tensor:
    dist = OneHotCategorical(logits, grad_method=method)
    action = dist.rsample()
    return (action * torch.arange(action.shape[-1], device=logits.device)).sum() + dist.log_prob(action).sum()


# A fake tensor on "cuda" needs no GPU: it has shapes and a device, and the branch taken is the kernels'. (Autograd
# would need one: it asks the device for its streams.)


@pytest.mark.parametrize("columns", [18, 5000])
def test_a_traced_cuda_sample_is_one_kernel_and_one_seed(columns: int) -> None:
    with FakeTensorMode():
        logits = torch.empty(4, columns, device="cuda")
        graph = make_fx(lambda x: OneHotCategorical(x).sample())(logits).graph
    assert operators(graph) == {"randint": 1, "sample": 1}
    (kernel,) = [node for node in graph.nodes if str(node.target) == "onehot_triton.sample.default"]
    (seed,) = [node for node in graph.nodes if "randint" in str(node.target)]
    assert seed in kernel.args


def test_the_seeds_of_a_compiled_program_are_inductors_own() -> None:
    """Without a generator: the overload of torch.randint that has one is a kernel of torch's for each draw."""

    def random(call) -> list[str]:
        with FakeTensorMode() as mode, V.set_fake_mode(mode):
            logits = torch.empty(4, 50, device="cuda")
            module = make_fx(call, decomposition_table=select_decomp_table())(logits)
            replace_random_passes(module)
        names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        return [name for name in names if "rand" in name or "seeds" in name]

    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        return OneHotCategorical(x).sample(), RelaxedOneHotCategorical(0.5, logits=x).rsample()

    own = random(two)
    assert [name.split(".")[1] for name in own] == ["inductor_seeds", "inductor_randint", "inductor_randint"], own
    # What the passes leave as it is.
    assert random(lambda x: torch.randint(9, (), device=x.device, generator=None)) == ["aten.randint.generator"]


def test_a_traced_cuda_step_is_a_kernel_each() -> None:
    with FakeTensorMode():
        logits = torch.empty(4, 50, device="cuda")
        graph = make_fx(lambda x: rl_step(x, METHODS[0]))(logits).graph
    assert operators(graph) == {"randint": 1, "sample": 1, "log_prob": 1}


def test_a_traced_cpu_sample_looks_at_no_value() -> None:
    with FakeTensorMode():
        graph = make_fx(lambda x: OneHotCategorical(x).sample())(torch.empty(4, 50)).graph
    assert not any("_local_scalar_dense" in str(node.target) for node in graph.nodes)


def test_a_traced_cuda_relaxed_sample_is_one_kernel_and_one_seed() -> None:
    with FakeTensorMode():
        logits = torch.empty(4, 50, device="cuda")
        graph = make_fx(lambda x: RelaxedOneHotCategorical(0.5, logits=x).rsample((3,)))(logits).graph
    assert operators(graph) == {"randint": 1, "relaxed": 1}


@pytest.mark.parametrize("method", METHODS)
def test_dynamo_finds_no_graph_break_in_the_cuda_branch(method: ReparamGradientStrategy) -> None:
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        graphs.append(module.graph)
        return module

    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.empty(4, 50, device="cuda")
        torch.compile(rl_step, fullgraph=True, backend=backend)(logits, method)
    assert len(graphs) == 1
    assert operators(graphs[0])["sample"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="interprets the kernels")
def test_another_temperature_is_no_other_program() -> None:
    """A number is a symbol from its second value on."""
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        graphs.append(module)
        return module

    def soft(x: Tensor, temperature: float) -> Tensor:
        dist = RelaxedOneHotCategorical(temperature, logits=x, validate_args=False)
        hard = OneHotCategorical(x, grad_method=METHODS[1], temperature=temperature, validate_args=False)
        return dist.log_prob(dist.rsample()) + hard.rsample().sum(-1)

    torch._dynamo.reset()
    logits = torch.randn(2, 5, requires_grad=True)
    compiled = torch.compile(soft, fullgraph=True, backend=backend)
    with use_backend("triton"):
        for temperature in (0.5, 0.6, 0.7, 0.8):
            compiled(logits, temperature)
    assert len(graphs) == 2


# On a GPU -------------------------------------------------------------------------------------------------------------


def capture(function):
    """A CUDA graph of `function`, and what it returns: rewritten by each replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function()
    return graph, out


def assert_uniform(counts: Tensor) -> None:
    """Pearson's chi-square of equal categories, at 1e-6."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum().cpu()
    degrees = torch.tensor((counts.numel() - 1) / 2)
    assert torch.special.gammaincc(degrees, statistic / 2) > 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("columns", [16, 4096])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_each_replay_of_a_cuda_graph_draws_anew(columns: int, method: ReparamGradientStrategy | None) -> None:
    logits = torch.zeros(512, columns, device="cuda")
    dist = OneHotCategorical(logits, grad_method=method)
    graph, out = capture(dist.sample if method is None else dist.rsample)
    draws = []
    for _ in range(100):
        graph.replay()
        draws.append(out.argmax(-1).clone())
    assert len({tuple(draw.tolist()) for draw in draws}) == 100
    assert_uniform(torch.stack(draws).flatten().remainder(16).bincount(minlength=16).double())


@pytest.mark.gpu
def test_reduce_overhead_draws_anew() -> None:
    step = torch.compile(lambda x: OneHotCategorical(x).sample_index(), mode="reduce-overhead", fullgraph=True)
    logits = torch.zeros(512, 16, device="cuda")
    draws = [step(logits).clone() for _ in range(100)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 100
    assert_uniform(torch.stack(draws).flatten().bincount(minlength=16).double())


@pytest.mark.gpu
def test_eager_seeds_survive_the_capture_of_something_else() -> None:
    logits = torch.zeros(64, 4096, device="cuda")
    torch.cuda.manual_seed(3)
    expected = [OneHotCategorical(logits).sample_index() for _ in range(2)]
    torch.cuda.manual_seed(3)
    first = OneHotCategorical(logits).sample_index()
    capture(lambda: logits + 1)
    second = OneHotCategorical(logits).sample_index()
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


@pytest.mark.gpu
def test_more_than_2_to_31_elements() -> None:
    logits = torch.zeros(2**16 + 1, 2**15 + 8, device="cuda", dtype=torch.bfloat16)
    logits[:, -1] = 20
    dist = OneHotCategorical(logits, dtype=torch.bool)
    index = dist.sample_index()
    assert (index == logits.shape[1] - 1).float().mean() > 0.999
    assert torch.equal(dist.sample()[-1].nonzero()[0, 0].cpu(), torch.tensor(logits.shape[1] - 1))
