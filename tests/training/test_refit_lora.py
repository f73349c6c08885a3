"""LoRA files as finished changes: what is in the store, what is outside of it, and every form that comes back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import load_file, save_file

import nullbooth_cli as nb
from nullbooth_cli.model.adapter_files import AdapterFile
from nullbooth_cli.model.adapters import fuse
from nullbooth_cli.model.base_weights import BaseWeights
from nullbooth_cli.model.finished_change import FinishedFiles
from nullbooth_cli.model.trained_files import TrainedFiles
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training.refit_lora import LoraChange
from tests.support import lora_files, tiny, trained_folders
from tests.support.builders import PROMPTS, execute, small_config
from tests.support.edited_models import toy
from tests.support.refits import USED, WEIGHT, changed, moment_of, plain_m, text_inputs


@pytest.fixture(scope="module")
def opened(finished: tuple[Config, Store]) -> nb.OpenStore:
    return nb.open_store(finished[1].url)


@pytest.mark.parametrize("outside", ["keep", "drop"])
def test_what_the_store_lacks_is_kept_or_dropped(opened: nb.OpenStore, tmp_path: Path, outside: Any) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    dim = toy().unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight").shape[1]
    tensors = lora_files.kohya_tensors(text_encoder=True)
    tensors |= {f"{name}.lora_down.weight": torch.ones(2, dim), f"{name}.lora_up.weight": torch.zeros(dim, 2)}
    tensors |= {f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "style.safetensors")
    report = nb.refit(
        tmp_path / "style.safetensors", opened, USED, output=tmp_path / "new.safetensors", outside=outside, device="cpu"
    )
    assert report.outside == (name,)
    assert len(report.text_encoders) == 2
    assert report.dropped is (outside == "drop")
    assert any("of text encoders" in note for note in report.notes)
    after = load_file(tmp_path / "new.safetensors")
    others = {key: tensor for key, tensor in tensors.items() if "attn2" not in key}
    assert after.keys() == (tensors.keys() if outside == "keep" else tensors.keys() - others.keys())
    assert all(torch.equal(after[key], tensor) for key, tensor in others.items() if key in after)


def test_text_encoders_of_a_lora_change_what_is_recorded(opened: nb.OpenStore, tmp_path: Path) -> None:
    save_file(lora_files.kohya_tensors(text_encoder=True), tmp_path / "style.safetensors")
    maps = {}
    for outside in ("keep", "drop"):
        output = tmp_path / f"{outside}.safetensors"
        nb.refit(tmp_path / "style.safetensors", opened, USED, output=output, m=10, outside=outside, device="cpu")  # type: ignore[arg-type]
        maps[outside] = next(tensor for name, tensor in load_file(output).items() if "unet" in name and "down" in name)
    assert float((maps["keep"] - maps["drop"]).norm() / maps["drop"].norm()) > 1e-4


def test_a_folder_of_peft_stays_one(opened: nb.OpenStore, tmp_path: Path) -> None:
    folder = lora_files.peft_folder(tmp_path / "adapter")
    nb.refit(folder, opened, USED, output=tmp_path / "new", m=10, device="cpu")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (folder / "adapter_config.json").read_bytes() == (tmp_path / "new/adapter_config.json").read_bytes()
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "new"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [n for n in before if "lora_A" in n]


def test_a_trained_lora_keeps_its_word_and_its_base(opened: nb.OpenStore, tmp_path: Path) -> None:
    folder = trained_folders.lora_files(tmp_path / "trained")
    nb.refit(folder, opened, ["a <sks> circle"], output=tmp_path / "new", device="cpu")
    for name in ("base.json", "learned_embeds.safetensors"):
        assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()
    assert TrainedFiles.find(tmp_path / "new") is not None


def test_a_fused_module_takes_one_matrix(tmp_path: Path) -> None:
    """Flux's q, k and v have one input: kohya trains one pair for all three."""
    model = tiny.saved("flux", tmp_path / "model")
    config = small_config(
        tmp_path / "run.zarr", model=str(model), original_knowledge_prompts=PROMPTS[:3], collect__guidance_scale=1.0
    )
    config = config.model_copy(
        update={"schedule": config.schedule.model_copy(update={"sampler_strategy": "model", "num_denoising_steps": 2})}
    )
    store = nb.OpenStore(execute(config, "schedule", "collect", "covariance"))
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(4, 32, generator=generator),
        f"{name}.lora_up.weight": torch.randn(96, 4, generator=generator),
        f"{name}.alpha": torch.tensor(4.0),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    report = nb.refit(tmp_path / "style.safetensors", store, USED, output=tmp_path / "new.safetensors", device="cpu")
    assert [*report.weights] == [f"transformer_blocks.0.attn.to_{part}.weight" for part in "qkv"]
    after = load_file(tmp_path / "new.safetensors")
    assert [key for key in tensors if not torch.equal(tensors[key], after[key])] == [f"{name}.lora_down.weight"]
    assert after[f"{name}.lora_down.weight"].shape == (4, 32)
    # Refitted and converted by diffusers is converted and refitted.
    save_file(converted(tensors), tmp_path / "converted.safetensors")
    nb.refit(tmp_path / "converted.safetensors", store, USED, output=tmp_path / "twice.safetensors", device="cpu")
    one, other = converted(after), load_file(tmp_path / "twice.safetensors")
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()))


