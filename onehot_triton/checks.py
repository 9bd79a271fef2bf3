"""Errors for bad input: each names the argument, what was expected and what was found, with the first bad position."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from .blocks import by_rows
from .estimators import ESTIMATORS
from .grad_method import ReparamGradientStrategy
from .tensors import compute_dtype, in_transform, is_recorded, is_sharded

_PARAMETER_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SAMPLE_DTYPES = (torch.bool, *_INDEX_DTYPES, *_PARAMETER_DTYPES)

# float first: to find it in an abstract class takes four calls.
_REAL = (float, numbers.Real)
_INTEGER = (int, torch.SymInt, numbers.Integral)


def _error(name: str, expected: str, found: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected}, found {found}")


def _on_device(name: str, value: Tensor | torch.Generator, device: torch.device) -> None:
    """Checks that `value` is where the parameters are: a kernel would take an address of one device on another."""
    if value.device != device:
        what = "one on " if isinstance(value, torch.Generator) else "a tensor on "
        raise _error(name, f"{what}{device}, as the parameters", f"one on {value.device}")


# When values are checked ----------------------------------------------------------------------------------------------


def resolve(validate_args: bool | None, param: Tensor) -> bool:
    """Whether values are to be checked. None is torch's default on the CPU, where they can be looked at, else False."""
    if validate_args is not None:
        return bool(validate_args)
    return param.device.type == "cpu" and Distribution._validate_args and not is_recorded(param) and not in_transform()


def _is_true(condition: Tensor, message: str) -> bool:
    """The value of `condition`; a compiled graph asserts it instead, with `message`, and goes on."""
    if torch.compiler.is_compiling():
        torch._assert_async(condition, message)  # pyright: ignore[reportPrivateImportUsage]
        return True
    return bool(condition)


def _first(bad: Tensor) -> list[int]:
    """The position of the first True."""
    return torch.nonzero(bad)[0].tolist()


# Arguments of a distribution ------------------------------------------------------------------------------------------


