"""What a LoRA file does to the preserved prompts: as numpy says from the store, and as evaluate says from the loaded model."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file

import nullbooth_cli as nb
from nullbooth_cli.collect.edited_model import load_edited
from nullbooth_cli.collect.open_model import open_base
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation.lora_drift import LoraDrift, measure
from nullbooth_cli.evaluation.weight_drift import weight_drifts, weights_of
from nullbooth_cli.model.base_weights import BaseWeights
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, small_config
from tests.support.edited_models import toy
from tests.support.trained_folders import changed_weight, full_files, lora_files

Run = tuple[Config, Store]
ATTENTION = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_"
WEIGHT = "mid_block.attentions.0.transformer_blocks.0.attn2.{}.weight"


@pytest.fixture(scope="module")
def base() -> BaseWeights:
    return open_base(Config(), "cpu")


def pair(name: str, shape: tuple[int, ...], down: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    m, *rest = shape
    kernel = [1] * (len(rest) - 1)
    return {
        f"{name}.lora_down.weight": torch.randn(2, *rest) * 0.1 if down is None else down,
        f"{name}.lora_up.weight": torch.randn(m, 2, *kernel) * 0.1,
        f"{name}.alpha": torch.tensor(3.0),
    }


def measured(run: Run, base: BaseWeights, folder: Path, tensors: dict[str, torch.Tensor]) -> LoraDrift:
    save_file(tensors, folder / "a.safetensors")
    return measure(run[1], folder / "a.safetensors", base)


def test_as_evaluate_measures_the_loaded_model(run: Run, models: Path, base: BaseWeights) -> None:
    config, store = run
    found = measure(store, models / "lora", base)
    names = [name for site in store.sites for name in site.weights]
    weights = [weights_of(pipe, names) for pipe in (toy(), load_edited(config, str(models / "lora"), "cpu"))]
    (wanted,) = weight_drifts(store, store.heldout(), weights[0], weights[1:])
    drifts = {each.weight: each for each in wanted.weights}
    assert [module.weights for module in found.modules] == [(WEIGHT.format(each),) for each in ("to_k", "to_v")]
    for module in found.modules:
        other = drifts[module.weights[0]]
        assert module.drift == pytest.approx(other.drift, rel=1e-3)
        assert module.heldout_drift == pytest.approx(other.heldout_drift, rel=1e-3)
    assert found.largest_drift == max(module.drift or 0 for module in found.modules)
    assert (found.measured, found.outside, found.other_parts) == (2, {}, {})


def test_the_share_inside_as_numpy_says(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    tensors = pair(f"{ATTENTION}to_k", base.shapes[WEIGHT.format("to_k")])
    (module,) = measured(run, base, tmp_path, tensors).modules
    change = 1.5 * tensors[f"{ATTENTION}to_k.lora_up.weight"].double() @ tensors[f"{ATTENTION}to_k.lora_down.weight"].double()
    change = change.numpy()
    p = nb.open_store(run[1].path).projectors()[WEIGHT.format("to_k")].dense()
    assert module.inside == pytest.approx(np.linalg.norm(change @ p) ** 2 / np.linalg.norm(change) ** 2, rel=1e-4)
    assert module.norm == pytest.approx(np.linalg.norm(change), rel=1e-4)
    assert 0 < (module.inside or 0) < 1


def test_a_change_in_the_null_space_hardly_moves_anything(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    shape = base.shapes[WEIGHT.format("to_k")]
    projector = nb.open_store(run[1].path).projectors()[WEIGHT.format("to_k")]
    torch.manual_seed(1)
    down = torch.randn(2, shape[1])
    words = {}
    for scale in (0.003, 0.03, 1.0):
        free = measured(run, base, tmp_path, pair(f"{ATTENTION}to_k", shape, scale * down))
        inside = projector.apply(scale * down.double()).float()
        found = measured(run, base, tmp_path, pair(f"{ATTENTION}to_k", shape, inside))
        assert found.inside == pytest.approx(1, abs=1e-5)
        assert (found.largest_drift or 1) < 0.25 * (free.largest_drift or 0)
        words[scale] = (free.word, found.word, found.is_good)
    assert words == {
        0.003: ("hardly moved", "hardly moved", True),
        0.03: ("moved a little", "hardly moved", True),
        1.0: ("moved much", "moved much", False),
    }


def test_what_is_outside(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    block = "mid_block.attentions.0.transformer_blocks.0"
    tensors = pair(f"{ATTENTION}to_k", base.shapes[WEIGHT.format("to_k")])
    outside = {
        f"{block}.attn1.to_q": "attn1",
        f"{block}.attn1.to_out.0": "attn1",
        f"{block}.ff.net.0.proj": "ff_in",
        "mid_block.attentions.0.proj_in": "proj_in",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q": "attn2 q",
        "mid_block.resnets.0.conv1": "convolution",
        "time_embedding.linear_1": "linear",
    }
    for path in outside:
        tensors |= pair("lora_unet_" + path.replace(".", "_"), base.shapes[f"{path}.weight"])
    tensors |= pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (96, 96))
    found = measured(run, base, tmp_path, tensors)
    assert nb.open_store(run[1].path).inspect_lora(tmp_path / "a.safetensors") == found
    assert dict(found.outside) == {"attn1": 2, "ff_in": 1, "proj_in": 1, "attn2 q": 1, "convolution": 1, "linear": 1}
    assert dict(found.other_parts) == {"text_encoder": 1}
    assert (found.measured, found.is_good) == (1, False)
    reasons = {module.module: module.reason for module in found.modules if module.part != "denoiser"}
    assert [*reasons.values()] == ["it is in the text_encoder"]
    alone = measured(
        run, base, tmp_path, pair("lora_unet_time_embedding_linear_1", base.shapes["time_embedding.linear_1.weight"])
    )
    assert (alone.word, alone.largest_drift, alone.is_good) == ("unknown", None, False)


def test_a_store_of_a_whole_block(base: BaseWeights, tmp_path: Path) -> None:
    """Feed-forward, self-attention and 1x1 convolutions: nothing of kohya's default LoRA of that block is outside."""
    block = "mid_block.attentions.0"
    config = small_config(
        tmp_path / "run.zarr",
        original_knowledge_prompts=PROMPTS[:2],
        collect__cross_attention_layers=["mid_block*"],
        collect__linear_layers=[f"{block}.*"],
        schedule__num_denoising_steps=2,
    )
    store = execute(config, "collect", "covariance", "project")
    tensors: dict[str, torch.Tensor] = {}
    names = [name for name, shape in base.shapes.items() if name.startswith(f"{block}.") and len(shape) > 1]
    for name in names:
        tensors |= pair("lora_unet_" + name.removesuffix(".weight").replace(".", "_"), base.shapes[name])
    found = measured((config, store), base, tmp_path, tensors)
    assert (found.measured, found.outside) == (12, {})
    drifts = {module.weights[0]: module.drift for module in found.modules}
    opened = nb.open_store(store.path)
    for site in opened.sites():
        c = opened.moment(site).second_moment
        for name in site.weights:
            module = next(module for module in found.modules if module.weights == (name,))
            up, down = (tensors[f"{module.module}.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
            change = 1.5 * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            w = base.read([name])[name].double().flatten(1).numpy()
            assert drifts[name] == pytest.approx(np.sqrt(np.trace(change @ c @ change.T) / np.trace(w @ c @ w.T)), rel=1e-3)


def test_a_dora_is_measured_with_its_base(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    pipe = toy()
    wrapped = peft.get_peft_model(pipe.unet, peft.LoraConfig(r=2, use_dora=True, target_modules=r"mid_block.*attn2\.to_v"))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    wrapped.save_pretrained(str(tmp_path))
    (module,) = measure(run[1], tmp_path, base).modules
    names = [name for site in run[1].sites for name in site.weights]
    weights = [weights_of(made, names) for made in (toy(),)]
    after = toy()
    after.unet.load_state_dict(wrapped.merge_and_unload().state_dict())
    (wanted,) = weight_drifts(run[1], None, weights[0], [weights_of(after, names)])
    assert (module.kind, module.weights) == ("dora", (WEIGHT.format("to_v"),))
    assert module.drift == pytest.approx({each.weight: each.drift for each in wanted.weights}[WEIGHT.format("to_v")], rel=1e-3)


def test_a_shift_of_the_bias_moves_every_output(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    name, weight = f"{ATTENTION}to_out_0", WEIGHT.format("to_out.0")
    zero = {f"{name}.diff": torch.zeros(base.shapes[weight])}
    assert measured(run, base, tmp_path, zero).largest_drift == 0
    found = measured(run, base, tmp_path, zero | {f"{name}.diff_b": torch.ones(base.shapes[weight][0])})
    store = nb.open_store(run[1].path)
    site = next(site for site in store.sites() if weight in site.weights)
    w = base.read([weight])[weight].double().numpy()
    c = store.moment(site).second_moment
    assert found.largest_drift == pytest.approx(np.sqrt(len(w) / np.trace(w @ c @ w.T)), rel=1e-6)


def test_a_training_output(run: Run, models: Path, base: BaseWeights, tmp_path: Path) -> None:
    trained = tmp_path / "checkpoint-000002" / "trained"
    trained.mkdir(parents=True)
    (trained / "pytorch_lora_weights.safetensors").write_bytes((models / "lora/pytorch_lora_weights.safetensors").read_bytes())
    (trained / "base.json").write_text(json.dumps({"model": "toy"}))
    assert measure(run[1], tmp_path, base).modules == measure(run[1], models / "lora", base).modules


def test_a_training_output_with_a_word(run: Run, models: Path, base: BaseWeights, tmp_path: Path) -> None:
    trained = lora_files(tmp_path / "lora", "<sks>")
    assert measure(run[1], trained, base).modules == measure(run[1], models / "lora", base).modules


def test_trained_weights_by_their_difference_to_the_base(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    """Checkpoints of method full, and a whole pipeline in which more was trained."""
    store = nb.open_store(run[1].path)
    name = WEIGHT.format("to_k")
    (found,) = measure(run[1], full_files(tmp_path / "full"), base).modules
    w = base.read([name])[name].double().numpy()
    change = changed_weight().double().numpy() - w
    site = next(site for site in store.sites() if name in site.weights)
    c = store.moment(site).second_moment
    p = store.projectors()[name].dense()
    assert (found.module, found.kind, found.weights) == (name.removesuffix(".weight"), "full", (name,))
    assert found.drift == pytest.approx(np.sqrt(np.trace(change @ c @ change.T) / np.trace(w @ c @ w.T)), rel=1e-5)
    assert found.inside == pytest.approx((np.linalg.norm(change @ p) / np.linalg.norm(change)) ** 2, rel=1e-5)

    pipe = toy()
    pipe.unet.get_parameter(name).data.copy_(changed_weight())
    pipe.unet.conv_out.bias.data += 1
    pipe.unet.get_parameter("mid_block.attentions.0.norm.weight").data += 1
    pipe.unet.save_pretrained(tmp_path / "pipeline" / "unet")
    pipe.save_config(tmp_path / "pipeline")
    whole = measure(run[1], tmp_path / "pipeline", base)
    assert [module.module for module in whole.modules if module.drift is not None] == [found.module]
    assert next(module for module in whole.modules if module.module == found.module) == found
    assert dict(whole.outside) == {"norm": 1, "convolution": 1}


def test_trained_weights_in_half_precision_change_only_what_differs(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    pipe = toy().to(torch.float16)
    pipe.unet.get_parameter(WEIGHT.format("to_v")).data += 0.5
    pipe.unet.save_pretrained(tmp_path / "unet")
    pipe.save_config(tmp_path)
    assert [module.weights for module in measure(run[1], tmp_path, base).modules] == [(WEIGHT.format("to_v"),)]


@pytest.mark.parametrize(
    ("value", "problem"), [(torch.zeros(3, 3), "does not fit"), (torch.full((80, 96), np.nan), "not finite")]
)
def test_trained_weights_that_are_wrong(run: Run, base: BaseWeights, tmp_path: Path, value: torch.Tensor, problem: str) -> None:
    folder = full_files(tmp_path)
    save_file({WEIGHT.format("to_k"): value}, folder / "denoiser.safetensors")
    with pytest.raises(ConfigError, match=problem):
        measure(run[1], folder, base)


def test_nothing_there(run: Run, base: BaseWeights, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing at .*a\.safetensors@0\.8"):
        measure(run[1], tmp_path / "a.safetensors@0.8", base)


def test_another_base_than_the_store_was_collected_from(run: Run, models: Path, base: BaseWeights) -> None:
    pipe = toy()
    pipe.unet.get_parameter(WEIGHT.format("to_k")).data += 1e-3
    with pytest.raises(ConfigError, match=r"to_k\.weight of the base is another one than that of the model"):
        measure(run[1], models / "lora", BaseWeights.of_pipeline(pipe))
