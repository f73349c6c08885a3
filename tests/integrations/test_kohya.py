"""kohya's training with `nullbooth_cli.kohya` as its network module: the whole way, and what is refused."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nullbooth_cli import kohya
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.integrations import kohya_models
from tests.support import kohya_networks
from tests.support.builders import per_timestep
from tests.support.kohya_training import arguments, make_network, train
from tests.support.tiny_collected import Collected

# kohya's networks of Flux and SD3 hand their arguments on by position
pytestmark = pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning")
stand_in_only = pytest.mark.skipif(kohya_networks.CHECKOUT is not None, reason="asks the stand-in what reached it")
Models = Callable[[str], Collected]
Networks = dict[str, ModuleType]


def of_store(collected: Collected, **changes: Any) -> Any:
    more = changes.pop("network_args", [])
    return arguments(network_args=[f"store={collected.store.url}", *more], **changes)


def loaded_changes(collected: Collected, file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What diffusers adds to each weight when it loads a file, `[M, D]` float64."""
    pipe = collected.load()
    pipe.load_lora_weights(str(file))
    denoiser = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    found = {}
    for name, module in denoiser.named_modules():
        if hasattr(module, "lora_A") and "default_0" in module.lora_A:
            down, up = (part["default_0"].weight.detach().double().flatten(1).numpy() for part in (module.lora_A, module.lora_B))
            found[f"{name}.weight"] = module.scaling["default_0"] * (up @ down)
    return found


