r"""Turn the neighbour graph into density and sampling weights.

Example
-------
python stages/density.py --prompts data/prompts --embeddings data/embeddings \
    --neighbors data/neighbors --out data/density --metrics reports/metrics/density.json \
    --plots reports/plots/density
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.density.artifact import leakage, publish, statistics
from isodense.density.balance import label_statistics
from isodense.density.estimate import estimate, heldout_density, near_training
from isodense.density.kinds import load_kinds
from isodense.density.opinion import judge, short
from isodense.density.params import DensityParams
from isodense.density.plots import density_plots
from isodense.embeddings.reader import load_vectors
from isodense.neighbors.graph import load_graph, load_heldout_graph
from isodense.pipeline import params, stage
from isodense.pipeline.artifact import content_sha256, require_same_ids, write_json
from isodense.prompts.reader import load_columns


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("density", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--embeddings", type=Path, required=True, help="embeddings to read")
    parser.add_argument("--neighbors", type=Path, required=True, help="neighbors artifact to read")
    parser.add_argument("--out", type=Path, required=True, help="density artifact to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    parser.add_argument("--plots", type=Path, required=True, help="folder of plots to write")
    args = parser.parse_args(argv)
    section = params.load(args.params, "density", DensityParams)
    prompts = load_columns(args.prompts)
    train, heldout = prompts.split("train"), prompts.split("heldout")
    graph, manifest = load_graph(args.neighbors)
    require_same_ids(train.ids_sha256, manifest, f"the neighbours in {args.neighbors}")
    vectors = None
    if section.method == "clusters":
        vectors, embedded = load_vectors(args.embeddings, prompts.positions("train"))
        require_same_ids(prompts.ids_sha256, embedded, f"the vectors in {args.embeddings}")
    kinds = load_kinds(args.prompts, section.balance_by) if section.balance_by else None
    found = estimate(graph, section, train.counts, vectors, kinds)
    labels = train.labels if train.labels_are_kinds else None
    sources = kinds if section.balance_by == "source" else load_kinds(args.prompts, "source")
    known = {
        name: label_statistics(found.weights, column)
        for name, column in (("label", labels), ("source", sources))
        if column
    }
    opinion = judge(found, graph, section, known, kinds, train.counts)
    near = load_heldout_graph(args.neighbors)
    what = f"the held-out prompts in {args.neighbors}"
    require_same_ids(heldout.ids_sha256, manifest, what, "heldout_ids_sha256")
    close = near_training(near, found.scales.radius)
    publish(
        found,
        heldout_density(found, near, section),
        close | heldout.leaked,
        train.ids,
        section,
        opinion,
        manifest,
        content_sha256(manifest),
        args.out,
    )
    report = statistics(found, graph, section, train.counts, kinds)
    report["heldout"] = leakage(close, heldout.leaked)
    if manifest.get("recall") is not None:
        report["recall"] = manifest["recall"]
    if opinion:
        report["opinion"] = opinion
    if "label" in known:
        report["labels"] = known["label"]
    if kinds is not None:
        report["kinds"] = label_statistics(found.weights, kinds)
    write_json(args.metrics, {"density": report})
    density_plots(found.weights, found.density, labels, args.plots)
    ess, largest = report["ess"], report["max_over_mean"]
    line = f"ESS {ess:.0f} of {report['prompts']} prompts, largest weight {largest:.1f} x mean"
    line += f"; {short(opinion)}" if opinion else ""
    if len(heldout):
        line += f"; {close.sum():,} of {len(heldout):,} held-out prompts within the radius of "
        line += "near-duplicates of a training prompt"
    return line


if __name__ == "__main__":
    stage.run("density", main)
