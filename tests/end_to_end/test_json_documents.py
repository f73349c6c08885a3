"""The keys of every JSON document that a command prints, in their order: programs read them, so they stay.

The document of `evaluate` is held in tests/evaluation/test_evaluate.py, where there is one, that of `init` in
tests/commands/test_init.py.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.settings.config import Config
from tests.support.builders import PROMPTS, execute, small_config
from tests.support.cli import nullbooth, saved
from tests.support.keys import keys_of

UNITS = "{state units_done units_total}"
STAGE = "state units_done units_total bytes stale_because"
STAGES = (
    f"stages{{schedule{{{STAGE}[]}} collect{{{STAGE}[] heldout{UNITS} attention{UNITS}}} "
    f"covariance{{{STAGE}[] heldout{UNITS}}} project{{{STAGE}%s}}}}"
)
PLAN = "{stage units_done units_total seconds bytes_needed bytes_free device device_bytes_needed device_bytes_free operations}"
TASKS = "renamed[] tasks[] unfinished_tasks[]"
INSPECT = (
    "schema_version store scope rule{name value} centred sites[{layer feature side weights[] step_index key timestep dim count "
    "null_dim effective_rank largest smallest condition threshold noise_floor leakage heldout_leakage warnings[] "
    "arrays{features moments projector}}] totals{sites weights dim null_dim count largest_leakage largest_heldout_leakage} "
    "tasks[]"
)
DOCUMENTS = {
    "schedule": "{schema_version store strategy mode scheduler seed steps[{index key timestep sigma}]}",
    "collect": "{schema_version store stage state units_done units_total bytes}",
    "covariance": "{schema_version store stage state units_done units_total bytes}",
    "project": f"{{{INSPECT}}}",
    "inspect": f"{{{INSPECT}}}",
    "inspect --html page.html": f"{{{INSPECT} files[]}}",
    "inspect {store}": (
        "{schema_version stores[] scope differences[] sites[{layer feature key dim null_dim[] leakage[] heldout_leakage[] "
        "overlap chance leakage_on_the_other[]}] only_in[[]] totals{sites dim null_dim[] largest_leakage[] "
        "largest_leakage_on_the_other[] mean_overlap}}"
    ),
    "inspect --layers": (
        "{schema_version model pipeline steps layers[{index layer recordings[{site features[] chosen}]}] "
        "attention[{layer attends_to why}] sites[{layer feature side weights[] timestep_free num_tokens dim masked name "
        "feature_bytes_per_prompt moment_bytes}] "
        "totals{all{layers sites weights feature_bytes_per_prompt moment_bytes} "
        "chosen{layers sites weights feature_bytes_per_prompt moment_bytes}} "
        "default_loras[{trainer modules protected unprotected{attn1 attn2 q attn2 k attn2 v attn2 out} linear_layers[] sites "
        "moment_bytes}]}"
    ),
    "status": f"{{schema_version store {STAGES % '[]'} {TASKS}}}",
    "status --verify": f"{{schema_version store {STAGES % '[]'} {TASKS} verify{{checked damaged[]}}}}",
    "status --set project.relative_threshold=0.1": f"{{schema_version store {STAGES % '[{field old new}]'} {TASKS}}}",
    "project --explore": (
        "{schema_version store scope rule{name value} heldout ladder[{value null_dim dim largest_leakage largest_heldout_leakage "
        "empty below_noise sites[{layer feature key dim null_dim leakage heldout_leakage below_noise}]}]}"
    ),
    "run --dry-run": (f"{{schema_version dry_run stages{{schedule{PLAN} collect{PLAN} covariance{PLAN} project{PLAN}}}}}"),
}


@pytest.fixture(scope="module")
def finished_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run with everything that a document can have: held-out prompts, attention maps."""
    config = small_config(
        tmp_path_factory.mktemp("documents") / "run.zarr",
        original_knowledge_prompts=PROMPTS[:2],
        heldout_prompts=PROMPTS[6:],
        collect__cross_attention_layers=["mid_block*"],
        collect__visual_attention_map=True,
        collect__attention_prompts=PROMPTS[:1],
    )
    execute(config, "schedule", "collect", "covariance", "project")
    return config


@pytest.mark.parametrize("command", DOCUMENTS)
def test_the_keys_of_a_document(finished_config: Config, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = command.format(store=finished_config.store).split()
    from_file = command == "inspect --layers"
    place = saved(finished_config, tmp_path / "c.yaml") if from_file else ["-s", finished_config.store]
    shown = nullbooth(name, *options, *place, "--json")
    assert shown.exit_code == 0, shown.stderr
    document: dict[str, Any] = json.loads(shown.stdout)
    assert keys_of(document) == DOCUMENTS[command]
    assert document["schema_version"] == 1


def test_a_damaged_piece(finished_config: Config, tmp_path: Path) -> None:
    """Its error, and the command that rebuilds it; the exit code comes after the document."""
    store = Path(shutil.copytree(finished_config.store, tmp_path / "run.zarr"))
    chunk = max((path for path in (store / "moments").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    shown = nullbooth("status", "-s", str(store), "--verify", "--json")
    assert shown.exit_code == 4
    verify = json.loads(shown.stdout)["verify"]
    assert keys_of(verify) == "{checked damaged[{stage error hint}]}"
    assert verify["damaged"][0]["stage"] == "covariance"
    assert verify["damaged"][0]["hint"].startswith("nullbooth covariance")
