"""Prints what the checks see, in Markdown: planted faults x checks, and the smallest bias of each check.

    python tests/statistics/power.py [--thorough]

The p-values are those of the quick suite's numbers of draws. With --thorough, the checks that need more are there too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (0, 1, 2)]

import torch  # noqa: E402
from checks import ALPHA, CHECKS, POWER, Check, Outcome  # noqa: E402
from faults import FAULTS  # noqa: E402
from samplers import EAGER, Sampler  # noqa: E402
from tqdm import tqdm  # noqa: E402

# Checks that differ by the row alone share a column of the table, which has their smallest p-value.
FAMILIES = {
    "fit, V <= 32": ("fit", 2, 32),
    "fit, V <= 1025": ("fit", 33, 1025),
    "fit, larger V": ("fit", 1026, 2**30),
    "share of 1e-4": ("share first", 2, 2**30),
    "10 nats down": ("share 10", 2, 2**30),
    "14 nats down": ("share 14", 2, 2**30),
    "17, 20 nats down": (("share 17", "share 20"), 2, 2**30),
    "ties, V = 2^18": ("position", 2**18, 2**18),
    "ties, V = 2^24": ("position", 2**24, 2**24),
    "draws, rows": (("independent draws", "independent serial"), 2, 2**30),
    "calls": ("independent calls", 2, 2**30),
    "seeds": ("independent seeds", 2, 2**30),
    "zero": ("zero", 2, 2**30),
}


def family(check: Check) -> str:
    return next(
        name
        for name, (prefix, low, high) in FAMILIES.items()
        if check.name.startswith(prefix) and low <= check.columns <= high
    )


def p_text(p: float) -> str:
    return "0" if p == 0 else f"{p:.0e}" if p < 0.001 else f"{p:.2g}"


def main(thorough: bool) -> None:
    torch.set_num_threads(1)
    samplers: list[Sampler] = [EAGER[0], *(fault.sampler for fault in FAULTS)]
    # A check that only the thorough suite has runs at its full length; the others as in the quick suite.
    cells = [(s, c) for s in samplers for c in CHECKS if c.draws(s, thorough and c.thorough)]
    outcomes: dict[tuple[str, str], Outcome] = {}
    for s, c in tqdm(cells, unit="check", file=sys.stderr, mininterval=5):
        outcomes[s.name, c.name] = c(s, thorough and c.thorough)

    present = [f for f in FAMILIES if any(family(c) == f for _, c in cells)]
    print(f"Smallest p-value of each kind of check, times their number; in bold where one rejects (p < {ALPHA:.0e}).\n")
    print("| sampler | " + " | ".join(present) + " |")
    print("|---" * (len(present) + 1) + "|")
    for s in samplers:
        texts = []
        for f in present:
            ps = [o.p for c in CHECKS if family(c) == f and (o := outcomes.get((s.name, c.name)))]
            p = min(ps, default=None)
            texts.append("" if p is None else f"**{p_text(p)}**" if p < ALPHA else p_text(min(1.0, p * len(ps))))
        name = "**the library's**" if s is samplers[0] else s.name
        print(f"| {name} | " + " | ".join(texts) + " |")

    print(f"\nSmallest departure that is rejected with a probability of {POWER:.1%} (index draws, eager).\n")
    print("| check | draws | detects | p |")
    print("|---|---|---|---|")
    for c in CHECKS:
        o = outcomes.get((samplers[0].name, c.name))
        if o:
            print(f"| {c.name} | {o.draws:,} | {o.unit} {o.detects:.2g} | {p_text(o.p)} |")


if __name__ == "__main__":
    main("--thorough" in sys.argv)