def exactly_one(**arguments: Any) -> tuple[Any, str]:
    """The one argument that was given, and its name."""
    given = [(value, name) for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        raise _error(", ".join(arguments), "exactly one of the two", "both" if given else "neither")
    return given[0]


def parameter(**parameters: Tensor | None) -> tuple[Tensor, str]:
    """The one parameter that was given, and its name."""
    param, name = exactly_one(**parameters)
    if not isinstance(param, Tensor):
        raise _error(name, "a tensor", type(param).__name__)
    if param.is_nested or param.layout != torch.strided:
        raise _error(name, "a dense tensor", "a nested one" if param.is_nested else f"layout {param.layout}")
    if param.dtype not in _PARAMETER_DTYPES:
        raise _error(name, "float16, bfloat16, float32 or float64", param.dtype)
    if param.dim() == 0 or param.shape[-1] == 0:
        raise _error(name, "[*batch, columns] with at least one column", f"shape {list(param.shape)}")
    return param, name


def _valid_rows(logits: Tensor) -> Tensor:
    """Which rows of `logits` [..., columns] are distributions, bool [...]: amax keeps NaN."""
    return logits.amax(-1).isfinite()


def rows(logits: Tensor, param: Tensor, name: str, mask: Tensor | None = None) -> None:
    """Checks that every row is a distribution.

    Args:
        logits: [*batch, columns].
        param: [*batch, columns], what the user gave: logits or probs.
        name: which of the two.
        mask: bool of that shape; where it is False, any parameter will do.
    """
    if torch.compiler.is_compiling():
        message = f"{name}: expected a distribution in every row, found NaN, inf or nothing"
        _is_true(_valid_rows(logits).all(), message)
        return
    # One finite number tells of finite logits, and of all maxima where it does not overflow.
    if mask is None and math.isfinite(logits.sum().item()):
        return
    if math.isfinite(logits.amax(-1).sum(dtype=compute_dtype(logits.dtype)).item()):
        return
    bad_rows = ~_valid_rows(logits)
    if not bad_rows.any():
        return
    at = _first(bad_rows)
    row = param.detach()[tuple(at)]
    if mask is not None:
        if not mask[tuple(at)].any():
            raise _error("mask", "an allowed category in every row", f"none at {at}")
        row = torch.where(mask[tuple(at)], row, 0.0 if name == "probs" else -torch.inf)
    if name == "probs":
        bad, values, empty = ~((row >= 0) & (row < torch.inf)), "values >= 0 and finite", "a positive sum"
    else:
        bad, values, empty = row.isnan() | (row == torch.inf), "neither NaN nor +inf", "a value above -inf"
    if bad.any():
        column = _first(bad)
        raise _error(name, values, f"{row[column[0]].item()} at {at + column}")
    raise _error(name, f"{empty} in every row", f"a row of {row[0].item()} alone at {at}")


def _from_numpy(name: str, value: Any, device: torch.device) -> Any:
    """A copy of a NumPy array on that device, since an array has none; any other value as it is.

    The copy has strides that torch takes, and does not change with the array. NumPy is known by its name: importing it
    takes time, and torch does without it.
    """
    if type(value).__module__ != "numpy":
        return value
    try:
        return torch.as_tensor(value.copy(), device=device)
    except (TypeError, ValueError):
        raise _error(name, "numbers that torch knows", value.dtype) from None


def mask(value: Any, param: Tensor, validate_args: bool | None) -> Tensor:
    """Check a category mask for `param` [*batch, columns], and return it as a bool tensor, itself where it is one.

    Args:
        value: a tensor or a NumPy array; its batch may be larger than the parameters', and of another dtype than bool
            it holds 0 and 1. Where values are not checked, a number other than 0 is True.
        param: the parameters. Beside a DTensor a mask is returned as it is, and `sharded.place_mask` makes it bool.
        validate_args: the argument of that name; only a mask of another dtype than bool has values to check.
    """
    value = _from_numpy("mask", value, param.device)
    if not isinstance(value, Tensor):
        raise _error("mask", "a tensor or a NumPy array", type(value).__name__)
    _on_device("mask", value, param.device)
    if value.shape != param.shape:
        columns = param.shape[-1]
        if value.dim() and value.shape[-1] not in (1, columns):
            raise _error("mask", f"a last dimension of 1 or {columns}", f"shape {list(value.shape)}")
        _broadcastable("mask", value.shape[:-1], param.shape[:-1])
    if value.dtype == torch.bool or is_sharded(param):
        return value
    allowed = value != 0
    if resolve(validate_args, param):
        bad = allowed & (value != 1)
        if not _is_true(~bad.any(), "mask: expected 0 and 1"):
            at = _first(bad)
            raise _error("mask", "0 and 1", f"{value[tuple(at)].item()} at {at}")
    return allowed


def allowed_indices(value: Any, padding: Any, shape: torch.Size, device: torch.device, validate: bool) -> Tensor:
    """Check lists of categories, [*batch, any number], for parameters of that shape, on that device, and return them
    as a tensor."""
    value = _from_numpy("indices", value, device)
    if not isinstance(value, Tensor) or value.dtype not in _INDEX_DTYPES:
        raise _error("indices", "an integer tensor", value.dtype if isinstance(value, Tensor) else type(value).__name__)
    _on_device("indices", value, device)
    if value.dim() == 0:
        raise _error("indices", "[*batch, n]", "shape []")
    _broadcastable("indices", value.shape[:-1], shape[:-1])
    if padding is not None and not isinstance(padding, int):
        raise _error("padding_value", "an int or None", repr(padding))
    if validate:
        bad = (value < 0) | (value >= shape[-1])
        bad = bad if padding is None else bad & (value != padding)
        if not _is_true(~bad.any(), f"indices: expected 0 .. {shape[-1] - 1}"):
            at = _first(bad)
            raise _error("indices", f"0 .. {shape[-1] - 1}", f"{value[tuple(at)].item()} at {at}")
    return value


def neg_inf(value: Any) -> float | None:
    if value is not None and not (isinstance(value, _REAL) and value < 0):
        raise _error("neg_inf", "None or a number below 0", repr(value))
    return None if value is None else float(value)


def grad_method(method: Any) -> ReparamGradientStrategy | None:
    """`method` as a member of this library's enumeration. TorchRL's, of the same name, is known by its members' names:
    to ask for its type would be to import TorchRL."""
    if method is None or isinstance(method, ReparamGradientStrategy):
        return method
    members = ReparamGradientStrategy.__members__
    if isinstance(method, Enum) and type(method).__name__ == "ReparamGradientStrategy" and method.name in members:
        return members[method.name]
    *others, last = (f"ReparamGradientStrategy.{name}" for name in members)
    raise _error("grad_method", f"None, {', '.join(others)} or {last}", repr(method))


def relaxed_samples(value: Any, method: ReparamGradientStrategy | None) -> int:
    """A number of samples, as Python's: more than 1 of RelaxedOneHot alone."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < 1:
        raise _error("relaxed_samples", "an integer of at least 1", repr(value))
    if value != 1 and not (method and ESTIMATORS[method].relaxed):
        takers = _names(other for other, row in ESTIMATORS.items() if row.relaxed)
        expected = f"1 for {_name_of(method)}, since only {takers} takes more"
        raise _error("relaxed_samples", expected, repr(value))
    return int(value)


def _name_of(method: ReparamGradientStrategy | None) -> str:
    return f"grad_method {'None' if method is None else method.name}"


def _names(methods: Iterable[ReparamGradientStrategy]) -> str:
    *others, last = (method.name for method in methods)
    return f"{', '.join(others)} and {last}" if others else last


def unimix(weight: Any, param: Tensor, validate: bool) -> float | Tensor:
    """The weight as Python's number; for a tensor of one element a 0-d copy in the compute dtype of `param`, made
    without a wait for the device. The copy is NaN for a weight outside [0, 1], which makes every row invalid."""
    expected = "a number in [0, 1]"
    if not isinstance(weight, Tensor):
        if not isinstance(weight, _REAL) or not 0 <= float(weight) <= 1:
            raise _error("unimix", expected, repr(weight))
        return float(weight)
    if weight.requires_grad:
        raise _error("unimix", expected, "a tensor that requires a gradient, which it would not get")
    if weight.numel() != 1:
        raise _error("unimix", expected, f"shape {list(weight.shape)}")
    if weight.dtype not in _SAMPLE_DTYPES:
        raise _error("unimix", expected, weight.dtype)
    # A CPU's tensor of one element goes to a kernel as a number does.
    if not weight.is_cpu:
        _on_device("unimix", weight, param.device)
    weight = weight.reshape(()).to(compute_dtype(param.dtype))
    inside = (weight >= 0) & (weight <= 1)
    if validate and not _is_true(inside, f"unimix: expected {expected}"):
        raise _error("unimix", expected, weight.item())
    return weight.masked_fill(inside.logical_not(), torch.nan)


def dtype(value: Any) -> None:
    if value not in _SAMPLE_DTYPES:
        raise _error("dtype", "one of " + ", ".join(str(d) for d in _SAMPLE_DTYPES), repr(value))


def temperature(
    value: Any,
    batch: torch.Size,
    device: torch.device,
    validate: bool,
    method: ReparamGradientStrategy | None = ReparamGradientStrategy.RelaxedOneHot,
) -> float | Tensor:
    """The temperature, above 0, of ReinMax at least 1, and 1 where the method takes none: as Python's number, or a
    tensor of one element or one that broadcasts to the batch."""
    estimator = None if method is None else ESTIMATORS[method]
    if not (estimator and estimator.takes_temperature) and (isinstance(value, Tensor) or value != 1):
        takers = _names(other for other, row in ESTIMATORS.items() if row.takes_temperature)
        expected = (
            f"1 for {_name_of(method)}, since only the gradients of {takers} take one (to sample at a temperature, "
            "divide the logits)"
        )
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise _error("temperature", expected, found)
    least = estimator.least_temperature if estimator else 0
    if not isinstance(value, Tensor):
        if not isinstance(value, _REAL) or not 0 < float(value) < math.inf:
            raise _error("temperature", "a finite number above 0", repr(value))
        if method and float(value) < least:
            raise _error("temperature", f"at least {least} for {method.name}", repr(value))
        return float(value)
    if not (value.is_floating_point() or value.dtype in _INDEX_DTYPES):
        raise _error("temperature", "a floating or integer tensor", value.dtype)
    _on_device("temperature", value, device)
    if value.numel() != 1 and not _broadcasts_to(value.shape, batch):
        raise _error("temperature", f"a shape that broadcasts to the batch {list(batch)}", list(value.shape))
    if method and estimator and not estimator.relaxed and value.requires_grad:
        found = "one that requires a gradient, which it would not get"
        raise _error("temperature", f"a tensor without a gradient for {method.name}", found)
    if validate:
        expected = "finite numbers above 0"
        if method and least:
            expected = f"finite numbers of at least {least} for {method.name}"
        bad = ~(((value >= least) if least else (value > 0)) & (value < torch.inf))
        if not _is_true(~bad.any(), f"temperature: expected {expected}"):
            at = _first(bad)
            raise _error("temperature", expected, f"{value[tuple(at)].item()} at {at}")
    return value


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )


# Arguments of methods -------------------------------------------------------------------------------------------------


def sample_shape(shape: int | Sequence[int] | None) -> torch.Size:
    """`shape`, of Python's integers or NumPy's, as a torch.Size; None is ()."""
    if shape is None:
        return torch.Size()
    if isinstance(shape, torch.Size):
        return shape
    sizes = []
    try:
        for n in shape if isinstance(shape, tuple) or not isinstance(shape, _INTEGER) else (shape,):
            # An index of a traced program's integer would be its value.
            sizes.append(n if isinstance(n, (int, torch.SymInt)) else operator.index(n))
    except TypeError:
        raise _error("sample_shape", "None, an int or a sequence of ints", repr(shape)) from None
    for n in sizes:
        if n < 0:
            raise _error("sample_shape", "no negative dimension", sizes)
    return torch.Size(sizes)


def generator(value: Any, device: torch.device) -> None:
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise _error("generator", "a torch.Generator or None", type(value).__name__)
    _on_device("generator", value, device)


def _broadcastable(name: str, lead: torch.Size, batch: torch.Size) -> None:
    if lead == batch:
        return
    for a, b in zip(reversed(lead), reversed(batch), strict=False):
        if a != b and a != 1 and b != 1:
            raise _error(name, f"leading dimensions that broadcast with the batch {list(batch)}", list(lead))


def value_shape(value: Any, batch: torch.Size, event: torch.Size, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise _error("value", "a tensor", type(value).__name__)
    if value.shape[-1:] != event:
        raise _error("value", f"[..., {event[0]}] with a column for each category", f"shape {list(value.shape)}")
    if value.is_complex():
        raise _error("value", "a real tensor", value.dtype)
    _on_device("value", value, device)
    _broadcastable("value", value.shape[:-1], batch)


def one_hot(value: Tensor, index: Tensor) -> None:
    """Checks that every row of `value`, whose maximum is at `index`, is a single 1 among zeros."""
    # In half the time of count_nonzero.
    count = by_rows(lambda v: v.bool().sum(-1), value if value.dim() > 1 else value.unsqueeze(0))
    good = (count.view(index.shape) == 1) & (value.gather(-1, index.unsqueeze(-1)).squeeze(-1) == 1)
    if not _is_true(good.all(), "value: expected one-hot rows"):
        at = _first(~good)
        row = value[tuple(at)]
        ones, others = (row == 1).sum().item(), ((row != 0) & (row != 1)).sum().item()
        raise _error(
            "value",
            "one-hot rows, a single 1 among zeros",
            f"{ones} ones and {others} other values than 0 and 1 at {at}",
        )


def sum_tolerance(value: Tensor, param: Tensor, columns: int, temperature: Tensor | float) -> Tensor | float:
    """By how much the sum of a row of relaxed values may miss 1: a number, or one for each row of the temperature.

    Rounding to the coarser dtype of the two moves each value by a part of itself, and loses it below the last subnormal
    number. A softmax of float32 over n columns adds some sqrt(n) roundings, and a kernel rounds scores, which the
    temperature divides. At least torch's own 1e-6.
    """
    dtypes = [torch.finfo(t.dtype) for t in (value, param) if t.is_floating_point()]
    eps = torch.finfo(compute_dtype(value.dtype)).eps
    rounding = max(d.eps * (1 + columns * d.tiny / 2) for d in dtypes)
    return max(1e-6, rounding + eps * math.sqrt(columns)) + 4 * eps / temperature


def relaxed_value(value: Tensor, logits: Tensor, param: Tensor, temperature: Tensor | float, of_log: bool) -> None:
    """Check that every row of `value` [..., columns] is a point of the simplex with 0 where a category is off, or, of
    `of_log`, its logarithm.

    Args:
        value: its leading dimensions broadcast against the batch.
        logits: [*batch, columns], -inf where a category is off.
        param: what the user gave; values may be as coarse as its dtype.
        temperature: a number, or a tensor that broadcasts to the batch.
    """
    if isinstance(temperature, Tensor) and temperature.numel() == 1:
        temperature = temperature.reshape(())
    value, y = value.detach(), value.detach().to(compute_dtype(value.dtype))
    y = y.exp() if of_log else y
    outside = (logits == -torch.inf) & (value != (-torch.inf if of_log else 0))
    negative, total = ~(y >= 0), y.sum(-1)
    is_near = (total - 1).abs() <= sum_tolerance(value, param, value.shape[-1], temperature)
    good = ~negative.any(-1) & ~outside.any(-1) & is_near
    what = "the logarithm of a point of the simplex" if of_log else "a point of the simplex"
    if _is_true(good.all(), f"value: expected {what} in every row, without mass where a category is off"):
        return
    for bad, expected in (
        (negative, "no NaN" if of_log else "values >= 0"),
        (outside, f"{'-inf' if of_log else 0} where a category is off"),
    ):
        if bad.any():
            at = _first(bad)
            raise _error("value", expected, f"{value.expand(bad.shape)[tuple(at)].item()} at {at}")
    at = _first(~good)
    total = total.expand(good.shape)[tuple(at)].item()
    expected = "rows whose exponentials sum to 1" if of_log else "rows that sum to 1"
    raise _error("value", expected, f"a sum of {total} at {at}")


def index(value: Any, batch: torch.Size, columns: int, device: torch.device, validate: bool) -> None:
    if not isinstance(value, Tensor) or value.dtype not in _INDEX_DTYPES:
        raise _error("index", "an integer tensor", value.dtype if isinstance(value, Tensor) else type(value).__name__)
    _on_device("index", value, device)
    _broadcastable("index", value.shape, batch)
    if validate and value.numel():
        low, high = value.aminmax()
        if not _is_true((low >= 0) & (high < columns), f"index: expected 0 .. {columns - 1}"):
            at = _first((value < 0) | (value >= columns))
            raise _error("index", f"0 .. {columns - 1}", f"{value[tuple(at)].item()} at {at}")
