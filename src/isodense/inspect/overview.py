"""What the weights did: how even they are, whom they favour, and what they take for copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.balance import effective_sample_size, weight_statistics
from isodense.inspect.lookup import estimated, largest_clusters, require_same_prompts, rows_of
from isodense.pipeline.terminal import cut, room, styled, table
from isodense.sampling.weights import Weights, load_weights

EDGES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, np.inf)  # of the histogram, over the mean
BAR = 40  # columns of the histogram's longest bar


def overview(prompts: Path, density: Path, neighbors: Path, top: int) -> dict[str, Any]:
    """Return what is worth knowing of a set of weights.

    Parameters
    ----------
    prompts, density, neighbors : Path
        The artifacts. Duplicate clusters and the dimension are left out where `neighbors` is
        not there.
    top : int
        Prompts at each end, and duplicate clusters, to return at most.

    Returns
    -------
    dict
        ``prompts``, their number; ``ess``; ``exponent``, or None where the weight is no power of
        the density; ``min_over_mean``, ``max_over_mean``;
        ``histogram``, of weights over the mean; ``most`` and ``least``, the prompts at both ends;
        ``dimension`` and ``copies``, the duplicate clusters, or None.

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
    graph_is_there = (neighbors / "manifest.json").is_file()
    found = estimated(neighbors, weights)[1] if graph_is_there else None
    groups = [] if found is None else largest_clusters(found.clusters, top)
    first = np.array([members[0] for members in groups], dtype=np.int64)
    ids = weights.prompt_ids[np.concatenate([*ends.values(), first])]
    rows = rows_of(prompts, ids.tolist())

    def entries(numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {"weight_over_mean": float(relative[row]), **_facts(rows[weights.prompt_ids[row]])}
            for row in numbers
        ]

    return {
        "prompts": len(relative),
        "ess": effective_sample_size(weights.weights),
        "exponent": _exponent(weights),
        "min_over_mean": float(relative.min()),
        "max_over_mean": float(relative.max()),
        "histogram": np.histogram(relative, EDGES)[0].tolist(),
        "dimension": None if found is None else found.scales.dimension,
        "copies": None
        if found is None
        else {
            **_copies(found.clusters, relative / len(relative)),
            "largest": [
                {"size": len(members), "weights": float(relative[members].sum()), **entry}
                for members, entry in zip(groups, entries(first.tolist()), strict=True)
            ],
        },
        **{end: entries(numbers.tolist()) for end, numbers in ends.items()},
    }


def _exponent(weights: Weights) -> float | None:
    method = weights.metadata.get("params", {}).get("method")
    return None if method == "balance" else weights.metadata.get("exponent")


def _copies(clusters: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    found = weight_statistics(weights, clusters)
    return {
        "groups": found["duplicate_clusters"],
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
            (
                f"{one['weight_over_mean']:.2f}",
                str(one["count"]),
                one["id"][:8],
                cut(one["text"], room(28, width)),
            )
            for one in found[end]
        ]
        title = styled(f"{end} weighted", "bold")
        header = ("weight", "asked", "id", "prompt")
        parts.append(f"{title}\n{table(header, rows, left=header[2:])}")
    parts.append(_groups(found["copies"], width))
    return "\n".join(parts)


def _header(found: dict[str, Any]) -> str:
    n, exponent, copies = found["prompts"], found["exponent"], found["copies"]
    lines = [
        f"{n} training prompts, effective sample size {found['ess']:.0f} ({found['ess'] / n:.0%}), "
        f"weights {found['min_over_mean']:.2f} to {found['max_over_mean']:.2f} times the mean",
        *([] if exponent is None else [f"exponent {exponent:.3f} of weight ~ density^-exponent"]),
    ]
    if copies:
        lines[-1] += f"; intrinsic dimension {found['dimension']:.1f}"
        lines.append(
            f"{copies['prompts']} prompts ({copies['share']:.1%}) are in {copies['groups']} groups "
            f"of near-duplicates, which get {copies['draws']:.1%} of the draws"
        )
    return "".join(f"{line}\n" for line in lines)


def _histogram(counts: list[int]) -> str:
    labels = ["under 1/8", "1/8 to 1/4", "1/4 to 1/2", "1/2 to 1", "1 to 2", "2 to 4", "4 to 8"]
    rows = [
        (label, str(count), "#" * -(-BAR * count // max(counts)))
        for label, count in zip([*labels, "over 8"], counts, strict=True)
    ]
    return table(("of the mean", "prompts", ""), rows, left=("",))


def _groups(copies: dict[str, Any] | None, width: int | None) -> str:
    title = styled("near-duplicates", "bold")
    if copies is None:
        return f"{title}\n  not shown without the neighbours: dvc pull neighbors\n"
    if not copies["largest"]:
        return f"{title}\n  none\n"
    rows = [
        (
            str(one["size"]),
            f"{one['weights']:.2f}",
            one["id"][:8],
            cut(one["text"], room(37, width)),
        )
        for one in copies["largest"]
    ]
    header = ("prompts", "shared weight", "id", "one of them")
    return f"{title}, the largest groups first\n{table(header, rows, left=header[2:])}"