def drifts(collected: Collected, changes: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    """norm(dW K) / norm(W K) of each protected weight, on the vectors that were collected."""
    pipe = collected.load()
    start = (pipe.transformer if hasattr(pipe, "transformer") else pipe.unet).state_dict()
    found = {}
    for site in collected.store.sites():
        c = collected.store.moment(site).second_moment
        for weight in (weight for weight in site.weights if weight in changes):
            parts = changes[weight], start[weight].double().flatten(1).numpy()
            moved, output = (np.trace(rows @ c @ rows.T) for rows in parts)
            found[weight] = float(np.sqrt(max(moved, 0.0) / output))
    return found


def file_changes(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What each module of a file adds, alpha / rank B A."""
    tensors = load_file(file)
    names = {key.split(".")[0] for key in tensors}
    found = {}
    for name in names:
        down, up = (tensors[f"{name}.{part}.weight"].double().flatten(1).numpy() for part in ("lora_down", "lora_up"))
        found[name] = float(tensors[f"{name}.alpha"]) / len(down) * (up @ down)
    return found


OF_FLUX = {"to_q": "img_attn_qkv", "to_k": "img_attn_qkv", "to_v": "img_attn_qkv", "to_out.0": "img_attn_proj"}
OF_FLUX |= {f"add_{each}_proj": "txt_attn_qkv" for each in "qkv"} | {"to_add_out": "txt_attn_proj"}
OF_SD3 = {layer: name.replace("img", "x_block").replace("txt", "context_block") for layer, name in OF_FLUX.items()}
OF_SDXL = {"mid_block.attentions.0": "middle_block.1"} | {
    f"down_blocks.1.attentions.{i}": f"input_blocks.{4 + i}.1" for i in (0, 1)
}


def kohyas_name(name: str, weight: str) -> str:
    """kohya's name of the module that changes a weight, by hand, for the layers that are collected."""
    path = weight.removesuffix(".weight")
    if name == "flux":
        return f"lora_unet_double_blocks_0_{OF_FLUX[path.removeprefix('transformer_blocks.0.attn.')]}"
    if name == "sd3":
        return f"lora_unet_joint_blocks_0_{OF_SD3[path.removeprefix('transformer_blocks.0.attn.')]}"
    for ours, theirs in OF_SDXL.items() if name == "sdxl" else ():
        path = path.replace(ours, theirs)
    return "lora_unet_" + path.replace(".", "_")


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux"])
def test_trained_file_is_silent_on_the_collected_inputs(models: Models, networks: Networks, file: Path, name: str) -> None:
    collected = models(name)
    network = train(collected.load(), of_store(collected), file)
    changes = loaded_changes(collected, file)
    found = drifts(collected, changes)
    assert set(found) == set(changes) == {weight for site in collected.store.sites() for weight in site.weights}
    assert max(found.values()) < 1e-6
    assert all(np.linalg.norm(change) > 1e-3 for change in changes.values() if name != "flux")
    assert max(np.linalg.norm(change) for change in changes.values()) > 1e-2
    from_file: dict[str, list[Any]] = {}
    for weight in (weight for site in collected.store.sites() for weight in site.weights):  # in the order of fused rows
        from_file.setdefault(kohyas_name(name, weight), []).append(changes[weight])
    expected = file_changes(file)
    assert set(from_file) == set(expected) == {lora.lora_name for lora in network.unet_loras}
    for module, parts in from_file.items():
        np.testing.assert_allclose(np.concatenate(parts), expected[module], atol=1e-6)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux"])
def test_kohyas_own_network_drifts(models: Models, networks: Networks, file: Path, name: str) -> None:
    module = "networks.lora_flux" if name == "flux" else "networks.lora"
    collected = models(name)
    train(collected.load(), arguments(network_module=module), file)
    kept = {key: value for key, value in load_file(file).items() if "single" not in key}  # of one size only, for diffusers
    save_file(kept, file)
    found = drifts(collected, loaded_changes(collected, file))
    assert min(found.values()) > 1e-2


@pytest.mark.parametrize(("free", "least", "most"), [(False, 0.0, 1e-6), (True, 1e-2, np.inf)])
def test_a_file_of_sd3(models: Models, networks: Networks, file: Path, free: bool, least: float, most: float) -> None:
    """diffusers loads no file of kohya's SD3, so its fused rows are cut here."""
    collected = models("sd3")
    train(collected.load(), arguments(network_module="networks.lora_sd3") if free else of_store(collected), file)
    by_module: dict[str, list[str]] = {}
    for weight in (weight for site in collected.store.sites() for weight in site.weights):
        by_module.setdefault(kohyas_name("sd3", weight), []).append(weight)
    rows = file_changes(file)
    assert free or set(rows) == set(by_module)
    changes = {
        weight: part
        for module, weights in by_module.items()
        for weight, part in zip(weights, np.split(rows[module], len(weights)), strict=True)
    }
    assert len(changes) == 8
    assert max(np.linalg.norm(change) for change in changes.values()) > 1e-2
    found = drifts(collected, changes).values()
    assert least <= min(found)
    assert max(found) < most


def test_what_is_dropped_is_said_once(models: Models, networks: Networks, caplog: pytest.LogCaptureFixture) -> None:
    collected = models("sd1")
    make_network(collected.load(), of_store(collected))
    [text] = [record.message for record in caplog.records if record.name.startswith("nullbooth_cli")]
    assert f"21 of 48 LoRA modules train within the null spaces of {collected.store.url}" in text
    assert "27 are dropped, because the store has no inputs of them:" in text
    assert "\n  4 attn1_to_q, such as lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in text
    assert "\n  4 proj_out, such as lora_unet_down_blocks_0_attentions_0_proj_out" in text
    assert "\n  3 ff_net_2, such as" in text
    assert "attn2" not in text


def test_convolutions_are_dropped(models: Models, networks: Networks, caplog: pytest.LogCaptureFixture) -> None:
    collected = models("sd1")
    network, _ = make_network(collected.load(), of_store(collected, network_args=["conv_dim=4"]))
    assert "conv1, such as lora_unet_down_blocks_0_resnets_0_conv1" in caplog.text
    assert len(network.unet_loras) == 21


def test_file_is_an_ordinary_lora(models: Models, networks: Networks, file: Path) -> None:
    collected = models("sd1")
    train(collected.load(), of_store(collected, save_precision=torch.float16), file)
    with safe_open(str(file), "pt") as opened:
        metadata, keys = opened.metadata(), set(opened.keys())
        assert {opened.get_tensor(key).dtype for key in keys} == {torch.float16}
    layers = [weight for site in collected.store.sites() for weight in site.weights]
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert keys == {f"{kohyas_name('sd1', weight)}.{part}" for weight in layers for part in parts}
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "4"
    assert collected.store.url in metadata["ss_network_args"]
    assert metadata["nullbooth_projectors"] == collected.store.provenance()["fingerprint"]


@stand_in_only
def test_other_arguments_reach_kohya(models: Models, networks: Networks) -> None:
    collected = models("sd1")
    make_network(collected.load(), of_store(collected, network_args=["loraplus_lr_ratio=4", "base_model=compare"]))
    assert networks["lora"].asked == [{"loraplus_lr_ratio": "4", "dropout": None}]


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_rounding_of_a_file_is_all_that_drifts(models: Models, networks: Networks, file: Path, precision: torch.dtype) -> None:
    collected = models("sd1")
    train(collected.load(), of_store(collected, save_precision=precision, full_bf16=precision == torch.bfloat16), file)
    changes = loaded_changes(collected, file)
    found, sizes = drifts(collected, changes), {name: np.linalg.norm(change) for name, change in changes.items()}
    start = collected.load().unet.state_dict()
    for weight, drift in found.items():
        assert drift < torch.finfo(precision).eps * 4 * max(sizes[weight] / float(start[weight].norm()), 1)


TEXT = "a text encoder would train, and with it every input of the model would move"


@pytest.mark.parametrize(
    ("name", "changes", "message", "hint"),
    [
        ("sd1", {"network_train_unet_only": False}, TEXT, "set network_train_unet_only"),
        ("sd1", {"network_train_text_encoder_only": True}, "trains nothing that is constrained", "leave it out"),
        ("sd1", {"scale_weight_norms": 1.0}, "scale_weight_norms=1.0 would scale lora_up alone", "leave scale_weight_norms out"),
        ("sd1", {"clip_skip": 2}, "clip_skip is 2, and the store was collected without", "leave clip_skip out"),
        ("sdxl", {"max_token_length": 225}, "max_token_length is 225, and the store has prompts of 75 tokens", "leave max_token"),
        ("sd1", {"weighted_captions": True}, "weighted_captions scales tokens", "leave weighted_captions out"),
        ("flux", {"apply_t5_attn_mask": True}, "apply_t5_attn_mask hides padding", "leave apply_t5_attn_mask out"),
        ("sd3", {"apply_lg_attn_mask": True}, "apply_lg_attn_mask hides padding", "leave apply_lg_attn_mask out"),
        ("flux", {"t5xxl_max_token_length": 256}, "is 256, and the store has prompts of 512 tokens of T5", "length to 512"),
        ("sd3", {"t5xxl_max_token_length": 77}, "is 77, and the store has prompts of 256 tokens of T5", "length to 256"),
    ],
)
def test_arguments_under_which_it_would_not_hold(
    models: Models, networks: Networks, name: str, changes: dict[str, Any], message: str, hint: str
) -> None:
    collected = models(name)
    with pytest.raises(ConfigError) as raised:
        make_network(collected.load(), of_store(collected, **changes))
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_all_wrong_arguments_are_named_at_once(models: Models, networks: Networks) -> None:
    collected = models("sd1")
    with pytest.raises(ConfigError) as raised:
        make_network(collected.load(), of_store(collected, clip_skip=2, scale_weight_norms=1.0))
    assert raised.value.message.count("\n") == 2
    assert raised.value.hint == "leave scale_weight_norms out; leave clip_skip out"


def test_arguments_that_change_nothing(models: Models, networks: Networks) -> None:
    """clip_skip 1 is the last layer; SDXL does not read it; 75 tokens are the default."""
    sd1, sdxl, flux = map(models, ("sd1", "sdxl", "flux"))
    make_network(sd1.load(), of_store(sd1, clip_skip=1, max_token_length=75))
    make_network(sdxl.load(), of_store(sdxl, clip_skip=2))
    make_network(flux.load(), of_store(flux, t5xxl_max_token_length=512, max_token_length=225))


def test_flux_schnell_has_shorter_prompts_in_kohya(models: Models, networks: Networks) -> None:
    collected = models("flux")
    network, unet = make_network(collected.load(), of_store(collected))
    unet.params.guidance_embed = False
    with pytest.raises(ConfigError, match="t5xxl_max_token_length is 256"):
        network.prepare_network(of_store(collected))


def test_lengths_of_t5_are_those_of_diffusers() -> None:
    for model in kohya_models.MODELS.values():
        given = inspect.signature(getattr(diffusers, model.pipeline).__call__).parameters.get("max_sequence_length")
        assert (given and given.default) == model.t5_tokens


def test_text_encoder_is_refused_without_prepare_network(models: Models, networks: Networks) -> None:
    """By a trainer that does not call it."""
    collected = models("sd1")
    pipe = collected.load()
    network = kohya.create_network(1.0, 4, 1.0, pipe.vae, pipe.text_encoder, pipe.unet, store=collected.store.url)
    with pytest.raises(ConfigError, match=TEXT):
        network.apply_to(pipe.text_encoder, pipe.unet, True, True)
    with pytest.raises(ConfigError, match="scale_weight_norms does not reach"):
        network.apply_max_norm_regularization(1.0, "cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the network arguments name no store"),
        ({"store": "?", "ggpo_sigma": "0.03"}, "ggpo_sigma adds noise to the outputs"),
        ({"store": "?", "base_model": "any"}, "base_model='any' is not a choice"),
    ],
)
def test_network_arguments(models: Models, networks: Networks, given: dict[str, str], message: str) -> None:
    pipe = models("sd1").load()
    with pytest.raises(ConfigError, match=message):
        kohya.create_network(1.0, 4, 1.0, pipe.vae, pipe.text_encoder, pipe.unet, **given)


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="Linear is no model whose LoRA can be constrained here"):
        kohya.create_network(1.0, 4, 1.0, None, None, torch.nn.Linear(2, 2), store="run.zarr")


