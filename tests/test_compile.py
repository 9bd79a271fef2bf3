"""Graphs: what is traced of the CUDA branch, and that a recorded program draws anew each time it runs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.replace_random import replace_random_passes
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
)
from onehot_triton.compute import cpu

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


def straight_through(method: str, **options: int) -> Callable[[Tensor, float], Tensor]:
    options |= {"validate_args": False}
    return lambda x, t: OneHotCategorical(
        x, grad_method=ReparamGradientStrategy[method], temperature=t, **options
    ).rsample()


def density(x: Tensor, t: float) -> Tensor:
    return RelaxedOneHotCategorical(t, logits=x).log_prob(torch.linspace(0.1, 0.3, 5))


def masked_logits(x: Tensor, t: float) -> Tensor:
    return MaskedOneHotCategorical(x, mask=torch.arange(5) < 4, neg_inf=-t).logits


# A float that changes from call to call, between 1 and 2.
OF_A_FLOAT: dict[str, Callable[[Tensor, float], Tensor]] = {
    **{method: straight_through(method) for method in ("RelaxedOneHot", "ReinMax", "GappedStraightThrough")},
    "Gumbel-Rao": straight_through("RelaxedOneHot", relaxed_samples=2),
    "sample": lambda x, t: OneHotCategorical(x, grad_method=METHODS[1], temperature=t).sample(),
    "soft": lambda x, t: RelaxedOneHotCategorical(t, logits=x).rsample(),
    "density": density,
    "neg_inf": masked_logits,
    "unimix": lambda x, t: OneHotCategorical(x, unimix=t - 1).logits,
}
NUMBERS = (1.5, 1.25, 1.75, 1.1, 1.9)


def result_and_gradient(function: Callable[..., Tensor], x: Tensor, t: Any) -> list[Tensor]:
    torch.manual_seed(1)
    out = function(x, t)
    grad = torch.arange(float(out.numel())).view(out.shape)
    return [out.detach(), *(torch.autograd.grad(out, x, grad) if out.requires_grad else ())]


@pytest.mark.skipif(torch.cuda.is_available(), reason="interprets the kernels")
@pytest.mark.parametrize("with_gradient", [True, False], ids=["gradient", "no_grad"])
@pytest.mark.parametrize("name", OF_A_FLOAT)
@pytest.mark.interpreted(with_gradient=[True], name=["RelaxedOneHot", "ReinMax", "GappedStraightThrough", "soft"])
def test_another_number_is_no_other_program(
    name: str, with_gradient: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number is a constant of the first program, a symbol of the second, and there is no third; AOT, which makes
    constants of symbols, included. Each number gives what it gives as a tensor, or, where nothing is drawn that a
    compiled program draws in its own way, in an eager program."""
    # Small batches have ways of their own to draw.
    monkeypatch.setattr(cpu, "_SMALL", 0)
    function, x = OF_A_FLOAT[name], torch.randn(2, 5, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    as_eager = name in ("density", "neg_inf", "unimix") or (backend == "eager" and name in ("ReinMax", "sample"))
    with torch._dynamo.config.patch(recompile_limit=2), torch.set_grad_enabled(with_gradient):
        found = [result_and_gradient(compiled, x, t) for t in NUMBERS]
    torch._dynamo.reset()
    expected = function if as_eager else torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(with_gradient):
        for t, of_t in zip(NUMBERS, found, strict=True):
            given = t if as_eager else torch.tensor(t)
            torch.testing.assert_close(of_t, result_and_gradient(expected, x, given))


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_another_number_is_no_other_program_of_inductor() -> None:
    def densities(x: Tensor, t: float) -> Tensor:
        return torch.cat([density(x, t), masked_logits(x, t).flatten()])

    x = torch.randn(2, 5, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(densities, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for t in NUMBERS[:4]:
            torch.testing.assert_close(result_and_gradient(compiled, x, t), result_and_gradient(densities, x, t))


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
