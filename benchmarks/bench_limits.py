"""What happens at a billion logits: a thousand rows of a million categories?"""

from operations import grid

CPU = grid("sample_index", [(1024, 2**20)], "bfloat16", field="ours")
GPU = grid("sample_index sample log_prob entropy pass_through", [(1024, 2**20)], "bfloat16", field="ours")


def test_limits(turn):
    turn()
