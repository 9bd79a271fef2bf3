"""Time the CPU cases of questions.py. A test is one turn of one provider at one case; conftest.py measures it."""

from collections.abc import Callable


def test_turn(turn: Callable[[], None]) -> None:
    turn()
