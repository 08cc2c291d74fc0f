"""A stand-in for the Hugging Face Hub on the loopback interface, with faults on demand.

It serves data set and model repositories from local folders through the parts of the Hub's HTTP
API that ``huggingface_hub``, ``datasets`` and ``transformers`` call: repository info, tree
listings, ``paths-info`` and ``resolve`` with HEAD, GET, ETag, X-Repo-Commit and Range; and takes
commits: creation of data sets and branches, ``preupload``, LFS objects, ``commit``. No file goes
through Xet, so the plain HTTP path is what runs.

>>> hub.add("owner/name", folder, kind="model", revision="a" * 40)
>>> hub.faults["model.safetensors"] = Fault(drop_at=100, times=1)

Tests in the same process take the fixture ``hub``, which points ``huggingface_hub`` at the
stand-in; subprocesses get ``hub.environ(home)``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = (".parquet", ".gz", ".safetensors", ".bin", ".gguf")
API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)/?(.*))?"
)
REFS = re.compile(r"/api/datasets/([^/]+/[^/]+)/refs")
WRITE = re.compile(r"/api/datasets/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)")
BATCH = re.compile(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Fault:
    """What goes wrong with one file.

    Parameters
    ----------
    drop_at : int, optional
        Cut the connection at this byte of the file; bytes beyond it are never sent.
    truncate_to : int, optional
        Serve only so many bytes as if they were the body, although HEAD gives the true size.
    status : int, optional
        Answer 404, 401, 403 (gated) or 503 instead of the file.
    times : int, optional
        How many requests for the body (for all requests, with `status`) go wrong; all by default.
    """

    drop_at: int | None = None
    truncate_to: int | None = None
    status: int | None = None
    times: int | None = None

    def strikes(self) -> bool:
        """Return whether this request goes wrong, counting it."""
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


@dataclass
class Hub:
    """The repositories, the faults and the log of one stand-in.

    Attributes
    ----------
    faults : dict of str to Fault
        By file name within a repository, or by ``owner/name`` for a whole repository.
    requests : list of tuple of str
        ``(method, path)`` of every request, in order of arrival.
    writable : Path, optional
        Folder for the commits it takes; without one it refuses to be written.
    private : dict of str to bool
        Data sets that were created, by ``owner/name``, and whether as private ones.
    commits : int
        How many were made.
    token : str, optional
        Without which no file is served; by default all are public.
    """

    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    writable: Path | None = None
    private: dict[str, bool] = field(default_factory=dict)
    commits: int = 0
    token: str | None = None
    _stored: dict[str, bytes] = field(default_factory=dict)
    _repos: dict[tuple[str, str], dict[str, Path]] = field(default_factory=dict)

    def add(
        self, repo: str, folder: str | Path, kind: str = "dataset", revision: str | None = None
    ) -> str:
        """Serve `folder` as one revision of a repository; the last one added is ``main``.

        Returns
        -------
        str
            The revision, 40 hex digits.
        """
        folder = Path(folder)
        revision = revision or hashlib.sha1(str(folder).encode()).hexdigest()  # noqa: S324
        revisions = self._repos.setdefault((kind + "s", repo), {})
        revisions[revision] = revisions["main"] = folder
        return revision

    def branch(self, repo: str, name: str) -> None:
        """Begin a branch, or name a tag, of a data set at its newest commit."""
        revisions = self._repos["datasets", repo]
        revisions.setdefault(name, revisions["main"])

    def create(self, repo: str, private: bool) -> None:
        """Create an empty data set, unless it is there."""
        if not self.knows("datasets", repo):
            (self.writable / repo).mkdir(parents=True)
            self.add(repo, self.writable / repo)
            self.private[repo] = private

    def store(self, content: bytes) -> None:
        """Keep an object of LFS."""
        self._stored[hashlib.sha256(content).hexdigest()] = content

    def stores(self, oid: str) -> bool:
        """Return whether an object of LFS is kept."""
        return oid in self._stored

    def commit(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> str:
        """Take a commit as the Hub's API words it, and return its hash; empty if it comes late."""
        revisions = self._repos["datasets", repo]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, self.find("datasets", repo, branch)[0]):
            return ""
        self.commits += 1
        commit = f"{sum(map(len, self._repos.values())):040x}"
        folder = self.writable / commit
        shutil.copytree(revisions[branch], folder)
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
            elif line["key"] in ("file", "lfsFile"):
                target = folder / value["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                plain = line["key"] == "file"
                content = b64decode(value["content"]) if plain else self._stored[value["oid"]]
                target.write_bytes(content)
        revisions[commit] = revisions[branch] = folder
        return commit

    def environ(self, home: str | Path) -> dict[str, str]:
        """Return the environment variables that point a subprocess at this stand-in."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }

    def bodies(self, name: str) -> int:
        """Return how often the body of the file `name` was asked for."""
        return sum(method == "GET" and path.endswith(name) for method, path in self.requests)

    def find(self, kind: str, repo: str, revision: str) -> tuple[str, Path] | None:
        """Return the commit and the folder of a revision."""
        revisions = self._repos.get((kind, repo), {})
        folder = revisions.get(revision)
        if folder is None:
            return None
        commit = next(sha for sha, path in revisions.items() if path == folder and len(sha) == 40)
        return commit, folder

    def refs(self, repo: str) -> dict[str, str]:
        """Return branches and tags of a data set (``v1.0`` for instance), and their commits."""
        names = [name for name in self._repos["datasets", repo] if len(name) != 40]
        return {name: self.find("datasets", repo, name)[0] for name in names}

    def knows(self, kind: str, repo: str) -> bool:
        """Return whether a repository exists."""
        return (kind, repo) in self._repos


@contextmanager
def running() -> Iterator[Hub]:
    """Run a stand-in on a free loopback port until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test output clean; `Hub.requests` is the log."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._route()

    def do_PUT(self) -> None:
        self.hub.store(self.rfile.read(int(self.headers["Content-Length"])))
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.command == "PUT" or path == "/api/validate-yaml":
            self._json({})
        elif path == "/api/repos/create":
            self._create()
        elif match := WRITE.fullmatch(path):
            self._write(*match.groups())
        elif BATCH.fullmatch(path):
            self._batch()
        elif match := REFS.fullmatch(path):
            self._refs(match[1])
        elif match := API.fullmatch(path):
            kind, repo, verb, revision, rest = match.groups()
            self._api(kind, repo, verb or "revision", revision or "main", rest or "")
        elif match := RESOLVE.fullmatch(path):
            kind = "datasets" if match[1] else "models"
            self._resolve(kind, match[2], match[3], match[4])
        else:
            self._error(404, "")

    def _locate(self, kind: str, repo: str, revision: str) -> tuple[str, Path] | None:
        fault = self.hub.faults.get(repo)
        if fault and fault.status and fault.strikes():
            return self._fail(fault.status)
        if not self.hub.knows(kind, repo):
            return self._error(401, "RepoNotFound")
        return self.hub.find(kind, repo, revision) or self._error(404, "RevisionNotFound")

    def _api(self, kind: str, repo: str, verb: str, revision: str, rest: str) -> None:
        located = self._locate(kind, repo, revision)
        if located is None:
            return
        commit, folder = located
        if verb == "tree":
            recursive = "recursive=true" in self.path.lower()
            entries = sorted((folder / rest).rglob("*") if recursive else (folder / rest).glob("*"))
            self._json([_entry(folder, path) for path in entries])
        elif verb == "paths-info":
            wanted = [folder / name for name in self._wanted()]
            self._json([_entry(folder, path) for path in wanted if path.exists()])
        else:
            names = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
            siblings = [{"rfilename": name} for name in names]
            private = self.hub.private.get(repo, False)
            facts = {
                "id": repo,
                "sha": commit,
                "private": private,
                "gated": False,
                "disabled": False,
            }
            self._json({**facts, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def _refs(self, repo: str) -> None:
        refs: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
        for name, commit in self.hub.refs(repo).items():
            kind = "tags" if re.match(r"v\d", name) else "branches"
            refs[kind].append({"name": name, "ref": f"refs/{name}", "targetCommit": commit})
        self._json(refs)

    def _create(self) -> None:
        if self.hub.writable is None:
            return self._error(403, "")
        asked = json.loads(self._body)
        repo = f"{asked['organization']}/{asked['name']}"
        self.hub.create(repo, asked.get("visibility") == "private")
        self._json({"url": f"{self.hub.url}/datasets/{repo}", "name": repo})

    def _write(self, repo: str, verb: str, branch: str) -> None:
        if verb == "branch":
            self.hub.branch(repo, branch)
            self._json({})
        elif verb == "preupload":
            folder = self.hub.find("datasets", repo, branch)[1]
            names = [file["path"] for file in json.loads(self._body)["files"]]
            self._json({"files": [_preupload(folder, name) for name in names]})
        else:
            lines = [json.loads(line) for line in self._body.splitlines()]
            commit = self.hub.commit(repo, branch, lines)
            if not commit:
                return self._error(412, "")
            url = f"{self.hub.url}/datasets/{repo}/commit/{commit}"
            self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _batch(self) -> None:
        """Say where to send each object, and nothing of those that are stored."""
        objects = json.loads(self._body)["objects"]
        for one in objects:
            if not self.hub.stores(one["oid"]):
                one["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _wanted(self) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self._body)["paths"]
        fields = (part.partition("=") for part in self._body.decode().split("&"))
        return [unquote(value.replace("+", " ")) for name, _, value in fields if name == "paths"]

    def _resolve(self, kind: str, repo: str, revision: str, name: str) -> None:
        located = self._locate(kind, repo, revision)
        if located is None:
            return
        commit, folder = located
        fault = self.hub.faults.get(name, Fault(times=0))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._error(401, "RepoNotFound")
        elif fault.status and fault.strikes():
            self._fail(fault.status)
        elif not (folder / name).is_file():
            self._error(404, "EntryNotFound", commit)
        else:
            self._file((folder / name).read_bytes(), name, commit, fault)

    def _file(self, content: bytes, name: str, commit: str, fault: Fault) -> None:
        etag = _etag(content, name)
        faulty = self.command == "GET" and fault.status is None and fault.strikes()
        if faulty and fault.truncate_to is not None:
            content = content[: fault.truncate_to]
        start, stop = self._range(len(content))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(stop - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        for header, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", commit)):
            self.send_header(header, value)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        if faulty and fault.drop_at is not None:
            self.wfile.write(content[start : max(start, min(stop, fault.drop_at))])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(content[start:stop])

    def _range(self, size: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert match, self.headers["Range"]
        return min(int(match[1]), size), min(int(match[2]) + 1 if match[2] else size, size)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int) -> None:
        codes = {404: "EntryNotFound", 401: "GatedRepo", 403: "GatedRepo"}
        return self._error(status, codes.get(status, ""))

    def _error(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for header, value in (("X-Error-Code", code), ("X-Repo-Commit", commit)):
            if value:
                self.send_header(header, value)
        self.end_headers()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _etag(content: bytes, name: str) -> str:
    """Return what the Hub uses: SHA-256 for files in LFS, git's blob hash for the others."""
    if name.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


def _preupload(folder: Path, name: str) -> dict[str, object]:
    """Return how the Hub wants a file, and the hash of the one that it has."""
    path, mode = folder / name, "lfs" if name.endswith(LFS) else "regular"
    known = {"oid": _etag(path.read_bytes(), name)} if path.is_file() else {}
    return {"path": name, "uploadMode": mode, "shouldIgnore": False, **known}


def _entry(folder: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
    content = path.read_bytes()
    entry = {"type": "file", "path": name, "size": len(content), "oid": _etag(content, "")}
    if name.endswith(LFS):
        lfs = {"oid": _etag(content, name), "size": len(content), "pointerSize": 130}
        return {**entry, "lfs": lfs}
    return entry
