"""Faults in the eager path, the autograd, the operators and the seeds."""

import shlex
from collections.abc import Callable

from mutants.mutant import Mutant

REFERENCE, OPS = "onehot_triton/reference.py", "onehot_triton/ops.py"
LIBRARY, RNG = "onehot_triton/library.py", "onehot_triton/rng.py"
SEEDS = "tests/test_rng.py"


def _of(file: str) -> Callable[[str], str]:
    """The tests of a file whose names match an expression of pytest's -k."""
    return lambda expression: f"tests/{file} -k {shlex.quote(expression)}"


eager, operators, hard = _of("test_eager_path.py"), _of("test_operators.py"), _of("test_hard_cases.py")
gradients, relaxed, distribution = _of("test_gradients.py"), _of("test_relaxed.py"), _of("test_distribution.py")


def _reference(old: str, new: str, why: str, tests: str, equivalent: str = "") -> Mutant:
    return Mutant(REFERENCE, old, new, why, tests, equivalent)


def _ops(old: str, new: str, why: str, tests: str, equivalent: str = "") -> Mutant:
    return Mutant(OPS, old, new, why, tests, equivalent)


def _library(old: str, new: str, why: str, tests: str, equivalent: str = "") -> Mutant:
    return Mutant(LIBRARY, old, new, why, tests, equivalent)


def _rng(old: str, new: str, why: str, tests: str, equivalent: str = "") -> Mutant:
    return Mutant(RNG, old, new, why, tests, equivalent)


