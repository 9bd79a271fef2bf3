"""The row type of the tables."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault to plant, and the tests that should notice it.

    Attributes:
        file: path relative to the repository. Kernels are in `kernels/`.
        old: text to replace. It occurs exactly once in `function`.
        new: its replacement.
        why: the fault, or how somebody might cause it, in a few words.
        tests: arguments for pytest, split as a shell splits them. They pass without the fault; one fails with it.
        equivalent: the reason why no test can notice the fault, or empty.
        function: the function or class that holds `old`, such as "sample", "Relaxed.log_prob" or "outer.inner"; None
            for the whole file.
    """

    file: str
    old: str
    new: str
    why: str
    tests: str
    equivalent: str = ""
    function: str | None = None
