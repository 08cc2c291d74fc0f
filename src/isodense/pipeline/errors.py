"""Exceptions of isodense; each message says what is wrong, where, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class IsodenseError(Exception):
    """Base of all errors that a user can correct; stages print it without a traceback.

    Parameters
    ----------
    message : str
        What is wrong.
    hint : str, optional
        What to do next.

    Examples
    --------
    >>> import isodense
    >>> try:
    ...     isodense.draw([0.0, 0.0], size=1)
    ... except isodense.IsodenseError as error:
    ...     print(error)
    weights must be finite, not negative and not all zero
      -> run `dvc repro density`
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n  -> {hint}" if hint else message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:  # so that it gets here from another process
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[Exception], args: tuple[Any, ...], fields: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


def fault_lines(what: str | Path, faults: list[str]) -> str:
    """Return how many faults something has, and each on a line of its own."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"{what} has {count}:" + "".join(f"\n  {fault}" for fault in faults)


class ParamsError(IsodenseError):
    """All faults of ``params.yaml``.

    Parameters
    ----------
    path : Path
        The params file.
    faults : list of str
        Faults, a line each.
    """

    def __init__(self, path: Path, faults: list[str]) -> None:
        super().__init__(fault_lines(path, faults), "correct them and run the stage again")
        self.path = path
        self.faults = faults


class DataError(IsodenseError):
    """A malformed input file or row.

    Parameters
    ----------
    message : str
        What is wrong.
    path : str or Path
        The file, or the name of the data set.
    line : int, optional
        Line or row number, counted from 1.
    hint : str, optional
        What to do next.
    """

    def __init__(
        self, message: str, path: str | Path, line: int | None = None, hint: str = ""
    ) -> None:
        where = f"{path}:{line}" if line is not None else str(path)
        super().__init__(f"{where}: {message}", hint)
        self.path = path
        self.line = line


class ArtifactError(IsodenseError):
    """An artifact that is missing, incomplete, damaged, or belongs to other prompts."""


class FormatError(ArtifactError):
    """An artifact of a format version that this code does not read.

    Parameters
    ----------
    message : str
        What is wrong.
    newer : bool
        Whether a newer isodense has written it.
    hint : str
        What to do next.
    """

    def __init__(self, message: str, newer: bool, hint: str) -> None:
        super().__init__(message, hint)
        self.newer = newer


class StorageError(IsodenseError):
    """A disk that is full, or a file or folder that may not be read or written."""


class ModelError(IsodenseError):
    """A model that cannot be fetched, verified or used."""


class TextError(ModelError):
    """A text that cannot be embedded.

    Parameters
    ----------
    message : str
        What is wrong.
    row : int
        Index of the first such text in the input.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(f"{message}, first {row}", "look at it; leave it out or use another model")
        self.row = row


class TrainingError(IsodenseError):
    """A training or reward setting that is invalid or not supported."""
