"""RelaxedOneHotCategorical: soft one-hot samples on the simplex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from . import _backends as backends
from . import checks, ops, parameters
from .distribution import SampleShape, _sharded
from .tensors import compute_dtype, is_sharded, scalar_tensor


class RelaxedOneHotCategorical(Distribution):
    """The Concrete, or Gumbel-softmax, distribution: softmax((logits + Gumbel) / temperature).

    Signature and density are torch.distributions.RelaxedOneHotCategorical's (Maddison, Mnih and Teh 2017,
    https://arxiv.org/abs/1611.00712; Jang, Gu and Poole 2017, https://arxiv.org/abs/1611.01144).

    Args:
        temperature: above 0; a tensor, floating or integer, has one element or broadcasts to the batch. Differentiable.
        probs: [*batch, columns] non-negative weights; or
        logits: [*batch, columns] unnormalised log-probabilities. float16, bfloat16, float32 or float64. A category with
            -inf, or weight 0, has value 0 in every sample.
        validate_args: as for `OneHotCategorical`.

    Parameters may be DTensors, as for `OneHotCategorical`.

    Raises:
        ValueError: naming the argument, what was expected and what was found, with the first bad position.

    Example:
        >>> import torch
        >>> from onehot_triton import RelaxedOneHotCategorical
        >>> dist = RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(4))
        >>> dist.rsample((2,)).shape
        torch.Size([2, 4])
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}  # pyright: ignore[reportAssignmentType]
    support = constraints.simplex  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self,
        temperature: float | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._param, self._name = checks.parameter(logits=logits, probs=probs)
        shape = self._param.shape
        super().__init__(shape[:-1], shape[-1:], validate_args=False)
        self._validate_args = checks.resolve(validate_args, self._param)
        temperature = checks.temperature(temperature, shape[:-1], self._param.device, self._validate_args)
        if torch.compiler.is_compiling() and not isinstance(temperature, Tensor):
            # A compiled program is given a tensor, so that another number needs no other program.
            temperature = scalar_tensor(temperature, self._param)
        self.temperature = temperature
        if self._validate_args:
            logits = self._logits().detach()
            if is_sharded(logits):
                _sharded().check_rows(logits, self._name)
            else:
                checks.rows(logits, self._param, self._name)

    def _logits(self) -> Tensor:
        if is_sharded(self._param):
            return _sharded().logits_of(self._param, self._name == "probs", 0.0)[0]
        return parameters.logits_of(self._param, self._name == "probs", 0.0)[0]

    @property
    def logits(self) -> Tensor:
        """Normalised log-probabilities, [*batch, columns].

        Of sharded columns: placed as the parameters, one collective of 8 bytes.
        """
        logits = self._logits()
        log_probs = _sharded().log_softmax(logits) if is_sharded(logits) else backends.of(logits).log_softmax(logits)
        return log_probs.to(self._param.dtype)

    @property
    def probs(self) -> Tensor:
        """Probabilities, [*batch, columns].

        Of sharded columns: placed as the parameters, one collective of 8 bytes.
        """
        logits = self._logits()
        if is_sharded(logits):
            return _sharded().log_softmax(logits).exp().to(self._param.dtype)
        return backends.of(logits).softmax(logits).to(self._param.dtype)

    @property
    def param_shape(self) -> torch.Size:
        """[*batch, columns]."""
        return self._param.shape

    def rsample(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Points of the simplex, [*sample_shape, *batch, columns] in the parameters' dtype, with gradients in the
        logits and the temperature.

        Args:
            sample_shape: leading dimensions; None, an int or a sequence of ints.
            generator: on the device of the parameters; None for torch's default one.

        Of sharded columns: placed as the parameters, and so is the gradient. One collective of 16 bytes a draw, since
        the scores are float64; in the backward one of 8, and one for the gradient of the temperature.
        """
        checks.generator(generator, self._param.device)
        draw = ops.Draw(checks.sample_shape(sample_shape), None, generator)
        relaxed_sample = _sharded().relaxed_sample if is_sharded(self._param) else ops.relaxed_sample
        return relaxed_sample(self._logits(), self.temperature, draw).to(self._param.dtype)

    def sample(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """`rsample` without gradient, of sharded columns too."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density on the simplex, with n categories of probability p and temperature t,

            log Gamma(n) + (n - 1) log t - n logsumexp_j(log p_j - t log y_j) + sum_j (log p_j - (t + 1) log y_j),

        equation (10) of Maddison et al. 2017, differentiable in the parameters, the temperature and the value.

        Args:
            value: [..., columns], positive and summing to 1; its leading dimensions broadcast against the batch.

        Returns:
            The broadcast leading dimensions, in float32, or float64 for parameters in float64.

        Of sharded columns: Replicate, two collectives of 12 bytes a draw together.
        """
        checks.value_shape(value, self._batch_shape, self._event_shape, self._param.device)
        if self._validate_args and not is_sharded(self._param):
            self._validate_sample(value)
        if is_sharded(self._param):
            return _sharded().relaxed_log_prob(self._logits(), self.temperature, value)
        dtype = compute_dtype(self._param.dtype)
        columns = self._event_shape[0]
        t = self.temperature
        if isinstance(t, Tensor):
            t = t.to(dtype)
            t = t.reshape(()) if t.numel() == 1 else t
            column_t, log_t = t.unsqueeze(-1), t.log()
        else:
            column_t, log_t = t, math.log(t)
        log_y = value.to(dtype).log()
        score = self._logits().to(dtype) - column_t * log_y
        density = backends.of(score).log_softmax(score).sum(-1) - log_y.sum(-1)
        return density + (columns - 1) * log_t + math.lgamma(columns)

    def expand(
        self, batch_shape: Sequence[int], _instance: RelaxedOneHotCategorical | None = None
    ) -> RelaxedOneHotCategorical:
        """The same distribution over a larger batch; no memory is copied.

        Of sharded columns: placed as they are, and nothing is sent.
        """
        new: Any = self._get_checked_instance(RelaxedOneHotCategorical, _instance)
        batch = torch.Size(batch_shape)
        new._param, new._name = self._param.expand(batch + self._event_shape), self._name
        new.temperature, new.has_rsample = self.temperature, self.has_rsample
        Distribution.__init__(new, batch, self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"{type(self).__name__}(temperature: {self.temperature}, {self._name}: {tuple(self._param.shape)})"
