"""What does an RL agent pay: a few actions to choose from, in one environment's batch or in many?"""

from operations import grid

CPU = grid("sample step train_step", [(64, 6), (65536, 18)], "float32 bfloat16")
GPU = CPU


def test_rl(turn):
    turn()
