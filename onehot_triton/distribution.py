"""OneHotCategorical: the categorical distribution over one-hot vectors."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution, constraints, kl
from torch.distributions import OneHotCategorical as TorchOneHotCategorical

from . import checks, compute, ops, parameters, rng
from .compute import base
from .compute.base import LOWEST, Sample
from .grad_method import ReparamGradientStrategy
from .tensors import in_transform, is_recorded, is_sharded, scalar_tensor

if TYPE_CHECKING:
    from . import sharded

SampleShape = int | Sequence[int] | None
"""The leading dimensions of a draw."""


class OneHotCategorical(Distribution):
    """A categorical distribution that reads and produces one-hot encodings.

    Give exactly one of `logits` and `probs`. All is computed in float32 at least. Densities, entropies and KL are
    given so; moments, `rsample` and gradients in the dtype of the parameters, samples in `dtype`. A row is drawn with
    exact tail probabilities: see `docs/design.md`.

    Args:
        logits: [*batch, columns] unnormalised log-probabilities, in float16, bfloat16, float32 or float64. A category
            with -inf is never drawn, has log_prob -inf and gradient 0.
        probs: [*batch, columns] in place of `logits`: non-negative weights, normalised here by their sum. A category
            with weight 0 is treated as one with logit -inf.
        grad_method: the gradient of `rsample`; None means PassThrough, and leaves `has_rsample` False. A member of
            TorchRL's enumeration becomes the one of that name here.
        temperature: of the gradient of RelaxedOneHot, ReinMax and GappedStraightThrough: above 0, for ReinMax at least
            1. A tensor, floating or integer, broadcasts to the batch. RelaxedOneHot has a gradient in it. It does not
            change the law of the draws: to sample at a temperature, divide the logits. 1 for other methods.
        relaxed_samples: K, of RelaxedOneHot: its gradient is the mean of K that have the draw in common, the
            gradient's mean and less of its noise (Gumbel-Rao). 1 for other methods.
        unimix: e in [0, 1], a number or a tensor of one element: the distribution is (1 - e) softmax(logits) +
            e / columns, in all that it does (Hafner et al. 2023, https://arxiv.org/abs/2301.04104). A tensor is read
            here, and no host waits for it: where nothing is validated, one outside [0, 1] makes every row invalid.
        dtype: of `sample`, `mode` and `enumerate_support`: bool, uint8, a signed integer, or a floating dtype of at
            least 16 bits. None is int64 without a `grad_method`, and the dtype of the parameters with one.
        neg_inf: a number below 0, -inf included, that `log_prob` and `logits` give where a probability is 0. None:
            `log_prob` gives -inf, and `logits` -1e4, so that sums of p * logits are finite and have a finite gradient.
        validate_args: True checks parameters and values, False does not; None checks on a CPU where torch's own default
            does, and not on a GPU, where a check is a pass over the row and a device synchronisation.

    Parameters may be DTensors: shapes are then those of the whole, and results DTensors. What has columns is placed as
    the parameters; indices and densities are Replicate where the columns were sharded, and Shard where the batch was.
    What a method says of sharded columns it sends from each rank to each other one that has a part of the same rows: so
    many bytes a row, and a row and draw where it says a draw; of float64 parameters twice as many. Of a sharded batch
    it sends nothing, unless arguments are validated. `docs/scaling.md` has all in a table. `validate_args=None` checks
    nothing then, and True on all ranks.

    Raises:
        ValueError: naming the argument, what was expected and what was found, with the first bad position.

    Example:
        >>> import torch
        >>> from onehot_triton import OneHotCategorical
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.randn(4)
        >>> dist = OneHotCategorical(logits=logits)
        >>> print(dist.rsample((3,)))
        tensor([[1., 0., 0., 0.],
                [0., 0., 0., 1.],
                [1., 0., 0., 0.]])
    """

    arg_constraints = {"logits": constraints.real_vector, "probs": constraints.simplex}  # pyright: ignore[reportAssignmentType]
    support = constraints.one_hot  # pyright: ignore[reportAssignmentType]
    has_enumerate_support = True
    has_rsample: bool = False
    """True for a distribution that was given a `grad_method`: tensordict and Pyro call `sample` where it is False. It
    can be set, as Pyro's `has_rsample_` does."""
    num_params: int = 1
    """The number of parameters that make one distribution: TorchRL asks for it."""
    _mask: Tensor | None = None
    """bool [*batch, columns], the categories that a subclass allows; None for all."""
    _drawn: tuple[weakref.ref[Tensor], int, Tensor, bool] | None = None
    """The last one-hot draw, how often it had been changed in place, where its ones were, a column in every row, and
    whether a CUDA graph was being captured."""
    _last: sharded.Last | None = None
    """The last draw of sharded parameters."""

    def __init__(
        self,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        grad_method: ReparamGradientStrategy | None = None,
        *,
        temperature: float | Tensor = 1.0,
        relaxed_samples: int = 1,
        unimix: float | Tensor = 0.0,
        dtype: torch.dtype | None = None,
        neg_inf: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._param, self._name = checks.parameter(logits=logits, probs=probs)
        if dtype is not None:
            checks.dtype(dtype)
        self.grad_method = checks.grad_method(grad_method)
        self.has_rsample = self.grad_method is not None
        self.relaxed_samples = checks.relaxed_samples(relaxed_samples, self.grad_method)
        self.neg_inf = checks.neg_inf(neg_inf)
        self.dtype = self._default_dtype if dtype is None else dtype
        shape = self._param.shape
        # `is_sharded`, without a call.
        self._is_sharded = type(self._param).__name__ == "DTensor"
        # Not torch's validation: it checks normalised parameters, and reads the row several times.
        super().__init__(shape[:-1], shape[-1:], validate_args=False)
        self._validate_args = checks.resolve(validate_args, self._param)
        device, validate = self._param.device, self._validate_args
        self.unimix = checks.unimix(unimix, self._param, validate)
        self.temperature = checks.temperature(temperature, shape[:-1], device, validate, self.grad_method)
        self._compute_logits()
        if self._validate_args and self._is_sharded:
            _sharded().check_rows(self._logits, self._name)
        elif self._validate_args:
            logits = parameters.masked(self._logits, self._mask_to_apply)
            checks.rows(logits.detach(), self._param, self._name, self._mask)

    # The logits -------------------------------------------------------------------------------------------------------

    def _compute_logits(self) -> None:
        """Sets the unnormalised logits that everything is computed from, with the mask that is still to be applied to
        them."""
        logits_of = _sharded().logits_of if self._is_sharded else parameters.logits_of
        is_probs = self._name == "probs"
        self._logits, self._mask_to_apply = logits_of(self._param, is_probs, self.unimix, self._mask)
        # What is the parameter itself, and the mask, is as they are.
        as_given = self._logits is self._param and self._mask_to_apply is self._mask
        self._made_of = None if as_given else _state(self._param, self._mask)

    def _current_logits(self) -> Tensor:
        """The unnormalised logits, derived anew where the parameter or the mask was changed in place, and where a CUDA
        graph begins or ends to be captured. Every member takes them, so that two states are never mixed."""
        if self._made_of is not None and self._made_of != _state(self._param, self._mask):
            self._compute_logits()
        return self._logits

    def _masked_logits(self) -> Tensor:
        """The unnormalised logits with -inf at masked categories, for what torch computes."""
        return parameters.masked(self._current_logits(), self._mask_to_apply)

    def _in_param_dtype(self, result: Tensor) -> Tensor:
        """`result` in the parameters' dtype; itself where it has it: even `to` is a call through the dispatcher."""
        return result if result.dtype == self._param.dtype else result.to(self._param.dtype)

    @property
    def _default_dtype(self) -> torch.dtype:
        return torch.int64 if self.grad_method is None else self._param.dtype

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_logits", "_mask_to_apply", "_made_of", "_drawn", "_last"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compute_logits()

    # Parameters -------------------------------------------------------------------------------------------------------

    @property
    def logits(self) -> Tensor:
        """Normalised log-probabilities, [*batch, columns], `neg_inf` where a probability is 0, or -1e4 where that is
        None: computed when asked for.

        Drawing from `OneHotCategorical(logits=dist.logits)` is the same law, since exp(-1e4) is 0 in every dtype.

        Sharded columns: placed as the parameters, one collective of 8 bytes.

        Example:
            >>> OneHotCategorical(probs=torch.tensor([1.0, 0.0])).logits
            tensor([     0., -10000.])
        """
        return _filled(self._in_param_dtype(self._log_probs()), LOWEST if self.neg_inf is None else self.neg_inf)

    def _log_probs(self) -> Tensor:
        """Normalised log-probabilities in float32 at least, with -inf where the probability is 0."""
        logits = self._masked_logits()
        return _sharded().log_softmax(logits) if self._is_sharded else compute.of(logits).log_softmax(logits)

    @property
    def probs(self) -> Tensor:
        """Probabilities, [*batch, columns]: computed when asked for.

        Sharded columns: placed as the parameters, one collective of 8 bytes.
        """
        return self._in_param_dtype(self._probs())

    def _probs(self) -> Tensor:
        if self._is_sharded:
            return self._log_probs().exp()
        logits = self._masked_logits()
        return compute.of(logits).softmax(logits)

    @property
    def param_shape(self) -> torch.Size:
        """[*batch, columns]."""
        return self._param.shape

    @property
    def num_samples(self) -> int:
        """The number of categories, as TorchRL calls it."""
        return self._event_shape[0]

    # Samples ----------------------------------------------------------------------------------------------------------

    def _sample(
        self, shape: Any, dtype: torch.dtype | None, generator: torch.Generator | None
    ) -> Sample | sharded.Drawn:
        logits = self._current_logits()
        checks.generator(generator, logits.device)
        draw = ops.Draw(checks.sample_shape(shape), dtype, generator)
        if self._is_sharded:
            drawn = _sharded().sample(logits, draw)
            self._last = _sharded().remember(logits, drawn)
            return drawn
        drawn = ops.sample(logits, self._mask_to_apply, draw)
        self._remember(drawn)
        return drawn

    def _rsample(self, shape: Any, generator: torch.Generator | None) -> Sample | sharded.Drawn:
        logits = self._current_logits()
        checks.generator(generator, logits.device)
        draw = ops.Draw(checks.sample_shape(shape), logits.dtype, generator)
        method = self.grad_method or ReparamGradientStrategy.PassThrough
        samples = self.relaxed_samples
        if self._is_sharded:
            drawn = _sharded().rsample(logits, draw, method, self.temperature, samples)
            assert drawn.one_hot is not None
            drawn = drawn._replace(one_hot=self._in_param_dtype(drawn.one_hot))
            self._last = _sharded().remember(logits, drawn)
            return drawn
        temperature = self.temperature
        if method is ReparamGradientStrategy.RelaxedOneHot and self._mask is not None and self._mask_to_apply is None:
            temperature = ops.constant_where_empty(temperature, logits)
        drawn = ops.rsample(logits, self._mask_to_apply, draw, method, temperature, samples)
        return self._straight_through(drawn)

    def _straight_through(self, drawn: Sample) -> Sample:
        """A draw with a gradient, in the parameters' dtype, and remembered."""
        assert drawn.one_hot is not None
        if drawn.one_hot.dtype != self._param.dtype:
            drawn = drawn._replace(one_hot=self._in_param_dtype(drawn.one_hot))
        self._remember(drawn)
        return drawn

    def _remember(self, drawn: Sample) -> None:
        """Keeps where the ones of a draw are: the next log_prob is most often that of the last draw."""
        one_hot = drawn.one_hot
        if one_hot is None or not drawn.hints or is_recorded(one_hot) or in_transform() or one_hot.is_inference():
            return
        # What cannot be looked at cannot be checked, but by a kernel, which knows of -1.
        kernels = compute.uses_kernels(one_hot.device)
        if kernels or one_hot.is_cpu:
            index = drawn.index if kernels or drawn.all_valid else drawn.index.clamp(min=0)
            self._drawn = weakref.ref(one_hot), one_hot._version, index, rng.is_captured(one_hot.device)

    def _hint(self, value: Tensor) -> Tensor | None:
        """Where the ones of `value` were, if it is the last draw.

        A change through NumPy, `.data` or DLPack leaves no trace in the tensor's version: whether they still are there
        is to be looked at, one number a row.
        """
        if self._drawn is None or is_recorded(value) or in_transform():
            return None
        last, version, index, captured = self._drawn
        # A CUDA graph must not read an index from before it: it may be gone by the time of a replay.
        if captured != rng.is_captured(value.device):
            return None
        draw = last()
        # A draw detached from its gradient is another tensor, with the same memory.
        if draw is None or draw._version != version or not (value is draw or _is_same_memory(value, draw)):
            return None
        return index if value.shape[:-1] == index.shape else None

    def sample(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """One-hot draws, without gradient.

        Args:
            sample_shape: leading dimensions of the result; None, an int or a sequence of ints.
            generator: on the device of the parameters; None for torch's default one.

        Returns:
            [*sample_shape, *batch, columns] of `dtype`. A row that is no distribution, where nothing was validated, is
            all zero.

        Sharded columns: placed as the parameters, one collective of 8 bytes and 12 a draw.

        Example:
            >>> OneHotCategorical(torch.tensor([0.0, float("-inf")])).sample((2,))
            tensor([[1, 0],
                    [1, 0]])
        """
        one_hot = self._sample(sample_shape, self.dtype, generator).one_hot
        assert one_hot is not None
        return one_hot

    def rsample(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """One-hot draws in the parameters' dtype, exactly 0 and 1, with the gradient of `grad_method`.

        Args and shapes are those of `sample`.

        Sharded columns: placed as the parameters, and so is the gradient. One collective of 8 bytes and 12 a draw;
        PassThrough's backward is one of 4 bytes.

        Example:
            >>> logits = torch.zeros(2, requires_grad=True)
            >>> draw = OneHotCategorical(logits, grad_method=ReparamGradientStrategy.PassThrough).rsample()
            >>> (draw * torch.tensor([1.0, 3.0])).sum().backward()
            >>> logits.grad  # p (g - <p, g>)
            tensor([-0.5000,  0.5000])
        """
        one_hot = self._rsample(sample_shape, generator).one_hot
        assert one_hot is not None
        return one_hot

    def sample_index(self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """The draw as category indices, int64 [*sample_shape, *batch]; nothing one-hot is made.

        A row that is no distribution, where nothing was validated, gives -1: `index < 0` finds, for example, the rows
        whose weights are all 0.

        Sharded columns: Replicate, one collective of 8 bytes and 12 a draw.

        Example:
            >>> OneHotCategorical(torch.tensor([0.0, float("-inf")])).sample_index((3,))
            tensor([0, 0, 0])
        """
        return self._sample(sample_shape, None, generator).index

    def sample_and_log_prob(
        self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """`sample` and its `log_prob`: one pass over the logits by the kernels, and for large batches of long rows.

        Sharded columns: placed as by both, and what `sample` sends.

        Example:
            >>> OneHotCategorical(torch.tensor([0.0, float("-inf")])).sample_and_log_prob()
            (tensor([1, 0]), tensor(0.))
        """
        return self._with_log_prob(self._sample(sample_shape, self.dtype, generator))

    def rsample_and_log_prob(
        self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """`rsample` and its `log_prob`: one pass over the logits by the kernels, and for large batches of long rows.

        Sharded columns: placed as by both, and what `rsample` sends.

        Example:
            >>> OneHotCategorical(torch.tensor([0.0, float("-inf")])).rsample_and_log_prob()
            (tensor([1., 0.]), tensor(0.))
        """
        return self._with_log_prob(self._rsample(sample_shape, generator))

    def rsample_log_prob_and_entropy(
        self, sample_shape: SampleShape = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`rsample`, its `log_prob` and `entropy()`: of two readings of the logits, and with one gradient in place of
        three and their sum. It is one node of the graph: of losses that are differentiated one after the other, all
        but the last need `retain_graph=True`. That is of PassThrough; another gradient is a node of its own, beside the
        one of the densities.

        Returns:
            [*sample_shape, *batch, columns] in the parameters' dtype, [*sample_shape, *batch], and [*batch].

        Sharded columns: placed as by all three, and what `rsample` and `entropy` send.

        Example:
            >>> OneHotCategorical(torch.tensor([0.0, float("-inf")])).rsample_log_prob_and_entropy()
            (tensor([1., 0.]), tensor(0.), tensor(0.))
        """
        if self._is_sharded:
            drawn = self._rsample(sample_shape, generator)
            return *self._with_log_prob(drawn), self.entropy()
        if self.grad_method not in (None, ReparamGradientStrategy.PassThrough):
            drawn: Any = self._rsample(sample_shape, generator)
            log_prob, entropy = self._log_prob_and_entropy_at(drawn.index, drawn.all_valid)
        else:
            logits = self._current_logits()
            checks.generator(generator, logits.device)
            draw = ops.Draw(checks.sample_shape(sample_shape), logits.dtype, generator)
            drawn, log_prob, entropy = ops.rsample_log_prob_and_entropy(logits, self._mask_to_apply, draw)
            drawn, log_prob = self._straight_through(drawn), self._log_prob_result(log_prob)
        assert drawn.one_hot is not None
        return drawn.one_hot, log_prob, entropy

    def _with_log_prob(self, drawn: Sample | sharded.Drawn) -> tuple[Tensor, Tensor]:
        assert drawn.one_hot is not None
        if not isinstance(drawn, Sample):
            log_prob = _sharded().log_prob_of(self._current_logits(), drawn, self._lead(drawn.index.shape))
            return drawn.one_hot, self._log_prob_result(log_prob)
        return drawn.one_hot, self._log_prob_at(drawn.index, drawn.logsumexp, drawn.all_valid)

    def _lead(self, shape: torch.Size) -> torch.Size:
        """The dimensions in front of the batch."""
        return shape[: len(shape) - len(self._batch_shape)]

    @property
    def mode(self) -> Tensor:
        """One 1 at the first maximum of each row, [*batch, columns] of `dtype`.

        Sharded columns: placed as the parameters, one collective of 4 bytes.

        Example:
            >>> OneHotCategorical(torch.tensor([0.0, 1.0, 1.0])).mode
            tensor([0, 1, 0])
        """
        if self._is_sharded:
            return _sharded().mode(self._current_logits(), self.dtype)
        logits = self._current_logits()
        index = ops.mode(logits, self._mask_to_apply)
        return compute.of(logits).one_hot(index, self.num_samples, self.dtype)

    @property
    def rmode(self) -> Tensor:
        """`mode` with the straight-through gradient, as Dreamer's actors and world models take it when they act.

        Returns:
            [*batch, columns] in the parameters' dtype, exactly 0 and 1; an invalid row, where nothing was validated, is
            all zero. The gradient is that of PassThrough, p (g - <p, g>), whatever `grad_method` is.

        Sharded columns: placed as the parameters, and so is the gradient. One collective of 8 bytes, and one of 4
        in the backward; 4 alone where nothing is differentiated.

        Example:
            >>> logits = torch.zeros(2, requires_grad=True)
            >>> mode = OneHotCategorical(logits).rmode
            >>> (mode * torch.tensor([1.0, 3.0])).sum().backward()
            >>> logits.grad
            tensor([-0.5000,  0.5000])
        """
        logits = self._current_logits()
        rmode = _sharded().rmode(logits) if self._is_sharded else ops.rmode(logits, self._mask_to_apply)
        return self._in_param_dtype(rmode)

    @property
    def deterministic_sample(self) -> Tensor:
        """The mode, of sharded columns too: tensordict asks for it by this name."""
        return self.mode

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Every one-hot vector, [columns, *batch, columns] of `dtype`; [columns, 1, ..., columns] without `expand`.

        Sharded columns: the last dimension is placed as the parameters', and nothing is sent.
        """
        columns = self.num_samples
        if self._is_sharded:
            return _sharded().enumerate_support(self._param, self._name, self.dtype, expand)
        values = torch.eye(columns, dtype=self.dtype, device=self._param.device)
        values = values.view(columns, *(1,) * len(self._batch_shape), columns)
        return values.expand(columns, *self._batch_shape, columns) if expand else values

    # Densities and moments --------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of one-hot vectors, differentiable in the parameters.

        Args:
            value: [..., columns] of any float, integer or bool dtype; its leading dimensions broadcast against the
                batch. Where arguments are not validated, the first maximum of a row counts. Of the last draw, unchanged
                as far as torch knows, one number a row is read where its ones are still there.

        Returns:
            The broadcast leading dimensions, in float32, or float64 for parameters in float64.

        Raises:
            ValueError: the last dimension is not the number of categories, or, validated, a row is not one-hot.

        Sharded columns: Replicate. The last draw sends nothing, another value one collective of 8 bytes and
        8 a draw; in the backward nothing.

        Example:
            >>> OneHotCategorical(probs=torch.tensor([0.25, 0.75])).log_prob(torch.tensor([True, False]))
            tensor(-1.3863)
        """
        checks.value_shape(value, self._batch_shape, self._event_shape, self._param.device)
        if self._is_sharded:
            logits = self._current_logits()
            drawn = _sharded().recall(self._last, logits, value)
            if drawn is not None:
                out = _sharded().log_prob_of(logits, drawn, self._lead(value.shape[:-1]))
            else:
                out = _sharded().log_prob(logits, value, self._validate_args)
            return self._log_prob_result(out)
        hint = self._hint(value)
        if hint is not None and not compute.uses_kernels(value.device):
            ones = value.detach().gather(-1, hint.unsqueeze(-1)) == 1
            if ones.all().item():
                return self._log_prob_at(hint, inside=True)
            hint = None
        if self._validate_args:
            index = compute.of(value).argmax(value)
            checks.one_hot(value, index)
            return self._log_prob_at(index, inside=True)
        lead = value.shape[:-1]
        if lead[len(lead) - len(self._batch_shape) :] != self._batch_shape:
            return self._log_prob_at(compute.of(value).argmax(value))
        out = ops.log_prob(self._current_logits(), self._mask_to_apply, None, value=value, index=hint)
        return self._log_prob_result(out)

    def log_prob_index(self, index: Tensor) -> Tensor:
        """The log-probability of categories given as indices, differentiable in the parameters.

        Args:
            index: an integer tensor that broadcasts against the batch.

        Returns:
            The broadcast shape, in float32, or float64 for parameters in float64.

        Raises:
            ValueError: `index` is no integer tensor, does not broadcast, or, validated, is outside 0 .. columns - 1.
                Where nothing is validated, NaN stands at such a place.

        Sharded columns: Replicate. The last draw sends nothing, another index one collective of 8 bytes and
        4 a draw; in the backward nothing.

        Example:
            >>> OneHotCategorical(probs=torch.tensor([0.25, 0.75])).log_prob_index(torch.tensor([0, 1]))
            tensor([-1.3863, -0.2877])
        """
        validate = self._validate_args and not self._is_sharded
        checks.index(index, self._batch_shape, self.num_samples, self._param.device, validate)
        if self._is_sharded:
            logits = self._current_logits()
            drawn = _sharded().recall(self._last, logits, index)
            if drawn is not None:
                out = _sharded().log_prob_of(logits, drawn, self._lead(index.shape))
            else:
                out = _sharded().log_prob_index(logits, index, self._validate_args)
            return self._log_prob_result(out)
        return self._log_prob_at(index.long(), inside=self._validate_args)

    def _log_prob_at(self, index: Tensor, logsumexp: Tensor | None = None, inside: bool = False) -> Tensor:
        batch, wide = self._batch_shape, []
        if index.shape[max(index.dim() - len(batch), 0) :] != batch:
            index = index.expand(torch.broadcast_shapes(index.shape, batch))
            # Where the index is wider than the batch are more draws of its rows.
            wide = [d for d in range(-len(batch), 0) if index.shape[d] != batch[d]]
        for d in wide:
            index = index.unsqueeze(0).transpose(0, d)
        out = ops.log_prob(self._current_logits(), self._mask_to_apply, logsumexp, index=index, inside=inside)
        for d in reversed(wide):
            out = out.transpose(0, d).squeeze(0)
        return self._log_prob_result(out)

    def _log_prob_result(self, log_prob: Tensor) -> Tensor:
        return log_prob if self.neg_inf is None else _filled(log_prob, self.neg_inf)

    def entropy(self) -> Tensor:
        """-sum p log p in nats, [*batch], with 0 log 0 = 0, in float32 at least; differentiable.

        Sharded columns: Replicate, one collective of 12 bytes; in the backward nothing is sent.

        Example:
            >>> OneHotCategorical(probs=torch.tensor([0.5, 0.5, 0.0])).entropy()
            tensor(0.6931)
        """
        if self._is_sharded:
            return _sharded().entropy(self._current_logits())
        return ops.entropy(self._current_logits(), self._mask_to_apply)

    def log_prob_and_entropy(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob(value)` and `entropy()`, of one reading of the logits, and with one gradient: what a policy
        gradient takes of a batch of actions. It is one node of the graph: of losses that are differentiated one after
        the other, all but the last need `retain_graph=True`.

        Sharded columns: Replicate, and what both send.

        Example:
            >>> OneHotCategorical(probs=torch.tensor([0.5, 0.5, 0.0])).log_prob_and_entropy(torch.tensor([0, 1, 0]))
            (tensor(-0.6931), tensor(0.6931))
        """
        if self._is_sharded:
            return self.log_prob(value), self.entropy()
        checks.value_shape(value, self._batch_shape, self._event_shape, self._param.device)
        hint, batch = self._hint(value), self._batch_shape
        has_batch = value.shape[max(value.dim() - 1 - len(batch), 0) : -1] == batch
        if compute.uses_kernels(value.device) and has_batch and not self._validate_args:
            logits = self._current_logits()
            log_prob, entropy = ops.log_prob_and_entropy(logits, self._mask_to_apply, value=value, index=hint)
            return self._log_prob_result(log_prob), entropy
        if hint is None or not (value.detach().gather(-1, hint.clamp(min=0).unsqueeze(-1)) == 1).all().item():
            hint = compute.of(value).argmax(value)
            if self._validate_args:
                checks.one_hot(value, hint)
        return self._log_prob_and_entropy_at(hint, inside=True)

    def log_prob_index_and_entropy(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob_index(index)` and `entropy()`, as `log_prob_and_entropy` has them: for a language model's tokens,
        of which there are several for each row where `index` has leading dimensions before the batch's.

        Sharded columns: Replicate, and what both send.

        Example:
            >>> logits = torch.zeros(2, requires_grad=True)
            >>> log_prob, entropy = OneHotCategorical(logits).log_prob_index_and_entropy(torch.tensor(1))
            >>> (log_prob + entropy).backward()
            >>> logits.grad
            tensor([-0.5000,  0.5000])
        """
        if self._is_sharded:
            return self.log_prob_index(index), self.entropy()
        checks.index(index, self._batch_shape, self.num_samples, self._param.device, self._validate_args)
        return self._log_prob_and_entropy_at(index.long(), inside=self._validate_args)

    def _log_prob_and_entropy_at(self, index: Tensor, inside: bool = False) -> tuple[Tensor, Tensor]:
        batch = self._batch_shape
        if index.shape[max(index.dim() - len(batch), 0) :] != batch:
            # An index that widens the batch: there are more log-probabilities than rows, and not as many for each.
            return self._log_prob_at(index, inside=inside), self.entropy()
        logits = self._current_logits()
        out, entropy = ops.log_prob_and_entropy(logits, self._mask_to_apply, index=index, inside=inside)
        return self._log_prob_result(out), entropy

    def cdf(self, value: Tensor) -> Tensor:
        """Raises NotImplementedError: one-hot vectors have no order."""
        raise NotImplementedError("cdf: expected a distribution over ordered values, found one-hot vectors")

    def icdf(self, value: Tensor) -> Tensor:
        """Raises NotImplementedError: one-hot vectors have no order."""
        raise NotImplementedError("icdf: expected a distribution over ordered values, found one-hot vectors")

    @property
    def mean(self) -> Tensor:
        """The probabilities, [*batch, columns], of sharded columns too."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """p (1 - p) of each category, [*batch, columns].

        Sharded columns: placed as the parameters, one collective of 8 bytes.
        """
        probs = self._probs()
        return self._in_param_dtype(probs * (1 - probs))

    # House ------------------------------------------------------------------------------------------------------------

    def expand(self, batch_shape: Sequence[int], _instance: OneHotCategorical | None = None) -> OneHotCategorical:
        """The same distribution over a larger batch, with every option kept; no memory is copied.

        Sharded columns: placed as they are, and nothing is sent.
        """
        new: Any = self._get_checked_instance(OneHotCategorical, _instance)
        batch = torch.Size(batch_shape)
        logits = self._current_logits()
        for name in ("_mask", "_mask_to_apply"):
            tensor = getattr(self, name)
            setattr(new, name, None if tensor is None else tensor.expand(batch + self._event_shape))
        for name in (
            "_name",
            "grad_method",
            "has_rsample",
            "temperature",
            "relaxed_samples",
            "unimix",
            "dtype",
            "neg_inf",
        ):
            setattr(new, name, getattr(self, name))
        new._param, new._is_sharded = self._param.expand(batch + self._event_shape), self._is_sharded
        new._logits = new._param if logits is self._param else logits.expand(batch + self._event_shape)
        new._made_of = None if self._made_of is None else _state(new._param, new._mask)
        Distribution.__init__(new, batch, self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        options = [f"{self._name}: {tuple(self._param.shape)}"]
        if self.grad_method is not None:
            options.append(f"grad_method: {self.grad_method.name}")
        for name, default in (("temperature", 1), ("relaxed_samples", 1), ("unimix", 0)):
            value = getattr(self, name)
            if isinstance(value, Tensor) or value != default:
                options.append(f"{name}: {tuple(value.shape) if isinstance(value, Tensor) else value}")
        if self.dtype != self._default_dtype:
            options.append(f"dtype: {self.dtype}")
        return f"{type(self).__name__}({', '.join(options)})"


def _sharded() -> Any:
    """The module of sharded parameters, which only who has some imports."""
    from . import sharded

    return sharded


def _filled(log_probs: Tensor, neg_inf: float) -> Tensor:
    """Give `log_probs` with `neg_inf` in place of -inf, or with the lowest number if their dtype does not reach it."""
    if neg_inf == -math.inf:
        return log_probs
    lowest = torch.finfo(log_probs.dtype).min
    # A compiled program is given a tensor, so that another number needs no other program.
    compiles = torch.compiler.is_compiling()
    fill = scalar_tensor(neg_inf, log_probs).clamp_min(lowest) if compiles else max(neg_inf, lowest)
    return log_probs.masked_fill(log_probs == -math.inf, fill)


def _is_same_memory(value: Tensor, other: Tensor) -> bool:
    return type(value) is Tensor and value.dtype == other.dtype and value.is_set_to(other)


def _state(param: Tensor, mask: Tensor | None) -> Any:
    """What derived logits were made of: how often the tensors were changed in place, and whether a CUDA graph is being
    captured, since a replay is to compute them of the parameter that is there by then, in memory of its own. Equal to
    nothing where a tensor does not count its changes; 0 where a compiler forbids to ask."""
    if torch.compiler.is_compiling():
        return 0
    if param.is_inference() or (mask is not None and mask.is_inference()):
        return object()
    captured = not is_recorded(param) and rng.is_captured(param.device)
    return param._version, 0 if mask is None else mask._version, captured


# Kullback-Leibler divergence ------------------------------------------------------------------------------------------


def law_of(categorical: TorchCategorical) -> OneHotCategorical:
    """Return the law of torch's `categorical`, by the parameter that it was given.

    torch clamps the logarithm of a probability, and a probability can be 0 where its logit is finite.
    """
    param: Any = categorical._param
    if param is vars(categorical).get("probs"):
        return OneHotCategorical(probs=param, validate_args=False)
    return OneHotCategorical(param, validate_args=False)


@kl.register_kl(OneHotCategorical, OneHotCategorical)
@kl.register_kl(OneHotCategorical, TorchOneHotCategorical)
@kl.register_kl(TorchOneHotCategorical, OneHotCategorical)
def _kl_one_hot(p: OneHotCategorical | TorchOneHotCategorical, q: OneHotCategorical | TorchOneHotCategorical) -> Tensor:
    """Give sum p (log p - log q), [*batch], in float32 at least; see `base.kl`."""
    if p.event_shape != q.event_shape:
        raise ValueError(f"q: expected {p.event_shape[0]} categories, as in p, found {q.event_shape[0]}")
    log_p, log_q = (
        (law_of(dist._categorical) if isinstance(dist, TorchOneHotCategorical) else dist)._log_probs()
        for dist in (p, q)
    )
    return (_sharded() if is_sharded(log_p) or is_sharded(log_q) else base).kl(log_p, log_q)
