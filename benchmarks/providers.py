"""The libraries that are compared. Each has an adapter, or a reason why it cannot run."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as D
from torch.utils.checkpoint import checkpoint

from onehot_triton import OneHotCategorical, ReparamGradientStrategy

# Rows per chunk, as by default in TRL's entropy_from_logits.
CHUNK = 128
OURS, OPERATORS, NAIVE, FLASHINFER = "onehot_triton", "its operators alone", "naive Triton", "flashinfer"
Forward = Callable[[Tensor, Tensor], Any]
"""(logits, value) -> results of an operation before its backward. `value` is one-hot for `log_prob`, else an index."""


class Provider(NamedTuple):
    """One library.

    Attributes:
        forwards: functions by their names in `operations.py`, without those that the library lacks.
    """

    name: str
    forwards: dict[str, Forward]


def _step(dist: Any) -> tuple[Tensor, Tensor, Tensor]:
    draw = dist.rsample()
    return draw, dist.log_prob(draw.detach()), dist.entropy()


def _draw_and_log_prob(dist: Any) -> tuple[Tensor, Tensor]:
    draw = dist.sample()
    return draw, dist.log_prob(draw)


def _both(dist: Any, index: Tensor) -> tuple[Tensor, Tensor]:
    return dist.log_prob(index), dist.entropy()


def _class_forwards(make: Callable[[Tensor], Any]) -> dict[str, Forward]:
    """Return the forwards of a class whose draws are one-hot and whose `rsample` has the PassThrough gradient."""
    return {
        "sample": lambda x, _: make(x).sample(),
        "rsample": lambda x, _: make(x).rsample(),
        "log_prob": lambda x, value: make(x).log_prob(value),
        "entropy": lambda x, _: make(x).entropy(),
        "step": lambda x, _: _step(make(x)),
        "joint_step": lambda x, _: _step(make(x)),
        "decode": lambda x, _: _draw_and_log_prob(make(x)),
    }


def _ours() -> Provider:
    relaxed = ReparamGradientStrategy.RelaxedOneHot
    forwards = {
        **_class_forwards(OneHotCategorical),
        "sample_index": lambda x, _: OneHotCategorical(x).sample_index(),
        "log_prob_index": lambda x, index: OneHotCategorical(x).log_prob_index(index),
        "log_prob_index_and_entropy": lambda x, index: OneHotCategorical(x).log_prob_index_and_entropy(index),
        "rsample_relaxed": lambda x, _: OneHotCategorical(x, grad_method=relaxed).rsample(),
        "joint_step": lambda x, _: OneHotCategorical(x).rsample_log_prob_and_entropy(),
        "decode": lambda x, _: OneHotCategorical(x).sample_and_log_prob(),
    }
    return Provider(OURS, forwards)


def _torchrl() -> Provider:
    with warnings.catch_warnings():
        # Its import warns about missing optional packages and coming renames.
        warnings.simplefilter("ignore")
        from torchrl.modules import OneHotCategorical as TorchRL
        from torchrl.modules import ReparamGradientStrategy as Strategy

    def make(x: Tensor) -> Any:
        return TorchRL(logits=x, grad_method=Strategy.PassThrough)  # pyright: ignore[reportCallIssue]

    forwards = {
        **_class_forwards(make),
        "sample_index": lambda x, _: make(x).sample().argmax(-1),
        "rsample_relaxed": lambda x, _: TorchRL(logits=x, grad_method=Strategy.RelaxedOneHot).rsample(),  # pyright: ignore[reportCallIssue]
    }
    return Provider("torchrl", forwards)


def _torch() -> Provider:
    forwards = {
        **_class_forwards(lambda x: D.OneHotCategoricalStraightThrough(logits=x)),
        "sample_index": lambda x, _: D.Categorical(logits=x).sample(),
        "log_prob_index": lambda x, index: D.Categorical(logits=x).log_prob(index),
        "log_prob_index_and_entropy": lambda x, index: _both(D.Categorical(logits=x), index),
    }
    return Provider("torch.distributions", forwards)


def _gumbel_softmax() -> Provider:
    def draw(x: Tensor, _: Tensor) -> Tensor:
        return F.gumbel_softmax(x, hard=True)

    forwards = {"sample": draw, "sample_index": lambda x, _: draw(x, _).argmax(-1), "rsample_relaxed": draw}
    return Provider("F.gumbel_softmax", forwards)


def _operators() -> Provider:
    """The torch operators that this library calls for a small batch, without its Python around them."""

    def index_of(x: Tensor) -> Tensor:
        sums = x.double().exp_().cumsum_(1)
        total = sums[:, -1:]
        low, high = total.aminmax()
        low.item()
        high.item()
        return torch.searchsorted(sums, torch.rand_like(total).mul_(total), right=True).squeeze(1)

    def draw(x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(x, dtype=dtype).scatter_(1, index_of(x).unsqueeze(1), 1)

    def relaxed(x: Tensor, _: Tensor) -> Tensor:
        e = torch.rsub(torch.rand_like(x, dtype=torch.float64), -(2.0**-54), alpha=1 - 2.0**-52).log1p_().neg_()
        z = x - e.log_()
        top, at = z.detach().max(-1, keepdim=True)
        top.sum().item()
        return written_over(torch.softmax(z, -1), at, x.dtype)

    def written_over(y: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
        out = y.to(dtype, copy=True)
        out.detach().zero_().scatter_(-1, at, 1)
        return out

    def pass_through(x: Tensor) -> Tensor:
        at = index_of(x.detach()).unsqueeze(1)
        return written_over(torch.softmax(x, -1, dtype=torch.float32), at, x.dtype)

    def log_prob(x: Tensor, value: Tensor) -> Tensor:
        return log_prob_index(x, value.detach().argmax(-1))

    def log_prob_index(x: Tensor, index: Tensor) -> Tensor:
        return _log_softmax_at(x, index, torch.float32)

    def entropy_of(log_p: Tensor, p: Tensor) -> Tensor:
        return (p * log_p.clamp_min(-10_000)).sum(-1).abs()

    def entropy(x: Tensor) -> Tensor:
        log_p = torch.log_softmax(x, -1, dtype=torch.float32)
        return entropy_of(log_p, log_p.exp())

    def step(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one_hot = pass_through(x)
        return one_hot, log_prob(x, one_hot), entropy(x)

    def joint_step(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = index_of(x.detach()).unsqueeze(1)
        log_p = torch.log_softmax(x, -1, dtype=torch.float32)
        p = log_p.exp()
        return written_over(p, at, x.dtype), log_p.gather(-1, at).squeeze(-1), entropy_of(log_p, p)

    forwards = {
        "sample": lambda x, _: draw(x, torch.int64),
        "sample_index": lambda x, _: index_of(x),
        "rsample": lambda x, _: pass_through(x),
        "rsample_relaxed": relaxed,
        "log_prob": log_prob,
        "log_prob_index": log_prob_index,
        "entropy": lambda x, _: entropy(x),
        "step": step,
        "joint_step": joint_step,
    }
    return Provider(OPERATORS, forwards)


def _log_softmax_at(x: Tensor, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.log_softmax(x, -1, dtype=dtype).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _log_prob_and_entropy(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(x, -1, dtype=torch.float32)
    return log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def _log_softmax() -> Provider:
    """The usual code in the loss of a language model."""
    forwards = {"log_prob_index": _log_softmax_at, "log_prob_index_and_entropy": _log_prob_and_entropy}
    return Provider("log_softmax + gather", forwards)


def _cross_entropy() -> Provider:
    def both(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = -F.cross_entropy(x.float(), index, reduction="none")
        p = torch.softmax(x, -1, dtype=torch.float32)
        return log_prob, torch.logsumexp(x.float(), -1) - (p * x).sum(-1)

    return Provider("F.cross_entropy", {"log_prob_index_and_entropy": both})


def _chunked() -> Provider:
    """The way in which RLHF libraries save memory: some rows at a time, computed again in the backward."""

    def both(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        chunks = zip(x.split(CHUNK), index.split(CHUNK), strict=True)
        recomputed = partial(checkpoint, _log_prob_and_entropy, use_reentrant=False, preserve_rng_state=False)
        found = [recomputed(*chunk) for chunk in chunks]
        log_probs, entropies = zip(*found, strict=True)  # pyright: ignore[reportArgumentType]
        return torch.cat(log_probs), torch.cat(entropies)

    return Provider("log_softmax in chunks", {"log_prob_index_and_entropy": both})


def race_index(x: Tensor) -> Tensor:
    p = torch.softmax(x, -1, dtype=torch.float32)
    return (p / torch.empty_like(p).exponential_()).argmax(-1)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.int64).scatter_(-1, index.unsqueeze(-1), 1)


def _race() -> Provider:
    """The usual code in the generation loop of a language model."""

    def decode(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        index = race_index(x)
        return _one_hot(index, x), _log_softmax_at(x, index)

    forwards = {
        "sample": lambda x, _: _one_hot(race_index(x), x),
        "sample_index": lambda x, _: race_index(x),
        "decode": decode,
    }
    return Provider("exponential race", forwards)


def _naive() -> Provider:
    """The usual Triton kernel, which draws a Gumbel per element."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError("its Triton kernel needs a GPU")
    naive = importlib.import_module("naive")
    forwards = {"sample": lambda x, _: naive.sample(x), "sample_index": lambda x, _: naive.sample_index(x)}
    return Provider(NAIVE, forwards)


