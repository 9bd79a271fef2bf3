"""Every gradient of `rsample` on two problems: one whose exact gradient is known, and a categorical VAE.

The polynomial problem (Liu et al. 2023, https://arxiv.org/abs/2304.08612): 128 variables x of two categories, 0 and 1.
To be minimised is the expected mean of |x - 0.45|^p. The best is x = 0 for certain, 0.45^p: 0.3019, 0.2025 and
0.0911 for p = 1.5, 2 and 3. At p = 2 the function is quadratic, and ReinMax exact in the mean.

The VAE: 16 variables of 8 categories between 8 x 8 digits, which scikit-learn ships, and their reconstructions.

    pip install 'onehot_triton[examples]'
    python examples/gradient_estimators.py --out pictures
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onehot_triton import OneHotCategorical, ReparamGradientStrategy

PASS, RELAXED, REINMAX, GAPPED = ReparamGradientStrategy
ESTIMATORS: dict[str, dict[str, Any]] = {
    "PassThrough": {"grad_method": PASS},
    "RelaxedOneHot, t = 0.5": {"grad_method": RELAXED, "temperature": 0.5},
    "RelaxedOneHot, t = 1": {"grad_method": RELAXED},
    "Gumbel-Rao, t = 0.5, K = 10": {"grad_method": RELAXED, "temperature": 0.5, "relaxed_samples": 10},
    "GappedStraightThrough": {"grad_method": GAPPED},
    "ReinMax": {"grad_method": REINMAX},
}
EXACT = "exact gradient"
TARGET, VARIABLES, BATCH = 0.45, 128, 64
POWERS = (1.5, 2.0, 3.0)
LATENTS, CATEGORIES = 16, 8


class Budget(NamedTuple):
    """How much of everything: steps and seeds of each run, draws of a bias."""

    polynomial: int
    vae: int
    seeds: int
    draws: int


FULL, QUICK = Budget(400, 1500, 3, 40_000), Budget(10, 10, 1, 200)


# The polynomial problem -----------------------------------------------------------------------------------------------


def expected_loss(logits: Tensor, power: float) -> Tensor:
    """The mean over variables of E |x - 0.45|^p, exactly."""
    values = (torch.arange(2) - TARGET).abs() ** power
    return (logits.softmax(-1) @ values).mean()


def drawn_loss(logits: Tensor, power: float, options: dict[str, Any], draws: int) -> Tensor:
    """The same by draws, of which x is the second column."""
    x = OneHotCategorical(logits, **options).rsample((draws,))[..., 1]
    return ((x - TARGET).abs() ** power).mean()


def minimise(power: float, options: dict[str, Any] | None, steps: int, seed: int) -> list[float]:
    """The exact loss at every fourth step, by an estimator's gradient; None: by the exact one."""
    torch.manual_seed(seed)
    logits = torch.zeros(VARIABLES, 2, requires_grad=True)
    optimizer, curve = torch.optim.Adam([logits], lr=0.02), []
    for _ in range(steps):
        loss = expected_loss(logits, power) if options is None else drawn_loss(logits, power, options, BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            curve.append(expected_loss(logits, power).item())
    return curve[::4] + curve[-1:]


def bias_and_deviation(power: float, options: dict[str, Any], p_of_one: Tensor, draws: int) -> dict[str, list[float]]:
    """Of the gradient of one draw in the logit of x = 1, at each probability of it: its mean less the exact gradient,
    the error of that mean, and the standard deviation."""
    logits = torch.stack([torch.zeros_like(p_of_one), p_of_one.logit()], -1)
    leaf = logits.expand(draws, -1, -1).clone().requires_grad_()
    x = OneHotCategorical(leaf, **options).rsample()[..., 1]
    ((x - TARGET).abs() ** power).sum().backward()
    assert leaf.grad is not None
    each = leaf.grad[..., 1].double()
    exact = ((1 - TARGET) ** power - TARGET**power) * (p_of_one * (1 - p_of_one)).double()
    deviation = each.std(0)
    return {
        "bias": (each.mean(0) - exact).tolist(),
        "error of the bias": (deviation / draws**0.5).tolist(),
        "deviation": deviation.tolist(),
    }


# The VAE --------------------------------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    """8 x 8 images in [0, 1]: 1,500 to train on, the other 297 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed: pip install 'onehot_triton[examples]'") from None
    images = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return images[:1500], images[1500:]


class VAE(nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, LATENTS * CATEGORIES))
        self.decoder = nn.Sequential(nn.Linear(LATENTS * CATEGORIES, 128), nn.SiLU(), nn.Linear(128, 64))

    def negative_bound(self, images: Tensor) -> Tensor:
        """Nats of an image: cross entropy of its grey values, and KL to the uniform prior."""
        logits = self.encoder(images).unflatten(-1, (LATENTS, CATEGORIES))
        posterior = OneHotCategorical(logits, **self.options, validate_args=False)
        decoded = self.decoder(posterior.rsample().flatten(-2))
        reconstruction = F.binary_cross_entropy_with_logits(decoded, images, reduction="none").sum(-1)
        log_categories = torch.tensor(CATEGORIES).log()
        return (reconstruction + (log_categories - posterior.entropy()).sum(-1)).mean()


