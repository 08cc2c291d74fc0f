"""A wheel built of this tree holds the whole package, and works where nothing else of it is."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.weights import write_weights

ROOT = Path(__file__).parents[1]


def run(*command, cwd, **options):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the tree, in which the build may leave what it likes."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        tree.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tree / "src", ignore=skip)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, tree, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """Give the scripts' folder of a new environment with the wheel, and the dependencies of this.

    The dependencies come by a ``.pth`` of this environment's packages, read after the new one's
    own. Lines of that folder's own ``.pth`` files are not followed, so the editable isodense of
    this environment is not found.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    scripts = folder / "bin"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python")
    run(*pip, "install", *options, wheel, cwd=folder)
    packages = run(
        scripts / "python",
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
        cwd=folder,
    ).strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_the_wheel_has_every_file_of_the_package(wheel):
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "isodense").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = [name for name in archive.namelist() if name.endswith("LICENSE")]
    assert {"isodense/py.typed", "isodense/report/offline.html", "isodense/cli/main.py"} <= expected
    assert len([name for name in expected if name.endswith(".yaml")]) >= 2
    assert found == expected
    assert ".dist-info/" in licence


def test_the_command_of_a_clean_install_shows_its_help(clean, tmp_path):
    said = run(clean / "isodense", "--help", cwd=tmp_path)
    assert "usage: isodense" in said
    assert "isodense inspect" in said
    assert run(clean / "isodense", "--version", cwd=tmp_path).startswith("isodense ")


def test_a_clean_install_loads_weights_and_its_own_data(clean, tmp_path):
    identifiers = [f"{number:032x}" for number in range(5)]
    weights = np.array([1, 2, 3, 4, 10], dtype=np.float32) / 20
    write_weights(tmp_path / "density", identifiers, weights)
    code = """
import isodense, numpy
from isodense.download.sources.sample import SampleParams, load
w = isodense.load_weights("density")
print(isodense.__file__)
print(isodense.draw(w.weights, 1000, seed=1).tolist().count(4))
params = SampleParams(pairs=50, exponent=1.0, duplicates=0.08, near_duplicates=0.15, multi_turn=0.1)
print(len(list(load(params, numpy.random.default_rng(0)))))
"""
    where, heaviest, pairs = run(clean / "python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(clean.parent)
    assert 400 < int(heaviest) < 600  # its weight is one half
    assert int(pairs) > 40  # the sample is made from files of the package


def test_windows_is_refused_at_install(tmp_path):
    as_windows = "import runpy, sys; sys.platform = 'win32'; runpy.run_path(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", as_windows, str(ROOT / "setup.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "isodense runs on Linux and macOS. On Windows, install it in WSL.",
    )


def test_windows_is_refused_at_import(clean, tmp_path):
    code = "import sys; sys.platform = 'win32'; import isodense"
    done = subprocess.run(
        [clean / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "ImportError: isodense runs on Linux and macOS. On Windows, install it in WSL.\n"
    )


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_works_by_its_own_metadata(tmp_path):
    """Run the script that CI runs on each Python, with the torch that is here."""
    environ = {**os.environ, "PYTHON": sys.executable}
    environ["CONSTRAINT"] = f"torch=={importlib.metadata.version('torch')}"
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "wheel"), str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the wheel works by its own metadata\n")
    assert int(re.search(r"(\d+) packages", done.stdout)[1]) < 75  # of 154 that it once brought
