"""Each operator of torch_ops.py by torch.library.opcheck: its schema, its fake results, and AOT dispatch of it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from onehot_triton import torch_ops

pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = [
    pytest.mark.usefixtures("one_thread", "few_programs"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
]

OPERATORS = torch.ops.onehot_triton
ROWS, DRAWS = 3, 2
# What opcheck looks at depends on dtypes and strides, and not on how a row is walked.
COLUMNS = 18
DTYPES = (torch.bfloat16, torch.float64)


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: interpreted on the CPU where there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _index(logits: Tensor) -> Tensor:
    return (torch.arange(DRAWS * ROWS, device=logits.device).view(DRAWS, ROWS) * 7) % logits.shape[1]


def _grad(logits: Tensor, *lead: int) -> Tensor:
    return torch.randn(*lead, *logits.shape, device=logits.device).to(logits.dtype)


def _row_grad(logits: Tensor, *lead: int) -> Tensor:
    return torch.randn(*lead, ROWS, device=logits.device).to(_logsumexp(logits).dtype)


def _logsumexp(logits: Tensor) -> Tensor:
    return OPERATORS.logsumexp(logits, None)


def _temperature(logits: Tensor) -> Tensor:
    return torch.linspace(0.5, 2.0, ROWS, device=logits.device)


def _value(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.one_hot(_index(logits), logits.shape[1]).to(dtype)


def _seed(logits: Tensor) -> tuple[Tensor, int, int, int]:
    return torch.tensor(5, device=logits.device), 0, 0, 0


def _allowed(logits: Tensor) -> Tensor:
    rows, columns = (torch.arange(n, device=logits.device) for n in logits.shape)
    return (rows.unsqueeze(-1) + columns) % 3 != 1


def _soft(logits: Tensor) -> Tensor:
    return logits.expand(DRAWS, *logits.shape).softmax(-1)


HOST_SEED = (None, 11, 4, 0)

# Operator -> its arguments, as functions of the logits.
CASES: dict[str, list[Callable[[Tensor], tuple[Any, ...]]]] = {
    "sample": [
        lambda x: (x, DRAWS, torch.int64, *_seed(x), _allowed(x)),
        lambda x: (x, 1, torch.bool, *HOST_SEED, None),
        lambda x: (x, DRAWS, None, *_seed(x), None),
    ],
    "shard_race": [lambda x: (x, DRAWS, *_seed(x), 3), lambda x: (x, 1, *HOST_SEED, 0)],
    "philox": [
        lambda x: (
            torch.tensor(5),
            torch.arange(3),
            torch.arange(2).unsqueeze(-1),
            torch.zeros(1, dtype=torch.int64),
        )
    ],
    "relaxed": [
        lambda x: (x, _temperature(x), 1.0, DRAWS, *_seed(x)),
        lambda x: (x, None, 0.7, 1, *HOST_SEED),
    ],
    "relaxed_grad": [
        lambda x: (x, _logsumexp(x), _index(x), _grad(x, DRAWS), _temperature(x), 1.0, *_seed(x), _allowed(x), True, 2),
        lambda x: (x, _logsumexp(x), _index(x), _grad(x, DRAWS), None, 0.7, *HOST_SEED, None, False, 1),
    ],
    "soft_grad": [
        lambda x: (_soft(x), _grad(x, DRAWS), _temperature(x), 1.0, True),
        lambda x: (x.unsqueeze(0).softmax(-1), _grad(x, 1), None, 0.7, False),
    ],
    "softmax_grad": [lambda x: (x, _logsumexp(x), _grad(x), _allowed(x))],
    "reinmax_grad": [
        lambda x: (x, _logsumexp(x), _index(x), _grad(x, DRAWS), _temperature(x), 1.0, _allowed(x)),
        lambda x: (x, _logsumexp(x), _index(x)[:1], _grad(x, 1), None, 1.5, None),
    ],
    "gapped_grad": [lambda x: (x, _logsumexp(x), _index(x), _grad(x, DRAWS), _temperature(x), 1.0, _allowed(x))],
    "log_prob": [
        lambda x: (x, None, _value(x, torch.int64), _allowed(x), _index(x)),
        lambda x: (x, _logsumexp(x), _value(x, torch.bool), None, None),
    ],
    "log_prob_index": [lambda x: (x, _logsumexp(x), _index(x), _allowed(x))],
    "log_prob_grad": [lambda x: (x, _logsumexp(x), _index(x), _row_grad(x, DRAWS), _allowed(x))],
    "logsumexp": [lambda x: (x, _allowed(x))],
    "entropy": [lambda x: (x, _allowed(x)), lambda x: (x, None)],
    "entropy_grad": [lambda x: (x, *reversed(OPERATORS.entropy(x, None)), _row_grad(x), _allowed(x))],
    "log_prob_and_entropy": [lambda x: (x, _index(x), _allowed(x))],
    "log_prob_and_entropy_grad": [
        lambda x: (x, _logsumexp(x), _row_grad(x), _index(x), _row_grad(x, DRAWS), _row_grad(x), _allowed(x), None),
        lambda x: (x, _logsumexp(x), _row_grad(x), _index(x), _row_grad(x, DRAWS), _row_grad(x), None, _grad(x)),
    ],
    "seeded_exponential": [lambda x: (torch.tensor(5, device=x.device), [DRAWS, *x.shape])],
}


def test_every_operator_has_its_cases() -> None:
    # The registrations that the dispatcher itself knows of.
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "onehot" in name}
    assert names == set(CASES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))])
def test_opcheck(name: str, case: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.randn(ROWS, COLUMNS, device=device).to(dtype)
    torch.library.opcheck(getattr(OPERATORS, name).default, CASES[name][case](logits))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("seeded_exponential", "philox")])
def test_opcheck_of_rows_with_a_stride(name: str, device: torch.device) -> None:
    """A slice of a wider tensor, an expanded row, a transposed one: fake results have the strides of real ones."""
    wide = torch.randn(ROWS, 2, COLUMNS, device=device)[:, 1]
    expanded = torch.randn(1, COLUMNS, device=device).expand(ROWS, COLUMNS)
    for logits in (wide, expanded, torch.randn(COLUMNS, ROWS, device=device).t()):
        torch.library.opcheck(getattr(OPERATORS, name).default, CASES[name][0](logits))


# Schemas and launchers ------------------------------------------------------------------------------------------------

NOISE = ("seeded_exponential", "philox")
# Launcher -> operator. The launchers' own names are to follow.
RENAMED = {"allowed": "category_mask"}


def _launcher(name: str) -> Callable[..., Any]:
    """The launcher that the function of an operator calls."""
    return inspect.getclosurevars(getattr(torch_ops, name)).nonlocals["launcher"]()


def test_a_schema_names_its_arguments_and_results() -> None:
    assert str(OPERATORS.sample.default._schema) == (
        "onehot_triton::sample(Tensor logits, SymInt? draws, ScalarType? dtype, Tensor? seed_tensor, int seed, "
        "int offset, int row_offset, Tensor? category_mask) -> (Tensor one_hot, Tensor index, Tensor logsumexp)"
    )
    for name in CASES:
        assert all(result.name for result in getattr(OPERATORS, name).default._schema.returns), name


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOISE])
def test_arguments_have_one_name_from_an_operator_to_its_launcher(name: str) -> None:
    """Where the launcher takes a tensor or a number, the operator has x_tensor and x."""
    launcher = _launcher(name)
    expected = [RENAMED.get(argument, argument) for argument in inspect.signature(launcher).parameters]
    if name in ("log_prob_grad", "entropy_grad"):
        # These are numbers per row, where `grad` is one of rows everywhere else.
        expected[expected.index("grad")] = f"grad_{name.removesuffix('_grad')}"
    schema = [argument.name for argument in getattr(OPERATORS, name).default._schema.arguments]
    found = [argument for argument in schema if argument.removesuffix("_tensor") not in (set(schema) - {argument})]
    assert found == expected


def test_a_function_leads_to_a_kernel_by_import_statements() -> None:
    for name in set(CASES) - {*NOISE, "log_prob"}:
        launcher = _launcher(name)
        assert launcher.__module__.startswith("onehot_triton.kernels."), name
        assert launcher is getattr(sys.modules[launcher.__module__], name)


EITHER = ("sample", "shard_race", "relaxed", "relaxed_grad", "reinmax_grad", "soft_grad")


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in EITHER for case in (0, 1)])
def test_a_function_takes_a_tensor_or_a_number(name: str, case: int, device: torch.device) -> None:
    """The operator has two arguments for it. The function gives its results, whether it calls the launcher or it."""
    arguments = CASES[name][case](torch.randn(ROWS, COLUMNS, device=device))
    expected = getattr(OPERATORS, name)(*arguments)
    named = dict(zip((a.name for a in getattr(OPERATORS, name).default._schema.arguments), arguments, strict=True))
    for either in ("seed", "temperature"):
        tensor = named.pop(f"{either}_tensor", None)
        if tensor is not None:
            named[either] = tensor
    for watched in (False, True):
        with torch.autograd.profiler.profile(enabled=watched) as profile:
            found = getattr(torch_ops, name)(*named.values())
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        events = profile.function_events if watched else None
        assert (f"onehot_triton::{name}" in {event.name for event in events or ()}) == watched


def test_operators_are_there_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch, onehot_triton as o;"
        "print(o.OneHotCategorical(torch.zeros(3)).sample().sum().item(), torch.ops.onehot_triton.sample.default)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 onehot_triton.sample.default\n"


# vmap -----------------------------------------------------------------------------------------------------------------

RANDOM = ("sample", "shard_race", "relaxed", "relaxed_grad", "seeded_exponential", "philox")


def batched(name: str, case: int, dim: int) -> tuple[list[tuple[Any, ...]], list[Any], list[int | None]]:
    """The arguments of each of three calls, those of the call under vmap, and its in_dims."""
    calls = [CASES[name][case](torch.randn(ROWS, COLUMNS)) for _ in range(3)]
    are_tensors = [isinstance(argument, Tensor) for argument in calls[0]]
    arguments = zip(*calls, strict=True)
    stacked = [torch.stack(a, dim) if is_tensor else a[0] for a, is_tensor in zip(arguments, are_tensors, strict=True)]
    return calls, stacked, [dim if is_tensor else None for is_tensor in are_tensors]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    ("name", "case"), [(name, i) for name, cases in CASES.items() if name not in RANDOM for i in range(len(cases))]
)
def test_vmap_of_an_operator_is_a_loop(name: str, case: int, dim: int) -> None:
    operator = getattr(OPERATORS, name)
    calls, stacked, in_dims = batched(name, case, dim)
    each = [operator(*call) for call in calls]
    # A result that was not asked for has no rows, and says nothing.
    expected = [torch.stack(o) for o in zip(*each, strict=True)] if isinstance(each[0], tuple) else torch.stack(each)
    if isinstance(expected, list):
        expected = tuple(o for o in expected if o.numel())
        found = torch.vmap(lambda *a: tuple(o for o in operator(*a) if o.numel()), tuple(in_dims))(*stacked)
    else:
        found = torch.vmap(operator, tuple(in_dims))(*stacked)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in CASES if name not in RANDOM])
def test_vmap_of_an_operator_with_shared_arguments(name: str) -> None:
    """The last call's arguments but for the logits: they are expanded over the map."""
    operator = getattr(OPERATORS, name)
    calls = [CASES[name][0](torch.randn(ROWS, COLUMNS)) for _ in range(3)]
    logits, shared = torch.stack([call[0] for call in calls]), calls[-1][1:]
    each = [operator(x, *shared) for x in logits]
    found = torch.vmap(lambda x: operator(x, *shared))(logits)
    if isinstance(found, tuple):
        expected = tuple(torch.stack(o) for o in zip(*each, strict=True))
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e)
    else:
        torch.testing.assert_close(found, torch.stack(each))


