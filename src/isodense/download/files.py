"""Reading files of rows, whatever their format: rows with their number, as a stream.

JSON lines and JSON arrays (plain or compressed), parquet, CSV and TSV, plain text with a prompt a
line, Arrow files and folders that ``datasets`` saved. What a file is decides its content; only
text of rows (CSV, TSV, TXT) is told by its name.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isodense.download.json_documents import read_array, read_object, sole_value
from isodense.pipeline.compressed import Damaged, compression, open_bytes
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow, read_jsonl

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("isodense")

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]

BATCH = 1024  # rows of a parquet or Arrow file in memory
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
TEXT = (".csv", ".tsv", ".txt")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", *TEXT)
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
NOTES = ("license", "licence", "readme", "requirements", "changelog", "notice")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LFS = b"version https://git-lfs.github.com/spec/"
HTML = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
ARCHIVES = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf": "a 7z archive"}
LONG = 2**31 - 1  # of a CSV field, in characters


def expand(names: Sequence[str]) -> list[Path]:
    """Return the files that are meant by names of files and folders and by patterns.

    A folder stands for all data files in it, in order of their names; one that
    ``datasets.save_to_disk`` wrote is one item.

    Parameters
    ----------
    names : sequence of str
        Relative ones start at the working directory; ``~`` is the home.

    Raises
    ------
    DataError
        If there is no such file, a pattern matches none, or a name is a URL.
    """
    found: list[Path] = []
    for name in names:
        try:
            found += _expanded(name)
        except DataError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"cannot be read ({reason})", name, hint="see to it") from None
    return found


def _expanded(name: str) -> list[Path]:
    """Return the files that one name stands for."""
    if not name.strip():
        raise DataError("is an empty name", "download.local.files", hint="name a file")
    if URL.match(name):
        hint = (
            "fetch it first (`dvc import-url URL data/raw/`, which also versions it); "
            "for a data set of the Hugging Face Hub use the source hub"
        )
        raise DataError("is a URL, and files are read from disk", name, hint=hint)
    path = Path(name).expanduser()
    if not path.exists() and glob.has_magic(name):
        root = Path(path.anchor)
        matches = root.glob(str(path.relative_to(root) if path.anchor else path))
        files = sorted(match for match in matches if match.is_file())
        if not files:
            hint = "correct the pattern; ** goes through folders"
            raise DataError("matches no file", name, hint=hint)
        return files
    return _in_folder(path) if path.is_dir() else [path]


def _in_folder(folder: Path) -> list[Path]:
    """Return the data files of a folder, or the folder itself where ``datasets`` wrote it."""
    if (folder / "state.json").is_file():
        return [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"])
        hint = f"name one of them: {folder}/SPLIT, of {splits}"
        raise DataError("holds several splits", folder, hint=hint)
    inside = sorted(_walk(folder))
    shown = [path for path in inside if not _is_hidden(path.relative_to(folder))]
    files = data_files(shown)
    if other := [path.name for path in shown if path not in files]:
        log.info("%s: left out %s", folder, ", ".join(other[:5]) + ", …" * (len(other) > 5))
    if not files:
        raise DataError(f"holds no data file ({', '.join(SUFFIXES)})", folder, hint="name files")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in those below it, linked ones included.

    Raises
    ------
    OSError
        If a folder cannot be read.
    """

    def failed(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names)


