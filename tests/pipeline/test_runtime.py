"""Seeds of stages: DVC does not watch what makes them, so they never change."""

from __future__ import annotations

from isodense.pipeline.runtime import BaseParams


def base(seed):
    return BaseParams(seed=seed, device="cpu")


def test_seeds_are_what_they_were_when_the_default_run_was_pinned():
    assert base(0).seed_of("reward") == 1762522047
    assert base(0).seed_of("train:0") == 717474036
    assert base(7).seed_of("neighbors") == 101510654
    assert base(0).rng("download.sample").integers(10**9) == 967869163
