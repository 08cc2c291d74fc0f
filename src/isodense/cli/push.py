"""Weights as a data set on the Hugging Face Hub: a table for everybody, the artifact for isodense.

The data set has ``weights.parquet``, a row for each training prompt; ``data/density``, the artifact
as the project has it, which :func:`isodense.load_weights` checks by its hashes; and a card. A push
is one commit, so that readers never see one without the others.
The table is cut into chunks by content, so that rows that stay as they are, those of texts for
instance, are not uploaded again where the Hub stores chunks (Xet).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.cli.card import COLUMNS, card
from isodense.cli.pinned import pinned
from isodense.cli.trainer_tables import arrow_array, arrow_schema
from isodense.map.reader import load_coordinates
from isodense.pipeline.artifact import MANIFEST, publishing, require_same_ids
from isodense.pipeline.errors import IsodenseError
from isodense.prompts.reader import PromptSet, load_prompts
from isodense.sampling.hub import COMMIT, FOLDER, SCHEME, parse
from isodense.sampling.weights import Weights, load_weights

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("isodense")

TABLE = "weights.parquet"
PAGES = {"min_chunk_size": 1 << 16, "max_chunk_size": 1 << 18}  # bytes; Xet's own are 64 KiB
TEXTS = ("prompt", "text")  # columns that say what was asked


def push(
    address: str,
    data: Path,
    *,
    with_prompts: bool = False,
    private: bool = False,
    message: str | None = None,
    dry_run: Path | None = None,
) -> dict[str, Any]:
    """Publish the weights of a data folder.

    Parameters
    ----------
    address : str
        ``hf://owner/name``, or ``hf://owner/name@branch``. The data set is created if need be.
    data : Path
        A folder with the artifacts ``prompts``, ``density`` and, if it is there, ``map``.
    with_prompts : bool
        Publish the prompts, too: conversation, text and the data's own columns.
    private : bool
        Create the data set as a private one; refuse one that is public.
    message : str, optional
        Of the commit.
    dry_run : Path, optional
        Write the files into this new folder instead of the Hub.

    Returns
    -------
    dict
        ``rows``, ``bytes``, ``columns``; of what was published ``url`` and ``commit``, and whether
        that is ``new``: where all is there already, no commit is made.

    Raises
    ------
    IsodenseError
        If the artifacts are damaged or of different prompts, are not those that the project's
        ``dvc.lock`` pins, or the Hub takes nothing.
    """
    repo, branch = parse(address)
    if branch is not None and COMMIT.fullmatch(branch):
        raise IsodenseError(f"{branch} is a commit, which stays as it is", "name a branch, or none")
    if dry_run is not None:
        if dry_run.exists():
            raise IsodenseError(f"{dry_run} exists already", "name a new one, or remove this one")
        with publishing(dry_run) as folder:
            return _write(folder, repo, data, with_prompts)
    with TemporaryDirectory() as name:
        facts = _write(Path(name), repo, data, with_prompts)
        with _explained(repo):
            return facts | _upload(Path(name), repo, branch, private, message)


def _write(folder: Path, repo: str, data: Path, with_prompts: bool) -> dict[str, Any]:
    """Write the files of the data set and return what there is of them."""
    prompts, weights = load_prompts(data / "prompts"), load_weights(data / "density")
    train = prompts.split("train")
    require_same_ids(train.ids_sha256, weights.metadata, f"the weights in {data / 'density'}")
    table = weight_table(prompts, weights, _coordinates(prompts, data / "map"))
    if with_prompts:
        table = _with_prompts(table, train)
    write_table(table, folder / TABLE)
    names = [MANIFEST, *weights.metadata["files"]]
    (folder / FOLDER).mkdir(parents=True)
    for name in names:
        shutil.copyfile(data / "density" / name, folder / FOLDER / name)
    text = card(repo, table.column_names, weights, data, pinned(data))
    (folder / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in _files(folder))
    return {"rows": table.num_rows, "bytes": size, "columns": table.column_names}


def weight_table(
    prompts: PromptSet, weights: Weights, coordinates: np.ndarray | None = None
) -> pa.Table:
    """Return a row for each training prompt.

    Parameters
    ----------
    prompts : PromptSet
        All prompts.
    weights : Weights
        Of the training prompts among them.
    coordinates : ndarray of shape (len(prompts), 2), optional
        Of all of them on the map.

    Returns
    -------
    pyarrow.Table
        ``prompt_id``; ``row``, its place in ``data/prompts``; ``weight``, ``density``, ``cluster``,
        with ``density.paraphrases`` also ``paraphrases``; ``x`` and ``y``.
    """
    import pyarrow as pa

    rows = np.array(prompts.positions("train"))
    columns: dict[str, Any] = {
        "prompt_id": pa.array(prompts.split("train").ids, pa.string()),
        "row": rows,
        "weight": weights.weights,
        "density": weights.density,
        "cluster": weights.clusters,
    }
    if weights.niches is not None:
        columns["paraphrases"] = weights.niches
    if coordinates is not None:
        columns |= {"x": coordinates[rows, 0], "y": coordinates[rows, 1]}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet, its pages cut by content: rows that stay give the same bytes."""
    import pyarrow.parquet as pq

    options = {"compression": "zstd", "use_dictionary": False}  # which is no chunk of rows
    pq.write_table(table, path, use_content_defined_chunking=PAGES, **options)


