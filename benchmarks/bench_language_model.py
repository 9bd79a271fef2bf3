"""What does a draw from a language model's vocabulary cost?"""

from operations import grid

VOCABULARIES = (32000, 128256, 151936, 262144)
CPU = [
    *grid("sample_index sample log_prob entropy", [(8, columns) for columns in VOCABULARIES], "float32 bfloat16"),
    *grid("sample_index sample", [(64, 128256)], "float32 bfloat16"),
]
GPU = grid(
    "sample_index sample log_prob entropy",
    [(rows, columns) for columns in VOCABULARIES for rows in (1, 8, 64, 1024)],
    "bfloat16 float32",
)


def test_language_model(turn):
    turn()
