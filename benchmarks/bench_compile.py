"""What does torch.compile change?"""

from operations import grid

CPU = grid("sample train_step", [(1024, 32), (64, 4096)], compiled=True)
GPU = grid("sample train_step", [(32768, 32), (1024, 128256)], "bfloat16", compiled=True)


def test_compile(turn):
    turn()
