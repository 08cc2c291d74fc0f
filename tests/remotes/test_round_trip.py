"""What a team types, on every kind of remote: push, pull, repro, append."""

from __future__ import annotations

import pytest

from tests.remotes import servers, ssh
from tests.remotes.objects import cached, moved, outputs, same

ssh_server = ssh.sshd if ssh.sftp_server() else ssh.asyncssh


PLOTS = ("weights.csv", "density_weight.csv", "density.png")
RERUN = {  # a changed param, and what its stage needs that a clone with density has not
    "train": (
        {"train.max_steps": 1},
        ["data/prompts", "data/difficulty", "models/policy", "models/reward"],
    ),
    "density": ({"density.k": 5}, ["data/prompts", "data/embeddings", "data/neighbors"]),
}


@pytest.mark.parametrize(
    ("serve", "stage"),  # training takes ten seconds, so that one of the four remotes does it
    [
        (servers.local, "density"),
        pytest.param(ssh_server, "train", marks=pytest.mark.slow),
        pytest.param(servers.s3, "density", marks=pytest.mark.slow),
        pytest.param(servers.http, "density", marks=pytest.mark.slow),
    ],
)
def test_a_team_shares(serve, stage, sharer, tmp_path):
    with serve(tmp_path) as remote:
        remote.configure(sharer)
        sharer.run("dvc", "push")
        before = set(remote.sizes())
        mate = sharer.clone(tmp_path / "b")
        remote.modify(mate)

        mate.run("dvc", "pull", "density")
        expected = outputs(
            sharer, "data/density", *(f"reports/plots/density/{name}" for name in PLOTS)
        )
        assert moved(mate, remote, {}) == expected
        assert len(expected) == 11
        assert same(sharer, mate, "data/density")
        assert sorted(path.name for path in (mate.root / "data").iterdir()) == ["density", "raw"]

        params, paths = RERUN[stage]
        mate.set(params)
        had = cached(mate)
        # an experiment is kept without the outputs of other stages, figures of `dvc plots` too
        command = ("exp", "run") if serve is servers.local else ("repro",)
        assert mate.ran(mate.run("dvc", *command, "--pull", "--allow-missing", stage)) == [stage]
        needed = outputs(sharer, *paths)
        new = moved(mate, remote, had)
        assert new == needed if remote.counts else new.items() >= needed.items()
        for folder in {"data/embeddings", "data/examples", "models/encoder"}.difference(paths):
            assert not (mate.root / folder).exists()
        mate.run("git", "checkout", "-q", ".")

        had = cached(mate)
        mate.run("dvc", "pull", "embeddings")
        if "data/embeddings" not in paths:
            assert moved(mate, remote, had) == outputs(sharer, "data/embeddings")
        assert same(sharer, mate, "data/embeddings")

        sharer.run("git", "merge", "-q", "--ff-only", "after")
        sharer.run("dvc", "push", "embeddings")
        added = set(remote.sizes()) - before
        mate.run("git", "pull", "-q")
        had = cached(mate)
        mate.run("dvc", "pull", "embeddings")
        new = moved(mate, remote, had)
        assert set(new) == added
        assert len(new) == 4  # the last shard, its ids, the manifest, and DVC's list of the folder
        assert (mate.root / "data/embeddings/shard-00003.npy").stat().st_size in new.values()


def test_a_key_that_the_server_does_not_know_is_refused(sharer, tmp_path):
    with ssh_server(tmp_path) as remote:
        remote.settings["keyfile"] = str(ssh.make_key(tmp_path / "other"))
        remote.configure(sharer, pushes=False)
        assert "Permission denied" in sharer.run("dvc", "push", "density", check=False)
        assert remote.sizes() == {}
