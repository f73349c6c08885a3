"""An edited model is opened whatever form it has; what is loaded is what the file holds, or it is an error."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig
from safetensors.torch import load_file, save_file

from nullbooth_cli.collect.edited_model import base_of, load_edited, read_place, require_fits, stored_shapes
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.trained_files import Base
from nullbooth_cli.settings.config import Config
from tests.support.edited_models import save_lora, toy
from tests.support.lora_files import LAYER, change, diffusers_file, kohya_file, kohya_tensors, peft_folder
from tests.support.trained_folders import LAYER as TRAINED
from tests.support.trained_folders import changed_weight, full_files, lora_files, training_output

WEIGHT = f"{LAYER}.weight"


def loaded(place: object, **config: Any) -> Any:
    return load_edited(Config(**config), str(place), "cpu")


def difference(pipe: Any) -> torch.Tensor:
    """What the layer has beyond the base."""
    found: torch.Tensor = pipe.unet.get_parameter(WEIGHT).data - toy().unet.get_parameter(WEIGHT).data
    return found


FORMS: dict[str, Callable[[Path], Path]] = {
    "diffusers": lambda folder: diffusers_file(folder / "lora.safetensors"),
    "the folder of a file": lambda folder: diffusers_file(folder / "lora.safetensors").parent,
    "kohya": lambda folder: kohya_file(folder / "kohya.safetensors"),
    "a folder of PEFT": lambda folder: peft_folder(folder / "peft"),
    "the file in a folder of PEFT": lambda folder: peft_folder(folder / "peft") / "adapter_model.safetensors",
}


class TestEveryForm:
    @pytest.mark.parametrize("form", FORMS)
    def test_is_added_to_the_base(self, tmp_path: Path, form: str) -> None:
        pipe = loaded(FORMS[form](tmp_path))
        torch.testing.assert_close(difference(pipe), change(), rtol=1e-3, atol=1e-6)
        assert set(pipe.unet.state_dict()) == set(toy().unet.state_dict())
        assert not any(parameter.requires_grad for parameter in pipe.unet.parameters())

    @pytest.mark.parametrize("form", FORMS)
    def test_is_tried_without_a_trace(self, tmp_path: Path, pipe: Any, form: str) -> None:
        before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
        for _ in range(2):
            require_fits(Config(), pipe, str(FORMS[form](tmp_path)))
        assert pipe.unet.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())

    @pytest.mark.parametrize("form", ["diffusers", "kohya", "a folder of PEFT"])
    def test_at_a_scale(self, tmp_path: Path, form: str) -> None:
        place = FORMS[form](tmp_path)
        torch.testing.assert_close(difference(loaded(f"{place}@-0.5")), -0.5 * change(), rtol=1e-3, atol=1e-6)

    def test_several(self, tmp_path: Path) -> None:
        one, other = diffusers_file(tmp_path / "a+b@2.safetensors"), peft_folder(tmp_path / "peft")
        torch.testing.assert_close(difference(loaded(one)), change(), rtol=1e-3, atol=1e-6)
        renamed = one.rename(tmp_path / "one.safetensors")
        torch.testing.assert_close(difference(loaded(f"{renamed}@0.5+{other}@2")), 2.5 * change(), rtol=1e-3, atol=1e-6)

    def test_of_the_text_encoder_too(self, tmp_path: Path) -> None:
        pipe = loaded(kohya_file(tmp_path / "kohya.safetensors", text_encoder=True))
        name = "text_model.encoder.layers.0.self_attn.q_proj.weight"
        names = {key.removeprefix("text_model."): key for key in pipe.text_encoder.state_dict()}
        key = names[name.removeprefix("text_model.")]
        assert not torch.equal(pipe.text_encoder.state_dict()[key], toy().text_encoder.state_dict()[key])
        torch.testing.assert_close(difference(pipe), change(), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("config", [{"use_dora": True}, {}], ids=["DoRA", "LoHa"])
    def test_whatever_kind_peft_saved(self, tmp_path: Path, config: dict[str, Any]) -> None:
        chosen = (
            LoraConfig(r=4, target_modules=[LAYER], **config)
            if config
            else LoHaConfig(r=2, target_modules=[LAYER], init_weights=False)
        )
        folder = peft_folder(tmp_path / "peft", chosen)
        if config:
            tensors = load_file(folder / "adapter_model.safetensors")
            tensors = {name: tensor * 2 if "magnitude" in name else tensor for name, tensor in tensors.items()}
            save_file(tensors, folder / "adapter_model.safetensors")
        pipe = loaded(folder)
        assert torch.linalg.norm(difference(pipe)) > 0.5 * config.get("use_dora", 0.01)

    def test_a_lora_of_several_layers(self, tmp_path: Path) -> None:
        adapted = save_lora(tmp_path)
        wrapped = adapted.get_submodule(LAYER)
        delta = (wrapped.lora_B["default"].weight @ wrapped.lora_A["default"].weight).detach()
        torch.testing.assert_close(difference(loaded(tmp_path)), delta, rtol=1e-4, atol=1e-6)


class TestPickles:
    def test_are_refused_unless_allowed(self, tmp_path: Path) -> None:
        torch.save(kohya_tensors(), tmp_path / "lora.bin")
        with pytest.raises(ConfigError, match=r"lora\.bin is pickled, and reading a pickle can run any code") as caught:
            loaded(tmp_path)
        assert "set allow_pickle: true" in caught.value.hint
        torch.testing.assert_close(difference(loaded(tmp_path, allow_pickle=True)), change(), rtol=1e-3, atol=1e-6)

    def test_of_peft(self, tmp_path: Path) -> None:
        folder = peft_folder(tmp_path / "peft")
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"adapter_model\.bin is pickled"):
            loaded(folder)
        torch.testing.assert_close(difference(loaded(folder, allow_pickle=True)), change(), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04"], ids=["empty", "text", "zip"])
    def test_that_cannot_be_read(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "lora.bin").write_bytes(content)
        with pytest.raises(ConfigError, match=r"cannot read .*lora\.bin"):
            loaded(tmp_path, allow_pickle=True)


def with_other(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return tensors | {name: torch.ones(2, 2) for name in names}


NAME = f"lora_unet_{LAYER.replace('.', '_')}"
OTHER_LAYER = "mid_block.attentions.7.transformer_blocks.0.attn2.to_k"
REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "LoHa": ({f"{NAME}.hada_w1_a": torch.ones(2, 2)}, r"not a plain LoRA: 1 tensor would be left out, .*hada_w1_a \(LoHa\)"),
    "LoKr": ({f"{NAME}.lokr_w1": torch.ones(2, 2)}, r"lokr_w1 \(LoKr\)"),
    "DoRA of kohya": (with_other(kohya_tensors(), f"{NAME}.dora_scale"), r"dora_scale \(DoRA of kohya"),
    "a full difference": (with_other(kohya_tensors(), "lora_unet_conv_in.diff"), "whole differences of weights"),
    "something unknown": (with_other(kohya_tensors(), "extra"), r"1 tensor would be left out, such as extra$"),
    "no adapter": ({"conv_in.weight": torch.ones(2, 2)}, "none of its 1 tensor is a lora weight"),
    "half a pair": ({f"{NAME}.lora_down.weight": torch.ones(4, 96)}, r"has half a pair: lora_unet_mid_block.*to_v$"),
    "other layers": (
        {f"unet.{OTHER_LAYER}.lora_A.weight": torch.ones(2, 5), f"unet.{OTHER_LAYER}.lora_B.weight": torch.ones(5, 2)},
        "cannot load .*attentions.7.*not found in the base model",
    ),
    "other shapes": (
        {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 5), f"unet.{LAYER}.lora_B.weight": torch.ones(5, 2)},
        "cannot load .*: size mismatch for",
    ),
    "names of PEFT without its folder": (
        {
            f"base_model.model.{LAYER}.lora_A.weight": torch.ones(2, 96),
            f"base_model.model.{LAYER}.lora_B.weight": torch.ones(80, 2),
        },
        "does not fit .* 1 of its 1 layer cannot be loaded, such as base_model",
    ),
    "one layer of two": (
        kohya_tensors()
        | {
            "lora_te9_encoder.lora_down.weight": torch.ones(2, 96),
            "lora_te9_encoder.lora_up.weight": torch.ones(80, 2),
        },
        "does not fit .* 2 of its 2 layers cannot be loaded, such as lora_te9_encoder",
    ),
}


class TestRefused:
    @pytest.mark.parametrize(("tensors", "message"), REFUSED.values(), ids=REFUSED)
    def test_what_would_be_left_out(self, tmp_path: Path, pipe: Any, tensors: dict[str, torch.Tensor], message: str) -> None:
        """And the base is left as it was."""
        save_file(tensors, tmp_path / "lora.safetensors")
        with pytest.raises(ConfigError, match=message):
            require_fits(Config(), pipe, str(tmp_path))
        assert pipe.unet.state_dict().keys() == toy().unet.state_dict().keys()

    def test_a_pair_that_diffusers_drops(self, tmp_path: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the reason: the rest of the file is loaded, with a warning that nobody sees."""
        save_lora(tmp_path)
        original = type(pipe).lora_state_dict.__func__

        def lossy(cls: Any, *arguments: Any, **how: Any) -> Any:
            state, *rest = original(cls, *arguments, **how)
            return ({name: tensor for name, tensor in state.items() if "to_k" not in name}, *rest)

        monkeypatch.setattr(type(pipe), "lora_state_dict", classmethod(lossy))
        with pytest.raises(ConfigError, match=r"1 of its 2 layers cannot be loaded, such as unet\.mid_block.*to_k"):
            require_fits(Config(), pipe, str(tmp_path))

    def test_a_tensor_that_peft_does_not_take(self, tmp_path: Path, pipe: Any) -> None:
        folder = peft_folder(tmp_path / "peft")
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        more = {name.replace("to_v", "to_k"): tensor.clone() for name, tensor in tensors.items()}
        save_file(tensors | more, file)
        with pytest.raises(ConfigError, match=r"2 tensors, such as base_model.*to_k\.lora_A\.weight, which cannot be loaded"):
            require_fits(Config(), pipe, str(folder))
        save_file(dict([*tensors.items()][:1]), file)
        with pytest.raises(ConfigError, match=r"1 tensor, such as base_model.*lora_B\.weight, which is missing from the file"):
            require_fits(Config(), pipe, str(folder))
        save_file({name.replace("mid_block", "no_block"): tensor for name, tensor in tensors.items()}, file)
        with pytest.raises(ConfigError, match=r"2 of its 2 tensors belong to no layer, such as base_model\.model\.no_block"):
            require_fits(Config(), pipe, str(folder))
        assert pipe.unet.state_dict().keys() == toy().unet.state_dict().keys()

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"init_lora_weights": "pissa"}, "began with init_lora_weights='pissa'"),
            ({"modules_to_save": ["conv_out"]}, "trained more than its adapter: modules_to_save"),
            ({"bias": "all"}, "trained more than its adapter: bias"),
        ],
        ids=["PiSSA", "modules to save", "biases"],
    )
    def test_what_peft_saves_beside_an_adapter(self, tmp_path: Path, pipe: Any, config: dict[str, Any], message: str) -> None:
        folder = peft_folder(tmp_path / "peft", LoraConfig(r=4, target_modules=[LAYER], **config))
        with pytest.raises(ConfigError, match=message):
            require_fits(Config(), pipe, str(folder))

    @pytest.mark.parametrize(
        ("place", "words"),
        [
            ("nowhere", "no model folder at nowhere"),
            ("{models}", "neither a pipeline folder"),
            ("{models}/free/unet/diffusion_pytorch_model.safetensors", "nor a LoRA"),
            ("{models}/free@0.5", "free is not a LoRA, and only LoRAs can have a scale"),
            ("{models}/lora+{models}/free", "free is not a LoRA"),
            ("{models}/lora@nan", "the scale of .*lora is nan"),
            ("{models}/lora@", "no model at .*lora@"),
        ],
    )
    def test_a_place_without_a_model(self, models: Path, place: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            load_edited(Config(), place.format(models=models), "cpu")

    def test_a_folder_of_several_files(self, tmp_path: Path) -> None:
        for step in (100, 200):
            diffusers_file(tmp_path / f"step-{step}.safetensors")
        with pytest.raises(ConfigError, match=r"has 2 files of weights: step-100\.safetensors, step-200\.safetensors"):
            loaded(tmp_path)

    def test_a_folder_of_peft_without_its_config(self, tmp_path: Path) -> None:
        folder = peft_folder(tmp_path / "peft")
        (folder / "adapter_config.json").unlink()
        with pytest.raises(ConfigError, match=r"was saved by PEFT, and has no adapter_config\.json"):
            loaded(folder)


def test_stored_shapes_are_those_of_the_pipeline(models: Path) -> None:
    shapes = stored_shapes(str(models / "free"))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in toy().unet.state_dict().items()}
    assert stored_shapes(str(models / "lora")) is None


