"""Seeds of stages: DVC does not watch what makes them, so they never change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numba

from isodense.pipeline.runtime import BaseParams, let_numba_compile


def base(seed):
    return BaseParams(seed=seed, device="cpu")


def test_seeds_are_what_they_were_when_the_default_run_was_pinned():
    assert base(0).seed_of("reward") == 1762522047
    assert base(0).seed_of("train:0") == 717474036
    assert base(7).seed_of("neighbors") == 101510654
    assert base(0).rng("download.sample").integers(10**9) == 967869163


def test_numba_gets_a_folder_only_where_neither_its_own_nor_the_home_can_be_written(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "isodense")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    let_numba_compile()
    assert numba.config.CACHE_DIR == ""
    monkeypatch.setattr(os, "access", lambda *_: False)
    let_numba_compile()
    made = Path(numba.config.CACHE_DIR)
    assert made.is_dir()
    assert f"{tmp_path / 'cache'} cannot be written" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text
    let_numba_compile()
    assert Path(numba.config.CACHE_DIR) == made
    shutil.rmtree(made)
