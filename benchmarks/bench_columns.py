"""How does the cost grow with the number of categories?"""

from operations import grid

COLUMNS = [4**k for k in range(1, 10)]
CPU = grid("sample sample_index train_step", [(16, columns) for columns in COLUMNS])
GPU = grid("sample sample_index train_step", [(256, columns) for columns in COLUMNS], "bfloat16")


def test_columns(turn):
    turn()
