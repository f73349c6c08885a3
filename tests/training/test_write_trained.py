"""What a run trained, in every checkpoint and beside a LoRA; and the result of any checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training import checkpoint_files, dreambooth, output, setup
from tests.support.tiny_dreambooth import EMBEDDING, TEXT_ENCODER, recipe, run, weights

LORA = "pytorch_lora_weights.safetensors"


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[name], tensor) for name, tensor in one.items())


def finish_at(made: Any, step: int) -> output.TrainingResult:
    ready = setup.set_up(made, "cpu", at=step)
    dreambooth.restore(ready)
    result = dreambooth.finish(ready)
    assert result is not None
    return result


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_checkpoint_has_what_the_result_has(tmp_path: Path, finished: tuple[Config, Store], method: str) -> None:
    """Constrained and with a word; the checkpoints disturb nothing: with more of them the weights are the same to the bit."""
    changes = {"store": str(finished[1].path), "word": "sks", "method": method}
    made = recipe(tmp_path / "out", **changes)
    document = run(made)
    trained, result = tmp_path / "out/checkpoint-000004/trained", Path(document["output"])
    base = {"model": "toy", "revision": None, "variant": None, "pipeline_config": None, "step": 4, "token": document["token"]}
    assert json.loads((trained / "base.json").read_text()) == {
        **base,
        "after": None,
        "instance_prompt": document["instance_prompt"],
        "prompts": list(document["prompts"]),
    }
    word = load_file(trained / "learned_embeds.safetensors")
    assert {token: tensor.shape for token, tensor in word.items()} == {document["token"]: (1, 96)}
    more = Path(run(recipe(tmp_path / "more", checkpointing_steps=1, **changes))["output"])
    if method == "lora":
        assert equal(load_file(trained / LORA), load_file(result / LORA))
        assert equal(load_file(more / LORA), load_file(result / LORA))
        assert (result / "base.json").read_text() == (trained / "base.json").read_text()
    else:
        found, whole = load_file(trained / "denoiser.safetensors"), weights(result)
        assert len(found) == document["trained"] == 20
        assert equal(found, {name: whole[name] for name in found})
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert equal(weights(more), whole)
        table = load_file(result / TEXT_ENCODER)[EMBEDDING]
        assert (table == word["sks"]).all(1).any()
    checkpoint = checkpoint_files.find(str(tmp_path / "out"))
    assert checkpoint is not None
    assert {f"trained/{path.name}" for path in trained.iterdir()} < set(checkpoint.files)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_result_of_an_earlier_checkpoint(tmp_path: Path, finished: tuple[Config, Store], method: str) -> None:
    """It is the result of a run of as many steps; then the run goes on from its newest checkpoint, as if nothing had happened."""
    changes = {"store": str(finished[1].path), "method": method, "word": "sks"}
    short = run(recipe(tmp_path / "short", max_train_steps=2, **changes))
    made = recipe(tmp_path / "out", **changes)
    whole = run(made)
    files = [path.relative_to(whole["output"]) for path in Path(whole["output"]).rglob("*.safetensors")]
    before = {file: load_file(Path(whole["output"]) / file) for file in files}
    log = (tmp_path / "out/train.jsonl").read_bytes()
    result = finish_at(made, 2)
    found, drift = {**result.document(), "output": short["output"]}, short.pop("drift")
    assert found.pop("drift") == pytest.approx(drift, rel=1e-6)
    assert found.pop("largest_drift") == pytest.approx(short.pop("largest_drift"), rel=1e-6)
    assert found == short
    for file in files:
        for name, tensor in load_file(Path(short["output"]) / file).items():
            torch.testing.assert_close(load_file(Path(result.output) / file)[name], tensor, rtol=1e-5, atol=1e-7)
    assert json.loads((tmp_path / "out/train.json").read_text())["steps"] == 2
    assert (tmp_path / "out/train.jsonl").read_bytes() == log
    assert checkpoint_files.steps(made.output) == [2, 4]
    assert output.finished(made) is None, "a result of fewer steps is not the recipe's"
    assert run(made)["steps"] == 4
    for file in files:
        for name, tensor in load_file(Path(whole["output"]) / file).items():
            torch.testing.assert_close(before[file][name], tensor, rtol=1e-5, atol=1e-7)


def test_a_run_that_was_stopped(tmp_path: Path) -> None:
    """With fewer steps in the recipe, another learning rate and without its class pictures: nothing trains."""
    made = recipe(tmp_path, max_train_steps=100, class_prompts=["a red circle"], class_images=2)
    run(made, stop_after=3)
    changed = made.model_copy(update={"max_train_steps": 1, "learning_rate": 1.0})
    ready = setup.set_up(changed, "cpu", at=2)
    assert ready.prior is None
    assert finish_at(changed, 2).steps == 2
    recorded = json.loads((tmp_path / "train.json").read_text())["run"]
    assert (recorded["steps"], recorded["decides"]["learning_rate"], recorded["history"]) == (100, 1e-2, [])
    with pytest.raises(ConfigError, match="has checkpoints of 2 steps, and none of 3"):
        setup.set_up(made, "cpu", at=3)
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        setup.set_up(made.model_copy(update={"seed": 1}), "cpu", at=2)
