"""The remotes that a team may share: a folder, SSH, S3 and HTTP, real and on loopback only.

Every remote keeps its objects as ``dvc push`` named them, ``6d/c540…``. Tests read and damage them
on the server's side and see what clients were sent:

>>> with servers.s3(folder) as remote:
...     remote.configure(project)
...     project.run("dvc", "push")
...     sorted(remote.objects())
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from tests.project import Project

BUCKET = "team"
KEYS = {"access_key_id": "AKIATEAMKEY", "secret_access_key": "not-a-secret"}
OBJECT = re.compile(r"files/md5/([0-9a-f]{2}/[0-9a-f]{30}(?:\.dir)?)")
SECONDS = 60  # the longest that a test waits for a server or a client


def object_name(path: str) -> str | None:
    """Return ``6d/c540…`` of a path or URL that has one."""
    found = OBJECT.search(path)
    return found and found[1]


def is_list(name: str) -> bool:
    """Return whether the object is DVC's list of a folder."""
    return name.endswith(".dir")


class Gate:
    """Lets so many transfers through and holds the others, until they are refused.

    A client that is killed once the gate is reached has moved some objects and not all.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._refused = threading.Event()
        self._changed = threading.Condition()
        self._left: int | None = None
        self._running = 0

    def close_after(self, count: int) -> None:
        self._left = count
        self.reached.clear()
        self._refused.clear()

    def open(self) -> None:
        self._left = None
        self._refused.set()

    def enter(self) -> bool:
        """Return whether a transfer may go on; waits where the gate is closed."""
        with self._changed:
            if self._left is None or self._left > 0:
                self._left = self._left and self._left - 1
                self._running += 1
                return True
            self._changed.wait_for(lambda: self._running == 0, SECONDS)
        self.reached.set()
        self._refused.wait(SECONDS)
        return False

    def leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


class Remote:
    """A remote of DVC over a folder, with the settings that a clone needs to use it.

    Attributes
    ----------
    settings, secrets, pushing : dict of str to str
        What ``dvc remote modify --local storage`` takes; `secrets` are settings that may be given
        by `environ` instead, and `pushing` are the settings of those who push.
    environ : dict of str to str
        The secrets as environment variables.
    served : list of tuple of (str, int)
        Name and bytes of every object sent to a client.
    counts : bool
        Whether what is served is known: nobody counts the reads of a plain folder.
    """

    counts = True
    secrets: ClassVar[dict[str, str]] = {}

    def __init__(self, store: Path, settings: dict[str, str]) -> None:
        self.store = store
        self.settings = settings
        self.pushing = settings
        self.environ: dict[str, str] = {}
        self.served: list[tuple[str, int]] = []
        self.gate = Gate()

    def configure(self, project: Project, pushes: bool = True) -> None:
        """Point a clone at the remote, in its own configuration."""
        settings = self.pushing if pushes else self.settings
        lines = [f"    {name} = {value}" for name, value in settings.items()]
        text = "\n".join(["['remote \"storage\"']", *lines, ""])
        (project.root / ".dvc" / "config.local").write_text(text)
        project.environ |= self.environ

    def modify(self, project: Project) -> None:
        """Do so as the documentation has it, with a command for each setting: seconds."""
        for name, value in {**self.settings, **self.secrets}.items():
            project.run("dvc", "remote", "modify", "--local", "storage", name, value)

    def objects(self) -> dict[str, bytes]:
        """Return the bytes of every object; what is read here is not counted as served."""
        return {name: path.read_bytes() for name, path in self._paths()}

    def sizes(self) -> dict[str, int]:
        """Return the number of bytes of every object."""
        return {name: path.stat().st_size for name, path in self._paths()}

    def _paths(self) -> Iterator[tuple[str, Path]]:
        for path in self.store.rglob("*"):
            if path.is_file() and (name := object_name(path.as_posix())):
                yield name, path

    def write(self, name: str, data: bytes) -> None:
        self.delete(name)
        (self.store / "files" / "md5" / name).write_bytes(data)

    def delete(self, name: str) -> None:
        (self.store / "files" / "md5" / name).unlink()

    def sent(self) -> list[tuple[str, int]]:
        """Return what was served since the last call."""
        self.served, served = [], self.served
        return served


@contextmanager
def local(folder: Path) -> Iterator[Remote]:
    """A folder, such as a shared disk: nothing counts what is read."""
    remote = Remote(folder / "store", {"url": str(folder / "store")})
    remote.counts = False
    yield remote


class _Handler(SimpleHTTPRequestHandler):
    """Serves files and counts their bytes."""

    remote: Remote

    def copyfile(self, source, outputfile):
        name = object_name(self.path)
        if not name:
            return super().copyfile(source, outputfile)  # a listing
        if not is_list(name) and not self.remote.gate.enter():
            raise ConnectionResetError
        super().copyfile(source, outputfile)
        self.remote.served.append((name, source.tell()))
        return None if is_list(name) else self.remote.gate.leave()

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()


@contextmanager
def http(folder: Path) -> Iterator[Remote]:
    """A web server that only reads, over a folder that somebody else fills."""
    store = folder / "store"
    store.mkdir(exist_ok=True)
    remote = Remote(store, {})
    remote.pushing = {"url": str(store)}
    handler = type("Handler", (_Handler,), {"remote": remote})

    def serve(*arguments):
        handler(*arguments, directory=str(store))

    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    remote.settings["url"] = f"http://127.0.0.1:{server.server_port}"
    with _running(server, remote):
        yield remote


@contextmanager
def _running(server, remote: Remote) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        remote.gate.open()
        server.shutdown()
        thread.join()
        server.server_close()


class _S3(Remote):
    """A bucket, read and damaged through a client of its own."""

    secrets = KEYS

    @property
    def bucket(self):
        import boto3

        session = boto3.Session(*KEYS.values())
        endpoint = self.settings["endpointurl"]
        return session.resource("s3", "us-east-1", endpoint_url=endpoint).Bucket(BUCKET)

    def objects(self):
        served = self.sent()
        items = self.bucket.objects.all()
        found = {object_name(item.key): item.get()["Body"].read() for item in items}
        self.served = served
        return found

    def sizes(self):
        return {object_name(item.key): item.size for item in self.bucket.objects.all()}

    def write(self, name, data):
        self.bucket.put_object(Key=f"dvc/files/md5/{name}", Body=data)

    def delete(self, name):
        self.bucket.delete_objects(Delete={"Objects": [{"Key": f"dvc/files/md5/{name}"}]})


@contextmanager
def s3(folder: Path) -> Iterator[_S3]:
    """An S3 server with one bucket, asking for a known access key; objects are in its memory."""
    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    backend = DomainDispatcherApplication(create_backend_app)
    remote = _S3(Path(), {"url": f"s3://{BUCKET}/dvc"})
    remote.environ = {f"AWS_{name.upper()}": value for name, value in KEYS.items()}

    def application(environ, start_response):
        name = object_name(environ["PATH_INFO"])
        if f"Credential={KEYS['access_key_id']}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            start_response("403 Forbidden", [])
            return []
        method = environ["REQUEST_METHOD"]
        gated = name and method in ("GET", "PUT") and not is_list(name)
        if gated and not remote.gate.enter():
            start_response("503 Service Unavailable", [])
            return []
        parts = list(backend(environ, start_response))
        if name and method == "GET":
            remote.served.append((name, sum(map(len, parts))))
        if gated:
            remote.gate.leave()
        return parts

    class Handler(MotoRequestHandler):
        def log(self, *_):
            pass

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    remote.settings["endpointurl"] = f"http://127.0.0.1:{server.server_port}"
    with _running(server, remote):
        remote.bucket.create()
        try:
            yield remote
        finally:
            remote.gate.open()
            remote.bucket.objects.all().delete()
            remote.bucket.delete()
