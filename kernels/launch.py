"""(rows, columns, dtype) -> tile, warps, programs a row. One table: a launch is a function of its shapes and of the
number of multiprocessors alone, so that nothing depends on what was timed before it, and ahead-of-time compilation
knows every configuration. Sums depend on it in their last digits; a sample does not."""

from collections.abc import Callable
from functools import cache, lru_cache, wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from .noise import GROUP

# Multiprocessors, and programs that fill them: with fewer, long rows are split. None: those that the GPU has, and two
# for each. Tests reach every way of a launch by small numbers.
MULTIPROCESSORS: int | None = None
FILL: int | None = None
# Where there is no GPU to ask: an H200's.
USUAL = 132
# Elements of a tile: 32 a thread for 4 warps, which are four 128-bit loads of bf16 in flight.
TILE = 4096
# The longest row that stays in registers from its load to its store: 32 elements a thread for 16 warps.
ONE_TILE = 16384


_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")


def on_its_device(
    launcher: Callable[Concatenate[Tensor, _Rest], _Result],
) -> Callable[Concatenate[Tensor, _Rest], _Result]:
    """`launcher`, run with the device of its first argument as the current one: that is where Triton launches, on the
    current stream of it, and torch gives an operator that is implemented in Python no guard."""

    @wraps(launcher)
    def guarded(tensor: Tensor, /, *args: _Rest.args, **kwargs: _Rest.kwargs) -> _Result:
        index = tensor.get_device()
        # -1 is a CPU, where kernels are interpreted.
        if index < 0 or index == torch.accelerator.current_device_index():
            return launcher(tensor, *args, **kwargs)
        with torch.accelerator.device_index(index):
            return launcher(tensor, *args, **kwargs)

    return guarded


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. Triton's own, which kernels can call too, takes a microsecond and a half."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


@cache
def _multiprocessors(kind: str, index: int) -> int:
    properties = torch.get_device_module(kind).get_device_properties(index)
    return properties.gpu_subslice_count if kind == "xpu" else properties.multi_processor_count


def multiprocessors(tensor: Tensor) -> int:
    """Of the GPU that the tensor is on: with fewer programs, some would have none."""
    if MULTIPROCESSORS is not None:
        return MULTIPROCESSORS
    index = tensor.get_device()
    return USUAL if index < 0 else _multiprocessors(tensor.device.type, index)


def fill(tensor: Tensor) -> int:
    """How many programs fill the GPU that the tensor is on. Where long rows are split there are twice as many at most,
    of 4 warps, so that up to 128 registers a thread cost no warp."""
    return 2 * multiprocessors(tensor) if FILL is None else FILL


class Tile(NamedTuple):
    """A tile [depth, rows, lanes, vector] for one program of `warps` warps.

    Attributes:
        one: a whole row is in it.
        parts: how many programs share a row that is not.
        part_lanes: in how many lanes a kernel reads what these left: as many for one number of columns, however many
            rows there are and so programs to a row, because another would be another kernel to compile.
    """

    depth: int
    rows: int
    lanes: int
    vector: int
    warps: int
    one: bool
    parts: int = 1
    part_lanes: int = 1

    @property
    def columns(self) -> int:
        return self.depth * self.lanes * self.vector

    @property
    def row_shape(self) -> dict[str, int]:
        return {"DEPTH": self.depth, "LANES": self.lanes, "VECTOR": self.vector}

    @property
    def shape(self) -> dict[str, int]:
        return {"ROWS": self.rows, **self.row_shape}


def options(warps: int) -> dict[str, int]:
    """Those of every launch. Products and sums are fused whatever Triton's default is, which from 3.10 on is that they
    are not: a third more instructions of noise, and other bits of it."""
    return {"num_warps": warps, "enable_fp_fusion": True}


def vector(tensor: Tensor) -> int:
    """Adjacent columns of a thread: one 128-bit load, or one element where rows do not start on 16 bytes. The test is
    the one by which Triton specialises a kernel: divisible by 16."""
    aligned = tensor.shape[-1] % 16 == 0 and all(stride % 16 == 0 for stride in tensor.stride()[:-1])
    return 16 // tensor.element_size() if aligned and tensor.data_ptr() % 16 == 0 else 1


def splits(logits: Tensor, rows: int, tiles: int) -> int:
    """How many programs share the tiles of a row: one for each, or as few as fill the GPU; each with as many tiles."""
    return _splits(fill(logits), rows, tiles)


