"""Triton's interpreter in half of its time.

It replaces the functions of `triton.language` by its own when a kernel is launched, and once more for each function
that a kernel calls, which takes longer than the function. Here those calls find what the launch has replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import triton.language as tl
from triton.runtime import interpreter


class _Launch(NamedTuple):
    """What a launch has replaced, to be taken back."""

    scope: Any
    forget: Callable[[], None]

    def restore(self) -> None:
        self.forget()
        self.scope.restore()


# What a function that a kernel calls has to take back.
_NOTHING = SimpleNamespace(restore=lambda: None)


@cache
def _languages(function: Any) -> frozenset[str]:
    """The modules whose functions are replaced for it: those that it sees."""
    seen = function.__globals__.values()
    return frozenset(module.__name__ for module in (tl, tl.core) if any(value is module for value in seen))


def install() -> None:
    """Of a Triton that takes back what it replaced when a kernel is done; another is left as it is."""
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    replace = interpreter._patch_lang
    replaced: frozenset[str] = frozenset()

    def replace_once(function: Any) -> Any:
        nonlocal replaced
        of_launch, wanted = not replaced, _languages(function)
        if wanted <= replaced:
            return _NOTHING
        scope, replaced = replace(function), replaced | wanted
        return _Launch(scope, forget) if of_launch else _NOTHING

    def forget() -> None:
        nonlocal replaced
        replaced = frozenset()

    interpreter._patch_lang = replace_once
