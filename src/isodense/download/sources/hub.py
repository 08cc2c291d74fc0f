"""Any data set of the Hugging Face Hub, of any shape that is known or mapped.

Which files a configuration and a split consist of is said by the data set's card (``configs:``), or
by the names of the files, which are matched as ``datasets.load_dataset`` does, by its functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from isodense.download.files import data_files
from isodense.download.snapshot import Snapshot
from isodense.download.sources.local import examples_of
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow
from isodense.pipeline.params import Params

REVISION = "a commit or tag of its `Files and versions`, so that everyone reads the same rows"


class HubParams(Params):
    """Section ``download.hub``.

    Attributes
    ----------
    repo : str or None
        ``owner/name``.
    revision : str or None
        A commit or a tag.
    config : str or None
        A configuration (subset) of the data set; None for the default one.
    split : str
    files : list of str or None
        Patterns of the files to read instead of those of `config` and `split`.
    columns : dict of str to str or None
        See :class:`isodense.download.sources.local.LocalParams`.
    limit : int or None
        The most examples to take.
    """

    repo: str | None
    revision: str | None
    config: str | None
    split: str
    files: list[str] | None
    columns: dict[str, str | None]
    limit: int | None = Field(ge=1)

    def missing(self) -> list[str]:
        """Return what has to be set before the source can be read."""
        if not self.repo:
            return ["sources names 'hub', but hub.repo is null: set it, as to openai/gsm8k"]
        if fault := _repo_fault(self.repo):
            return [f"hub.repo: {fault}"]
        return [] if self.revision else [f"hub.revision is null: set it to {REVISION}"]


def _repo_fault(repo: str) -> str | None:
    """Return why a name cannot be that of a data set, or None."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        return f"{repo!r} is no name of a data set: write owner/name, no address"
    return None


def load(params: HubParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the examples of one split, in order of the files.

    Parameters
    ----------
    params : HubParams
        The data set, at which commit.
    on_bad_row : callable
        Called with a `DataError` for a malformed row.

    Raises
    ------
    DataError
        If the Hub cannot be reached, there is no such split, or its rows are of no known shape.
    """
    return islice(_all(params, on_bad_row), params.limit)


def _all(params: HubParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    snapshot = Snapshot(str(params.repo), str(params.revision))
    for pattern in params.files or split_files(snapshot, params.config, params.split):
        for name, path in snapshot.matching(pattern):
            yield from examples_of(path, name, params.columns, on_bad_row, "download.hub")


def split_files(snapshot: Snapshot, config: str | None, split: str) -> list[str]:
    """Return the paths of a split's files.

    Parameters
    ----------
    snapshot : Snapshot
    config : str or None
        A configuration, or None for the default or only one.
    split : str

    Raises
    ------
    DataError
        If there is no such configuration or split; it names those that there are.
    """
    configs = _configs(snapshot)
    splits = _chosen(snapshot, configs, config)
    files = {name: found for name, found in splits.items() if found}
    if split not in files:
        there = ", ".join(files) or "none that can be read"
        message = f"has no split {split!r} (there is {there})"
        raise DataError(message, snapshot.repo, hint="set download.hub.split, or name its files")
    return files[split]


def _chosen(
    snapshot: Snapshot, configs: Mapping[str, dict[str, list[str]]], config: str | None
) -> dict[str, list[str]]:
    if config is None and len(configs) == 1:
        config = next(iter(configs))
    if config is None:
        marked = [name for name, entry in _declared(snapshot).items() if entry.get("default")]
        config = marked[0] if marked else "default" if "default" in configs else None
    if config in configs:
        return configs[str(config)]
    there = ", ".join(configs)
    message = f"has no configuration {config!r}" if config else "has several configurations"
    hint = f"set download.hub.config to one of {there}"
    raise DataError(message, snapshot.repo, hint=hint)


def _configs(snapshot: Snapshot) -> dict[str, dict[str, list[str]]]:
    """Return the files of each split of each configuration."""
    names = [name for name in snapshot.files if Path(name).suffix.lower() != ".py"]
    if not data_files(map(Path, names)):
        script = next((name for name in snapshot.files if name.endswith(".py")), None)
        reason = f"is made by a script, {script}, which is never run" if script else "has no data"
        hint = "look for a copy as parquet (the branch refs/convert/parquet), and name its revision"
        raise DataError(reason, snapshot.repo, hint=hint)
    declared = _declared(snapshot)
    if not declared:
        return {"default": _by_name(names)}
    return {name: _files_of(entry, names, snapshot) for name, entry in declared.items()}


def _files_of(
    entry: dict[str, Any], names: Sequence[str], snapshot: Snapshot
) -> dict[str, list[str]]:
    """Return the files of each split of one configuration that the card declares."""
    from datasets.data_files import sanitize_patterns

    inside = str(entry.get("data_dir") or "").strip("/")
    try:
        patterns = entry.get("data_files")
        found = {} if patterns is None else sanitize_patterns(patterns)
        listed = [Path(inside), *(Path(str(one)) for part in found.values() for one in part)]
        if any(".." in path.parts or path.is_absolute() for path in listed):
            raise ValueError("it names files outside the repository")
        if patterns is None:
            return _by_name(names, inside)
        start = f"{inside}/" if inside else ""
        with _tree(names) as folder:
            return {
                split: _resolved(folder, [f"{start}{one}" for one in part])
                for split, part in found.items()
            }
    except (ValueError, TypeError) as error:
        raise _unreadable_card(snapshot, error) from None


@contextmanager
def _tree(names: Sequence[str]) -> Iterator[Path]:
    """Give a folder of empty files of these names, since `datasets` matches names on disk."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        yield Path(folder)


def _unreadable_card(snapshot: Snapshot, error: Exception) -> DataError:
    message = f"has a card whose configurations cannot be read ({str(error).splitlines()[0]})"
    return DataError(message, snapshot.repo, hint="name the files in download.hub.files")


def _declared(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """Return what the card declares of each configuration; the default one may be marked."""
    import yaml
    from huggingface_hub import DatasetCard

    try:
        card = DatasetCard(snapshot.card).data.to_dict() if snapshot.card else {}
        entries = [(str(entry["config_name"]), entry) for entry in card.get("configs") or []]
        if len(dict(entries)) < len(entries):
            raise ValueError("it declares a configuration twice")
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise _unreadable_card(snapshot, error) from None
    return dict(entries)


def _by_name(names: Sequence[str], inside: str = "") -> dict[str, list[str]]:
    """Return the files of each split by their names, as ``datasets`` finds them in a folder.

    Notes and licences are left out first: they are no split.
    """
    from datasets.data_files import EmptyDatasetError, get_data_patterns

    start = f"{inside}/" if inside else ""
    within = [Path(name.removeprefix(start)) for name in names if name.startswith(start)]
    with _tree([path.as_posix() for path in data_files(within)]) as folder:
        try:
            patterns = get_data_patterns(str(folder))
        except EmptyDatasetError:
            return {}
        return {
            str(split): [start + name for name in _resolved(folder, listed)]
            for split, listed in patterns.items()
        }


def _resolved(folder: Path, patterns: list[str]) -> list[str]:
    from datasets.data_files import resolve_pattern

    names: dict[str, None] = {}
    for pattern in patterns:
        try:
            found = resolve_pattern(pattern, base_path=str(folder))
        except FileNotFoundError:
            continue
        relative = (Path(path).relative_to(folder).as_posix() for path in found)
        names |= dict.fromkeys(name for name in relative if not fnmatch(name, "*.md"))
    return sorted(names)
