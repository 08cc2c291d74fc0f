"""A reward for answers that are right or wrong: ``isodense.reward.answers:exact_match``."""

from __future__ import annotations

from typing import Any


def exact_match(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Return 1 for each completion that is the column ``answer``, white space around it aside.

    Parameters
    ----------
    completions : list
        Texts, or lists of messages whose last one counts.
    answer : list of str
        The right answer of each.

    Examples
    --------
    >>> exact_match(["7", "It is 7"], answer=["7", "7"])
    [1.0, 0.0]
    """
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(text.strip() == right.strip()) for text, right in zip(texts, answer, strict=True)]
