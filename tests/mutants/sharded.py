"""Faults in what ranks send, agree on and place; each with the one case, on real ranks, that should see it."""

from mutants.mutant import Mutant


def _row(old: str, new: str, why: str, case: str, ranks: int = 2, function: str | None = None) -> Mutant:
    tests = f"'tests/test_sharded.py::test_on_ranks[{ranks}]' --case {case}"
    return Mutant("onehot_triton/sharded.py", old, new, why, tests, function=function)


MUTANTS = [
    _row(
        "return -(-self.offset[-1] // length) * -(-length // GROUP)",
        "return 0",
        "every shard draws the noise of the row's first groups",
        "kernels_draw",
        function="Layout.first_group",
    ),
    _row(
        "or type(placement) is Shard):",
        "or hasattr(placement, 'dim')):",
        "strided shards taken for shards",
        "placements_that_are_refused",
        function="layout_of",
    ),
    _row(
        "        first = start + sum(at)\n",
        "        first = start\n",
        "every run of rows draws the noise of the first run",
        "eager_draws",
        function="_by_runs",
    ),
    _row(
        "    for dim in replicated:\n",
        "    for dim in ():\n",
        "ranks that replicate the rows draw each of its own seed",
        "ranks_agree",
        3,
        function="_seed",
    ),
    _row(
        "flag = _gather([flag], _ranks(layout.mesh, dim))[0].amax(0)",
        "flag = flag + 0 * _gather([flag], _ranks(layout.mesh, dim))[0].amax(0)",
        "a rank raises where the others go on",
        "no_distribution",
        function="_on_all",
    ),
    _row(
        "total = (s * scale).sum(0)",
        "total = s.sum(0)",
        "sums of shards added that are of different maxima",
        "members_agree",
        function="_join",
    ),
    _row(
        "[other[0] for other in others]",
        "[other[layout.mesh.get_local_rank(layout.vocabulary)] for other in others]",
        "every shard has a winner's noise of its own",
        "relaxed_gradient",
        function="_shard_race",
    ),
    _row(
        "for at in (1 + layout.first_group, 0)",
        "for at in (0, 0)",
        "the winner's noise is that of the first columns",
        "relaxed_gradient",
        function="rsample",
    ),
    _row(
        "    if torch.compiler.is_compiling():\n        # With dynamic",
        "    if False:\n        # With dynamic",
        "the number of a dimension is symbolic in a compiled program",
        "dynamic_shapes",
        function="layout_of",
    ),
    _row(
        "offset[placement.dim] += start",
        "offset[placement.dim] = start",
        "of a dimension that two mesh dimensions shard, a part is where the second one says",
        "parts_are_those_of_torch",
        4,
        function="layout_of",
    ),
    _row(
        "z = torch.log1p(e / winners / p).neg()",
        "z = torch.log1p(e / _gather([winners], ranks)[0][0] / p).neg()",
        "a collective of a backward that needs no gradient, which each rank's compiler places as its sizes say",
        "compiled_programs",
        function="_relaxed_grad",
    ),
    _row(
        "if reference() is not logits or _changes(logits) != changes:",
        "if reference() is not logits:",
        "log_prob of logits that were changed in place since the draw is of the former ones",
        "what_is_changed_in_place",
        function="recall",
    ),
    _row(
        "        if not isinstance(draw, DTensor) or not _changes(draw) == _changes(value) == changes:",
        "        if not isinstance(draw, DTensor):",
        "a draw that was changed in place since is taken for what it was",
        "what_is_changed_in_place",
        function="recall",
    ),
    _row(
        "Replicate() if isinstance(p, Replicate) or (p.dim == last and not columns) else Shard(p.dim + len(lead))",
        "Replicate() if isinstance(p, Replicate) or (p.dim == last and not columns) else Shard(p.dim)",
        "draws placed by the batch's dimension, without those in front of it",
        "batches_of_four",
        function="_wrap",
    ),
    _row(
        "t = ops.constant_where_empty(t, known.sums.maximum.unsqueeze(-1)) if relaxed else t",
        "pass",
        "a row that a mask leaves empty makes a learned temperature's gradient NaN",
        "a_row_with_nothing_allowed",
    ),
    _row(
        "t = ops.constant_where_empty(t, x) if relaxed else t",
        "pass",
        "a whole row that a mask leaves empty makes a learned temperature's gradient NaN",
        "a_row_with_nothing_allowed",
    ),
    _row(
        "local = parameters.masked(local, allowed)",
        "pass",
        "NaN for the logits of a row that a mask leaves empty, under unimix",
        "a_row_with_nothing_allowed",
    ),
    _row(
        "at.masked_fill(elsewhere | ~maxima.amax(0).isfinite(), -1)",
        "at.masked_fill(elsewhere, -1)",
        "a mode of a row that is invalid on another shard",
        "rows_that_are_no_distribution",
    ),
    _row(
        "at.masked_fill(elsewhere | ~maxima.amax(0).isfinite(), -1)",
        "at.masked_fill(~maxima.amax(0).isfinite(), -1)",
        "a mode on each shard",
        "members_agree",
    ),
    _row(
        "_mode_at(x, _gather([m], layout.ranks)[0], layout)",
        "_mode_at(x, _gather([m.double()], layout.ranks)[0], layout)",
        "the mode's maxima sent in twice the bytes",
        "collectives",
    ),
    _row(
        '            _raise_if(bad, layout, "mask"',
        '            _raise_if(bad & False, layout, "mask"',
        "a mask of 2",
        "rows_that_are_no_distribution",
    ),
    _row(
        '    _broadcast(layout_of(param, name), mask.shape[:-1], "mask")\n',
        "",
        "one row that is sharded, with several masks",
        "placements_that_are_refused",
    ),
    _row(
        "    left_out = (zeros == 0) & (zeros.sum(0) > 0)\n",
        "    left_out = zeros < 0\n",
        "a shard without a zero counts beside one of another",
        "relaxed_densities",
    ),
    _row(
        "density = total - n * (log_sum - known)",
        "density = total - 0 * n * (log_sum - known)",
        "the derivative of the logarithm of the sum left out",
        "relaxed_densities",
    ),
    _row(
        "off = off & known.isfinite().unsqueeze(-1)",
        "off = off & True",
        "an invalid row without a gradient of NaN",
        "relaxed_densities",
    ),
    _row(
        "t = t.view(batch)",
        "t = t.view(layout.local[:-1])",
        "the temperature of a row has no value of several",
        "relaxed_densities",
    ),
    _row(
        "y.masked_fill(~(y >= 0) | outside, torch.nan)",
        "y.masked_fill(~(y >= 0), torch.nan)",
        "mass where a category is off is no fault of a value",
        "relaxed_densities",
    ),
]
