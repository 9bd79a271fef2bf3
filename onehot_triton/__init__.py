"""A one-hot categorical distribution, with fused Triton kernels on a GPU and eager torch on a CPU."""

from ._version import __version__
from .compute import use_backend
from .distribution import OneHotCategorical
from .grad_method import ReparamGradientStrategy
from .masked import MaskedOneHotCategorical
from .relaxed import ExpRelaxedOneHotCategorical, RelaxedOneHotCategorical

__all__ = [
    "ExpRelaxedOneHotCategorical",
    "MaskedOneHotCategorical",
    "OneHotCategorical",
    "RelaxedOneHotCategorical",
    "ReparamGradientStrategy",
    "__version__",
    "use_backend",
]
