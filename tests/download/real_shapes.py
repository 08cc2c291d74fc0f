"""Rows as data sets publish them, and the example that each becomes.

The one place of the table in ``docs/shapes.md``, which ``python -m tests.download.real_shapes``
writes. Texts are made up; names and types of the columns are those of the data sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isodense.download.shapes import shape_of
from isodense.download.shapes.unknown import kind_of

PAGE = Path(__file__).parents[2] / "docs/shapes.md"
BEGIN, END = "<!-- table: made by tests/download/real_shapes.py -->", "<!-- end of table -->"
Q, A, B = "What is 2+2?", "It is 4.", "It is 5."

Row = dict[str, Any]


def said(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def shared(role: str, value: str) -> Row:
    return {"from": role, "value": value}


def part(text: str | None, image: str | None = None) -> Row:
    kind = "image" if image else "text"
    return {"type": kind, "text": text, "image": image, "mimeType": None}


USER, GOOD, BAD = said("user", Q), said("assistant", A), said("assistant", B)
SYSTEM = said("system", "Be brief.")
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
HH = f"\n\nHuman: {Q}\n\nAssistant:"
CALL = {"type": "function", "function": {"name": "calc", "arguments": {"sum": "2+2"}}}
TOOL = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object"}}}
RAW = {"name": "calc", "arguments": '{"sum": "2+2"}'}
RAW_CALL = {"id": "c1", "type": "function", "function": RAW}


@dataclass(frozen=True)
class Real:
    """A published shape: data set, a row, the map it needs, the shape's name and the example."""

    name: str
    row: Row
    shape: str
    example: Row | str  # the reason, if there is none
    columns: dict[str, str | None] = field(default_factory=dict)


