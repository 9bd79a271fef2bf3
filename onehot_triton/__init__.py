"""A one-hot categorical distribution, with fused Triton kernels on a GPU and eager torch on a CPU."""

__version__ = "0.1.0.dev0"

from .distribution import OneHotCategorical
from .grad_method import ReparamGradientStrategy
from .ops import use_backend
from .relaxed import RelaxedOneHotCategorical

__all__ = [
    "OneHotCategorical",
    "RelaxedOneHotCategorical",
    "ReparamGradientStrategy",
    "use_backend",
]
