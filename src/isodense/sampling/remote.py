"""Artifacts of another repository, at a revision: fetched once through DVC, then read from disk.

>>> from isodense.sampling.remote import fetch
>>> fetch("https://git.example/team/prompts", "data/prompts", rev="v1.0")   # doctest: +SKIP

A fetched folder is kept under the hash that the other repository's DVC has for it, whatever the
revision or address it came by: the same data is fetched once, and stays where it is, so that
memory-mapped arrays go on working. A full commit hash also skips the look at the repository. The
cache is ``$ISODENSE_CACHE/fetched``, or ``isodense/fetched`` in ``$XDG_CACHE_HOME`` (by default
``~/.cache``); delete it whenever you like.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from isodense.pipeline.artifact import replacing
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.extras import explained
from isodense.pipeline.storage import beside, storing, sync

ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://|[\w.-]+@[\w.-]+:")  # https://…, git@host:…
BUFFER = 1 << 20  # bytes read at once
COMMIT = re.compile(r"[0-9a-f]{40}")
FOLDER = re.compile(r"[0-9a-f]{32}\.dir")  # DVC's hash of one


def fetch(repo: str | Path, path: str, rev: str | None = None, remote: str | None = None) -> Path:
    """Fetch an artifact of another repository and return the folder that it is in.

    Parameters
    ----------
    repo : str or Path
        Address of a git repository with DVC, or a local one's folder, which may be that of a
        project within a larger repository.
    path : str
        Where the artifact is in it, ``data/density`` for instance; a folder that DVC tracks.
    rev : str, optional
        A tag, branch, commit or DVC experiment. By default the newest commit of an address; a
        local repository needs one.
    remote : str, optional
        Name of the DVC remote to read, as that repository calls it; by default its default.

    Returns
    -------
    Path
        A folder in the cache, complete and with the content that DVC recorded. Not to be changed.

    Raises
    ------
    ArtifactError
        If there is no such repository, revision or path, its data cannot be read or is damaged.
    """
    repo = os.fspath(repo)
    if not ADDRESS.match(repo):
        repo = str(Path(repo).expanduser())
        if rev is None:
            message = f"{repo} is a repository, and its working tree may hold anything"
            raise ArtifactError(message, f"name a revision, such as rev='HEAD', or {repo}/{path}")
    with explained():
        return (_known(rev, path) if rev else None) or _fetch(repo, path, rev, remote)


def _known(rev: str, path: str) -> Path | None:
    """Return what was fetched for a full commit hash before, which cannot have changed since."""
    note = _note(rev, path)
    if not COMMIT.fullmatch(rev) or not note.is_file():
        return None
    folder = _cache() / note.read_text(encoding="utf-8")
    return folder if folder.is_dir() else None


def _fetch(repo: str, path: str, rev: str | None, remote: str | None) -> Path:
    from dvc.repo.open_repo import clean_repos

    atexit.register(clean_repos)  # dvc.api leaves its clones in the temporary folder
    what = f"{path} of {without_password(repo)} at {rev or 'its newest commit'}"
    with _explained(without_password(repo), rev, what):
        files, inside = open_files(repo, rev, remote)
        path = (PurePosixPath(inside) / path).as_posix()
        digest = _digest(files, path, what)
        note = _note(files.repo.get_rev(), path)
        folder = _cache() / digest
        if not folder.is_dir():
            with _appearing(folder) as made:
                _copy(files, path, made, what)
    with replacing(note) as staging:
        staging.write_text(digest, encoding="utf-8")
    return folder


def open_files(repo: str, rev: str | None, remote: str | None = None) -> tuple[Any, str]:
    """Return the files of a git repository at a revision, and in which folder of it `repo` is.

    Projects in folders of the repository are opened, too.
    """
    from dvc.api import DVCFileSystem
    from dvc.repo import Repo

    inside = ""
    if not ADDRESS.match(repo):
        folder = Path(repo).resolve()
        root = next((one for one in (folder, *folder.parents) if (one / ".git").exists()), folder)
        repo, inside = str(root), folder.relative_to(root).as_posix()
    files = DVCFileSystem(repo, rev=rev, remote=remote, subrepos=True)
    # DVC opens the projects in folders without the name of the remote, or cannot open them.
    files.repo_factory = partial(files.repo_factory or Repo, remote=remote)
    return files, inside


def _digest(files: Any, path: str, what: str) -> str:
    """Return the hash under which the other repository's DVC knows a folder."""
    try:
        info = files.info(path)
    except FileNotFoundError:
        hint = "name another path or revision"
        if places := _elsewhere(files, path):
            hint = f"a folder of the repository has it: path={' or path='.join(map(repr, places))}"
        raise ArtifactError(f"there is no {what}", hint) from None
    digest = str(info.get("md5", ""))
    if not FOLDER.fullmatch(digest):
        message = f"{what} is not a folder that DVC tracks"
        raise ArtifactError(message, "name an output of its dvc.yaml, such as data/density")
    return digest.removesuffix(".dir")


