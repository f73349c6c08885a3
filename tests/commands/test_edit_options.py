"""The options of `nullbooth edit`: verbs become pairs, all mistakes are named, settings belong to their methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nullbooth_cli.commands.edit_options import (
    pairs_to_edit,
    require_map_pairs,
    require_place,
    require_reached,
)
from nullbooth_cli.editing.contexts import InContext
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
    assert [tuple(pair) for pair in found.pairs] == [
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
        for pair in pairs_to_edit(["sks", "star", "a b", "c"], erase=["circle"], debias=["nurse"], over="x,y").pairs
    }
    assert found["[sks]"] == ("[star]",)
    assert found["image of [sks]"] == ("image of [star]",)
    assert found["a b"] == ("c",)
    assert found["photo of [circle]"] == ("",)
    assert found["painting of [nurse]"] == ("painting of [x nurse]", "painting of [y nurse]")
    assert len(found) == 3 * 6 + 1
    assert "art by [Monet]" in [pair.source for pair in pairs_to_edit([], erase=["Monet"], around="style").pairs]
    with pytest.raises(ConfigError, match="--around 'all' is not a choice"):
        pairs_to_edit([], erase=["Monet"], around="all")


def test_a_file_has_pairs_and_settings(tmp_path: Path) -> None:
    (tmp_path / "edits.yaml").write_text("erase: [ring]\nsettings: {method: speed, noise: 3, weights: v}\n")
    found = pairs_to_edit(["a", "b"], file=str(tmp_path / "edits.yaml"), around="none")
    assert [pair.source for pair in found.pairs] == ["a", "ring"]
    assert found.settings == {"method": "speed", "noise": 3, "weights": "v"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--map a b", None),
        ("x y --map a b --map c d --erase e", None),
        ("--map a --map b c d", "no SOURCE and TARGET after it"),
        ("--map -o out a b", "no SOURCE and TARGET after it"),
        ("--map a", "no SOURCE and TARGET after it"),
        ("x --map a b y", "after a source that has no target"),
    ],
)
def test_a_map_is_followed_by_its_pair(arguments: str, problem: str | None) -> None:
    def before(words: Sequence[str]) -> int:
        return len([word for word in words if not word.startswith("-")])

    words = arguments.split()
    if problem is None:
        require_map_pairs(words, before)
    else:
        with pytest.raises(ConfigError, match=problem):
            require_map_pairs(words, before)


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


def rung(threshold: float | None, missing: float, elsewhere: float | None = None) -> EditRung:
    method = "uce" if threshold is None else "alphaedit"
    return EditRung(
        method=method, relative_threshold=threshold, null_dim=9, missing=missing, elsewhere=elsewhere, drift=0.2, heldout=0.3
    )


def report(missing: Mapping[str, float], *in_context: InContext) -> Any:
    return SimpleNamespace(by_pair=missing, in_context=in_context)


def refusal(of: Any, *rungs: EditRung, most: float = 0.9) -> ConfigError:
    with pytest.raises(ConfigError, match="would be missing: nothing is written") as caught:
        require_reached(of, "run.zarr", most, lambda: rungs)
    return caught.value


def test_an_edit_that_reaches_its_targets_passes() -> None:
    require_reached(report({"a": 0.894, "b": 0.1}), "run.zarr", 0.9, tuple)
    require_reached(report({"a": 2.0}), "run.zarr", 1.0, tuple)


def test_the_threshold_that_reaches_it_is_named() -> None:
    error = refusal(report({"a": 0.3, "b": 0.97, "c": 0.99}), rung(1e-4, 0.95), rung(1e-3, 0.7), rung(None, 0.5))
    assert error.message == "0.99 of 'c', 0.97 of 'b' would be missing: nothing is written"
    assert error.rerun is not None
    assert (error.rerun.stage, error.rerun.settings) == ("project", ("project.relative_threshold=0.001",))
    assert error.rerun.otherwise.splitlines() == [
        "then 0.7 is missing (partly reached), drift 0.2, 0.3 on held-out prompts",
        "or --method uce: 0.5 is missing (reached), drift 0.2, 0.3 on held-out prompts",
        "or lower --ridge, at the cost of drift",
        "or save it as it is with --max-missing 1",
    ]


def test_what_is_preserved_itself_is_not_reached() -> None:
    preserved = InContext(concept="circle", prompts="preserved", count=42, missing=0.984)
    error = refusal(report({"[circle]": 0.42}, preserved), rung(1e-3, 0.4, 0.95), rung(1e-2, 0.3, 0.7), rung(None, 0.3, 0.96))
    assert error.message == "0.98 in preserved prompts with 'circle' would be missing: nothing is written"
    assert error.rerun is not None
    assert error.rerun.settings == ("project.relative_threshold=0.01",)
    assert error.rerun.otherwise.splitlines()[0] == (
        "then 0.3 is missing (reached), 0.7 in other prompts, drift 0.2, 0.3 on held-out prompts"
    )
    assert "or collect without the prompts that have it: it is itself preserved" in error.rerun.otherwise.splitlines()


def test_no_threshold_is_named_where_none_reaches_it() -> None:
    error = refusal(report({"a": 0.97}), rung(1e-4, 0.95), rung(None, 0.92))
    assert error.message.endswith("nothing is written, and no threshold of the projectors reaches it")
    assert error.rerun is None
    assert error.hint.splitlines()[0] == "--method uce: 0.92 is missing (out of reach), drift 0.2, 0.3 on held-out prompts"


def test_uce_is_told_its_own_settings() -> None:
    error = refusal(report({"a": float("nan")}))
    assert error.message == "nan of 'a' would be missing: nothing is written"
    assert "lower --preserve or --ridge" in error.hint
    refusal(report({"a": 0.5}), most=0.5)
