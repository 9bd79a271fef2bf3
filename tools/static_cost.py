"""Count the instructions of each kernel in its machine code. No GPU is needed.

    python tools/static_cost.py [--arch sm_80 sm_90 sm_100] [--json]

Every kernel that reads whole rows is compiled with its launcher's own configuration and disassembled. The cost is the
number of instructions that a thread executes in one turn of the main loop, per element that it handles in that turn.
For a kernel without a loop over the row, it is all instructions per real element. That includes the padding of short
rows, and the work that a program does once.

Kernels that read only a part of the row have no line: log_prob of an index, and the joining of partial results of a
split row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

# Imported first, because it sets the environment that Triton reads at its import.
from ahead_of_time import BF16, BOOL, FEW, FP32, INT64, JOINT, LONG, SHORT, TARGETS, Launch, compiling

# isort: split
import torch
import triton

from onehot_triton.kernels import relaxed, soft_grad, softmax_grad, straight_through
from onehot_triton.kernels.noise import GROUP

CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
ARCHS = [name for name, target in TARGETS.items() if target.backend == "cuda"]
# An H200 issues 132 multiprocessors x 4 schedulers x 32 lanes x 1.98 GHz, while a copy moves 4.3 TB/s. The prediction
# uses this ratio for every architecture.
INSTRUCTIONS_PER_BYTE = 7.8
# The most instructions per element in the main loop over a long row.
LIMITS = {
    "sample": 12,
    "sample_index": 12,
    "log_prob": 14,
    "entropy": 20,
    "softmax_grad": 20,
    "relaxed": 45,
    "relaxed_grad": 60,
    # For each sample.
    "relaxed_samples": 60,
    "reinmax_grad": 26,
    # At a temperature other than 1, q differs from p, which takes a second exponential and a third sum over the row.
    # docs/performance.md says why the kernel does not get by with 26.
    "reinmax_grad_temperatures": 33,
    "gapped_grad": 26,
    "soft_grad": 20,
    "log_prob_and_entropy": 20,
    "log_prob_and_entropy_grad": 22,
    # More than log_prob_and_entropy_grad by a second operand and its reduction.
    "rsample_log_prob_and_entropy_grad": 28,
}
LIMIT_FROM = 4096
# The kernel that joins partial results, and reads no row.
PARTIAL = ("_select_kernel",)
# Kernels that reduce two operands and write no row. Names would not do: other modules have kernels of the same names.
SUMS_OF_TWO = (
    relaxed._grad_sums_kernel, softmax_grad._dot_kernel, soft_grad._soft_dot_kernel, straight_through._sums_kernel,
)  # fmt: skip
# Allowance, in tiles, for loads of a loop that are not of the row, such as the winner of a draw: a loop that loads 1.5
# tiles has one turn.
SCALARS = 0.1


# Machine code ---------------------------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    address: int
    predicated: bool
    opcode: str
    text: str


class Loop(NamedTuple):
    instructions: list[Instruction]

    @property
    def loads(self) -> list[Instruction]:
        return [i for i in self.instructions if i.opcode.startswith(("LDG", "LDGSTS"))]


def parse(listing: str) -> list[Instruction]:
    """Parse a `cuobjdump -sass` listing up to the last exit. Subroutines and padding follow it."""
    found = []
    for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", listing):
        predicate, opcode = re.fullmatch(r"(@!?U?P\d+\s+)?(\S+).*", text.strip(), re.DOTALL).groups()  # pyright: ignore
        found.append(Instruction(int(address, 16), predicate is not None, opcode, text.strip()))
    exits = [at for at, instruction in enumerate(found) if instruction.opcode.startswith("EXIT")]
    return found[: exits[-1] + 1]


def innermost_loops(instructions: list[Instruction]) -> list[Loop]:
    """Return the loops that hold no other loop. A loop lies between a backward branch and its target."""
    ends: dict[int, int] = {}
    for instruction in instructions:
        target = re.search(r"\b0x([0-9a-f]+)", instruction.text) if instruction.opcode.startswith("BRA") else None
        if target and int(target[1], 16) < instruction.address:
            ends[int(target[1], 16)] = instruction.address
    spans = list(ends.items())
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [Loop([i for i in instructions if start <= i.address <= end]) for start, end in inner]


def bits(instruction: Instruction) -> int:
    """Return the bits that one thread moves with a load or store."""
    width = re.search(r"\.(128|64|[US]?16|[US]?8)\b", instruction.opcode)
    return int(width[1].lstrip("US")) if width else 32


def main_width(instructions: Iterable[Instruction]) -> int:
    """Return the width in bits that moves most of the data, or 0 if nothing is moved."""
    moved: dict[int, int] = {}
    for instruction in instructions:
        moved[bits(instruction)] = moved.get(bits(instruction), 0) + bits(instruction)
    return max(moved, key=lambda width: moved[width], default=0)


def is_masked(loop: Loop) -> bool:
    width = main_width(loop.loads)
    return any(load.predicated for load in loop.loads if bits(load) == width)


class Cost(NamedTuple):
    """The cost of a kernel.

    Attributes:
        main: instructions per element in the costliest loop over the row. A kernel without one counts as a whole.
        total: instructions per element in all loops over the row. A row that is walked twice costs twice.
        load_bits: the width that loads most of the main loop's data.
        store_bits: the width that stores most of the data.
        barriers: barriers of all threads in one turn of each loop over the row. A kernel without one counts as a whole.
    """

    main: float
    total: float
    load_bits: int
    store_bits: int
    barriers: int


def cost(listing: str, tile: float, elements: float, loaded_bits: float) -> Cost:
    """Return the cost of the kernel in `listing`.

    Args:
        tile: elements that a thread handles in one turn of a loop over the row.
        elements: real elements that a thread handles in a kernel that holds its rows in registers.
        loaded_bits: bits per element that one turn of a loop loads. They tell by how much the assembler unrolled it.

    Raises:
        ValueError: a loop without a mask, which can only be over the row, loads fewer bits than that. The kernel would
            be taken for one without a loop.
    """
    instructions = parse(listing)
    counts: list[tuple[float, Loop]] = []
    for loop in innermost_loops(instructions):
        # A loop that loads less than a tile walks over something else. A main loop over the row loads without a mask.
        turns = round(sum(map(bits, loop.loads)) / (tile * loaded_bits) - SCALARS)
        if turns and not is_masked(loop):
            counts.append((len(loop.instructions) / (tile * turns), loop))
    if not counts and any(loop.loads and not is_masked(loop) for loop in innermost_loops(instructions)):
        raise ValueError(f"no loop of those without a mask loads {loaded_bits} bits of each of {tile} elements")
    whole = len(instructions) / elements
    main, loop = max(counts, key=lambda count: count[0], default=(whole, Loop(instructions)))
    walked = [i for _, one in counts for i in one.instructions] if counts else instructions
    return Cost(
        main,
        sum(count for count, _ in counts) if counts else whole,
        main_width(loop.loads),
        main_width(i for i in walked if i.opcode.startswith("STG")),
        sum(i.opcode.startswith("BAR.SYNC") for i in walked),
    )


def disassemble(cubin: bytes) -> tuple[str, int, int]:
    """Return the listing, the registers per thread, and the bytes of local memory that it spills to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def run(option: str) -> str:
            return subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout

        listing, usage = run("-sass"), dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", run("-res-usage")))
    # A subroutine may need a stack although nothing spills.
    spills = re.search(r"\b(LDL|STL)\b", listing) is not None
    return listing, int(usage["REG"]), (int(usage["STACK"]) + int(usage["LOCAL"])) if spills else 0


