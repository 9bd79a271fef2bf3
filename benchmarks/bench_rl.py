"""What does an RL agent pay: a few actions to choose from, in one environment, in one's batch or in many?"""

from operations import grid

GPU = grid("sample step train_step", [(64, 6), (65536, 18)], "float32 bfloat16")
SMALL = [(1, 6), (64, 6), (8, 64), (64, 18), (32, 32), (1024, 6)]
CPU = [*grid("sample rsample pass_through relaxed log_prob log_prob_index entropy step train_step", SMALL), *GPU[1:]]


def test_rl(turn):
    turn()
