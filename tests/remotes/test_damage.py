"""Objects that were damaged or half-written on the remote: noticed, named, and put right."""

from __future__ import annotations

import hashlib

import pytest

from tests.remotes import servers
from tests.remotes.objects import cached, outputs, same


def name_of(path):
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return f"{md5[:2]}/{md5[2:]}"


@pytest.mark.parametrize("serve", [servers.local, servers.s3])
def test_a_damaged_object_is_named_and_pushed_again(serve, sharer, tmp_path):
    with serve(tmp_path) as remote:
        remote.configure(sharer)
        sharer.run("dvc", "push", "density")
        good = remote.objects()
        density = sharer.root / "data" / "density"
        flipped, cut = (name_of(density / f"{name}.npy") for name in ("density_weights", "density"))
        data = bytearray(good[flipped])
        data[-1] ^= 1
        remote.write(flipped, bytes(data))
        remote.write(cut, good[cut][:100])

        mate = sharer.clone(tmp_path / "b")
        remote.configure(mate, pushes=False)
        output = mate.run("dvc", "pull", "-v", "density", check=False)
        assert "ERROR: failed to pull" in output
        for name in (flipped, cut):
            assert f"corrupted cache file '{mate.root}/.dvc/cache/files/md5/{name}'" in output
        assert not (mate.root / "data" / "density").exists()
        assert not {flipped, cut} & set(cached(mate))

        assert "up to date" in sharer.run("dvc", "push", "density")  # so a push alone cures nothing
        assert remote.objects()[cut] != good[cut]
        (folder,) = (name for name in outputs(sharer, "data/density") if servers.is_list(name))
        for name in (flipped, cut, folder):
            remote.delete(name)
        assert "3 files pushed" in sharer.run("dvc", "push", "density")
        assert remote.objects() == good
        mate.run("dvc", "pull", "density")
        assert same(sharer, mate, "data/density")


def test_a_damaged_list_of_a_folder_is_named(sharer, tmp_path):
    with servers.local(tmp_path) as remote:
        remote.configure(sharer)
        sharer.run("dvc", "push", "data/density")
        (folder,) = (name for name in outputs(sharer, "data/density") if servers.is_list(name))
        good = remote.objects()[folder]
        remote.write(folder, good[:100])
        mate = sharer.clone(tmp_path / "b")
        remote.configure(mate, pushes=False)
        output = mate.run("dvc", "pull", "data/density", check=False)
        assert f"object {folder.replace('/', '')} is corrupted" in output
        assert not (mate.root / "data/density").exists()

        # DVC believes a list that can be read; what isodense reads is held against its manifest
        remote.write(folder, good.replace(b"heldout_density", b"heldout_destiny"))
        mate.run("dvc", "pull", "data/density")
        assert "heldout_density.npy" in mate.run("isodense", "verify", "data/density", check=False)
        remote.delete(folder)
        assert "1 file pushed" in sharer.run("dvc", "push", "data/density")
        mate.run("dvc", "pull", "data/density")
        assert same(sharer, mate, "data/density")
