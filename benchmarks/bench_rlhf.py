"""What does a policy gradient of a language model's tokens cost: log-probabilities, entropies and their gradient?"""

from operations import grid

CPU = [
    *grid("policy_gradient", [(512, 50257)], "bfloat16 float32"),
    *grid("policy_gradient", [(64, 50257)], "bfloat16", field="compiled"),
]
GPU = grid(
    "policy_gradient",
    [(rows, columns) for rows in (512, 4096) for columns in (50257, 151936)],
    "bfloat16",
    "compiled",
)


def test_rlhf(turn):
    turn()
