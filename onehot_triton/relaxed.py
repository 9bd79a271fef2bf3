"""RelaxedOneHotCategorical, soft one-hot samples on the simplex, and ExpRelaxedOneHotCategorical, their logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from . import checks, compute, ops, parameters
from .distribution import SampleShape, _sharded
from .tensors import is_sharded, scalar_tensor

if TYPE_CHECKING:
    import numpy as np


class _Relaxed(Distribution):
    """The base of the two classes, which differ in what a value is: y or log y."""

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}  # pyright: ignore[reportAssignmentType]
    has_rsample = True
    _of_log: bool
    """Whether a value is log y."""

    def __init__(
        self,
        temperature: float | Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        mask: Tensor | np.ndarray | None = None,
    ) -> None:
        self._param, self._name = checks.parameter(logits=logits, probs=probs)
        self._mask = None
        if mask is not None:
            allowed = checks.mask(mask, self._param, validate_args)
            self._param, self._mask = parameters.with_mask(self._param, self._name, allowed, validate_args)
        shape = self._param.shape
        super().__init__(shape[:-1], shape[-1:], validate_args=False)
        self._validate_args = checks.resolve(validate_args, self._param)
        temperature = checks.temperature(temperature, shape[:-1], self._param.device, self._validate_args)
        if torch.compiler.is_compiling() and not isinstance(temperature, Tensor):
            # A compiled program is given a tensor, so that another number needs no other program.
            temperature = scalar_tensor(temperature, self._param)
        self.temperature = temperature
        if self._validate_args:
            logits = self._logits()
            if is_sharded(logits):
                _sharded().check_rows(logits, self._name)
            else:
                checks.rows(logits.detach(), self._param, self._name, self._mask)

    def _logits(self) -> Tensor:
        """Unnormalised logits, -inf where a category is off."""
        logits_of = _sharded().logits_of if is_sharded(self._param) else parameters.logits_of
        logits, mask = logits_of(self._param, self._name == "probs", 0.0, self._mask)
        return parameters.masked(logits, mask)

    @property
    def logits(self) -> Tensor:
        """Normalised log-probabilities, [*batch, columns].

        Sharded columns: placed as the parameters, one collective of 8 bytes.
        """
        logits = self._logits()
        log_probs = _sharded().log_softmax(logits) if is_sharded(logits) else compute.of(logits).log_softmax(logits)
        return log_probs.to(self._param.dtype)

    @property
    def probs(self) -> Tensor:
        """Probabilities, [*batch, columns].

        Sharded columns: placed as the parameters, one collective of 8 bytes.
        """
        logits = self._logits()
        if is_sharded(logits):
            return _sharded().log_softmax(logits).exp().to(self._param.dtype)
        return compute.of(logits).softmax(logits).to(self._param.dtype)

    @property
    def param_shape(self) -> torch.Size:
        """[*batch, columns]."""
        return self._param.shape

    @property
    def mask(self) -> Tensor | None:
        """bool [*batch, columns], True where a category is on; None where no mask was given.

        Sharded columns: placed as the parameters, and nothing is sent.
        """
        return self._mask

    def _rsample(self, shape: SampleShape, generator: torch.Generator | None) -> Tensor:
        checks.generator(generator, self._param.device)
        draw = ops.Draw(checks.sample_shape(shape), None, generator)
        relaxed_sample = _sharded().relaxed_sample if is_sharded(self._param) else ops.relaxed_sample
        out = relaxed_sample(self._logits(), self.temperature, draw, log=self._of_log)
        return out if self._of_log else out.to(self._param.dtype)

    def sample(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """`rsample` without gradient, of sharded columns too."""
        with torch.no_grad():
            return self._rsample(sample_shape, generator)

    def _log_prob(self, value: Tensor) -> Tensor:
        checks.value_shape(value, self._batch_shape, self._event_shape, self._param.device)
        logits, validate = self._logits(), self._validate_args
        if is_sharded(self._param):
            return _sharded().relaxed_log_prob(logits, self.temperature, value, self._of_log, validate)
        if validate:
            checks.relaxed_value(value, logits.detach(), self._param, self.temperature, self._of_log)
        return ops.relaxed_log_prob(logits, self.temperature, value, self._of_log)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """The same distribution over a larger batch; no memory is copied.

        Sharded columns: placed as they are, and nothing is sent.
        """
        return self._expanded_into(self._get_checked_instance(_Relaxed, _instance), torch.Size(batch_shape))

    def _expanded_into(self, new: Any, batch: torch.Size) -> Any:
        """Give `new`, a distribution without attributes, those of this one over a larger batch."""
        shape = batch + self._event_shape
        new._param, new._name = self._param.expand(shape), self._name
        new._mask = None if self._mask is None else self._mask.expand(shape)
        new.temperature, new.has_rsample = self.temperature, self.has_rsample
        Distribution.__init__(new, batch, self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        t = self.temperature
        options = [
            f"temperature: {tuple(t.shape) if isinstance(t, Tensor) else t}",
            f"{self._name}: {tuple(self._param.shape)}",
        ]
        if self._mask is not None:
            options.append("mask")
        return f"{type(self).__name__}({', '.join(options)})"


class ExpRelaxedOneHotCategorical(_Relaxed):
    """The law of log y, y = softmax((logits + Gumbel) / temperature), a draw of `RelaxedOneHotCategorical`.

    In log y nothing underflows: every draw has a finite density, and finite gradients, at temperatures where half of y
    is 0. Signature and density are those of torch.distributions.relaxed_categorical.ExpRelaxedCategorical (Maddison,
    Mnih and Teh 2017, https://arxiv.org/abs/1611.00712, appendix C.3).

    Args:
        temperature, probs, logits, validate_args, mask: as for `RelaxedOneHotCategorical`. A category that is off has
            value -inf in every sample.

    Parameters may be DTensors, as for `OneHotCategorical`.

    Raises:
        ValueError: naming the argument, what was expected and what was found, with the first bad position.

    Example:
        >>> import torch
        >>> from onehot_triton import ExpRelaxedOneHotCategorical
        >>> dist = ExpRelaxedOneHotCategorical(0.01, logits=torch.zeros(4))
        >>> log_y = dist.rsample((1000,))
        >>> bool((log_y.exp() == 0).any()), bool(dist.log_prob(log_y).isfinite().all())
        (True, True)
    """

    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    _of_log = True

    def rsample(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """log y of points y of the simplex, [*sample_shape, *batch, columns], with gradients in the logits and the
        temperature.

        In float32 at least, also for parameters in half precision: float16 ends at -65504, and the density multiplies
        log y by the temperature for every category, where bfloat16 has three digits. torch's operations compute it on
        every device.

        Args:
            sample_shape: leading dimensions; None, an int or a sequence of ints.
            generator: on the device of the parameters; None for torch's default one.

        Sharded columns: as of `RelaxedOneHotCategorical.rsample`.
        """
        return self._rsample(sample_shape, generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of log y, with n categories of probability p that are on and temperature t,

            log Gamma(n) + (n - 1) log t - n logsumexp_j(log p_j - t log y_j) + sum_j (log p_j - t log y_j),

        equation (25) of Maddison et al. 2017, differentiable in the parameters, the temperature and the value.

        Args:
            value: log y, [..., columns], whose exponentials sum to 1; its leading dimensions broadcast against the
                batch. It is -inf where a category is off; another value there has log-density -inf, and where arguments
                are validated is a ValueError. The log-density is -inf, too, where another category has -inf.

        Returns:
            The broadcast leading dimensions, in float32, or float64 for parameters in float64.

        Sharded columns: as of `RelaxedOneHotCategorical.log_prob`.
        """
        return self._log_prob(value)


class RelaxedOneHotCategorical(_Relaxed):
    """The Concrete, or Gumbel-softmax, distribution: softmax((logits + Gumbel) / temperature).

    Signature and density are torch.distributions.RelaxedOneHotCategorical's (Maddison, Mnih and Teh 2017,
    https://arxiv.org/abs/1611.00712; Jang, Gu and Poole 2017, https://arxiv.org/abs/1611.01144).

    Args:
        temperature: above 0; a tensor, floating or integer, has one element or broadcasts to the batch. Differentiable.
        probs: [*batch, columns] non-negative weights; or
        logits: [*batch, columns] unnormalised log-probabilities. float16, bfloat16, float32 or float64. A category with
            -inf, or weight 0, has value 0 in every sample.
        validate_args: as for `OneHotCategorical`.
        mask: True where a category is on, in the forms that `MaskedOneHotCategorical` takes. A category that is off has
            value 0 in every sample and gradient 0, whatever its parameter, NaN included. A row in which none is on is
            invalid: where arguments are not validated, its samples and densities are NaN.

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

    support = constraints.simplex  # pyright: ignore[reportAssignmentType]
    _of_log = False

    @property
    def base_dist(self) -> ExpRelaxedOneHotCategorical:
        """The law of log y, of the same parameters, temperature and mask, as torch's class has it.

        The way to densities of one's own draws: they are finite where y underflows, and so are all gradients.

        Sharded columns: placed as they are, and nothing is sent.

        Example:
            >>> dist = RelaxedOneHotCategorical(0.01, logits=torch.zeros(4))
            >>> log_y = dist.base_dist.rsample((1000,))
            >>> y, log_prob = log_y.exp(), dist.base_dist.log_prob(log_y)
        """
        return self._expanded_into(object.__new__(ExpRelaxedOneHotCategorical), self._batch_shape)

    def rsample(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Points of the simplex, [*sample_shape, *batch, columns] in the parameters' dtype, with gradients in the
        logits and the temperature.

        Args:
            sample_shape: leading dimensions; None, an int or a sequence of ints.
            generator: on the device of the parameters; None for torch's default one.

        Sharded columns: placed as the parameters, and so is the gradient. One collective of 16 bytes a draw, since
        the scores are float64; in the backward one of 8, and one for the gradient of the temperature.
        """
        return self._rsample(sample_shape, generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density on the simplex, with n categories of probability p that are on and temperature t,

            log Gamma(n) + (n - 1) log t - n logsumexp_j(log p_j - t log y_j) + sum_j (log p_j - (t + 1) log y_j),

        equation (10) of Maddison et al. 2017, differentiable in the parameters, the temperature and the value.

        In float32 half of a draw can be 0. For m zeros among the n values the density is the limit for zeros that
        become 0 together: +inf where (n - m) t < m, -inf where (n - m) t > m, and finite where the two are equal. Its
        gradient is 0 where it is infinite. `base_dist` has a finite density for every draw of its own.

        Args:
            value: [..., columns], not negative and summing to 1; its leading dimensions broadcast against the batch.
                It is 0 where a category is off; mass there has log-density -inf, and where arguments are validated is
                a ValueError. Sums are checked to what the dtype of the value or the parameters can tell.

        Returns:
            The broadcast leading dimensions, in float32, or float64 for parameters in float64.

        Sharded columns: Replicate, two collectives of 4 bytes and 16 a draw together.
        """
        return self._log_prob(value)
