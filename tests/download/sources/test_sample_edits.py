"""Light edits of a prompt leave it recognisable."""

from collections import Counter

import numpy as np

from isodense.download.sources.sample_edits import edit


def test_a_near_duplicate_stays_close_to_its_original():
    rng = np.random.default_rng(3)
    original = "What's the capital of France?"
    for _ in range(200):
        (edited,) = edit((original,), 1, rng)
        assert edited != original
        # The letters of the original survive, but for one typo.
        want, have = Counter("whatsthecapitaloffrance"), Counter(edited.lower())
        assert (want - have).total() <= 1
