r"""Say what later stages cannot work with, before `embeddings` starts.

Reads prompts, tokenizer and params, and where they fit, tries the policy on two short prompts as
the later stages will: features, completions, one training step. A problem stops the pipeline;
ISODENSE_PREFLIGHT=warn only reports it, for runs that end before the stage that has the problem:

ISODENSE_PREFLIGHT=warn dvc repro density

Example
-------
python src/isodense/preflight --examples data/examples --prompts data/prompts \
    --encoder models/encoder --policy models/policy
"""

import os
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder

from isodense.pipeline import params, stage
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.runtime import BaseParams, resolve_device
from isodense.preflight.checks import Finding, examine
from isodense.preflight.inputs import Inputs, read_inputs

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
    base = params.load(args.params, "base", BaseParams)
    inputs = read_inputs(args.params, args.examples, args.prompts, args.encoder, args.policy)
    findings = list(examine(inputs))
    if not any(finding.level == "problem" for finding in findings) and inputs.has_models:
        findings += _tried(inputs, resolve_device(base.device))
    for finding in findings:
        hint = f"\n  -> {finding.hint}" if finding.hint else ""
        stage.log.warning("%s in stage %s: %s%s", finding.level, finding.stage, finding.text, hint)
    problems = [finding for finding in findings if finding.level == "problem"]
    if problems and os.environ.get(VARIABLE) != "warn":
        stages = ", ".join(dict.fromkeys(finding.stage for finding in problems))
        hint = f"correct it; to run only what comes before, {VARIABLE}=warn dvc repro density"
        raise IsodenseError(f"stage {stages} would fail, see above", hint)
    return f"{inputs.said()}: problems: {len(problems)}, warnings: {len(findings) - len(problems)}"


def _tried(inputs: Inputs, device: str) -> list[Finding]:
    """Return what trials of the policy find, and say how long they took."""
    from isodense.preflight.trial import try_policy

    launched = bool(os.environ.get("ISODENSE_LAUNCH")) or "WORLD_SIZE" in os.environ
    start = time.perf_counter()
    findings = list(try_policy(inputs, device, stage.cache(), launched))
    seconds = time.perf_counter() - start
    stage.log.info("the policy was tried as later stages will use it (%.1f s)", seconds)
    return findings


if __name__ == "__main__":
    stage.run("preflight", main)