def train(options: dict[str, Any], images: Tensor, test: Tensor, steps: int, seed: int) -> dict[str, Any]:
    """Negative bounds on training images, each a mean over a hundredth of the steps, and at the end on test images."""
    torch.manual_seed(seed)
    model = VAE(options)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=2e-3), []
    for _ in range(steps):
        loss = model.negative_bound(images[torch.randint(len(images), (100,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        at_the_end = torch.stack([model.negative_bound(test) for _ in range(20)]).mean().item()
    every = max(1, steps // 100)
    return {"curve": torch.stack(losses).unflatten(0, (-1, every)).mean(-1).tolist(), "test": at_the_end}


# Output ---------------------------------------------------------------------------------------------------------------


def rounded(numbers: Any) -> Any:
    """What JSON has of them, to 5 digits."""
    if isinstance(numbers, float):
        return float(f"{numbers:.5g}")
    if isinstance(numbers, dict):
        return {name: rounded(value) for name, value in numbers.items()}
    return [rounded(value) for value in numbers] if isinstance(numbers, list) else numbers


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.mean().item(), (tensor.std().item() if len(values) > 1 else 0.0)


def measure(budget: Budget) -> dict[str, Any]:
    images, test = digits()
    seeds, found = range(budget.seeds), {"budget": budget._asdict(), "torch": torch.__version__}
    p_of_one = torch.linspace(0.02, 0.98, 25)
    found["probability of 1"] = p_of_one.tolist()
    found["polynomial"], found["bias"], found["vae"] = {}, {}, {}
    print("polynomial problem: expected loss after the last step, mean and spread over seeds")
    for power in POWERS:
        print(f"p = {power}, best {TARGET**power:.4f}")
        curves = {EXACT: [minimise(power, None, budget.polynomial, 0)]}
        for name, options in ESTIMATORS.items():
            curves[name] = [minimise(power, options, budget.polynomial, seed) for seed in seeds]
        for name, of_seeds in curves.items():
            print("    {:28} {:.4f} +- {:.4f}".format(name, *mean_and_spread([curve[-1] for curve in of_seeds])))
        found["polynomial"][str(power)] = curves
        torch.manual_seed(0)
        found["bias"][str(power)] = {
            name: bias_and_deviation(power, options, p_of_one, budget.draws) for name, options in ESTIMATORS.items()
        }
    print("VAE: negative bound of test images in nats, mean and spread over seeds")
    for name, options in ESTIMATORS.items():
        runs = found["vae"][name] = [train(options, images, test, budget.vae, seed) for seed in seeds]
        print("    {:28} {:.2f} +- {:.2f}".format(name, *mean_and_spread([run["test"] for run in runs])), flush=True)
    return found


def save_pictures(found: dict[str, Any], folder: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed: pip install 'onehot_triton[examples]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    colours = dict(zip([*ESTIMATORS, EXACT], [*(f"C{i}" for i in range(len(ESTIMATORS))), "black"], strict=True))
    figure, axes = plt.subplots(3, len(POWERS), figsize=(12, 9.5), layout="constrained")
    for column, power in enumerate(POWERS):
        for name, of_seeds in found["polynomial"][str(power)].items():
            curve = torch.tensor(of_seeds).mean(0)
            dashes = "--" if name == EXACT else "-"
            steps = [4 * i for i in range(len(curve) - 1)] + [found["budget"]["polynomial"] - 1]
            axes[0, column].plot(steps, curve, dashes, color=colours[name], label=name, linewidth=1.3)
        axes[0, column].axhline(TARGET**power, color="grey", linewidth=0.7)
        axes[0, column].set(title=f"p = {power:g}", xlabel="step")
        for name, numbers in found["bias"][str(power)].items():
            axes[1, column].plot(found["probability of 1"], numbers["bias"], color=colours[name], linewidth=1.3)
            axes[2, column].plot(found["probability of 1"], numbers["deviation"], color=colours[name], linewidth=1.3)
        axes[1, column].axhline(0, color="grey", linewidth=0.7)
        axes[2, column].set_xlabel("probability of x = 1")
    for row, label in enumerate(("expected loss", "bias of a gradient", "standard deviation of a gradient")):
        axes[row, 0].set_ylabel(label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(folder / "gradient-estimators-polynomial.png", dpi=90)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, runs in found["vae"].items():
        curve = torch.tensor([run["curve"] for run in runs]).mean(0)
        steps = torch.linspace(0, found["budget"]["vae"], len(curve))
        axis.plot(steps, curve, color=colours[name], label=name, linewidth=1.3)
    low = min(min(run["curve"]) for runs in found["vae"].values() for run in runs)
    axis.set(xlabel="step", ylabel="negative bound, nats an image", ylim=(low - 0.5, low + 9))
    axis.legend(frameon=False)
    figure.savefig(folder / "gradient-estimators-vae.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description="Every gradient of rsample on two problems.")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed")
    parser.add_argument("--out", type=Path, help="the folder for the pictures and the numbers")
    args = parser.parse_args()
    # Tensors this small gain nothing from a second thread.
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = measure(QUICK if args.quick else FULL)
    print(f"{time.perf_counter() - start:.0f} s")
    if args.out:
        save_pictures(found, args.out)
        (args.out / "gradient_estimators.json").write_text(json.dumps(rounded(found)) + "\n")


if __name__ == "__main__":
    main()
