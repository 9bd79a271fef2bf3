"""The class at work in tensordict and TorchRL, in place of TorchRL's own."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence

pytest.importorskip("torchrl", reason="TorchRL is not installed")

from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    ProbabilisticTensorDictModule,
    TensorDictModule,
    set_composite_lp_aggregate,
    set_interaction_type,
)
from tensordict.nn import distributions as tensordict_distributions
from tensordict.nn import probabilistic as tensordict_probabilistic
from torchrl.data import OneHot
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.modules import MaskedOneHotCategorical as TheirMaskedOneHotCategorical
from torchrl.modules import OneHotCategorical as TheirOneHotCategorical
from torchrl.modules import distributions as torchrl_distributions
from torchrl.modules.distributions.utils import has_analytic_entropy, has_analytic_kl
from torchrl.objectives import A2CLoss, ClipPPOLoss, DiscreteSACLoss, KLPENPPOLoss, PPOLoss, SoftUpdate

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, ReparamGradientStrategy
from onehot_triton.integrations.torchrl import NAMES, _table, register

# Importing TorchRL turned it off, for every test of this process.
Distribution.set_default_validate_args(__debug__)

ROWS, OBSERVATIONS, ACTIONS = 6, 5, 4
METHODS = [None, ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot]
RANDOM, MODE, MEAN, DETERMINISTIC = (
    InteractionType.RANDOM,
    InteractionType.MODE,
    InteractionType.MEAN,
    InteractionType.DETERMINISTIC,
)


@pytest.fixture(autouse=True)
def validation_as_torchrl_leaves_it() -> None:
    """The fixture of conftest.py puts it back."""
    Distribution.set_default_validate_args(False)


def tables() -> list[dict[Any, Any]]:
    """Every table that `register` writes to, under whatever name this version of TorchRL or tensordict has it."""
    return [
        _table(torchrl_distributions, "HAS_ENTROPY"),
        _table(torchrl_distributions, "distributions_maps"),
        _table(tensordict_distributions, "distributions_maps"),
        _table(tensordict_probabilistic, "DETERMINISTIC_REGISTER"),
    ]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing registered, before and after."""

    def forget() -> None:
        for table in tables():
            for name, cls in NAMES.items():
                for key in (cls, str(cls).lower(), name.lower()):
                    table.pop(key, None)

    forget()
    yield
    forget()


def actor(distribution_class=OneHotCategorical, interaction=RANDOM, **options) -> ProbabilisticActor:
    net = TensorDictModule(MLP(OBSERVATIONS, ACTIONS, num_cells=[8]), ["observation"], ["logits"])
    return ProbabilisticActor(
        net,
        in_keys=["logits"],
        out_keys=["action"],
        distribution_class=distribution_class,
        default_interaction_type=interaction,
        **options,
    )


def observations() -> TensorDict:
    return TensorDict({"observation": torch.randn(ROWS, OBSERVATIONS)}, [ROWS])


def assert_one_hot(value: Tensor) -> None:
    assert value.shape == (ROWS, ACTIONS)
    assert ((value == 0) | (value == 1)).all()
    assert (value.sum(-1) == 1).all()


# Registration ---------------------------------------------------------------------------------------------------------


def test_importing_the_library_imports_neither_torchrl_nor_tensordict() -> None:
    code = "import sys, onehot_triton.integrations.torchrl; assert not {'torchrl', 'tensordict'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_torchrl_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrl.modules.distributions", None)
    message = r"torchrl.* is not installed: pip install 'onehot_triton\[torchrl\]'"
    with pytest.raises(ImportError, match=message) as error:
        register()
    assert "\n" not in str(error.value)


def test_register_enters_the_classes_into_every_table(forgotten: None) -> None:
    before = [dict(table) for table in tables()]
    register()
    once = [dict(table) for table in tables()]
    for name, cls in NAMES.items():
        has_entropy, by_repr, by_name, deterministic = once
        assert has_entropy[cls]
        assert by_repr[str(cls).lower()] is cls
        assert by_name[name.lower()] is cls
        assert deterministic[cls] is MODE
    register()
    assert [dict(table) for table in tables()] == once
    # The short names go on meaning what they meant.
    for table, was in zip(once, before, strict=True):
        assert was
        assert was.items() <= table.items()