def _flashinfer() -> Provider:
    """FlashInfer, which this project does not install. A machine with a GPU may have it. It takes only float32."""
    if not torch.cuda.is_available():
        raise ImportError("its kernels need a GPU")
    flashinfer = importlib.import_module("flashinfer.sampling")
    return Provider(FLASHINFER, {"sample_index": lambda x, _: flashinfer.sampling_from_logits(x.float())})


MAKERS = {
    OURS: _ours,
    "torchrl": _torchrl,
    "torch.distributions": _torch,
    "F.gumbel_softmax": _gumbel_softmax,
    "exponential race": _race,
    "log_softmax + gather": _log_softmax,
    OPERATORS: _operators,
    "F.cross_entropy": _cross_entropy,
    "log_softmax in chunks": _chunked,
    NAIVE: _naive,
    FLASHINFER: _flashinfer,
}
# Providers that torch.compile may speed up: all but those with kernels of their own.
EAGER = [name for name in MAKERS if name not in (OPERATORS, NAIVE, FLASHINFER)]
COMPILED = " compiled"


def compiled(provider: Provider) -> Provider:
    """Return the provider under torch.compile, with one program for all shapes; a backward is part of it."""
    forwards = {name: torch.compile(forward, dynamic=True) for name, forward in provider.forwards.items()}
    return Provider(provider.name + COMPILED, forwards)


def why_nothing_compiles(device: torch.device) -> str | None:
    """Return why torch.compile fails, or None. It needs a C++ compiler on a CPU and Triton on a GPU."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:
        return f"torch.compile fails: {str(error).strip().splitlines()[0]}"
    return None


def providers() -> tuple[list[Provider], dict[str, str]]:
    """Return the providers that are installed, this library first, and by name why others are missing.

    TorchRL comes before anything is timed, because its import turns off the default validation of torch.distributions
    for all classes in the process.
    """
    found, missing = [], {}
    for name in sorted(MAKERS, key=lambda name: name != "torchrl"):
        try:
            found.append(MAKERS[name]())
        except ImportError as error:
            missing[name] = str(error)
    return sorted(found, key=lambda provider: list(MAKERS).index(provider.name)), missing
