from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isodense.download.examples import UnusableRow
from isodense.download.sources import stack_exchange
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import raise_bad_row
from tests.hub import Hub

REVISION = "1" * 40
MATH, STACK = "math.stackexchange.com", "Stackoverflow.com"


def question(qid: int, scores: list[int], text: str = "<p>What?</p>") -> dict:
    """Return a row with all the columns of the published files; answers say "<qid>/<score>"."""
    return {
        "qid": qid,
        "question": text,
        "answers": [
            {
                "answer_id": 100 * qid + number,
                "author": "someone",
                "author_id": 1,
                "author_profile": "https://example.org/u/1",
                "pm_score": score,
                "selected": number == 0,
                "text": f"<p>{qid}/{score}</p>",
            }
            for number, score in enumerate(scores)
        ],
        "date": "2015/01/01",
        "metadata": [f"https://example.org/q/{qid}"],
    }


def serve(hub: Hub, folder: Path, shards: dict[str, list[dict]]) -> None:
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n")
    for name, rows in shards.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    hub.add(stack_exchange.REPO, folder, revision=REVISION)


def load(on_bad_row=raise_bad_row, **changes: object) -> list[dict]:
    values = {"revision": REVISION, "sites": [MATH], "pairs_per_question": 1, "limit": None}
    params = stack_exchange.StackExchangeParams(**(values | changes))
    return list(stack_exchange.load(params, on_bad_row))


def answers(pairs: list[dict]) -> list[tuple[str, str]]:
    return [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]


def test_pairs_the_best_answer_with_worse_ones_widest_margin_first(hub: Hub, tmp_path: Path):
    shard = [question(1, [3, 7, 0, 5]), question(2, [1, 2])]
    serve(hub, tmp_path / "repo", {f"{MATH}/train-00000-of-00001.parquet": shard})
    assert answers(load()) == [("1/7", "1/0"), ("2/2", "2/1")]
    two = [("1/7", "1/0"), ("1/7", "1/3"), ("2/2", "2/1")]
    assert answers(load(pairs_per_question=2)) == two
    assert answers(load(pairs_per_question=9))[2] == ("1/7", "1/5")
    assert load()[0]["prompt"] == [{"role": "user", "content": "What?"}]


def test_the_pairs_do_not_depend_on_the_order_of_the_answers():
    scores = [4, 4, 1, 1, -1]
    row = question(1, scores)
    for number, answer in enumerate(row["answers"]):
        answer["text"] = f"answer {number}"
    backwards = {**row, "answers": row["answers"][::-1]}
    assert stack_exchange.pairs_of(row) == stack_exchange.pairs_of(backwards)
    expected = [("answer 0", f"answer {n}") for n in (4, 2, 3)]  # answer 1 ties with the best
    assert answers(stack_exchange.pairs_of(row)) == expected


def test_reads_sites_in_order_and_stops_at_the_limit_without_fetching_more(
    hub: Hub, tmp_path: Path
):
    shards = {
        f"{STACK}/train-00000-of-00002.parquet": [question(1, [1, 2]), question(2, [1, 2])],
        f"{STACK}/train-00001-of-00002.parquet": [question(3, [1, 2])],
        f"{MATH}/train-00000-of-00001.parquet": [question(4, [1, 2])],
    }
    serve(hub, tmp_path / "repo", shards)
    assert answers(load(sites=[STACK, MATH], limit=2)) == [("1/2", "1/1"), ("2/2", "2/1")]
    assert hub.bodies(".parquet") == 1
    assert len(load(sites=[STACK, MATH])) == 4
    assert hub.bodies(".parquet") == 3


def test_questions_without_a_preference_are_unusable(hub: Hub, tmp_path: Path):
    rows = [question(1, [2, 2]), question(2, [3]), question(3, [1, 2], "<p><img src='x'></p>")]
    rows.append(question(4, [1, 2]))
    rows[1]["answers"].append({**rows[0]["answers"][0], "text": "<img>", "pm_score": 9})
    serve(hub, tmp_path / "repo", {f"{MATH}/train-00000-of-00001.parquet": rows})
    errors: list[DataError] = []
    assert answers(load(errors.append)) == [("4/2", "4/1")]
    assert [type(error) for error in errors] == [UnusableRow] * 3


def test_an_unknown_site_is_an_error_that_lists_sites(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path / "repo", {f"{STACK}/train-00000-of-00001.parquet": [question(1, [1, 2])]})
    with pytest.raises(DataError, match=r"stackoverflow\.com[\s\S]*data holds Stackoverflow\.com"):
        load(sites=["stackoverflow.com"])


def test_a_changed_schema_is_an_error(hub: Hub, tmp_path: Path):
    rows = [{"qid": 1, "question": "q", "replies": ["a"]}]
    serve(hub, tmp_path / "repo", {f"{MATH}/train-00000-of-00001.parquet": rows})
    with pytest.raises(DataError, match=r"00001\.parquet:1: not a question .*'answers'"):
        load()


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a\n  b &amp; <b>c</b></p>\n\n<p>d</p>\n", "a b & c\n\nd"),
        ("<pre><code>if x:\n    y &lt; 1\n</code></pre>", "if x:\n    y < 1"),
        (
            "<p>Use <code>a  b</code>.<br>Then:</p><pre>  k\n\n  l</pre>",
            "Use a b.\nThen:\n\n  k\n\n  l",
        ),
        ("<ul>\n<li>one</li>\n<li><p>two</p></li>\n</ul><p>end</p>", "- one\n- two\n\nend"),
        ("<blockquote><p>q</p></blockquote>a<p></p>", "q\n\na"),
        ("plain &#955; text", "plain λ text"),
        ("<p>broken <b>tag", "broken tag"),
        ("", ""),
    ],
)
def test_plain_text(html: str, text: str):
    assert stack_exchange.plain_text(html) == text
