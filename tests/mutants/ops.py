"""Faults in the eager path, the autograd, the operators and the seeds."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "onehot_triton/reference.py",
        "return tensor.max(-1)[1]",
        "return tensor.min(-1)[1]",
        "the other end of a row",
        "tests/test_hard_cases.py -k test_argmax_is_the_first_maximum",
    ),
]
