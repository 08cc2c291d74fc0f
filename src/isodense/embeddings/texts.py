"""From a text to the tokens that an encoder reads: prefix, case, tokenizer, truncation, windows.

A sentence-transformers folder may ask for a *prompt* before every text (``query: ``), for lower
case, and for a mean that leaves the prompt out. Vectors are those of sentence-transformers only if
all of that is done.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from isodense.embeddings.dense import is_sentence_encoder, modules, settings_in
from isodense.embeddings.windows import Windows, split
from isodense.models.inference.load import UNREADABLE, read_tokenizer
from isodense.pipeline.errors import ModelError

LENGTH_MULTIPLE = 16  # of the longest text

Long = Literal["cut", "windows"]

log = logging.getLogger("isodense")


@dataclass(frozen=True)
class Reading:
    """What is done with a text before it is tokenised, as sentence-transformers does it.

    Attributes
    ----------
    prefix : str
        Put before every text; a *prompt* of sentence-transformers.
    lower : bool
        Whether prefix and text are lower-cased.
    pool_prefix : bool
        Whether a mean over positions takes in those of the prefix.
    """

    prefix: str = ""
    lower: bool = False
    pool_prefix: bool = True

    def __call__(self, text: str) -> str:
        """Return the text as the tokenizer gets it."""
        whole = self.prefix + text
        return whole.lower() if self.lower else whole


class TextReader:
    """A tokenizer with what is done to a text before.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Truncates on the left.
    reading : Reading
        What is done before.
    max_tokens : int
        Most tokens that are read at once.
    long : {"cut", "windows"}
        Whether longer texts lose tokens after the prefix or are read in windows.

    Attributes
    ----------
    unpooled : int
        First positions that a mean leaves out.

    Raises
    ------
    ModelError
        If the prefix leaves no room for a text.
    """

    def __init__(
        self, tokenizer: Any, reading: Reading, max_tokens: int, long: Long = "cut"
    ) -> None:
        self._tokenizer, self._reading, self.max_tokens = tokenizer, reading, max_tokens
        self.long = long
        whole = _prefix_tokens(tokenizer, reading, max_tokens)
        self.unpooled = 0 if reading.pool_prefix else len(whole)
        # Of a long text, the prefix stays; a space at its end may be part of the next word.
        words = replace(reading, prefix=reading.prefix.rstrip())
        self._prefix = _prefix_tokens(tokenizer, words, max_tokens)
        if long == "windows":
            special, self._end = _special_tokens(tokenizer)
            self._start = self._prefix or special

    @property
    def pad(self) -> int:
        """The token that fills a batch."""
        return int(self._tokenizer.pad_token_id or 0)

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each text, and the number of texts that were truncated."""
        ids, whole = self.tokenize_whole(texts)
        return ids, len(whole)

    def tokenize_whole(self, texts: list[str]) -> tuple[list[list[int]], dict[int, list[int]]]:
        """Return the token ids of each text, and by row those of truncated texts as they were."""
        texts = [self._reading(text) for text in texts]
        ids: list[list[int]] = self._tokenizer(texts, verbose=False)["input_ids"] if texts else []
        if self.long == "windows":
            return ids, {}
        long = [row for row in range(len(ids)) if len(ids[row]) > self.max_tokens]
        whole = {row: ids[row] for row in long}
        if self._prefix:
            for row in long:
                first = _shared(ids[row], self._prefix)
                ids[row] = ids[row][:first] + ids[row][first - self.max_tokens :]
        elif long:
            truncated = self._tokenizer(
                [texts[row] for row in long], truncation=True, max_length=self.max_tokens
            )["input_ids"]
            for row, kept in zip(long, truncated, strict=True):
                ids[row] = kept
        return ids, whole

    def windows(self, ids: list[list[int]]) -> Windows:
        """Return what is read at once of texts with these token ids."""
        return Windows.of([self._split(row) for row in ids])

    def _split(self, ids: list[int]) -> list[tuple[list[int], float]]:
        if self.long == "cut":
            return [(ids, 1.0)]
        return split(ids, _shared(ids, self._start), self._end, self.max_tokens)

    def windows_are_texts(self, text: str) -> bool:
        """Return whether the windows of a long text have the tokens that surround any text.

        The first and the last are compared with what the tokenizer leaves of the text where it cuts
        the end or the start off. (After a cut, there is no prefix to compare.)
        """
        text = self._reading(text)
        windows = self.windows([self._tokenizer(text, verbose=False)["input_ids"]]).ids
        ends = [(windows[0], "right")] + [(windows[-1], "left")] * (not self._prefix)
        try:
            for window, self._tokenizer.truncation_side in ends:
                kept = self._tokenizer(text, truncation=True, max_length=len(window))["input_ids"]
                if kept != window:
                    return False
        finally:
            self._tokenizer.truncation_side = "left"
        return len(windows) > 1


