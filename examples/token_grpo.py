"""GRPO on a toy language task with a vocabulary of 50,257: answer a prompt with words that rhyme with it.

Words rhyme where their numbers agree modulo 8, and rhymes lie near each other in a word embedding that is given and
stays as it is: it reads the last word, and it is the head. What is learned lies between, a state of 32 numbers. The
policy draws a group of answers to each prompt; an answer's advantage is its reward, the part of its words that rhyme,
less the group's mean, over the group's spread (Shao et al. 2024, https://arxiv.org/abs/2402.03300). Words are drawn by
`sample_index`; the loss takes log-probability and entropy of all words by `log_prob_index_and_entropy`, which reads the
logits once and writes their gradient once.

    python examples/token_grpo.py --out FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from onehot_triton import OneHotCategorical

VOCABULARY, RHYMES, WIDTH = 50_257, 8, 32
GROUP, WORDS = 16, 2


class Policy(nn.Module):
    """(prompt, last word) -> logits of the next word."""

    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        sounds = torch.randn(RHYMES, WIDTH) / WIDTH**0.5
        words = sounds[torch.arange(VOCABULARY) % RHYMES] + 0.5 * torch.randn(VOCABULARY, WIDTH) / WIDTH**0.5
        self.register_buffer("words", words)
        self.prompt, self.state = nn.Embedding(RHYMES, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, prompt: Tensor, word: Tensor) -> Tensor:
        return (self.prompt(prompt) + self.state(self.words[word])) @ self.words.T


def answers(policy: Policy, prompt: Tensor) -> Tensor:
    """A word after the other, [answers, WORDS + 1], the first of which is the prompt itself."""
    words = [prompt]
    with torch.no_grad():
        for _ in range(WORDS):
            words.append(OneHotCategorical(policy(prompt, words[-1])).sample_index())
    return torch.stack(words, -1)


def train(steps: int) -> list[float]:
    """The mean reward of each step."""
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    prompt = torch.arange(RHYMES).repeat_interleave(GROUP)
    rewards = []
    for _ in range(steps):
        words = answers(policy, prompt)
        reward = (words[:, 1:] % RHYMES == prompt[:, None]).float().mean(-1).view(RHYMES, GROUP)
        advantage = (reward - reward.mean(-1, keepdim=True)) / (reward.std(-1, keepdim=True) + 1e-3)
        logits = policy(prompt[:, None], words[:, :-1])
        log_prob, entropy = OneHotCategorical(logits).log_prob_index_and_entropy(words[:, 1:])
        loss = -(advantage.view(-1, 1) * log_prob).mean() - 1e-3 * entropy.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(reward.mean().item())
    return rewards


def draw(rewards: list[float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(rewards)
    axes.axhline(1 / RHYMES, color="gray", linestyle=":", label="at random")
    axes.set(xlabel="step", ylabel="words that rhyme", ylim=(0, 1), title="GRPO, 50,257 words, 128 answers a step")
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO with a vocabulary of 50,257")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="the folder for the learning curve")
    args = parser.parse_args()
    steps = 10 if args.quick else 30
    torch.manual_seed(0)
    rewards = train(steps)
    for step in range(0, steps, max(1, steps // 10)):
        print(f"step {step:3}  rhymes {rewards[step]:.2f}  {'#' * round(40 * rewards[step])}")
    print(f"rhymes before: {rewards[0]:.2f}, after: {rewards[-1]:.2f}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        draw(rewards, args.out / "token-grpo.png")


if __name__ == "__main__":
    main()