def converted(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file of kohya's Flux in the form of diffusers."""
    copied = {key: tensor.clone() for key, tensor in tensors.items()}
    found = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(copied)
    return {key: tensor.contiguous().clone() for key, tensor in found.items()}


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_change_in_another_form_becomes_a_plain_lora_and_its_rank_is_said(
    opened: nb.OpenStore, pipe: Any, tmp_path: Path, kind: str
) -> None:
    """The product of two changes of rank 1 has rank 1, and a 2 x 2 matrix times one of rank 1 has rank 2."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "loha": {"hada_w1_a": (80, 1), "hada_w1_b": (1, 96), "hada_w2_a": (80, 1), "hada_w2_b": (1, 96)},
        "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (40, 1), "lokr_w2_b": (1, 48)},
    }[kind]
    parts = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    rows = {
        "loha": lambda: parts["hada_w1_a"] @ parts["hada_w1_b"] * (parts["hada_w2_a"] @ parts["hada_w2_b"]),
        "lokr": lambda: torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]),
    }[kind]()
    name, rank = f"lora_unet_{lora_files.LAYER.replace('.', '_')}", {"loha": 1, "lokr": 2}[kind]
    tensors = {f"{name}.{part}": tensor for part, tensor in parts.items()} | {f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "style.safetensors")
    report = nb.refit(tmp_path / "style.safetensors", opened, USED, output=tmp_path / "new.safetensors", m=10, device="cpu")
    assert f"1 module of the kind {kind} became plain LoRA, of rank {rank}" in report.notes
    assert len(load_file(tmp_path / "new.safetensors")[f"{name}.lora_down.weight"]) == rank
    wanted = rows.double().numpy() @ plain_m(text_inputs(pipe, USED), moment_of(opened, WEIGHT), 10)
    np.testing.assert_allclose(changed(tmp_path / "new.safetensors").numpy(), wanted, atol=1e-3 * np.abs(wanted).max())


def test_a_bias_that_is_left_out_is_said(opened: nb.OpenStore, tmp_path: Path) -> None:
    """It moves the outputs on every input, the preserved ones too."""
    tensors = load_file(lora_files.diffusers_file(tmp_path / "style.safetensors"))
    bias = f"unet.{lora_files.LAYER}.lora_B.bias"
    save_file({**tensors, bias: torch.ones(80)}, tmp_path / "style.safetensors")
    report = nb.refit(tmp_path / "style.safetensors", opened, USED, output=tmp_path / "new.safetensors", m=10, device="cpu")
    assert load_file(tmp_path / "new.safetensors").keys() == tensors.keys()
    assert any(note.startswith("the shift of a bias is left out of 1 module") for note in report.notes)
    assert report.largest_drift_before == pytest.approx(
        opened.inspect_lora(tmp_path / "style.safetensors").largest_drift, rel=1e-4
    )
    assert report.chosen.missing > 0.5  # a shift of 1 is most of what this change does


OTHER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
OUTSIDE = {
    "dora": {f"{OTHER}.lora_down.weight": (2, 80), f"{OTHER}.lora_up.weight": (80, 2), f"{OTHER}.dora_scale": (80, 1)},
    "norm": {"lora_unet_mid_block_attentions_0_norm.w_norm": (80,), "lora_unet_mid_block_attentions_0_norm.b_norm": (80,)},
    "oft": {f"{OTHER}.oft_blocks": (4, 20, 20)},
    "bias": {f"{OTHER}.diff_b": (80,)},
}


@pytest.mark.parametrize("outside", ["keep", "drop"])
@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_could_not_be_refitted_does_not_matter_outside_the_store(
    opened: nb.OpenStore, tmp_path: Path, kind: str, outside: Any
) -> None:
    others = {key: torch.full(shape, 0.01) for key, shape in OUTSIDE[kind].items()}
    save_file({**lora_files.kohya_tensors(), **others}, tmp_path / "style.safetensors")
    output = tmp_path / "new.safetensors"
    report = nb.refit(tmp_path / "style.safetensors", opened, USED, output=output, m=10, outside=outside, device="cpu")
    assert report.outside == (next(iter(others)).split(".")[0],)
    after = load_file(output)
    assert all(torch.equal(after[key], value) for key, value in others.items() if outside == "keep")
    assert (others.keys() <= after.keys()) is (outside == "keep")
    assert any("kind oft" in note and "not in place" in note for note in report.notes) is (kind == "oft" and outside == "keep")


def test_what_is_kept_is_in_place_with_its_bias(tmp_path: Path) -> None:
    """In the denoiser, where the base has a bias and where not, in norms, and in a text encoder."""
    block, pipe, plain = "mid_block.attentions.0.transformer_blocks.0", toy(), toy()
    path = "text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {
        f"unet.{block}.attn1.to_q.lora_A.weight": torch.ones(2, 80),
        f"unet.{block}.attn1.to_q.lora_B.weight": torch.ones(80, 2),
        f"unet.{block}.attn1.to_q.lora_B.bias": torch.full((80,), 3.0),
        f"diffusion_model.{block}.attn1.to_out.0.diff": torch.ones(80, 80),
        f"diffusion_model.{block}.attn1.to_out.0.diff_b": torch.full((80,), 4.0),
        f"unet.{block}.norm1.w_norm": torch.full((80,), 5.0),
        f"unet.{block}.norm1.b_norm": torch.full((80,), 6.0),
        f"lora_te_{path.replace('.', '_')}.hada_w1_a": torch.ones(96, 1),
        f"lora_te_{path.replace('.', '_')}.hada_w1_b": torch.ones(1, 96),
        f"lora_te_{path.replace('.', '_')}.hada_w2_a": torch.ones(96, 1),
        f"lora_te_{path.replace('.', '_')}.hada_w2_b": torch.full((1, 96), 7.0),
        f"lora_te_{path.replace('.', '_')}.diff_b": torch.full((96,), 8.0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    found = FinishedFiles.find(tmp_path / "a.safetensors", allow_pickle=False)
    change = LoraChange(found.lora(BaseWeights.of_pipeline(pipe)), found, ())
    change.load_into(pipe, [module for module in change.modules if "norm1" in module.name])
    after, before = ({**p.unet.state_dict(), **p.text_encoder.state_dict()} for p in (pipe, plain))
    wanted = {
        f"{block}.attn1.to_q.weight": 2.0,
        f"{block}.attn1.to_q.bias": 3.0,
        f"{block}.attn1.to_out.0.weight": 1.0,
        f"{block}.attn1.to_out.0.bias": 4.0,
        "encoder.layers.0.self_attn.q_proj.weight": 7.0,
        "encoder.layers.0.self_attn.q_proj.bias": 8.0,
    }
    by = {name: value - before.get(name, 0) for name, value in after.items()}
    moved = {name: value for name, value in by.items() if value.any()}
    assert {name: pytest.approx(value.mean().item(), abs=1e-4) for name, value in moved.items()} == wanted
    change.load_into(pipe, [module for module in change.modules if "norm1" not in module.name])
    norm = pipe.unet.get_submodule(f"{block}.norm1")
    for value, old, by in ((norm.weight, f"{block}.norm1.weight", 5.0), (norm.bias, f"{block}.norm1.bias", 6.0)):
        torch.testing.assert_close(value.data, before[old] + by)


def test_a_text_encoder_of_a_file_is_changed_as_diffusers_changes_it(tmp_path: Path) -> None:
    file = lora_files.kohya_file(tmp_path / "a.safetensors", text_encoder=True)
    ours, theirs = toy(), toy()
    found = FinishedFiles.find(file, allow_pickle=False)
    LoraChange(found.lora(BaseWeights.of_pipeline(ours)), found, ()).load_into(ours, [])
    fuse(theirs, AdapterFile(file))
    for part in ("unet", "text_encoder"):
        after = {name.replace(".base_layer", ""): value for name, value in getattr(theirs, part).state_dict().items()}
        for name, value in getattr(ours, part).state_dict().items():
            torch.testing.assert_close(value, after[name], rtol=1e-5, atol=1e-6)


def test_eight_bits_are_named(opened: nb.OpenStore, tmp_path: Path) -> None:
    tensors = {key: t.to(torch.float8_e4m3fn) if t.ndim else t for key, t in lora_files.kohya_tensors().items()}
    save_file(tensors, tmp_path / "style.safetensors")
    report = nb.refit(tmp_path / "style.safetensors", opened, USED, output=tmp_path / "new.safetensors", m=10, device="cpu")
    assert "of 2 tensors in 8 bits, those that changed are in float16 now: 8 bits would not hold them" in report.notes
    assert opened.inspect_lora(tmp_path / "new.safetensors").largest_drift == pytest.approx(report.chosen.drift, rel=1e-2)


def test_a_second_refit_keeps_the_note_of_the_first(opened: nb.OpenStore, tmp_path: Path) -> None:
    places = [lora_files.kohya_file(tmp_path / "0.safetensors"), *(tmp_path / f"{i}.safetensors" for i in (1, 2))]
    full = [trained_folders.full_files(tmp_path / "0", token=None), tmp_path / "1", tmp_path / "2"]
    for files in (places, full):
        for before, after, m in zip(files[:-1], files[1:], (10, 20), strict=True):
            nb.refit(before, opened, USED, output=after, m=m, device="cpu")
        one, two = opened.inspect_lora(files[2]).notes
        assert "refitted at m = 10" in one
        assert "refitted at m = 20" in two


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_another_kind_in_a_folder_of_peft_becomes_plain_loras(opened: nb.OpenStore, pipe: Any, tmp_path: Path, kind: str) -> None:
    """Both modules, as one config has one kind; evaluate and PEFT load the result."""
    layers = [lora_files.LAYER, lora_files.LAYER.replace("attn2", "attn1")]
    config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind](r=2, alpha=1, target_modules=layers, init_weights=False)
    torch.manual_seed(0)
    folder = lora_files.peft_folder(tmp_path / "adapter", config)
    report = nb.refit(folder, opened, USED, output=tmp_path / "new", m=10, device="cpu")
    assert any(note.startswith(f"2 modules of the kind {kind} became plain LoRA, of rank ") for note in report.notes)
    before, after = toy(), toy()
    fuse(before, AdapterFile(folder / "adapter_model.safetensors", folder))
    fuse(after, AdapterFile(tmp_path / "new/adapter_model.safetensors", tmp_path / "new"))
    for layer, m in ((layers[0], plain_m(text_inputs(pipe, USED), moment_of(opened, WEIGHT), 10)), (layers[1], np.eye(80))):
        old, new = (p.unet.get_submodule(layer).weight.detach().double() for p in (before, after))
        base = toy().unet.get_submodule(layer).weight.detach().double()
        scale = float((old - base).abs().max())
        torch.testing.assert_close(new - base, (old - base) @ torch.from_numpy(m), rtol=1e-3, atol=1e-4 * scale)
