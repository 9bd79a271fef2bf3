"""Faults in the checks, the distributions, the seeds, TorchRL's tables, the self-check and the benchmarks."""

from mutants.mutant import Mutant

PACKAGE = "onehot_triton/"
CHECKS, DISTRIBUTION, MASKED = PACKAGE + "checks.py", PACKAGE + "distribution.py", PACKAGE + "masked.py"
RELAXED, RNG, DEMO = PACKAGE + "relaxed.py", PACKAGE + "rng.py", PACKAGE + "__main__.py"
TORCHRL = PACKAGE + "integrations/torchrl.py"
CORRECTNESS, MEASURE, COST = "benchmarks/correctness.py", "benchmarks/measure.py", "benchmarks/static_cost.py"
OPERATIONS = "benchmarks/operations.py"
GPU_STEPS, GPU_CHECKS = "benchmarks/gpu_steps.py", "benchmarks/gpu_checks.py"

BAD = "tests/test_hard_cases.py -k test_bad_input"
BAD_VALUE = "tests/test_hard_cases.py -k test_bad_one_hot_values"
BAD_MASK = "tests/test_masked.py -k 'test_bad_input or unchecked_allows_none'"
EXPAND = "tests/test_distribution.py -k expand"
SEEDS = "tests/test_rng.py"
DEMO_TESTS = "tests/test_self_check.py"
STATUS = DEMO_TESTS + " -k status"
PROVIDERS = "tests/test_benchmarks.py -k 'slightly or not_timed or each_dtype or cannot'"
STEPS = "tests/test_benchmarks.py -k 'not_timed_and or at_its_limit or end_in_time'"
OFF = "tests/test_benchmarks.py -k kernel_that_is_off"
STATIC_STATUS = "tests/test_static_cost.py -k status"
LISTING = "tests/test_static_cost.py -k 'listing or masked_loop'"
EVERY_LIMIT = "tests/test_static_cost.py -k 'every_limit and here'"

