"""How `rsample` sends a gradient through a draw that is exactly 0 and 1."""

from enum import Enum

from torch.serialization import add_safe_globals


class ReparamGradientStrategy(Enum):
    """The gradient of a one-hot sample h in the logits x, with p = softmax(x) and g the incoming gradient.

    The names and values of the first two are TorchRL's. J(m) g = m (g - <m, g>), and t is the temperature. Which to
    choose, and why: docs/gradients.md.

    Attributes:
        PassThrough: p (g - <p, g>), the gradient of softmax(x): Bengio, Leonard and Courville 2013,
            https://arxiv.org/abs/1308.3432.
        RelaxedOneHot: y (g - <y, g>) / t with y = softmax((x + Gumbel) / t) the relaxed sample whose arg-max is h, at
            temperature t: straight-through Gumbel-softmax, Jang, Gu and Poole 2017, https://arxiv.org/abs/1611.01144.
            The mean over `relaxed_samples` of y that have the draw in common is Gumbel-Rao: Paulus, Maddison and
            Krause 2021, https://arxiv.org/abs/2010.04838.
        ReinMax: 2 J(m) g - J(p) g / 2 with m = (softmax(x / t) + h) / 2, t >= 1; at t = 1 exact in the mean for every
            quadratic function of the draw: Liu, Dong, Liu, Yu and Gao 2023, https://arxiv.org/abs/2304.08612.
        GappedStraightThrough: J(softmax(x' / t)) g / t with x'_k = max x at the draw and x'_j = min(x_j, max x - 1)
            elsewhere: the nearest logits at which the draw wins by 1. Fan, Chi, Rudnicky and Ramadge 2022,
            https://arxiv.org/abs/2206.07235.

    Example:
        >>> ReparamGradientStrategy.PassThrough.name
        'PassThrough'
    """

    PassThrough = 1
    RelaxedOneHot = 2
    ReinMax = 3
    GappedStraightThrough = 4


# A checkpoint holds it among its hyper-parameters, and torch.load by default unpickles what it was told of alone.
add_safe_globals([ReparamGradientStrategy])
