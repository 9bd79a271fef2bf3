"""Make tables and pictures from the committed raw results. Equal results give equal pages.

    python benchmarks/report.py            # writes them
    python benchmarks/report.py --check    # exits with status 1 if a committed page differs from what the results give

| from | comes |
|---|---|
| the newest results/<device>/<date>.json of each device | results/<device>/README.md, docs/pictures/, README's table |
| results/static_cost.json, of `make static-cost` | the predictions of docs/scaling.md |
| results/sharded.json, of bench_sharded.py | the table of sharded logits in docs/scaling.md |

In README.md and docs/ the report writes between the markers `<!-- report: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import RESULTS, quartiles
from operations import OPERATIONS
from providers import OPERATORS, OURS
from questions import QUESTIONS

ROOT = RESULTS.parents[1]
PICTURES = ROOT / "docs" / "pictures"
THEIRS = "torchrl"
# The cases of README's speed table: question, operation, rows, columns, dtype.
SPEED = {
    "cpu": [
        ("operations", "sample", 64, 6, "float32"),
        ("operations", "sample", 1024, 32, "float32"),
        ("operations", "sample", 64, 4096, "float32"),
        ("operations", "sample", 16, 131072, "float32"),
        ("operations", "train_step", 64, 6, "float32"),
        ("operations", "train_step", 16, 131072, "float32"),
        ("operations", "joint_step", 16, 131072, "float32"),
        ("world_model", "relaxed", 32768, 32, "float32"),
        ("decode", "decode", 1, 151936, "bfloat16"),
    ],
    "gpu": [
        ("rl", "sample", 64, 6, "float32"),
        ("rl", "train_step", 65536, 18, "float32"),
        ("world_model", "relaxed", 32768, 32, "bfloat16"),
        ("language_model", "sample_index", 8, 151936, "bfloat16"),
        ("language_model", "sample_index", 1024, 128256, "bfloat16"),
        ("language_model", "sample", 1024, 128256, "bfloat16"),
        ("operations", "train_step", 1024, 128256, "bfloat16"),
        ("decode", "decode", 1, 151936, "bfloat16"),
    ],
}
MARKED = re.compile(r"(<!-- report: ([\w ]+) -->)\n.*?(<!-- end -->)", re.DOTALL)
PREDICTED = ("65536 x 18", "32768 x 32", "1024 x 128256", "8 x 151936", "1 x 262144")
# For predictions: bytes that a GPU moves per second, and thread instructions that it issues. See docs/scaling.md.
GPUS = {"H200": (4.3e12, 33.5e12), "H100": (3.0e12, 33.5e12)}
# NCCL's own model of an all-gather in a ring, by protocol: microseconds of a call, of a step within a node and of one
# between nodes; GB/s that a GPU receives if all GPUs are in one node, and if they are not.
RING = {"LL": (6.6, 0.6, 2.7, 141, 20.4), "LL128": (14.0, 1.9, 4.0, 340, 340), "Simple": (8.4, 3.4, 14.0, 370, 370)}
# Least microseconds of a step if the ring crosses a network.
POST = {"LL": 1.0, "LL128": 1.0, "Simple": 3.0}
NODE = 8


class Result:
    """One raw file of results."""

    def __init__(self, path: Path) -> None:
        self.name = path.parent.name
        self.raw = json.loads(path.read_text())
        self.kind = "cpu" if self.name == "cpu" else "gpu"
        self.cases: list[dict[str, Any]] = self.raw["cases"]
        self.copy: float = self.raw["copy_bytes_per_second"]

    def of(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the cases that have these values."""
        return [case for case in self.cases if all(case[key] == value for key, value in wanted.items())]


def newest() -> list[Result]:
    """Return the last result of each device, GPUs first."""
    folders = [path for path in RESULTS.glob("*/") if list(path.glob("*.json"))]
    folders.sort(key=lambda path: (path.name == "cpu", path.name))
    return [Result(max(path.glob("*.json"))) for path in folders]


# Numbers --------------------------------------------------------------------------------------------------------------


