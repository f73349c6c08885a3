"""LoRA files of every trainer: the weights that their modules change, by how much, and files whose inputs were mapped."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import save_file

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import notes_in
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.kohya_names import kohya_modules
from nullbooth_cli.model.lora_file import LoraFile
from tests.support import tiny

Tensors = dict[str, torch.Tensor]
SGM = re.compile("lora_unet_(input_blocks|middle_block|output_blocks)")
QKV = "lora_unet_double_blocks_0_img_attn_qkv"


def made(name: str) -> Any:
    torch.manual_seed(0)
    return tiny.PIPELINES[name]()


def shapes_of(pipe: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in denoiser_of(pipe).named_parameters()}


def kohya_pair(name: str, shape: tuple[int, ...], rank: int = 2) -> Tensors:
    """A pair of a module in kohya's form, with an alpha that is another than its rank."""
    m, *rest = shape
    kernel = [1] * (len(rest) - 1)
    return {
        f"{name}.lora_down.weight": torch.randn(rank, *rest) * 0.1,
        f"{name}.lora_up.weight": torch.randn(m, rank, *kernel) * 0.1,
        f"{name}.alpha": torch.tensor(3.0),
    }


def written(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    save_file(
        {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()},
        path,
        metadata=dict(metadata or {}),
    )
    return path


def changes(file: LoraFile) -> dict[str, torch.Tensor]:
    """The change of each weight of the denoiser that a file makes."""
    found: dict[str, torch.Tensor] = {}
    for module in file.modules:
        if module.part == "denoiser":
            change = module.change()
            for weight, rows in zip(module.weights, module.rows, strict=True):
                found[weight] = found.get(weight, 0) + change[rows]
    return found


def changed_by_diffusers(pipe: Any, path: Path) -> dict[str, torch.Tensor]:
    """The change of each weight of the denoiser once diffusers has fused the file."""
    before = {name: value.clone() for name, value in denoiser_of(pipe).state_dict().items()}
    pipe.load_lora_weights(str(path))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = denoiser_of(pipe).state_dict()
    return {name: (after[name] - value).flatten(1) for name, value in before.items() if not torch.equal(after[name], value)}


def assert_same_changes(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def unet_of_kohya(pipe: Any, *, sgm: bool) -> Tensors:
    """Projections, a feed-forward, a 1x1 and a 3x3 convolution; and a layer of the text encoder."""
    shapes, cls = shapes_of(pipe), type(pipe).__name__
    wanted = ("attn2.to_k.weight", "attn1.to_out.0.weight", "ff.net.0.proj.weight", "proj_in.weight", "conv1.weight")
    tensors: Tensors = {}
    for name, (weight,) in kohya_modules(shapes, cls).items():
        if weight.endswith(wanted) and bool(SGM.match(name)) is sgm:
            tensors |= kohya_pair(name, shapes[weight])
    encoder = "lora_te1_" if cls == "StableDiffusionXLPipeline" else "lora_te_"
    return tensors | kohya_pair(f"{encoder}text_model_encoder_layers_0_self_attn_out_proj", (24, 24))


@pytest.mark.parametrize(("name", "sgm"), [("sd1", False), ("sdxl", False), ("sdxl", True)])
def test_a_unet_of_kohya(tmp_path: Path, name: str, sgm: bool) -> None:
    pipe = made(name)
    path = written(tmp_path / "a.safetensors", unet_of_kohya(pipe, sgm=sgm))
    file = LoraFile.read(path, type(pipe).__name__, shapes_of(pipe))
    assert [module.part for module in file.modules if not module.weights] == ["text_encoder"]
    assert {module.kind for module in file.modules} == {"lora"}
    assert len(changes(file)) > 5
    assert_same_changes(changes(file), changed_by_diffusers(pipe, path))


@pytest.mark.parametrize("form", ["kohya", "comfy"])
def test_fused_rows_of_flux(tmp_path: Path, form: str) -> None:
    pipe = made("flux")
    name = QKV if form == "kohya" else "diffusion_model.double_blocks.0.img_attn.qkv"
    path = written(tmp_path / "a.safetensors", kohya_pair(name, (96, 32)))
    file = LoraFile.read(path, "FluxPipeline", shapes_of(pipe))
    assert file.modules[0].rows == (slice(0, 32), slice(32, 64), slice(64, 96))
    assert_same_changes(changes(file), changed_by_diffusers(pipe, path))


def test_a_sd3_of_kohya(tmp_path: Path) -> None:
    """diffusers leaves it out with a warning."""
    pipe = made("sd3")
    name = "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1"
    path = written(tmp_path / "a.safetensors", kohya_pair(name, (64, 32)))
    (module,) = LoraFile.read(path, "StableDiffusion3Pipeline", shapes_of(pipe)).modules
    assert module.weights == ("transformer_blocks.1.norm1_context.linear.weight",)
    up, down = module.tensors["up"], module.tensors["down"]
    rows = 1.5 * up @ down
    torch.testing.assert_close(module.change(), torch.cat([rows[32:], rows[:32]]))  # shift and scale change places


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux"])
def test_a_lora_of_diffusers(tmp_path: Path, name: str) -> None:
    """Its alpha is in the metadata."""
    pipe = made(name)
    denoiser = denoiser_of(pipe)
    denoiser.add_adapter(peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_k", "to_q", "to_out.0"]))
    fill(denoiser)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    how = {
        f"{part}_lora_layers": peft.get_peft_model_state_dict(denoiser),
        f"{part}_lora_adapter_metadata": denoiser.peft_config["default"].to_dict(),
    }
    pipe.save_lora_weights(tmp_path, **how)
    plain = made(name)
    file = LoraFile.read(tmp_path, type(plain).__name__, shapes_of(plain))
    assert_same_changes(changes(file), changed_by_diffusers(plain, tmp_path))


def fill(denoiser: Any) -> None:
    for key, parameter in denoiser.named_parameters():
        if any(part in key for part in ("lora_", "hada_", "lokr_")):
            parameter.data.normal_(0, 0.1)


@pytest.mark.parametrize("form", ["unet.{}.lora.{}.weight", "unet.{}_lora.{}.weight", "{}_lora.{}.weight"])
def test_old_forms_of_diffusers(tmp_path: Path, form: str) -> None:
    pipe = made("sd1")
    tensors = {}
    for layer in ("to_q", "to_out" if "_lora" in form else "to_out.0"):
        processor = "processor." if "_lora" in form else ""
        path = f"mid_block.attentions.0.transformer_blocks.0.attn2.{processor}{layer}"
        tensors |= {form.format(path, "down"): torch.randn(2, 64), form.format(path, "up"): torch.randn(64, 2)}
    file = LoraFile.read(written(tmp_path / "a.safetensors", tensors), "StableDiffusionPipeline", shapes_of(pipe))
    attention = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert {module.weights for module in file.modules} == {(f"{attention}.to_q.weight",), (f"{attention}.to_out.0.weight",)}
    assert {module.scale for module in file.modules} == {1.0}


def test_xlabs(tmp_path: Path) -> None:
    pipe = made("flux")
    tensors = {}
    for name, rows in {
        "double_blocks.0.processor.qkv_lora1": 96,
        "double_blocks.0.processor.qkv_lora2": 96,
        "double_blocks.0.processor.proj_lora1": 32,
        "double_blocks.0.processor.proj_lora2": 32,
        "single_blocks.0.processor.qkv_lora": 96,
    }.items():
        tensors |= {f"{name}.down.weight": torch.randn(2, 32) * 0.1, f"{name}.up.weight": torch.randn(rows, 2) * 0.1}
    path = written(tmp_path / "a.safetensors", tensors)
    file = LoraFile.read(path, "FluxPipeline", shapes_of(pipe))
    assert_same_changes(changes(file), changed_by_diffusers(pipe, path))


PEFT = {
    "lora": peft.LoraConfig(
        r=2, lora_alpha=6, rank_pattern={"attn2.to_k": 4}, alpha_pattern={"attn2.to_q": 1}, target_modules=["to_k", "to_q"]
    ),
    "rslora": peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["to_k"]),
    "dora": peft.LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=["to_k"]),
    "loha": peft.LoHaConfig(r=2, alpha=6, target_modules=["to_k"]),
    "lokr": peft.LoKrConfig(r=1, alpha=6, target_modules=["to_k"]),
}


@pytest.mark.parametrize(("name", "kind"), [("pixart", "lora"), *(("sd1", kind) for kind in PEFT)])
def test_a_folder_of_peft(tmp_path: Path, name: str, kind: str) -> None:
    pipe = made(name)
    denoiser = denoiser_of(pipe)
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    wrapped = peft.get_peft_model(denoiser, PEFT[kind])
    fill(wrapped)
    wrapped.save_pretrained(str(tmp_path))
    shapes = {key: tuple(value.shape) for key, value in before.items()}
    file = LoraFile.read(tmp_path, type(pipe).__name__, shapes)
    assert {module.kind for module in file.modules} == {"lora" if kind == "rslora" else kind}
    after = wrapped.merge_and_unload().state_dict()
    assert sorted(module.weights[0] for module in file.modules) == sorted(
        key for key in before if not torch.equal(after[key], before[key])
    )
    for module in file.modules:
        wanted = after[module.weights[0]] - before[module.weights[0]]
        torch.testing.assert_close(module.change(before[module.weights[0]]), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_mapped_folder_of_peft_becomes_one_of_plain_loras(tmp_path: Path, kind: str) -> None:
    """One module is mapped, one only becomes plain: the config knows one kind. PEFT merges it into the same weights."""
    pipe = made("sd1")
    config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]
    options = {"alpha": 6, "target_modules": r"(mid_block.*attn1\.to_k|conv_in)", "rank_pattern": {"conv_in": 1}}
    wrapped = peft.get_peft_model(pipe.unet, config(r=2, **options))
    fill(wrapped)
    wrapped.save_pretrained(str(tmp_path / "old"))
    plain = made("sd1")
    shapes = shapes_of(plain)
    file = LoraFile.read(tmp_path / "old", "StableDiffusionPipeline", shapes)
    mapped, other = sorted(file.modules, key=lambda module: "conv_in" in module.name)
    m = np.random.default_rng(0).standard_normal((64, 64)) / 8
    tensors, _ = file.with_inputs_mapped({mapped.name: m}, "")
    written((tmp_path / "adapter_model.safetensors"), tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(dict(file.peft_config(tensors))))
    before = {key: value.clone() for key, value in plain.unet.state_dict().items()}
    loaded: Any = peft.PeftModel.from_pretrained(plain.unet, str(tmp_path))
    after = loaded.merge_and_unload().state_dict()
    wanted = {
        mapped.weights[0]: mapped.change() @ torch.from_numpy(m).float(),
        other.weights[0]: other.change().reshape(shapes[other.weights[0]]),
    }
    assert {key for key in before if not torch.equal(after[key], before[key])} == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(after[key] - before[key], value, rtol=1e-3, atol=1e-5)
    again = LoraFile.read(tmp_path, "StableDiffusionPipeline", shapes)
    assert_same_changes(changes(again), {key: value.flatten(1) for key, value in wanted.items()})


PREFIXES = {
    "diffusers": "unet.{}.lora_{}.weight",
    "comfy": "diffusion_model.{}.lora_{}.weight",
    "checkpoint": "model.diffusion_model.{}.lora_{}.weight",
    "peft": "base_model.model.{}.lora_{}.weight",
    "peft of a pipeline": "base_model.model.unet.{}.lora_{}.weight",
    "peft of a transformer": "base_model.model.transformer.{}.lora_{}.weight",
    "an adapter's name": "base_model.model.unet.{}.lora_{}.default.weight",
    "diffusers and a name": "unet.{}.lora_{}.my_style.weight",
}


@pytest.mark.parametrize("form", PREFIXES)
def test_every_prefix_is_one_file_and_keeps_its_form(tmp_path: Path, form: str) -> None:
    """Renamed and mapped is mapped and renamed."""
    shapes = shapes_of(made("sd1"))
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    key = PREFIXES[form].format(layer, "{}")
    tensors = {key.format("A"): torch.randn(2, 64), key.format("B"): torch.randn(64, 2)}
    file = LoraFile.read(written(tmp_path / "a.safetensors", tensors), "StableDiffusionPipeline", shapes)
    assert [(module.weights, module.part, module.path) for module in file.modules] == [((f"{layer}.weight",), "denoiser", layer)]
    torch.testing.assert_close(file.modules[0].change(), tensors[key.format("B")] @ tensors[key.format("A")])
    m = np.random.default_rng(0).standard_normal((64, 64))
    mapped, _ = file.with_inputs_mapped({file.modules[0].name: m}, "")
    renamed = {PREFIXES["diffusers"].format(layer, side): tensors[key.format(side)] for side in "AB"}
    other = LoraFile.read(written(tmp_path / "b.safetensors", renamed), "StableDiffusionPipeline", shapes)
    twice, _ = other.with_inputs_mapped({other.modules[0].name: m}, "")
    assert mapped.keys() == tensors.keys()
    for side in "AB":
        assert torch.equal(mapped[key.format(side)], twice[PREFIXES["diffusers"].format(layer, side)])


def test_a_text_encoder_behind_a_prefix(tmp_path: Path) -> None:
    shapes = shapes_of(made("sd1"))
    for name in (
        "base_model.model.text_encoder.text_model.x",
        "base_model.model.text_model.x",
        "base_model.model.encoder.layers.0.x",
    ):
        tensors = {f"{name}.lora_A.weight": torch.zeros(2, 4), f"{name}.lora_B.weight": torch.zeros(4, 2)}
        (module,) = LoraFile.read(written(tmp_path / "a.safetensors", tensors), "StableDiffusionPipeline", shapes).modules
        assert (module.part, module.weights) == ("text_encoder", ())


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = {f"unet.conv_in.lora_{side}.{name}.weight": torch.zeros(2, 2) for side in "AB" for name in ("one", "two")}
    with pytest.raises(ConfigError, match=r"has two adapters: .*lora_A\.one\.weight and .*lora_A\.two\.weight"):
        LoraFile.read(written(tmp_path / "a.safetensors", tensors), "StableDiffusionPipeline", shapes_of(made("sd1")))


def test_notes_stay_in_their_order(tmp_path: Path) -> None:
    tensors = kohya_pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v", (64, 24))
    metadata: dict[str, str] = {}
    for note in ("one", "two\nlines", "three"):
        path = written(tmp_path / "a.safetensors", tensors, metadata)
        file = LoraFile.read(path, "StableDiffusionPipeline", shapes_of(made("sd1")))
        _, metadata = file.with_inputs_mapped({}, note)
    assert notes_in(metadata) == ("one", "two lines", "three")


def test_other_trainers_of_flux(tmp_path: Path) -> None:
    """OneTrainer's names, SimpleTuner's of LyCORIS, ai-toolkit's, and a T5, which kohya calls the third encoder."""
    pipe = made("flux")
    tensors = kohya_pair("lora_transformer_transformer_blocks_0_attn_to_q", (32, 32))
    tensors |= kohya_pair("lycoris_transformer_blocks_0_attn_to_k", (32, 32))
    tensors |= {
        "transformer.transformer_blocks.0.attn.to_v.lora_A.weight": torch.randn(2, 32),
        "transformer.transformer_blocks.0.attn.to_v.lora_B.weight": torch.randn(32, 2),
    }
    tensors |= kohya_pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", (24, 24))
    file = LoraFile.read(written(tmp_path / "a.safetensors", tensors), "FluxPipeline", shapes_of(pipe))
    found = sorted((module.part, module.weights) for module in file.modules)
    attention = "transformer_blocks.0.attn"
    assert found == [*(("denoiser", (f"{attention}.to_{each}.weight",)) for each in "kqv"), ("text_encoder_2", ())]


ONE_PAIR = kohya_pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q", (64, 64))


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (
            kohya_pair("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_q", (64, 64)),
            "1 module of its 1 change no weight",
        ),
        (kohya_pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q", (64, 32)), r"\[64, 32\].*\[64, 64\]"),
        (ONE_PAIR | {"unet.conv_in.weight": torch.zeros(4)}, "1 tensor of its 4 is no part of one: unet.conv_in.weight"),
        ({key: value for key, value in ONE_PAIR.items() if "up" not in key}, "2 tensors of its 2 are no part of one"),
        (ONE_PAIR | {key: torch.zeros(64, 3) for key in ONE_PAIR if "up" in key}, "do not fit each other"),
    ],
)
def test_what_is_refused(tmp_path: Path, tensors: Tensors, problem: str) -> None:
    pipe = made("sd1")
    with pytest.raises(ConfigError, match=problem):
        LoraFile.read(written(tmp_path / "a.safetensors", tensors), "StableDiffusionPipeline", shapes_of(pipe))


