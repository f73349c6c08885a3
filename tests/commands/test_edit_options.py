"""The options of `nullbooth edit`: verbs become pairs, all mistakes are named, settings belong to their methods."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nullbooth_cli.commands.edit_options import (
    pairs_to_edit,
    preserved_notes,
    require_place,
    require_reached,
    settings_of,
    tokens_of,
)
from nullbooth_cli.editing.reach import EditRung
from nullbooth_cli.errors import ConfigError


def test_verbs_become_pairs_in_order(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("erase: [ring]\n")
    found = pairs_to_edit(
        ["a", "b", "c", "d"],
        erase=["circle", "square"],
        to="star",
        debias=["nurse"],
        over="male, female",
        file=str(tmp_path / "more.yaml"),
        around="none",
    )
    assert [tuple(pair) for pair in found] == [
        ("a", ("b",)),
        ("c", ("d",)),
        ("circle", ("star",)),
        ("square", ("star",)),
        ("nurse", ("male nurse", "female nurse")),
        ("ring", ("",)),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a"]}, "'a' has no target"),
        ({"to": "x"}, "--to 'x' .* nothing is erased"),
        ({"over": "x,y"}, "--over names attributes, and nothing is debiased"),
        ({"debias": ["nurse"]}, "'nurse' has no attributes"),
        ({"debias": ["nurse"], "over": ""}, "an attribute of 'nurse' is empty"),
        (
            {"prompts": ["a", "a", "b", ""], "erase": [" "]},
            r"(?s)'a' is its own target\n.*the target of 'b' is empty\n.*a concept to erase",
        ),
    ],
)
def test_what_says_nothing_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pairs_to_edit(**{"prompts": [], **arguments})


def test_a_verb_edits_prompts_around_its_word() -> None:
    found = {
        pair.source: pair.targets
        for pair in pairs_to_edit(["sks", "star", "a b", "c"], erase=["circle"], debias=["nurse"], over="x,y")
    }
    assert found["[sks]"] == ("[star]",)
    assert found["image of [sks]"] == ("image of [star]",)
    assert found["a b"] == ("c",)
    assert found["photo of [circle]"] == ("",)
    assert found["painting of [nurse]"] == ("painting of [x nurse]", "painting of [y nurse]")
    assert len(found) == 3 * 6 + 1
    assert "art by [Monet]" in [pair.source for pair in pairs_to_edit([], erase=["Monet"], around="style")]
    with pytest.raises(ConfigError, match="--around 'all' is not a choice"):
        pairs_to_edit([], erase=["Monet"], around="all")


def test_brackets_mark_a_subject_unless_told_otherwise() -> None:
    marked, plain = pairs_to_edit(["a [b]", "c [d]"]), pairs_to_edit(["a b", "c d"])
    assert [tokens_of(None, pairs) for pairs in (marked, plain)] == ["subject", "all"]
    assert [tokens_of("all", marked), tokens_of("subject", plain)] == ["all", "subject"]


def test_settings_are_those_of_the_method() -> None:
    given: dict[str, float | None] = {"ridge": 0.5, "preserve": None}
    assert settings_of("alphaedit", given) == {"ridge": 0.5, "copies": 0}
    assert settings_of("uce", given) == {"ridge": 0.5, "preserve": 100.0, "copies": 0}
    with pytest.raises(ConfigError, match="--preserve has no part in alphaedit"):
        settings_of("alphaedit", {"ridge": 0.5, "preserve": 1.0})


def test_an_edit_has_one_place_or_none_at_all(tmp_path: Path) -> None:
    for output, dry_run, message in (
        (None, False, "no output is named"),
        ("x", True, "--dry-run writes nothing"),
        (str(tmp_path), False, "exists already"),
    ):
        with pytest.raises(ConfigError, match=message):
            require_place(output, dry_run=dry_run)
    require_place(None, dry_run=True)
    require_place(str(tmp_path / "new"), dry_run=False)


class _Trial:
    """What a trial answers, without a model."""

    url = "run.zarr"

    def __init__(self, missing: Mapping[str, float], *rungs: EditRung) -> None:
        self.plan = SimpleNamespace(report=SimpleNamespace(by_pair=missing, method="alphaedit"))
        self._rungs = rungs

    def thresholds(self) -> tuple[EditRung, ...]:
        return self._rungs


def rung(threshold: float | None, missing: float) -> EditRung:
    method = "uce" if threshold is None else "alphaedit"
    return EditRung(method=method, relative_threshold=threshold, null_dim=9, missing=missing, drift=0.2, heldout=0.3)


def refusal(trial: _Trial, most: float = 0.9) -> ConfigError:
    with pytest.raises(ConfigError, match="would be missing: nothing is written") as caught:
        require_reached(trial, most)  # type: ignore[arg-type]
    return caught.value


def test_an_edit_that_reaches_its_targets_passes() -> None:
    require_reached(_Trial({"a": 0.894, "b": 0.1}), 0.9)  # type: ignore[arg-type]
    require_reached(_Trial({"a": 2.0}), 1.0)  # type: ignore[arg-type]


def test_the_threshold_that_reaches_it_is_named() -> None:
    error = refusal(_Trial({"a": 0.3, "b": 0.97, "c": 0.99}, rung(1e-4, 0.95), rung(1e-3, 0.7), rung(None, 0.5)))
    assert error.message == "0.99 of 'c', 0.97 of 'b' would be missing: nothing is written"
    assert error.rerun is not None
    assert (error.rerun.stage, error.rerun.settings) == ("project", ("project.relative_threshold=0.001",))
    assert error.rerun.otherwise.splitlines() == [
        "then 0.7 is missing (partly reached), drift 0.2, 0.3 on held-out prompts",
        "or --method uce: 0.5 is missing (reached), drift 0.2, 0.3 on held-out prompts",
        "or lower --ridge, at the cost of drift",
        "or save it as it is with --max-missing 1",
    ]


def test_no_threshold_is_named_where_none_reaches_it() -> None:
    error = refusal(_Trial({"a": 0.97}, rung(1e-4, 0.95), rung(None, 0.92)))
    assert error.message.endswith("nothing is written, and no threshold of the projectors reaches it")
    assert error.rerun is None
    assert error.hint.splitlines()[0] == "--method uce: 0.92 is missing (out of reach), drift 0.2, 0.3 on held-out prompts"


def test_uce_is_told_its_own_settings() -> None:
    error = refusal(_Trial({"a": float("nan")}))
    assert error.message == "nan of 'a' would be missing: nothing is written"
    assert "lower --preserve or --ridge" in error.hint
    refusal(_Trial({"a": 0.5}), most=0.5)


def test_a_concept_that_is_preserved_is_told() -> None:
    notes = preserved_notes(["[ring]", "image of [ring]", "[star]", "a cross"], ["a ring", "Ring on a table", "a cross", "rings"])
    assert len(notes) == 1
    assert notes[0].startswith("2 preserved prompts with 'ring' will be drawn as before")