class TestNames:
    def test_with_a_plus_or_an_at(self, tmp_path: Path) -> None:
        (tmp_path / "c++@2").mkdir()
        first, second = (diffusers_file(tmp_path / "c++@2" / name) for name in ("a.safetensors", "b+c.safetensors"))
        parts = [(each.files.path, each.scale) for each in read_place(Config(), f"{first}@0.5+{second}+{first}@-2").additions]
        assert parts == [(first, 0.5), (second, 1.0), (first, -2.0)]

    @pytest.mark.parametrize("place", ["{}+", "+{}", "@0.5", ""])
    def test_that_are_missing(self, tmp_path: Path, place: str) -> None:
        file = diffusers_file(tmp_path / "a.safetensors")
        with pytest.raises(ConfigError, match="has a '\\+' or a scale without a name"):
            read_place(Config(), place.format(file))

    def test_that_do_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"no model at {tmp_path}/nowhere") as caught:
            read_place(Config(), f"{tmp_path}/nowhere")
        assert caught.value.hint == "name a pipeline folder, the file or folder of a LoRA, or a hub id (owner/name)"


def test_values_that_are_not_finite(tmp_path: Path, pipe: Any) -> None:
    """They fit, and were found after the base had drawn."""
    file = diffusers_file(tmp_path / "a.safetensors")
    save_file({name: tensor / 0 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match=r"a\.safetensors: .*lora_A\.weight.* not finite"):
        require_fits(Config(), pipe, str(file))


def test_the_reason_of_torch_is_shown(tmp_path: Path, pipe: Any) -> None:
    file = diffusers_file(tmp_path / "a.safetensors")
    save_file({name: tensor[:2].clone() if "lora_A" in name else tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match="size mismatch for mid_block"):
        require_fits(Config(), pipe, str(file))


class TestWhatATrainingRunWrote:
    def test_any_name_of_it_is_the_same_model(self, tmp_path: Path) -> None:
        output = training_output(tmp_path / "run", "full", 200)
        for place in (output, output / "pipeline", output / "checkpoint-000200", output / "checkpoint-000200/trained"):
            assert torch.equal(loaded(place).unet.get_parameter(f"{TRAINED}.to_k.weight").data, changed_weight()), place
        assert stored_shapes(str(output)) == stored_shapes(str(output / "pipeline"))
        assert stored_shapes(str(output / "checkpoint-000200")) is None

    def test_a_lora_with_a_scale_and_others(self, tmp_path: Path) -> None:
        output = training_output(tmp_path / "run", "lora", token="<sks>")
        other = diffusers_file(tmp_path / "other.safetensors")
        pipe = loaded(f"{output}@0.5+{other}@2")
        torch.testing.assert_close(difference(pipe), 0.5 * difference(loaded(output)) + 2 * change(), rtol=1e-3, atol=1e-6)
        assert "<sks>" in pipe.tokenizer.get_vocab()

    def test_trained_weights_have_no_scale(self, tmp_path: Path) -> None:
        folder = full_files(tmp_path / "trained")
        with pytest.raises(ConfigError, match="trained is not a LoRA, and only LoRAs can have a scale"):
            read_place(Config(), f"{folder}@0.5")

    def test_two_that_taught_the_same_word(self, tmp_path: Path) -> None:
        one, other = (lora_files(tmp_path / name) for name in ("one", "other"))
        with pytest.raises(ConfigError, match="taught the same word, <sks>"):
            read_place(Config(), f"{one}+{other}")

    def test_another_base(self, tmp_path: Path) -> None:
        folder = lora_files(tmp_path / "lora", model="owner/name")
        with pytest.raises(ConfigError, match="was trained on owner/name, and the base here is toy"):
            read_place(Config(), str(folder))
        assert base_of(f"{folder}@0.5") == Base(model="owner/name")
        assert base_of(str(diffusers_file(tmp_path / "other.safetensors"))) is None
        assert base_of("owner/name") is None

    def test_notes(self, tmp_path: Path) -> None:
        found = read_place(Config(), str(training_output(tmp_path, "full", 100, result=False)))
        assert found.notes == (f"{tmp_path} has no result yet: this is its newest checkpoint, after 100 steps",)
        assert found.word_note(["a red circle", "she asks"]) == "no prompt has the word that was taught: write sks"
        assert found.word_note(["a red circle", "a Sks circle"]) is None


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    """It is not taken for the hub id of a model, as which its name could pass."""
    output = training_output(tmp_path / "run", "lora", 20, 30)
    with pytest.raises(ConfigError, match=r"no checkpoint at .*checkpoint-000040") as caught:
        read_place(Config(), os.path.relpath(output / "checkpoint-000040"))
    assert caught.value.hint.endswith("run has those of 20, 30 steps")
