"""(rows, columns, dtype) -> tile, warps, splits. One table: a launch is a function of its shapes alone, so that a
sample never depends on what was timed before it, and ahead-of-time compilation knows every configuration."""

from typing import NamedTuple

from torch import Tensor
from triton import cdiv, next_power_of_2

from .noise import GROUP

# The programs that fill the largest GPU of today (132 multiprocessors of an H200) twice: below it, rows are split.
FILL = 264
# Elements of a tile: 32 a thread for 4 warps, which are four 128-bit loads of bf16 in flight.
TILE = 4096
# The longest row that stays in registers from its load to its store: 32 elements a thread for 16 warps.
ONE_TILE = 16384


class Tile(NamedTuple):
    """A tile [rows, depth, lanes, vector] for one program of `warps` warps; `one` where a whole row is in it."""

    rows: int
    depth: int
    lanes: int
    vector: int
    warps: int
    one: bool

    @property
    def columns(self) -> int:
        return self.depth * self.lanes * self.vector

    @property
    def shape(self) -> dict[str, int]:
        return {"ROWS": self.rows, "DEPTH": self.depth, "LANES": self.lanes, "VECTOR": self.vector}


def vector(tensor: Tensor) -> int:
    """Adjacent columns of a thread: one 128-bit load, or one element where rows do not start on 16 bytes. The test is
    the one by which Triton specialises a kernel: divisible by 16."""
    aligned = tensor.shape[-1] % 16 == 0 and all(stride % 16 == 0 for stride in tensor.stride()[:-1])
    return 16 // tensor.element_size() if aligned and tensor.data_ptr() % 16 == 0 else 1


def tile(logits: Tensor, *others: Tensor) -> Tile:
    """For kernels without noise, that read `logits` and as many elements of each of `others`."""
    rows, columns = logits.shape
    block, width = next_power_of_2(columns), vector(logits)
    # Half a tile where an element takes more than one register until it is added up: no more than 64 a thread.
    elements = TILE if sum(tensor.element_size() for tensor in (logits, *others)) <= 4 else TILE // 2
    if block <= elements:
        # Short rows share a program, as many as fill a tile; but not so many that multiprocessors stay empty.
        many = min(elements // block, next_power_of_2(cdiv(rows, FILL)))
        width = min(width, block)
        lanes = min(block // width, 128)
        return Tile(many, block // (lanes * width), lanes, width, 4, True)
    # A row in registers is read once. Longer ones are walked in tiles, twice where a reduction comes before the write:
    # the second read is from the L2. Few rows get more warps each.
    one = block <= ONE_TILE * elements // TILE
    warps = 4 * block // elements if one else (16 if rows < FILL else 4)
    return Tile(1, elements // (128 * width), 32 * warps, width, warps, one)


def noise_tile(logits: Tensor, parts: int) -> Tile:
    """For kernels whose Philox call serves `parts` elements of a group: the tile of one part, its depth in groups."""
    rows, columns = logits.shape
    part = max(1, min(GROUP, next_power_of_2(columns)) // parts)
    # Four words an element: eight adjacent columns of each part would not fit the registers.
    width = min(vector(logits), part, 4)
    if columns <= GROUP:
        many = min(TILE // (parts * part), next_power_of_2(cdiv(rows, FILL)))
        return Tile(many, 1, part // width, width, 4, True)
    # As `tile`, with a thread for each lane.
    groups = next_power_of_2(cdiv(columns, GROUP))
    one = groups <= ONE_TILE // GROUP
    warps = max(4, min(32, groups * part // (32 * width))) if one else (16 if rows < FILL else 4)
    return Tile(1, groups if one else max(1, 32 * warps * width // part), part // width, width, warps, one)


# Sampling a long row: four groups a turn, a warp for each, so that a group's sum needs no barrier.
SAMPLE_GROUPS = 4
SAMPLE_WARPS = 4
# Groups that the race of the groups reads at once: one tile up to a million columns.
RACE = 1024


def splits(rows: int, columns: int) -> int:
    """How many programs share the columns of a long row: as many as fill the GPU, or one for each tile."""
    return max(1, min(cdiv(columns, SAMPLE_GROUPS * GROUP), cdiv(FILL, rows)))


def draw_programs(row_programs: int, draws: int) -> int:
    """How many programs share the draws of a row of one group: CUDA allows 65535 in this direction."""
    return max(1, min(draws, cdiv(4 * FILL, row_programs), 65535))


# Elements of a program that handles one number per (draw, row).
INDEX_BLOCK = 1024