def test_a_peft_folder_that_changed_the_base(tmp_path: Path) -> None:
    pipe = made("sd1")
    shapes = shapes_of(pipe)
    peft.get_peft_model(denoiser_of(pipe), PEFT["lora"]).save_pretrained(str(tmp_path))
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(ConfigError, match="init_lora_weights='pissa', which changes the weights of the base"):
        LoraFile.read(tmp_path, "StableDiffusionPipeline", shapes)


def converted(tensors: Mapping[str, torch.Tensor], pipe: Any) -> Tensors:
    """A file of kohya in the form of diffusers."""
    copied = {key: value.clone() for key, value in tensors.items()}
    if type(pipe).__name__ == "FluxPipeline":
        return dict(lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(copied))
    copied = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(copied, pipe.unet.config)
    return dict(lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(copied)[0])  # alphas are beside it


@pytest.mark.parametrize(("name", "sgm"), [("sd1", False), ("sdxl", True), ("flux", False)])
def test_converted_mapped_file_equals_mapped_converted_file(tmp_path: Path, name: str, sgm: bool) -> None:
    pipe = made(name)
    shapes, cls = shapes_of(pipe), type(pipe).__name__
    tensors = kohya_pair(QKV, (96, 32)) if name == "flux" else unet_of_kohya(pipe, sgm=sgm)
    tensors = {key: value.to(torch.bfloat16) if "lora_" in key.split(".")[1] else value for key, value in tensors.items()}
    one = LoraFile.read(written(tmp_path / "one.safetensors", tensors), cls, shapes)
    rng = np.random.default_rng(0)
    by_weight = {}
    for module in one.modules:
        size = module.tensors["down"].flatten(1).shape[1]
        by_weight |= dict.fromkeys(module.weights, rng.standard_normal((size, size)) / size**0.5)
    mapped, metadata = one.with_inputs_mapped(
        {module.name: by_weight[module.weights[0]] for module in one.modules if module.weights}, "solved again"
    )
    assert metadata == {"nullbooth": "solved again"}
    other = LoraFile.read(written(tmp_path / "other.safetensors", converted(tensors, pipe)), cls, shapes)
    twice, _ = other.with_inputs_mapped(
        {module.name: by_weight[module.weights[0]] for module in other.modules if module.weights}, ""
    )
    again = converted(mapped, pipe)
    assert again.keys() == twice.keys()
    assert not all(torch.equal(twice[key], other.tensors[key]) for key in twice)
    for key, value in twice.items():
        assert value.dtype == again[key].dtype
        torch.testing.assert_close(again[key], value, rtol=1e-2, atol=1e-3)