def _coordinates(prompts: PromptSet, folder: Path) -> np.ndarray | None:
    if not folder.exists():
        return None
    coordinates, manifest = load_coordinates(folder)
    require_same_ids(prompts.ids_sha256, manifest, f"the coordinates in {folder}")
    return coordinates


def _with_prompts(table: pa.Table, train: PromptSet) -> pa.Table:
    """Return the table with conversations, texts and the data's own columns.

    Those with a name of ours get an underscore behind it, as in ``isodense weigh``.
    """
    names = [*TEXTS, *(name for name in train.columns if name not in TEXTS)]
    rows = [{name: row.get(name) for name in names} for row in train.rows]
    for field in arrow_schema([rows], set()):
        values, name = arrow_array([row[field.name] for row in rows], field.type), field.name
        while name in table.column_names or (name in COLUMNS and name not in TEXTS):
            name += "_"
        table = table.append_column(field.with_name(name), values)
    return table


def _upload(
    folder: Path, repo: str, branch: str | None, private: bool, message: str | None
) -> dict[str, Any]:
    """Send what is new as one commit, upon the one that was looked at."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
    if private and not api.dataset_info(repo).private:
        message = f"{SCHEME}{repo} exists and is public: nothing was sent"
        raise IsodenseError(message, "make it private on its page, or leave out --private")
    if branch is not None:
        api.create_branch(repo, branch=branch, repo_type="dataset", exist_ok=True)
    now = api.dataset_info(repo, revision=branch)
    there = {file.rfilename for file in now.siblings or []}
    _require_ours(repo, there)
    ours = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    gone = sorted(name for name in there - set(ours) if name.startswith(f"{FOLDER}/"))
    made = api.create_commit(
        repo,
        [
            *(CommitOperationDelete(name) for name in gone),
            *(CommitOperationAdd(name, path) for name, path in ours.items()),
        ],
        commit_message=message or "Weights by isodense",
        repo_type="dataset",
        revision=branch,
        parent_commit=now.sha,
    )
    return {"url": str(made.commit_url), "commit": made.oid, "new": made.oid != now.sha}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _require_ours(repo: str, there: set[str]) -> None:
    """Raise if a data set holds other files than weights: their card would be written over."""
    other = sorted(there - {".gitattributes", "README.md"})
    if other and not {TABLE, f"{FOLDER}/{MANIFEST}"} <= there:
        message = f"{SCHEME}{repo} holds other data ({other[0]}): nothing was sent"
        raise IsodenseError(message, "name a new data set for the weights")


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn errors of the Hub into one that says what to do."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    what = f"{SCHEME}{repo} cannot be written"
    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403, 404):
            hint = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write there"
            raise IsodenseError(f"{what}: the Hub refuses it ({status})", hint) from None
        if status in (409, 412):
            message = f"{what}: another commit has come in between"
            raise IsodenseError(message, "see what it is, then run it again") from None
        raise IsodenseError(f"{what}: {_first(error)}", "run it again later") from None
    except (OSError, httpx.HTTPError, RuntimeError, ValueError) as error:
        hint = "check the connection and HF_ENDPOINT, then again: finished files are not sent twice"
        raise IsodenseError(f"{what}: {_first(error)}", hint) from None


def _first(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
