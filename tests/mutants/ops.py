"""Faults in the eager path, the autograd, the operators and the seeds."""

import shlex
from collections.abc import Callable

from mutants.mutant import Mutant

SEEDS = "tests/test_rng.py"


def _of(file: str) -> Callable[[str], str]:
    """The tests of a file whose names match an expression of pytest's -k."""
    return lambda expression: f"tests/{file} -k {shlex.quote(expression)}"


eager, operators, hard = _of("test_eager_path.py"), _of("test_operators.py"), _of("test_hard_cases.py")
joint = _of("test_log_prob_and_entropy.py")
gradients, relaxed, distribution = _of("test_gradients.py"), _of("test_relaxed.py"), _of("test_distribution.py")


def _in(file: str) -> Callable[..., Mutant]:
    """A row of the table: old, new, why, tests, and why it is equivalent."""
    return lambda *row: Mutant(f"onehot_triton/{file}", *row)


_cpu, _small, _formulas, _kernels, _choice = (
    _in(f"_backends/{name}.py") for name in ("cpu", "small", "eager", "triton", "__init__")
)
_ops, _library, _rng, _parameters = (_in(f"{name}.py") for name in ("ops", "torch_ops", "rng", "parameters"))
_blocks, _checks = _in("blocks.py"), _in("checks.py")