# The table ------------------------------------------------------------------------------------------------------------


class Traffic(NamedTuple):
    """Bytes per element that a kernel moves at least, each operand once, and that one turn of a loop loads."""

    least: int
    loop: int


def traffic(launch: Launch, function: Any) -> Traffic:
    x = launch.dtype.itemsize
    hot = 0 if launch.out_dtype is None else launch.out_dtype.itemsize
    if function in SUMS_OF_TWO:
        return Traffic(2 * x, 2 * x)
    if function == relaxed._relaxed_sums_kernel:
        return Traffic(x, x)
    return {
        "sample": Traffic(x + hot, x),
        "sample_index": Traffic(x, x),
        "log_prob": Traffic(x + hot, x + hot),
        "entropy": Traffic(x, x),
        "softmax_grad": Traffic(3 * x, 2 * x),
        "relaxed": Traffic(2 * x, x),
        "relaxed_grad": Traffic(3 * x, 2 * x),
        # A turn of the loop is a sample, whose logits are in registers.
        "relaxed_samples": Traffic(3 * x, x),
        "reinmax_grad": Traffic(3 * x, 2 * x),
        "reinmax_grad_temperatures": Traffic(3 * x, 2 * x),
        "gapped_grad": Traffic(3 * x, 2 * x),
        "soft_grad": Traffic(3 * x, 2 * x),
        "log_prob_and_entropy": Traffic(x, x),
        "log_prob_and_entropy_grad": Traffic(2 * x, x),
        "rsample_log_prob_and_entropy_grad": Traffic(3 * x, 2 * x),
    }[launch.operation]


def tile_of(kernel: Any, columns: int) -> tuple[int, float]:
    """Return the elements of a program in one turn of a loop, and how many of them are real if the row fits a tile."""
    names = kernel.src.fn.arg_names
    constants = {names[path[0]]: value for path, value in kernel.src.constants.items()}
    width = math.prod(constants.get(name, 1) for name in ("DEPTH", "LANES", "VECTOR"))
    # The tile is TILE groups. A call gives noise for two halves of a group, or for four quarters.
    width *= GROUP * constants.get("TILE", 0) or 1
    width *= 2 if kernel.name == "_short_kernel" else 4 if kernel.src.fn.__module__.endswith(".relaxed") else 1
    rows = constants.get("ROWS", 1)
    return rows * width, rows * min(width, columns)