def median(case: dict[str, Any], provider: str) -> float | None:
    seconds = case["providers"].get(provider, {}).get("seconds")
    return quartiles(seconds)[1] if seconds else None


def digits(value: float) -> str:
    """Return three significant digits, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def mebibytes(size: int) -> str:
    return "0" if size < 1024 else digits(size / 2**20)


def ratio(case: dict[str, Any], provider: str) -> str:
    """Return the provider's time over ours, or why it has none."""
    record = case["providers"].get(provider)
    if record is None:
        return ""
    if "seconds" not in record:
        return "wrong" if "wrong" in record else "cannot"
    ours, theirs = median(case, OURS), median(case, provider)
    return "" if ours is None or theirs is None else f"{theirs / ours:.2g}" if theirs < 99.5 * ours else "99+"


def shape(case: dict[str, Any]) -> str:
    return f"{case['rows']} x {case['columns']}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# The page of a device -------------------------------------------------------------------------------------------------


def about(result: Result) -> str:
    info = result.raw["environment"]
    name = info.get("gpu") or f"{info['cpu']}, {result.raw['threads']} threads"
    packages = ", ".join(f"{k} {v}" for k, v in info["packages"].items() if v != "not installed")
    text = f"{name}, {info['date'][:10]}; Python {info['python']}, {packages}."
    if result.kind == "cpu":
        # The load was measured before anything was timed, so it is that of other programs.
        speedup, load = quartiles(result.raw["parallel_speedup"])[0], info["load"]
        if speedup < 0.75 * result.raw["threads"] or load > 1:
            text += (
                f" **Busy**: load {load:.1f} before the start, two threads {speedup:.1f} times as fast as one: these "
            )
            text += "times say little."
    return text


def names_of(cases: list[dict[str, Any]]) -> list[str]:
    """Return the providers of some cases, ours first."""
    found = dict.fromkeys(name for case in cases for name in case["providers"])
    return sorted(found, key=lambda name: name != OURS)


def time_table(result: Result, cases: list[dict[str, Any]]) -> str:
    others = names_of(cases)[1:]
    rows = []
    for case in cases:
        low, middle, high = quartiles(case["providers"][OURS]["seconds"])
        rows.append([
            OPERATIONS[case["operation"]].says, shape(case), case["dtype"], duration(middle),
            f"{duration(low)} .. {duration(high)}", digits(case["floor_bytes"] / middle / 1e9),
            f"{case['floor_bytes'] / middle / result.copy:.1%}", *(ratio(case, name) for name in others),
        ])  # fmt: skip
    head = ["operation", "rows x columns", "dtype", "ours", "quartiles", "GB/s", "of copy"]
    return table([*head, *(f"{name}, times ours" for name in others)], rows)


def memory_table(cases: list[dict[str, Any]]) -> str:
    names = names_of(cases)
    rows = []
    for case in cases:
        peaks = [case["providers"].get(name, {}).get("peak_bytes") for name in names]
        if max(peak or 0 for peak in peaks) >= 2**20:
            cells = ["" if peak is None else mebibytes(peak) for peak in peaks]
            rows.append([OPERATIONS[case["operation"]].says, shape(case), case["dtype"], *cells])
    return table(["operation", "rows x columns", "dtype", *names], rows) if rows else ""


def launch_table(cases: list[dict[str, Any]]) -> str:
    """Return the table of launches, or an empty string if none were counted."""
    names = names_of(cases)
    rows = [
        [OPERATIONS[case["operation"]].says, shape(case), case["dtype"]]
        + [str(case["providers"].get(name, {}).get("launches") or "") for name in names]
        for case in cases
        if any(record.get("launches") for record in case["providers"].values())
    ]
    return table(["operation", "rows x columns", "dtype", *names], rows) if rows else ""


def operator_table(result: Result) -> str:
    rows = []
    for one in result.raw["operators"]:
        low, middle, high = quartiles(one["seconds"])
        rows.append([
            one["operation"], shape(one), one["dtype"], duration(middle), f"{duration(low)} .. {duration(high)}",
            digits(one["floor_bytes"] / middle / 1e9), f"{one['floor_bytes'] / middle / result.copy:.1%}",
        ])  # fmt: skip
    return table(["operator", "rows x columns", "dtype", "time", "quartiles", "GB/s", "of copy"], rows)


