"""Trains a discrete soft actor-critic on CartPole with TorchRL. One import is all that differs from TorchRL's class.

pip install 'onehot_triton[torchrl]'
python examples/torchrl_discrete_sac.py --out pictures
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

try:
    from tensordict import TensorDict
    from tensordict.nn import InteractionType, TensorDictModule, set_interaction_type
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, ReplayBuffer
    from torchrl.envs import EnvBase, GymEnv, InitTracker, RewardSum, TransformedEnv
    from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
    from torchrl.objectives import DiscreteSACLoss, SoftUpdate
except ImportError as error:
    raise SystemExit(f"{error.name} is not installed: pip install 'onehot_triton[torchrl]'") from None

# from torchrl.modules import OneHotCategorical
from onehot_triton import OneHotCategorical

FRAMES_PER_BATCH = 32


def make_env(seed: int) -> EnvBase:
    try:
        env = TransformedEnv(GymEnv("CartPole-v1"))
    except ImportError:
        raise SystemExit("gymnasium is not installed: pip install 'onehot_triton[torchrl]'") from None
    for transform in (InitTracker(), RewardSum()):
        env.append_transform(transform)
    env.set_seed(seed)
    return env


def make_modules(env: EnvBase) -> tuple[ProbabilisticActor, ValueOperator]:
    observations = env.observation_spec["observation"].shape[-1]
    actions = env.action_spec.shape[-1]
    net = MLP(observations, actions, num_cells=[64, 64], activation_class=nn.ReLU)
    actor = ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["logits"]),
        in_keys=["logits"],
        out_keys=["action"],
        spec=env.action_spec,
        distribution_class=OneHotCategorical,
        default_interaction_type=InteractionType.RANDOM,
    )
    q_net = MLP(observations, actions, num_cells=[64, 64], activation_class=nn.ReLU)
    return actor, ValueOperator(q_net, ["observation"], ["action_value"])


@torch.no_grad()
def mean_return(env: EnvBase, actor: ProbabilisticActor, episodes: int) -> float:
    """Of the policy's modes."""
    with set_interaction_type(InteractionType.DETERMINISTIC):
        return sum(env.rollout(500, actor)["next", "reward"].sum().item() for _ in range(episodes)) / episodes


def train(frames: int, seed: int) -> list[tuple[int, float]]:
    """Returns (frames seen, return) of each episode that ended in training."""
    env, test_env = make_env(seed), make_env(seed + 1)
    actor, q = make_modules(env)
    loss = DiscreteSACLoss(
        actor, q, action_space=env.action_spec, num_actions=2, target_entropy_weight=0.3, alpha_init=0.2
    )
    loss.make_value_estimator(gamma=0.98)
    target = SoftUpdate(loss, eps=0.98)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    buffer = ReplayBuffer(storage=LazyTensorStorage(frames), batch_size=128)
    collector = Collector(
        env,
        actor,
        frames_per_batch=FRAMES_PER_BATCH,
        total_frames=frames,
        auto_register_policy_transforms=False,  # what TorchRL 0.14 warns about where it is not said
    )

    print(f"return before: {mean_return(test_env, actor, 5):.0f} of 500")
    start, seen, curve = time.perf_counter(), 0, []
    for batch in collector:
        seen += batch.numel()
        buffer.extend(batch)
        ended = batch["next", "done"].squeeze(-1)
        curve += [(seen, value) for value in batch.get(("next", "episode_reward"))[ended].flatten().tolist()]
        if seen < 512:
            continue
        for _ in range(FRAMES_PER_BATCH // 4):
            losses: TensorDict = loss(buffer.sample())
            (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            target.step()
        if seen % (64 * FRAMES_PER_BATCH) == 0:
            recent = [value for _, value in curve[-10:]]
            print(f"  {seen:6,} frames: {sum(recent) / len(recent):5.0f} in the last {len(recent)} episodes")
    collector.shutdown()
    print(f"return after:  {mean_return(test_env, actor, 5):.0f} of 500, in {time.perf_counter() - start:.0f} s")
    return curve


def save_curve(curve: list[tuple[int, float]], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot(*zip(*curve, strict=True), ".-", linewidth=0.5)
    axes.set(xlabel="frames", ylabel="return of an episode", title="CartPole, discrete SAC")
    path = folder / "torchrl_discrete_sac.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"saved {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Discrete soft actor-critic on CartPole.")
    parser.add_argument("--frames", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="1,536 frames: that it runs, not that it learns")
    parser.add_argument("--out", type=Path, help="the folder for the learning curve")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    # Nets of this size gain nothing from a second thread.
    torch.set_num_threads(1)
    curve = train(1_536 if args.quick else args.frames, args.seed)
    if args.out:
        save_curve(curve, args.out)


if __name__ == "__main__":
    main()
