"""What each rank of `test_sharded.py` runs: functions of a world, which raise where something is wrong.

    python tests/sharded_cases.py 2              every case of two ranks
    python tests/sharded_cases.py 2 entropy      those whose names contain the word

What a process costs is its imports, so they are made once, and the ranks forked. The cases run on each rank in one
order; a rank that fails leaves the others waiting, so every case ends in what all ranks know.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

Case = Callable[[int, int], None]
CASES: dict[tuple[int, str], Case] = {}
"""(ranks, name): a case has a number of ranks because it shows something there that it does not with others."""


def case(*worlds: int) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES.update({(world, function.__name__): function for world in worlds})
        return function

    return add


def run(rank: int, world: int, folder: str, words: str) -> None:
    """One rank: writes what failed, for each case, to a file of its own."""
    store = FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    # Cases that wait for each other for ever say where.
    faulthandler.dump_traceback_later(400, exit=True)
    failed: dict[str, str] = {}
    for (ranks, name), function in CASES.items():
        if ranks != world or words not in name:
            continue
        torch.manual_seed(1 + rank)
        start = time.perf_counter()
        try:
            function(rank, world)
        except BaseException:  # pytest's own is no Exception
            failed[name] = traceback.format_exc()
            Path(f"{folder}/{rank}").write_text(json.dumps(failed))
            # The others may wait in a collective for ever.
            os._exit(1)
        if rank == 0:
            print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)
    dist.destroy_process_group()


def main(world: int, words: str = "") -> int:
    """Starts the ranks; the status is 1 where one failed, and what it says is printed."""
    if not any(ranks == world and words in name for ranks, name in CASES):
        print(f"no case of {world} ranks has {words!r} in its name")
        return 1
    os.environ["TRITON_INTERPRET"] = "1"
    import torch._dynamo
    import torch.distributed.tensor.debug
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    import onehot_triton.sharded  # noqa: F401

    # A forked process has no threads of torch's.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import quick_interpreter

    quick_interpreter.install()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
        try:
            start_processes(run, (world, folder, words), world, start_method="fork")
        except (ProcessExitedException, ProcessRaisedException) as error:
            print(error)
            for rank in range(world):
                file = Path(folder, str(rank))
                for name, failure in (json.loads(file.read_text()) if file.exists() else {}).items():
                    print(f"{name}, rank {rank} of {world}:\n{failure}")
            return 1
    return 0


_GRADIENTS = "ReinMax", "GappedStraightThrough", "RelaxedOneHot"


def _mesh(*shape: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape)


def _placed(tensor: Tensor, mesh: Any, *placements: Any) -> Any:
    """The part of each rank, without communication."""
    from torch.distributed.tensor import DTensor, Replicate

    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, placements).detach()


def _fixed(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(_whole(found), _whole(expected), atol=tolerance, rtol=tolerance)


def _same_on_all(tensor: Tensor) -> None:
    """The local values are those of rank 0."""
    first = tensor.clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, tensor)


def _refused(function: Callable[[], Any], *words: str) -> None:
    with pytest.raises(ValueError, match=r"expected .* found") as error:
        function()
    for word in words:
        assert word in str(error.value), (word, str(error.value))


@case(2, 3, 4)
def members_agree_with_those_of_whole_rows(rank: int, world: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    from onehot_triton import OneHotCategorical, ReparamGradientStrategy

    mesh = _mesh(world)
    for columns in {2: (6, 7), 3: (7, 1), 4: (5,)}[world]:
        for placement in (Shard(-1), Shard(0), Shard(1), Replicate()):
            full = _fixed(1 if placement == Shard(1) else 3, 2, columns)
            x, ref = _placed(full, mesh, placement).requires_grad_(), full.clone().requires_grad_()
            sharded, whole = OneHotCategorical(x), OneHotCategorical(ref)
            drawn = sharded.sample((2,))
            index = drawn.full_tensor().argmax(-1)
            assert drawn.full_tensor().sum(-1).eq(1).all()
            on_columns = placement == Shard(-1) and world > 1
            at = 2 if on_columns else placement.dim if isinstance(placement, Shard) else None
            assert drawn.placements == ((Replicate() if at is None else Shard(at + 1)),)
            rows = Replicate() if at is None or on_columns else Shard(at)
            for value in (drawn, drawn.detach(), drawn.clone(), drawn.full_tensor(), drawn.bool()):
                _same(sharded.log_prob(value), whole.log_prob(drawn.full_tensor()))
            _same(sharded.log_prob_index(index), whole.log_prob_index(index))
            assert sharded.entropy().placements == (rows,)
            for name in ("probs", "logits", "mean", "variance", "mode", "rmode"):
                found = getattr(sharded, name)
                assert found.placements == x.placements
                _same(found, getattr(whole, name))
            one_hot, log_prob = sharded.sample_and_log_prob()
            _same(log_prob, whole.log_prob(one_hot.full_tensor()))
            _same(sharded.enumerate_support(), whole.enumerate_support())
            weight = _fixed(columns)
            placed = _placed(weight, mesh, Shard(0) if on_columns else Replicate())
            for loss in (
                lambda d, w, index=index: d.log_prob_index(index).sum(),
                lambda d, w: d.log_prob(d.mode).square().sum(),
                lambda d, w: d.entropy().square().sum(),
                lambda d, w: (d.probs * w).sum() + (d.logits * w).sum(),
                lambda d, w: (d.rmode * w).sum(),
                lambda d, w: (d.rsample((2,)) * w).sum(),
            ):
                (grad,), (expected,) = (
                    torch.autograd.grad(loss(d, w), p) for d, w, p in ((sharded, placed, x), (whole, weight, ref))
                )
                assert grad.placements == x.placements
                _same(grad, expected)
            for found, expected in zip(
                sharded.log_prob_and_entropy(drawn), (whole.log_prob(drawn.full_tensor()), whole.entropy()), strict=True
            ):
                _same(found, expected)
            relaxed = OneHotCategorical(x, grad_method=ReparamGradientStrategy.RelaxedOneHot)
            (grad,) = torch.autograd.grad((relaxed.rsample((2,)) * placed).sum(), x)
            assert grad.placements == x.placements
            # A softmax's gradient sums to 0.
            _same(grad.full_tensor().sum(-1), torch.zeros(full.shape[:-1]))


@case(2, 3)
def straight_through_gradients_are_those_of_whole_rows(rank: int, world: int) -> None:
    """Of the same draw, by the formula of whole rows; second derivatives, too."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    from onehot_triton import OneHotCategorical, ReparamGradientStrategy
    from onehot_triton.compute import EAGER
    from onehot_triton.compute.base import Rows

    mesh, full, grad = _mesh(world), 2 * _fixed(3, 7).double(), _fixed(2, 3, 7, seed=8).double()
    # Far below the others: of no weight in float64.
    full[2, :3] = -1e4
    # By the whole mesh's row, and of no row.
    t = torch.tensor([1.0, 1.5, 3.0]).double()
    each = DTensor.from_local(t, mesh, [Replicate()], run_check=False)
    formulas = {
        ReparamGradientStrategy.ReinMax: EAGER.reinmax_grad,
        ReparamGradientStrategy.GappedStraightThrough: EAGER.gapped_grad,
    }
    for placement in (Shard(-1), Shard(0)):
        for method, formula in formulas.items():
            for given, expected_t in ((1.0, 1.0), (1.5, 1.5), (each, t)):
                x, ref = _placed(full, mesh, placement).requires_grad_(), full.clone().requires_grad_()
                drawn = OneHotCategorical(x, grad_method=method, temperature=given).rsample((2,))
                assert drawn.full_tensor().sum(-1).eq(1).all()
                g = _placed(grad, mesh, Shard(2 if placement == Shard(-1) else 1)).requires_grad_()
                (found,) = torch.autograd.grad(drawn, x, g, create_graph=True)
                assert found.placements == x.placements
                h = grad.clone().requires_grad_()
                expected = formula(Rows(ref), drawn.full_tensor().argmax(-1), h, expected_t)
                _same(found, expected, 1e-12)
                if world == 2:
                    seconds = torch.autograd.grad((found * found).sum(), (x, g))
                    for one, other in zip(seconds, torch.autograd.grad((expected**2).sum(), (ref, h)), strict=True):
                        _same(one, other, 1e-10)
    # A row that is none has no gradient, and takes nothing from the others.
    full[1, 6] = torch.nan
    for method in formulas:
        x = _placed(full.float(), mesh, Shard(-1)).requires_grad_()
        drawn = OneHotCategorical(x, grad_method=method).rsample()
        (found,) = torch.autograd.grad(drawn, x, _placed(grad[0].float(), mesh, Shard(-1)))
        assert found.full_tensor().isnan().any(-1).tolist() == [False, True, False]