@stand_in_only
def test_outside_of_kohyas_folder(models: Models) -> None:
    pipe = models("sd1").load()
    with pytest.raises(ConfigError, match=r"networks\.lora cannot be imported"):
        kohya.create_network(1.0, 4, 1.0, pipe.vae, pipe.text_encoder, pipe.unet, store="run.zarr")


@stand_in_only
def test_a_network_that_is_not_made_is_an_error(models: Models, networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """kohya ends a run without a word then."""
    monkeypatch.setattr(networks["lora"], "create_network", lambda *args, **kwargs: None)
    with pytest.raises(ModelError, match=r"networks\.lora made no network"):
        make_network(models("sd1").load(), of_store(models("sd1")))


def test_nothing_left_to_train(models: Models, networks: Networks) -> None:
    with pytest.raises(ConfigError, match=r"protects none of the \d+ modules of this network"):
        make_network(models("sd1").load(), of_store(models("flux")))


def test_per_timestep_projectors_are_refused(models: Models, networks: Networks, tmp_path: Path) -> None:
    collected = models("sd1")
    _, store = per_timestep(collected.store.config, collected.store.store, tmp_path)
    with pytest.raises(ConfigError, match="per-timestep projectors cannot constrain a weight"):
        make_network(collected.load(), arguments(network_args=[f"store={store.url}"]))


def change_base(pipe: Any, weight: str, by: float) -> None:
    denoiser = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    parameter = denoiser.get_parameter(weight)
    parameter.data += by * parameter.data.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("sd1", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"),
        ("flux", "transformer_blocks.0.attn.add_v_proj.weight"),
    ],
)
def test_another_base_model_is_refused(models: Models, networks: Networks, name: str, weight: str) -> None:
    collected = models(name)
    pipe = collected.load()
    change_base(pipe, weight, 0.05)
    with pytest.raises(ConfigError) as raised:
        make_network(pipe, of_store(collected))
    assert f"1 of {21 if name == 'sd1' else 8} weights differ, such as {weight}" in raised.value.message
    assert str(collected.folder) in raised.value.message
    pipe = collected.load()
    change_base(pipe, weight, 0.05)
    make_network(pipe, of_store(collected, network_args=["base_model=trust"]))


