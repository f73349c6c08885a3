"""Answers of export and edit as JSON."""

from nullbooth_cli.report.answers import EditAnswer, ExportAnswer
from nullbooth_cli.report.json_document import to_json


def test_an_export_names_only_what_its_format_has() -> None:
    answer = ExportAnswer(store="a.zarr", format="alphaedit", path="p.pt", sites=("mid.q",))
    assert to_json(answer) == {"schema_version": 1, "store": "a.zarr", "format": "alphaedit", "path": "p.pt", "sites": ["mid.q"]}
    assert list(to_json(ExportAnswer(store="a.zarr", format="folder", path="out"))) == [
        "schema_version",
        "store",
        "format",
        "path",
    ]


def test_an_edit_has_its_pairs_and_its_weights() -> None:
    from nullbooth_cli.editing.report import EditedWeight

    weights = {"mid.to_k.weight": EditedWeight(missing=0.1, drift=0.01, change=0.2)}
    answer = EditAnswer(
        store="a.zarr", output="edited", method="uce", pairs={"a cat": "a dog"}, weights=weights, missing=0.1, drift=0.01
    )
    document = to_json(answer)
    assert list(document) == ["schema_version", "store", "output", "method", "pairs", "weights", "missing", "drift"]
    assert document["pairs"] == {"a cat": "a dog"}
    assert document["weights"]["mid.to_k.weight"] == {"missing": 0.1, "drift": 0.01, "change": 0.2, "heldout": None}