def test_vmap_of_the_random_operators_takes_all_rows_at_once() -> None:
    """With noise of their own, the maps are the rows of one call."""
    ops, different = OPERATORS, {"randomness": "different"}
    x, t = torch.randn(2, ROWS, COLUMNS), torch.rand(2, ROWS) + 0.5
    allowed = torch.rand(2, ROWS, COLUMNS) < 0.7
    allowed[..., 0] = True
    rows, flat_t, flat_allowed = x.flatten(0, 1), t.flatten(), allowed.flatten(0, 1)
    # The maps of the mask behind its rows.
    one_hot, index, logsumexp = torch.vmap(
        lambda x, a: ops.sample(x, DRAWS, torch.int64, *HOST_SEED, a), (0, 1), **different
    )(x, allowed.movedim(0, 1))
    expected = ops.sample(rows, DRAWS, torch.int64, *HOST_SEED, flat_allowed)
    assert torch.equal(one_hot, expected[0].unflatten(1, (2, ROWS)).transpose(0, 1))
    assert torch.equal(index, expected[1].unflatten(1, (2, ROWS)).transpose(0, 1))
    assert torch.equal(logsumexp, expected[2].unflatten(1, (2, ROWS)).transpose(0, 1))
    soft = torch.vmap(lambda x, t: ops.relaxed(x, t, 1.0, DRAWS, *HOST_SEED), **different)(x, t)
    assert torch.equal(soft.transpose(0, 1).flatten(1, 2), ops.relaxed(rows, flat_t, 1.0, DRAWS, *HOST_SEED))
    grad = torch.randn(2, DRAWS, ROWS, COLUMNS)
    found = torch.vmap(
        lambda *a: ops.relaxed_grad(*a[:5], 1.0, *HOST_SEED, a[5], True, 2), (0, 0, 0, 0, 0, 1), **different
    )(x, logsumexp, index, grad, t, allowed.movedim(0, 1))
    flat = (rows, expected[2], expected[1], grad.transpose(0, 1).flatten(1, 2), flat_t, 1.0, *HOST_SEED, flat_allowed)
    for f, e in zip(found, ops.relaxed_grad(*flat, True, 2), strict=True):
        torch.testing.assert_close(f.flatten(0, 1), e)


