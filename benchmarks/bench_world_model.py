"""What does a world model pay for its latents, 32 one-hot vectors of 32 for each of 1024 states?"""

from operations import grid

CPU = grid("sample pass_through relaxed train_step", [(32768, 32)], "float32 bfloat16")
GPU = CPU


def test_world_model(turn):
    turn()
