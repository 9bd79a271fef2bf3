"""(rows, columns, dtype) -> tile, warps, splits.

One table: a launch is a function of its shapes alone, so that a sample never depends on what was timed before it, and
ahead-of-time compilation knows every configuration.
"""

from typing import NamedTuple

from triton import cdiv, next_power_of_2

from .noise import GROUP


class Tile(NamedTuple):
    """rows x block columns for one program of `warps` warps; `one` where a whole row is in it."""

    rows: int
    block: int
    warps: int
    one: bool


# Elements of a tile: 32 a thread for 4 warps, which is four 128-bit loads of bf16 in flight.
TILE = 4096
# A row up to this length stays in registers from its load to its store: 64 float32 values a thread, for two operands.
ONE_TILE = 8192
# The programs that fill the largest GPU of today (132 multiprocessors of an H200) twice: below it, rows are split.
FILL = 264


def tile(rows: int, columns: int) -> Tile:
    """For kernels that reduce over a row and then write it."""
    block = next_power_of_2(columns)
    if block <= ONE_TILE:
        # Short rows share a program, as many as fill a tile; but not so many that multiprocessors stay empty.
        many = max(1, min(TILE // 2 // block, next_power_of_2(max(1, rows // FILL))))
        return Tile(many, block, 4 if block <= TILE else 8, True)
    # Longer rows are walked in tiles, twice where a reduction comes before the write: the second read is from the L2.
    return Tile(1, TILE, 4, False)


def part_tile(rows: int, columns: int, parts: int) -> Tile:
    """For kernels whose noise serves `parts` parts of a group at once: `block` is one part, `rows` whole groups."""
    block = max(1, min(GROUP, next_power_of_2(columns)) // parts)
    if columns <= GROUP:
        many = max(1, min(GROUP // (parts * block), next_power_of_2(max(1, rows // FILL))))
        return Tile(many, block, 4, True)
    return Tile(1, block, 4, False)


# The groups of GROUP columns that the sampling loop reads at once: a tile of 4096, each group on all four warps.
GROUPS = TILE // GROUP
# Groups that the race of the groups reads at once: one tile up to a million columns.
RACE = 1024
SAMPLE_WARPS = 4
# The kernels with noise for each element keep half as many of them a thread: Philox wants the registers.
NOISE_WARPS = 8
# The log-probabilities of indices that a program gathers: one each for its 128 threads.
INDEX_BLOCK = 128


def splits(rows: int, columns: int) -> int:
    """How many programs share the columns of a row, for rows of more than a tile: as many as fill the GPU."""
    tiles = cdiv(columns, GROUPS * GROUP)
    return max(1, min(tiles, cdiv(FILL, max(1, rows))))


def draw_programs(row_programs: int, draws: int) -> int:
    """How many programs share the draws of a row that fits a tile."""
    return max(1, min(draws, cdiv(4 * FILL, max(1, row_programs)), 65535))
