"""Executors: the same results in this process and in several, errors that arrive, clean ends."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from isodense.pipeline.errors import DataError, IsodenseError, TextError
from isodense.pipeline.executor import compute, device_of_workers, workers
from isodense.pipeline.tasks import Job, Task

ROOT = Path(__file__).parents[2]


class Adding:
    """What adds a base to numbers; counts what it has been asked."""

    def __init__(self, base, folder=None):
        self.base, self.asked = base, 0
        assert folder is None or (folder / "there").read_text() == "yes"

    def __call__(self, number, *arrays):
        self.asked += 1
        if number == 13:
            raise TextError("no vector", 5)
        if number == 66:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.base + number + sum(float(array.sum()) for array in arrays), os.getpid()


def results(tasks, job=None):
    with workers(job or Job(Adding, settings={"base": 100})) as found:
        return [(task.name, *result) for task, result in compute(found, tasks, 10, "number")]


def numbers(*values, **arrays):
    return (Task(f"number {value}", 1, (value,), arrays) for value in values)


def test_here_results_come_in_order_and_nothing_is_made_without_tasks():
    made = results(numbers(1, 2, 3))
    assert [(name, value) for name, value, _ in made] == [
        ("number 1", 101),
        ("number 2", 102),
        ("number 3", 103),
    ]
    assert {pid for *_, pid in made} == {os.getpid()}
    assert results(numbers(), Job(None)) == []


def test_processes_give_the_same_and_share_arrays_and_folders(tmp_path, monkeypatch):
    (tmp_path / "there").write_text("yes")
    job = Job(Adding, {"folder": tmp_path}, {"base": 100})
    array = np.ones((2, 3), dtype=np.float32)
    alone = results(numbers(*range(10), rows=array), job)
    monkeypatch.setenv("ISODENSE_WORKERS", "2")
    both = results(numbers(*range(10), rows=array), job)
    assert sorted(row[:2] for row in both) == sorted(row[:2] for row in alone)
    pids = {pid for *_, pid in both}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_tasks_are_taken_as_workers_become_free(monkeypatch):
    monkeypatch.setenv("ISODENSE_WORKERS", "2")
    taken = []

    def tasks():
        for number in range(12):
            taken.append(number)
            yield Task(str(number), 1, (number,))

    with workers(Job(Adding, settings={"base": 0})) as found:
        next(found.results(tasks()))
        assert len(taken) <= 6


def test_errors_of_tasks_arrive_whole(monkeypatch):
    for count in ("1", "2"):
        monkeypatch.setenv("ISODENSE_WORKERS", count)
        with pytest.raises(TextError, match="no vector, first 5") as caught:
            results(numbers(13))
        assert caught.value.row == 5
        assert "leave it out" in caught.value.hint


def test_a_killed_process_is_told_with_its_task(monkeypatch):
    monkeypatch.setenv("ISODENSE_WORKERS", "2")
    with pytest.raises(IsodenseError, match="that computed number 66") as caught:
        results(numbers(66))
    assert "fewer ISODENSE_WORKERS" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("ISODENSE_EXECUTOR", "slurm", "set it to local or ray"),
        ("ISODENSE_WORKERS", "0", "set it to a number from 1"),
        ("ISODENSE_WORKERS", "many", "set it to a number from 1"),
    ],
)
def test_a_wrong_environment_is_named(monkeypatch, name, value, remedy):
    monkeypatch.setenv(name, value)
    with pytest.raises(IsodenseError, match=f"{name} is {value!r}") as caught:
        results(numbers(1))
    assert caught.value.hint == remedy


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setenv("ISODENSE_EXECUTOR", "ray")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(IsodenseError, match="not installed") as caught:
        results(numbers(1))
    assert "isodense[ray]" in caught.value.hint


def test_the_device_of_local_workers_is_that_of_this_machine():
    assert device_of_workers("cpu") == "cpu"


def test_errors_keep_what_they_know_between_processes():
    for error in (DataError("bad row", "a.jsonl", 3, "mend it"), TextError("no vector", 7)):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


SLEEPING = """
from isodense.pipeline.executor import compute, workers
from isodense.pipeline.tasks import Job, Task
from tests.pipeline.test_executor import sleeping

if __name__ == "__main__":
    with workers(Job(sleeping)) as found:
        list(compute(found, (Task(str(n), 1, (n,)) for n in range(4)), 4, "number"))
"""


def sleeping():
    def work(number):
        sys.stdout.write(f"{os.getpid()}\n")
        sys.stdout.flush()
        time.sleep(60)

    return work


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_stage(tmp_path, how):
    (tmp_path / "driver.py").write_text(SLEEPING)
    environ = {**os.environ, "ISODENSE_WORKERS": "2", "CI": "1"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    stage = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with stage:
        pids = [json.loads(stage.stdout.readline()) for _ in range(2)]
        if how == signal.SIGINT:
            os.killpg(stage.pid, how)  # as a terminal does
        else:
            os.kill(stage.pid, how)
        assert stage.wait(20) != 0
        for _ in range(100):
            if not any(Path(f"/proc/{pid}").exists() for pid in pids):
                break
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