def data_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that hold rows, by their names; plain texts only where nothing else does.

    A text beside tables is a licence, a note or a list of requirements.
    """
    known = [path for path in paths if _suffix(path) in SUFFIXES and path.name not in ABOUT]
    tables = [path for path in known if _suffix(path) != ".txt"]
    return tables or [path for path in known if path.stem.lower() not in NOTES]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _suffix(path: Path) -> str:
    """Return a file's suffix in lower case, without that of its compression."""
    path = Path(path.name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def read(path: Path, on_bad_row: OnBadRow) -> Rows:
    """Yield the rows of a file with their numbers: lines where it has lines, else from 1.

    Parameters
    ----------
    path : Path
        A file of any known format, or a folder that ``datasets.save_to_disk`` wrote.
    on_bad_row : callable
        Called with a `DataError` for a malformed row. If the call returns, the row is skipped.

    Raises
    ------
    DataError
        If the file is missing, damaged, cut short, or of no known format.
    """
    if path.is_dir():
        return _saved(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except FileNotFoundError:
        raise DataError("no such file", path, hint="check the path in params.yaml") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot be read ({reason})", path, hint="see to it") from None
    if start.startswith(LFS):
        hint = "`git lfs pull` fetches what it stands for"
        raise DataError("is a pointer of Git LFS, not the file itself", path, hint=hint)
    if HTML.match(start):
        raise DataError("is a web page, not data", path, hint="fetch the file itself")
    kind = next((name for magic, name in ARCHIVES.items() if start.startswith(magic)), None)
    if kind or start[257:262] == b"ustar":
        hint = "unpack it and name the files; a spreadsheet can be saved as CSV"
        raise DataError(f"is {kind or 'a tar archive'}", path, hint=hint)
    if start.startswith(b"PAR1"):
        return _parquet(path)
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return _arrow(path)
    if compression(start) is None and (b"\0" in start or start[:2] in (b"\xff\xfe", b"\xfe\xff")):
        raise DataError("is no UTF-8 text, but UTF-16 or binary", path, hint="save it as UTF-8")
    return _text(path, on_bad_row)


def _text(path: Path, on_bad_row: OnBadRow) -> Rows:
    suffix = _suffix(path)
    if suffix in (".parquet", ".arrow", ".feather"):
        raise DataError(f"is no {suffix[1:]} file", path, hint="fetch it again, or rename it")
    known = {".csv": _csv, ".tsv": _csv, ".txt": _lines}
    if suffix == ".txt" and _begins_like_json(path):
        hint = "rename it to .jsonl or .json"
        raise DataError("is called a text and holds JSON", path, hint=hint)
    return _guarded(path, known.get(suffix) or _json_reader(path), on_bad_row)


def _begins_like_json(path: Path) -> bool:
    with open_bytes(path) as stream:
        first = stream.readline(2**20)
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict | list)
    except (ValueError, RecursionError):
        return False


def _guarded(path: Path, reader: Callable[[Path, OnBadRow], Rows], on_bad_row: OnBadRow) -> Rows:
    """Yield what `reader` reads; a damaged stream is an error that names the last row."""
    number = 0
    try:
        for number, row in reader(path, on_bad_row):
            yield number, row
    except Damaged as error:
        raise DataError(error.after(number), path, hint="fetch the file again") from None
    except UnicodeDecodeError as error:
        message = f"not UTF-8 after line {number} (byte 0x{error.object[error.start]:02x})"
        raise DataError(message, path, hint="save it as UTF-8") from None


def _json_reader(path: Path) -> Callable[[Path, OnBadRow], Rows]:
    """Return how to read a file of JSON: an array, one object that holds an array, or lines."""
    try:
        with open_bytes(path) as stream:
            start = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(b"["):
            return read_array
        if start.startswith(b"{") and sole_value(path):
            return read_object
    except Damaged as error:
        raise DataError(error.after(0), path, hint="fetch the file again") from None
    return read_jsonl


def _csv(path: Path, on_bad_row: OnBadRow) -> Rows:
    """Yield the rows of a CSV or TSV file, of which the first names the columns; all are text."""
    csv.field_size_limit(LONG)
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        first = text.readline()
        marks = "\t" if _suffix(path) == ".tsv" else max(",;\t", key=first.count)
        rows = csv.reader(_chained(first, text), delimiter=marks, strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise DataError(f"not CSV ({error})", path, 1, "correct the header") from None
        if not header or len(set(header)) < len(header) or "" in header:
            message = f"the first line names no columns, or one twice: {header}"
            raise DataError(message, path, 1, "give the file a header")
        end = rows.line_num
        try:
            for fields in rows:
                line, end = end + 1, rows.line_num
                if len(fields) == len(header):
                    yield line, dict(zip(header, fields, strict=True))
                elif fields:
                    message = f"{len(fields)} fields, and the header names {len(header)} columns"
                    hint = "quote fields that hold line breaks or commas, or skip such rows"
                    on_bad_row(DataError(message, path, line, hint))
        except csv.Error as error:
            raise DataError(f"not CSV ({error})", path, end + 1, "correct the quotes") from None


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _lines(path: Path, _: OnBadRow) -> Rows:
    """Yield each line of a text that is not blank, as a prompt."""
    with open_bytes(path) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), start=1):
            if line.strip():
                yield number, {"prompt": line.strip()}


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH)

    return _of_batches(path, batches())


def _arrow(path: Path) -> Rows:
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as source:
            try:
                file = pa.ipc.open_file(source)
            except pa.ArrowInvalid:
                source.seek(0)
                yield from pa.ipc.open_stream(source)
                return
            for number in range(file.num_record_batches):
                yield file.get_batch(number)

    return _of_batches(path, batches())


def _saved(folder: Path) -> Rows:
    import datasets
    import pyarrow as pa

    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        message = f"is no data set that datasets can load ({str(error).splitlines()[0]})"
        raise DataError(message, folder, hint="name its files, or save it again") from None
    tables = data.with_format("arrow").iter(BATCH)
    spec = json.dumps({"info": {"features": data.features.to_dict()}}).encode()
    return _of_batches(
        folder, (table.replace_schema_metadata({b"huggingface": spec}) for table in tables)
    )


def _of_batches(path: Path, batches: Iterator[Any]) -> Rows:
    """Yield the rows of Arrow batches, counted from 1, JSON columns of ``datasets`` decoded."""
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            if len(set(batch.schema.names)) < len(batch.schema.names):
                twice = next(
                    name for name in batch.schema.names if batch.schema.names.count(name) > 1
                )
                raise DataError(f"has two columns {twice!r}", path, hint="rename one of them")
            decoders = _decoders(batch.schema)
            for start in range(0, len(batch), BATCH):
                for row in batch.slice(start, BATCH).to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield (
                        number,
                        row | {name: decode(row[name]) for name, decode in decoders.items()},
                    )
    except KeyError:
        message = f"has a map that has a key twice, after row {number}"
        raise DataError(message, path, hint="mend the row") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        message = f"is damaged or cut short after row {number} ({first})"
        raise DataError(message, path, hint="fetch the file again") from None


def _decoders(schema: pa.Schema) -> dict[str, Callable[[Any], Any]]:
    """Return for each column that holds JSON in strings how to decode it."""
    known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = known.get("info", {}).get("features", {})
    found: dict[str, Callable[[Any], Any]] = {}
    for field in schema:
        spec = features.get(field.name, {})
        if getattr(field.type, "extension_name", None) == "arrow.json":
            spec = {"_type": "Json"}
        if '"_type": "Json"' in json.dumps(spec):
            found[field.name] = _decoder(spec)
    return found


def _decoder(spec: Any) -> Callable[[Any], Any]:
    def decode(value: Any, spec: Any = spec) -> Any:
        if value is None or not isinstance(spec, dict):
            return value
        if spec.get("_type") == "Json":
            return json.loads(value) if isinstance(value, str) else value
        if isinstance(value, list):
            return [decode(part, spec.get("feature")) for part in value]
        if isinstance(value, dict):
            return {name: decode(part, spec.get(name)) for name, part in value.items()}
        return value

    return decode
