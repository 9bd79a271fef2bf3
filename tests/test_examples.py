"""Every example runs, with a small budget, as a user runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


class Example(NamedTuple):
    """What an example needs, what its output must match, and the pictures that it saves."""

    needs: tuple[str, ...]
    prints: str
    pictures: tuple[str, ...] = ()


TABLE = {
    "torchrl_discrete_sac.py": Example(
        ("torchrl", "gymnasium", "matplotlib"),
        r"return before: +\d+ of 500\n(.*\n)*return after: +\d+ of 500",
        ("torchrl_discrete_sac.png",),
    ),
    "dreamer_latent.py": Example(
        ("sklearn", "matplotlib"),
        r"PassThrough\n(.*\n)*RelaxedOneHot\n(.*\n)*",
        ("dreamer_latent_loss.png", "dreamer_latent_reconstructions.png"),
    ),
    "gradient_estimators.py": Example(
        ("sklearn", "matplotlib"),
        r"p = 2.0, best 0.2025\n(.*\n)*VAE(.*\n)*    ReinMax +\d+",
        ("gradient-estimators-polynomial.png", "gradient-estimators-vae.png", "gradient_estimators.json"),
    ),
    "large_vocabulary.py": Example((), r"nats a token\](.*\n)*.*tokens/s"),
    "token_grpo.py": Example(
        ("matplotlib",), r"rhymes before: 0\.[01]\d, after: (0\.[89]\d|1\.00)", ("token-grpo.png",)
    ),
    "tensor_parallel_decode.py": Example(
        ("triton",), r"4096 on each of 1 ranks\n(\d+ ){4}\n.* -> 0\.\d+; head: one process"
    ),
    "compiled_policy.py": Example(("torchrl",), r"onehot_triton, compiled .* 0\n"),
}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # torch.compile warns of Python 3.13.0, as pyproject.toml knows.
    warnings = "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"
    environment = {**os.environ, "RL_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": warnings}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_table_holds_every_example() -> None:
    assert set(TABLE) == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("name", TABLE)
def test_example(name: str, tmp_path: Path) -> None:
    example = TABLE[name]
    for module in example.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    out = ("--out", str(tmp_path / "pictures")) if example.pictures else ()
    result = run(str(EXAMPLES / name), "--quick", *out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert re.search(example.prints, result.stdout), result.stdout
    # Pictures where they were asked for, and nothing anywhere else.
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == set(example.pictures)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("torchrl_discrete_sac.py", "torchrl", "torchrl"),
        ("torchrl_discrete_sac.py", "gymnasium", "torchrl"),
        ("dreamer_latent.py", "sklearn", "examples"),
        ("gradient_estimators.py", "sklearn", "examples"),
        ("compiled_policy.py", "torchrl", "torchrl"),
    ],
)
def test_a_missing_library_is_one_line_that_names_the_extra(name: str, module: str, extra: str, tmp_path: Path) -> None:
    if module == "gymnasium" and importlib.util.find_spec("torchrl") is None:
        pytest.skip("torchrl is not installed")
    code = (
        f"import runpy, sys; sys.modules[{module!r}] = None; sys.argv = [{name!r}, '--quick'];"
        f"runpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == 1
    # Where nothing of the extra is there, tensordict is what is missed first.
    line = rf"({module}|tensordict)\S* is not installed: pip install 'onehot_triton\[{extra}\]'"
    assert re.fullmatch(line, result.stderr.strip()), result.stderr
