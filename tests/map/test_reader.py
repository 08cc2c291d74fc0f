"""A map that is incomplete, of another form, or of other prompts is refused with a hint."""

from __future__ import annotations

import numpy as np
import pytest

from isodense.map.reader import COORDINATES, load_coordinates
from isodense.pipeline.artifact import ids_sha256, publishing, require_same_ids, write_manifest
from isodense.pipeline.errors import ArtifactError

IDS = ids_sha256("abc")
PLACES = np.arange(6, dtype=np.float32).reshape(3, 2)


def write(folder, coordinates=PLACES):
    with publishing(folder) as scratch:
        np.save(scratch / COORDINATES, coordinates)
        write_manifest(scratch, "map", rows=3, ids_sha256=IDS)
    return folder


def test_what_was_written_is_read_with_its_manifest(tmp_path):
    coordinates, manifest = load_coordinates(write(tmp_path / "map"))
    np.testing.assert_array_equal(coordinates, PLACES)
    require_same_ids(IDS, manifest, "the map")
    with pytest.raises(ArtifactError, match="dvc repro map"):
        require_same_ids(ids_sha256("abd"), manifest, "the map")


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        (PLACES[:2], r"shape \(2, 2\)"),
        (PLACES[:, :1], r"shape \(3, 1\)"),
        (PLACES.astype(np.float64), "holds float64"),
        (np.where(PLACES == 3, np.nan, PLACES), "not finite"),
        (np.where(PLACES == 3, np.inf, PLACES), "not finite"),
    ],
)
def test_an_array_of_another_form_is_refused(tmp_path, coordinates, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        load_coordinates(write(tmp_path / "map", coordinates))
    assert "dvc repro map" in caught.value.hint


def test_an_incomplete_map_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not complete"):
        load_coordinates(tmp_path)
    (write(tmp_path / "map") / COORDINATES).unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        load_coordinates(tmp_path / "map")
