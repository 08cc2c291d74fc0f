r"""Say what later stages cannot work with, before `embeddings` starts.

Reads prompts, tokenizer and params, computes nothing, writes nothing. A problem stops the pipeline;
ISODENSE_PREFLIGHT=warn only reports it, for runs that end before the stage that has the problem:

ISODENSE_PREFLIGHT=warn dvc repro density

Example
-------
python src/isodense/preflight --examples data/examples --prompts data/prompts \
    --encoder models/encoder --policy models/policy
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder

from isodense.pipeline import stage
from isodense.pipeline.errors import IsodenseError
from isodense.preflight.checks import examine
from isodense.preflight.inputs import read_inputs

VARIABLE = "ISODENSE_PREFLIGHT"


def main(argv: list[str]) -> str:
    """Report all findings and return the summary line.

    Raises
    ------
    IsodenseError
        If there is a problem, unless the variable says to warn only.
    """
    parser = stage.parser("preflight", __doc__)
    parser.prog = "src/isodense/preflight"
    parser.add_argument("--examples", type=Path, required=True, help="examples artifact to read")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--encoder", type=Path, required=True, help="encoder folder to read")
    parser.add_argument("--policy", type=Path, required=True, help="policy folder to read")
    args = parser.parse_args(argv)
    inputs = read_inputs(args.params, args.examples, args.prompts, args.encoder, args.policy)
    findings = list(examine(inputs))
    for finding in findings:
        hint = f"\n  -> {finding.hint}" if finding.hint else ""
        stage.log.warning("%s in stage %s: %s%s", finding.level, finding.stage, finding.text, hint)
    problems = [finding for finding in findings if finding.level == "problem"]
    if problems and os.environ.get(VARIABLE) != "warn":
        stages = ", ".join(dict.fromkeys(finding.stage for finding in problems))
        hint = f"correct it; to run only what comes before, {VARIABLE}=warn dvc repro density"
        raise IsodenseError(f"stage {stages} would fail, see above", hint)
    return f"{inputs.said()}: problems: {len(problems)}, warnings: {len(findings) - len(problems)}"


if __name__ == "__main__":
    stage.run("preflight", main)