def test_vmap_with_one_seed_for_all_is_a_loop() -> None:
    ops = OPERATORS
    x = torch.randn(2, ROWS, COLUMNS)
    found = torch.vmap(lambda x: ops.sample(x, DRAWS, torch.int64, *HOST_SEED, None), randomness="same")(x)
    for b in range(2):
        for f, e in zip(found, ops.sample(x[b], DRAWS, torch.int64, *HOST_SEED, None), strict=True):
            assert torch.equal(f[b], e)
    soft = torch.vmap(lambda x: ops.relaxed(x, torch.ones(ROWS), 1.0, 1, *HOST_SEED), randomness="same")(x)
    assert torch.equal(soft[1], ops.relaxed(x[1], torch.ones(ROWS), 1.0, 1, *HOST_SEED))


def test_vmap_over_seeds_is_a_loop_in_every_randomness() -> None:
    ops, x, seeds = OPERATORS, torch.randn(ROWS, COLUMNS), torch.tensor([3, 4])
    expected = torch.stack([ops.sample(x, 1, None, s, 0, 0, 0, None)[1] for s in seeds])
    assert not torch.equal(*expected)
    for randomness in ("error", "different"):
        found = torch.vmap(lambda s: ops.sample(x, 1, None, s, 0, 0, 0, None)[1], randomness=randomness)(seeds)
        assert torch.equal(found, expected)


def test_vmap_over_the_counters_of_philox_is_a_loop() -> None:
    seed, c0, draw = torch.tensor(5), torch.arange(3), torch.zeros(1, dtype=torch.int64)
    rows = torch.arange(4).view(2, 2, 1)
    found = torch.vmap(lambda row: OPERATORS.philox(seed, c0, row, draw), randomness="different")(rows)
    assert torch.equal(found, torch.stack([OPERATORS.philox(seed, c0, row, draw) for row in rows]))


def test_vmap_says_that_an_operator_is_random() -> None:
    x = torch.randn(3, ROWS, COLUMNS)
    with pytest.raises(RuntimeError, match="sample is random"):
        torch.vmap(lambda x: OPERATORS.sample(x, 1, None, *HOST_SEED, None))(x)


def test_vmap_of_no_draws() -> None:
    x = torch.randn(3, ROWS, COLUMNS)
    sample = OPERATORS.sample
    one_hot, index, logsumexp = torch.vmap(
        lambda x: sample(x, 0, torch.int64, *HOST_SEED, None), randomness="different"
    )(x)
    assert (one_hot.shape, index.shape, logsumexp.shape) == ((3, 0, ROWS, COLUMNS), (3, 0, ROWS), (3, 2, ROWS))
