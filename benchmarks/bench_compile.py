"""What does torch.compile change?"""

from operations import grid

CPU = grid("sample train_step", [(1024, 32), (64, 4096)], field="compiled")
GPU = grid("sample train_step", [(32768, 32), (1024, 128256)], "bfloat16", field="compiled")


def test_compile(turn):
    turn()
