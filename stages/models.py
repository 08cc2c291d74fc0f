"""Publish the frozen encoder and policy as safetensors folders.

Example
-------
python stages/models.py --raw models/raw --encoder models/encoder --policy models/policy
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.models.params import ModelsParams
from isodense.models.publish import publish
from isodense.pipeline import params, stage
from isodense.pipeline.watched import require_tracked, warn_unwatched


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("models", __doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the user's models")
    parser.add_argument("--encoder", type=Path, required=True, help="folder to write")
    parser.add_argument("--policy", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    section = params.load(args.params, "models", ModelsParams)
    for role, out in (("encoder", args.encoder), ("policy", args.policy)):
        model = getattr(section, role)
        if model.source in ("folder", "nanochat"):
            require_tracked([model.name], f"models.{role}.name")
            warn_unwatched([model.name], args.raw, f"models.{role}.name")
        manifest = publish(role, model, out, stage.cache())
        size = sum(file["bytes"] for file in manifest["files"].values())
        stage.log.info("%s: %.0f MB in %s", role, size / 1e6, out)
    return "encoder and policy published"


if __name__ == "__main__":
    stage.run("models", main)
