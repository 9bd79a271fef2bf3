"""How does the cost grow with the number of rows?"""

from operations import grid

CPU = grid("sample train_step", [(8**k, 1024) for k in range(5)])
GPU = grid("sample train_step", [(8**k, 1024) for k in range(7)], "bfloat16")


def test_rows(turn):
    turn()