def out_dtype(launch: Launch) -> torch.dtype:
    """Return the dtype of the result, or for log_prob that of the one-hot that is read."""
    if launch.out_dtype is not None:
        return launch.out_dtype
    return {"sample_index": INT64, "entropy": FP32, "log_prob_and_entropy": FP32}.get(launch.operation, launch.dtype)


def entry(launch: Launch, kernel: Any, arch: str) -> dict[str, Any]:
    listing, registers, spilled = disassemble(kernel.asm["cubin"])
    threads = 32 * kernel.metadata.num_warps
    tile, elements = tile_of(kernel, launch.columns)
    least, loop = traffic(launch, kernel.src.fn)
    found = cost(listing, tile / threads, elements / threads, 8 * loop)
    ratio = found.total / (least * INSTRUCTIONS_PER_BYTE)
    return {
        "operation": launch.operation,
        "kernel": kernel.name,
        "arch": arch,
        "triton": triton.__version__,
        "dtype": str(launch.dtype).removeprefix("torch."),
        "out_dtype": str(out_dtype(launch)).removeprefix("torch."),
        "rows": launch.rows,
        "columns": launch.columns,
        "tile": tile,
        "instructions_per_element": round(found.main, 2),
        "registers": registers,
        "spill_bytes": spilled,
        "load_bits": found.load_bits,
        "store_bits": found.store_bits,
        "barriers": found.barriers,
        "bytes_per_element": least,
        "predicted_limit": "issue" if ratio > 1 else "memory",
        "issue_over_memory": round(ratio, 3),
    }


def launches() -> list[Launch]:
    many = []
    for dtype in (BF16, FP32):
        for shape in ((65536, 6), (65536, 18), SHORT, (1024, 4096), LONG, FEW, (1, 262144)):
            hot = (INT64, BOOL, dtype) if shape in (SHORT, LONG) else (INT64,)
            many += [Launch(name, *shape, dtype, kind) for name in ("sample", "log_prob") for kind in hot]
            names = ("sample_index", "entropy", "softmax_grad", "relaxed", "relaxed_grad", "relaxed_samples",
                     "soft_grad", "reinmax_grad", "reinmax_grad_temperatures", "gapped_grad", *JOINT)  # fmt: skip
            many += [Launch(name, *shape, dtype) for name in names]
    return many


def entries(launch: Launch, arch: str) -> list[dict[str, Any]]:
    """Return an entry per kernel of a launch that reads the row."""
    with compiling(TARGETS[arch]) as kernels:
        launch.run()
    # The kernel of a split row is launched twice.
    once = {id(kernel): kernel for kernel in kernels}.values()
    return [entry(launch, kernel, arch) for kernel in once if kernel.name not in PARTIAL]


def table_of(arch: str) -> list[dict[str, Any]]:
    return [entry for launch in launches() for entry in entries(launch, arch)]


def limit(entry: dict[str, Any]) -> float:
    """Return the most instructions per element that an entry may have, inf for short rows."""
    if entry["columns"] < LIMIT_FROM:
        return math.inf
    return LIMITS[entry["operation"]]


def over_limit(entry: dict[str, Any]) -> bool:
    return entry["instructions_per_element"] > limit(entry)


def show(entries: list[dict[str, Any]]) -> None:
    names = ("operation", "kernel", "arch", "dtype", "out", "rows x columns", "instr", "regs", "spill", "ld", "st")
    form = "{:13} {:27} {:7} {:9} {:9} {:>14} {:>6} {:>5} {:>5} {:>4} {:>4} {:>5}  {}"
    print(f"triton {triton.__version__}")
    print(form.format(*names, "bytes", "predicted limit (issue / memory)"))
    for e in entries:
        shape = f"{e['rows']} x {e['columns']}"
        predicted = f"{e['predicted_limit']:6} ({e['issue_over_memory']:.2f})"
        values = (e["operation"], e["kernel"], e["arch"], e["dtype"], e["out_dtype"], shape)
        over = f"  over {limit(e)}" if over_limit(e) else ""
        numbers = [e[name] for name in ("registers", "spill_bytes", "load_bits", "store_bits", "bytes_per_element")]
        print(form.format(*values, f"{e['instructions_per_element']:.1f}", *numbers, predicted + over))


def main() -> int:
    parser = argparse.ArgumentParser(
        description="count the instructions per element of every kernel in its machine code"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects in place of the table")
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=ARCHS)
    args = parser.parse_args()
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        entries = [entry for entries in pool.map(table_of, args.arch) for entry in entries]
    if args.json:
        json.dump(entries, sys.stdout, indent=1)
        print()
    else:
        show(entries)
    over = [e for e in entries if over_limit(e)]
    for e in over:
        what = f"{e['operation']}, {e['arch']}, {e['rows']} x {e['columns']} {e['dtype']}"
        number = e["instructions_per_element"]
        print(f"{what}: expected at most {limit(e)} instructions per element, found {number}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