def page(result: Result) -> str:
    """Return the text of results/<device>/README.md."""
    parts = [
        f"# Results: {result.raw['environment'].get('gpu', 'CPU')}",
        "Made by `benchmarks/report.py` from the raw times beside this page; [how to read it](../../README.md).",
        about(result),
        f"A copy moves {result.copy / 1e9:,.1f} GB/s (read and written), measured in the same run.",
    ]
    for name, why in result.raw["missing"].items():
        parts.append(f"Not timed: {name}, {why}.")
    refused = {
        f"{name}: {OPERATIONS[case['operation']].says}, {case['dtype']}": record[key]
        for case in result.cases
        for name, record in case["providers"].items()
        for key in ("wrong", "cannot")
        if key in record
    }
    if refused:
        parts.append("Not timed, because the result is wrong or the call fails:")
        parts.append("\n".join(f"- {name}: {why}" for name, why in refused.items()))
    parts += [f"![{name}](../../../docs/pictures/{name}.png)" for name in pictures([result])]
    if "operators" in result.raw:
        parts += ["## The operators, without Python", operator_table(result)]
    for name, question in QUESTIONS.items():
        cases = result.of(question=name)
        if cases:
            parts += [f"## {question.asks}", time_table(result, cases)]
            memory, launched = memory_table(cases), launch_table(cases)
            parts += ["Peak memory beside inputs and results, MiB:", memory] if memory else []
            parts += ["Kernels, copies and fills of a call:", launched] if launched else []
    return "\n\n".join(parts) + "\n"


# Text between the markers ---------------------------------------------------------------------------------------------


def speed(results: list[Result]) -> str:
    """Return README's table: our time, and the slowdown of the others."""
    result = results[0]
    rows = []
    cases = [
        case
        for question, operation, n, columns, dtype in SPEED[result.kind]
        for case in result.of(question=question, operation=operation, rows=n, columns=columns, dtype=dtype)
    ]
    others = names_of(cases)[1:]
    for case in cases:
        what = f"{OPERATIONS[case['operation']].says}, {shape(case)}, {case['dtype']}"
        ours = median(case, OURS)
        rows.append([what, "" if ours is None else duration(ours), *(ratio(case, name) for name in others)])
    head = ["", "onehot_triton", *(f"{name}" for name in others)]
    return f"{about(result)}\n\n{table(head, rows)}"


def picture(results: list[Result]) -> str:
    return f"![Speed against TorchRL over the number of categories](docs/pictures/{results[0].name}-speed.png)"


def growth(result: Result, question: str, operation: str, by: str) -> str:
    """Return our time and TorchRL's by columns or rows. The time per element shows where the cost becomes linear."""
    rows = []
    for case in result.of(question=question, operation=operation):
        ours, theirs = median(case, OURS), median(case, THEIRS)
        elements = case["rows"] * case["columns"]
        peaks = [case["providers"].get(name, {}).get("peak_bytes", 0) for name in (OURS, THEIRS)]
        if ours is not None and theirs is not None:
            rows.append([
                f"{case[by]:,}", duration(ours), f"{digits(1e9 * ours / elements)} ns", duration(theirs),
                f"{digits(1e9 * theirs / elements)} ns", *map(mebibytes, peaks),
            ])  # fmt: skip
    head = [by, "ours", "per element", "TorchRL", "per element", "memory, MiB: ours", "TorchRL"]
    return table(head, rows)


def policy_gradient(result: Result) -> str:
    """Return time and memory of every provider at the tokens of a language model."""
    rows = []
    for case in result.of(question="rlhf"):
        for name in names_of([case]):
            seconds = median(case, name)
            if seconds is not None:
                peak = mebibytes(case["providers"][name]["peak_bytes"])
                rows.append([f"{shape(case)}, {case['dtype']}", name, duration(seconds), ratio(case, name), peak])
    return table(["tokens x vocabulary", "", "time", "times ours", "memory beside inputs and results, MiB"], rows)