def _elsewhere(files: Any, path: str) -> list[str]:
    """Return where the projects in folders of a repository have `path`."""
    tracked = files.repo.fs.find(files.repo.root_dir)
    configs = [name for name in tracked if name.endswith("/.dvc/config")]
    folders = [files.repo.fs.relpath(name, files.repo.root_dir) for name in configs]
    places = [f"{name.removesuffix('/.dvc/config')}/{path}" for name in sorted(folders)]
    return [place for place in places if files.exists(place)]


def _copy(files: Any, path: str, folder: Path, what: str) -> None:
    """Copy the files under `path` and compare each with the hash that DVC has for it.

    They are read as streams: links into a cache that belongs to others would change with it.
    """
    for name in files.find(path):
        inside = Path(files.relpath(name, path))
        if ".." in inside.parts:
            raise ArtifactError(f"{what} holds a file outside its folder: {name!r}")
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.md5(usedforsecurity=False)
        with files.open(name) as source, target.open("wb") as copy:
            while block := source.read(BUFFER):
                found.update(block)
                copy.write(block)
        if found.hexdigest() != files.info(name)["md5"]:
            message = f"{inside} in {what} is damaged in the remote storage"
            raise ArtifactError(message, "ask its owners to delete it there and `dvc push` again")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a staging folder that becomes `folder` at once, or vanishes if the block fails.

    Of several processes that fetch the same, the first to finish names the folder.
    """
    with storing(folder), beside(folder) as holder:
        staging = holder / "new"
        staging.mkdir()
        yield staging
        sync(staging)
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _note(commit: str, path: str) -> Path:
    """Return the file that says which data a commit has at `path`."""
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    return _cache() / "commits" / f"{commit}-{name}"


@contextmanager
def _explained(repo: str, rev: str | None, what: str) -> Iterator[None]:
    """Turn the errors of git, DVC and storage into one that says what to do."""
    from dulwich.client import HTTPUnauthorized
    from dulwich.errors import GitProtocolError, NotGitRepository
    from dvc.exceptions import DvcException
    from dvc.scm import CloneError, RevError
    from dvc_data.index import DataIndexDirError
    from dvc_objects.fs.errors import AuthError, RemoteMissingDepsError

    try:
        yield
    except RevError:
        hint = "name a tag, branch or commit that has been pushed there"
        raise ArtifactError(f"{repo} has no revision {rev!r}", hint) from None
    except (CloneError, HTTPUnauthorized, GitProtocolError, NotGitRepository) as error:
        raise _no_clone(repo, error) from None
    except RemoteMissingDepsError as error:
        message = without_password(f"{what} cannot be read: {error}")
        raise ArtifactError(message, "install what it names") from None
    except (DvcException, DataIndexDirError, AuthError, OSError, *_driver_errors()) as error:
        raise _unreadable(what, error) from None


def _no_clone(repo: str, error: BaseException) -> ArtifactError:
    cause = _root(error)
    if "Unauthorized" in type(cause).__name__ or "Permission" in type(cause).__name__:
        hint = "log in, as for `git clone`: a credential helper, a token or an SSH key"
        return ArtifactError(f"{repo} asks for credentials that git does not have", hint)
    reason = f": {without_password(str(cause))}" if str(cause) else ""
    hint = "check the address with `git ls-remote`; private repositories may hide so, too"
    return ArtifactError(f"{repo} cannot be cloned{reason}", hint)


def _unreadable(what: str, error: BaseException) -> ArtifactError:
    cause = _root(error)
    if isinstance(cause, FileNotFoundError):
        hint = "its owners have to `dvc push` to a remote that you can read; remote= names one"
        return ArtifactError(f"{what} is not in that repository's remote storage", hint)
    message = f"{what} cannot be read: {type(cause).__name__}: {cause}"
    message = without_password(message)
    return ArtifactError(message, "check your credentials for its storage, or name another remote=")


def _root(error: BaseException) -> BaseException:
    """Return what an error came from, but not what lies below a library's own explanation."""
    while type(error).__module__.startswith(("dvc", "scmrepo")) and error.__cause__:
        error = error.__cause__
    return error


def _driver_errors() -> tuple[type[Exception], ...]:
    """Return the errors of those storage libraries that have been imported: others raise none."""
    known = {"aiohttp": "ClientError", "asyncssh": "Error", "botocore.exceptions": "BotoCoreError"}
    return tuple(getattr(sys.modules[name], error) for name, error in known.items()
                 if name in sys.modules)  # fmt: skip


def without_password(text: str) -> str:
    """Return a text without the user names and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _cache() -> Path:
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isodense"
    return Path(os.environ.get("ISODENSE_CACHE", user)) / "fetched"
