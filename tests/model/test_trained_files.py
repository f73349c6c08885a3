"""What a training run wrote is found by any name of it, belongs to one base, and is loaded whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nullbooth_cli import toy as embedded
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.trained_files import Base, Located, TrainedFiles, locate, prompts_of_training
from tests.support.edited_models import save_lora, toy
from tests.support.trained_folders import LAYER, ROW, WEIGHT, changed_weight, full_files, lora_files, training_output, write_base

TOY = Base(model="toy")


def read(folder: Path) -> TrainedFiles:
    found = TrainedFiles.find(folder)
    assert found is not None
    return found


def word_of(pipe: Any, token: str) -> torch.Tensor:
    [number] = pipe.tokenizer(token, add_special_tokens=False).input_ids
    row: torch.Tensor = pipe.text_encoder.get_input_embeddings().weight[number]
    return row


class TestLoading:
    def test_the_weights_and_the_word_of_method_full(self, tmp_path: Path) -> None:
        pipe, base = toy(), toy().unet.state_dict()
        read(full_files(tmp_path)).load_into(pipe)
        found = pipe.unet.state_dict()
        assert [name for name in base if not torch.equal(found[name], base[name])] == [WEIGHT]
        assert torch.equal(found[WEIGHT], changed_weight())
        assert torch.equal(word_of(pipe, "sks"), ROW)

    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_a_lora_and_its_word(self, tmp_path: Path, scale: float) -> None:
        pipe, base = toy(), toy().unet.get_parameter(WEIGHT).data
        wrapped = save_lora(tmp_path).get_submodule(f"{LAYER}.to_k")
        delta = (wrapped.lora_B["default"].weight @ wrapped.lora_A["default"].weight).detach()
        read(lora_files(tmp_path)).load_into(pipe, scale)
        torch.testing.assert_close(pipe.unet.get_parameter(WEIGHT).data - base, scale * delta, rtol=1e-4, atol=1e-6)
        assert torch.equal(word_of(pipe, "<sks>"), ROW)

    def test_a_run_without_a_word(self, tmp_path: Path) -> None:
        pipe = toy()
        read(full_files(tmp_path, token=None)).load_into(pipe)
        assert torch.equal(pipe.unet.get_parameter(WEIGHT).data, changed_weight())
        assert torch.equal(word_of(pipe, "sks"), word_of(toy(), "sks"))

    def test_trying_leaves_the_base_as_it_was(self, tmp_path: Path, pipe: Any) -> None:
        before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
        for folder in (full_files(tmp_path / "full"), lora_files(tmp_path / "lora")):
            read(folder).require_fits(pipe)
        assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())
        assert len(pipe.text_encoder.get_input_embeddings().weight) == len(toy().tokenizer) == len(pipe.tokenizer)

    def test_other_names_and_shapes(self, tmp_path: Path, pipe: Any) -> None:
        folder = full_files(tmp_path)
        tensors = load_file(folder / "denoiser.safetensors")
        save_file({**tensors, "gone.weight": torch.ones(2)}, folder / "denoiser.safetensors")
        with pytest.raises(
            ConfigError, match=r"1 of its 2 tensors, such as gone\.weight \[2\], where the base has nothing of that"
        ):
            read(folder).require_fits(pipe)
        save_file({WEIGHT: torch.ones(3, 4)}, folder / "denoiser.safetensors")
        with pytest.raises(ConfigError, match=rf"such as {WEIGHT} \[3, 4\], where the base has \[80, 96\]"):
            read(folder).load_into(pipe)
        save_file({WEIGHT: tensors[WEIGHT] / 0}, folder / "denoiser.safetensors")
        with pytest.raises(ConfigError, match=f"{WEIGHT} not finite"):
            read(folder).load_into(pipe)
        save_file({}, folder / "denoiser.safetensors")
        with pytest.raises(ConfigError, match="has no tensor"):
            read(folder).require_fits(pipe)
        assert torch.equal(pipe.unet.get_parameter(WEIGHT).data, toy().unet.get_parameter(WEIGHT).data)

    def test_files_of_two_runs_and_of_none(self, tmp_path: Path) -> None:
        both = full_files(tmp_path / "both")
        lora_files(both, "sks")
        with pytest.raises(ConfigError, match="has both pytorch_lora_weights"):
            TrainedFiles.find(both)
        with pytest.raises(ConfigError, match="has neither pytorch_lora_weights"):
            TrainedFiles.find(write_base(tmp_path / "neither"))
        lost = lora_files(tmp_path / "lost")
        (lost / "learned_embeds.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"base\.json names <sks>, and .*learned_embeds\.safetensors is missing"):
            TrainedFiles.find(lost)
        assert TrainedFiles.find(tmp_path) is None


class TestTheBase:
    @pytest.mark.parametrize(
        ("base", "other", "same"),
        [
            (TOY, Base(model=str(embedded.FOLDER)), True),
            (TOY, Base(model="owner/name"), False),
            (Base(model="owner/name"), Base(model="owner/name", revision="main"), True),
            (Base(model="owner/name"), Base(model="owner/name", variant="fp16"), True),
            (Base(model="owner/name"), Base(model="owner/name", revision="v2"), False),
        ],
    )
    def test_is_compared_by_its_address(self, base: Base, other: Base, same: bool) -> None:
        assert base.is_same(other) is same
        assert other.is_same(base) is same

    def test_a_folder_by_two_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "model").mkdir()
        monkeypatch.chdir(tmp_path)
        assert Base(model="model").is_same(Base(model=str(tmp_path / "model")))

    def test_another_is_an_error_that_names_both(self, tmp_path: Path) -> None:
        files = read(lora_files(tmp_path, model="owner/name", revision="v2"))
        message = f"{tmp_path} was trained on owner/name at v2, and the base here is toy"
        with pytest.raises(ConfigError, match=message) as caught:
            files.require_base(TOY)
        assert caught.value.hint.startswith("set model to owner/name; if both are the same model, write toy into")
        files.require_base(Base(model="owner/name", revision="v2"))

    @pytest.mark.parametrize("model", [None, 3])
    def test_a_file_without_one(self, tmp_path: Path, model: object) -> None:
        with pytest.raises(ConfigError, match=r"base\.json does not name the model that was trained"):
            TrainedFiles.find(lora_files(tmp_path, model=model))


class TestPlaces:
    @pytest.mark.parametrize(("method", "result"), [("lora", "lora"), ("full", "pipeline")])
    def test_an_output_and_its_result(self, tmp_path: Path, method: str, result: str) -> None:
        output = training_output(tmp_path, method, 100)
        expected = Located(path=output / result, base=TOY, token="sks", prompts=("a sks circle",))
        assert locate(output) == locate(output / result) == expected

    def test_a_checkpoint(self, tmp_path: Path) -> None:
        output = training_output(tmp_path, "full", 100, 200)
        expected = Located(path=output / "checkpoint-000100/trained", base=TOY, token="sks", prompts=("a sks circle",))
        assert locate(output / "checkpoint-000100") == locate(output / "checkpoint-000100/trained") == expected

    def test_an_output_without_a_result(self, tmp_path: Path) -> None:
        output = training_output(tmp_path, "lora", 100, 1_000_000, 200, result=False)
        (output / "checkpoint-2000000").write_text("a file")
        (output / "checkpoint-000300").mkdir()
        note = f"{output} has no result yet: this is its newest checkpoint, after 1000000 steps"
        newest, prompts = output / "checkpoint-1000000/trained", ("a sks circle",)
        assert locate(output) == Located(path=newest, base=TOY, token="sks", prompts=prompts, note=note)

    def test_what_an_earlier_nullbooth_left(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint-000200").mkdir()
        with pytest.raises(ConfigError, match=r"has no result, and its checkpoints have no trained/base\.json"):
            locate(tmp_path)
        with pytest.raises(ConfigError, match=r"checkpoint-000200 has no trained/base\.json: an earlier nullbooth made it"):
            locate(tmp_path / "checkpoint-000200")

    def test_a_result_that_was_removed(self, tmp_path: Path) -> None:
        output = training_output(tmp_path, "full", 100)
        (output / "pipeline").rename(output / "moved")
        with pytest.raises(ConfigError, match=r"has a train\.json, and no pipeline"):
            locate(output)
        (output / "train.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"train\.json has no recipe"):
            locate(output)

    def test_anything_else_is_left_as_it_is(self, tmp_path: Path) -> None:
        save_lora(tmp_path)
        for place in (embedded.FOLDER, tmp_path, tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "nowhere"):
            assert locate(place) == Located(path=place)

    def test_a_run_that_taught_no_word(self, tmp_path: Path) -> None:
        output = training_output(tmp_path, "full")
        document = json.loads((output / "train.json").read_text())
        (output / "train.json").write_text(json.dumps({"recipe": document["recipe"]}))
        assert locate(output).token is None


class TestPrompts:
    @pytest.mark.parametrize("place", ["", "pipeline", "checkpoint-000100", "checkpoint-000100/trained"])
    def test_are_those_of_the_run_by_any_name_of_it(self, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        output = training_output(tmp_path / "dog", "full", 100)
        prompts = ["a red sks circle", "a blue sks circle"]
        for file in (output / "train.json", output / "checkpoint-000100/trained/base.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), "prompts": prompts}))
        assert prompts_of_training(output / place) == ("dog", tuple(prompts))
        monkeypatch.chdir(output)
        assert prompts_of_training(Path(place or ".")) == ("dog", tuple(prompts))

    def test_of_an_earlier_nullbooth_are_one(self, tmp_path: Path) -> None:
        assert prompts_of_training(training_output(tmp_path / "dog", "lora")) == ("dog", ("a sks circle",))

    def test_of_another_model_are_not_known(self, tmp_path: Path) -> None:
        for place in (embedded.FOLDER, tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ConfigError, match=f"{place} names no prompt of what it was taught"):
                prompts_of_training(place)
