"""`make bench-gpu`: checks the compiled kernels on this GPU, then times them.

    PYTHONPATH=. python3 tools/gpu.py [--dry-run] [--output FILE]

Needs torch, Triton, pytest (whose cases the checks reuse) and CUDA, installs nothing and reads no network. Ends with
exit status 1 if a kernel is wrong, after timing the others, and with 2, having written nothing, where there is no GPU.
`--dry-run` goes through the same code on a CPU with interpreted kernels and tiny shapes.
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
    parser = argparse.ArgumentParser(description="checks the compiled kernels, then times them")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, interpreted, tiny shapes")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="where the result is written after each step; results/<device>/<date>.json without, or, dry, nowhere",
    )  # fmt: skip
    args = parser.parse_args()
    dry = args.dry_run
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"bench-gpu: {sys.executable} has no {', '.join(missing)}; nothing was measured")
        return 2
    # Read when triton is imported, so nothing that imports it is imported before.
    os.environ["TRITON_INTERPRET"] = "1" if dry else "0"
    # Line numbers change no instruction, and take the assembler half of its time.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    import torch

    if not dry and not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA device here; nothing was measured (--dry-run tries the script on a CPU)")
        return 2
    # The cases and providers of benchmarks/, and the tests whose cases the checks reuse.
    sys.path[1:1] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    import gpu_times

    return gpu_times.run(dry, args.output)


if __name__ == "__main__":
    sys.exit(main())
