"""Weights of another repository: from paths, file:// and HTTP, once, whole, or with a clear error.

The repository, its DVC remote and the servers are real; git speaks to ``git http-backend``.
"""

from __future__ import annotations

import base64
import http.server
import io
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import isodense
from isodense.pipeline.errors import ArtifactError
from isodense.sampling.remote import fetch
from tests.damage import reseal
from tests.sampling.test_weights import IDS, WEIGHTS, write

CHANGED = WEIGHTS[::-1].copy()


class Owner:
    """A git and dvc repository with ``data/density``, its remote storage and a bare clone."""

    def __init__(self, folder: Path, inside: str = "") -> None:
        self.root, self.store, self.bare = folder / "repo", folder / "store", folder / "bare.git"
        self.root.mkdir()
        self.run("git", "init", "-q", "-b", "main")
        self.root = self.root / inside
        self.root.mkdir(parents=True, exist_ok=True)
        self.run("dvc", "init", "-q", *(["--subdir"] if inside else []))
        self.run("dvc", "remote", "add", "-q", "-d", "storage", str(self.store))
        (self.root / "plain").mkdir()
        (self.root / "plain" / "text.txt").write_text("in git\n")

    def run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.root, check=True, capture_output=True)

    def commit(self, weights: np.ndarray, tag: str, push: bool = True) -> None:
        write(self.root / "data/density", weights)
        self.run("dvc", "add", "-q", "data/density")
        if push:
            self.run("dvc", "push", "-q")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", tag)
        self.run("git", "tag", tag)

    def head(self) -> str:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=self.root, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    """Give git and dvc a home of their own, in this process too, where ``dvc.api`` runs."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            patch.delenv(name)
        for who in ("AUTHOR", "COMMITTER"):
            for what in ("NAME", "EMAIL"):
                patch.setenv(f"GIT_{who}_{what}", "t@example.invalid")
        patch.setenv("HOME", str(home))
        patch.setenv("DVC_SITE_CACHE_DIR", str(home / "site"))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def owner(environ, tmp_path_factory):
    """Give a repository with the tags v1 and v2, pushed, and v3, whose data is not pushed."""
    made = Owner(tmp_path_factory.mktemp("owner"))
    made.commit(WEIGHTS, "v1")
    made.first = made.head()
    made.commit(CHANGED, "v2")
    made.run("git", "clone", "-q", "--bare", str(made.root), str(made.bare))
    made.commit(np.roll(WEIGHTS, 1), "v3", push=False)
    made.run("git", "push", "-q", str(made.bare), "v3")
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISODENSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fetched"


class Backend(http.server.BaseHTTPRequestHandler):
    """Git's own server behind a loopback port, with a password where one is set."""

    root: Path
    login: str | None = None

    def do_GET(self) -> None:
        expected = self.login and "Basic " + base64.b64encode(self.login.encode()).decode()
        if expected and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        environ = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(length),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"],
            input=self.rfile.read(length),
            env=environ,
            capture_output=True,
            check=True,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(root: Path, login: str | None = None):
    handler = type("Handler", (Backend,), {"root": root, "login": login})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_tag_of_a_local_repository_has_the_weights_of_that_tag(owner, cache):
    loaded = isodense.load_weights(owner.root, rev="v1")
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)
    assert [one.decode() for one in loaded.prompt_ids] == IDS
    np.testing.assert_array_equal(isodense.load_weights(owner.root, rev="v2").weights, CHANGED)
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)  # still mapped
    assert isinstance(loaded.weights, np.memmap)
    assert Path(loaded.weights.filename).is_relative_to(cache)


@pytest.mark.parametrize("form", ["path", "file", "http"])
def test_a_repository_is_found_by_path_file_and_http(owner, form):
    with serving(owner.bare.parent) as host:
        addresses = {
            "path": str(owner.bare),
            "file": owner.bare.as_uri(),
            "http": f"http://{host}/bare.git",
        }
        loaded = isodense.load_weights(addresses[form], rev="v1")
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)


@pytest.fixture(scope="module", params=[False, True])
def monorepo(request, environ, tmp_path_factory):
    """Give a repository with a project in a folder, and with or without another one around it."""
    made = Owner(tmp_path_factory.mktemp("mono"), "ml team/prompts")
    whole = made.root.parents[1]
    if request.param:
        subprocess.run(["dvc", "init", "-q"], cwd=whole, check=True, capture_output=True)
    made.run("dvc", "remote", "add", "-q", "mirror", str(made.store))
    made.run("dvc", "remote", "modify", "-q", "storage", "url", str(made.store.with_name("no")))
    write(made.root / "data/density", WEIGHTS)
    made.run("dvc", "add", "-q", "data/density")
    made.run("dvc", "push", "-q", "-r", "mirror")
    made.run("git", "add", "-A", str(whole))
    made.run("git", "commit", "-qm", "v1")
    made.run("git", "worktree", "add", "-q", "-b", "other", str(whole.with_name("work tree")))
    return whole


