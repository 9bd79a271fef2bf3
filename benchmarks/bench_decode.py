"""What does one step of decoding cost: a token and its log-probability?"""

from bench_language_model import VOCABULARIES
from operations import grid

CPU = grid("decode", [(1, columns) for columns in VOCABULARIES], "float32 bfloat16")
GPU = grid("decode", [(rows, columns) for columns in VOCABULARIES for rows in (1, 8)], "bfloat16 float32")


def test_decode(turn):
    turn()
