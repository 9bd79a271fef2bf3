"""The questions that the benchmarks answer, each with the cases that answer it."""

from typing import NamedTuple

from operations import OPERATIONS, Case, grid


class Question(NamedTuple):
    """A question, which is a heading of the report.

    Attributes:
        asks: the question.
        cpu: the cases that `make bench` times.
        gpu: the cases that `make bench-gpu` times.
    """

    asks: str
    cpu: list[Case]
    gpu: list[Case]


ALL = " ".join(name for name in OPERATIONS if name != "decode")
VOCABULARIES = (32000, 128256, 151936, 262144)
COLUMNS = [4**k for k in range(1, 10)]
LATENTS = grid("sample pass_through relaxed train_step", [(32768, 32)], "float32 bfloat16")

# In the order of the report. The cases that take longest come last.
QUESTIONS = {
    "operations": Question(
        "What does each operation cost, from small batches to large vocabularies?",
        cpu=[
            *grid(ALL, [(64, 6), (1024, 32), (64, 4096), (16, 131072)]),
            *grid(ALL, [(1024, 32), (16, 131072)], "bfloat16"),
            *grid("log_prob_index", [(192, 50257)], "bfloat16 float16 float32 float64"),
        ],
        gpu=grid(ALL, [(1024, 32), (4096, 50304), (1024, 128256)], "bfloat16 float32"),
    ),
    "rl": Question(
        "What does an RL agent pay to choose among a few actions, in one environment, in a batch of them or in many?",
        cpu=[
            *grid(
                "sample rsample pass_through relaxed log_prob log_prob_index entropy step train_step",
                [(1, 6), (64, 6), (8, 64), (64, 18), (32, 32), (1024, 6)],
            ),
            *grid("sample step train_step", [(64, 6)], "bfloat16"),
            *grid("sample step train_step", [(65536, 18)], "float32 bfloat16"),
        ],
        gpu=grid("sample step train_step", [(64, 6), (65536, 18)], "float32 bfloat16"),
    ),
    "world_model": Question(
        "What does a world model pay for its latents, 32 one-hot vectors of 32 for each of 1024 states?",
        cpu=LATENTS,
        gpu=LATENTS,
    ),
    "language_model": Question(
        "What does a draw from a language model's vocabulary cost?",
        cpu=[
            *grid("sample_index sample log_prob entropy", [(8, v) for v in VOCABULARIES], "float32 bfloat16"),
            *grid("sample_index sample", [(64, 128256)], "float32 bfloat16"),
        ],
        gpu=grid(
            "sample_index sample log_prob entropy",
            [(rows, v) for v in VOCABULARIES for rows in (1, 8, 64, 1024)],
            "bfloat16 float32",
        ),
    ),
    "decode": Question(
        "What does one step of decoding cost: a token and its log-probability?",
        cpu=grid("decode", [(1, v) for v in VOCABULARIES], "float32 bfloat16"),
        gpu=grid("decode", [(rows, v) for v in VOCABULARIES for rows in (1, 8)], "bfloat16 float32"),
    ),
    "rlhf": Question(
        "What does a policy gradient of a language model's tokens cost: log-probabilities, entropies, gradient?",
        cpu=[
            *grid("policy_gradient", [(512, 50257)], "bfloat16 float32"),
            *grid("policy_gradient", [(64, 50257)], "bfloat16", "compiled"),
        ],
        gpu=grid("policy_gradient", [(n, v) for n in (512, 4096) for v in (50257, 151936)], "bfloat16", "compiled"),
    ),
    "columns": Question(
        "How does the cost grow with the number of categories?",
        cpu=grid("sample sample_index train_step", [(16, columns) for columns in COLUMNS]),
        gpu=grid("sample sample_index train_step", [(256, columns) for columns in COLUMNS], "bfloat16"),
    ),
    "rows": Question(
        "How does the cost grow with the number of rows?",
        cpu=grid("sample train_step", [(8**k, 1024) for k in range(5)]),
        gpu=grid("sample train_step", [(8**k, 1024) for k in range(7)], "bfloat16"),
    ),
    "compile": Question(
        "What does torch.compile change?",
        cpu=grid("sample train_step", [(1024, 32), (64, 4096)], "float32", "compiled"),
        gpu=grid("sample train_step", [(32768, 32), (1024, 128256)], "bfloat16", "compiled"),
    ),
    "limits": Question(
        "What happens at a billion logits: a thousand rows of a million categories?",
        cpu=grid("sample_index", [(1024, 2**20)], "bfloat16", "ours"),
        gpu=grid("sample_index sample log_prob entropy pass_through", [(1024, 2**20)], "bfloat16", "ours"),
    ),
}