def _splits(filling: int, rows: int, tiles: int) -> int:
    return cdiv(tiles, max(1, rows * tiles // filling))


def _short_tile(columns: int, width: int, elements: int, parts: int = 1) -> Tile:
    """Rows that share a program of 4 warps, as many as fill `elements`, however many there are: another number of rows
    is not another kernel to compile. For noise, the tile is one of `parts` of a row."""
    part = max(1, next_power_of_2(columns) // parts)
    width = min(width, part)
    many = max(1, elements // (parts * part))
    # The fewer lanes a row has, the fewer shuffles join them: eight elements each, or all the threads there are. Of
    # 18 columns, an entropy costs 41 instructions an element in four lanes, and 218 in 32. With one lane of width 1,
    # the depth would be what is contiguous, and be dealt out to threads.
    lanes = min(part // width, max(1 if width > 1 else 2, min(32, parts * part // 8), 128 // many))
    return Tile(part // (lanes * width), many, lanes, width, max(1, min(4, many * lanes // 32)), True)


def row_tile(block: int, width: int, warps: int, parts: int = 0, tiles: int = 1) -> Tile:
    """One row of `tiles` tiles, a lane for each thread; no parts where it is in the one tile whole."""
    depth, lanes = block // (32 * warps * width), 32 * warps
    return Tile(depth, 1, lanes, width, warps, parts == 0, max(1, parts), next_power_of_2(tiles))


def tile(logits: Tensor, *others: Tensor, draws: int = 1, twice: bool = False) -> Tile:
    """For kernels without noise, that read `logits` and as many elements of each of `others`, for each draw; `twice`
    where a long row is."""
    # Half a tile where an element takes more than one register until it is added up: no more than 64 a thread.
    elements = TILE if not others and logits.element_size() <= 4 else TILE // 2
    sizes = TILE // 2, elements, ONE_TILE * elements // TILE, fill(logits)
    return _tile(*logits.shape, vector(logits), *sizes, draws, twice)


# Looked up: to work it out anew took a tenth of the time of a host, from a member of a distribution to the launch.
@lru_cache(4096)
def _tile(
    rows: int, columns: int, width: int, short: int, elements: int, longest: int, filling: int, draws: int, twice: bool
) -> Tile:
    block = next_power_of_2(columns)
    if block <= elements:
        return _short_tile(columns, width, short)
    # A row in registers is read once.
    if block <= longest:
        return row_tile(block, width, 4 * block // elements)
    tiles = cdiv(columns, elements)
    parts = _splits(filling, draws * rows, tiles)
    # Of rows that are walked twice as few as possible at once, one for each multiprocessor, by as many threads as keep
    # 32 KB of loads in flight there: the second walk is to find its row in the L2.
    more = 4 if twice and parts == 1 else 1
    return row_tile(more * elements, width, more * 4, parts, tiles)


def noise_tile(logits: Tensor, parts: int, draws: int = 1) -> Tile:
    """For kernels whose Philox call serves `parts` elements of a group: the tile of one part of each group."""
    sizes = TILE, ONE_TILE, multiprocessors(logits), fill(logits)
    return _noise_tile(*logits.shape, vector(logits), *sizes, parts, draws)


@lru_cache(4096)
def _noise_tile(
    rows: int, columns: int, width: int, elements: int, longest: int, least: int, filling: int, parts: int, draws: int
) -> Tile:
    if columns <= GROUP:
        # 16 elements a thread take 55 to 127 registers, where 8 would do with 64, for the key schedule and the
        # addresses: sampling 32 categories costs 71 instructions an element, not 80 (float32 to bool).
        # Where that leaves multiprocessors without a program, four elements a thread.
        few = rows * next_power_of_2(columns) < least * elements // 2
        return _short_tile(columns, width, elements // 8 if few else elements // 2, parts)
    block = next_power_of_2(columns)
    if block <= longest:
        # 32 elements a thread take 80 to 96 registers, 16 take 48 to 63; but then what a program does once makes 48
        # instructions an element of 40 (relaxed), 53 of 46 (its gradient), and instructions are the limit.
        return row_tile(block // parts, width, block // 1024)
    # Walked, 16 elements a thread, 64 registers. Of bf16 it is 32, one 128-bit load of each quarter, and 76 to 96
    # registers: the 20 warps of a multiprocessor have 40 KB of loads in flight, which is enough, and eight independent
    # Philox calls each, which keep the schedulers busy; with 64-bit loads it is one instruction an element more.
    block = max(elements // 2, parts * 128 * width)
    tiles = cdiv(columns, block)
    return row_tile(block // parts, width, 4, _splits(filling, draws * rows, tiles), tiles)


@lru_cache(4096)
def upper_depth(columns: int, tile: Tile) -> int:
    """Of the tile of a row's second half: of 18 columns it has 2 of 16, and no depth for what is beyond them."""
    return next_power_of_2(cdiv(max(1, columns - tile.columns), tile.lanes * tile.vector))


# Sampling a long row: four groups a turn, a warp for each, so that a group's sum needs no barrier.
SAMPLE_GROUPS = 4
# Groups that the race of the groups reads at once: one tile up to a million columns.
RACE = 1024


def draw_programs(logits: Tensor, row_programs: int, draws: int) -> int:
    """How many programs share the draws of a row of one group: CUDA allows 65535 in this direction."""
    if draws == 1:
        return 1
    return max(1, min(draws, cdiv(4 * fill(logits), row_programs), 65535))


# Elements of a program that handles one number per (draw, row).
INDEX_BLOCK = 1024
