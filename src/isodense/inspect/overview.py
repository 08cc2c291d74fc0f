"""What the weights did: how even they are, whom they favour, what they take for near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from isodense.density.artifact import stored
from isodense.density.balance import effective_sample_size, weight_statistics
from isodense.density.duplicates import largest_clusters
from isodense.density.opinion import sentences
from isodense.inspect.lookup import require_same_prompts, rows_of
from isodense.pipeline.artifact import in_project
from isodense.pipeline.terminal import rendered, table
from isodense.sampling.weights import Weights, load_weights

EDGES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, np.inf)  # of the histogram, over the mean
BAR = 40  # columns of the histogram's longest bar


def overview(prompts: Path, density: Path, top: int) -> dict[str, Any]:
    """Return what is worth knowing of a set of weights.

    Parameters
    ----------
    prompts, density : Path
        The artifacts.
    top : int
        Prompts at each end, and duplicate clusters, to return at most.

    Returns
    -------
    dict
        ``opinion``, sentences on what the weights will do; ``prompts``, their number; ``ess``;
        ``exponent``, or None where the weight is no power of the density; ``min_over_mean``,
        ``max_over_mean``; ``histogram``, of weights over the mean; ``most`` and ``least``, the
        prompts at both ends; ``dimension``, the intrinsic one; ``near_duplicates``, with the
        largest duplicate clusters.

    Raises
    ------
    ArtifactError
        If the artifacts do not belong together.
    """
    weights = load_weights(density)
    require_same_prompts(prompts, weights)
    relative = np.asarray(weights.weights, dtype=np.float64) * len(weights.weights)
    order = np.argsort(-relative, kind="stable")
    ends = {"most": order[:top], "least": order[::-1][:top]}
    clusters = largest_clusters(weights.clusters, top)
    first = np.array([members[0] for members in clusters], dtype=np.int64)
    ids = weights.prompt_ids[np.concatenate([*ends.values(), first])]
    rows = rows_of(prompts, ids.tolist())

    def entries(numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {"weight_over_mean": float(relative[row]), **_facts(rows[weights.prompt_ids[row]])}
            for row in numbers
        ]

    return {
        "opinion": sentences(weights.metadata.get("opinion", {}), not in_project(density)),
        "prompts": len(relative),
        "ess": effective_sample_size(weights.weights),
        "exponent": _exponent(weights),
        "min_over_mean": float(relative.min()),
        "max_over_mean": float(relative.max()),
        "histogram": np.histogram(relative, EDGES)[0].tolist(),
        "dimension": stored(weights).scales.dimension,
        "near_duplicates": {
            **_near_duplicates(weights.clusters, relative / len(relative)),
            "largest": [
                {"size": len(members), "weights": float(relative[members].sum()), **entry}
                for members, entry in zip(clusters, entries(first.tolist()), strict=True)
            ],
        },
        **{end: entries(numbers.tolist()) for end, numbers in ends.items()},
    }


def _exponent(weights: Weights) -> float | None:
    method = weights.metadata["params"]["method"]
    return None if method in ("balance", "semdedup", "clusters") else weights.metadata["exponent"]


def _near_duplicates(clusters: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    found = weight_statistics(weights, clusters)
    return {
        "clusters": found["duplicate_clusters"],
        "prompts": found["prompts_in_duplicate_clusters"],
        "share": found["duplicates_mass_uniform"],
        "draws": found["duplicates_mass"],
    }


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "count", "text")}


def describe(found: dict[str, Any], width: int | None = None) -> str:
    """Return what :func:`overview` found as text for a terminal.

    Parameters
    ----------
    found : dict
    width : int, optional
        Columns of a prompt's text; what the terminal has room for by default.
    """
    parts = [_header(found), _histogram(found["histogram"])]
    for end in ("most", "least"):
        rows = [
            (f"{one['weight_over_mean']:.2f}", str(one["count"]), one["id"][:8], one["text"])
            for one in found[end]
        ]
        header = ("weight", "count", "id", "prompt")
        shown = table(header, rows, left=header[2:], text="prompt", width=width)
        parts.append(_titled(f"{end} weighted") + rendered(shown, indent=2))
    parts.append(_clusters(found["near_duplicates"]["largest"], width))
    return "\n".join(parts)


def _titled(title: str, rest: str = "") -> str:
    return rendered(Text.assemble((title, "bold"), rest))


def _header(found: dict[str, Any]) -> str:
    n, exponent, near = found["prompts"], found["exponent"], found["near_duplicates"]
    lines = [
        f"{n} training prompts, effective sample size {found['ess']:.0f} ({found['ess'] / n:.0%}), "
        f"weights {found['min_over_mean']:.2f} to {found['max_over_mean']:.2f} times the mean",
        *(
            []
            if exponent is None
            else [f"exponent {exponent:.3f} of weight ~ (soft count)^-exponent"]
        ),
    ]
    lines[-1] += f"; intrinsic dimension {found['dimension']:.1f}"
    lines.append(
        f"{near['prompts']} prompts ({near['share']:.1%}) are in {near['clusters']} duplicate "
        f"clusters, which get {near['draws']:.1%} of the draws"
    )
    return "".join(f"{line}\n" for line in [*lines, *found["opinion"]])


def _histogram(counts: list[int]) -> str:
    labels = ["under 1/8", "1/8 to 1/4", "1/4 to 1/2", "1/2 to 1", "1 to 2", "2 to 4", "4 to 8"]
    rows = [
        (label, str(count), "#" * -(-BAR * count // max(counts)))
        for label, count in zip([*labels, "over 8"], counts, strict=True)
    ]
    return rendered(table(("of the mean", "prompts", ""), rows, left=("",)), indent=2)


def _clusters(largest: Sequence[dict[str, Any]], width: int | None) -> str:
    if not largest:
        return _titled("duplicate clusters") + "  none\n"
    rows = [
        (str(one["size"]), f"{one['weights']:.2f}", one["id"][:8], one["text"]) for one in largest
    ]
    header = ("prompts", "shared weight", "id", "one of them")
    shown = table(header, rows, left=header[2:], text=header[-1], width=width)
    return _titled("duplicate clusters", ", the largest first") + rendered(shown, indent=2)
