"""A Dreamer-style autoencoder, with 32 one-hot variables of 32 categories, on the digits that scikit-learn ships.

The encoder gives logits; a draw of `OneHotCategorical`, mixed with 1 % of the uniform distribution, goes to the
decoder, and the gradient of the reconstruction comes back through the draw: by PassThrough, or by RelaxedOneHot.

    pip install 'onehot_triton[examples]'
    python examples/dreamer_latent.py --out pictures
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import kl_divergence

from onehot_triton import OneHotCategorical, ReparamGradientStrategy

VARIABLES, CATEGORIES, UNIMIX = 32, 32, 0.01
FREE_NATS = 0.1
"""Nats of each variable that cost nothing."""


def digits() -> tuple[Tensor, Tensor]:
    """8 x 8 images in [0, 1]: 1,500 to train on, the other 297 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed: pip install 'onehot_triton[examples]'") from None
    images = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return images[:1500], images[1500:]


class Autoencoder(nn.Module):
    def __init__(self, method: ReparamGradientStrategy, temperature: float) -> None:
        super().__init__()
        self.method, self.temperature = method, temperature
        self.encoder = nn.Sequential(
            nn.Linear(64, 256), nn.SiLU(), nn.LayerNorm(256), nn.Linear(256, VARIABLES * CATEGORIES)
        )
        self.decoder = nn.Sequential(
            nn.Linear(VARIABLES * CATEGORIES, 256), nn.SiLU(), nn.LayerNorm(256), nn.Linear(256, 64)
        )

    def posterior(self, images: Tensor) -> OneHotCategorical:
        logits = self.encoder(images).unflatten(-1, (VARIABLES, CATEGORIES))
        return OneHotCategorical(logits, grad_method=self.method, temperature=self.temperature, unimix=UNIMIX)

    def forward(self, images: Tensor) -> tuple[Tensor, OneHotCategorical]:
        posterior = self.posterior(images)
        return self.decoder(posterior.rsample().flatten(-2)), posterior


def reconstruction_error(model: Autoencoder, images: Tensor) -> float:
    """The squared error of an image, on images that were not trained on."""
    with torch.no_grad():
        return (model(images)[0] - images).square().sum(-1).mean().item()


def train(model: Autoencoder, images: Tensor, test: Tensor, steps: int) -> list[float]:
    """Returns the loss of each step."""
    prior = OneHotCategorical(torch.zeros(VARIABLES, CATEGORIES))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses, start = [], time.perf_counter()
    for step in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        reconstruction, posterior = model(batch)
        kl = kl_divergence(posterior, prior).clamp(min=FREE_NATS).sum(-1).mean()
        loss = F.mse_loss(reconstruction, batch, reduction="none").sum(-1).mean() + 0.02 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(1, steps // 4) == 0:
            recent = sum(losses[-50:]) / len(losses[-50:])
            print(
                f"  step {step + 1:5}: loss {recent:6.3f}, kl {kl.item():5.1f} nats, "
                f"test error {reconstruction_error(model, test):6.3f}, {time.perf_counter() - start:4.1f} s"
            )
    return losses


def save_pictures(models: dict[str, Autoencoder], curves: dict[str, list[float]], images: Tensor, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, losses in curves.items():
        smooth = torch.tensor(losses).unfold(0, min(25, len(losses)), 1).mean(-1)
        axes.plot(smooth, label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="32 x 32 one-hot latents")
    axes.legend()
    path = folder / "dreamer_latent_loss.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"saved {path}")

    rows = {"image": images} | {name: model(images)[0].detach() for name, model in models.items()}
    figure, grid = plt.subplots(len(rows), len(images), figsize=(len(images), 1.1 * len(rows)))
    for axes_row, (name, row) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, row, strict=True):
            axes.imshow(image.view(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, fontsize=7)
    path = folder / "dreamer_latent_reconstructions.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"saved {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A Dreamer-style autoencoder with 32 x 32 one-hot latents.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the RelaxedOneHot gradient")
    parser.add_argument("--quick", action="store_true", help="100 steps")
    parser.add_argument("--out", type=Path, help="the folder for the loss curves and the reconstructions")
    args = parser.parse_args()
    # Tensors this small gain nothing from a second thread, and lose six times the work where cores are busy.
    torch.set_num_threads(1)
    images, test = digits()
    print(
        f"an image is {images.square().sum(-1).mean():.2f} from nothing, {images.var(0).sum():.2f} from the mean image"
    )
    models, curves = {}, {}
    for method in (ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot):
        print(method.name)
        torch.manual_seed(0)
        temperature = args.temperature if method is ReparamGradientStrategy.RelaxedOneHot else 1.0
        models[method.name] = Autoencoder(method, temperature)
        curves[method.name] = train(models[method.name], images, test, 100 if args.quick else args.steps)
    if args.out:
        save_pictures(models, curves, test[:10], args.out)


if __name__ == "__main__":
    main()