REAL = (
    # prompts to verify
    Real(
        "openai/gsm8k",
        {"question": Q, "answer": "2+2 = <<2+2=4>>4\n#### 4"},
        "question",
        {"prompt": [USER], "answer": "2+2 = <<2+2=4>>4\n#### 4"},
    ),
    Real(
        "openai/gsm8k, renamed for accuracy_reward",
        {"question": Q, "answer": "#### 4"},
        "question",
        {"prompt": [USER], "solution": "#### 4"},
        {"solution": "answer"},
    ),
    Real(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        {
            "data_source": "math_dapo",
            "prompt": [USER],
            "ability": "MATH",
            "reward_model": {"ground_truth": "4", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b"},
        },
        "verl",
        {
            "prompt": [USER],
            "data_source": "math_dapo",
            "ability": "MATH",
            "reward_model": {"ground_truth": "4", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b"},
        },
    ),
    Real(
        "verl's gsm8k, ground truth lifted",
        {
            "data_source": "openai/gsm8k",
            "prompt": [USER],
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"split": "train", "index": 0},
        },
        "verl",
        {
            "prompt": [USER],
            "label": "openai/gsm8k",
            "data_source": "openai/gsm8k",
            "ground_truth": "4",
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"split": "train", "index": 0},
        },
        {"ground_truth": "reward_model.ground_truth", "label": "data_source"},
    ),
    Real(
        "trl-lib/DeepMath-103K",
        {"prompt": [USER], "solution": "$4$"},
        "prompt-only",
        {"prompt": [USER], "solution": "$4$"},
    ),
    Real(
        "allenai/Dolci-Instruct-RL",
        {"prompt": Q, "ground_truth": ["4"], "dataset": ["math"], "passrate": 0.25},
        "prompt-only",
        {"prompt": [USER], "ground_truth": ["4"], "dataset": ["math"], "passrate": 0.25},
    ),
    Real(
        "SynthLabsAI/Big-Math-RL-Verified",
        {
            "problem": Q,
            "answer": "4",
            "source": "gsm8k",
            "domain": ["Mathematics -> Arithmetic"],
            "llama8b_solve_rate": 0.9,
        },
        "problem",
        {
            "prompt": [USER],
            "label": "Mathematics -> Arithmetic",
            "answer": "4",
            "source_": "gsm8k",
            "domain": ["Mathematics -> Arithmetic"],
            "llama8b_solve_rate": 0.9,
        },
        {"label": "domain"},
    ),
    Real(
        "MATH (hendrycks)",
        {"problem": Q, "level": "Level 1", "type": "Algebra", "solution": r"\boxed{4}"},
        "problem",
        {
            "prompt": [USER],
            "label": "Algebra",
            "level": "Level 1",
            "type": "Algebra",
            "solution": r"\boxed{4}",
        },
        {"label": "type"},
    ),
    Real(
        "open-r1/OpenR1-Math-220k",
        {
            "problem": Q,
            "solution": "…",
            "answer": "4",
            "messages": [USER, GOOD],
            "correctness_math_verify": [True, False],
        },
        "problem",
        {
            "prompt": [USER],
            "solution": "…",
            "answer": "4",
            "correctness_math_verify": [True, False],
        },
        {"messages": None},
    ),
    Real(
        "AIME 2024, capitals",
        {"ID": "2024-I-1", "Problem": Q, "Answer": 4},
        "prompt-only",
        {"prompt": [USER], "ID": "2024-I-1", "answer": 4},
        {"prompt": "Problem", "answer": "Answer"},
    ),
    Real(
        "allenai/tulu-3 RLVR mixture",
        {"messages": [USER], "ground_truth": "4", "dataset": "gsm8k"},
        "messages",
        {"prompt": [USER], "ground_truth": "4", "dataset": "gsm8k"},
    ),
    Real(
        "NVIDIA NeMo Gym, messages",
        {
            "responses_create_params": {
                "input": [USER],
                "instructions": "Be brief.",
                "tools": [{"type": "function", "name": "calc", "parameters": {"type": "object"}}],
                "parallel_tool_calls": False,
            },
            "expected_answer": "4",
        },
        "NeMo Gym",
        {
            "prompt": [SYSTEM, USER],
            "tools": [TOOL],
            "responses_create_params": {"parallel_tool_calls": False},
            "expected_answer": "4",
        },
    ),
    Real(
        "NVIDIA NeMo Gym, a string",
        {"responses_create_params": {"input": Q}, "uuid": "u"},
        "NeMo Gym",
        {"prompt": [USER], "uuid": "u"},
    ),
    # preferences
    Real(
        "Anthropic/hh-rlhf",
        {"chosen": f"{HH} {A}", "rejected": f"{HH} {B}"},
        "implicit preference",
        PAIR,
    ),
    Real(
        "hh-rlhf, equal answers",
        {"chosen": f"{HH} {A}", "rejected": f"{HH} {A}"},
        "implicit preference",
        "chosen and rejected are the same",
    ),
    Real("prompts of hh-rlhf", {"prompt": HH}, "prompt-only", {"prompt": [USER]}),
    Real(
        "Dahoas/full-hh-rlhf",
        {"prompt": HH, "response": f" {A}", "chosen": f" {A}", "rejected": f" {B}"},
        "preference",
        {
            "prompt": [USER],
            "chosen": [said("assistant", f" {A}")],
            "rejected": [said("assistant", f" {B}")],
            "response": f" {A}",
        },
    ),
    Real("TRL preference, strings", {"prompt": Q, "chosen": A, "rejected": B}, "preference", PAIR),
    Real("TRL preference, messages", PAIR, "preference", PAIR),
    Real(
        "TRL preference, implicit prompt",
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "implicit preference",
        PAIR,
    ),
    Real(
        "HuggingFaceH4/ultrafeedback_binarized",
        {
            "prompt": Q,
            "prompt_id": "9f",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 7.0,
        },
        "preference",
        {
            **PAIR,
            "prompt_id_": "9f",
            "messages": [USER, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 7.0,
        },
    ),
    Real(
        "argilla/distilabel-intel-orca-dpo-pairs",
        {"system": "Be brief.", "input": Q, "chosen": A, "rejected": B, "status": "unchanged"},
        "preference, input",
        {**PAIR, "prompt": [SYSTEM, USER], "status": "unchanged"},
    ),
    Real(
        "Intel/orca_dpo_pairs, no system message",
        {"system": "", "question": Q, "chosen": A, "rejected": B},
        "preference, question",
        PAIR,
    ),
    Real(
        "OpenAI preference fine-tuning",
        {
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        "OpenAI preference",
        {**PAIR, "input": {"parallel_tool_calls": True}},
    ),
    Real(
        "lmarena-ai/arena-human-preference-140k",
        {
            "model_a": "a",
            "model_b": "b",
            "winner": "model_b",
            "conversation_a": [said("user", [part(Q)]), said("assistant", [part(B)])],
            "conversation_b": [said("user", [part(Q)]), said("assistant", [part(A)])],
            "language": "en",
        },
        "arena votes",
        {**PAIR, "model_a": "a", "model_b": "b", "language": "en"},
    ),
    Real(
        "arena, a tie",
        {
            "winner": "tie",
            "conversation_a": [said("user", [part(Q)]), said("assistant", [part(B)])],
            "conversation_b": [said("user", [part(Q)]), said("assistant", [part(A)])],
        },
        "arena votes",
        "winner is 'tie': no answer was preferred",
    ),
    Real(
        "arena, an image",
        {
            "winner": "model_a",
            "conversation_a": [said("user", [part(Q), part(None, "i.png")]), GOOD],
            "conversation_b": [said("user", [part(Q), part(None, "i.png")]), BAD],
        },
        "arena votes",
        "conversation_a: message 1 has image parts: isodense embeds text only",
    ),
    Real(
        "TRL unpaired preference (KTO)",
        {"prompt": Q, "completion": A, "label": True},
        "unpaired preference",
        {"prompt": [USER], "completion": A, "label_": True},
    ),
    Real(
        "nvidia/HelpSteer2",
        {"prompt": Q, "response": A, "helpfulness": 4, "verbosity": 1},
        "prompt-only",
        {"prompt": [USER], "response": A, "helpfulness": 4, "verbosity": 1},
    ),
    Real(
        "a label that is the answer",
        {"prompt": Q, "chosen": A, "rejected": B, "label": ["4"]},
        "preference",
        {**PAIR, "ground_truth": ["4"]},
        {"ground_truth": "label"},
    ),
    # supervised data, of which the prompts are taken
    Real(
        "TRL prompt-completion",
        {"prompt": [USER], "completion": [GOOD]},
        "prompt-completion",
        {"prompt": [USER], "completion": [GOOD]},
    ),
    Real(
        "allenai/tulu-3-sft-mixture",
        {"id": "x", "messages": [SYSTEM, USER, GOOD], "source": "mixture"},
        "messages",
        {"prompt": [SYSTEM, USER], "completion": A, "id_": "x", "source_": "mixture"},
    ),
    Real(
        "tatsu-lab/alpaca",
        {"instruction": "Add.", "input": "2, 2", "output": "4", "text": "Below is …"},
        "instruction",
        {"prompt": [said("user", "Add.\n\n2, 2")], "output": "4", "text_": "Below is …"},
    ),
    Real(
        "ShareGPT",
        {"id": "a_0", "conversations": [shared("system", "Be brief."), shared("human", Q)]},
        "ShareGPT",
        {"prompt": [SYSTEM, USER], "id_": "a_0"},
    ),
    Real(
        "ShareGPT with tools (glaive)",
        {
            "conversations": [
                shared("human", Q),
                shared("function_call", '{"name": "calc", "arguments": {"sum": "2+2"}}'),
                shared("observation", "4"),
                shared("gpt", A),
            ],
            "tools": '[{"name": "calc", "parameters": {"type": "object"}}]',
        },
        "ShareGPT",
        {
            "prompt": [USER, said("assistant", None, tool_calls=[CALL]), said("tool", "4")],
            "completion": A,
            "tools": [TOOL],
        },
    ),
    Real(
        "lmsys/lmsys-chat-1m",
        {"conversation_id": "c", "model": "m", "conversation": [USER, GOOD], "turn": 1},
        "conversation",
        {"prompt": [USER], "completion": A, "conversation_id": "c", "model": "m", "turn": 1},
    ),
    Real(
        "microsoft/orca-math (query)",
        {"query": Q, "response": A, "type": "gsm"},
        "query",
        {"prompt": [USER], "response": A, "type": "gsm"},
    ),
    Real(
        "FLAN",
        {"inputs": Q, "targets": "4", "task": "sum"},
        "inputs",
        {"prompt": [USER], "targets": "4", "task": "sum"},
    ),
    Real(
        "OpenRLHF/prompt-collection",
        {"dataset": "d", "context_messages": [USER], "context": Q},
        "context_messages",
        {"prompt": [USER], "dataset": "d", "context": Q},
    ),
    Real(
        "OpenRLHF, input",
        {"input": Q, "label_answer": "4"},
        "input",
        {"prompt": [USER], "label_answer": "4"},
    ),
    Real(
        "timdettmers/openassistant-guanaco",
        {"text": f"### Human: {Q}### Assistant: {A}"},
        "text",
        {"prompt": [USER], "completion": A},
    ),
    Real("TRL language modelling", {"text": Q}, "text", {"prompt": [USER]}),
    # messages of other kinds
    Real(
        "OpenAI tool calls",
        {
            "prompt": [
                said("developer", "Be brief."),
                USER,
                said("assistant", None, tool_calls=[RAW_CALL]),
                said("tool", "4", tool_call_id="c1"),
            ],
            "tools": [TOOL],
        },
        "prompt-only",
        {
            "prompt": [
                said("developer", "Be brief."),
                USER,
                said("assistant", None, tool_calls=[{"id": "c1", **CALL}]),
                said("tool", "4", tool_call_id="c1"),
            ],
            "tools": [TOOL],
        },
    ),
    Real(
        "OpenAI, legacy function_call",
        {
            "messages": [
                USER,
                said("assistant", None, function_call=RAW),
                said("function", "4", name="calc"),
                GOOD,
            ]
        },
        "messages",
        {
            "prompt": [
                USER,
                said("assistant", None, tool_calls=[CALL]),
                said("tool", "4", name="calc"),
            ],
            "completion": A,
        },
    ),
    Real(
        "messages as JSON text",
        {"prompt": '[{"role": "user", "content": "What is 2+2?"}]', "answer": "4"},
        "prompt-only",
        {"prompt": [USER], "answer": "4"},
    ),
    Real(
        "strings in ChatML",
        {
            "prompt": f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n"
            "<|im_start|>assistant\n",
            "chosen": f"{A}<|im_end|>",
            "rejected": f"{B}<|im_end|>",
        },
        "preference",
        {**PAIR, "prompt": [SYSTEM, USER]},
    ),
    Real(
        "strings of Llama 2",
        {"text": f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{Q} [/INST] {A} </s>"},
        "text",
        {"prompt": [SYSTEM, USER], "completion": A},
    ),
)


def cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def outcome(real: Real) -> str:
    """Return what comes out of a row, for the table."""
    found = shape_of(real.row, real.columns, "row").example(real.row)
    if isinstance(found, str):
        return f"unusable: {found}"
    parts = [f"prompt ({', '.join(message['role'] for message in found['prompt'])})"]
    parts += ["chosen, rejected"] if "chosen" in found else []
    names = [name for name in found if name not in ("prompt", "chosen", "rejected", "label")]
    parts += [f"label {found['label']}"] if "label" in found else []
    return ", ".join([*parts, *(f"`{name}`" for name in names)])


def table() -> str:
    """Return the table of the page."""
    lines = ["| data | columns | map | shape | what comes out |", "| --- | --- | --- | --- | --- |"]
    for real in REAL:
        columns = ", ".join(f"`{name}` ({kind_of(value)})" for name, value in real.row.items())
        given = ", ".join(f"{name}: {column or 'null'}" for name, column in real.columns.items())
        cells = (real.name, columns, f"`{{{given}}}`" if given else "", real.shape, outcome(real))
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines)


def page() -> str:
    """Return the text of the page with the table as it is now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
