"""How different the texts of a set are: self-BLEU of their words, Vendi score of their meaning.

Both depend on the size of the set: compare sets of as many texts, to the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TEXTS = 100  # of which self-BLEU is computed, at most: its cost grows with their square


def self_bleu(texts: Sequence[str]) -> float:
    """Return how much of each text stands in the others (Zhu et al. 2018, Texygen).

    It is the mean BLEU of a text with all others as references, up to its own length where that is
    under four words. Of more than ``TEXTS`` texts, as many are taken, evenly spread. BLEU is
    sacrebleu's, with its default tokenisation (13a, for languages that put spaces between words).

    Parameters
    ----------
    texts : sequence of str
        At least two.

    Returns
    -------
    float
        From 0, no word in common, to 100, all alike. An empty text has no word in common.

    Examples
    --------
    >>> self_bleu(["blue skies", "red roses", "green"])
    0.0
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    places = np.unique(np.linspace(0, len(texts) - 1, TEXTS).round().astype(int))
    chosen = [texts[place] for place in places]
    scores = [
        bleu.sentence_score(text, chosen[:row] + chosen[row + 1 :]).score
        for row, text in enumerate(chosen)
    ]
    return float(np.mean(scores))


def vendi(vectors: np.ndarray) -> float:
    """Return the effective number of different items (Friedman and Dieng 2023, Vendi score).

    It is the exponential of the entropy of the eigenvalues of the matrix of cosines over n.

    Parameters
    ----------
    vectors : ndarray of shape (n, dim), float
        Unit rows.

    Returns
    -------
    float
        From 1, all alike, to n, all orthogonal.

    Examples
    --------
    >>> import numpy as np
    >>> round(vendi(np.eye(4)[[0, 0, 1, 1]]), 6)
    2.0
    """
    from vendi_score.vendi import score_dual

    # Turned into the space that the rows span, where they have the same cosines and are shorter.
    turned = np.linalg.qr(vectors.T.astype(np.float64)).R.T
    return float(score_dual(turned))
