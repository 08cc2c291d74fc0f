"""float64 from end to end: what computes in it, and equal bytes on other code paths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from isodense.embeddings.double import Double, computing_in
from isodense.embeddings.encoder import load_encoder
from tests import tiny
from tests.architectures import checkpoint

PATHS = {  # of other processors, as far as libraries can be told to take them
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "OPENBLAS_CORETYPE": "NEHALEM",
}
LEVELS = ("X86_V3", "X86_V4", "AVX512_SKX", "AVX512_ICL", "AVX512_SPR")  # of numpy, by version
RUN = """
import hashlib, json, sys
import numpy as np
from isodense.density.estimate import estimate, heldout_density
from isodense.density.params import DensityParams
from isodense.embeddings.encoder import load_encoder
from isodense.neighbors.build import knn_graph
from isodense.neighbors.exact import nearest
from isodense.pipeline import params
from tests import tiny
from tests.project import PARAMS

folder, precision, space, device = sys.argv[1:]
encoder = load_encoder(folder, max_tokens=64, precision=precision, space=space, device=device)
X = encoder.encode(tiny.texts(240))
graph = knn_graph(X[:200], 30)
near = nearest(X[200:], X[:200], 30)
section = params.load(PARAMS, "density", DensityParams).model_copy(update={"k": 30})
found = estimate(graph, section)
kept = {"vectors": X, "indices": graph.indices, "distances": graph.distances}
kept |= {"clusters": found.clusters, "exponent": np.float64(found.exponent)}
for name, values in (("weights", found.weights), ("density", found.density),
                     ("heldout", heldout_density(found, near, section))):
    kept[name] = values.astype(np.float32)
print(json.dumps({name: hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
                  for name, values in kept.items()}))
"""


def disabled() -> str:
    """Return the instruction sets that numpy may be told to leave alone here."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    known = [name for name in LEVELS if name in __cpu_dispatch__]
    return " ".join(name for name in known if __cpu_features__.get(name))


def digests(
    folder: Path, precision: str, space: str = "hidden", device: str = "cpu", emulated=(), **environ
) -> dict[str, str]:
    """Return the hashes of what a process of its own computes up to the weights."""
    command = [*emulated, sys.executable, "-c", RUN, str(folder), precision, space, device]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "0" if device == "cuda" else ""} | environ
    done = subprocess.run(
        command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.encoder(root / "encoder")
    tiny.policy(root / "policy")
    return root


def test_float32_is_float64_inside_only():
    with Double():
        angles = torch.arange(4, dtype=torch.float32) / 4
        assert angles.dtype == torch.ones(2).to(torch.float32).dtype == torch.float64
        assert torch.ones(2, dtype=torch.int64).float().dtype == torch.float64
        assert torch.ones(2, dtype=torch.float16).dtype == torch.float16
    assert torch.arange(4, dtype=torch.float32).dtype == torch.float32
    with computing_in("float32"):
        assert torch.ones(2, dtype=torch.int64).float().dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "space"),
    [("encoder", "hidden"), *(("policy", one) for one in ("hidden", "logits", "logits_projected"))],
)
def test_vectors_are_those_of_float32_to_its_precision(built, name, space):
    texts = tiny.texts(30)
    whole, double = (
        load_encoder(built / name, max_tokens=64, precision=precision, space=space)
        for precision in ("float32", "float64")
    )
    assert double.precision == "float64"
    assert double.packed
    one, two = whole.encode(texts), double.encode(texts)
    assert two.dtype == np.float32
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert np.array_equal(two[7:9], double.encode(texts[7:9]))


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "jamba"])
def test_experts_are_computed_in_float64(tmp_path, kind):
    """For which torch has no grouped products."""
    checkpoint(tmp_path / kind, kind)
    texts = tiny.texts(12)
    whole, double = (
        load_encoder(tmp_path / kind, max_tokens=64, precision=precision)
        for precision in ("float32", "float64")
    )
    vectors = double.encode(texts)
    np.testing.assert_allclose(whole.encode(texts), vectors, atol=1e-5)
    assert np.array_equal(vectors[::-1], double.encode(texts[::-1]))


def test_all_that_a_decoder_computes_is_float64(built, monkeypatch):
    """Rotary angles and norms, too, which transformers computes in float32."""
    encoder = load_encoder(built / "policy", max_tokens=64, precision="float64")
    model = encoder._model
    assert all(buffer.dtype == torch.float64 for buffer in model.buffers())
    rotary, seen = model.rotary_emb, []
    rotary.register_forward_hook(lambda _module, _inputs, output: seen.extend(output))
    encoder.encode(tiny.texts(3))
    for values in seen:  # as float64, and no float32 that was widened
        assert values.dtype == torch.float64
        assert not torch.equal(values.float().double(), values)


def test_bytes_up_to_the_weights_on_other_code_paths(built):
    """In float32 the vectors differ there, so the paths are others."""
    paths = PATHS | {"NPY_DISABLE_CPU_FEATURES": disabled()}
    here = digests(built / "encoder", "float64", OMP_NUM_THREADS="2")
    assert digests(built / "encoder", "float64", OMP_NUM_THREADS="1", **paths) == here


@pytest.mark.slow
def test_the_other_code_paths_are_others(built):
    paths = PATHS | {"NPY_DISABLE_CPU_FEATURES": disabled()}
    here, there = (digests(built / "encoder", "float32", **some) for some in ({}, paths))
    assert here["vectors"] != there["vectors"]


@pytest.mark.slow
@pytest.mark.parametrize("space", ["hidden", "logits_projected"])
def test_bytes_of_a_decoder_at_any_thread_count_and_path(built, space):
    here = digests(built / "policy", "float64", space)
    ways = [{"OMP_NUM_THREADS": threads} for threads in ("1", "2", "3")]
    ways += [{name: value} for name, value in PATHS.items()]
    ways += [{"NPY_DISABLE_CPU_FEATURES": disabled()}]
    for way in ways:
        assert digests(built / "policy", "float64", space, **way) == here, way


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs qemu-user")
def test_bytes_on_an_emulated_processor(built):
    """NumPy without AVX2: its sorts of that end with a segmentation fault under QEMU 7.2."""
    there = {"NPY_DISABLE_CPU_FEATURES": disabled(), "OMP_NUM_THREADS": "1"}
    emulated = ("qemu-x86_64", "-cpu", "Haswell")
    here = digests(built / "encoder", "float64")
    assert digests(built / "encoder", "float64", emulated=emulated, **there) == here


@pytest.mark.gpu
def test_bytes_on_a_gpu(built):
    for name in ("encoder", "policy"):
        here, there = (digests(built / name, "float64", device=one) for one in ("cpu", "cuda"))
        assert here == there
