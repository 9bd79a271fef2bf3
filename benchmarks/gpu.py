"""`make bench-gpu`: checks the compiled kernels on this GPU, then times them.

    PYTHONPATH=. python3 benchmarks/gpu.py [--dry-run]

Needs torch, Triton, pytest (whose cases the checks reuse) and CUDA, installs nothing and reads no network. Stops with
exit status 1 if a kernel is wrong, and with 2, having written nothing, where there is no GPU. `--dry-run` goes through
the same code on a CPU with interpreted kernels and tiny shapes, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

NEEDED = ("torch", "triton", "numpy", "pytest")


def main() -> int:
    parser = argparse.ArgumentParser(description="checks the compiled kernels, then times them")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, interpreted, tiny shapes, nothing written")
    dry = parser.parse_args().dry_run
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"bench-gpu: {sys.executable} has no {', '.join(missing)}; nothing was measured")
        return 2
    # Read when triton is imported, so nothing that imports it is imported before.
    os.environ["TRITON_INTERPRET"] = "1" if dry else "0"
    import torch

    if not dry and not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA device here; nothing was measured (--dry-run tries the script on a CPU)")
        return 2
    import gpu_times

    return gpu_times.run(dry)


if __name__ == "__main__":
    sys.exit(main())