@case(2)
def second_derivatives_are_those_of_whole_rows(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    from onehot_triton import OneHotCategorical

    full, mesh = _fixed(2, 5).double(), _mesh(world)
    index = torch.tensor([1, 3])
    for loss in (lambda d: d.entropy(), lambda d: d.log_prob_index(index), lambda d: d.probs.square().sum(-1)):
        results = []
        for x in (_placed(full, mesh, Shard(-1)).requires_grad_(), full.clone().requires_grad_()):
            (grad,) = torch.autograd.grad(loss(OneHotCategorical(x)).sum(), x, create_graph=True)
            results.append(torch.autograd.grad(grad.square().sum(), x)[0])
        _same(*results)


@case(2, 3, 4)
def kernels_draw_as_of_the_whole_row(rank: int, world: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    from onehot_triton import OneHotCategorical, use_backend

    mesh, full = _mesh(world), _fixed(2, 1024 * world - 1)
    meshes = [(mesh, (Shard(-1),)), (mesh, (Shard(0),))]
    if world == 4:
        both = _mesh(2, 2)
        # Two shards of 2048 columns; the rows of the other dimension, or copies.
        meshes += [(both, (Shard(0), Shard(-1))), (both, (Shard(-1), Replicate()))]
    with use_backend("triton"):
        torch.manual_seed(11)
        expected = OneHotCategorical(full).sample_index((3,))
        for mesh, placements in meshes:
            torch.manual_seed(11)
            found = OneHotCategorical(_placed(full, mesh, *placements)).sample_index((3,))
            assert torch.equal(_whole(found), expected), placements


@case(2, 3)
def eager_draws_are_those_of_the_kernels(rank: int, world: int) -> None:
    """The same noise, also where shards start anywhere and a batch dimension behind another one is sharded."""
    from torch.distributed.tensor import Shard

    from onehot_triton import OneHotCategorical, use_backend

    mesh = _mesh(world)
    for shape, placement in (((2, 1030), Shard(-1)), ((3, world, 6), Shard(1)), ((2, 1030), Shard(0))):
        found = []
        for backend in ("triton", "eager"):
            with use_backend(backend):
                torch.manual_seed(5)
                drawn = OneHotCategorical(_placed(_fixed(*shape), mesh, placement)).sample_index((2,))
                found.append(_whole(drawn))
        assert torch.equal(*found)
        if placement != Shard(-1):
            with use_backend("triton"):
                torch.manual_seed(5)
                assert torch.equal(found[0], OneHotCategorical(_fixed(*shape)).sample_index((2,)))


@case(3)
def ranks_agree_and_draw_the_right_law(rank: int, world: int) -> None:
    """Whether the generators of the ranks differ or not: with one seed, and noise that is the same on all shards, the
    second of the two would not hold."""
    from torch.distributed.tensor import Replicate, Shard

    from onehot_triton import OneHotCategorical

    logits = torch.tensor([0.3, -1.0, 0.8, 0.0, -0.4, 1.0, -2.0])
    draws, mesh = 20_000, _mesh(world)
    for placement in (Shard(-1), Replicate()):
        for seed in (3, 3 + rank):
            torch.manual_seed(seed)
            drawn = OneHotCategorical(_placed(logits, mesh, placement)).sample_index((draws,)).to_local()
            _same_on_all(drawn)
            expected = logits.softmax(-1) * draws
            chi2 = ((torch.bincount(drawn, minlength=7) - expected) ** 2 / expected).sum()
            # The 1 - 1e-5 quantile of six degrees of freedom.
            assert chi2 < 33.1, (placement, seed, chi2)
            # No draw knows of the next.
            pairs = torch.bincount(drawn[:-1] * 7 + drawn[1:], minlength=49)
            p = logits.softmax(-1)
            expected = (p.unsqueeze(1) * p).flatten() * (draws - 1)
            assert ((pairs - expected) ** 2 / expected).sum() < 110


@case(2)
def relaxed_gradient_has_the_law_of_whole_rows(rank: int, world: int) -> None:
    """Mean and covariance over rows, of one sample a draw and of several (Gumbel-Rao). What columns of two shards have
    to do with each other is the winner's noise, and nothing else: both ranks draw as many numbers, which a common seed
    would make the same."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    from onehot_triton import OneHotCategorical, ReparamGradientStrategy

    rows, mesh, spreads = 40_000, _mesh(world), []
    for columns, samples in ((2, 1), (4, 1), (4, 4)):
        full, weight = _fixed(columns).expand(rows, columns).contiguous(), 3 * _fixed(columns, seed=8)
        found = []
        for shard in (True, False):
            t = torch.full((rows,), 0.7)
            if shard:
                x = _placed(full, mesh, Shard(-1)).requires_grad_()
                w = _placed(weight, mesh, Shard(0))
                t = DTensor.from_local(t, mesh, [Replicate()], run_check=False).requires_grad_()
            else:
                x, w, t = full.clone().requires_grad_(), weight, t.requires_grad_()
            method = ReparamGradientStrategy.RelaxedOneHot
            d = OneHotCategorical(x, grad_method=method, temperature=t, relaxed_samples=samples)
            gx, gt = torch.autograd.grad((d.rsample() * w).sum(), (x, t))
            grads = torch.cat([_whole(gx), _whole(gt).unsqueeze(-1)], -1)
            found.append((grads.mean(0), grads.T.cov()))
        (mean, cov), (expected_mean, expected_cov) = found
        spread = expected_cov.diagonal().sqrt()
        # In standard errors of a mean. Winners' noise that differs is 19 of them in a mean and 70 in a covariance; of
        # six seeds, right noise is 4 and 10 at most.
        assert ((mean - expected_mean) / spread).abs().max() < 8 / rows**0.5
        assert ((cov - expected_cov) / torch.outer(spread, spread)).abs().max() < 30 / rows**0.5
        spreads.append(cov.diagonal()[:columns])
    assert (spreads[2] < 0.64 * spreads[1]).all(), spreads


@case(2)
def a_row_with_nothing_allowed(rank: int, world: int) -> None:
    """Its part in every gradient is 0, that of a learned temperature too."""
    from torch.distributed.tensor import Shard

    from onehot_triton import MaskedOneHotCategorical, ReparamGradientStrategy

    mask = _fixed(4, 7, seed=1) > -0.5
    mask[:, 2], mask[1] = True, False
    acts = mask.any(-1)
    for placement, unimix in ((Shard(-1), 0.0), (Shard(-1), 0.1), (Shard(0), 0.0)):
        for name in ("PassThrough", *_GRADIENTS):
            x = _placed(_fixed(4, 7), _mesh(world), placement).requires_grad_()
            learned = torch.tensor(1.5, requires_grad=True)
            t = learned if name == "RelaxedOneHot" else 1.0
            method = ReparamGradientStrategy[name]
            d = MaskedOneHotCategorical(
                x, mask=mask, grad_method=method, temperature=t, unimix=unimix, validate_args=False
            )
            drawn, h, log_prob = map(_whole, (d.rsample((2,)), d.entropy(), d.log_prob_index(torch.full((4,), 2))))
            assert drawn.sum((0, -1)).tolist() == (2 * acts).tolist()
            torch.where(acts, (drawn * _fixed(7)).sum(-1) + h + log_prob, 0.0).sum().backward()
            grad = _whole(x.grad)
            assert grad.isfinite().all()
            assert grad[~mask].count_nonzero() == 0
            assert learned.grad is None or learned.grad.isfinite()


@case(2, 3)
def subclasses_and_options(rank: int, world: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, RelaxedOneHotCategorical

    mesh, full = _mesh(world), _fixed(3, 7)
    mask = _fixed(3, 7, seed=1) > -0.5
    mask[:, 2] = True
    wider = torch.stack([mask, mask.flip(0)])
    weight = _placed(torch.tensor(0.1), mesh, Replicate())
    for placement in (Shard(-1), Shard(0), Replicate()):
        x, probs = _placed(full, mesh, placement), _placed(full.exp(), mesh, placement)
        pairs = [
            (OneHotCategorical(probs=probs), OneHotCategorical(probs=full.exp())),
            (OneHotCategorical(x, unimix=0.1), OneHotCategorical(full, unimix=0.1)),
            (OneHotCategorical(x, unimix=torch.tensor(0.1)), OneHotCategorical(full, unimix=0.1)),
            (MaskedOneHotCategorical(x, mask=mask), MaskedOneHotCategorical(full, mask=mask)),
            (
                MaskedOneHotCategorical(x, mask=_placed(mask, mesh, placement), unimix=weight, neg_inf=-9.0),
                MaskedOneHotCategorical(full, mask=mask, unimix=0.1, neg_inf=-9.0),
            ),
            (OneHotCategorical(probs=probs.floor()), OneHotCategorical(probs=full.exp().floor())),
            (
                OneHotCategorical(probs=probs.floor(), neg_inf=-9.0),
                OneHotCategorical(probs=full.exp().floor(), neg_inf=-9.0),
            ),
            (
                MaskedOneHotCategorical(x, mask=mask.numpy(), validate_args=True),
                MaskedOneHotCategorical(full, mask=mask),
            ),
            (
                MaskedOneHotCategorical(x, mask=_placed(mask.float(), mesh, placement), validate_args=True),
                MaskedOneHotCategorical(full, mask=mask),
            ),
            (MaskedOneHotCategorical(x, mask=wider), MaskedOneHotCategorical(full, mask=wider)),
            (MaskedOneHotCategorical(probs=probs, mask=wider), MaskedOneHotCategorical(probs=full.exp(), mask=wider)),
            (OneHotCategorical(x.bfloat16()), OneHotCategorical(full.bfloat16())),
            (OneHotCategorical(x).expand((2, 3)), OneHotCategorical(full).expand((2, 3))),
        ]
        for found, expected in pairs:
            tolerance = 0.01 if found.probs.dtype == torch.bfloat16 else 1e-5
            _same(found.probs, expected.probs, tolerance)
            _same(found.logits, expected.logits, tolerance)
            _same(found.entropy(), expected.entropy())
            drawn = found.sample((2,))
            _same(found.log_prob(drawn), expected.log_prob(drawn.full_tensor()))
            assert found.rsample().placements == found.probs.placements
        grads = [
            torch.autograd.grad(MaskedOneHotCategorical(leaf, mask=wider).entropy(), leaf, weights)[0]
            for leaf, weights in (
                (x.detach().requires_grad_(), _placed(torch.ones(2, 3), mesh, Replicate())),
                (full.detach().requires_grad_(), torch.ones(2, 3)),
            )
        ]
        _same(*grads)
        other = OneHotCategorical(_placed(full.flip(-1), mesh, placement))
        _same(
            torch.distributions.kl_divergence(OneHotCategorical(x), other),
            torch.distributions.kl_divergence(OneHotCategorical(full), OneHotCategorical(full.flip(-1))),
        )
        # Near laws, in a row of which q alone has a category, and p alone in another.
        near = full + 1e-3 * _fixed(3, 7, seed=2)
        ones, others = full.clone(), near.clone()
        ones[1, 5], others[2, 0] = -torch.inf, -torch.inf
        log_p, d = ones.double().log_softmax(-1), others.double().log_softmax(-1) - ones.double().log_softmax(-1)
        exact = (log_p.exp() * (d.expm1() - d)).masked_fill(ones == -torch.inf, 0.0)
        exact[1, 5], exact[2] = others[1].double().softmax(-1)[5], torch.inf
        leaves = [_placed(t, mesh, placement).requires_grad_() for t in (ones, others)]
        found = torch.distributions.kl_divergence(*(OneHotCategorical(leaf) for leaf in leaves))
        torch.testing.assert_close(_whole(found).double(), exact.sum(-1), rtol=1e-3, atol=0)
        wholes = [t.clone().requires_grad_() for t in (ones, others)]
        whole = torch.distributions.kl_divergence(*(OneHotCategorical(t) for t in wholes))
        for one, other in zip(
            torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(whole.sum(), wholes), strict=True
        ):
            assert _whole(one).isfinite().all()
            _same(one, other)
        t = torch.tensor([[0.5], [1.0], [2.0]]).squeeze(-1)
        x.requires_grad_()
        soft, whole = RelaxedOneHotCategorical(t, logits=x), RelaxedOneHotCategorical(t, logits=full)
        y = soft.rsample((2,))
        assert y.placements == (Replicate() if placement == Replicate() else Shard(placement.dim % 2 + 1),)
        _same(y.full_tensor().sum(-1), torch.ones(2, 3))
        _same(soft.log_prob(y), whole.log_prob(y.full_tensor()), 1e-4)
        (grad,) = torch.autograd.grad((y * y).sum(), x)
        _same(grad.full_tensor().sum(-1), torch.zeros(3))


@case(2, 3)
def relaxed_densities_are_those_of_whole_rows(rank: int, world: int) -> None:
    """With categories that are off and values that are 0, on one shard or on all; the gradients, too."""
    from torch.distributed.tensor import Replicate, Shard

    from onehot_triton import RelaxedOneHotCategorical

    mesh, inf = _mesh(world), torch.inf
    full, value = _fixed(6, 7).double(), _fixed(2, 6, 7, seed=8).double()
    mask = torch.ones(6, 7, dtype=torch.bool)
    # The first shard has nothing; a row has one category; a row is left empty; a row has no distribution.
    mask[0, :4], mask[1, 1:], mask[2] = False, False, False
    full[0, :4] = torch.nan
    full[3] = -inf
    value = value.masked_fill(~mask, -inf)
    # Zeros: of one shard, and of all, of which one, in each row of its own number.
    value[0, 4, 6], value[1, 4, 1:5], value[1, 5, ::2] = -inf, -inf, -inf
    value = value.softmax(-1).nan_to_num(0.0)
    # Mass where a category is off.
    value[1, 0] = value[1, 5]
    temperature = torch.tensor([0.5, 1.0, 2.0, 0.7, 1 / 6, 1.4], dtype=torch.float64)
    for placement in (Shard(-1), Shard(0)):
        for of_log in (False, True):
            found: list[Any] = []
            for is_sharded in (True, False):
                x, y, t = full.clone(), value.log() if of_log else value.clone(), temperature.clone().requires_grad_()
                x, y = (
                    (_placed(x, mesh, placement), _placed(y, mesh, Shard(2 if placement == Shard(-1) else 1)))
                    if is_sharded
                    else (x, y)
                )
                x, y = x.requires_grad_(), y.requires_grad_()
                soft = RelaxedOneHotCategorical(t, logits=x, mask=mask, validate_args=False)
                out = (soft.base_dist if of_log else soft).log_prob(y)
                weight = torch.linspace(-1, 1, 12).double().reshape(2, 6)
                weight = (
                    _placed(weight, mesh, Shard(1) if placement == Shard(0) else Replicate()) if is_sharded else weight
                )
                first = torch.autograd.grad(
                    (out * weight).nan_to_num(0.0, 0.0, 0.0).sum(), (x, y, t), create_graph=True
                )
                found.append((out, *first))
                # The rows that have no infinite number.
                rows = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]).double().unsqueeze(-1)
                rows = _placed(rows, mesh, Shard(0) if placement == Shard(0) else Replicate()) if is_sharded else rows
                if world == 2 and placement == Shard(-1):
                    again = (first[0].nan_to_num(0.0) * rows).square().sum()
                    found[-1] += torch.autograd.grad(again, x)
            for one, other in zip(*found, strict=True):
                one = _whole(one)
                assert torch.equal(one.isnan(), other.isnan()), (of_log, placement, one, other)
                _same(one.nan_to_num(0.0), other.nan_to_num(0.0), 1e-10)
            expected = found[1][0]
            assert expected[:, 2:4].isnan().all()
            if not of_log:
                assert expected[1, 0] == -inf
                # m = 4 of 7 are 0, 3 t > m; 1 of 7, 6 t = m; and 4 of 7, 3 t < m.
                assert expected[1, 5] == -inf
                assert expected[0, 4].isfinite()
                assert expected[1, 4] == inf
    # Several values for rows that have a temperature each.
    t = torch.tensor([[0.5, 2.0]])
    whole, y = _fixed(1, 2, 7), _fixed(3, 2, 7, seed=9).softmax(-1)
    x = _placed(whole, mesh, Shard(-1))
    _same(RelaxedOneHotCategorical(t, logits=x).log_prob(y), RelaxedOneHotCategorical(t, logits=whole).log_prob(y))
    x = _placed(_fixed(1, 7), mesh, Shard(-1))
    y, t = _fixed(3, 7, seed=9).softmax(-1), torch.tensor([0.5])
    _same(
        RelaxedOneHotCategorical(t, logits=x).log_prob(y), RelaxedOneHotCategorical(t, logits=_fixed(1, 7)).log_prob(y)
    )
    for placement in (Shard(-1), Shard(0)):
        x, allowed = _placed(_fixed(3, 7), mesh, placement).requires_grad_(), torch.arange(7) != 5
        t = torch.tensor([0.001, 0.5, 2.0], requires_grad=True)
        soft = RelaxedOneHotCategorical(
            t, logits=x, mask=_placed(allowed.expand(3, 7), mesh, placement), validate_args=True
        )
        assert soft.mask.placements == x.placements
        y = soft.rsample((2,))
        assert y.full_tensor()[..., 5].eq(0).all()
        assert not soft.log_prob(y).full_tensor().isnan().any()
        log_y = soft.base_dist.rsample((2,))
        assert log_y.placements == y.placements
        whole = log_y.full_tensor()
        assert whole[..., 5].eq(-inf).all()
        assert whole.min(-1).values.ne(whole[..., :5].min()).any()
        _same(whole.logsumexp(-1), torch.zeros(2, 3))
        out = soft.base_dist.log_prob(log_y)
        assert out.full_tensor().isfinite().all()
        weighed = _placed(torch.arange(7.0).expand(2, 3, 7), mesh, y.placements[0])
        loss = (log_y.masked_fill(log_y == -inf, 0.0) * weighed).sum()
        dx, dt = torch.autograd.grad(loss, (x, t))
        # dL/dx = q / t, dL/dt = -<q, log y> / t, q = g - y sum g.
        g = torch.arange(7.0) * allowed
        q = g - whole.exp() * g.sum()
        _same(dx, (q / t.detach().unsqueeze(-1)).sum(0), 1e-4)
        _same(dt, -(q * whole.masked_fill(whole == -inf, 0.0)).sum((0, 2)) / t.detach(), 1e-4)
        idle = RelaxedOneHotCategorical(t, logits=x, mask=torch.tensor([[True], [False], [True]]), validate_args=False)
        for law in (idle, idle.base_dist):
            y = law.rsample()
            for out in (y, law.log_prob(y.detach())):
                assert out.full_tensor()[1].isnan().all()
                grads = torch.autograd.grad(out.full_tensor()[[0, 2]].clamp(-1e3, 1e3).square().sum(), (x, t))
                assert all(_whole(grad).isfinite().all() for grad in grads)
        y = soft.sample((2,))
        wrong = y.detach().full_tensor().clone()
        wrong[1, 2] = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0])
        _refused(partial(soft.log_prob, wrong), "value: ", "[1, 2]")
        wrong[1, 2, 5] = 0.0
        _refused(partial(soft.log_prob, wrong), "value: ", "[1, 2]")


@case(2, 4)
def collectives_and_bytes(rank: int, world: int) -> None:
    """Those that docs/scaling.md says, of so many rows and draws: nothing grows with the columns."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.debug import CommDebugMode

    from onehot_triton import (
        MaskedOneHotCategorical,
        OneHotCategorical,
        RelaxedOneHotCategorical,
        ReparamGradientStrategy,
        sharded,
    )

    rows, draws, columns = 3, 2, 300
    x = _placed(_fixed(rows, columns), _mesh(world), Shard(-1)).requires_grad_()
    w = _placed(_fixed(rows, columns), _mesh(world), Shard(-1))
    sent: list[int] = []
    gather = sharded._gather

    def counted(tensors: Any, ranks: Any) -> Any:
        sent.append(sum(t.numel() * t.element_size() for t in tensors))
        return gather(tensors, ranks)

    sharded._gather = counted
    try:

        def check(
            function: Callable[[], Any], collectives: int, a_row: int = 0, a_draw: int = 0, in_all: int = 0
        ) -> Any:
            sent.clear()
            with CommDebugMode() as mode:
                result = function()
            assert mode.get_total_counts() == len(sent) == collectives, (mode.get_comm_counts(), sent)
            assert sum(sent) == rows * (a_row + draws * a_draw) + in_all, sent
            return result

        def gradient(of: Any, *inputs: Tensor) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(of, inputs or x, grad)

        dist_, grad = OneHotCategorical(x), w.expand(draws, rows, columns)
        for method in (dist_.sample, dist_.sample_and_log_prob, dist_.rsample, dist_.rsample_and_log_prob):
            check(lambda method=method: method((draws,)), 1, 8, 12)
        check(lambda: dist_.rsample_log_prob_and_entropy((draws,)), 2, 8 + 12, 12)
        index = check(lambda: dist_.sample_index((draws,)), 1, 8, 12)
        check(lambda: dist_.log_prob_index(index), 0)
        check(lambda: dist_.log_prob_index_and_entropy(index), 1, 12)
        check(lambda: dist_.log_prob_index(index.clone()), 1, 8, 4)
        drawn = check(lambda: dist_.sample((draws,)), 1, 8, 12)
        density = check(lambda: dist_.log_prob(drawn), 0)
        check(lambda: torch.autograd.grad(density.to_local().sum(), x), 0)
        check(lambda: dist_.log_prob_and_entropy(drawn), 1, 12)
        # A change in place, and it is another value.
        drawn.zero_()
        density = check(lambda: dist_.log_prob(drawn), 1, 8, 8)
        check(lambda: torch.autograd.grad(density.to_local().sum(), x), 0)
        density = check(dist_.entropy, 1, 12)
        check(lambda: torch.autograd.grad(density.to_local().sum(), x), 0)
        check(gradient(check(lambda: dist_.rsample((draws,)), 1, 8, 12)), 1, 4)
        soft = ReparamGradientStrategy.RelaxedOneHot
        relaxed = OneHotCategorical(x, grad_method=soft)
        # The draw sends a seed beside the numbers of its rows.
        check(gradient(check(lambda: relaxed.rsample((draws,)), 1, 8, 12, 8)), 1, 0, 8)
        t = torch.tensor(0.7)
        several = OneHotCategorical(x, grad_method=soft, temperature=t, relaxed_samples=3)
        check(gradient(check(lambda: several.rsample((draws,)), 1, 8, 12, 8)), 1, 0, 3 * 8)
        several = OneHotCategorical(x, grad_method=soft, temperature=t.clone().requires_grad_(), relaxed_samples=3)
        learned = check(lambda: several.rsample((draws,)), 1, 8, 12, 8)
        check(gradient(learned, x, several.temperature), 1, 0, 3 * 16)
        for name, t, a_row in (("ReinMax", 1.0, 4), ("ReinMax", 1.5, 8), ("GappedStraightThrough", 1.5, 0)):
            straight = OneHotCategorical(x, grad_method=ReparamGradientStrategy[name], temperature=t)
            draw = check(lambda straight=straight: straight.rsample((draws,)), 1, 8, 12)
            check(gradient(draw), 1, a_row, 8)
        check(lambda: dist_.mode, 1, 4)
        check(lambda: OneHotCategorical(x.detach()).rmode, 1, 4)
        mode = check(lambda: dist_.rmode, 1, 8)
        check(lambda: torch.autograd.grad(mode, x, w), 1, 4)
        check(dist_.enumerate_support, 0)
        for name in ("probs", "logits", "mean", "variance"):
            moment = check(lambda name=name: getattr(dist_, name), 1, 8)
            check(lambda moment=moment: torch.autograd.grad(moment, x, w), 1, 4)
        other = OneHotCategorical(w)
        check(lambda: torch.distributions.kl_divergence(dist_, other), 3, 8 + 8 + 4)
        # Of one float64 number a row, another has twice the bytes.
        check(OneHotCategorical(x.double()).entropy, 1, 2 * 12)
        # The noise of soft samples, and so their scores, are float64.
        gumbel = RelaxedOneHotCategorical(0.5, logits=x)
        draw = check(lambda: gumbel.rsample((draws,)), 1, 0, 16)
        check(gradient(draw), 1, 0, 8)
        soft_value = draw.detach()
        density = check(lambda: gumbel.log_prob(soft_value), 2, 4, 16)
        check(lambda: torch.autograd.grad(density.to_local().sum(), x), 0)
        law = check(lambda: gumbel.base_dist, 0)
        draw = check(lambda: law.rsample((draws,)), 1, 0, 16)
        check(gradient(draw), 1, 0, 8)
        check(lambda: law.log_prob(draw.detach()), 2, 4, 16)
        checked = RelaxedOneHotCategorical(0.5, logits=x, validate_args=True)
        check(lambda: checked.log_prob(soft_value), 4, 4, 16 + 4, 8)
        gumbel = RelaxedOneHotCategorical(torch.tensor(0.5, requires_grad=True), logits=x)
        draw = check(lambda: gumbel.rsample((draws,)), 1, 0, 16)
        # Beside the draws', one sum of the temperature's gradient.
        check(gradient(draw, x, gumbel.temperature), 2, 0, 8, 8)
        for name in ("probs", "logits"):
            check(lambda name=name: getattr(gumbel, name), 1, 8)
        # What is sent when a distribution is made.
        mask = torch.ones(columns, dtype=torch.bool)
        masked = check(lambda: MaskedOneHotCategorical(x, mask=mask), 0)
        check(lambda: (masked.mask, masked.expand((draws, rows)), dist_.expand((draws, rows))), 0)
        check(lambda: masked.logits, 1, 8)
        check(lambda: OneHotCategorical(x, unimix=0.1), 1, 8)
        check(lambda: MaskedOneHotCategorical(x, mask=mask, unimix=0.1), 2, 12)
        checked = check(lambda: OneHotCategorical(x, validate_args=True), 2, 4, 0, 8)
        check(lambda: checked.log_prob_index(index.clone()), 2, 8, 4, 8)
        check(lambda: checked.log_prob(drawn.copy_(dist_.mode.expand_as(drawn))), 3, 8 + 4, 8, 8)
        # Whole rows need nobody.
        batch = OneHotCategorical(_placed(_fixed(world, 5), _mesh(world), Shard(0)))
        for function in (batch.sample, batch.rsample, batch.entropy, lambda: batch.probs, lambda: batch.mode):
            check(function, 0)
    finally:
        sharded._gather = gather


@case(2)
def no_function_binds_its_arguments(rank: int, world: int) -> None:
    """By `inspect.signature`, which costs more than the rest of what autograd records."""
    from torch.distributed.tensor import Shard

    from onehot_triton import OneHotCategorical, ReparamGradientStrategy

    for placement, name in itertools.product((Shard(0), Shard(1)), ("PassThrough", *_GRADIENTS)):
        x = _placed(_fixed(4, 6), _mesh(world), placement).requires_grad_()
        with pytest.MonkeyPatch.context() as monkeypatch:
            # DTensor asks for signatures, of its own and once, too.
            for turn in range(2):
                dist_ = OneHotCategorical(x, grad_method=ReparamGradientStrategy[name])
                drawn = dist_.rsample()
                (drawn.square().sum() + dist_.log_prob(drawn).sum() + dist_.entropy().sum()).backward()
                if turn == 0:
                    monkeypatch.setattr("inspect.signature", None)


@case(2)
def what_is_changed_in_place_is_not_the_last_draw(rank: int, world: int) -> None:
    """The logits or the draw, as a whole or this rank's part alone."""
    from torch.distributed.tensor import Shard

    from onehot_triton import OneHotCategorical

    first = torch.zeros(3, dtype=torch.int64)
    for part in (lambda t: t, lambda t: t.to_local()):
        x = _placed(_fixed(3, 7), _mesh(world), Shard(-1))
        d = OneHotCategorical(x)
        drawn = d.sample()
        part(x).mul_(-2)
        _same(d.log_prob(drawn), OneHotCategorical(x.full_tensor()).log_prob(drawn.full_tensor()))
        # Of a value that is 0 everywhere, the first maximum counts.
        drawn = d.sample()
        part(drawn).zero_()
        _same(d.log_prob(drawn), OneHotCategorical(x.full_tensor()).log_prob_index(first))


@case(2, 3)
def rows_that_are_no_distribution(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    from onehot_triton import MaskedOneHotCategorical, OneHotCategorical

    mesh, full = _mesh(world), _fixed(5, 9)
    full[0, 8], full[1, 0], full[2], full[3, 8] = torch.nan, torch.inf, -torch.inf, -torch.inf
    good = torch.tensor([False, False, False, True, True])
    for placement in (Shard(-1), Shard(0)):
        d = OneHotCategorical(_placed(full, mesh, placement))
        assert torch.equal(_whole(d.sample_index()) >= 0, good)
        assert torch.equal(_whole(d.sample()).sum(-1) == 1, good)
        assert torch.equal(_whole(d.mode).sum(-1) == 1, good)
        differentiated = OneHotCategorical(_placed(full, mesh, placement).requires_grad_())
        assert torch.equal(_whole(differentiated.rmode).sum(-1) == 1, good)
        assert torch.equal(~_whole(d.entropy()).isnan(), good)
        _, log_prob = d.sample_and_log_prob()
        assert torch.equal(~_whole(log_prob).isnan(), good)
        x = _placed(full[3:], mesh, placement)
        d = OneHotCategorical(x, validate_args=True)
        value = d.sample().full_tensor()
        _same(d.log_prob(value), OneHotCategorical(full[3:]).log_prob(value))
        d.log_prob_index(value.argmax(-1))
        wrong, beyond = value.clone(), torch.tensor([0, 9])
        wrong[1] = 0
        bad = _placed(full, mesh, placement)
        _refused(partial(OneHotCategorical, bad, validate_args=True), "logits: ", "[0]")
        _refused(partial(d.log_prob, wrong), "value: ", "[1]")
        _refused(partial(d.log_prob_index, beyond), "index: ", "[1]")
        nowhere = torch.zeros(9, dtype=torch.bool)
        _refused(partial(MaskedOneHotCategorical, x, mask=nowhere, validate_args=True), "logits: ", "[0]")
        twos = torch.ones(2, 9, dtype=torch.uint8)
        twos[1, 8] = 2
        for mask in (twos, _placed(twos, mesh, placement)):
            _refused(
                partial(MaskedOneHotCategorical, x, mask=mask, validate_args=True), "mask: expected 0 and 1", "[1]"
            )
    nothing = OneHotCategorical(_placed(full[:0], mesh, Shard(-1)))
    assert nothing.sample((2,)).shape == (2, 0, 9)
    assert OneHotCategorical(_placed(full, mesh, Shard(-1))).sample((0,)).shape == (0, 5, 9)
    assert nothing.entropy().shape == (0,)


@case(2, 4)
def placements_that_are_refused(rank: int, world: int) -> None:
    from torch.distributed.tensor import DTensor, Partial, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, RelaxedOneHotCategorical

    mesh, full = _mesh(world), _fixed(world, 4 * world)
    # What FSDP makes of a tensor-parallel parameter, on the columns and on the batch.
    refused = Partial(), _StridedShard(1, split_factor=2), _StridedShard(0, split_factor=2)
    cases = [(DTensor.from_local(full, mesh, [placement], run_check=False), repr(placement)) for placement in refused]
    if world == 4:
        both = _mesh(2, 2)
        cases.append((_placed(full, both, Shard(1), Shard(1)), "mesh dimensions 0 and 1"))
    everywhere = torch.ones(1, dtype=torch.bool)
    for param, words in cases:
        _refused(partial(OneHotCategorical, param), "logits: ", words)
        _refused(partial(OneHotCategorical, probs=param), "probs: ", words)
        _refused(partial(MaskedOneHotCategorical, param, mask=everywhere), "logits: ", words)
        _refused(RelaxedOneHotCategorical(0.5, logits=param).rsample, "logits: ", words)
    x = _placed(full, mesh, Shard(-1))
    _refused(partial(MaskedOneHotCategorical, x, mask=_placed(full > -9, mesh, Shard(0))), "mask: ", "Shard(dim=0)")
    _refused(partial(OneHotCategorical(x).log_prob, _placed(full, mesh, Shard(0))), "value: ", "Shard(dim=0)")
    one = _placed(full[:1], mesh, Shard(0))
    _refused(
        partial(MaskedOneHotCategorical, one, mask=full > -9), "mask: expected the batch [1] where that is sharded"
    )


@case(4)
def parts_are_those_of_torch(rank: int, world: int) -> None:
    """Even, uneven and empty ones, and a batch dimension that two mesh dimensions shard."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    from onehot_triton.sharded import layout_of

    for shape in ((8, 6, 2050), (3, 5, 3), (1, 7, 9)):
        for mesh in (_mesh(4), _mesh(2, 2)):
            choices = [Replicate(), Shard(0), Shard(1), Shard(2)]
            for placements in itertools.product(choices, repeat=mesh.ndim):
                if placements != (Shard(2), Shard(2)):
                    layout = layout_of(_placed(torch.empty(shape, device="meta"), mesh, *placements), "logits")
                    expected = compute_local_shape_and_global_offset(torch.Size(shape), mesh, placements)
                    assert (layout.local, layout.offset) == expected, (shape, placements)


@case(2)
def devices(rank: int, world: int) -> None:
    """A shard is moved by torch to the mesh's type of device; what is beside it there is not, and is refused."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    from onehot_triton import MaskedOneHotCategorical, OneHotCategorical

    mesh = DeviceMesh("meta", list(range(world)))
    x = DTensor.from_local(torch.zeros(3, 2), mesh, [Shard(-1)], run_check=False)
    assert x.device.type == "meta"
    d = OneHotCategorical(x)
    for result in (d.sample(), d.sample_index(), d.entropy(), d.mode):
        assert result.device_mesh == mesh
        assert result.to_local().is_meta
    here = "meta", "found one on cpu"
    _refused(partial(d.log_prob_index, torch.zeros(3, dtype=torch.int64)), "index: ", *here)
    _refused(partial(d.log_prob, torch.zeros(3, 2 * world)), "value: ", *here)
    _refused(partial(MaskedOneHotCategorical, x, mask=torch.ones(2 * world, dtype=torch.bool)), "mask: ", *here)
    # On one device, and of another mesh.
    other = _placed(torch.zeros(3, dtype=torch.int64), _mesh(1, world), Shard(0), Shard(0))
    d = OneHotCategorical(_placed(torch.zeros(3, 2 * world), _mesh(world), Shard(-1)))
    _refused(partial(d.log_prob_index, other), "index: ", "DeviceMesh((1, 2)")


@case(2, 4)
def batches_of_four_dimensions(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    from onehot_triton import OneHotCategorical, use_backend

    full = _fixed(2, 1, 4, 2, 6)
    for placements in [(Shard(-1),), (Shard(2),)] if world == 2 else [(Shard(0), Shard(-1)), (Shard(2), Shard(3))]:
        x = _placed(full, _mesh(*(2,) * len(placements)), *placements).requires_grad_()
        ref = full.clone().requires_grad_()
        sharded, whole = OneHotCategorical(x), OneHotCategorical(ref)
        value = sharded.rsample((2,)).detach()
        assert value.shape == (2, *full.shape)
        assert value.full_tensor().sum(-1).eq(1).all()
        if world == 4 and Shard(-1) not in placements:
            found = []
            for d in (sharded, whole):
                with use_backend("triton"):
                    torch.manual_seed(3)
                    found.append(_whole(d.sample_index()))
            assert torch.equal(*found)
        _same(sharded.log_prob(value), whole.log_prob(value.full_tensor()))
        _same(sharded.log_prob(value.clone()), whole.log_prob(value.full_tensor()))
        index = value.full_tensor().argmax(-1)
        _same(sharded.log_prob_index(index), whole.log_prob_index(index))
        for name in ("probs", "mode"):
            _same(getattr(sharded, name), getattr(whole, name))
        (grad,), (expected,) = (
            torch.autograd.grad(d.entropy().square().sum() + d.log_prob_index(index).sum(), p)
            for d, p in ((sharded, x), (whole, ref))
        )
        assert grad.placements == x.placements
        _same(grad, expected)


@case(3)
def a_part_of_the_world(rank: int, world: int) -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    from onehot_triton import OneHotCategorical

    mesh, full = DeviceMesh("cpu", list(range(world - 1, world // 2 - 1, -1))), _fixed(2, 6)
    if mesh.get_coordinate() is None:
        x = DTensor.from_local(torch.empty(0), mesh, [Shard(-1)], run_check=False, shape=full.shape, stride=(6, 1))
        _refused(partial(OneHotCategorical, x), "mesh that this rank is part of")
        return
    d = OneHotCategorical(_placed(full, mesh, Shard(-1)))
    _same(d.entropy(), OneHotCategorical(full).entropy())
    _same(d.log_prob(d.sample()).shape, torch.Size([2]))


class Inputs(NamedTuple):
    """What a compiled program is given: logits, one-hot values placed as they are, and what every rank has."""

    x: Any
    eye: Any
    index: Tensor
    mask: Tensor
    temperature: Tensor


def _draws(x: Any, eye: Any, index: Tensor, mask: Tensor, temperature: Tensor) -> Any:
    from onehot_triton import OneHotCategorical

    d = OneHotCategorical(x)
    return d.sample((2,)), d.sample_index(), *d.sample_and_log_prob(), *d.rsample_and_log_prob()


def _straight_through(x: Any, eye: Any, index: Tensor, mask: Tensor, temperature: Tensor) -> Any:
    from onehot_triton import OneHotCategorical, ReparamGradientStrategy

    reinmax, gapped, relaxed = (ReparamGradientStrategy[name] for name in _GRADIENTS)
    return (
        OneHotCategorical(x, grad_method=reinmax, temperature=1.5).rsample(),
        OneHotCategorical(x, grad_method=gapped).rsample(),
        OneHotCategorical(x, grad_method=relaxed, temperature=temperature, relaxed_samples=2).rsample(),
        *OneHotCategorical(x).rsample_log_prob_and_entropy(),
    )


def _densities(x: Any, eye: Any, index: Tensor, mask: Tensor, temperature: Tensor) -> Any:
    from onehot_triton import OneHotCategorical

    d = OneHotCategorical(x, validate_args=True)
    divergence = torch.distributions.kl_divergence(d, OneHotCategorical(probs=eye + 1, unimix=0.1))
    return *d.log_prob_and_entropy(eye), *d.log_prob_index_and_entropy(index), divergence


def _columns(x: Any, eye: Any, index: Tensor, mask: Tensor, temperature: Tensor) -> Any:
    from onehot_triton import OneHotCategorical

    d = OneHotCategorical(x).expand((2, *x.shape[:-1]))
    return d.probs, d.logits, d.mean, d.variance, d.mode, d.rmode, d.deterministic_sample, d.enumerate_support()


def _subclasses(x: Any, eye: Any, index: Tensor, mask: Tensor, temperature: Tensor) -> Any:
    from onehot_triton import MaskedOneHotCategorical, RelaxedOneHotCategorical

    masked = MaskedOneHotCategorical(x, mask=mask, unimix=temperature.detach() / 7)
    soft = RelaxedOneHotCategorical(temperature, logits=x)
    density = soft.log_prob((x.exp() + 1) / 9)
    return masked.mask, masked.logits, masked.log_prob(eye), density, soft.probs, soft.logits, soft.rsample()


def _of_whole_rows(x: Any, eye: Any, index: Tensor, mask: Tensor, temperature: Tensor) -> Any:
    from onehot_triton import OneHotCategorical

    d = OneHotCategorical(x)
    return d.log_prob_index(index), d.entropy(), d.sample()


def _of_allowed_columns(x: Any, eye: Any, index: Tensor, mask: Tensor, temperature: Tensor) -> Any:
    from onehot_triton import MaskedOneHotCategorical

    masked = MaskedOneHotCategorical(x, mask=mask)
    return masked.log_prob_index(index), masked.mask


def _inputs(shape: tuple[int, int], mesh: Any, placement: Any) -> Inputs:
    rows, columns = shape
    x = _placed(_fixed(rows, columns), mesh, placement).requires_grad_()
    eye, mask = torch.eye(columns)[:rows], torch.arange(columns) < columns - 1
    return Inputs(x, _placed(eye, mesh, placement), torch.arange(rows), mask, torch.tensor(0.7, requires_grad=True))


def _run(program: Callable[..., Any], given: Inputs) -> tuple[Any, Any]:
    """Its results, and the gradients of the logits and the temperature."""
    outputs = program(*given)
    loss = sum(_whole(out.square()).sum() for out in outputs if out.requires_grad)
    return outputs, torch.autograd.grad(loss, (given.x, given.temperature), allow_unused=True)


def _same_as_uncompiled(program: Callable[..., Any], compiled: Callable[..., Any], given: Inputs) -> list[int]:
    """Shapes and placements are, and values and gradients where nothing is drawn. The bytes of what is sent without a
    compiler, in its order."""
    from onehot_triton import sharded

    outputs, grads = _run(compiled, given)
    gather, sent = sharded._gather, []

    def counted(tensors: Any, ranks: Any) -> Any:
        sent.append(sum(t.numel() * t.element_size() for t in tensors))
        return gather(tensors, ranks)

    sharded._gather = counted
    try:
        expected, expected_grads = _run(program, given)
    finally:
        sharded._gather = gather
    for one, other in zip(outputs, expected, strict=True):
        assert (one.shape, one.dtype, one.placements) == (other.shape, other.dtype, other.placements)
        assert one.requires_grad == other.requires_grad
    assert grads[0].placements == given.x.placements
    drawn = [out for out in outputs if program in _DRAWS and out.shape[-1] == given.x.shape[-1]]
    if program in _DRAWS:
        assert len(drawn) >= 3
        for hot in drawn:
            assert hot.full_tensor().sum(-1).eq(1).all()
        # All are gradients of a softmax, or of its logarithm.
        _same(grads[0].full_tensor().sum(-1), torch.zeros(given.x.shape[0]), 1e-4)
    else:
        random = program in (_subclasses, _of_whole_rows)
        for one, other in zip(outputs[: -1 if random else None], expected, strict=not random):
            _same(one, other)
        if program is not _subclasses:
            _same(grads[0], expected_grads[0])
    return sent


_DRAWS = _draws, _straight_through


@case(2)
def compiled_programs_are_one_graph(rank: int, world: int) -> None:
    """And those with a gradient of columns send what is sent without a compiler, in one order on all ranks: of uneven
    shards, whose sizes are other ones, and a compiler plans by them what it computes twice."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch.distributed.tensor import Shard

    mesh = _mesh(world)
    sent: list[int] = []

    def compiler(module: torch.fx.GraphModule, inputs: Any) -> Any:
        gathers = [node.args[0].meta["val"] for node in module.graph.nodes if "all_gather" in str(node.target)]
        sent.extend(mine.numel() * mine.element_size() for mine in gathers)
        return make_boxed_func(module.forward)

    planned = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, partition_fn=min_cut_rematerialization_partition)
    for program in (_straight_through, _columns, _subclasses):
        torch._dynamo.reset()
        sent.clear()
        compiled = torch.compile(program, fullgraph=True, backend=planned)
        expected = _same_as_uncompiled(program, compiled, _inputs((4, 7), mesh, Shard(-1)))
        of_ranks: list[Any] = [None] * world
        dist.all_gather_object(of_ranks, sent)
        assert of_ranks == [sent] * world, of_ranks
        # What is sent twice, a compiler may send once.
        assert not Counter(sent) - Counter(expected), (program, sent, expected)
        assert set(sent) == set(expected), (program, sent, expected)
    for program, placement in ((_draws, Shard(-1)), (_densities, Shard(-1)), (_of_whole_rows, Shard(0))):
        torch._dynamo.reset()
        compiled = torch.compile(program, fullgraph=True, backend="eager")
        _same_as_uncompiled(program, compiled, _inputs((4, 7), mesh, placement))


@case(2)
def another_number_is_no_other_program(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, ReparamGradientStrategy

    mesh, mask = _mesh(world), torch.arange(6) < 5
    x, g = (_placed(_fixed(2, 6, seed=seed), mesh, Shard(-1)) for seed in (1, 2))
    x.requires_grad_()

    def program(x: Any, t: float) -> Any:
        logits = MaskedOneHotCategorical(x.detach(), mask=mask, neg_inf=-t, unimix=t - 1).logits
        return OneHotCategorical(x, grad_method=ReparamGradientStrategy.ReinMax, temperature=t).rsample(), logits

    torch._dynamo.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=2):
        for t in (1.5, 1.25, 1.75):
            found = []
            for function in (program, compiled):
                torch.manual_seed(3)
                drawn, logits = function(x, t)
                found.append((drawn.detach(), logits, *torch.autograd.grad(drawn, x, g)))
            for one, other in zip(*found, strict=True):
                _same(one, other)


@case(2)
def dynamic_shapes_are_one_graph(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    graphs: list[Any] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(_of_allowed_columns, fullgraph=True, dynamic=True, backend=backend)
    for rows in (5, 6):
        _same_as_uncompiled(_of_allowed_columns, compiled, _inputs((rows, 7), _mesh(world), Shard(-1)))
    assert len(graphs) == 1


@case(2)
def validation_speaks_on_all_ranks_in_a_compiled_program(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    from onehot_triton import OneHotCategorical

    full = _fixed(2, 5)
    full[1, 4] = torch.nan
    compiled = torch.compile(lambda x: OneHotCategorical(x, validate_args=True).mode, backend="eager")
    with pytest.raises(RuntimeError, match="expected a distribution in every row"):
        compiled(_placed(full, _mesh(world), Shard(-1)))


@case(2)
def a_program_of_inductor_is_right(rank: int, world: int) -> None:
    """Of even shards, so that the ranks compile the same, and one finds what the other has compiled."""
    from torch._inductor import config
    from torch.distributed.tensor import Shard

    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return
    torch._dynamo.reset()
    given = _inputs((4, 6), _mesh(world), Shard(-1))
    given = given._replace(x=given.x.detach())
    with config.patch(compile_threads=1):
        found = torch.compile(_of_allowed_columns, fullgraph=True)(*given)
    for one, other in zip(found, _of_allowed_columns(*given), strict=True):
        assert one.placements == other.placements
        _same(one, other)


@case(2)
def a_tensor_parallel_head_streams_what_one_process_does(rank: int, world: int) -> None:
    """And is trained to the same costs: what `examples/tensor_parallel_decode.py` says."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import tensor_parallel_decode as example  # pyright: ignore[reportMissingImports]

    words, costs = example.decode_and_train(world, 3, 2)
    _same_on_all(words)
    if rank == 0:
        expected = example.decode_and_train(1, 3, 2)
        assert torch.equal(words, expected[0])
        _same(torch.tensor(costs), torch.tensor(expected[1]))
        assert costs[1] < costs[0]


@case(2)
def equally_seeded_ranks_of_torch_draw_equal_noise(rank: int, world: int) -> None:
    """What docs/coming-from.md says of torch's DTensor."""
    from torch.distributed.tensor import DTensor, Shard

    mesh = _mesh(world)
    for name in ("exponential_", "uniform_", "normal_"):
        torch.manual_seed(4)
        noise = getattr(_placed(torch.zeros(2, 8 * world), mesh, Shard(-1)), name)()
        _same_on_all(noise.to_local())
    listed = DTensor._op_dispatcher._random_ops
    assert torch.ops.aten.uniform_.default in listed
    assert torch.ops.aten.exponential_.default not in listed


@case(2)
def a_rank_that_does_not_come_or_dies(rank: int, world: int) -> None:
    """The others get torch.distributed's own error. The last case: afterwards a rank is gone."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    from onehot_triton import OneHotCategorical

    part, late = torch.zeros(2, 3), timedelta(seconds=2)
    mesh = DeviceMesh.from_group(dist.new_group(timeout=late), "cpu")
    waits = OneHotCategorical(DTensor.from_local(part, mesh, [Shard(-1)], run_check=False))
    d = OneHotCategorical(DTensor.from_local(part, _mesh(world), [Shard(-1)], run_check=False))
    if rank == 0:
        start = time.perf_counter()
        with pytest.raises(RuntimeError, match=r"[Tt]imed out|timeout"):
            waits.entropy()
        assert time.perf_counter() - start > late.total_seconds() / 2
    # Of another group, all is as before.
    _same(d.entropy(), torch.full((2,), 6.0).log())
    if rank == 1:
        os._exit(0)
    for method in (d.sample, d.entropy):
        with pytest.raises(RuntimeError, match=r"peer|[Cc]onnection|timeout"):
            method()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
