"""What the page says of the evaluation: headline numbers, all measures, and kinds of prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Card = tuple[str, str, str]

POLICIES = ("base", "trained")
PASS_AT = re.compile(r"pass_at_\d+")
OVER = "labels alike"
MEASURED = {  # what is averaged in several ways: name on the page, format
    "reward": ("reward", ".2f"),
    "pass_at_1": ("pass@1", ".1%"),
    "answer_probability": ("answer probability", ".1%"),
}
AVERAGES = {  # of each of them: what the mean is over
    "": "all prompts alike",
    "_over_labels": "all labels alike",
    "_rarer_half": "the half of the labels with fewest training prompts",
    "_rarest_quarter": "the quarter with fewest",
    "_commonest_quarter": "the quarter with most",
    "_worst_quarter": "the quarter where the policy itself is lowest",
    "_evened": "prompts weighted inversely to density, as training weighs them",
}
MEASURES = (  # of both policies: metric, name on the page, format, what it says
    ("reward", "reward", ".2f", "what training raises; mean over the prompts"),
    ("answer_probability", "answer probability", ".1%", "of the ground truth, word for word"),
    ("frac_reward_zero_std", "frac_reward_zero_std", ".0%", "groups whose rewards are all equal"),
    ("kl", "KL to the base policy", ".2f", "nats per completion, estimated"),
    ("kl_per_token", "KL per token", ".3f", "nats"),
    ("vendi", "Vendi score", ".1f", "effective number of different answers, one per prompt"),
    ("vendi_within", "Vendi score within prompts", ".2f", "the same among answers to one prompt"),
    ("self_bleu", "self-BLEU", ".1f", "overlap of answers to different prompts; 100: all alike"),
    ("distinct_1", "distinct words", ".0%", "different words among all words"),
    ("distinct_2", "distinct pairs of words", ".0%", "different neighbours among all neighbours"),
    ("repetition", "repetition", ".0%", "runs of four words that the completion had before"),
    ("em_dash", "em-dash", ".1%", "completions that hold one"),
    ("not_just_but", "“not just … but”", ".1%", "completions that hold it, or only, or merely"),
    ("tokens", "tokens", ".1f", "mean length of a completion"),
    ("clipped_ratio", "clipped_ratio", ".0%", "completions cut at the limit"),
)


def evaluation_cards(found: dict[str, Any] | None) -> Iterator[Card]:
    """Yield what is measured on held-out prompts: over labels where known, then over prompts."""
    plain = [(f"held-out {name}", key, form) for key, (name, form) in MEASURED.items()]
    even = [(f"{name}, {OVER}", f"{key}_over_labels", form) for name, key, form in plain]
    for name, key, form in (*even, *plain) if found else ():
        values = [found[policy].get(key) for policy in POLICIES] if found else []
        if found is None or None in values:
            continue
        mean, low, high = (found["gain"].get(f"{key}{end}") for end in ("", "_low", "_high"))
        note = "before → after training"
        if None not in (mean, low, high):
            note += f"; gain {mean:+{form}}, 95% interval {low:+{form}} to {high:+{form}}"
        note += _counted(found, key)
        note += _clean_gain(found, key, form)
        yield name, f"{values[0]:{form}} → {values[1]:{form}}", note


def _counted(found: dict[str, Any], key: str) -> str:
    """Return what a mean is over."""
    unit = "labels" if key.endswith("_over_labels") else "prompts"
    return f", on {found[unit]} {unit}" if unit in found else ""


def _clean_gain(found: dict[str, Any], key: str, form: str) -> str:
    """Return the gain on prompts without near-duplicates in training, where it is known."""
    clean = found.get("clean", {})
    mean = clean.get("gain", {}).get(key)
    if mean is None:
        return ""
    return f"; {mean:+{form}} on the {clean['prompts']} without near-duplicates in training"


def measures(found: dict[str, Any]) -> list[dict[str, str]]:
    """Return the rows of base against trained; what was not measured is a dash."""
    even = [
        (f"{key}_over_labels", f"{name}, {OVER}", form, "mean over the labels, each as much as any")
        for key, (name, form) in MEASURED.items()
    ]
    solved = [
        (f"pass_at_{k}", f"pass@{k}", ".1%", f"chance that one of {k} completions is solved")
        for k in sorted(int(name[8:]) for name in found["trained"] if PASS_AT.fullmatch(name))
    ]
    return [
        {
            "name": name,
            "note": note,
            **{
                policy: "–" if (value := found[policy].get(key)) is None else format(value, form)
                for policy in POLICIES
            },
        }
        for key, name, form, note in (*even, MEASURES[0], *solved, *MEASURES[1:])
        if key in found["trained"]
    ]


def kinds(found: dict[str, Any]) -> list[dict[str, str]]:
    """Return the averages that do not depend on how many prompts of a kind are held out."""
    known = [end for end in AVERAGES if end and f"reward{end}" in found["gain"]]
    return [
        {
            "name": name,
            "over": AVERAGES[end],
            **{policy: _number(found[policy].get(f"{key}{end}"), form) for policy in POLICIES},
            "gain": _number(found["gain"].get(f"{key}{end}"), f"+{form}"),
            "interval": _interval(found["gain"], f"{key}{end}", f"+{form}"),
        }
        for key, (name, form) in MEASURED.items()
        for end in ([*known, ""] if known else [])
        if f"{key}{end}" in found["gain"]
    ]


def _interval(found: dict[str, Any], key: str, form: str) -> str:
    low, high = (found.get(f"{key}{end}") for end in ("_low", "_high"))
    return "–" if None in (low, high) else f"{low:{form}} to {high:{form}}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