def load_reader(
    folder: Path, limit: int, max_tokens: int, prefix: str | None, long: Long = "cut"
) -> TextReader:
    """Load the tokenizer of a folder.

    Parameters
    ----------
    folder : Path
        A model folder.
    limit : int
        Most tokens that the model reads.
    max_tokens : int
        Most tokens that are read at once.
    prefix : str, optional
        Replaces the folder's default prompt.
    long : {"cut", "windows"}
        What is done with longer texts.

    Raises
    ------
    ModelError
        If there is no tokenizer, or `max_tokens` exceeds what it or the model reads.
    """
    try:
        tokenizer = read_tokenizer(folder)
    except UNREADABLE as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None
    _warn_of_lost_tokens(folder, tokenizer)
    tokenizer.truncation_side = "left"
    limit = min(limit, tokenizer.model_max_length)
    limit -= limit % LENGTH_MULTIPLE
    if max_tokens > limit:
        message = f"embeddings.max_tokens = {max_tokens} exceeds what {folder} reads, {limit}"
        raise ModelError(message, f"set it to at most {limit}")
    return TextReader(tokenizer, folder_reading(folder, prefix), max_tokens, long)


def folder_reading(folder: Path, prefix: str | None) -> Reading:
    """Return what a folder does with texts; nothing if it is none of sentence-transformers.

    Parameters
    ----------
    folder : Path
        A model folder.
    prefix : str, optional
        Replaces the folder's default prompt.

    Raises
    ------
    ModelError
        If the default prompt is not among the folder's prompts.
    """
    if not is_sentence_encoder(folder):
        return Reading(prefix or "")
    found = dict(modules(folder))
    transformer, pooling = (found.get(kind, folder) for kind in ("Transformer", "Pooling"))
    settings = [settings_in(path) for path in sorted(transformer.glob("sentence_*_config.json"))]
    return Reading(
        _default_prompt(folder) if prefix is None else prefix,
        any(entry.get("do_lower_case") is True for entry in settings),
        settings_in(pooling / "config.json").get("include_prompt", True) is not False,
    )


def _default_prompt(folder: Path) -> str:
    settings = settings_in(folder / "config_sentence_transformers.json")
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(prompts) or "none"
        message = f"{folder} names the default prompt {name!r}, and has the prompts: {known}"
        raise ModelError(message, 'set embeddings.prefix to the text wanted, or to "" for none')
    return str(prompts[name] or "")


def _warn_of_lost_tokens(folder: Path, tokenizer: Any) -> None:
    """Warn of a token at either end that the folder asks for and the tokenizer does not add."""
    asked = settings_in(folder / "tokenizer_config.json")
    ids = tokenizer("a")["input_ids"]
    for name, place in (("bos", 0), ("eos", -1)):
        token = getattr(tokenizer, f"{name}_token_id")
        if asked.get(f"add_{name}_token") is True and token is not None and ids[place] != token:
            log.warning(
                "%s: its tokenizer does not add the token %s that add_%s_token asks for; vectors "
                "are made without it, and may not be those that its authors publish",
                folder,
                getattr(tokenizer, f"{name}_token"),
                name,
            )


def _shared(ids: list[int], prefix: list[int]) -> int:
    """Return how many first tokens are the prefix's: a text may change those at their border."""
    differ = (
        place for place, pair in enumerate(zip(ids, prefix, strict=False)) if len({*pair}) > 1
    )
    return next(differ, len(prefix))


def _special_tokens(tokenizer: Any) -> tuple[list[int], int]:
    """Return the tokens that are put before every text, and how many are put after it."""
    alone: list[int] = tokenizer("", verbose=False)["input_ids"]
    first = _shared(tokenizer("a", verbose=False)["input_ids"], alone)
    return alone[:first], len(alone) - first


def _prefix_tokens(tokenizer: Any, reading: Reading, max_tokens: int) -> list[int]:
    """Return the tokens of the prefix by itself, any first special token included."""
    if not reading.prefix:
        return []
    ids: list[int] = tokenizer(reading(""), verbose=False)["input_ids"]
    ids = ids[: len(ids) - (ids[-1] in tokenizer.all_special_ids)]
    if len(ids) + LENGTH_MULTIPLE > max_tokens:
        message = f"the prefix {reading.prefix!r:.80} alone has {len(ids)} tokens"
        hint = f"raise embeddings.max_tokens, now {max_tokens}, or shorten embeddings.prefix"
        raise ModelError(message, hint)
    return ids
