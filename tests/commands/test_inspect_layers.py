"""`nullbooth inspect --layers`: the layers of a model before anything is collected."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from tests.support.builders import ROOT
from tests.support.cli import nullbooth


@pytest.mark.parametrize(
    ("filters", "layers"),
    [((), 10), (("--layer", "mid_block"), 1), (("--layer", "up_blocks", "--feature", "q"), 6), (("--feature", "v"), 10)],
)
def test_filters_choose_layers_and_features(small: Path, filters: tuple[str, ...], layers: int) -> None:
    shown = nullbooth("inspect", "--layers", "-c", str(small), "--json", *filters)
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert len(document["layers"]) == layers
    assert document["totals"]["all"]["layers"] == 10, "totals are of the whole model"
    features = {of for layer in document["layers"] for recording in layer["recordings"] for of in recording["features"]}
    assert features == ({filters[-1]} if "--feature" in filters else {"q", "k", "v", "out"})
    assert not (small.parent / "run.zarr").exists()


def test_the_table_marks_what_the_config_chooses(small: Path) -> None:
    shown = nullbooth("inspect", "--layers", "-c", str(small))
    assert shown.exit_code == 0, shown.stderr
    marked = [line for line in shown.stdout.splitlines() if re.match(r"\* +\S", line) and "chosen by" not in line]
    assert sum("mid_block" in line for line in marked) == 1
    assert len(marked) == 3
    assert shown.stdout.count("above") == 2 * 9, "the text that ten layers share is counted once"
    assert "* chosen by the config: 1 layers, 3 sites for 4 weights; over 4 steps" in shown.stdout
    assert "the default LoRA of diffusers changes " in shown.stdout


class TestListing:
    TOY = ("inspect", "--layers", "-c", str(ROOT / "configs/nullbooth.yaml"))

    def test_every_layer_its_index_and_what_it_shares(self) -> None:
        document = json.loads(nullbooth(*self.TOY, "--json").stdout)
        assert [layer["index"] for layer in document["layers"]] == list(range(10))
        shared = [site for site in document["sites"] if len(site["weights"]) > 1]
        assert [(len(site["weights"]), site["timestep_free"], site["num_tokens"], site["dim"]) for site in shared] == [
            (20, True, 2 * 16, 96)
        ]
        for key in ("feature_bytes_per_prompt", "moment_bytes"):
            assert sum(site[key] for site in document["sites"]) == document["totals"]["all"][key]
        assert document["totals"]["all"] == document["totals"]["chosen"]

    def test_the_index_chooses_the_layer_and_what_is_chosen_is_marked(self) -> None:
        chosen = ("--set", "collect.cross_attention_layers=[3]", "--set", "collect.collect_features.v_features=false")
        document = json.loads(nullbooth(*self.TOY, *chosen, "--json").stdout)
        marked = {
            (layer["index"], *recording["features"])
            for layer in document["layers"]
            for recording in layer["recordings"]
            if recording["chosen"]
        }
        assert marked == {(3, "q"), (3, "k", "v"), (3, "out")}
        assert document["totals"]["chosen"]["weights"] == 3
        assert len(document["layers"]) == 10

    def test_self_attention_is_listed_when_it_is_asked_for(self) -> None:
        asked = ("--set", 'collect.cross_attention_layers=["mid_block*attn1"]')
        document = json.loads(nullbooth(*self.TOY, *asked, "--json").stdout)
        asked_for = [layer for layer in document["layers"] if layer["index"] is None]
        assert [layer["layer"].rpartition(".")[2] for layer in asked_for] == ["attn1"]
        assert document["totals"]["chosen"]["sites"] == 2  # q, k and v share their input

    def test_why_layers_attend_to_text_and_others_do_not(self) -> None:
        table = nullbooth(*self.TOY).stdout
        assert "cross: 10 layers such as down_blocks.0." in table
        assert re.search(r"attn2, because it is cross-attention \(is_cross_attention\)\n", table)
        assert re.search(
            r"self, not of text: 10 layers such as \S+attn1, because Attention called attn1 is given no text\n", table
        )
        document = json.loads(nullbooth(*self.TOY, "--layer", "mid_block", "--json").stdout)
        assert [(each["layer"].rpartition(".")[2], each["attends_to"]) for each in document["attention"]] == [
            ("attn1", "self"),
            ("attn2", "cross"),
        ]

    def test_the_table_and_its_filters(self) -> None:
        table = nullbooth(*self.TOY, "--layer", "mid_block").stdout
        assert re.search(r"\* +9 +mid_block\S+attn2 +q +8 +80 +1 +every step", table)
        assert re.search(r"k v +32 +96 +20 +once", table)
        assert "down_blocks" not in table
        assert "10 layers, 21 sites for 40 weights" in table

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--layer", "nowhere"), "no layer passes"),
            (("--feature", "kv"), "kv is not a feature"),
            (("--csv",), "--layers gives a table of the model"),
        ],
    )
    def test_what_it_refuses(self, more: tuple[str, ...], said: str) -> None:
        result = CliRunner().invoke(app, [*self.TOY, *more])
        assert result.exit_code == 2
        assert said in result.stderr
