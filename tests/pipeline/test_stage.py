from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from isodense.pipeline import stage


@pytest.mark.parametrize(("system", "said"), [("linux", 3 * 2**10), ("darwin", 3 * 2**20)])
def test_peak_memory_is_in_bytes_whatever_the_system_counts(system, said, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(stage.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=said))
    assert stage.peak_rss() == 3 * 2**20


def test_peak_memory_is_that_of_this_process():
    before = stage.peak_rss()
    assert 10 * 2**20 < before < 64 * 2**30
    block = bytearray(2**28)
    block[:: 2**12] = b"1" * 2**16
    assert stage.peak_rss() > 2**28