def limits(results: list[Result]) -> str:
    rows = []
    for result in results:
        for case in result.of(question="limits"):
            seconds = median(case, OURS)
            if seconds is not None:
                rows.append([
                    result.raw["environment"].get("gpu", "CPU"), OPERATIONS[case["operation"]].says, shape(case),
                    case["dtype"], duration(seconds), mebibytes(case["providers"][OURS]["peak_bytes"]),
                ])  # fmt: skip
    return table(
        ["device", "operation", "rows x columns", "dtype", "ours", "memory beside inputs and results, MiB"], rows
    )


def predicted(kernels: list[dict[str, Any]]) -> str:
    """Return an operation's predicted time on each GPU, by the formula in docs/scaling.md.

    It is the sum over the kernels of the operation. A * marks that a kernel is limited by its instructions.
    """
    cells = []
    for bandwidth, issue in GPUS.values():
        seconds, limited = 0.0, ""
        for one in kernels:
            size = one["rows"] * one["columns"] * one["bytes_per_element"]
            # issue_over_memory is the instructions per byte, over the 7.8 that the GPU can issue.
            instructions = one["issue_over_memory"] * 7.8 * size
            seconds += max(size / bandwidth, instructions / issue)
            limited = "*" if instructions / issue > size / bandwidth else limited
        cells.append(duration(seconds) + limited)
    return " / ".join(cells)


def predictions() -> str:
    """Return the predictions from the static cost: a line per operation, a column per shape."""
    path = RESULTS / "static_cost.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    kernels: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = {}
    for entry in entries:
        if entry["arch"] == "sm_90":
            line = kernels.setdefault(tuple(entry[key] for key in ("operation", "dtype", "out_dtype")), {})
            line.setdefault(shape(entry), []).append(entry)
    rows = [[*line, *(predicted(many[s]) if s in many else "" for s in PREDICTED)] for line, many in kernels.items()]
    return table(["operation", "logits", "written, or value read", *PREDICTED], rows)


