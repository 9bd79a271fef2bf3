"""Faults in what a training step calls: log_prob with entropy, ReinMax, GappedStraightThrough, several relaxed samples.

Beside the rows of these kernels and formulas in the other tables."""

from mutants.mutant import Mutant
from mutants.ops import _cpu, _formulas, _kernels, _of, _ops

BOTH, STRAIGHT, OPTIONS = "log_prob_and_entropy.py", "straight_through.py", "tests/test_straight_through.py"
cases, both, estimators = (
    _of("test_kernel_cases.py"),
    _of("test_log_prob_and_entropy.py"),
    _of("test_straight_through.py"),
)


def _in_kernel(file: str, *row: str) -> Mutant:
    return Mutant(f"kernels/{file}", *row)


def _distribution(*row: str) -> Mutant:
    return Mutant("onehot_triton/distribution.py", *row)


MUTANTS = [
    # kernels/log_prob_and_entropy.py
    _in_kernel(
        BOTH,
        "exists = inside & (index >= 0) & (index < columns)\n        x = load_chosen",
        "exists = inside & (index >= 0)\n        x = load_chosen",
        "an index beyond the row is read",
        both("widens"),
    ),
    _in_kernel(
        BOTH,
        "at = draw * rows + row\n        index = tl.load(index_ptr + at, mask=inside, other=-1)",
        "at = draw * rows + row\n        index = tl.load(index_ptr + row, mask=inside, other=-1)",
        "every draw is the first",
        cases("log_prob_and_entropy-alone"),
    ),
    _in_kernel(
        BOTH,
        "_entropy_of(total, rest, moment), mask=inside",
        "_entropy_of(total, total, moment), mask=inside",
        "the sum of the rest with the maximum's own weight",
        cases("log_prob_and_entropy-alone"),
    ),
    _in_kernel(
        BOTH,
        "load_chosen(logits_ptr, row, row_stride,",
        "load_chosen(logits_ptr, row, columns,",
        "stride ignored",
        cases("log_prob_and_entropy-shared"),
    ),
    _in_kernel(
        BOTH,
        "allowed_ptr, allowed_strides)\n        tl.store(log_prob_ptr",
        "allowed_ptr, (row_stride,))\n        tl.store(log_prob_ptr",
        "the logits' stride for the mask",
        cases("log_prob_and_entropy-shared"),
    ),
    _in_kernel(BOTH, ".to(TYPE) * LN2\n", ".to(TYPE)\n", "bits for nats", cases("gradient_of_both_1-alone")),
    _in_kernel(
        BOTH,
        "tl.load(entropy_ptr + row, mask=inside) * LOG2E",
        "tl.load(entropy_ptr + row, mask=inside)",
        "nats for bits",
        cases("gradient_of_both_1-alone"),
    ),
    _in_kernel(
        BOTH,
        "(tl.maximum(log2_p, FAR) + over_tile(entropy))",
        "(log2_p + over_tile(entropy))",
        "0 -inf is NaN",
        cases("gradient_of_both_1-shared"),
    ),
    _in_kernel(
        BOTH,
        "sum_parts(parts_ptr, row, parts, TYPE, PARTS)",
        "sum_parts(parts_ptr, row * 0, parts, TYPE, PARTS)",
        "<p, g> of the first row for all",
        cases("gradient_of_both_and_a_draw"),
    ),
    _in_kernel(
        BOTH,
        "grad_ptr + over_tile(row * grad_stride)",
        "grad_ptr + over_tile(row * columns)",
        "the gradient's stride ignored",
        cases("gradient_of_both_and_a_draw"),
    ),
    _in_kernel(
        BOTH,
        "out_ptr + over_tile(row * columns)",
        "out_ptr + over_tile(row * row_stride)",
        "the input's stride for the output",
        cases("gradient_of_both_1-shared"),
    ),
    _in_kernel(
        BOTH,
        "p * (slope - over_tile(total))",
        "p * slope",
        "a log_prob without its -p",
        cases("gradient_of_both_1-alone"),
    ),
    _in_kernel(
        BOTH,
        "tl.where(column == over_tile(index), over_tile(total), 0.0)",
        "0.0 * x",
        "one draw without its 1",
        cases("gradient_of_both_1-alone"),
    ),
    _in_kernel(
        BOTH,
        '"draws": 1 if index.dim() == 1 else index.shape[0]',
        '"draws": 1',
        "the first draw alone",
        cases("log_prob_and_entropy-alone"),
    ),
    _in_kernel(
        BOTH,
        "if ROWS > 1 or tl.sum(((index >= start)",
        "if tl.sum(((index >= start)",
        "rows of a tile looked at together",
        "",
        "where a row of the tile has its index, all are compared; where none has, there is nothing to add",
    ),
    _in_kernel(
        BOTH,
        "if grad is not None and not tile.one:",
        "if grad is not None and tile.parts > 1:",
        "rows that are walked take <p, g> of one tile",
        cases("gradient_of_both_and_a_draw"),
    ),
    # kernels/straight_through.py
    _in_kernel(
        STRAIGHT,
        "tl.exp2(tl.minimum(d, -_GAP) * over_tile(inverse * LOG2E))",
        "tl.exp2(tl.minimum(d, -_GAP) * LOG2E)",
        "GappedStraightThrough at temperature 1",
        cases("gapped_grad-alone"),
    ),
    _in_kernel(
        STRAIGHT,
        "return tl.exp2(d * over_tile(inverse * LOG2E)), ",
        "return tl.exp2(d * LOG2E), ",
        "ReinMax at temperature 1",
        cases("reinmax_grad-alone"),
    ),
    _in_kernel(
        STRAIGHT,
        "log_sum == log_sum, inverse / total,",
        "log_sum == log_sum, 1.0 / total,",
        "without 1 / t",
        cases("gapped_grad-alone"),
    ),
    _in_kernel(
        STRAIGHT,
        "not isinstance(temperature, Tensor) and temperature == 1 else",
        "not isinstance(temperature, Tensor) else",
        "every number is temperature 1",
        estimators("definition and temperature"),
    ),
    _in_kernel(
        STRAIGHT,
        "grad_ptr + at * grad_stride + winner",
        "grad_ptr + winner",
        "the gradient at the draw is that of the first row",
        cases("reinmax_grad-shared"),
    ),
    _in_kernel(STRAIGHT, "mean = dot / total", "mean = dot", "a mean that is a sum", cases("gapped_grad-alone")),
    _in_kernel(
        STRAIGHT,
        "mask, allowed_ptr, allowed_at + start, hot,",
        "mask, allowed_ptr, allowed_at, hot,",
        "the mask of the first tile for all",
        cases("gapped_grad-walked"),
    ),
    _in_kernel(
        STRAIGHT,
        "load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE), hot",
        "load_grad(grad_ptrs, mask, TYPE), hot",
        "the gradient of the first tile for all",
        cases("reinmax_grad-walked"),
    ),
    _in_kernel(
        STRAIGHT,
        "range(tl.program_id(1) * BLOCK, whole,",
        "range(0, whole,",
        "every part starts at the first tile",
        cases("reinmax_grad-split"),
    ),
    _in_kernel(
        STRAIGHT, "whole, tl.num_programs(1) * BLOCK)", "whole, BLOCK)", "parts overlap", cases("gapped_grad-split")
    ),
    _in_kernel(
        STRAIGHT,
        "(turns - 1 - turn) * tl.num_programs(1)",
        "turn * tl.num_programs(1)",
        "tiles in ascending order",
        "",
        "the L2 alone can tell: the same tiles in another order",
    ),
    _in_kernel(
        STRAIGHT,
        "out_ptrs, whole, whole + column < columns, column,",
        "out_ptrs, whole, None, column,",
        "the last tile is written beyond the row",
        cases("gapped_grad-walked"),
    ),
    _in_kernel(
        STRAIGHT,
        "row = at % rows\n        maximum",
        "row = at\n        maximum",
        "the second draw's logits beyond the last row",
        cases("gapped_grad-walked"),
    ),
    _in_kernel(
        STRAIGHT,
        "row * temperature_stride, inside, TYPE)",
        "at * temperature_stride, inside, TYPE)",
        "the second draw's temperatures beyond the last",
        cases("gapped_grad-alone or gapped_grad-shared"),
    ),
    _in_kernel(
        STRAIGHT,
        "dtype = logits.dtype if draws == 1 else compute_dtype(logits.dtype)",
        "dtype = logits.dtype",
        "draws added in half precision",
        "tests/test_kernels.py tests/test_kernel_cases.py -k 'gapped_grad or draws_are_added'",
    ),
    _in_kernel(
        STRAIGHT,
        "out.view(draws, rows, columns).sum(0)",
        "out.view(draws, rows, columns)[0]",
        "the first draw alone",
        cases("gapped_grad-alone"),
    ),
    _in_kernel(
        STRAIGHT,
        "row * row_stride), column)\n    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column\n    w, p",
        "row * columns), column)\n    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column\n    w, p",
        "stride ignored",
        cases("reinmax_grad-shared"),
    ),
    _in_kernel(
        STRAIGHT,
        "grad_ptr + over_tile(at * grad_stride), column), mask",
        "grad_ptr + over_tile(at * columns), column), mask",
        "the gradient's stride ignored",
        cases("reinmax_grad-shared"),
    ),
    _in_kernel(
        STRAIGHT,
        "mask=winner >= 0, other=0.0",
        "mask=inside, other=0.0",
        "a row without a draw reads before its gradient",
        cases("reinmax_grad"),
    ),
    # The formulas
    _formulas(
        "dz = softmax_backward(softmax(z), for_each_sample(grad, samples).to(p.dtype)) / samples",
        "dz = softmax_backward(softmax(z), for_each_sample(grad, samples).to(p.dtype))",
        "a sum of samples for their mean",
        estimators("samples_of_a_draw"),
    ),
    _formulas(
        "of_draws.repeat_interleave(samples, 0)",
        "of_draws.repeat(samples, *(1,) * (of_draws.dim() - 1))",
        "samples beside those of another draw",
        estimators("samples_of_a_draw"),
    ),
    _formulas("(2 * softmax_backward(m, g)", "(softmax_backward(m, g)", "J(m) g once", estimators("definition")),
    _formulas("softmax_backward(p, g) / 2)", "softmax_backward(p, g))", "all of J(p) g", estimators("definition")),
    _formulas(
        "m = (softmax(shifted(x) / by_row(temperature, p.dtype))",
        "m = (softmax(shifted(x))",
        "ReinMax at temperature 1",
        estimators("definition and temperature"),
    ),
    _formulas("d.clamp_max(-GAP)", "d - GAP", "everything moved by the gap", estimators("definition")),
    _formulas("GAP = 1\n", "GAP = 2\n", "another gap than the paper's", estimators("definition")),
    _formulas(
        "torch.where(hot, d.amax(-1, keepdim=True),",
        "torch.where(hot, d,",
        "a draw not moved",
        estimators("definition"),
    ),
    _formulas(
        "softmax_backward(softmax(score / t), grad.to(score.dtype)) / t)",
        "softmax_backward(softmax(score / t), grad.to(score.dtype)))",
        "without 1 / t",
        estimators("definition and temperature"),
    ),
    _formulas(
        "return score.detach() + (x - x.detach())",
        "return score.detach() + 2 * (x - x.detach())",
        "a second derivative twice its size",
        estimators("second_derivative_of_gapped"),
    ),
    _formulas("unflatten(0, (-1, samples)).mean(1)", "unflatten(0, (-1, samples)).sum(1)", "a sum for a mean", OPTIONS),
    _formulas(
        "return 2 * softmax(with_derivative_of(log_m, logits)) - p / 2",
        "return 2 * softmax(with_derivative_of(log_m, logits)) - p",
        "all of J(p) g where autograd records it",
        estimators("transforms"),
    ),
    _formulas(
        "smooth = softmax_backward(p, of_draw) - p * grad_log_prob",
        "smooth = softmax_backward(p, of_draw) + p * grad_log_prob",
        "the sign of a log_prob's p",
        both("second_derivatives"),
    ),
    _formulas(
        "shifted(x).clamp_min(LOWEST) * -grad_entropy",
        "shifted(x).clamp_min(LOWEST) * grad_entropy",
        "the sign of the entropy's gradient",
        both("second_derivatives"),
    ),
    _formulas(
        "of_draw if grad is None else of_draw + grad",
        "of_draw",
        "a draw without its gradient",
        both("second_derivatives_of_a_draw"),
    ),
    # A CPU's
    _cpu(
        "dz = dz if samples == 1 else dz / samples", "dz = dz + 0", "a sum for a mean", estimators("samples_of_a_draw")
    ),
    _cpu(
        "return formula(x, k.t(), g.transpose(0, 1), t)",
        "return formula(x, k.t(), g.transpose(0, 1), 1.0)",
        "the temperature left out",
        estimators("definition or large_batches"),
    ),
    _cpu(
        "_of_draws(eager.gapped_grad,",
        "_of_draws(eager.reinmax_grad,",
        "one estimator for the other",
        estimators("large_batches"),
    ),
    _cpu(
        "torch.mul(torch.addcmul(offset[part], d, factor[part], out=d), weight, out=result)",
        "torch.mul(torch.mul(d, factor[part], out=d), weight, out=result)",
        "the constant of a row left out",
        both("in_blocks"),
    ),
    _cpu("        d.clamp_(min=eager.LOWEST)\n        result", "        result", "0 -inf is NaN", both("in_blocks")),
    _cpu("result.scatter_add_(-1, k[part], g_k[part])", "pass", "log_probs without their 1", both("in_blocks")),
    _cpu("        if result is d:\n", "        if False:\n", "half precision is never written", both("other_dtypes")),
    _cpu(
        "torch.addcmul(part_of(grad, part), d, slope[part], out=d)",
        "torch.mul(d, slope[part], out=d)",
        "a draw without its gradient, in blocks",
        both("in_blocks"),
    ),
    _cpu(
        "log_prob_index(x, index, None, logsumexp, inside)[0], h, logsumexp",
        "log_prob_index(x, index, None, logsumexp, True)[0], h, logsumexp",
        "an index that is no column is an error",
        both("widens"),
    ),
    _cpu(
        "log_prob_and_entropy(x, drawn.index, None, drawn.all_valid)\n    return drawn",
        "log_prob_and_entropy(x, drawn.index, None, True)\n    return drawn",
        "a row without a draw has an index that is no column",
        both("of_a_row_that_is_no_distribution"),
    ),
    _formulas(
        "drawn = straight_through(x, None, draws, dtype, seed, ReparamGradientStrategy.PassThrough, 1.0, 1)",
        "drawn = straight_through(x.detach(), None, draws, dtype, seed, ReparamGradientStrategy.PassThrough, 1.0, 1)",
        "a draw without its tangent",
        both("forward_mode") + " --without-cpu",
    ),
    # Autograd
    _ops(
        "*x.shape)\n                grad = grad[0] if draws == 1 else grad.sum(0)\n            backend",
        "*x.shape)\n                grad = grad[0]\n            backend",
        "the gradient of the first draw",
        both("a_draw_with_both"),
    ),
    _ops(
        "torch.zeros_like(entropy) if grad_entropy is None",
        "torch.ones_like(entropy) if grad_entropy is None",
        "a gradient of an entropy that no loss takes",
        both("of_a_value and logits"),
    ),
    _ops(
        "entropy.new_zeros((draws, rows))",
        "entropy.new_ones((draws, rows))",
        "a gradient of a log_prob that no loss takes",
        both("of_a_value and logits"),
    ),
    _ops(
        "backend = _of_backward(ctx.backend)\n            mask",
        "backend = ctx.backend\n            mask",
        "the gradient of a kernel, which has no derivative",
        both("second_derivatives"),
    ),
    _ops(
        "ctx.backend if is_relaxed else _of_backward(ctx.backend)",
        "ctx.backend",
        "the gradient of a kernel, which has no derivative",
        estimators("second_derivative_of_reinmax"),
    ),
    _ops("logsumexp, with_dt, ctx.samples)", "logsumexp, with_dt, 1)", "one sample of several", OPTIONS),
    _ops(
        "and samples == 1 and backend.relaxes_first",
        "and backend.relaxes_first",
        "several samples recorded by autograd in a small batch",
        "",
        "straight_through takes the mean of several as well, of other noise; which is less work is measured",
    ),
    _ops(
        "log_prob, entropy, logsumexp = backend.log_prob_and_entropy(x, index, mask, inside)",
        "log_prob, entropy, logsumexp = backend.log_prob_and_entropy(x, index, None, inside)",
        "both without the mask",
        both("of_a_value"),
    ),
    _ops(
        "(t if t is None else _as_draws(t, dims, len(lead)) for t in (index, value))",
        "(index, value)",
        "indices of repetitions in the place of the rows'",
        "tests/test_launches.py -k computed_as_its_copy",
    ),
    _ops(
        "one_hot, _as_batch(log_prob, dims, batch, lead), entropy",
        "one_hot, _shaped(log_prob, *lead, *batch), entropy",
        "repetitions in front of the rows",
        "tests/test_launches.py -k computed_as_its_copy",
    ),
    _kernels(
        "return torch_ops.gapped_grad(logits, logsumexp, index, grad, temperature, mask)",
        "return torch_ops.gapped_grad(logits, logsumexp, index, grad, temperature, None)",
        "GappedStraightThrough without the mask",
        estimators("definition and mask"),
    ),
    _distribution(
        "if self.grad_method not in (None, ReparamGradientStrategy.PassThrough):\n            drawn: Any",
        "if self.grad_method is ReparamGradientStrategy.RelaxedOneHot:\n            drawn: Any",
        "PassThrough's gradient in the place of ReinMax's",
        both("a_draw_with_both"),
    ),
    # A mask that is no rows
    Mutant(
        "onehot_triton/parameters.py",
        "return mask if repeats or len(batch_sizes(mask)) <= 2 else mask.contiguous()",
        "return mask",
        "a copy of the mask at each call",
        "tests/test_launches.py -k mask_that",
    ),
    Mutant(
        "onehot_triton/parameters.py",
        "return mask if repeats or len(batch_sizes(mask)) <= 2 else mask.contiguous()",
        "return mask if len(batch_sizes(mask)) <= 2 else mask.contiguous()",
        "a copy of a mask that repeats itself as the logits do",
        "tests/test_launches.py -k mask_that",
    ),
    _distribution(
        "as_given = self._logits is self._param and self._mask_to_apply is self._mask",
        "as_given = self._logits is self._param",
        "the copy of a mask that has changed since",
        "tests/test_launches.py -k mask_that",
    ),
]
