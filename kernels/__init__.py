"""The Triton kernels. Each file reads: formula, kernel, launcher.

`noise.py` and `rows.py` hold the device functions they share, `launch.py` the table of launch configurations.
"""
