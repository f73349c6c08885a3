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
    from nullbooth_cli.editing.contexts import InContext
    from nullbooth_cli.editing.report import EditedWeight
    from nullbooth_cli.editing.verdict import missing

    weights = {"mid.to_k.weight": EditedWeight(missing=0.1, drift=0.01, change=0.2)}
    answer = EditAnswer(
        store="a.zarr",
        output="edited",
        after=None,
        remembered=(),
        method="uce",
        tokens="all",
        settings={"ridge": 0.01},
        pairs={"a cat": "a dog", "nurse": ("male nurse", "female nurse")},
        verdicts=(missing({"a cat": 0.1}),),
        by_pair={"a cat": 0.1},
        in_context=(InContext(concept="cat", prompts="preserved", count=3, missing=0.4),),
        missing=0.1,
        drift=0.01,
        heldout=None,
        weights=weights,
    )
    document = to_json(answer)
    assert list(document) == [
        *("schema_version", "store", "output", "after", "remembered", "method", "tokens", "settings", "pairs", "verdicts"),
        *("by_pair", "in_context", "missing", "drift", "heldout", "weights"),
    ]
    assert document["pairs"] == {"a cat": "a dog", "nurse": ["male nurse", "female nurse"]}
    assert document["weights"]["mid.to_k.weight"] == {"missing": 0.1, "drift": 0.01, "change": 0.2, "heldout": None}
    assert document["verdicts"][0]["word"] == "reached"