def test_rounded_base_model_is_named(models: Models, networks: Networks, caplog: pytest.LogCaptureFixture) -> None:
    collected = models("sd1")
    pipe = collected.load()
    pipe.unet.to(torch.bfloat16)
    make_network(pipe, of_store(collected))
    assert "21 of 21 weights of the base model equal those of the store within rounding only" in caplog.text


def test_base_model_in_8_bits_needs_trust(models: Models, networks: Networks) -> None:
    collected = models("flux")
    pipe = collected.load()
    layer = pipe.transformer.transformer_blocks[0].attn.to_out[0]
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ConfigError, match="1 weights of the base model are float8_e4m3fn"):
        make_network(pipe, of_store(collected))


def test_training_goes_on_from_a_file(models: Models, networks: Networks, file: Path, tmp_path: Path) -> None:
    collected, second = models("sd1"), tmp_path / "second.safetensors"
    train(collected.load(), of_store(collected, max_train_steps=2), file)
    for changes in (
        {"network_weights": str(file)},
        {"network_weights": str(file), "dim_from_weights": True, "network_dim": None},
    ):
        network, _ = make_network(collected.load(), of_store(collected, **changes))
        before, now = load_file(file), network.state_dict()
        assert set(now) == set(before)
        assert max(float((now[key] - before[key]).abs().max()) for key in now) < 1e-6
        train(collected.load(), of_store(collected, **changes), second)
        assert max(drifts(collected, loaded_changes(collected, second)).values()) < 1e-6


