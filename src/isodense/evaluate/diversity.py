"""Diversity of a set of texts: self-BLEU of the words, Vendi score of the embeddings.

Both depend on the size of the set: compare sets of equal size, answers to the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TEXTS = 100  # at most so many enter self-BLEU: the cost is quadratic in the number of texts


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text against all others (Zhu et al. 2018, Texygen).

    BLEU is that of sacrebleu, with the default tokenisation (13a, for languages with spaces between
    words) and n-grams of up to four words, or up to the length of a shorter text. Sets of more than
    ``TEXTS`` texts are sampled down to that number, evenly spread.

    Parameters
    ----------
    texts : sequence of str
        At least two texts.

    Returns
    -------
    float
        From 0 (no word in common) to 100 (all equal). An empty text has no word in common.

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
    """Return the Vendi score, the effective number of different items (Friedman and Dieng 2023).

    It is the exponential of the entropy of the eigenvalues of K / n, K the matrix of cosines.

    Parameters
    ----------
    vectors : ndarray of shape (n, dim), float
        Rows of unit length.

    Returns
    -------
    float
        From 1 (all equal) to n (all orthogonal).

    Examples
    --------
    >>> import numpy as np
    >>> round(vendi(np.eye(4)[[0, 0, 1, 1]]), 6)
    2.0
    """
    from vendi_score.vendi import score_dual

    # Coordinates in the span of the rows: the same cosines in min(n, dim) columns.
    coordinates = np.linalg.qr(vectors.T.astype(np.float64)).R.T
    return float(score_dual(coordinates))
