"""A real Ray cluster of three nodes on loopback: nothing is lost, and no byte differs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from isodense.embeddings import build
from isodense.neighbors.blocks import Side, exact_search, search_blocks
from isodense.pipeline import cluster
from isodense.pipeline.cache import Entry
from tests import tiny
from tests.embeddings.test_build import PARAMS, content
from tests.neighbors.test_blocks import same
from tests.neighbors.test_exact import unit
from tests.ray_nodes import Nodes, script

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

PROMPTS = 3000
ROWS = 20_000
PREAMBLE = """
import logging, os, sys
from pathlib import Path
import numpy as np
from isodense.pipeline import cluster
from isodense.pipeline.executor import compute, workers
from isodense.pipeline.tasks import Job, Task
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
def results(job, tasks):
    with workers(job) as found:
        return {task.name: result for task, result in compute(found, tasks, 0, "task")}
"""
EMBED = f"""{PREAMBLE}
from isodense.embeddings import build
from tests.embeddings.test_build import PARAMS
build.PART = 8
params = PARAMS.model_copy(update={{"rows_per_shard": 64}})
build.embed(*map(Path, ("prompts", "encoder")), params, "cpu", Path("cache"), Path("out"))
"""
NEIGHBORS = f"""{PREAMBLE}
from isodense.neighbors.blocks import Side, exact_search, search_blocks
from isodense.pipeline.cache import Entry
X = np.load("X.npy")
sides = [Side("train", X, 9), Side("heldout", X[:100], 9)]
search_blocks(sides, lambda: exact_search(sides[0], None, "cpu", 7000), Entry(Path("blocks")), 512)
"""

ON_BOTH = """
free, seen = cluster.Cluster._free, set()
def both(self):  # no task goes out before both nodes have a worker
    seen.update(member.node for member in self._members)
    return free(self) if len(seen) > 1 else None
cluster.Cluster._free = both
"""


@pytest.fixture(scope="module")
def nodes():
    found = Nodes(2)
    yield found
    found.close()


def run(folder, text, nodes, **environ):
    driver = script(folder, text, nodes.environ(**environ))
    _, said = driver.communicate(timeout=240)
    return driver.returncode, said


@pytest.fixture
def inputs(tmp_path):
    tiny.encoder(tmp_path / "encoder")
    tiny.prompts(tmp_path / "prompts", PROMPTS)
    return tmp_path


def embedded_here(folder):
    params = PARAMS.model_copy(update={"rows_per_shard": 64})
    where = folder / "prompts", folder / "encoder"
    build.embed(*where, params, "cpu", folder / "other", folder / "alone")
    return content(folder / "alone")


def finished(folder, pattern):
    return len(list(folder.glob(pattern)))


def until(condition, driver, seconds=120):
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)
    raise TimeoutError


def test_nodes_killed_during_embeddings_and_neighbours_change_no_byte(nodes, inputs):
    alone = embedded_here(inputs)
    driver = script(inputs, EMBED.replace(PREAMBLE, PREAMBLE + ON_BOTH), nodes.environ())
    until(lambda: finished(inputs, "cache/embeddings/*/rows.npy") > 3, driver)
    nodes.kill(3)
    nodes.start(5)  # another one joins, late
    _, said = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    assert "was lost on node 127.0.0.3, and is computed again" in said
    assert content(inputs / "out") == alone

    X = unit(ROWS, dim=64)
    np.save(inputs / "X.npy", X)
    driver = script(inputs, NEIGHBORS.replace(PREAMBLE, PREAMBLE + ON_BOTH), nodes.environ())
    until(lambda: finished(inputs, "blocks/*.safetensors") > 3, driver)
    nodes.kill(4)
    nodes.start(6)
    _, said = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    assert "was lost on node 127.0.0.4, and is computed again" in said
    sides = [Side("train", X, 9), Side("heldout", X[:100], 9)]
    here = search_blocks(
        sides, lambda: exact_search(sides[0], None, "cpu"), Entry(inputs / "here"), 512
    )
    there = search_blocks(sides, lambda: pytest.fail("all is there"), Entry(inputs / "blocks"), 512)
    assert same(there, here)


def test_a_driver_that_is_killed_is_resumed_by_one_without_a_cluster(nodes, inputs):
    alone = embedded_here(inputs)
    driver = script(inputs, EMBED, nodes.environ())
    until(lambda: finished(inputs, "cache/embeddings/*/counts.json") > 5, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    kept = {path: path.stat().st_mtime_ns for path in inputs.glob("cache/embeddings/*/counts.json")}
    assert 5 < len(kept) < PROMPTS // 64
    code, said = run(inputs, EMBED, nodes, ISODENSE_EXECUTOR="local")
    assert code == 0, said
    assert all(path.stat().st_mtime_ns == made for path, made in kept.items())
    assert content(inputs / "out") == alone


def test_ctrl_c_frees_the_workers_and_keeps_what_was_finished(nodes, inputs):
    small = EMBED.replace("build.PART = 8", "build.PART = 1")  # not over before the signal comes
    driver = script(inputs, small, nodes.environ())
    until(lambda: finished(inputs, "cache/embeddings/*/counts.json") > 3, driver)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode != 0, said
    assert "KeyboardInterrupt" in said
    assert finished(inputs, "cache/embeddings/*/counts.json") > 3
    assert not list(inputs.rglob("*.tmp"))
    text = f"""{PREAMBLE}