@pytest.mark.parametrize("also", [{}, {"dim_from_weights": True}])
def test_files_of_free_training_are_refused(models: Models, networks: Networks, file: Path, also: dict[str, bool]) -> None:
    collected = models("sd1")
    train(collected.load(), arguments(network_module="networks.lora"), file)
    given = {"network_weights": str(file), **also}
    with pytest.raises(ModelError, match=r"the file changes \d+ modules that .*sd1.zarr does not protect, such as lora_unet"):
        make_network(collected.load(), of_store(collected, **given))
    save_file({key: value for key, value in load_file(file).items() if "attn2" in key}, file)
    with pytest.raises(
        ModelError, match=r"lora_down.weight was not trained under this constraint: 0\.\d+ of its norm lies outside"
    ):
        make_network(collected.load(), of_store(collected, **given))


def test_base_weights(models: Models, networks: Networks, file: Path, tmp_path: Path) -> None:
    """A file that was trained under the store is merged, and training goes on beside it."""
    collected, second = models("sd1"), tmp_path / "second.safetensors"
    train(collected.load(), of_store(collected), file)
    pipe = collected.load()
    train(pipe, of_store(collected, base_weights=[str(file)], base_weights_multiplier=[0.5]), second)
    assert max(drifts(collected, loaded_changes(collected, second)).values()) < 1e-6
    half = collected.load().unet.state_dict()
    for weight, change in loaded_changes(collected, file).items():
        merged = pipe.unet.get_parameter(weight).detach().double().numpy()
        np.testing.assert_allclose(merged, half[weight].double().numpy() + 0.5 * change.reshape(merged.shape), atol=1e-5)