def test_a_mapped_file_keeps_its_form(tmp_path: Path) -> None:
    pipe = made("sd1")
    other = kohya_pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v", (64, 24))
    text = kohya_pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (24, 24))
    tensors = {key: value.half() for key, value in (other | ONE_PAIR | text).items()}
    metadata = {"ss_network_args": "{}", "ss_seed": "42", "sshash_model_hash": "abc"}
    path = written(tmp_path / "a.safetensors", tensors, metadata)
    file = LoraFile.read(path, "StableDiffusionPipeline", shapes_of(pipe))
    assert [*file.tensors] == sorted(tensors)
    names = {module.part + module.name[-4:]: module.name for module in file.modules}
    q, v = names["denoiserto_q"], names["denoiserto_v"]
    matrix = np.random.default_rng(0).standard_normal((64, 64))
    made_tensors, made_metadata = file.with_inputs_mapped({q: matrix, v: 0.5}, "note")
    assert made_metadata == {"ss_network_args": "{}", "ss_seed": "42", "nullbooth": "note"}
    assert [*made_tensors] == [*file.tensors]
    for key, value in made_tensors.items():
        was = file.tensors[key].double().numpy()
        if key == f"{q}.lora_down.weight":
            was = was @ matrix
        elif key == f"{v}.lora_down.weight":
            was = was * 0.5
        assert (value.dtype, value.shape) == (torch.float16, file.tensors[key].shape)
        np.testing.assert_allclose(value.double().numpy(), was, rtol=1e-3, atol=1e-4)
    dropped, _ = file.with_inputs_mapped({}, "note", drop=[q, names["text_encoderproj"]])
    assert sorted(dropped) == sorted(key for key in other)


def test_a_module_that_the_file_lacks(tmp_path: Path) -> None:
    file = LoraFile.read(written(tmp_path / "a.safetensors", ONE_PAIR), "StableDiffusionPipeline", shapes_of(made("sd1")))
    with pytest.raises(ConfigError, match=r"has no module lora_unet_x"):
        file.with_inputs_mapped({"lora_unet_x": 1.0}, "")
    with pytest.raises(ConfigError, match=r"has 64 values, and its matrix the shape \[3, 3\]"):
        file.with_inputs_mapped({file.modules[0].name: np.eye(3)}, "")