MUTANTS = [
    # The temperature as a number
    _ops(
        "        if not torch.compiler.is_compiling():\n            return temperature",
        "        if False:\n            return temperature",
        "a launch that fills a tensor with the temperature",
        "tests/test_no_waiting.py -k 'waits_or_copies and (soft or RelaxedOneHot)'",
    ),
    _ops(
        "        if not torch.compiler.is_compiling():\n            return temperature",
        "        if True:\n            return temperature",
        "a compiled program for each temperature",
        "tests/test_compile.py -k another_temperature",
    ),
    _library(
        "isinstance(given, Tensor) else (None, given)",
        "isinstance(given, Tensor) else (None, number)",
        "the number not passed on",
        operators("tensor_or_a_number"),
    ),
    _kernels(
        "seed.offset, seed.row_offset", "0, seed.row_offset", "the offset not passed on", eager("noise_of_its_draw")
    ),
    # The eager path
    _formulas(
        "weight.sum(-1).isnan()",
        "weight[:, 0].isnan()",
        "a row with +inf behind its first column is drawn from",
        "tests/test_backends.py -k no_distribution",
    ),
    _small(
        "at = torch.searchsorted(cumulative, (u * total).contiguous(), right=True)",
        "at = torch.searchsorted(cumulative, (u * total).contiguous(), right=False)",
        "a small batch: a category of probability 0 for a uniform of 0",
        hard("uniforms_at_both_ends"),
    ),
    _small(
        "rng.uniform_like(total, generator).mul_(total), right=True)",
        "rng.uniform_like(total, generator).mul_(total), right=False)",
        "a small batch, one draw: a category of probability 0 for a uniform of 0",
        hard("one_draw_at_both_ends"),
    ),
    _small(
        "z = x - rng.exponential_of(u).neg_().log_()",
        "z = x + rng.exponential_of(u).neg_().log_()",
        "the sign of the Gumbel variate of a small batch",
        gradients("has_the_law and small"),
    ),
    _small(
        "index = (index if all_valid else index.masked_fill(~top.isfinite(), -1)).squeeze(-1)",
        "index = index.squeeze(-1)",
        "a relaxed sample of a row that is no distribution has an index",
        hard("bad_row_has_no_relaxed_draw"),
    ),
    _formulas(
        "zero if drawn.all_valid else zero.nan_to_num(0.0)",
        "zero",
        "a row that is no distribution makes NaN of its draw",
        hard("bad_row_has_no_relaxed_draw"),
    ),
    _small(
        "p = log_p.exp()",
        "p = log_p.detach().exp()",
        "a small step as one: no gradient of its draw",
        joint("draw"),
    ),
    _small(
        "eager.entropy_of(log_p, p)",
        "eager.entropy_of(log_p, p.detach())",
        "a small step as one: half of the entropy's gradient",
        joint("draw"),
    ),
    _small(
        "out.detach().zero_()",
        "out.detach()",
        "a straight-through draw of a small batch is softmax beside its ones",
        gradients("small"),
    ),
    _small(
        "out = y.to(dtype, copy=True, memory_format=torch.contiguous_format)",
        "out = y.to(dtype, copy=False)",
        "a softmax that the backward needs is written over",
        gradients("small"),
    ),
    _small(
        "z = z.clamp_min(-1e20)",
        "pass",
        "the temperature's gradient is 0 inf beside a category that is off",
        gradients("temperature_has_its_shape"),
    ),
    _cpu(
        "return torch.softmax(logits.t(), 0, dtype=dtype).t()",
        "return torch.softmax(logits.t(), 1, dtype=dtype).t()",
        "few columns: a distribution over the rows",
        eager("few_columns"),
    ),
    _cpu(
        "grad.t(), probs.t(), 0, probs.dtype).t()",
        "grad.t(), probs.t(), 1, probs.dtype).t()",
        "few columns: a gradient over the rows",
        eager("few_columns"),
    ),
    _small(
        "at.masked_fill(invalid, -1), at.masked_fill(invalid, 0)",
        "at, at.masked_fill(invalid, 0)",
        "a small batch: a row that is no distribution has an index",
        "tests/test_backends.py -k no_distribution",
    ),
    _cpu(
        "torch.mul(d, _LOG2_E, out=out)",
        "torch.mul(d, 1.4427, out=out)",
        "five digits of log2 e",
        eager("results_by_blocks"),
    ),
    _cpu(
        "    d = x - m\n    return torch.stack",
        "    d = x.clone()\n    return torch.stack",
        "the logarithm of a sum without its maximum",
        eager("logsumexp_of_rows"),
    ),
    Mutant(
        "onehot_triton/tensors.py",
        ">= 0 or torch._C._is_tracing()",
        ">= 0 or (torch._C._is_tracing() and torch.is_grad_enabled())",
        "a trace without gradients is another graph",
        _of("test_ways_of_differentiating.py")("two_traces"),
    ),
    _cpu(
        "compiled = torch.compiler.is_compiling()",
        "compiled = False",
        "Inductor gives searchsorted a transposed tensor, which warns",
        _of("test_ways_of_differentiating.py")("compile-8"),
    ),
    _small("_LEAST = 1e-290", "_LEAST = -1.0", "weights that are all 0", eager("large_logits")),
    _formulas("LOWEST = -10_000", "LOWEST = -10", "small terms of the entropy cut off", eager("small_probabilities")),
    _cpu("_RACED = 4", "_RACED = 0", "other numbers from a seed than README shows", "tests/test_readme.py"),
    _cpu(
        "index.clamp(max=groups - 1), []",
        "index, []",
        "a search that ends beyond the last group",
        eager("drawn_nowhere"),
    ),
    _cpu(".nansum(-1)", ".sum(-1)", "0 times -inf in the entropy of long rows", eager("entropy_of_a_long_row")),
    _blocks(
        "_BLOCK // max(1, elements_per_row)",
        "2 * _BLOCK // max(1, elements_per_row)",
        "blocks twice as large",
        eager("blocks_are"),
    ),
    _blocks("rows * elements_per_row <= _BLOCK", "rows <= _BLOCK", "no blocks at all", eager("blocks_are")),
    _blocks("range(0, rows, step)]", "range(0, rows - 1, step)]", "the last row left out", eager("blocks_are")),
    _blocks(
        "min(start + step, rows)", "min(start + step - 1, rows)", "a row lost between two blocks", eager("blocks_are")
    ),
    _blocks(
        "shape[dim] = rows",
        "shape[0] = rows",
        "the rows of a result taken for its first dimension",
        eager("relaxed_draws_by_blocks"),
    ),
    _blocks("else tensor[part]", "else tensor", "every block reads all rows", eager("by_blocks")),
    _checks(
        "logits.amax(-1).isfinite()",
        "~logits.amax(-1).isnan()",
        "a row of +inf is called a distribution",
        hard("bad_row_checked"),
    ),
    _cpu(
        "return p / total if is_differentiated(logits)",
        "return p if is_differentiated(logits)",
        "small terms lost behind a large one",
        hard("no_small_term"),
    ),
    _cpu(
        "return log_p - log_total if", "return log_p + log_total if", "the sign of a correction", hard("no_small_term")
    ),
    _cpu(
        "log_total - weight.mul_(d).nansum(-1) / total",
        "log_total - weight.mul_(d).nansum(-1)",
        "a mean of log p that is not divided by its weights",
        "tests/test_log_prob_and_entropy.py -k 'in_blocks'",
    ),
    _cpu(
        "constant = slope * (entropy - log_sum) - total",
        "constant = slope * entropy - total",
        "log p that is not normalised",
        "tests/test_log_prob_and_entropy.py -k 'in_blocks'",
    ),
    _cpu(
        "mean = wh.sum(-1, keepdim=True).mul_(over_sum[part]).add_(total[part])",
        "mean = wh.sum(-1, keepdim=True).mul_(over_sum[part])",
        "the log_prob's p left out of a joint gradient",
        "tests/test_log_prob_and_entropy.py -k 'in_blocks'",
    ),
    _rng(
        "-(2.0**-54), alpha=1 - 2.0**-52", "-(2.0**-54), alpha=1", "noise of an infinite variate", hard("float64_noise")
    ),
    _rng("-(2.0**-54), alpha", "0.0, alpha", "noise that is 0", hard("float64_noise")),
    _rng("torch.where(v < 0.5,", "torch.where(v < 2,", "the complement without its low digits", hard("float32_noise")),
    _rng(
        "torch.log1p(-v), torch.log(complement)",
        "torch.log1p(-v), torch.log(v)",
        "the wrong tail of the noise",
        hard("float32_noise"),
    ),
    _rng("lo.to(dtype) + 0.5", "lo.to(dtype)", "noise that is 0", hard("float32_noise")),
    _formulas(
        "(weight / e).argmin(-1)",
        "(weight / e).argmax(-1)",
        "a race that the last one wins",
        eager("eager_draws_have_their_law"),
    ),
    _formulas(
        "(weight / e).argmin(-1)",
        "(weight.sqrt() / e).argmin(-1)",
        "weights to the power 1/2",
        eager("eager_draws_have_their_law"),
    ),
    _cpu(
        "u * total, right=True",
        "u * total, right=False",
        "a category of weight 0 is found",
        hard("uniforms_at_both_ends"),
    ),
    _cpu(
        "some.append(torch.searchsorted(cumulative, (u * total).contiguous(), right=True)",
        "some.append(torch.searchsorted(cumulative, (u * total).contiguous(), right=False)",
        "a category of weight 0 is found",
        hard("uniforms_at_both_ends"),
    ),
    _cpu(
        "else rng.uniform((n, rows)",
        "else rng.uniform((n, 1)",
        "one uniform for all rows",
        eager("uniform_of_its_own"),
    ),
    _cpu(
        "u = rng.uniform((*lead, 1)",
        "u = rng.uniform((1, *lead[1:], 1)",
        "one uniform for all draws, in the second stage",
        eager("uniform_of_its_own"),
    ),
    _cpu(
        "weight.to(torch.float64, copy=True",
        "weight.to(torch.float32, copy=True",
        "sums in float32",
        eager("small_weights_behind"),
    ),
    _small(
        "if logits.shape[-1] <= cpu._RACED else _search",
        "if False else _search",
        "the two ways of drawing exchanged",
        "tests/test_readme.py",
    ),
    _cpu(
        "while 2 * length**2 < columns",
        "while length**2 < columns",
        "groups of another length, other numbers",
        eager("law"),
        "groups of any length give the same law; which is fastest is measured",
    ),
    _cpu(
        "column.clamp(max=columns - 1))\n                if",
        "column.clamp(max=columns - 2))\n                if",
        "the last column is never reached",
        eager("last_column"),
    ),
    _cpu(
        "torch.where(column < columns, inside, -torch.inf)",
        "torch.where(column <= columns, inside, -torch.inf)",
        "a column more in the last group",
        eager("last_column"),
    ),
    _cpu("if columns % group:", "if False:", "the last column counts more than once", eager("last_column")),
    _cpu(
        "_logsumexp_from(inside[0], weight, winner[0])",
        "_logsumexp_from(inside[0], weight, winner[-1])",
        "the share of another draw's group",
        eager("log_prob_that_comes_with_draws"),
    ),
    _cpu(
        "some.append(winner * group + choose",
        "some.append(winner + choose",
        "a column of the first groups",
        eager("eager_draws_have_their_law"),
    ),
    _cpu(
        "choose(nearly_softmax(inside), winner.shape, winner)",
        "choose(nearly_softmax(inside * 0.5), winner.shape, winner)",
        "a flatter law inside of a group",
        eager("eager_draws_have_their_law"),
    ),
    _cpu(
        "index.masked_fill(first.isnan(), -1)",
        "index",
        "a row that is no distribution is drawn",
        eager("drawn_nowhere"),
    ),
    _cpu(
        "math.isfinite(first.sum().item())",
        "math.isfinite(first.amax().item() * 0)",
        "NaN found",
        eager("drawn_nowhere"),
        "amax keeps NaN, as the sum does",
    ),
    _small(" and high.item() < math.inf", "", "sums that are infinite", eager("large_logits")),
    _cpu(
        "logsumexp(-1) - share.log()",
        "logsumexp(-1) + share.log()",
        "the sign of a share",
        eager("log_prob_that_comes_with_draws"),
    ),
    _cpu("if whole * group < columns:", "if False:", "the last group left out", eager("last_column")),
    _cpu("(index >= 0).to(dtype)", "(index > 0).to(dtype)", "column 0 is never set", distribution("sample")),
    _cpu(
        "index if all_valid else index.clamp(min=0)",
        "index if all_valid else index.abs()",
        "-1 read as column 1, where 0 is written",
        hard("bad_row_unchecked"),
        "0 is written, wherever it is",
    ),
    _cpu("return tensor.max(-1)[1]", "return tensor.min(-1)[1]", "the other end of a row", hard("argmax_is_the_first")),
    _cpu(
        "first = group * _of_groups",
        "first = _of_groups",
        "the mode of a group taken for the row's",
        hard("argmax_is_the_first"),
    ),
    _cpu(
        "torch.where(at == inner, tensor.gather(-1, inner), torch.nan)",
        "tensor.gather(-1, inner)",
        "an index out of bounds counts as the next",
        hard("index_out_of_bounds"),
    ),
    _cpu(
        "nearly_softmax(x) * -g.sum(-1, keepdim=True)",
        "nearly_softmax(x) * -g[:, :1]",
        "the gradient of the first draw alone",
        gradients("log_prob_gradient_of_broadcast"),
    ),
    _cpu(
        "* -g.unsqueeze(-1)).to(x.dtype)",
        "* g.unsqueeze(-1)).to(x.dtype)",
        "the sign of the entropy's gradient",
        gradients("density_gradient"),
    ),
    _formulas(
        "ratio = (e / e_winner.unsqueeze(-1))",
        "ratio = (e_winner.unsqueeze(-1) / e)",
        "the ratio upside down",
        gradients("relaxed_gradient_has_the_law"),
    ),
    _formulas(
        "score.scatter_(-1, at, 0.0)",
        "score.scatter_(-1, at, 1.0)",
        "the winner more certain than it is",
        gradients("relaxed_gradient_has_the_law"),
    ),
    _cpu(
        "is_one else dz * inverse",
        "is_one else dz / inverse",
        "times the temperature",
        gradients("relaxed_gradient_has_the_law"),
    ),
    _formulas(
        "gumbel = -torch.log(-noise", "gumbel = torch.log(-noise", "the sign of the Gumbel variate", relaxed("law")
    ),
    # The autograd
    _kernels(
        "if torch.is_grad_enabled():\n        out, dt",
        "if False:\n        out, dt",
        "the error of the second derivative removed",
        eager("no_derivative"),
    ),
    _ops(
        "backends.differentiable(backend) if torch.is_grad_enabled() else backend",
        "backend",
        "the kernel's gradient under create_graph",
        eager("create_graph"),
    ),
    _formulas(
        "p = softmax(masked(logits, mask))",
        "p = softmax(logits)",
        "the mask forgotten under create_graph: PassThrough",
        eager("create_graph"),
    ),
    _formulas(
        "smooth = softmax(masked(logits, mask))",
        "smooth = softmax(logits)",
        "the mask forgotten under create_graph: log_prob",
        eager("create_graph"),
    ),
    _formulas(
        "x = masked(logits, mask)\n    d = shifted(x)",
        "x = logits\n    d = shifted(x)",
        "the mask forgotten under create_graph: entropy",
        eager("create_graph"),
    ),
    _rng(
        "seeded_exponential(drawn + next(requests), shape)",
        "_kernels.seeded_exponential(drawn, shape)",
        "compiled RelaxedOneHot with one noise for both stages",
        eager("noise_of_their_own"),
    ),
    _ops(
        "Seed(seed_tensor, ctx.seed, ctx.offset, None",
        "Seed(seed_tensor, ctx.seed, 0, None",
        "the offset left out of the backward",
        eager("reads_the_noise"),
    ),
    _ops(
        "Seed(seed_tensor, ctx.seed, ctx.offset, None",
        "Seed(seed_tensor, ctx.seed + 1, ctx.offset, None",
        "another seed in the backward",
        eager("reads_the_noise"),
    ),
    _ops(
        "PassThrough:\n                grad = grad[0] if draws == 1 else grad.sum(0)",
        "PassThrough:\n                grad = grad[0]",
        "the gradient of the first draw alone",
        gradients("test_pass_through_gradient"),
    ),
    _parameters(
        "torch.where(weights == 0, torch.inf, weights)",
        "weights",
        "0 / 0 in the gradient of a category that is off",
        gradients("never_drawn"),
    ),
    _formulas(
        "torch.where(mask, logits, -torch.inf)",
        "torch.where(mask, logits, -1e4)",
        "a category that is off can be drawn from rows as low",
        "tests/test_masked.py",
    ),
    _parameters(
        "1 - unimix) + unimix * uniform",
        "1 - unimix) + uniform",
        "the weight of the uniform part",
        distribution("probs"),
    ),
    _parameters(
        "mask.to(logits.dtype) / mask.sum(-1, keepdim=True)",
        "mask.to(logits.dtype) / mask.shape[-1]",
        "the uniform part over all categories",
        "tests/test_masked.py -k unimix",
    ),
    _cpu(
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
    _cpu(
        "dx = dz.sum(1) * inverse",
        "dx = dz.sum(1) / inverse",
        "times the temperature",
        relaxed("rsample_gradient"),
    ),
    _cpu(
        "-(dz * log_y).sum((1, 2)).unsqueeze(-1) * inverse",
        "(dz * log_y).sum((1, 2)).unsqueeze(-1) * inverse",
        "the sign of the temperature's gradient",
        relaxed("rsample_gradient"),
    ),
    _ops(
        "if batch[d] > 1 and all(t.stride(d) == 0 for t in tensors)",
        "if batch[d] > 1 and logits.stride(d) == 0",
        "one mask for all that an expanded batch repeats",
        "tests/test_launches.py -k expanded",
    ),
    _ops(
        "[len(lead) + d for d in dims])",
        "list(range(len(lead), len(lead) + len(dims))))",
        "draws of repetitions in the place of the rows",
        "tests/test_launches.py -k expanded",
    ),
    _ops(
        "    if temperature.numel() == 1:",
        "    if temperature.numel() == 0:",
        "a temperature of shape (1,) in a batch of another rank",
        eager("temperature_of_one_element"),
    ),
    _choice(
        "name not in _NAMES",
        'name not in (*_NAMES, "gpu")',
        "a backend that is none",
        eager("backend_that_is_none"),
    ),
    _choice(
        "        _name = before",
        '        _backend = "auto"',
        "an inner choice of backend ends the outer",
        eager("inner_choice"),
    ),
    # The operators
    *(
        _library(
            "    # One int64 element on the device.\n",
            f'    "{name}": "{kind}",\n    # One int64 element on the device.\n',
            f"vmap: {name} taken for {kind}",
            operators("vmap"),
        )
        for name, kind in (
            ("one_hot", "numbers"),
            ("grad", "numbers"),
            ("index", "rows"),
            ("log_prob", "rows"),
            ("grad_log_prob", "rows"),
            ("temperature_tensor", "other"),
            ("category_mask", "other"),
        )
    ),
    _library(
        "-argument.dim() - (in_dim is None)",
        "-3",
        "vmap: a mask whose rows are two dimensions",
        "tests/test_launches.py -k is_mapped",
    ),
    _ops(
        "batch_sizes(mask) if sizes is None else sizes",
        "batch_sizes(mask)",
        "a compiled backward asks for a stride",
        "tests/test_masked.py -k batch_of_several",
    ),
    _ops(
        "len(sizes) == 2 and backend.reads_masks",
        "len(sizes) == 2",
        "a backend that masks logits is given a mask that is not of their shape",
        "tests/test_launches.py -k no_rows_is_read_as_its_copy",
    ),
    _ops(
        "len(sizes) == 2 and backend.reads_masks",
        "False",
        "each call copies the mask",
        "tests/test_launches.py -k mask_that_is_no_rows",
    ),
    Mutant(
        "onehot_triton/tensors.py",
        "        if size != 1:\n",
        "        if size:\n",
        "a dimension of size 1 counts, and a mask is copied for it",
        "tests/test_launches.py -k mask_that_is_no_rows",
    ),
    Mutant(
        "onehot_triton/tensors.py",
        "last == size * stride",
        "last == stride",
        "dimensions of a mask not joined that one stride walks through",
        "tests/test_launches.py -k mask_that_is_no_rows",
    ),
    _library(
        'info.randomness == "error" and not seeds_are_batched',
        'info.randomness == "error" and seeds_are_batched',
        "the randomness error",
        operators("vmap"),
    ),
    _library(
        "seeds_are_batched or one_seed_for_all",
        "seeds_are_batched",
        "one seed for all, with other noise for each",
        operators("vmap"),
    ),
    _library(
        ' or "other" in batched',
        "",
        "a batch of what has no rows",
        operators("counters_of_philox"),
    ),
    _library(
        "if out.numel() == 0 and out.dim() == 1:",
        "if out.numel() == 0:",
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
        "del joined[place + 1 if joined[place] is not None else place]",
        "del joined[place]",
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
    _rng("seed - 2**64 if seed >= 2**63", "2**64 - seed if seed >= 2**63", "the sign of the seed", SEEDS),
    _rng(
        "if device.index is None else device.index",
        "if device.index is None else 0",
        "the generator of another device",
        SEEDS,
    ),
]