import time
ray = cluster.connected()
for _ in range(200):
    if ray.available_resources().get("CPU") == 2:
        sys.exit(0)
    time.sleep(0.1)
sys.exit(3)
"""
    assert run(inputs, text, nodes)[0] == 0


def test_a_driver_hears_ctrl_c_where_the_tests_run_in_the_background(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `make slow &`
    try:
        text = "import signal; signal.raise_signal(signal.SIGINT)"
        driver = script(tmp_path, text, dict(os.environ))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "KeyboardInterrupt" in driver.communicate(timeout=20)[1]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_until_ray_has_connected_unless_it_is_repeated(monkeypatch, times):
    reached = []

    def init(**_settings):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
            reached.append("a moment at which Ray may not be interrupted")

    fake = SimpleNamespace(is_initialized=lambda: False, init=init, cluster_resources=dict)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            cluster.connected()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(reached) == 1


def test_workers_that_see_no_file_of_the_stage_get_copies(nodes, inputs):
    text = f"""{PREAMBLE}
from isodense.embeddings.build import Embedding
from tests.embeddings.test_build import PARAMS
job = Job(Embedding, {{"encoder": Path("encoder")}}, {{"params": PARAMS, "device": "cpu"}})
def results(shared):
    found = cluster.Cluster(job, shared)
    texts = ["Name three colours.", "How do I boil an egg?"]
    ((_, (rows, _)),) = found.results([Task("two texts", 2, (texts, 0, False))])
    found.close()
    return rows
copied, shared = results(False), results(True)
assert (copied == shared).all() and copied.shape == (2, 32)
"""
    code, said = run(inputs, text, nodes)
    assert code == 0, said


def test_a_task_whose_worker_dies_is_computed_again_and_named(nodes, tmp_path):
    text = f"""{PREAMBLE}
def ready(marks):
    def work(number):
        if number == 7 and len(list(marks.glob("*"))) < 2:
            (marks / str(os.getpid())).touch()
            os.kill(os.getpid(), 9)
        return number
    return work
Path("marks").mkdir()
tasks = [Task(f"number {{n}}", 1, (n,)) for n in range(20)]
made = results(Job(ready, settings={{"marks": Path("marks").resolve()}}), tasks)
assert made == {{f"number {{n}}": n for n in range(20)}}, made
"""
    code, said = run(tmp_path, text, nodes)
    assert code == 0, said
    assert "number 7 was lost on node 127.0.0." in said
    assert said.count(" was lost on node 127.0.0.") >= 2  # or the task that waited behind it


def test_a_task_that_always_kills_its_worker_ends_the_stage(nodes, tmp_path):
    text = f"""{PREAMBLE}
cluster.LOSSES = 3
def ready():
    def work(number):
        if number == 7:
            os.kill(os.getpid(), 9)
        return number
    return work
