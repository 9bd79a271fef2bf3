"""`make bench-gpu`: check the compiled kernels on this GPU, then time them.

    PYTHONPATH=. python3 tools/gpu.py [--dry-run] [--output FILE]

It needs torch, Triton, NumPy, pytest (the checks reuse cases of the tests) and CUDA. It installs nothing and uses no
network. `--dry-run` runs the same code on a CPU, with interpreted kernels and tiny shapes.

The exit status is 1 if a kernel is wrong, after the others have been timed. It is 2, and nothing is written, if there
is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDED = ("torch", "triton", "numpy", "pytest")


def main() -> int:
    parser = argparse.ArgumentParser(description="check the compiled kernels, then time them")
    parser.add_argument("--dry-run", action="store_true", help="run on a CPU, interpreted, with tiny shapes")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="file of the result, written after each step (default: results/<device>/<date>.json; none in a dry run)",
    )  # fmt: skip
    args = parser.parse_args()
    dry = args.dry_run
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"bench-gpu: {sys.executable} has no {', '.join(missing)}; nothing was measured")
        return 2
    # Triton reads both at its import, so nothing above this line may import it.
    os.environ["TRITON_INTERPRET"] = "1" if dry else "0"
    # Line numbers change no instruction, and writing them takes half of the assembler's time.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    import torch

    if not dry and not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA device here; nothing was measured (--dry-run tries the script on a CPU)")
        return 2
    # For the cases and providers in benchmarks/, and for the tests whose cases the checks reuse.
    sys.path[1:1] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    import gpu_times

    return gpu_times.run(dry, args.output)


if __name__ == "__main__":
    sys.exit(main())
