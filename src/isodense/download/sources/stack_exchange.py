"""Stack Exchange preferences: 10.8 million questions with voted answers (CC-BY-SA-4.0).

The ``pm_score`` of an answer is the rounded log2(1 + upvotes), plus 1 if accepted, and -1 for
negative votes (Askell et al. 2021, arXiv 2112.00861). A pair is the best answer of a question and a
worse one: widest margin first, then by answer id, up to ``pairs_per_question``. Answers that tie
with the best are left out. Questions and answers are HTML; their text is kept, with code blocks and
list items on separate lines. A question without text, or with fewer than two scores among the
answers, holds no pair and is counted as unusable.

The shards of a site are fetched one by one as they are needed, so with a ``limit`` only the first
ones. ``Stackoverflow.com`` (with a capital) has 335 shards; other sites are named like
``math.stackexchange.com``, ``superuser.com`` or ``cooking.meta.stackexchange.com``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import islice
from typing import Any

from pydantic import Field

from isodense.download import examples
from isodense.download.files import read
from isodense.download.snapshot import SKIP, Snapshot
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow
from isodense.pipeline.params import Params

REPO = "HuggingFaceH4/stack-exchange-preferences"
PARAGRAPHS = frozenset(
    ("p", "div", "pre", "blockquote", "ul", "ol", "table", "hr", "h1", "h2", "h3", "h4", "h5", "h6")
)


class StackExchangeParams(Params):
    """Section ``download.stack_exchange``: the sites are read in order, up to `limit` pairs."""

    revision: str
    sites: list[str] = Field(min_length=1)
    pairs_per_question: int = Field(ge=1)
    limit: int | None = Field(ge=1)


def load(params: StackExchangeParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the pairs of the sites, in order.

    Parameters
    ----------
    params : StackExchangeParams
        Sites to read, at which commit.
    on_bad_row : callable
        Called with an `UnusableRow` or another `DataError` for a question without a pair.

    Raises
    ------
    DataError
        If the Hub cannot be reached, a file is damaged, or there is no such site.
    """
    return islice(_all(params, on_bad_row), params.limit)


def _all(params: StackExchangeParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    snapshot = Snapshot(REPO, params.revision)
    for site in params.sites:
        for name, path in snapshot.matching(f"data/{site}/*.parquet"):
            for number, row in read(path, on_bad_row):
                found = pairs_of(row)
                if isinstance(found, str):
                    on_bad_row(DataError(found, name, number, SKIP))
                elif not found:
                    message = "the question has no text, or no answers that differ in score"
                    on_bad_row(examples.UnusableRow(message, name, number, SKIP))
                else:
                    yield from found[: params.pairs_per_question]


def pairs_of(row: dict[str, Any]) -> list[dict[str, Any]] | str:
    """Return the pairs of a question, widest margin first, or why the row is malformed."""
    try:
        best, *worse = rank(row["answers"]) or [""]
        question = plain_text(row["question"])
    except (KeyError, TypeError, ValueError) as error:
        return f"not a question with scored answers ({type(error).__name__}: {error})"
    candidates = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": best}],
            "rejected": [{"role": "assistant", "content": text}],
        }
        for text in worse
    ]
    return [pair for pair in candidates if not examples.fault(pair)]


def rank(answers: list[dict[str, Any]]) -> list[str]:
    """Return the text of the best answer, then those of the worse answers, the worst first.

    Answers without text, such as a single picture, and answers that tie with the best are left out;
    at equal scores the older answer comes first.
    """
    scored = [
        (int(answer["pm_score"]), int(answer["answer_id"]), plain_text(answer["text"]))
        for answer in answers
    ]
    scored = sorted(entry for entry in scored if entry[2])
    if not scored:
        return []
    top = scored[-1][0]
    best = next(text for score, _, text in scored if score == top)
    return [best, *(text for score, _, text in scored if score < top)]


def plain_text(html: str) -> str:
    r"""Return the text of a post in HTML.

    Examples
    --------
    >>> plain_text("<p>Is 1 &lt; 2,\nor <em>not</em>?</p><ul><li>yes</li><li>no</li></ul>")
    'Is 1 < 2, or not?\n\n- yes\n- no'
    """
    parser = _Text()
    parser.feed(html)
    parser.close()
    text = re.sub(r"[^\S\n]+\n", "\n", "".join(parser.parts))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _Text(HTMLParser):
    """Collects text; white space is folded outside ``<pre>`` and kept within."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._verbatim += tag == "pre"
        if tag in PARAGRAPHS:
            self._break("\n\n")
        elif tag in ("br", "tr"):
            self._break("\n")
        elif tag == "li":
            self._break("\n")
            self.parts.append("- ")

    def handle_endtag(self, tag: str) -> None:
        self._verbatim -= tag == "pre" and self._verbatim > 0
        if tag in PARAGRAPHS:
            self._break("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._verbatim:
            data = re.sub(r"\s+", " ", data)
            if not self.parts or self.parts[-1].endswith((" ", "\n")):
                data = data.lstrip(" ")
        if data:
            self.parts.append(data)

    def _break(self, lines: str) -> None:
        """End the line, unless it is empty or holds only the dash of a list item."""
        if self.parts and not self.parts[-1].endswith(("\n\n", "- ")):
            self.parts.append(lines)
