"""What does each operation cost, from small batches to large vocabularies?"""

from operations import OPERATIONS, grid

ALL = " ".join(name for name in OPERATIONS if name != "decode")
CPU = [
    *grid(ALL, [(64, 6), (1024, 32), (64, 4096), (16, 131072)]),
    *grid(ALL, [(1024, 32), (16, 131072)], "bfloat16"),
    *grid("log_prob_index", [(192, 50257)], "bfloat16 float16 float32 float64"),
]
GPU = grid(ALL, [(1024, 32), (4096, 50304), (1024, 128256)], "bfloat16 float32")


def test_operation(turn):
    turn()
