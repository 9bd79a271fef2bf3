"""What a row of the tables is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault to be planted in the library, and the tests that should see it.

    Attributes:
        file: relative to the repository; a kernel is in `kernels/`.
        old: text that occurs exactly once in the file.
        new: what replaces it.
        why: what the fault is, or the way it comes about, in a few words.
        tests: arguments of pytest, split as a shell splits them. They pass without the fault; one fails with it.
        equivalent: why no test can see the fault; empty where one should.
    """

    file: str
    old: str
    new: str
    why: str
    tests: str
    equivalent: str = ""
