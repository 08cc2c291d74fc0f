"""The card of a data set of weights: what it is, what it does, how it was made, how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from isodense.cli.licence import licence
from isodense.cli.pinned import commit_of
from isodense.density.balance import weight_statistics
from isodense.density.opinion import sentences
from isodense.pipeline.artifact import MANIFEST, content_sha256
from isodense.report.provenance import flat, read
from isodense.sampling.hub import SCHEME
from isodense.sampling.weights import Weights

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
         (10**7, "1M<n<10M"))  # fmt: skip
CHAIN = (  # what is made of what, from the weights up; prompts are compared by their ids
    ("density", "neighbors"),
    ("neighbors", "embeddings"),
    ("embeddings", "encoder"),
    ("prompts", "examples"),
)
COLUMNS = {
    "prompt_id": "hash of the prompt's conversation; rows of your own data are joined by it",
    "row": "its place among the prompts, held-out ones included, from 0",
    "weight": "probability of drawing the prompt; sums to 1",
    "density": "log soft count of the distinct prompts around it",
    "cluster": "duplicate cluster: near-duplicates share a number, other prompts have their own",
    "paraphrases": "with how many prompts it shares its weight as paraphrases, itself included",
    "x": "place on the map",
    "y": "place on the map",
    "prompt": "the conversation that ends with a user message",
    "text": "what was embedded of it",
}


def card(repo: str, columns: list[str], weights: Weights, data: Path, pins: dict[str, str]) -> str:
    """Return the card, Markdown with YAML in front.

    Parameters
    ----------
    repo : str
        ``owner/name`` of the data set.
    columns : list of str
        Of its table.
    weights : Weights
    data : Path
        The data folder; what its manifests say of sources and encoder is told where they are there.
    pins : dict of str to str
        What ``dvc.lock`` pins of it, see :func:`isodense.cli.pinned.pinned`.
    """
    manifests = _manifests(data)
    sources = manifests.get("examples", {}).get("params", {})
    identifier, said = licence(sources)
    parts = (
        _front(identifier, len(weights.weights)),
        f"# {repo.partition('/')[2]}\n\n"
        "Sampling weights of prompts for RL fine-tuning, inverse to local density: crowded prompts "
        "are drawn seldom, isolated ones often. Made by isodense.\n",
        _use(repo, columns),
        _measures(weights),
        _table("Columns of `weights.parquet`", ("column", "meaning"), _meanings(columns)),
        _made(weights, manifests, data, pins),
        f"## Licence\n\n{said}\n",
    )
    return "\n".join(parts)


def _front(identifier: str | None, rows: int) -> str:
    fields: dict[str, Any] = {"license": identifier} if identifier else {}
    size = next((name for limit, name in SIZES if rows < limit), "n>10M")
    fields |= {
        "tags": ["isodense", "sampling-weights", "grpo", "rlhf"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "weights.parquet"}],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _use(repo: str, columns: list[str]) -> str:
    whole = ""
    if "prompt" in columns:
        whole = (
            "\nThe prompts are in the table, so it can be trained on as it is:\n\n```python\n"
            f'data = datasets.load_dataset("{repo}", split="train")\n'
            "plan = data.select(isodense.draw(data['weight'], size=4096, seed=0))\n```\n"
        )
    return (
        "## Use\n\n```python\nimport isodense\n\n"
        f'w = isodense.load_weights("{SCHEME}{repo}")      # rev="v1.0" pins a tag or commit\n'
        'weights = w.align(my_data["prompt"])              # texts, conversations or prompt ids\n'
        "rows = isodense.draw(weights, size=4096, seed=0)\n```\n" + whole
    )


def _measures(weights: Weights) -> str:
    found = weight_statistics(weights.weights, weights.clusters)
    ess, count = float(weights.metadata["ess"]), len(weights.weights)
    relative = weights.weights * count
    rows = [
        ("training prompts", f"{count:,}"),
        ("effective sample size", f"{ess:,.0f} ({ess / count:.0%})"),
        ("weights over the mean", f"{relative.min():.2f} to {relative.max():.2f}"),
        ("clusters of near-duplicates", f"{found['duplicate_clusters']:,}"),
    ]
    if found["duplicate_clusters"]:
        share, mass = found["duplicates_mass_uniform"], found["duplicates_mass"]
        rows.append(("draws of near-duplicates", f"{mass:.1%} instead of {share:.1%}"))
    opinion = " ".join(sentences(weights.metadata.get("opinion", {})))
    return _table("What the weights do", ("measure", "value"), rows) + (
        f"\n{opinion}\n" if opinion else ""
    )


def _meanings(columns: list[str]) -> list[tuple[str, str]]:
    return [(f"`{name}`", COLUMNS.get(name, "of the data")) for name in columns]


def _made(
    weights: Weights, manifests: dict[str, dict[str, Any]], data: Path, pins: dict[str, str]
) -> str:
    encoder = manifests.get("encoder", {}).get("params", {})
    name = str(encoder.get("name", ""))
    if encoder.get("source") == "folder":  # whose path is nobody else's business
        name = Path(name).name
    rows = [("encoder", f"{name} {encoder.get('version') or ''}".strip())] if name else []
    embedded = manifests.get("embeddings", {}).get("params", {})
    rows += [
        (f"embeddings.{name}", f"{value}") for name, value in flat(embedded) if value is not None
    ]
    used = weights.metadata["params"]
    rows += [(f"density.{name}", f"{value}") for name, value in flat(used) if value is not None]
    revision = commit_of(data) if pins else None
    rows += [("git commit of the project", revision)] if revision else []
    rows += [(f"{name} in dvc.lock", md5) for name, md5 in pins.items()]
    rows += [
        (f"sha256 of {name}", content_sha256(manifest)) for name, manifest in manifests.items()
    ]
    return _table("How they were made", ("what", "value"), rows)


def _manifests(data: Path) -> dict[str, dict[str, Any]]:
    """Return the manifests that are there of what the weights come from."""
    places = {name: data / name for name in ("examples", "prompts", "embeddings", "neighbors")}
    work = (data / "encoder" / MANIFEST).is_file()  # what `isodense weigh --work` has kept
    encoder = data / "encoder" if work else data.absolute().parent / "models/encoder"
    places |= {"density": data / "density", "encoder": encoder}
    found = {
        name: read(folder / MANIFEST)
        for name, folder in places.items()
        if (folder / MANIFEST).is_file()
    }
    foreign: set[str] = set()
    for made, used in CHAIN:
        if made in found and used in found:
            digest = found[made].get("inputs", {}).get(used)
            if made in foreign or digest != content_sha256(found[used]):
                foreign.add(used)
    return {name: manifest for name, manifest in found.items() if name not in foreign}


def _table(title: str, head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    cells = ((_cell(one), _cell(two)) for one, two in lines)
    return f"## {title}\n\n" + "".join(f"| {one} | {two} |\n" for one, two in cells)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").splitlines())