MUTANTS = [
    # checks.py
    Mutant(
        CHECKS,
        "    if not bad_rows.any():\n        return\n",
        "",
        "maxima whose sum overflows",
        "tests/test_distribution.py -k overflows",
    ),
    Mutant(
        CHECKS,
        "else (value > 0)) & (value < torch.inf))",
        "else (value > 0)))",
        "an infinite temperature in a tensor",
        BAD,
    ),
    Mutant(
        CHECKS,
        "else (value > 0)) & (value",
        "else (value >= 0)) & (value",
        "a temperature of 0 in a tensor",
        BAD,
    ),
    Mutant(CHECKS, "((value >= 1) if at_least_1", "((value > 0) if at_least_1", "ReinMax below 1 in a tensor", BAD),
    Mutant(CHECKS, "if at_least_1 and float(value) < 1:", "if False:", "ReinMax below 1", BAD),
    Mutant(CHECKS, "method in gives_no_gradient and value.requires_grad", "False", "a gradient that is lost", BAD),
    Mutant(CHECKS, "0 < float(value) < math.inf", "0 < float(value)", "an infinite temperature", BAD),
    Mutant(CHECKS, "v.bool().sum(-1)", "v.sum(-1)", "ones counted by their sum: [1, -1, 1]", BAD_VALUE),
    Mutant(
        CHECKS,
        " & (value.gather(-1, index.unsqueeze(-1)).squeeze(-1) == 1)",
        "",
        "a value of 0.5 taken as a one",
        BAD_VALUE,
    ),
    Mutant(CHECKS, "bad & (value != padding)", "bad & (value == padding)", "padding asked for the wrong way", BAD_MASK),
    Mutant(
        CHECKS,
        "bad if padding is None else bad & (value != padding)",
        "bad if padding is None else bad & (value == shape[-1])",
        "bad indices pass beside padding",
        BAD_MASK,
    ),
    Mutant(
        CHECKS, "(value < 0) | (value >= shape[-1])", "(value >= shape[-1])", "negative indices of a mask", BAD_MASK
    ),
    Mutant(
        CHECKS,
        "(value < 0) | (value >= columns)",
        "(value < 0) | (value > columns)",
        "an index one beyond the last",
        BAD,
    ),
    Mutant(CHECKS, "0 <= float(weight) <= 1", "0 <= float(weight)", "a share of more than 1", BAD),
    Mutant(CHECKS, "any(n < 0 for n in size)", "any(n < -1 for n in size)", "a dimension of -1", BAD),
    Mutant(CHECKS, "len(shape) <= len(target) and all(", "all(", "a temperature of too many dimensions", BAD),
    Mutant(
        CHECKS,
        "a != b and a != 1 and b != 1",
        "a != b and a != 1 and b == 1",
        "leading dimensions that do not broadcast",
        BAD,
    ),
    Mutant(CHECKS, "not value < 0:", "value > 0:", "a neg_inf of NaN", BAD_MASK),
    Mutant(CHECKS, "if value.is_complex():", "if False:", "complex values", BAD),
    Mutant(
        CHECKS,
        "row = torch.where(mask[tuple(at)], row, 0.0",
        "row = torch.where(~mask[tuple(at)], row, 0.0",
        "the message looks at what is masked",
        "tests/test_masked.py -k bad",
    ),
    # distribution.py
    Mutant(
        DISTRIBUTION,
        "if ones.all().item():",
        "if True:",
        "a draw changed behind torch keeps its log_prob",
        "tests/test_hard_cases.py -k changed_behind_torch",
    ),
    Mutant(
        DISTRIBUTION,
        "torch.int64 if self.grad_method is None else self._param.dtype",
        "torch.int64",
        "modes of int64 beside draws in the parameters' dtype",
        "tests/test_distribution.py -k default_dtype",
    ),
    Mutant(
        DISTRIBUTION,
        "            setattr(new, name, getattr(self, name))",
        "            value = getattr(self, name)\n            setattr(new, name, value.flip(0) "
        "if isinstance(value, Tensor) else value)",
        "temperatures of the rows reversed by expand",
        EXPAND,
    ),
    Mutant(
        DISTRIBUTION,
        "self._param.expand(batch + self._event_shape), self._is",
        "self._param.expand(batch + self._event_shape).contiguous(), self._is",
        "expand that copies",
        EXPAND,
    ),
    Mutant(
        DISTRIBUTION,
        "new._validate_args = self._validate_args",
        "new._validate_args = True",
        "expand turns the checks on",
        EXPAND,
    ),
    Mutant(
        DISTRIBUTION,
        "draw._version != version or ",
        "",
        "a draw changed in place is taken for the last",
        "tests/test_hard_cases.py -k written_beside",
    ),
    Mutant(
        DISTRIBUTION,
        "probs * (1 - probs)",
        "probs * probs",
        "variance",
        "tests/test_distribution.py -k 'test_moment and variance'",
    ),
    Mutant(
        DISTRIBUTION,
        "return self.grad_method is not None",
        "return True",
        "an rsample without a gradient promised",
        "tests/test_distribution.py -k has_rsample",
    ),
    Mutant(
        DISTRIBUTION,
        "values.expand(columns, *self._batch_shape, columns) if expand else values",
        "values.expand(columns, *self._batch_shape, columns)",
        "expand left out of account",
        "tests/test_distribution.py -k enumerate_support",
    ),
    Mutant(
        DISTRIBUTION,
        "log_p.masked_fill(never, 0.0) - log_q.masked_fill(never, 0.0)",
        "log_p - log_q",
        "0 log 0 in the divergence",
        "tests/test_distribution.py -k kl",
    ),
    Mutant(
        DISTRIBUTION,
        "torch.where(dist.probs == 0, -torch.inf, dist.logits)",
        "dist.logits",
        "a probability of 0 that torch clamps",
        "tests/test_distribution.py -k kl",
    ),
    Mutant(DISTRIBUTION, "if p.event_shape != q.event_shape:", "if False:", "a divergence of other lengths", BAD),
    Mutant(
        DISTRIBUTION,
        "index.masked_fill(~valid, -1)",
        "index",
        "the mode of a bad row",
        EXPAND,
    ),
    Mutant(
        DISTRIBUTION,
        "0 if mask is None else mask._version, captured",
        "0, captured",
        "a mask changed in place",
        "tests/test_masked.py -k place",
    ),
    # masked.py
    Mutant(
        MASKED,
        "self._finite(self._in_param_dtype(self._log_probs()))",
        "self._in_param_dtype(self._log_probs())",
        "neg_inf not in logits",
        "tests/test_masked.py -k neg_inf",
    ),
    Mutant(
        MASKED,
        "self._finite(self._in_param_dtype(self._log_probs()))",
        "self._finite(super().logits)",
        "a compiled program has no logits of it",
        "tests/test_compile_matrix.py -k masked_logits",
    ),
    Mutant(
        MASKED,
        "return self._finite(super()._log_prob_result(log_prob))",
        "return super()._log_prob_result(log_prob)",
        "neg_inf not in log_prob",
        "tests/test_masked.py -k neg_inf",
    ),
    Mutant(
        MASKED,
        "new.neg_inf = self.neg_inf",
        "new.neg_inf = -math.inf",
        "neg_inf lost by expand",
        "tests/test_masked.py -k expand",
    ),
    Mutant(
        MASKED,
        "none = (indices < 0) | (indices >= columns)",
        "none = indices < 0",
        "an index beyond the last, unchecked",
        BAD_MASK,
    ),
    Mutant(
        MASKED, "none |= indices == padding", "none = indices == padding", "padding in place of the bounds", BAD_MASK
    ),
    Mutant(MASKED, "none |= indices == padding", "none &= indices == padding", "padding that is a category", BAD_MASK),
    # relaxed.py
    Mutant(
        RELAXED,
        "t = t.reshape(()) if t.numel() == 1 else t",
        "pass",
        "a temperature of shape (1,) adds a dimension",
        "tests/test_relaxed.py -k one_element",
    ),
    Mutant(
        RELAXED,
        "new._param, new._name = self._param.expand(batch + self._event_shape), self._name",
        "new._param, new._name = self._param.expand(batch + self._event_shape).contiguous(), self._name",
        "expand that copies",
        "tests/test_relaxed.py -k test_expand",
    ),
    Mutant(
        RELAXED,
        "density = backends.of(score).log_softmax(score).sum(-1) - log_y.sum(-1)",
        "density = backends.of(score).log_softmax(score).sum(-1)",
        "the Jacobian of the simplex",
        "tests/test_relaxed.py -k integrates",
    ),
    Mutant(
        RELAXED,
        "(columns - 1) * log_t",
        "columns * log_t",
        "the power of the temperature",
        "tests/test_relaxed.py -k integrates",
    ),
    Mutant(
        RELAXED,
        "math.lgamma(columns)",
        "math.lgamma(columns + 1)",
        "the factorial",
        "tests/test_relaxed.py -k integrates",
    ),
    Mutant(
        RELAXED,
        "        with torch.no_grad():\n",
        "        with torch.enable_grad():\n",
        "a sample with a gradient",
        "tests/test_relaxed.py -k has_no_gradient",
    ),
    Mutant(
        RELAXED,
        "new._validate_args = self._validate_args",
        "new._validate_args = False",
        "checks lost by expand",
        "tests/test_relaxed.py -k test_expand",
    ),
    Mutant(
        CHECKS,
        "    if value.device != device:",
        "    if value.device.type != device.type:",
        "one GPU taken for another",
        "tests/test_devices.py -k 'two_devices or another_gpu'",
    ),
    *(
        Mutant(
            CHECKS,
            f'    _on_device("{name}", value, device)\n',
            "",
            "a tensor of another device",
            f"tests/test_devices.py -k 'two_devices and {name} or another_gpu'",
        )
        for name in ("indices", "temperature", "value", "index", "generator")
    ),
    Mutant(
        CHECKS,
        "    _on_device(name, value, device)\n",
        "",
        "a mask of another device",
        "tests/test_devices.py -k 'two_devices and mask'",
    ),
    Mutant(
        RELAXED,
        "if torch.compiler.is_compiling() and not isinstance(temperature, Tensor):",
        "if False:",
        "a compiled density for each temperature",
        "tests/test_compile.py -k another_temperature",
    ),
    Mutant(
        RELAXED,
        "column_t, log_t = t, math.log(t)",
        "column_t, log_t = t, t",
        "t for log t in the density",
        "tests/test_relaxed.py",
    ),
    # rng.py
    Mutant(RNG, "2**63 - 1, (), device", "2**31 - 1, (), device", "63 bits cut to 31", SEEDS),
    Mutant(RNG, "    generator.set_offset(offset + _OFFSET_STEP)\n", "", "the generator not advanced", SEEDS),
    Mutant(RNG, "_OFFSET_STEP = 4", "_OFFSET_STEP = 1", "a word in place of a counter", SEEDS),
    Mutant(RNG, "seed - 2**64 if seed >= 2**63 else seed", "seed", "a seed that no int64 holds", SEEDS),
    Mutant(RNG, "seed >= 2**63", "seed > 2**63", "the sign at the very border", SEEDS),
    Mutant(RNG, " or is_captured(device)", "", "a captured graph would replay one draw", SEEDS),
    Mutant(
        DISTRIBUTION,
        "return param._version, 0 if mask is None else mask._version, captured",
        "return param._version, 0 if mask is None else mask._version",
        "logits that a replay does not compute anew",
        "tests/test_capture.py -k derived",
    ),
    Mutant(
        DISTRIBUTION,
        "if captured != rng.is_captured(value.device):",
        "if False:",
        "a graph that reads an index from before it",
        "tests/test_capture.py -k index_from_before",
    ),
    Mutant(
        DISTRIBUTION,
        "captured = not is_recorded(param) and rng.is_captured(param.device)",
        "captured = False",
        "logits in the memory of a graph, kept",
        "tests/test_capture.py -k derived",
    ),
    Mutant(
        RNG,
        "    with torch.cuda.device(device):\n        return",
        "    if True:\n        return",
        "whether another GPU is captured",
        "tests/test_devices.py -k capture",
    ),
    Mutant(
        RNG,
        "device.index is None or device.index == torch.cuda.current_device()",
        "False",
        "the current GPU made the current one",
        "tests/test_devices.py -k library",
    ),
    Mutant(RNG, " or is_recorded(logits)", "", "a traced graph would keep one seed", SEEDS),
    Mutant(
        RNG,
        "torch.cuda.current_device() if device.index is None else device.index",
        "torch.cuda.current_device()",
        "another device's generator",
        SEEDS,
    ),
    Mutant(RNG, "(), device=device, **given)", "(), device=device)", "the given generator not asked", SEEDS),
    Mutant(
        RNG,
        "{} if generator is None else ",
        "",
        "the overload that torch's compiler does not make itself",
        "tests/test_compile.py -k inductor",
    ),
    # integrations/
    Mutant(
        TORCHRL,
        "by_repr[str(cls).lower()] = cls",
        "by_repr[str(cls)] = cls",
        "a name that is looked up in small letters",
        "tests/test_torchrl.py -k register",
    ),
    Mutant(
        TORCHRL,
        "by_type[cls] = True",
        "by_type[cls] = False",
        "an entropy that is sampled",
        "tests/test_torchrl.py -k register",
    ),
    Mutant(
        TORCHRL,
        "InteractionType.MODE",
        "InteractionType.MEAN",
        "the mean for the mode",
        "tests/test_torchrl.py -k 'register or independent'",
    ),
    # __main__.py
    Mutant(DEMO, "return 1 if off else 0", "return 0", "a status that is always 0", STATUS),
    Mutant(
        DEMO,
        "return [check.name for check in found if not check.good]",
        "return [check.name for check in found[:1] if not check.good]",
        "one check alone counts",
        STATUS,
    ),
    Mutant(DEMO, "value < bound, f", "not value >= bound, f", "a score of NaN is good", STATUS),
    Mutant(DEMO, "p_value > SIGNIFICANCE", "p_value > 0", "any p-value is good", STATUS),
    Mutant(
        DEMO,
        '"log_prob, largest error in nats", errors["log_prob"]',
        '"log_prob, largest error in nats", errors["entropy"]',
        "one error shown twice",
        STATUS,
    ),
    Mutant(
        DEMO,
        "gradient.T @ draw",
        "gradient.T @ torch.ones_like(draw)",
        "the gradient alone, without its draw",
        DEMO_TESTS + " -k relaxed",
    ),
    Mutant(
        DEMO,
        "(variance / draws).sqrt()",
        "(variance / DRAWS).sqrt()",
        "the rows not counted as draws",
        DEMO_TESTS + " -k draws",
    ),
    Mutant(
        DEMO,
        "torch.tensor((cells - 1) / 2",
        "torch.tensor(cells / 2",
        "a degree of freedom too many",
        DEMO_TESTS + " -k scipys",
    ),
    Mutant(DEMO, "row.expand(ROWS, -1)", "row.expand(1, -1)", "one row alone is drawn from", DEMO_TESTS + " -k draws"),
    Mutant(
        DEMO,
        ").abs().max() / oracle.grad",
        ").max() / oracle.grad",
        "errors of one sign alone",
        DEMO_TESTS + " -k pass_through",
    ),
    # benchmarks/
    Mutant(CORRECTNESS, "bound = max(1e-3,", "bound = max(1e-1,", "a tolerance a hundred times wider", PROVIDERS),
    Mutant(
        CORRECTNESS, "near = max(1e-5,", "near = max(1e-3,", "nearly one-hot within a hundred times more", PROVIDERS
    ),
    Mutant(CORRECTNESS, "(bad if z > math", "(bad if z > 100 * math", "a z-score a hundred times larger", PROVIDERS),
    Mutant(
        CORRECTNESS,
        "bound > math.log(FAILURE_RATE)",
        "bound > 100 * math.log(FAILURE_RATE)",
        "a bound on frequencies a hundred times as far",
        PROVIDERS,
    ),
    Mutant(
        CORRECTNESS,
        "return _draw_fault(draw, given) or _log_prob_fault(log_prob, given, draw)",
        "return _draw_fault(draw, given)",
        "the log_prob of a draw not looked at",
        PROVIDERS,
    ),
    Mutant(
        MEASURE,
        "                self.wrong[key] = why\n",
        "                self._right.add(key)\n",
        "a wrong provider is timed",
        PROVIDERS,
    ),
    Mutant(
        MEASURE,
        "key = (name, case.operation, case.dtype)",
        'key = (name, case.operation, "")',
        "one dtype speaks for all",
        PROVIDERS,
    ),
    Mutant(MEASURE, 'return {"wrong": why}', "pass", "a wrong provider is timed all the same", PROVIDERS),
    Mutant(GPU_STEPS, "if not_right:", "if False:", "a wrong kernel is timed on a GPU", STEPS),
    Mutant(
        GPU_STEPS,
        "wrong |= dict.fromkeys(step.vouches, step.name)",
        "pass",
        "what a check on a GPU finds is forgotten",
        STEPS,
    ),
    Mutant(
        GPU_STEPS,
        "except (Exception, OutOfTime) as error",
        "except Exception as error",
        "a step at its limit ends all",
        STEPS,
    ),
    Mutant(GPU_STEPS, "perf_counter() + step.limit > end", "perf_counter() > end", "a step begun too late", STEPS),
    Mutant(GPU_CHECKS, "different <= 1,", "different <= 100,", "a hundred wrong draws pass", OFF),
    Mutant(GPU_CHECKS, "RELAXED, RELAXED_GRAD = 1e-3", "RELAXED, RELAXED_GRAD = 1e-1", "a tolerance too wide", OFF),
    Mutant(GPU_CHECKS, "= 1e-3, 3e-4", "= 1e-3, 3e-2", "a tolerance of gradients too wide", OFF),
    Mutant(
        MEASURE,
        "max(0, most - _bytes_of(results))",
        "most",
        "results counted as memory",
        "tests/test_benchmarks.py -k peak_memory",
    ),
    Mutant(
        OPERATIONS,
        "logits = given.logits.detach().requires_grad_()",
        "logits = given.logits.detach().clone().requires_grad_() * 1",
        "a gradient of a copy",
        "tests/test_benchmarks.py -k a_backward",
        "the copy is the leaf's equal: its gradient is the same, and only the time differs",
    ),
    Mutant(COST, "if turns and not is_masked(loop):", "if turns:", "masked loops counted", LISTING),
    Mutant(
        COST,
        'entry["instructions_per_element"] > limit(entry)',
        'entry["instructions_per_element"] > 10 * limit(entry)',
        "a limit never reported",
        LISTING,
    ),
    Mutant(COST, 'over = f"  over {limit', 'over = f"" and f"  over {limit', "a limit found and not shown", LISTING),
    Mutant(
        COST,
        "if function in SUMS_OF_TWO:",
        "if function.__name__ in [one.__name__ for one in SUMS_OF_TWO]:",
        "a kernel taken for another of the same name",
        "tests/test_static_cost.py -k known_by_itself",
    ),
    Mutant(
        COST,
        "if not counts and any(",
        "if not instructions and any(",
        "a kernel whose loop is not found, taken for one without",
        "tests/test_static_cost.py -k loop_that_is_not_found",
    ),
    Mutant(COST, '"gapped_grad": 26,', '"gapped_grad": 27,', "a limit raised silently", EVERY_LIMIT),
    Mutant(COST, "return 1 if over else 0", "return 0", "a status that is always 0", STATIC_STATUS),
    Mutant(
        COST,
        "over = [e for e in entries if over_limit(e)]",
        "over = [e for e in entries[:2] if over_limit(e)]",
        "the limits of one architecture alone",
        STATIC_STATUS,
    ),
    Mutant(
        COST,
        'entry["columns"] < LIMIT_FROM',
        'entry["columns"] <= LIMIT_FROM',
        "the limit from one column later",
        LISTING,
    ),
    Mutant(
        COST,
        'main_width(i for i in walked if i.opcode.startswith("STG"))',
        "main_width(walked)",
        "every instruction taken as a store",
        LISTING,
    ),
]