def sharded() -> str:
    """Return the bytes and times of drawing from sharded logits."""
    path = RESULTS / "sharded.json"
    raw = json.loads(path.read_text()) if path.exists() else {"environment": {}, "cases": []}
    rows, info = [], raw["environment"]
    names = names_of(raw["cases"])
    for case in raw["cases"]:
        records = [case["providers"][name] for name in names]
        sizes = [record["bytes"] // case["rows"] for record in records[:2]]
        times = [duration(quartiles(record["seconds"])[1]) for record in records]
        rows.append([str(case["ranks"]), f"{shape(case)}, {case['dtype']}", *(f"{size:,}" for size in sizes), *times])
    head = ["ranks", "rows x columns", "bytes per row: ours", "full_tensor", *(f"time: {name}" for name in names)]
    if not info:
        return table(head, rows)
    where = f"{info['cpu']}, {info['cores']} cores, {info['date'][:10]}; torch {info['packages']['torch']}."
    busy = f" **Busy**: load {info['load']:.1f} before the start." if info["load"] > 1 else ""
    return f"{where}{busy}\n\n{table(head, rows)}"


def all_gather(sent: float, nodes: int) -> float:
    """Predict the seconds of an all-gather in which each GPU sends `sent` bytes, by the fastest protocol."""
    between, steps = nodes - 1, NODE * nodes - 1
    times = []
    for protocol, (call, inside, across, bandwidth, bandwidth_of_many) in RING.items():
        inside = inside if nodes == 1 else max(inside, POST[protocol])
        latency = call + (steps - between) * inside + between * across
        times.append(1e-6 * latency + steps * sent / (1e9 * (bandwidth if nodes == 1 else bandwidth_of_many)))
    return min(times)


def gathers() -> str:
    """Predict the times of a draw's collective: of gathering the logits, and of ours."""
    rows = []
    for nodes, wires in ((1, "NVLink"), (8, "NVLink in nodes of 8, InfiniBand between them")):
        ranks = NODE * nodes
        for n in (1, 8, 64, 512):
            all_of_them, ours = (all_gather(n * size, nodes) for size in (2 * 151936 / ranks, 20))
            rows.append(
                [f"{ranks}, {wires}", str(n), duration(all_of_them), duration(ours), f"{all_of_them / ours:.2g}"]
            )
    return table(["GPUs", "rows", "all-gather of the logits", "of the winners", "times ours"], rows)


def blocks(results: list[Result]) -> dict[Path, dict[str, str]]:
    """Return the text between the markers of each document, by the name of the marker."""
    cpu = [result for result in results if result.kind == "cpu"]
    found: dict[Path, dict[str, str]] = {ROOT / "README.md": {"picture": picture(results), "speed": speed(results)}}
    scaling = {"limits": limits(results), "predictions": predictions(), "sharded": sharded(), "gathers": gathers()}
    for result in cpu:
        for operation in ("sample", "train_step"):
            scaling[f"columns {operation}"] = growth(result, "columns", operation, "columns")
            scaling[f"rows {operation}"] = growth(result, "rows", operation, "rows")
        scaling["device"] = about(result)
        found[ROOT / "docs" / "language-models.md"] = {"policy gradient": policy_gradient(result)}
    return found | {ROOT / "docs" / "scaling.md": scaling}


def filled(text: str, made: dict[str, str]) -> str:
    """Return `text` with its marked parts replaced."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{made[match[2]]}\n{match[3]}"

    return MARKED.sub(fill, text)


def pages(results: list[Result]) -> dict[Path, str]:
    """Return the text of every page that holds figures."""
    made = {RESULTS / result.name / "README.md": page(result) for result in results}
    return made | {path: filled(path.read_text(), parts) for path, parts in blocks(results).items()}


# Pictures -------------------------------------------------------------------------------------------------------------

Draw = Callable[[Any], None]
"""Draws on a matplotlib figure."""
COLOURS = {
    OURS: "#d62728", THEIRS: "#1f77b4", "torch.distributions": "#2ca02c", "F.gumbel_softmax": "#9467bd",
    "exponential race": "#8c564b", "log_softmax + gather": "#bcbd22", "naive Triton": "#7f7f7f",
    "flashinfer": "#e377c2", OPERATORS: "#ff7f0e",
}  # fmt: skip


def lines(
    result: Result, question: str, operation: str, by: str, value: Callable[[dict[str, Any], str], float | None]
) -> Iterator[tuple[str, list[float], list[float]]]:
    cases = result.of(question=question, operation=operation)
    for name in names_of(cases):
        points = [(case[by], y) for case in cases if (y := value(case, name)) is not None]
        yield name, [x for x, _ in points], [y for _, y in points]


def panels(figure: Any, result: Result, question: str, by: str, operations: list[str], value: Any, label: str) -> list:
    """Draw a panel per operation with a line per provider."""
    axes = figure.subplots(1, len(operations), squeeze=False)[0]
    for at, operation in zip(axes, operations, strict=True):
        for name, x, y in lines(result, question, operation, by, value):
            ours = name == OURS
            at.plot(
                x, y, label=name, color=COLOURS.get(name), linewidth=2.5 if ours else 1.5, marker="o", markersize=3.5,
                zorder=3 if ours else 2,
            )  # fmt: skip
        at.set(title=textwrap.fill(OPERATIONS[operation].says, 24), xlabel=by, xscale="log")
        at.grid(alpha=0.3)
    axes[0].set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small", frameon=False)
    return list(axes)


def against_torchrl(case: dict[str, Any], name: str) -> float | None:
    mine, theirs = median(case, name), median(case, THEIRS)
    return theirs / mine if mine and theirs else None


def draw_speed(result: Result) -> Draw:
    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        label = "times TorchRL's speed"
        for at in panels(figure, result, "columns", "columns", ["sample", "train_step"], against_torchrl, label):
            at.set(yscale="log")
            at.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            at.yaxis.set_major_formatter("{x:g}")
            at.yaxis.set_minor_formatter(NullFormatter())
        rows = result.of(question="columns")[0]["rows"]
        where = result.raw["environment"].get("gpu", "CPU, 2 threads")
        figure.suptitle(f"Speed over the number of categories, {rows} rows, {where}")

    return draw


def draw_growth(result: Result, question: str, operations: list[str]) -> Draw:
    def draw(figure: Any) -> None:
        for at in panels(figure, result, question, question, operations, median, "seconds"):
            at.set(yscale="log")

    return draw


def draw_memory(result: Result) -> Draw:
    def times_logits(case: dict[str, Any], name: str) -> float | None:
        peak = case["providers"].get(name, {}).get("peak_bytes")
        size = case["rows"] * case["columns"] * (2 if "16" in case["dtype"] else 4)
        # In a smaller batch the few bytes that every call needs would be many times the logits.
        return None if peak is None or case["columns"] < 1024 else peak / size

    def draw(figure: Any) -> None:
        label = "peak memory beside inputs and results,\nin sizes of the logits"
        operations = ["sample", "sample_index", "train_step"]
        for at in panels(figure, result, "columns", "columns", operations, times_logits, label):
            at.set_ylim(bottom=0)

    return draw


def draw_policy_gradient(result: Result) -> Draw:
    """Draw time and memory at the first shape, which is the largest."""
    case = result.of(question="rlhf")[0]
    names = [name for name in names_of([case]) if median(case, name) is not None][::-1]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        colours = ["#d62728" if name == OURS else "#7f7f7f" for name in names]
        left.barh(names, [1e3 * (median(case, name) or 0) for name in names], color=colours)
        right.barh(names, [case["providers"][name]["peak_bytes"] / 2**20 for name in names], color=colours)
        left.set(xlabel="ms")
        right.set(xlabel="peak memory beside inputs and results, MiB")
        what = OPERATIONS[case["operation"]].says
        figure.suptitle(f"{what}: {shape(case)}, {case['dtype']}")

    return draw


def draw_roof(result: Result) -> Draw:
    def draw(figure: Any) -> None:
        at = figure.subplots()
        for operation in dict.fromkeys(one["operation"] for one in result.raw["operators"]):
            many = [one for one in result.raw["operators"] if one["operation"] == operation]
            speeds = [one["floor_bytes"] / quartiles(one["seconds"])[1] / 1e9 for one in many]
            at.scatter([one["floor_bytes"] for one in many], speeds, label=operation)
        at.axhline(result.copy / 1e9, color="black", linewidth=1, label="a copy")
        at.set(xlabel="least bytes that can be moved", ylabel="GB/s", xscale="log", yscale="log")
        at.legend(fontsize="small", frameon=False)
        at.grid(alpha=0.3)

    return draw


def pictures(results: list[Result]) -> dict[str, Draw]:
    """Return what draws each picture, by the name of the picture."""
    found: dict[str, Draw] = {}
    for result in results:
        found[f"{result.name}-speed"] = draw_speed(result)
        found[f"{result.name}-columns"] = draw_growth(result, "columns", ["sample", "sample_index", "train_step"])
        found[f"{result.name}-rows"] = draw_growth(result, "rows", ["sample", "train_step"])
        found[f"{result.name}-memory"] = draw_memory(result)
        if result.of(question="rlhf"):
            found[f"{result.name}-policy-gradient"] = draw_policy_gradient(result)
        if "operators" in result.raw:
            found[f"{result.name}-roof"] = draw_roof(result)
    return found


def save_pictures(results: list[Result]) -> None:
    from matplotlib.figure import Figure

    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, draw in pictures(results).items():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        draw(figure)
        figure.savefig(PICTURES / f"{name}.png", dpi=140, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description="make tables and pictures from the committed raw results")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if a page is out of date"
    )
    check = parser.parse_args().check
    results = newest()
    made = pages(results)
    if check:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(f"{path.relative_to(ROOT)}: differs from what the results give; run python benchmarks/report.py")
        return 1 if stale else 0
    for path, text in made.items():
        path.write_text(text)
    save_pictures(results)
    print(speed(results))
    print(f"\nwritten: {', '.join(str(path.relative_to(ROOT)) for path in made)}, {PICTURES.relative_to(ROOT)}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
