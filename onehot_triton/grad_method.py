"""How `rsample` sends a gradient through a draw that is exactly 0 and 1."""

from enum import Enum

from torch.serialization import add_safe_globals


class ReparamGradientStrategy(Enum):
    """The gradient of a one-hot sample h in the logits x, with p = softmax(x) and g the incoming gradient.

    The names and values are TorchRL's.

    Attributes:
        PassThrough: p (g - <p, g>), the gradient of softmax(x): Bengio, Leonard and Courville 2013,
            https://arxiv.org/abs/1308.3432.
        RelaxedOneHot: y (g - <y, g>) / t with y = softmax((x + Gumbel) / t) the relaxed sample whose arg-max is h, at
            temperature t: straight-through Gumbel-softmax, Jang, Gu and Poole 2017, https://arxiv.org/abs/1611.01144.

    Example:
        >>> ReparamGradientStrategy.PassThrough.name
        'PassThrough'
    """

    PassThrough = 1
    RelaxedOneHot = 2


# A checkpoint holds it among its hyper-parameters, and torch.load by default unpickles what it was told of alone.
add_safe_globals([ReparamGradientStrategy])
