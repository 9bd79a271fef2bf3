"""Check the results of a provider. A provider with a wrong operation is reported, and not timed at it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from operations import OPERATIONS, Inputs, call_of, inputs_from
from torch import Tensor

# Probability that a correct provider fails a statistical check, at most: both bounds below hold for any number of draws
# and any distribution. A run has some hundred checks, so that one fails by chance in one of ten million runs.
FAILURE_RATE = 1e-9
# Shapes (rows, columns) of the logits, whose rows are equal.
Drawn = tuple[tuple[int, int], ...]
DRAWN: Drawn = ((20000, 6), (64, 4096))


def frequency_fault(draw: Tensor, logits: Tensor) -> str | None:
    """Return why the rows of `draw` are not one-hot draws from the softmax of `logits`, whose rows are equal, or None.

    The test is a likelihood ratio. Neighbouring columns are joined to cells that expect ten draws or more. For n draws,
    k cells of probabilities p, and observed shares q, the statistic T = n KL(q || p) has
    E exp(l T) <= (1 - l)^(1 - k) for 0 <= l < 1 (Agrawal 2020, "Finite-sample concentration of the multinomial in
    relative entropy"). Therefore

        P(T >= t) <= exp(d - t) (t / d)^d    for t > d = k - 1.
    """
    # Some providers draw h + p - p, which is one-hot up to rounding.
    near = max(1e-5, 4 * torch.finfo(draw.dtype).eps) if draw.dtype.is_floating_point else 0.0
    hot = draw.double()
    one = torch.ones_like(hot[:, 0])
    if not torch.allclose(hot.round().sum(-1), one) or not torch.allclose(hot, hot.round(), atol=near):
        return "a row is not one-hot"
    expected = len(logits) * torch.softmax(logits[0].double(), -1)
    # A cell ends where the running sum passes a multiple of twenty. The last cell may expect any number of draws.
    cell = (expected.cumsum(0) / 20).long()
    counts = torch.zeros(2, int(cell[-1]) + 1, dtype=torch.float64, device=logits.device)
    counts[0].index_add_(0, cell, hot.round().sum(0))
    counts[1].index_add_(0, cell, expected)
    found, wanted = counts[:, counts.any(0)].cpu()
    t = torch.special.xlogy(found, found / wanted).sum().item()
    d = max(1, len(found) - 1)
    bound = d - t + d * math.log(t / d) if t > d else 0.0
    return None if bound > math.log(FAILURE_RATE) else f"frequencies: found with a probability below e^{bound:.0f}"


def density_fault(name: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> str | None:
    """Return why a density differs from `expected` by more than eager torch loses in that dtype, or None."""
    error = (found.double() - expected).abs().max().item()
    bound = max(1e-3, 4 * torch.finfo(dtype).eps * expected.abs().max().item())
    return None if error < bound else f"{name} is off by {error:.1e}"


def _log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1)


def _draw_fault(draw: Tensor, given: Inputs) -> str | None:
    return frequency_fault(draw, given.logits)


def _index_fault(index: Tensor, given: Inputs) -> str | None:
    return frequency_fault(torch.nn.functional.one_hot(index.long(), given.logits.shape[-1]), given.logits)


def _log_prob_fault(log_prob: Tensor, given: Inputs, draw: Tensor | None = None) -> str | None:
    value = given.value if draw is None else draw
    expected = (_log_probs(given.logits) * value.double().round()).sum(-1)
    return density_fault("log_prob", log_prob, expected, given.logits.dtype)


def _log_prob_index_fault(log_prob: Tensor, given: Inputs) -> str | None:
    return _log_prob_fault(log_prob, given, torch.nn.functional.one_hot(given.value, given.logits.shape[-1]))


def _entropy_fault(entropy: Tensor, given: Inputs) -> str | None:
    exact = _log_probs(given.logits)
    return density_fault("entropy", entropy, -(exact.exp() * exact).sum(-1), given.logits.dtype)


def _scored_fault(out: tuple[Tensor, Tensor], given: Inputs) -> str | None:
    draw, log_prob = out
    return _draw_fault(draw, given) or _log_prob_fault(log_prob, given, draw)


def _step_fault(out: tuple[Tensor, Tensor, Tensor], given: Inputs) -> str | None:
    draw, log_prob, entropy = out
    return _scored_fault((draw, log_prob), given) or _entropy_fault(entropy, given)


def _pass_through_fault(out: tuple[Tensor, Tensor], given: Inputs) -> str | None:
    """Check the gradient p (g - <p, g>), which does not depend on the draw."""
    draw, gradient = out
    p, g = _log_probs(given.logits).exp(), given.grad.double()
    return _draw_fault(draw, given) or density_fault(
        "the gradient", gradient, p * (g - (p * g).sum(-1, keepdim=True)), given.logits.dtype
    )


def _train_step_fault(out: tuple[tuple[Tensor, Tensor, Tensor], Tensor], given: Inputs) -> str | None:
    results, gradient = out
    logits = given.logits.double().requires_grad_()
    exact = torch.log_softmax(logits, -1)
    scored = (exact * results[0].detach().double().round()).sum(-1)
    pass_through = (exact.exp() * given.grad.double()).sum(-1)
    entropy = -(exact.exp() * exact).sum(-1)
    total = (pass_through + given.row_grad.double() * (scored + entropy)).sum()
    expected = torch.autograd.grad(total, logits)[0]
    return _step_fault(results, given) or density_fault("the gradient", gradient, expected, given.logits.dtype)


def _policy_gradient_fault(out: tuple[tuple[Tensor, Tensor], Tensor], given: Inputs) -> str | None:
    (log_prob, entropy), gradient = out
    logits = given.logits.double().requires_grad_()
    exact = torch.log_softmax(logits, -1)
    total = exact.gather(-1, given.value.unsqueeze(-1)).squeeze(-1) - (exact.exp() * exact).sum(-1)
    expected = torch.autograd.grad((given.row_grad.double() * total).sum(), logits)[0]
    return (
        _log_prob_index_fault(log_prob, given)
        or _entropy_fault(entropy, given)
        or density_fault("the gradient", gradient, expected, given.logits.dtype)
    )


def _relaxed_fault(out: tuple[Tensor, Tensor], given: Inputs) -> str | None:
    """Check the mean gradient over equal rows with equal incoming gradients.

    It is the mean of y (g - <y, g>) with y = softmax(x + G). Each row is paired with a draw from that formula. The
    differences d_i are symmetric about 0. Given their sizes, |sum d_i| >= z sqrt(sum d_i^2) has in each column a
    probability of at most 2 exp(-z^2 / 2) (Hoeffding).
    """
    draw, gradient = out
    columns = gradient.shape[-1]
    gumbel = -torch.empty_like(given.logits, dtype=torch.float64).exponential_().log()
    y, g = torch.softmax(given.logits.double() + gumbel, -1), given.grad.double()
    expected = y * (g - (y * g).sum(-1, keepdim=True))
    difference = gradient.double() - expected
    # Rounding to the dtype, by at most half a unit in the last place, is no fault.
    rounding = 0.5 * torch.finfo(given.logits.dtype).eps * expected.abs().sum(0)
    z = ((difference.sum(0).abs() - rounding) / difference.square().sum(0).sqrt()).max().item()
    bad = f"the mean gradient is {z:.0f} standard errors from that of y (g - <y, g>)"
    return _draw_fault(draw, given) or (bad if z > math.sqrt(2 * math.log(2 * columns / FAILURE_RATE)) else None)


CHECKS: dict[str, Callable[[Any, Inputs], str | None]] = {
    "sample": _draw_fault,
    "sample_index": _index_fault,
    "rsample": _draw_fault,
    "pass_through": _pass_through_fault,
    "relaxed": _relaxed_fault,
    "log_prob": _log_prob_fault,
    "log_prob_index": _log_prob_index_fault,
    "entropy": _entropy_fault,
    "step": _step_fault,
    "train_step": _train_step_fault,
    "joint_step": _train_step_fault,
    "policy_gradient": _policy_gradient_fault,
    "decode": _scored_fault,
}


def fault(
    forwards: dict[str, Callable[[Tensor, Tensor], Any]],
    operation: str,
    dtype: str,
    device: torch.device,
    drawn: Drawn = DRAWN,
) -> str | None:
    """Return why this operation of a provider is wrong, or None."""
    call = call_of(forwards[OPERATIONS[operation].forward], operation)
    for rows, columns in drawn:
        row = torch.randn(columns, device=device).to(getattr(torch, dtype))
        given = inputs_from(row.expand(rows, columns).contiguous(), operation)
        if operation == "relaxed":
            if columns > 100:
                continue
            given = given._replace(grad=given.grad[:1].expand_as(given.grad).contiguous())
        try:
            why = CHECKS[operation](call(given), given)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if why is not None:
            return f"{rows} x {columns}: {why}"
    return None
