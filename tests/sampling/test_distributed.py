"""Samplers in two real processes under gloo, and in loaders that accelerate has prepared.

The processes of all tests start once: this module is also what they run.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from isodense.sampling.draw import DistributedWeightedSampler, draw

ROOT = Path(__file__).parents[2]
WEIGHTS = np.arange(1.0, 41.0)
SIZE, SEED, BATCH = 24, 9, 4
MODES = {"with": (True, 0.0), "without": (False, 0.25)}


# --- what the processes run -----------------------------------------------------------------------


def main(rank: int, world: int, folder: Path) -> None:
    """Draw as one of `world` processes; the first one writes what all of them drew."""
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    drawn = {name: own_share(rank, world, mode) for name, mode in MODES.items()}
    drawn |= {f"prepared {name}": prepared(world, mode) for name, mode in MODES.items()}
    everyone: list[dict | None] = [None] * world
    distributed.all_gather_object(everyone, drawn)
    if rank == 0:
        (folder / "drawn.json").write_text(json.dumps(everyone))
    distributed.destroy_process_group()


def own_share(rank, world, mode):
    """One whole epoch, half of the next, and the state there."""
    sampler = DistributedWeightedSampler(WEIGHTS, SIZE, world, rank, SEED, *mode)
    loader = DataLoader(list(range(40)), batch_size=BATCH, sampler=sampler)
    first = [batch.tolist() for batch in loader]
    half = list(itertools.islice(sampler, SIZE // world // 2))
    return {"first": first, "half": half, "state": sampler.state_dict()}


def prepared(world, mode):
    """Two epochs, and runs that resume after a step of the second and after the first."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    sampler = DistributedWeightedSampler(WEIGHTS, SIZE, 1, 0, SEED, *mode)
    loader = accelerator.prepare(DataLoader(list(range(40)), batch_size=BATCH, sampler=sampler))
    epochs = [[batch.tolist() for batch in loader] for _ in range(2)]
    resumed = {}
    for name, state, number_first in (
        ("resumed", {"epoch": 1, "drawn": BATCH * world}, False),
        ("numbered first", {"epoch": 1, "drawn": BATCH * world}, True),
        ("at an end", {"epoch": 0, "drawn": SIZE}, False),
    ):
        again = DistributedWeightedSampler(WEIGHTS, SIZE, 1, 0, SEED, *mode)
        loader = accelerator.prepare(DataLoader(list(range(40)), batch_size=BATCH, sampler=again))
        if number_first:
            loader.set_epoch(state["epoch"])
        again.load_state_dict(state)
        loader.set_epoch(again.epoch)
        resumed[name] = [[batch.tolist() for batch in loader] for _ in range(2)]
    return {"epochs": epochs, **resumed}


# --- what is checked ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return, for 1 and 2 processes, what each rank drew."""
    folders = {world: tmp_path_factory.mktemp(f"world-{world}") for world in (1, 2)}
    ranks = [start(rank, world, folders[world]) for world in folders for rank in range(world)]
    try:
        for process in ranks:
            errors = process.communicate(timeout=180)[1]
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return {world: json.loads((path / "drawn.json").read_text()) for world, path in folders.items()}


def start(rank, world, folder):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    environ = {**{name: str(value) for name, value in names.items()}, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sampling.test_distributed", str(rank), str(world), folder],
        cwd=ROOT,
        env={**os.environ, **environ, "GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        text=True,
    )


def stream(epoch, name):
    """The draws of one process in an epoch; every row of `WEIGHTS` can be drawn."""
    replacement, uniform = MODES[name]
    first = epoch * (SIZE if replacement else len(WEIGHTS))
    return draw(WEIGHTS, SIZE, SEED, first, replacement, uniform).tolist()


def in_turn(shares):
    """Put what the ranks hold together again: one item of each rank, then the next of each."""
    return list(itertools.chain(*zip(*shares, strict=True)))


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("world", [1, 2])
def test_ranks_draw_disjoint_parts_of_one_stream(drawn, world, name):
    ranks = [list(itertools.chain(*rank[name]["first"])) for rank in drawn[world]]
    assert [len(rank) for rank in ranks] == [SIZE // world] * world
    assert in_turn(ranks) == stream(0, name)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("world", [1, 2])
def test_one_process_continues_what_several_began(drawn, world, name):
    states = [rank[name]["state"] for rank in drawn[world]]
    assert states == [{"epoch": 1, "drawn": SIZE // 2}] * world
    alone = DistributedWeightedSampler(WEIGHTS, SIZE, 1, 0, SEED, *MODES[name])
    alone.load_state_dict(states[0])
    begun = in_turn([rank[name]["half"] for rank in drawn[world]])
    assert [*begun, *alone, *alone] == stream(1, name) + stream(2, name)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("world", [1, 2])
def test_accelerate_deals_the_stream_out_in_order(drawn, world, name):
    ranks = [rank[f"prepared {name}"]["epochs"] for rank in drawn[world]]
    for epoch in (0, 1):
        assert len(ranks[0][epoch]) == SIZE // BATCH // world
        batches = in_turn([rank[epoch] for rank in ranks])
        assert list(itertools.chain(*batches)) == stream(epoch, name)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("where", ["resumed", "numbered first", "at an end"])
def test_a_prepared_loader_resumes_after_a_step(drawn, world, name, where):
    ranks = [rank[f"prepared {name}"][where] for rank in drawn[world]]
    rest, following = (in_turn([rank[epoch] for rank in ranks]) for epoch in (0, 1))
    taken = 0 if where == "at an end" else BATCH * world
    assert list(itertools.chain(*rest)) == stream(1, name)[taken:]
    assert list(itertools.chain(*following)) == stream(2, name)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
