"""(rows, columns, dtype) -> tile, warps, programs a row. One table: a launch is a function of its shapes alone, so that
a sample never depends on what was timed before it, and ahead-of-time compilation knows every configuration."""

from typing import NamedTuple

from torch import Tensor
from triton import cdiv, next_power_of_2

from .noise import GROUP

# Of an H200. With fewer programs, some would have none.
MULTIPROCESSORS = 132
# Two programs for each: with fewer, long rows are split. A split row then has four for each at most, so that up to 128
# registers a thread cost it no warp.
FILL = 2 * MULTIPROCESSORS
# Elements of a tile: 32 a thread for 4 warps, which are four 128-bit loads of bf16 in flight.
TILE = 4096
# The longest row that stays in registers from its load to its store: 32 elements a thread for 16 warps.
ONE_TILE = 16384


class Tile(NamedTuple):
    """A tile [depth, rows, lanes, vector] for one program of `warps` warps.

    Attributes:
        one: a whole row is in it.
        parts: how many programs share a row that is not.
    """

    depth: int
    rows: int
    lanes: int
    vector: int
    warps: int
    one: bool
    parts: int = 1

    @property
    def columns(self) -> int:
        return self.depth * self.lanes * self.vector

    @property
    def row_shape(self) -> dict[str, int]:
        return {"DEPTH": self.depth, "LANES": self.lanes, "VECTOR": self.vector}

    @property
    def shape(self) -> dict[str, int]:
        return {"ROWS": self.rows, **self.row_shape}


def vector(tensor: Tensor) -> int:
    """Adjacent columns of a thread: one 128-bit load, or one element where rows do not start on 16 bytes. The test is
    the one by which Triton specialises a kernel: divisible by 16."""
    aligned = tensor.shape[-1] % 16 == 0 and all(stride % 16 == 0 for stride in tensor.stride()[:-1])
    return 16 // tensor.element_size() if aligned and tensor.data_ptr() % 16 == 0 else 1


def splits(rows: int, tiles: int) -> int:
    """How many programs share the tiles of a row: one for each, or as few as fill the GPU; each with as many tiles."""
    return cdiv(tiles, max(1, rows * tiles // FILL))


def few_rows(rows: int, columns: int, block: int) -> int:
    """`block` columns of a tile, or less where rows are so few that multiprocessors would have none; but a group at
    least, so that the partial results are of no more than columns / 1024 programs a row."""
    while block > GROUP and rows * cdiv(columns, block) < MULTIPROCESSORS:
        block //= 2
    return block


def short_tile(rows: int, columns: int, width: int, elements: int, parts: int) -> Tile:
    """Rows that share a program of 4 warps, as many as fill `elements`, but not so many that multiprocessors stay
    empty. The fewer lanes a row has, the fewer shuffles join them: eight elements each, or all the threads there are.
    For noise, a tile is one of `parts` of a row."""
    part = max(1, next_power_of_2(columns) // parts)
    width = min(width, part)
    many = max(1, min(elements // (parts * part), next_power_of_2(cdiv(rows, FILL))))
    lanes = min(part // width, max(1 if width > 1 else 2, min(32, parts * part // 8), 128 // many))
    return Tile(part // (lanes * width), many, lanes, width, max(1, min(4, many * lanes // 32)), True)


def tile(logits: Tensor, *others: Tensor, draws: int = 1, twice: bool = False) -> Tile:
    """For kernels without noise, that read `logits` and as many elements of each of `others`, for each draw; `twice`
    where a long row is."""
    rows, columns = logits.shape
    block, width = next_power_of_2(columns), vector(logits)
    # Half a tile where an element takes more than one register until it is added up: no more than 64 a thread.
    elements = TILE if not others and logits.element_size() <= 4 else TILE // 2
    if block <= elements:
        return short_tile(rows, columns, width, elements, 1)
    # A row in registers is read once. Longer ones are walked in tiles, twice where a reduction comes before the write:
    # the second read is from the L2.
    if block <= ONE_TILE * elements // TILE:
        warps = 4 * block // elements
        return Tile(block // (32 * warps * width), 1, 32 * warps, width, warps, True)
    block = few_rows(draws * rows, columns, elements)
    parts = splits(draws * rows, cdiv(columns, block))
    # Of rows that are walked twice as few as possible at once, one for each multiprocessor, by as many threads as it
    # takes to keep 32 KB of loads in flight there: the second walk is to find its row in the L2.
    warps = 16 if twice and parts == 1 else 4
    return Tile(block // (128 * width), 1, 32 * warps, width, warps, False, parts)


def noise_tile(logits: Tensor, parts: int, draws: int = 1) -> Tile:
    """For kernels whose Philox call serves `parts` elements of a group: the tile of one part of each group."""
    rows, columns, width = *logits.shape, vector(logits)
    if columns <= GROUP:
        return short_tile(rows, columns, width, TILE // 2, parts)
    block = next_power_of_2(columns)
    if block <= ONE_TILE:
        # 32 elements a thread: the key schedule, the addresses and the joining of lanes are 10 instructions an element
        # for 16, 5 for 32. It takes 80 to 96 registers.
        warps = block // 1024
        return Tile(block // (parts * 32 * warps * width), 1, 32 * warps, width, warps, True)
    # bf16 has 32 elements, in one 128-bit load of each part,
    block = few_rows(draws * rows, columns, max(TILE // 2, parts * 128 * width))
    warps = max(1, min(4, block // (parts * 32 * width)))
    return Tile(
        block // (parts * 32 * warps * width), 1, 32 * warps, width, warps, False,
        splits(draws * rows, cdiv(columns, block)),
    )


# Sampling a long row: four groups a turn, a warp for each, so that a group's sum needs no barrier.
SAMPLE_GROUPS = 4
# Groups that the race of the groups reads at once: one tile up to a million columns.
RACE = 1024


def sample_groups(rows: int, columns: int) -> int:
    return few_rows(rows, columns, SAMPLE_GROUPS * GROUP) // GROUP


def draw_programs(row_programs: int, draws: int) -> int:
    """How many programs share the draws of a row of one group: CUDA allows 65535 in this direction."""
    return max(1, min(draws, cdiv(4 * FILL, row_programs), 65535))


# Elements of a program that handles one number per (draw, row).
INDEX_BLOCK = 1024