MUTANTS = [
    Mutant(
        "onehot_triton/ops.py",
        "if kernels and not isinstance(temperature, Tensor) and not torch.compiler.is_compiling():",
        "if False:",
        "a launch that fills a tensor with the temperature",
        "tests/test_no_waiting.py -k 'waits_or_copies and (soft or RelaxedOneHot)'",
    ),
    Mutant(
        "onehot_triton/ops.py",
        " and not isinstance(temperature, Tensor) and not torch.compiler.is_compiling()",
        " and not isinstance(temperature, Tensor)",
        "a compiled program for each temperature",
        "tests/test_compile.py -k another_temperature",
    ),
    Mutant(
        "onehot_triton/ops.py",
        "return (temperature, 1.0) if temperature is None or isinstance(temperature, Tensor) else (None, temperature)",
        "return (temperature, 1.0) if temperature is None or isinstance(temperature, Tensor) else (None, 1.0)",
        "the number not passed on",
        "tests/test_relaxed.py tests/test_gradients.py -k triton",
    ),
    # The eager path
    _reference("_SAFE = 60.0", "_SAFE = 100.0", "exp is infinite in float32", eager("large_logits")),
    _reference(
        "_LOWEST = -10_000", "_LOWEST = -10", "small terms of the entropy cut off", eager("small_probabilities")
    ),
    _reference("_RACED = 4", "_RACED = 0", "other numbers from a seed than README shows", "tests/test_readme.py"),
    _reference(
        "index.clamp(max=groups - 1), []",
        "index, []",
        "a search that ends beyond the last group",
        eager("drawn_nowhere"),
    ),
    _reference(".nansum(-1)", ".sum(-1)", "0 times -inf in the entropy of long rows", eager("entropy_of_a_long_row")),
    _reference(
        "_BLOCK // max(1, elements_per_row)",
        "2 * _BLOCK // max(1, elements_per_row)",
        "blocks twice as large",
        eager("blocks_are"),
    ),
    _reference("rows * elements_per_row <= _BLOCK", "rows <= _BLOCK", "no blocks at all", eager("blocks_are")),
    _reference("range(0, rows, step)]", "range(0, rows - 1, step)]", "the last row left out", eager("blocks_are")),
    _reference(
        "min(start + step, rows)", "min(start + step - 1, rows)", "a row lost between two blocks", eager("blocks_are")
    ),
    _reference(
        "shape[dim] = rows",
        "shape[0] = rows",
        "the rows of a result taken for its first dimension",
        eager("relaxed_draws_by_blocks"),
    ),
    _reference("else tensor[part]", "else tensor", "every block reads all rows", eager("by_blocks")),
    _reference(
        "logits.amax(-1).isfinite()",
        "~logits.amax(-1).isnan()",
        "a row of +inf is called a distribution",
        hard("bad_row_checked"),
    ),
    _reference(
        "return p / total if is_differentiated(logits)",
        "return p if is_differentiated(logits)",
        "small terms lost behind a large one",
        hard("no_small_term"),
    ),
    _reference(
        "return log_p - log_total if", "return log_p + log_total if", "the sign of a correction", hard("no_small_term")
    ),
    _reference("(total / weight.amax(-1)).log()", "total.log()", "the largest weight taken for 1", eager("by_blocks")),
    _reference(
        "-(2.0**-54), alpha=1 - 2.0**-52", "-(2.0**-54), alpha=1", "noise of an infinite variate", hard("float64_noise")
    ),
    _reference("-(2.0**-54), alpha", "0.0, alpha", "noise that is 0", hard("float64_noise")),
    _reference(
        "torch.where(v < 0.5,", "torch.where(v < 2,", "the complement without its low digits", hard("float32_noise")
    ),
    _reference(
        "torch.log1p(-v), torch.log(complement)",
        "torch.log1p(-v), torch.log(v)",
        "the wrong tail of the noise",
        hard("float32_noise"),
    ),
    _reference("lo.float() + 0.5", "lo.float()", "noise that is 0", hard("float32_noise")),
    _reference(
        "(weight / e).argmin(-1)",
        "(weight / e).argmax(-1)",
        "a race that the last one wins",
        eager("eager_draws_have_their_law"),
    ),
    _reference(
        "(weight / e).argmin(-1)",
        "(weight.sqrt() / e).argmin(-1)",
        "weights to the power 1/2",
        eager("eager_draws_have_their_law"),
    ),
    _reference(
        "u * total, right=True",
        "u * total, right=False",
        "a category of weight 0 is found",
        hard("uniforms_at_both_ends"),
    ),
    _reference(
        "(u.t() * total).contiguous(), right=True",
        "(u.t() * total).contiguous(), right=False",
        "a category of weight 0 is found",
        hard("uniforms_at_both_ends"),
    ),
    _reference(
        "u = _uniform((part.stop - part.start, rows)",
        "u = _uniform((part.stop - part.start, 1)",
        "one uniform for all rows",
        eager("uniform_of_its_own"),
    ),
    _reference(
        "u = _uniform((*lead, 1)",
        "u = _uniform((1, *lead[1:], 1)",
        "one uniform for all draws, in the second stage",
        eager("uniform_of_its_own"),
    ),
    _reference(
        "weight.to(torch.float64, copy=True",
        "weight.to(torch.float32, copy=True",
        "sums in float32",
        eager("small_weights_behind"),
    ),
    _reference(
        "if columns > _RACED and",
        "if columns < _RACED and",
        "the two ways of drawing exchanged",
        "tests/test_readme.py",
    ),
    _reference(
        "while 2 * length**2 < columns",
        "while length**2 < columns",
        "groups of another length, other numbers",
        eager("law"),
        "groups of any length give the same law; which is fastest is measured",
    ),
    _reference(
        "column.clamp(max=columns - 1))\n                if",
        "column.clamp(max=columns - 2))\n                if",
        "the last column is never reached",
        eager("last_column"),
    ),
    _reference(
        "torch.where(column < columns, inside, -torch.inf)",
        "torch.where(column <= columns, inside, -torch.inf)",
        "a column more in the last group",
        eager("last_column"),
    ),
    _reference("if columns % group:", "if False:", "the last column counts more than once", eager("last_column")),
    _reference(
        "_logsumexp_from(inside[0], weight, winner[0])",
        "_logsumexp_from(inside[0], weight, winner[-1])",
        "the share of another draw's group",
        eager("log_prob_that_comes_with_draws"),
    ),
    _reference(
        "some.append(winner * group + choose",
        "some.append(winner + choose",
        "a column of the first groups",
        eager("eager_draws_have_their_law"),
    ),
    _reference(
        "choose(nearly_softmax(inside), winner.shape, winner)",
        "choose(nearly_softmax(inside * 0.5), winner.shape, winner)",
        "a flatter law inside of a group",
        eager("eager_draws_have_their_law"),
    ),
    _reference(
        "index.masked_fill(first.isnan(), -1)",
        "index",
        "a row that is no distribution is drawn",
        eager("drawn_nowhere"),
    ),
    _reference(
        "math.isfinite(first.sum().item())",
        "math.isfinite(first.amax().item() * 0)",
        "NaN found",
        eager("drawn_nowhere"),
        "amax keeps NaN, as the sum does",
    ),
    _reference("low.item() > -_SAFE and high", "high", "small weights that are all 0", eager("large_logits")),
    _reference(
        "logsumexp(-1) - share.log()",
        "logsumexp(-1) + share.log()",
        "the sign of a share",
        eager("log_prob_that_comes_with_draws"),
    ),
    _reference("if whole * group < columns:", "if False:", "the last group left out", eager("last_column")),
    _reference("(index >= 0).to(dtype)", "(index > 0).to(dtype)", "column 0 is never set", distribution("sample")),
    _reference(
        "index if all_valid else index.clamp(min=0)",
        "index if all_valid else index.abs()",
        "-1 read as column 1, where 0 is written",
        hard("bad_row_unchecked"),
        "0 is written, wherever it is",
    ),
    _reference(
        "return tensor.max(-1)[1]", "return tensor.min(-1)[1]", "the other end of a row", hard("argmax_is_the_first")
    ),
    _reference(
        "first = group * _of_groups",
        "first = _of_groups",
        "the mode of a group taken for the row's",
        hard("argmax_is_the_first"),
    ),
    _reference(
        "torch.where(index == at.t(), chosen, torch.nan)",
        "chosen",
        "an index out of bounds counts as the next",
        hard("index_out_of_bounds"),
    ),
    _reference(
        "nearly_softmax(x) * -g.sum(-1, keepdim=True)",
        "nearly_softmax(x) * -g[:, :1]",
        "the gradient of the first draw alone",
        gradients("log_prob_gradient_of_broadcast"),
    ),
    _reference(
        "* -g.unsqueeze(-1)).to(x.dtype)",
        "* g.unsqueeze(-1)).to(x.dtype)",
        "the sign of the entropy's gradient",
        gradients("density_gradient"),
    ),
    _reference(
        "d = (x.to(dtype) - x.detach().amax",
        "d = (x.to(dtype) - 2 * x.detach().amax",
        "a number per row more, which no gradient sees",
        gradients("density_gradient"),
        "softmax and its gradient do not change by one number for a row",
    ),
    _reference(
        "ratio = (noise / winner_noise",
        "ratio = (winner_noise.unsqueeze(-1) / noise).to(p.dtype) / p if True else (noise / winner_noise",
        "the ratio upside down",
        gradients("relaxed_gradient_has_the_law"),
    ),
    _reference(
        "index.clamp(min=0).unsqueeze(-1), 0.0)",
        "index.clamp(min=0).unsqueeze(-1), 1.0)",
        "the winner more certain than it is",
        gradients("relaxed_gradient_has_the_law"),
    ),
    _reference(
        "* inverse).sum(0)", "/ inverse).sum(0)", "times the temperature", gradients("relaxed_gradient_has_the_law")
    ),
    _reference(
        "gumbel = -torch.log(-noise", "gumbel = torch.log(-noise", "the sign of the Gumbel variate", relaxed("law")
    ),
    # The autograd
    _ops(
        "if torch.is_grad_enabled():\n                out, dt = (_NoSecondDerivative",
        "if False:\n                out, dt = (_NoSecondDerivative",
        "the error of the second derivative removed",
        eager("no_derivative"),
    ),
    _ops(
        "if ctx.kernels and not torch.is_grad_enabled():\n                out = _kernels.softmax_grad",
        "if ctx.kernels:\n                out = _kernels.softmax_grad",
        "the kernel's gradient under create_graph",
        eager("create_graph"),
    ),
    _ops(
        "reference.softmax_grad(masked(x, allowed), grad)",
        "reference.softmax_grad(x, grad)",
        "the mask forgotten under create_graph: PassThrough",
        eager("create_graph"),
    ),
    _ops(
        "reference.log_prob_grad(masked(x, allowed), index",
        "reference.log_prob_grad(x, index",
        "the mask forgotten under create_graph: log_prob",
        eager("create_graph"),
    ),
    _ops(
        "reference.entropy_grad(masked(x, allowed), grad)",
        "reference.entropy_grad(x, grad)",
        "the mask forgotten under create_graph: entropy",
        eager("create_graph"),
    ),
    _ops(
        "_kernels.seeded_exponential(seed + next(requests), shape)",
        "_kernels.seeded_exponential(seed, shape)",
        "compiled RelaxedOneHot with one noise for both stages",
        eager("noise_of_their_own"),
    ),
    _ops(
        "noise = (seed_tensor, ctx.key, ctx.offset, 0)",
        "noise = (seed_tensor, ctx.key, 0, 0)",
        "the offset left out of the backward",
        eager("reads_the_noise"),
    ),
    _ops(
        "noise = (seed_tensor, ctx.key, ctx.offset, 0)",
        "noise = (seed_tensor, ctx.key + 1, ctx.offset, 0)",
        "another seed in the backward",
        eager("reads_the_noise"),
    ),
    _ops(
        "grad = grad[0] if draws == 1 else grad.sum(0)",
        "grad = grad[0]",
        "the gradient of the first draw alone",
        gradients("test_pass_through_gradient"),
    ),
    _ops(
        "torch.where(weights == 0, torch.inf, weights)",
        "weights",
        "0 / 0 in the gradient of a category that is off",
        gradients("never_drawn"),
    ),
    _ops(
        "torch.where(allowed, logits, -torch.inf)",
        "torch.where(allowed, logits, -1e4)",
        "a category that is off can be drawn from rows as low",
        "tests/test_masked.py",
    ),
    _ops(
        "1 - unimix) + unimix * uniform",
        "1 - unimix) + uniform",
        "the weight of the uniform part",
        distribution("probs"),
    ),
    _ops(
        "mask.to(logits.dtype) / mask.sum(-1, keepdim=True)",
        "mask.to(logits.dtype) / mask.shape[-1]",
        "the uniform part over all categories",
        "tests/test_masked.py -k unimix",
    ),
    _ops(
        "draws * group >= columns",
        "draws * group < columns",
        "one stage where two cost less",
        eager("law"),
        "both ways have the same law; which is faster is measured",
    ),
    _ops(
        "temperature.numel() == 1:",
        "temperature.numel() >= 1 and temperature.dim() == 1:",
        "a tensor of temperatures taken for one",
        relaxed("rsample_gradient"),
    ),
    _ops(
        "dx = (dz.sum(0) / divisor",
        "dx = (dz.sum(0) * divisor",
        "times the temperature",
        relaxed("rsample_gradient"),
    ),
    _ops(
        "dt = -(dz * log_y).sum((0, 2)) / temperature",
        "dt = (dz * log_y).sum((0, 2)) / temperature",
        "the sign of the temperature's gradient",
        relaxed("rsample_gradient"),
    ),
    _ops(
        "    if temperature.numel() == 1:",
        "    if temperature.numel() == 0:",
        "a temperature of shape (1,) in a batch of another rank",
        eager("temperature_of_one_element"),
    ),
    _ops(
        "name not in _BACKENDS",
        'name not in (*_BACKENDS, "gpu")',
        "a backend that is none",
        eager("backend_that_is_none"),
    ),
    _ops(
        "        _backend = before",
        '        _backend = "auto"',
        "an inner choice of backend ends the outer",
        eager("inner_choice"),
    ),
    # The operators
    _library(
        '"rdrr>r",\n    _launch("softmax_grad"',
        '"rddr>r",\n    _launch("softmax_grad"',
        "vmap: softmax_grad",
        operators("vmap"),
    ),
    _library('"rddrd>ddd"', '"rdrrd>ddd"', "vmap: log_prob's value", operators("vmap")),
    _library('"rddrd>ddd"', '"rddrd>rdd"', "vmap: log_prob's result", operators("vmap")),
    _library('"rddr>d"', '"rdrr>d"', "vmap: log_prob_index", operators("vmap")),
    _library('"rdddr>r"', '"rdrdr>r"', "vmap: log_prob_grad's index", operators("vmap")),
    _library('"rdddr>r"', '"rddrr>r"', "vmap: log_prob_grad's gradient", operators("vmap")),
    _library('"rr>rd"', '"r.>rd"', "vmap: entropy's mask", operators("vmap")),
    _library('"rr>d"', '"r.>d"', "vmap: logsumexp's mask", operators("vmap")),
    _library('"r..s...r>ddd"', '"r..s....>ddd"', "vmap: sample's mask", operators("vmap")),
    _library('"rr..s...>d"', '"r...s...>d"', "vmap: the temperatures of relaxed", operators("vmap")),
    _library('"rdddr.s...r.>rr"', '"rdddr.s.....>rr"', "vmap: relaxed_grad's mask", operators("vmap")),
    _library(
        'info.randomness == "error" and not seeds_are_batched',
        'info.randomness == "error" and seeds_are_batched',
        "the randomness error",
        operators("vmap"),
    ),
    _library(
        'seeds_are_batched or info.randomness == "same"',
        "seeds_are_batched",
        "one seed for all, with other noise for each",
        operators("vmap"),
    ),
    _library(
        "o.numel() > 0 or o.dim() > 1",
        "o.numel() > 0",
        "zero draws taken for what was not asked for",
        operators("vmap_of_no_draws"),
    ),
    _library(
        "torch.empty_like(logits, memory_format=torch.contiguous_format)",
        "torch.empty_like(logits)",
        "fake strides of transposed logits",
        operators("opcheck_of_rows_with_a_stride"),
    ),
    _library(
        "new if logsumexp is None else new.new_empty(0)",
        "new",
        "an operator returns its argument",
        operators("opcheck"),
    ),
    _library(
        "del chosen[at + 1 if chosen[at] is not None else at]",
        "del chosen[at]",
        "the seed tensor not read",
        operators("over_seeds"),
    ),
    # The seeds
    _rng(
        "generator.set_offset(offset + _OFFSET_STEP)",
        "generator.set_offset(offset)",
        "the offset not advanced",
        SEEDS,
    ),
    _rng("key - 2**64 if key >= 2**63", "2**64 - key if key >= 2**63", "the sign of the key", SEEDS),
    _rng(
        "if device.index is None else device.index",
        "if device.index is None else 0",
        "the generator of another device",
        SEEDS,
    ),
]
