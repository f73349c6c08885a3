"""`nullbooth inspect --lora`: a finished LoRA against a store, as a table, as JSON and as CSV."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.cli import nullbooth

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0_"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Of kohya: an input that the store has, one that it has not, and one of the text encoder."""
    torch.manual_seed(0)
    tensors = {}
    for name, m, d in (
        (f"{BLOCK}attn2_to_k", 80, 96),
        (f"{BLOCK}attn1_to_q", 80, 80),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", 192, 96),
    ):
        tensors |= {f"{name}.lora_down.weight": torch.randn(2, d), f"{name}.lora_up.weight": torch.randn(m, 2)}
    save_file(tensors, tmp_path / "style.safetensors", metadata={"nullbooth": "refit: one\nrefit: two"})
    return tmp_path / "style.safetensors"


def test_the_table_and_what_is_outside(finished: tuple[Config, Store], lora: Path) -> None:
    shown = nullbooth("inspect", "--lora", str(lora), "-s", finished[0].store)
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["module", "kind", "drift", "inside"]
    assert [line.split()[:2] for line in lines if line.startswith("lora_")] == [[f"{BLOCK}attn2_to_k", "lora"]]
    place = lines.index(f"{lora}: 1 of 3 modules measured")
    assert lines[place + 1 : place + 3] == ["refit: one", "refit: two"]
    assert any(line.startswith("preserved prompts: drift ") and ": moved much (the largest of 1 module" in line for line in lines)
    assert "outside the store: 1 module, of which nothing is known: 1 attn1" in lines
    assert "  collect these inputs too: set collect.linear_layers to [attn1]" in lines
    assert shown.stderr.splitlines()[-2:] == [
        f"next: nullbooth refit {lora} -s {finished[0].store} --prompts PROMPT -o REFITTED",
        f"or:   nullbooth evaluate {lora} -s {finished[0].store} --subject PROMPT",
    ]
    assert "text_encoder: 1 module of it changes, which moves the text of every prompt; no store protects that" in lines


def test_a_file_of_which_nothing_is_known(finished: tuple[Config, Store], tmp_path: Path) -> None:
    save_file({f"{BLOCK}attn1_to_q.diff": torch.ones(80, 80)}, tmp_path / "a.safetensors")
    shown = nullbooth("inspect", "--lora", str(tmp_path / "a.safetensors"), "-s", finished[0].store)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stderr.splitlines()[-1].startswith("next: nullbooth evaluate ")
    assert shown.stdout.splitlines()[:2] == [
        f"{tmp_path / 'a.safetensors'}: 0 of 1 module measured",
        "preserved prompts: unknown: no module of it could be measured",
    ]


def test_several_files_in_json_and_csv(finished: tuple[Config, Store], lora: Path) -> None:
    twice = ("inspect", "--lora", str(lora), "--lora", str(lora), "-s", finished[0].store)
    document = json.loads(nullbooth(*twice, "--json").stdout)
    assert (document["schema_version"], document["store"]) == (1, finished[0].store)
    assert [each["path"] for each in document["loras"]] == [str(lora)] * 2
    (first, second) = document["loras"]
    assert first == second
    rows = [*csv.DictReader(io.StringIO(nullbooth(*twice, "--csv").stdout))]
    assert [row["module"] for row in rows] == [module["module"] for module in first["modules"]] * 2
    assert max(float(row["drift"] or 0) for row in rows) == pytest.approx(first["largest_drift"])


@pytest.mark.parametrize("options", [("--plots", "x"), ("--layer", "mid_block"), ("--timestep", "1")])
def test_other_options_are_refused(lora: Path, finished: tuple[Config, Store], options: tuple[str, ...]) -> None:
    shown = nullbooth("inspect", "--lora", str(lora), "-s", finished[0].store, *options)
    assert shown.exit_code == 2
    assert "--lora gives a table of the modules of each file" in shown.stderr


def test_layers_know_no_lora(lora: Path) -> None:
    shown = nullbooth("inspect", "--layers", "--lora", str(lora))
    assert shown.exit_code == 2
    assert "--layers gives a table of the model" in shown.stderr