@pytest.mark.parametrize("kept", [True, False], ids=["private", "gone"])
def test_register_where_tables_of_tensordict_are_private_or_gone(
    kept: bool, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 0.15 on tensordict's tables are private, and their public names warn; without any name they are left out."""
    modules = {"distributions_maps": tensordict_distributions, "DETERMINISTIC_REGISTER": tensordict_probabilistic}
    private = {name: _table(module, name) for name, module in modules.items()}
    for name, module in modules.items():

        def deprecated(wanted: str, name: str = name) -> Any:
            if not kept or wanted != name:
                raise AttributeError(wanted)
            warnings.warn(f"{wanted} is deprecated", DeprecationWarning, stacklevel=2)
            return private[wanted]

        # By the dictionary: `delattr` and `setattr` of monkeypatch would ask the module's own `__getattr__`.
        monkeypatch.delitem(vars(module), name, raising=False)
        monkeypatch.delitem(vars(module), f"_{name}", raising=False)
        monkeypatch.setitem(vars(module), "__getattr__", deprecated)
        if kept:
            monkeypatch.setitem(vars(module), f"_{name}", private[name])
    register()
    for name, cls in NAMES.items():
        assert torchrl_distributions.HAS_ENTROPY[cls]
        assert (private["distributions_maps"].get(name.lower()) is cls) is kept
        assert (private["DETERMINISTIC_REGISTER"].get(cls) is MODE) is kept


def test_a_distribution_class_by_its_name(forgotten: None) -> None:
    register()
    for name, cls in NAMES.items():
        module = ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=name)
        assert module.distribution_class is cls


def test_an_independent_distribution_is_deterministic_by_its_mode(forgotten: None) -> None:
    """tensordict looks for `deterministic_sample`, which Independent does not pass on, then for the exact type."""
    register()
    logits = torch.randn(ROWS, 3, ACTIONS)
    module = ProbabilisticTensorDictModule(
        ["logits"],
        ["action"],
        distribution_class=lambda logits: Independent(OneHotCategorical(logits), 1),
        default_interaction_type=DETERMINISTIC,
    )
    td = module(TensorDict({"logits": logits}, [ROWS]))
    assert torch.equal(td["action"], OneHotCategorical(logits).mode)


@pytest.mark.parametrize("kind", ["plain", "mask", "indices"])
def test_kl_divergence_with_theirs(kind: str) -> None:
    register()
    logits = torch.randn(2, 3, 5)
    logits[:, 0, 1] = -torch.inf
    leaves = [logits[i].clone().requires_grad_() for i in range(2)]
    keys: dict[str, Any] = {
        "plain": {},
        "mask": {"mask": torch.tensor([True, True, False, True, False]).expand(3, 5)},
        # TorchRL looks a padding up too, so that it is a column.
        "indices": {"indices": torch.tensor([[0, 1, 3, 4], [3, 0, 4, 1], [1, 4, 0, 3]]), "padding_value": 4},
    }[kind]
    cls, theirs = (
        (OneHotCategorical, TheirOneHotCategorical)
        if kind == "plain"
        else (MaskedOneHotCategorical, TheirMaskedOneHotCategorical)
    )
    p, q = (cls(leaf, **keys) for leaf in leaves)
    their_p, their_q = (theirs(leaf, **keys) for leaf in leaves)
    for a, b in ((p, q), (q, p)):
        other_a, other_b = ((their_p, their_q), (their_q, their_p))[a is q]
        expected = kl_divergence(a, b)
        grads = torch.autograd.grad(expected.sum(), leaves, retain_graph=True)
        for found in (kl_divergence(a, other_b), kl_divergence(other_a, b)):
            torch.testing.assert_close(found, expected)
            assert found.dtype == torch.float32
            torch.testing.assert_close(torch.autograd.grad(found.sum(), leaves, retain_graph=True), grads)


