"""kill -9 in the middle of a push or a pull: the same command again finishes the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from tests.project import Project
from tests.remotes import servers, ssh
from tests.remotes.objects import cached, moved, outputs, same

SHARED = ("data/embeddings", "data/density")


def kill(project: Project, remote: servers.Remote, *command: str) -> None:
    """Run a command and kill it when it has moved five objects (or blocks) and not the others."""
    held = cached(project)
    remote.gate.close_after(5)
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=project.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert remote.gate.reached.wait(servers.SECONDS)
    end = time.monotonic() + servers.SECONDS
    while "pull" in command and cached(project).keys() <= held.keys():  # until one has been kept
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    remote.gate.open()


def complete(objects: dict[str, bytes]) -> bool:
    """Return whether everything that the lists of folders name is there."""
    lists = [json.loads(data) for name, data in objects.items() if servers.is_list(name)]
    named = {f"{entry['md5'][:2]}/{entry['md5'][2:]}" for entries in lists for entry in entries}
    return named <= set(objects)


@pytest.mark.slow
@pytest.mark.parametrize("serve", [ssh.asyncssh, servers.s3])
def test_a_killed_push(serve, sharer, tmp_path):
    with serve(tmp_path) as remote:
        remote.configure(sharer)
        expected = outputs(sharer, *SHARED)
        kill(sharer, remote, "dvc", "push", *SHARED)
        assert complete(remote.objects())
        assert len(remote.objects()) < len(expected)
        sharer.run("dvc", "push", *SHARED)
        assert remote.sizes() == expected
        mate = sharer.clone(tmp_path / "b")
        remote.configure(mate, pushes=False)
        mate.run("dvc", "pull", *SHARED)
        assert [same(sharer, mate, folder) for folder in SHARED] == [True, True]


def test_a_killed_pull(sharer, tmp_path):
    with servers.http(tmp_path) as remote:
        remote.configure(sharer)
        sharer.run("dvc", "push", *SHARED)
        mate = sharer.clone(tmp_path / "b")
        remote.configure(mate, pushes=False)
        kill(mate, remote, "dvc", "pull", *SHARED)
        kept = cached(mate)
        expected = outputs(sharer, *SHARED)
        assert kept.items() < expected.items()
        assert [path.name for path in (mate.root / "data").iterdir()] == ["raw"]
        remote.sent()
        mate.run("dvc", "pull", *SHARED)
        again = {name for name in moved(mate, remote, kept) if not servers.is_list(name)}
        assert again == {name for name in expected if not servers.is_list(name)} - set(kept)
        assert [same(sharer, mate, folder) for folder in SHARED] == [True, True]