from isodense.pipeline.errors import IsodenseError
try:
    results(Job(ready), [Task(f"number {{n}}", 1, (n,)) for n in range(9)])
except IsodenseError as error:
    print("ENDED", error, file=sys.stderr)
"""
    code, said = run(tmp_path, text, nodes)
    assert code == 0, said
    assert "ENDED number 7 was lost 3 times, last on node 127.0.0." in said
    assert "does a worker have the memory?" in said


STARTING = f"""{PREAMBLE}
import time
cluster.STARTS = 2
def ready(marks):
    (marks / str(os.getpid())).touch()
    START
    return lambda number: number
from isodense.pipeline.errors import IsodenseError
job = Job(ready, settings={{"marks": Path.cwd()}})
try:
    results(job, [Task("one", 1, (1,))])
except IsodenseError as error:
    print("ENDED", error, error.hint, file=sys.stderr)
"""


def test_workers_that_die_before_they_are_ready_end_the_stage(nodes, tmp_path):
    code, said = run(tmp_path, STARTING.replace("START\n", "os.kill(os.getpid(), 9)\n"), nodes)
    assert code == 0, said
    assert said.count("a worker did not start: ") == 2
    assert "ENDED 2 workers in succession died before they were ready" in said
    assert "does a node have the memory?" in said


def test_workers_whose_nodes_are_lost_before_they_are_ready_are_not_counted(tmp_path):
    nodes = Nodes(1)
    try:
        wait = "time.sleep(0 if len(list(marks.glob('[0-9]*'))) > 2 else 60)"
        driver = script(tmp_path, STARTING.replace("START\n", f"{wait}\n"), nodes.environ())
        for lost in (1, 2):
            until(lambda lost=lost: finished(tmp_path, "[0-9]*") == lost, driver)
            nodes.kill(2 + lost)
            nodes.start(3 + lost)
        _, said = driver.communicate(timeout=120)
        assert driver.returncode == 0, said
        assert said.count("a worker did not start: ") == 2
        assert "ENDED" not in said
    finally:
        nodes.close()


def test_errors_of_workers_arrive_with_task_and_node(nodes, tmp_path):
    text = f"""{PREAMBLE}
from isodense.pipeline.errors import TextError
def ready():
    def work(number):
        raise TextError("no vector", 5) if number == 3 else ValueError("a bug")
    return work
for number in (3, 4):
    try:
        results(Job(ready), [Task(f"number {{number}}", 1, (number,))])
    except TextError as error:
        print("TEXT", error.row, file=sys.stderr)
    except Exception as error:
        print("OTHER", type(error).__name__, "a bug" in str(error), file=sys.stderr)
"""
    code, said = run(tmp_path, text, nodes)
    assert code == 0, said
    assert "number 3 failed on node 127.0.0." in said
    assert "TEXT 5" in said
    assert "OTHER RayTaskError(ValueError) True" in said


def test_no_cluster_at_the_address_is_told(nodes, tmp_path):
    text = f"""{PREAMBLE}
from isodense.pipeline.errors import IsodenseError
try:
    results(Job(print), [Task("one", 1, ())])
except IsodenseError as error:
    print("ENDED", error, file=sys.stderr)
"""
    code, said = run(tmp_path, text, nodes, RAY_ADDRESS="127.0.0.2:1999")
    assert "ENDED no Ray cluster answers at 127.0.0.2:1999" in said, said
    assert "ray start --head" in said
    assert code == 0


def test_a_head_that_is_lost_ends_the_stage_and_another_run_goes_on(inputs):
    alone = embedded_here(inputs)
    nodes = Nodes(1)
    try:
        driver = script(inputs, EMBED, nodes.environ())
        until(lambda: finished(inputs, "cache/embeddings/*/counts.json") > 2, driver)
        nodes.kill(2)
        try:
            driver.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            pytest.fail("the stage waits for a head that is gone")
        assert driver.returncode != 0
    finally:
        nodes.close()
    kept = finished(inputs, "cache/embeddings/*/counts.json")
    assert 2 < kept < PROMPTS // 64
    code, said = run(inputs, EMBED, nodes, ISODENSE_EXECUTOR="local")
    assert code == 0, said
    assert content(inputs / "out") == alone