def test_base_weights_that_were_trained_freely(models: Models, networks: Networks, file: Path) -> None:
    collected = models("sd1")
    train(collected.load(), arguments(network_module="networks.lora"), file)
    with pytest.raises(ModelError, match=r"which was merged into the base model, changes \d+ modules that"):
        make_network(collected.load(), of_store(collected, base_weights=[str(file)]))
    save_file({key: value for key, value in load_file(file).items() if "attn2" in key}, file)
    with pytest.raises(ModelError, match=r"of .*lora.safetensors was not trained under this constraint"):
        make_network(collected.load(), of_store(collected, base_weights=[str(file)]))


def test_resume_from_a_state_of_accelerate(models: Models, networks: Networks, file: Path, tmp_path: Path) -> None:
    collected = models("sd1")
    network = train(collected.load(), of_store(collected), file)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(network)
    accelerator.save_state(str(tmp_path / "state"))
    fresh, _ = make_network(collected.load(), of_store(collected))
    again = Accelerator(cpu=True)
    again.prepare(fresh)
    again.load_state(str(tmp_path / "state"))
    expected = network.state_dict()
    assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in fresh.state_dict().items())


def test_multiplier_0_is_the_base_model(models: Models, networks: Networks, file: Path) -> None:
    """As kohya asks for it to preserve what the model draws without the LoRA."""
    collected = models("sd1")
    pipe = collected.load()
    network = train(pipe, of_store(collected), file)
    given = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 8, 24)
    network.set_multiplier(0.0)
    with torch.no_grad():
        assert torch.equal(pipe.unet(*given).sample, collected.load().unet(*given).sample)
        network.set_multiplier(1.0)
        assert not torch.equal(pipe.unet(*given).sample, collected.load().unet(*given).sample)


def test_split_q_k_v_take_one_projector(models: Models, networks: Networks) -> None:
    collected = models("sd3")
    network, _ = make_network(collected.load(), of_store(collected, network_args=["split_qkv=True"]))
    [split] = [lora for lora in network.unet_loras if lora.lora_name == "lora_unet_joint_blocks_0_x_block_attn_qkv"]
    p = collected.store.projector("transformer_blocks.0.attn.q").dense()
    for down in split.lora_down:
        rows = down.weight.detach().double().numpy()
        assert np.linalg.norm(rows) > 0.1
        np.testing.assert_allclose(rows @ p, rows, atol=1e-6)


def test_lycoris_as_the_network_of_kohya(models: Models, networks: Networks, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's module of the same protocol, which knows nothing of the stand-ins."""
    from lycoris import kohya as lycoris

    monkeypatch.setattr(sys.modules["networks"], "lora", lycoris, raising=False)
    monkeypatch.setitem(sys.modules, "networks.lora", lycoris)
    collected = models("sd1")
    network = train(collected.load(), of_store(collected, network_args=["algo=lora", "preset=attn-mlp"]), file)
    assert type(network).__mro__[2] is lycoris.LycorisNetworkKohya
    changes = loaded_changes(collected, file)
    found = drifts(collected, changes)
    assert set(found) == set(changes) == {weight for site in collected.store.sites() for weight in site.weights}
    assert max(found.values()) < 1e-6
    assert min(np.linalg.norm(change) for change in changes.values()) > 1e-3
    fresh, _ = make_network(collected.load(), of_store(collected, network_args=["algo=lora", "preset=attn-mlp"]))
    fresh.load_weights(str(file))
    assert all(torch.allclose(value, network.state_dict()[key], atol=1e-6) for key, value in fresh.state_dict().items())


NOT_IN_KOHYAS_ENVIRONMENT = """
import sys
for name in ("diffusers", "transformers", "accelerate", "huggingface_hub", "tokenizers", "peft", "matplotlib", "rich", "typer"):
    sys.modules[name] = None
from nullbooth_cli import kohya
from nullbooth_cli.integrations.lora_modules import Protection
print(len(Protection.of(sys.argv[1]).projectors))
"""


def test_kohyas_environment_is_enough(models: Models) -> None:
    """It pins versions of transformers and diffusers that nullbooth does not take."""
    command = [sys.executable, "-c", NOT_IN_KOHYAS_ENVIRONMENT, models("sd1").store.url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "21\n"), done.stderr