INSIDE = "ml team/prompts/data/density"


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("{0}", {"path": INSIDE}),
        ("{0}/ml team/prompts", {}),
        ("{0}/ml team/prompts", {"remote": "mirror"}),
        ("{0}/ml team", {"path": "prompts/data/density"}),
        ("{0}/../work tree/ml team/prompts", {"remote": "mirror"}),
        ("file://{0}", {"path": INSIDE, "remote": "mirror"}),
    ],
)
def test_a_project_in_a_folder_of_a_repository_is_read(monorepo, source, options):
    loaded = isodense.load_weights(source.format(monorepo), rev="HEAD", **options)
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)


def test_where_a_repository_has_the_artifact_is_said(monorepo):
    with pytest.raises(ArtifactError, match="there is no data/density of") as caught:
        isodense.load_weights(monorepo, rev="HEAD")
    assert caught.value.hint == f"a folder of the repository has it: path='{INSIDE}'"
    with pytest.raises(ArtifactError, match="there is no data/map of") as caught:
        fetch(monorepo, "data/map", rev="HEAD")
    assert caught.value.hint == "name another path or revision"


def test_an_address_without_a_revision_is_its_newest_commit(owner):
    np.testing.assert_array_equal(isodense.load_weights(owner.bare.as_uri()).weights, CHANGED)


def test_a_private_repository_needs_and_takes_credentials(owner, cache, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody there to ask
    with serving(owner.bare.parent, login="me:secret") as host:
        with pytest.raises(ArtifactError, match="asks for credentials") as caught:
            isodense.load_weights(f"http://{host}/bare.git", rev="v1")
        assert "credential helper" in caught.value.hint
        loaded = isodense.load_weights(f"http://me:secret@{host}/bare.git", rev="v1")
        np.testing.assert_array_equal(loaded.weights, WEIGHTS)
        with pytest.raises(ArtifactError, match="has no revision 'v9'") as caught:
            isodense.load_weights(f"http://me:secret@{host}/bare.git", rev="v9")
    assert "secret" not in str(caught.value)


def test_faults_of_the_address_are_named(owner, tmp_path, cache):
    cases = [
        (str(owner.bare), "v9", "data/density", "has no revision 'v9'", "tag"),
        (str(owner.root), "v9", "data/density", "has no revision 'v9'", "tag"),
        (str(tmp_path / "none"), "v1", "data/density", "cannot be cloned", "git ls-remote"),
        ("http://127.0.0.1:9/x.git", "v1", "data/density", "cannot be cloned", "git ls-remote"),
        (str(owner.bare), "v1", "data/none", "there is no data/none", "another path"),
        (str(owner.bare), "v1", "plain", "not a folder that DVC tracks", "dvc.yaml"),
        (str(owner.bare), "v1", "data/density/density.npy", "not a folder", "dvc.yaml"),
    ]
    for repo, rev, path, words, hint in cases:
        with pytest.raises(ArtifactError, match=words) as caught:
            isodense.load_weights(repo, rev=rev, path=path)
        assert hint in caught.value.hint
    with serving(owner.bare.parent) as host, pytest.raises(ArtifactError, match="cannot be cloned"):
        isodense.load_weights(f"http://{host}/none.git", rev="v1")
    assert not cache.exists()


def test_a_local_repository_needs_a_revision_and_a_folder_none(owner, tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match="is a repository") as caught:
        isodense.load_weights(owner.root)
    assert "rev='HEAD'" in caught.value.hint
    folder = write(tmp_path / "artifact")
    (folder / ".git").mkdir()  # an artifact that somebody keeps in git is an artifact
    np.testing.assert_array_equal(isodense.load_weights(folder).weights, WEIGHTS)


def test_what_was_not_pushed_is_said_and_leaves_nothing(owner, cache):
    with pytest.raises(ArtifactError, match="is not in that repository's remote storage") as caught:
        isodense.load_weights(owner.bare, rev="v3")
    assert "dvc push" in caught.value.hint
    assert not list(cache.rglob("*"))
    loaded = isodense.load_weights(owner.root, rev="v3")  # its own cache has it
    np.testing.assert_array_equal(loaded.weights, np.roll(WEIGHTS, 1))


@pytest.fixture
def spoilt(owner, tmp_path):
    """Give a copy of the owner's repository, at v2, whose storage can be spoilt."""
    made = tmp_path / "spoilt"
    shutil.copytree(owner.root, made / "repo")
    shutil.copytree(owner.store, made / "store")
    for command in (
        "git reset -q --hard v2",
        f"dvc remote modify -q storage url {made / 'store'}",
        "git commit -qam moved",
    ):
        subprocess.run(command.split(), cwd=made / "repo", check=True, capture_output=True)
    return made


def test_a_storage_that_lacks_or_damages_a_file_leaves_nothing(spoilt, cache):
    address = (spoilt / "repo").as_uri()
    objects = [path for path in (spoilt / "store").rglob("*") if path.is_file()]
    (victim,) = (path for path in objects if path.read_bytes().endswith(CHANGED.tobytes()))
    victim.chmod(0o644)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"density_weights.npy in .* is damaged") as caught:
        isodense.load_weights(address)
    assert "dvc push" in caught.value.hint
    assert not list(cache.rglob("*"))
    victim.unlink()
    with pytest.raises(ArtifactError, match="is not in that repository's remote storage"):
        isodense.load_weights(address)
    assert not list(cache.rglob("*"))
    victim.write_bytes(whole)
    np.testing.assert_array_equal(isodense.load_weights(address).weights, CHANGED)


