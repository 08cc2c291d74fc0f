"""Threads that wait for each other sleep soon: a shared machine would be several times slower."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="torch has libgomp on Linux alone")
@pytest.mark.parametrize(("set_before", "expected"), [(None, "1000"), ("70000", "70000")])
def test_openmp_reads_how_often_to_spin_before_it_sleeps(set_before, expected):
    environ = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environ |= {"OMP_DISPLAY_ENV": "verbose"} | (
        {} if set_before is None else {"GOMP_SPINCOUNT": set_before}
    )
    code = "import isodense.embeddings.encoder"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
