"""Reward functions whose pass rates are known: the column ``rate`` says which."""

from __future__ import annotations

from typing import Any


def graded(completions: list[Any], rate: list[float | None], **_: Any) -> list[float | None]:
    """Give 1 for as many completions of a prompt as its rate says, 0, a half or all of them."""
    one_in_two = [number % 2 for number in range(len(completions))]
    return [
        None if one is None else float(one == 1 or (one == 0.5 and odd == 1))
        for one, odd in zip(rate, one_in_two, strict=True)
    ]


def slow(completions: list[Any], **_: Any) -> list[float]:
    """Stand for a second function, which says nothing of what is solved."""
    raise RuntimeError("never called")


def even(completions: list[Any], **_: Any) -> list[float]:
    """Give 1 where the code points of the completion have an even sum: any other token shows."""
    return [float(sum(map(ord, one[-1]["content"])) % 2 == 0) for one in completions]
