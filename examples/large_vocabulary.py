"""Next-token sampling from a vocabulary of 131,072: a small language model, made on the spot, streams text.

The model is a bigram table of the words of Python's own licence and Zen, factored through 64 dimensions and trained
for seconds. Its output is padded to 131,072 rows, the size of a large tokenizer's. Text is sampled by
`sample_and_log_prob`, which reads the logits once for a token and its score; the same step with `torch.multinomial` is
timed beside it.

    python examples/large_vocabulary.py
"""

from __future__ import annotations

import argparse
import codecs
import pathlib
import re
import statistics
import sysconfig
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onehot_triton import OneHotCategorical

VOCABULARY = 131_072
WIDTH = 64


def zen() -> str:
    """The Zen of Python, which ships in rot13; `import this` would print it."""
    source = (pathlib.Path(sysconfig.get_path("stdlib")) / "this.py").read_text()
    quoted = re.search(r'"""(.*?)"""', source, re.DOTALL)
    assert quoted is not None
    return codecs.decode(quoted.group(1), "rot13")


def text() -> str:
    """The Zen, and Python's licence where it is installed."""
    licence = pathlib.Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    return zen() + "\n" + (licence.read_text() if licence.exists() else "")


class Model(nn.Module):
    """The token before -> logits of the next."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, WIDTH)
        self.head = nn.Linear(WIDTH, words)

    def forward(self, token: Tensor) -> Tensor:
        return self.head(self.embedding(token))

    def train_on(self, tokens: Tensor, steps: int) -> float:
        """Returns the last loss, in nats a token."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        loss = torch.tensor(0.0)
        for _ in range(steps):
            at = torch.randint(len(tokens) - 1, (256,))
            loss = F.cross_entropy(self(tokens[at]), tokens[at + 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    @torch.no_grad()
    def pad(self) -> None:
        """Gives the vocabulary its full size. A row of the padding costs what a word's does, and is never drawn."""
        small, self.head = self.head, nn.Linear(WIDTH, VOCABULARY)
        self.head.weight[: small.out_features] = small.weight
        self.head.bias.fill_(-torch.inf)
        self.head.bias[: small.out_features] = small.bias


def ours(logits: Tensor) -> tuple[Tensor, Tensor]:
    one_hot, log_prob = OneHotCategorical(logits, dtype=torch.bool).sample_and_log_prob()
    return one_hot.view(torch.uint8).argmax(-1), log_prob


def ours_by_index(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where nobody needs the one-hot, nobody makes it."""
    dist = OneHotCategorical(logits)
    index = dist.sample_index()
    return index, dist.log_prob_index(index)


def multinomial(logits: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits, -1)
    token = torch.multinomial(log_probs.exp(), 1)
    return token.squeeze(-1), log_probs.gather(-1, token).squeeze(-1)


SAMPLERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "sample_and_log_prob": ours,
    "sample_index, log_prob_index": ours_by_index,
    "log_softmax, torch.multinomial, gather": multinomial,
}


@torch.no_grad()
def stream(model: Model, words: list[str], length: int) -> None:
    token, total = torch.tensor([words.index("\n")]), 0.0
    for _ in range(length):
        token, log_prob = ours(model(token))
        total += log_prob.item()
        word = words[int(token)]
        print(word, end="" if word == "\n" else " ", flush=True)
    print(f"\n[{length} tokens, {-total / length:.2f} nats a token]")


@torch.no_grad()
def tokens_per_second(model: Model, batch: int, tokens: int) -> None:
    """Each sampler generates `batch` texts; their steps take turns, so that all see the same machine."""
    state = {name: torch.zeros(batch, dtype=torch.long) for name in SAMPLERS}
    seconds: dict[str, dict[str, list[float]]] = {name: {"model": [], "sampler": []} for name in SAMPLERS}
    for _ in range(tokens):
        for name, sampler in SAMPLERS.items():
            start = time.perf_counter()
            logits = model(state[name])
            middle = time.perf_counter()
            state[name], _ = sampler(logits)
            seconds[name]["model"].append(middle - start)
            seconds[name]["sampler"].append(time.perf_counter() - middle)
    print(f"\n{batch} texts at once, vocabulary {VOCABULARY:,}, medians of {tokens} steps:")
    print(f"  {'token and log-probability by':40} {'sampler':>10} {'with model':>11} {'tokens/s':>10}")
    for name, times in seconds.items():
        sampler, model_time = statistics.median(times["sampler"]), statistics.median(times["model"])
        whole = sampler + model_time
        print(f"  {name:40} {sampler * 1e3:7.2f} ms {whole * 1e3:8.2f} ms {batch / whole:10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Next-token sampling from a vocabulary of 131,072.")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--length", type=int, default=120, help="of the text")
    parser.add_argument("--quick", action="store_true", help="150 steps, 40 words, few repetitions")
    args = parser.parse_args()
    steps, length, repetitions = (150, 40, 10) if args.quick else (args.steps, args.length, 50)
    torch.manual_seed(0)
    # So that the times are of the work, and not of waiting for a second core that is busy.
    torch.set_num_threads(1)

    pieces = re.findall(r"\n|[^\s]+", text())
    words = sorted(set(pieces))
    index = {word: i for i, word in enumerate(words)}
    tokens = torch.tensor([index[piece] for piece in pieces])
    print(f"{len(tokens):,} tokens, {len(words):,} different ones, padded to {VOCABULARY:,}")

    start = time.perf_counter()
    model = Model(len(words))
    loss = model.train_on(tokens, steps)
    print(f"trained in {time.perf_counter() - start:.1f} s, {loss:.2f} nats a token\n")
    model.pad()
    stream(model, words, length)
    for batch in (1, 16):
        tokens_per_second(model, batch, repetitions)


if __name__ == "__main__":
    main()
