"""The record of a saved edit: written, read back, and refused if it is not whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.editing.record import ROWS, read_edit_record, write_edit_record
from nullbooth_cli.editing.report import EditedWeight, EditReport
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.after import After
from nullbooth_cli.model.edit_file import EDIT_FILE

KEYS = np.random.default_rng(0).standard_normal((5, 3))
PAIRS = {"a [sks] star": "a [red] star", "doctor": ("male doctor", "female doctor"), "circle": ""}
REPORT = EditReport(
    method="uce",
    tokens="all",
    pairs=PAIRS,
    weights={"mid.to_k.weight": EditedWeight(missing=0.1, drift=0.01, change=0.2)},
    keys={"mid.k": KEYS},
    tensors={"mid.to_k.weight": "0123456789abcdef"},
    by_pair=dict.fromkeys(PAIRS, 0.1),
)
AFTER = After(place="/runs/dog", relative="../dog", digest="0f3a")


def written(folder: Path) -> Path:
    write_edit_record(
        folder,
        REPORT,
        settings={"ridge": 0.01, "preserve": 2.0},
        after=AFTER,
        store={"url": "runs/toy.zarr", "fingerprint": "f00d"},
        dtype="float32",
    )
    return folder


def test_is_read_back(tmp_path: Path) -> None:
    record = read_edit_record(written(tmp_path))
    assert record is not None
    assert record.pairs == PAIRS
    assert record.prompts == ("a sks star", "doctor", "circle")
    assert (record.method, record.tokens, record.settings) == ("uce", "all", {"ridge": 0.01, "preserve": 2.0})
    assert (record.after, record.store["url"], record.store["fingerprint"]) == (AFTER, "runs/toy.zarr", "f00d")
    assert (record.tensors, record.dtype) == (REPORT.tensors, "float32")
    assert (record.missing, record.drift) == (0.1, 0.01)
    assert {name: rows.tolist() for name, rows in record.rows().items()} == {"mid.k": KEYS.tolist()}
    assert json.loads((tmp_path / EDIT_FILE).read_text())["schema_version"] == 1


def test_sums_are_those_of_the_rows(tmp_path: Path) -> None:
    record = read_edit_record(written(tmp_path))
    assert record is not None
    (sums,) = record.sums().values()
    np.testing.assert_allclose(sums.sum_xxt, KEYS.T @ KEYS)
    np.testing.assert_allclose(sums.sum_x, KEYS.sum(0))
    assert sums.count == 5


def test_another_folder_has_none(tmp_path: Path) -> None:
    assert read_edit_record(tmp_path) is None
    assert read_edit_record(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has version 2, and this nullbooth reads 1"),
        ({"schema_version": None}, "is not the record of an edit"),
        ({"pairs": {"a": 1}}, "is not the record of an edit"),
        ({"pairs": []}, "is not the record of an edit"),
        ({"tensors": {"a": 1}}, "is not the record of an edit"),
        ({"more": 1}, "is not the record of an edit"),
        ({"after": "runs/dog"}, "is not the record of an edit"),
        ({"after": {"place": "/runs/dog"}}, "is not the record of an edit"),
    ],
)
def test_a_record_that_is_not_whole_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = written(tmp_path) / EDIT_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        read_edit_record(tmp_path)


def test_a_file_that_is_torn_is_refused(tmp_path: Path) -> None:
    record = read_edit_record(written(tmp_path))
    assert record is not None
    (tmp_path / EDIT_FILE).write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_edit_record(tmp_path)
    (tmp_path / ROWS).write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"cannot read .*edit\.safetensors"):
        record.rows()
