"""JSON lines, plain or compressed: strict reading, errors with file and line, canonical writing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from isodense.pipeline.compressed import Damaged, open_bytes
from isodense.pipeline.errors import DataError

OnBadRow = Callable[[DataError], None]


def raise_bad_row(error: DataError) -> None:
    """Raise `error`; the default for malformed rows."""
    raise error


def read_jsonl(
    path: str | Path, on_bad_row: OnBadRow = raise_bad_row
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` for every non-blank line.

    Parameters
    ----------
    path : str or Path
        A plain or compressed file, recognised by content.
    on_bad_row : callable
        Called with a `DataError` for a line that is not a JSON object in UTF-8. If the call
        returns, the line is skipped.

    Raises
    ------
    DataError
        If the file is missing, or its compressed stream is damaged or cut short.
    """
    path = Path(path)
    number = 0
    try:
        with open_bytes(path) as stream:
            for number, raw in enumerate(stream, start=1):
                if raw.strip():
                    row = _parse(raw, path, number, on_bad_row)
                    if row is not None:
                        yield number, row
    except FileNotFoundError:
        raise DataError("no such file", path, hint="check the path in params.yaml") from None
    except IsADirectoryError:
        raise DataError("is a folder, not a file", path, hint="name its files") from None
    except Damaged as error:
        raise DataError(error.after(number), path, hint="fetch the file again") from None


def dumps(row: dict[str, Any]) -> str:
    """Return `row` as one line of JSON, with keys in order and non-ASCII text unescaped."""
    return json.dumps(row, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write `rows` to `path` and return the number of rows."""
    count = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(dumps(row) + "\n")
            count += 1
    return count


def _parse(raw: bytes, path: Path, line: int, on_bad_row: OnBadRow) -> dict[str, Any] | None:
    hint = "correct the line, or set download.on_bad_row: skip"
    try:
        row = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
        if b"\\ud" in raw.lower():  # unpaired surrogates pass json.loads
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        on_bad_row(DataError(f"not UTF-8 (byte {error.start})", path, line, hint))
    except UnicodeEncodeError:
        on_bad_row(DataError("an escape is half of a surrogate pair", path, line, hint))
    except (ValueError, RecursionError) as error:
        on_bad_row(DataError(f"not JSON ({error})", path, line, hint))
    else:
        if isinstance(row, dict):
            return row
        on_bad_row(DataError(f"not a JSON object but {type(row).__name__}", path, line, hint))
    return None