def test_another_remote_can_be_named(owner, tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read") as caught:
        isodense.load_weights(owner.bare.as_uri(), rev="v1", remote="mirror")
    assert "mirror" in str(caught.value)
    loaded = isodense.load_weights(owner.bare.as_uri(), rev="v1", remote="storage")
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)


def test_a_commit_that_was_fetched_needs_neither_the_repository_nor_dvc(owner, tmp_path):
    gone = tmp_path / "gone.git"
    shutil.copytree(owner.bare, gone)
    isodense.load_weights(gone.as_uri(), rev=owner.first)
    shutil.rmtree(gone)
    code = (
        "import sys, isodense\n"
        f"w = isodense.load_weights({gone.as_uri()!r}, rev={owner.first!r})\n"
        "assert not any(name.split('.')[0] == 'dvc' for name in sys.modules)\n"
        "sys.stdout.write(str(len(w.weights)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("5", "")
    with pytest.raises(ArtifactError, match="cannot be cloned"):
        isodense.load_weights(gone.as_uri(), rev="v1")  # a tag may have moved: it has to be seen


def test_the_same_data_at_another_commit_is_not_fetched_again(owner, cache):
    first = fetch(owner.bare, "data/density", rev="v1")
    entered = first.stat().st_ino
    assert fetch(owner.root, "data/density", rev=owner.first) == first
    assert first.stat().st_ino == entered
    assert fetch(owner.bare, "data/density", rev="v2") != first


def test_processes_that_fetch_at_once_all_get_it_whole(owner, cache):
    code = (
        "import sys, isodense\n"
        f"w = isodense.load_weights({owner.bare.as_uri()!r}, rev='v1')\n"
        "sys.stdout.write(str(w.weights.sum().round(4)))\n"
    )

    def run(_: int) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return done.stdout + ("" if done.returncode == 0 else done.stderr)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == ["1.0"] * 3
    assert len([path for path in cache.iterdir() if path.name != "commits"]) == 1


def test_a_fetched_artifact_that_is_not_weights_is_refused_with_a_fitting_remedy(owner, cache):
    folder = fetch(owner.bare, "data/density", rev="v1")
    weights = np.load(folder / "density_weights.npy")
    np.save(folder / "density_weights.npy", weights * 2)
    with pytest.raises(ArtifactError, match="is damaged"):
        isodense.load_weights(owner.bare, rev="v1")
    reseal(folder)
    with pytest.raises(ArtifactError, match="sum to 2") as caught:
        isodense.load_weights(owner.bare, rev="v1")
    assert f"delete {folder}" in caught.value.hint
    shutil.rmtree(folder)
    np.testing.assert_array_equal(isodense.load_weights(owner.bare, rev="v1").weights, WEIGHTS)


def test_a_folder_is_loaded_without_dvc_and_pydantic(tmp_path):
    write(tmp_path / "d")
    code = (
        "import sys, isodense\n"
        f"isodense.load_weights({str(tmp_path / 'd')!r})\n"
        "assert not {'dvc', 'pydantic', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