def test_kl_divergence_of_near_laws_with_theirs() -> None:
    """In one row a probability underflows whose logit is finite: it is no category that is off."""
    register()
    x = torch.randn(20, 32)
    y = x + 1e-3 * torch.randn(20, 32)
    x[0, 3] = y[0, 3] = -120.0
    log_p, d = x.double().log_softmax(-1), y.double().log_softmax(-1) - x.double().log_softmax(-1)
    exact = (log_p.exp() * (d.expm1() - d)).sum(-1)
    for p, q in (
        (OneHotCategorical(x), TheirOneHotCategorical(y)),
        (TheirOneHotCategorical(x), OneHotCategorical(y)),
    ):
        torch.testing.assert_close(kl_divergence(p, q).double(), exact, rtol=5e-4, atol=0)


# Modules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interaction", [RANDOM, MODE, MEAN, DETERMINISTIC])
def test_an_actor_for_every_interaction(interaction: InteractionType, method: ReparamGradientStrategy | None) -> None:
    td = actor(interaction=interaction, distribution_kwargs={"grad_method": method})(observations())
    action, logits = td["action"], td["logits"]
    if interaction is MEAN:
        torch.testing.assert_close(action, logits.softmax(-1))
        return
    assert_one_hot(action)
    assert action.requires_grad == (interaction is RANDOM and method is not None)
    if interaction is not RANDOM:
        assert torch.equal(action.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interaction", [RANDOM, MODE, DETERMINISTIC])
@pytest.mark.parametrize("parameter", ["logits", "probs"])
def test_a_module_with_return_log_prob(
    interaction: InteractionType, method: ReparamGradientStrategy | None, parameter: str
) -> None:
    weights = torch.rand(ROWS, ACTIONS, requires_grad=True)
    module = ProbabilisticTensorDictModule(
        in_keys=[parameter],
        out_keys=["action"],
        distribution_class=OneHotCategorical,
        distribution_kwargs={"grad_method": method},
        default_interaction_type=interaction,
        return_log_prob=True,
        log_prob_key="log_prob",
    )
    td = module(TensorDict({parameter: weights}, [ROWS]))
    theirs = TheirOneHotCategorical(**{parameter: weights}).log_prob(td["action"])
    torch.testing.assert_close(td["log_prob"], theirs)
    found, expected = (torch.autograd.grad(log_prob.sum(), weights)[0] for log_prob in (td["log_prob"], theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interaction", [RANDOM, MODE, DETERMINISTIC])
def test_a_masked_actor(interaction: InteractionType, method: ReparamGradientStrategy | None) -> None:
    """The mask comes from the environment, as TorchRL's ActionMask leaves it."""
    module = ProbabilisticTensorDictModule(
        ["logits", "mask"],
        ["action"],
        distribution_class=MaskedOneHotCategorical,
        distribution_kwargs={"grad_method": method},
        default_interaction_type=interaction,
        return_log_prob=True,
    )
    mask = torch.tensor([False, True, False, True]).expand(ROWS, -1)
    logits = torch.randn(ROWS, ACTIONS, requires_grad=True)
    td = module(TensorDict({"logits": logits, "mask": mask}, [ROWS]))
    assert_one_hot(td["action"].detach())
    assert td["action"][~mask].count_nonzero() == 0
    td["action_log_prob"].sum().backward()
    assert logits.grad[~mask].count_nonzero() == 0


def test_set_interaction_type_overrides_the_default() -> None:
    policy = actor()
    with set_interaction_type(MODE):
        td = policy(observations())
    assert torch.equal(td["action"].argmax(-1), td["logits"].argmax(-1))


def test_num_samples_and_its_log_prob() -> None:
    td = actor(num_samples=3, return_log_prob=True)(observations())
    assert td["action"].shape == (3, ROWS, ACTIONS)
    assert td["action_log_prob"].shape == (3, ROWS)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_an_action_belongs_to_a_one_hot_spec(dtype: torch.dtype) -> None:
    spec = OneHot(ACTIONS, shape=(ACTIONS,), dtype=dtype)
    policy = actor(spec=spec, safe=True, distribution_kwargs={"dtype": dtype})
    action = policy(observations())["action"]
    assert action.dtype == dtype
    assert policy.spec["action"].expand(ROWS, ACTIONS).is_in(action)


def test_a_generator_of_tensordict_decides_the_draw() -> None:
    logits = torch.zeros(200, ACTIONS)
    draws = []
    for seed in (1, 1, 2):
        module = ProbabilisticTensorDictModule(
            ["logits"],
            ["action"],
            distribution_class=OneHotCategorical,
            default_interaction_type=RANDOM,
            generator=torch.Generator().manual_seed(seed),
        )
        draws.append(module(TensorDict({"logits": logits}, [200]))["action"])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def composite(logits: Tensor, other: Tensor) -> CompositeDistribution:
    return CompositeDistribution(
        TensorDict({"a": {"logits": logits}, "b": {"logits": other}}, [ROWS]),
        distribution_map={"a": OneHotCategorical, "b": partial(OneHotCategorical, unimix=0.1)},
    )


def test_in_a_composite_distribution() -> None:
    logits, other = torch.randn(ROWS, ACTIONS), torch.randn(ROWS, 3)
    with set_composite_lp_aggregate(False):
        dist = composite(logits, other)
        draw = dist.sample()
        log_prob = dist.log_prob(draw)
        entropy = dist.entropy()
    assert_one_hot(draw["a"])
    torch.testing.assert_close(log_prob["a_log_prob"], OneHotCategorical(logits).log_prob(draw["a"]))
    torch.testing.assert_close(log_prob["b_log_prob"], OneHotCategorical(other, unimix=0.1).log_prob(draw["b"]))
    torch.testing.assert_close(entropy["a_entropy"], OneHotCategorical(logits).entropy())
    assert torch.equal(dist.mode["a"].argmax(-1), logits.argmax(-1))
    assert torch.equal(dist.deterministic_sample["b"].argmax(-1), other.argmax(-1))


# Losses ---------------------------------------------------------------------------------------------------------------


def transitions(policy: ProbabilisticActor) -> TensorDict:
    """One step of a made-up environment, with the policy's own actions."""
    with torch.no_grad():
        td = policy(observations())
    done = torch.zeros(ROWS, 1, dtype=torch.bool)
    td["next"] = TensorDict(
        {
            "observation": torch.randn(ROWS, OBSERVATIONS),
            "reward": torch.randn(ROWS, 1),
            "done": done,
            "terminated": done,
        },
        [ROWS],
    )
    return td


def actor_gradient(loss: nn.Module, td: TensorDict) -> tuple[TensorDict, Tensor]:
    """The losses, and the gradient of their sum in the actor's parameters."""
    out = loss(td.clone())
    total = torch.stack([value for key, value in out.items() if key.startswith("loss_")]).sum()
    parameters = list(loss.actor_network_params.parameters())
    return out, torch.cat([grad.flatten() for grad in torch.autograd.grad(total, parameters)])


def compare(make_loss, **options) -> TensorDict:
    """One loss and one backward of each class, with the same weights on the same transitions."""
    ours, theirs = actor(return_log_prob=True), actor(TheirOneHotCategorical, return_log_prob=True)
    theirs.load_state_dict(ours.state_dict())
    td = transitions(theirs)
    assert_one_hot(td["action"])
    results = []
    for policy in (ours, theirs):
        torch.manual_seed(1)
        results.append(actor_gradient(make_loss(policy, **options), td))
    (out, gradient), (their_out, their_gradient) = results
    assert set(out.keys()) == set(their_out.keys())
    for key, value in out.items():
        torch.testing.assert_close(value, their_out[key], msg=lambda text, key=key: f"{key}: {text}")
    torch.testing.assert_close(gradient, their_gradient)
    assert gradient.abs().max() > 0
    return out


def test_discrete_sac_is_that_of_torchrls_class() -> None:
    def make(policy: ProbabilisticActor, **options) -> DiscreteSACLoss:
        q = ValueOperator(MLP(OBSERVATIONS, ACTIONS, num_cells=[8]), ["observation"], ["action_value"])
        loss = DiscreteSACLoss(policy, q, action_space="one-hot", num_actions=ACTIONS, **options)
        loss.make_value_estimator(gamma=0.9)
        # Without one, the loss warns of targets that nothing will update.
        SoftUpdate(loss, eps=0.99)
        return loss

    compare(make)
    compare(make, skip_done_states=True)


@pytest.mark.parametrize("kind", [PPOLoss, ClipPPOLoss, KLPENPPOLoss])
def test_ppo_is_that_of_torchrls_class(kind: type[PPOLoss]) -> None:
    def make(policy: ProbabilisticActor) -> PPOLoss:
        value = ValueOperator(MLP(OBSERVATIONS, 1, num_cells=[8]), ["observation"])
        return kind(policy, value)

    out = compare(make)
    assert out["entropy"] > 0


def test_a2c_is_that_of_torchrls_class() -> None:
    def make(policy: ProbabilisticActor) -> A2CLoss:
        value = ValueOperator(MLP(OBSERVATIONS, 1, num_cells=[8]), ["observation"])
        return A2CLoss(policy, value)

    compare(make)


class Extreme(nn.Module):
    """Probabilities of which the last underflowed to 0, beside a gap of 110, as a trained policy has them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(OBSERVATIONS, ACTIONS, num_cells=[8])

    def forward(self, observation: Tensor) -> Tensor:
        return (self.net(observation) - 110.0 * torch.tensor([0.0, 0.0, 0.0, 1.0])).softmax(-1)


def extreme_actors(**options: Any) -> list[ProbabilisticActor]:
    """With our class, and with theirs, of the same weights."""
    ours, theirs = (
        ProbabilisticActor(
            TensorDictModule(Extreme(), ["observation"], ["probs"]),
            in_keys=["probs"],
            out_keys=["action"],
            distribution_class=cls,
            distribution_kwargs=options if cls is OneHotCategorical else {},
            default_interaction_type=RANDOM,
            return_log_prob=True,
        )
        for cls in (OneHotCategorical, TheirOneHotCategorical)
    )
    theirs.load_state_dict(ours.state_dict())
    return [ours, theirs]


def discrete_sac(policy: ProbabilisticActor) -> DiscreteSACLoss:
    q = ValueOperator(MLP(OBSERVATIONS, ACTIONS, num_cells=[8]), ["observation"], ["action_value"])
    loss = DiscreteSACLoss(policy, q, action_space="one-hot", num_actions=ACTIONS)
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, eps=0.99)
    return loss


def test_discrete_sac_where_a_probability_underflowed() -> None:
    """It sums p * logits: of -inf that is NaN."""
    ours, theirs = extreme_actors()
    td = transitions(theirs)
    assert (ours.get_dist(td).probs[:, -1] == 0).all()
    results = []
    for policy in (ours, theirs):
        torch.manual_seed(1)
        results.append(actor_gradient(discrete_sac(policy), td))
    (out, gradient), (their_out, their_gradient) = results
    for key in ("loss_actor", "loss_qvalue", "loss_alpha", "entropy"):
        torch.testing.assert_close(out[key], their_out[key])
    torch.testing.assert_close(gradient, their_gradient)
    assert gradient.abs().max() > 0


def test_discrete_sac_with_masked_actions() -> None:
    """Their masked class gives NaN. The oracle is the sum over the actions that are allowed."""
    mask = torch.tensor([True, True, False, True]).expand(ROWS, ACTIONS)
    policy = ProbabilisticActor(
        TensorDictModule(MLP(OBSERVATIONS, ACTIONS, num_cells=[8]), ["observation"], ["logits"]),
        in_keys=["logits", "mask"],
        out_keys=["action"],
        distribution_class=MaskedOneHotCategorical,
        default_interaction_type=RANDOM,
        return_log_prob=True,
    )
    td = observations().set("mask", mask)
    with torch.no_grad():
        td = policy(td)
    done = torch.zeros(ROWS, 1, dtype=torch.bool)
    following = {"observation": torch.randn(ROWS, OBSERVATIONS), "mask": mask, "reward": torch.randn(ROWS, 1)}
    td["next"] = TensorDict(following | {"done": done, "terminated": done}, [ROWS])
    loss = discrete_sac(policy)
    out, gradient = actor_gradient(loss, td)
    for key in ("loss_actor", "loss_qvalue", "loss_alpha", "entropy"):
        assert out[key].isfinite()
    with torch.no_grad():
        values = []
        for parameters in loss.qvalue_network_params.unbind(0):
            with parameters.to_module(loss.qvalue_network):
                values.append(loss.qvalue_network(td.clone())["action_value"][:, mask[0]])
        log_p = policy.get_dist(td).logits[:, mask[0]].double()
        expected = (log_p.exp() * (log_p * loss._alpha - torch.minimum(*values))).sum(-1).mean()
    torch.testing.assert_close(out["loss_actor"].double(), expected, rtol=1e-5, atol=1e-5)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("kind", [PPOLoss, ClipPPOLoss, A2CLoss])
def test_an_action_that_became_impossible_needs_neg_inf(kind: type[nn.Module]) -> None:
    """Its log-probability is -inf, as is right: a loss that takes it needs a finite number. Theirs has one, -15.94."""
    for neg_inf in (None, -1e4):
        policy, _ = extreme_actors(neg_inf=neg_inf)
        td = transitions(policy)
        td["action"][0] = torch.tensor([0, 0, 0, 1])
        out, gradient = actor_gradient(kind(policy, ValueOperator(MLP(OBSERVATIONS, 1), ["observation"])), td)
        finite = all(value.isfinite().all() for value in out.values())
        assert finite == (neg_inf is not None)
        if finite:
            assert gradient.isfinite().all()


def test_ppo_takes_bool_actions() -> None:
    """The actions of a one-hot spec are bool by default; TorchRL's class raises on them."""
    policy = actor(return_log_prob=True, distribution_kwargs={"dtype": torch.bool})
    value = ValueOperator(MLP(OBSERVATIONS, 1, num_cells=[8]), ["observation"])
    td = transitions(policy)
    assert td["action"].dtype == torch.bool
    _, gradient = actor_gradient(PPOLoss(policy, value), td)
    _, expected = actor_gradient(PPOLoss(policy, value), td.set("action", td["action"].long()))
    torch.testing.assert_close(gradient, expected)
    assert (gradient != 0).any()


def test_entropies_are_exact(forgotten: None) -> None:
    """Registered or not: TorchRL 0.14 asks the class, which older versions look up in HAS_ENTROPY."""
    policy = actor(return_log_prob=True)
    td = transitions(policy)
    exact = policy.get_dist(td).entropy()
    assert has_analytic_entropy(policy.get_dist(td))
    assert has_analytic_kl(policy.get_dist(td), policy.get_dist(td))
    for turn in (lambda: None, register):
        turn()
        loss = PPOLoss(policy, ValueOperator(MLP(OBSERVATIONS, 1, num_cells=[8]), ["observation"]))
        torch.testing.assert_close(loss(td.clone())["entropy"], exact.mean().detach())


@pytest.mark.parametrize(("of", "by"), [((5,), (7, 5)), ((3, 5), (2, 3, 5))])
def test_a_mask_for_each_state_is_torchrls(of: tuple[int, ...], by: tuple[int, ...]) -> None:
    mask = torch.rand(by) > 0.5
    mask[..., 0] = True
    logits = torch.randn(of, requires_grad=True)
    results = []
    for cls in (MaskedOneHotCategorical, TheirMaskedOneHotCategorical):
        dist = cls(logits=logits, mask=mask)
        assert dist.sample().shape == by
        (gradient,) = torch.autograd.grad(dist.entropy().sum(), logits)
        results.append((dist.probs, dist.entropy(), gradient))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
