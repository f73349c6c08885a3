"""Refits of finished changes in every form that files have, against the formula written plainly on the embedded model."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.model.trained_files import TrainedFiles
from nullbooth_cli.progress import Note
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training.refit_solution import FINE, FLOOR, LADDER, Rung, knee
from tests.support import lora_files, tiny, trained_folders
from tests.support.builders import PROMPTS, execute, small_config
from tests.support.edited_models import toy

USED = ["a zwx circle on a red background", "a zwx star"]
WEIGHT = f"{lora_files.LAYER}.weight"
Arrays = Mapping[str, np.ndarray]


def text_inputs(pipe: Any, texts: list[str]) -> np.ndarray:
    """Every token of the texts, `[N, 96]`, by the text encoder's own call."""
    ids = pipe.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    found: np.ndarray = pipe.text_encoder(ids)[0].detach().double().flatten(0, 1).numpy()
    return found


def plain_m(k1: np.ndarray, c0: np.ndarray, m: float) -> np.ndarray:
    c1 = k1.T @ k1 / len(k1)
    c1, c0 = c1 / np.trace(c1), c0 / np.trace(c0)
    return c1 @ np.linalg.inv(c1 + m * (c0 + FLOOR * np.eye(len(c1))))


def moment_of(store: nb.OpenStore, weight: str) -> np.ndarray:
    return store.moment(next(site for site in store.sites() if weight in site.weights)).second_moment


@pytest.fixture(scope="module")
def opened(finished: tuple[Config, Store]) -> nb.OpenStore:
    return nb.open_store(finished[1].url)


def changed(file: Path) -> torch.Tensor:
    """What a file of one module changes, in either form."""
    tensors = {re.sub(r".*(lora_A|lora_down|lora_B|lora_up|alpha).*", r"\1", name): t for name, t in load_file(file).items()}
    down, up = (tensors.get(kohya, tensors.get(peft)) for kohya, peft in (("lora_down", "lora_A"), ("lora_up", "lora_B")))
    assert down is not None
    assert up is not None
    return float(tensors.get("alpha", len(down))) / len(down) * (up.double() @ down.double())


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_is_multiplied_and_keeps_its_form(opened: nb.OpenStore, pipe: Any, tmp_path: Path, form: str) -> None:
    """The two forms of one change stay one change: converted and refitted is refitted and converted."""
    file, output = tmp_path / "style.safetensors", tmp_path / "new" / "refitted.safetensors"
    tensors = lora_files.kohya_tensors() if form == "kohya" else load_file(lora_files.diffusers_file(file))
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(tensors, file, metadata={"ss_network_dim": "4"})
    report = nb.refit(file, opened, USED, output=output, m=10, device="cpu")
    m = plain_m(text_inputs(pipe, USED), moment_of(opened, WEIGHT), 10)
    wanted = changed(file).numpy() @ m
    np.testing.assert_allclose(changed(output).numpy(), wanted, atol=2e-3 * np.abs(wanted).max())
    after = load_file(output)
    assert {name: (t.shape, t.dtype) for name, t in after.items()} == {name: (t.shape, t.dtype) for name, t in tensors.items()}
    assert [name for name in tensors if not torch.equal(tensors[name], after[name])] == [
        name for name in tensors if "down" in name or "lora_A" in name
    ]
    with safe_open(output, "pt") as read:
        assert read.metadata()["ss_network_dim"] == "4"
        assert "m = 10" in read.metadata()["nullbooth"]
    assert (report.m, report.outside, report.output) == (10, (), str(output))


def test_the_report_is_what_the_model_then_does(opened: nb.OpenStore, pipe: Any, tmp_path: Path) -> None:
    file = lora_files.kohya_file(tmp_path / "style.safetensors")
    events: list[Any] = []
    report = nb.refit(file, opened, USED, output=None, device="cpu", on_event=events.append)
    k1, c0 = text_inputs(pipe, USED), moment_of(opened, WEIGHT)
    change, w = lora_files.change().double().numpy(), pipe.unet.get_parameter(WEIGHT).detach().double().numpy()

    def drift(rows: np.ndarray) -> float:
        return float(np.sqrt(np.trace(rows @ c0 @ rows.T) / np.trace(w @ c0 @ w.T)))

    assert report.drift_before == report.largest_drift_before == pytest.approx(drift(change), rel=1e-4)
    for rung in (*report.ladder, report.chosen):
        after = change @ plain_m(k1, c0, rung.m)
        missing = np.linalg.norm((after - change) @ k1.T) / np.linalg.norm(change @ k1.T)
        assert (rung.missing, rung.drift) == pytest.approx((missing, drift(after)), rel=1e-3, abs=1e-5)
    assert tuple(rung.m for rung in report.ladder) == LADDER
    assert report.m in FINE
    assert report.weights[WEIGHT].drift == report.chosen.drift
    assert not any(isinstance(event, Note) and "outside" in event.text for event in events)
    assert [*tmp_path.iterdir()] == [file]  # a prediction writes nothing


def test_the_knee_is_the_rung_nearest_to_no_loss_and_no_drift() -> None:
    def rung(m: float, missing: float, drift: float) -> Rung:
        return Rung(m=m, missing=missing, largest_missing=missing, drift=drift, largest_drift=drift)

    rungs = [rung(1, 0.1, 1.5), rung(3, 0.3, 0.9), rung(10, 0.4, 0.6), rung(30, 0.9, 0.1)]
    chosen = {before: rungs[knee(rungs, before)].m for before in (0.0, 1.0, 3.0, 30.0)}
    assert chosen == {0.0: 1, 1.0: 10, 3.0: 3, 30.0: 1}  # squared distances at 3: 0.26, 0.18, 0.20, 0.81


def test_layers_that_see_pictures_are_recorded_on_the_changed_model(opened: nb.OpenStore, tmp_path: Path) -> None:
    """q and out: their inputs are drawn with the LoRA in place, so two strengths give two matrices; k has one of the text."""
    layer = lora_files.LAYER.removesuffix(".to_v")
    unet = toy().unet
    generator = torch.Generator().manual_seed(1)
    found = []
    for scale in (0.01, 1.0):
        tensors = {}
        for part in ("to_q", "to_out.0"):
            rows, dim = unet.get_parameter(f"{layer}.{part}.weight").shape
            tensors[f"unet.{layer}.{part}.lora_A.weight"] = torch.eye(dim)
            tensors[f"unet.{layer}.{part}.lora_B.weight"] = scale * torch.randn(rows, dim, generator=generator.manual_seed(1))
        file = tmp_path / f"{scale}.safetensors"
        save_file(tensors, file)
        output = tmp_path / f"{scale}-refitted.safetensors"
        report = nb.refit(file, opened, USED, output=output, m=3, num_drawn=1, device="cpu")
        found.append({name: tensor for name, tensor in load_file(output).items() if "lora_A" in name})
        assert len(report.weights) == 2
    for weak, strong in zip(found[0].values(), found[1].values(), strict=True):  # A is the identity, so A M is M
        assert float((weak - strong).norm() / weak.norm()) > 1e-3


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


@pytest.mark.parametrize("place", ["checkpoint-000200", "."])
def test_trained_weights_move_by_their_change(opened: nb.OpenStore, tmp_path: Path, place: str) -> None:
    """The word is in the text encoder while inputs are recorded. A whole result has its change in its last checkpoint."""
    output = trained_folders.training_output(tmp_path / "run", "full", 200)
    report = nb.refit(output / place, opened, ["a sks circle"], output=tmp_path / "new", m=10, device="cpu")
    files = TrainedFiles.find(tmp_path / "new")
    assert files is not None
    assert (files.token, files.base.model) == ("sks", "toy")
    pipe, weight = toy(), trained_folders.WEIGHT
    initial = pipe.unet.get_parameter(weight).detach().double().numpy()
    trained = load_file(output / "checkpoint-000200/trained/denoiser.safetensors")[weight].double().numpy()
    word = TrainedFiles.find(output / "checkpoint-000200/trained")
    assert word is not None
    assert word.word is not None
    word.word.load_into(pipe)
    m = plain_m(text_inputs(pipe, ["a sks circle"]), moment_of(opened, weight), 10)
    np.testing.assert_allclose(
        load_file(tmp_path / "new/denoiser.safetensors")[weight], initial + (trained - initial) @ m, atol=1e-5
    )
    assert [*report.weights] == [weight]


@pytest.mark.parametrize("outside", ["keep", "drop"])
def test_trained_weights_outside_the_store(opened: nb.OpenStore, tmp_path: Path, outside: Any) -> None:
    folder = trained_folders.full_files(tmp_path / "trained", token=None)
    other = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    value = toy().unet.get_parameter(other).data + 0.1
    save_file({**load_file(folder / "denoiser.safetensors"), other: value}, folder / "denoiser.safetensors")
    report = nb.refit(folder, opened, USED, output=tmp_path / "new", m=10, outside=outside, device="cpu")
    assert report.outside == (other,)
    after = load_file(tmp_path / "new/denoiser.safetensors")
    assert (other in after) is (outside == "keep")
    assert outside == "drop" or torch.equal(after[other], value)


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


def test_prompts_around_a_word(opened: nb.OpenStore, tmp_path: Path) -> None:
    file = lora_files.kohya_file(tmp_path / "style.safetensors")
    report = nb.refit(file, opened, ["a zwx star"], word="zwx circle", output=None, device="cpu")
    assert len(report.prompts) > 100
    assert report.prompts[0] == "a zwx star"
    assert sum("zwx circle" in prompt for prompt in report.prompts) == len(report.prompts) - 1


def test_one_prompt_may_be_a_string(opened: nb.OpenStore, tmp_path: Path) -> None:
    file = lora_files.kohya_file(tmp_path / "style.safetensors")
    report = nb.refit(file, opened, "zwx", output=tmp_path / "new.safetensors", m=np.int64(10), device="cpu")  # type: ignore[arg-type]
    assert (report.prompts, report.m) == (("zwx",), 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": []}, "no prompt uses the change"),
        ({"prompts": [" "]}, "a prompt is empty"),
        ({"m": 0}, "m=0 is not a weight"),
        ({"m": "much"}, "m=much is not a weight"),
        ({"m": 9e-4}, "m=0.0009 is not a weight"),
        ({"outside": "scale"}, "outside='scale' is not a choice"),
        ({"num_drawn": 0}, "draws no prompt"),
        ({"file": "missing"}, "nothing at missing"),
        ({"output": "taken.safetensors"}, "exists already"),
        ({"output": "new.pt"}, "not the name of a .safetensors file"),
    ],
)
def test_requests_without_a_refit(
    opened: nb.OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nullbooth_cli.training.refit.load_model", lambda *_: pytest.fail("a model was loaded"))
    lora_files.kohya_file(tmp_path / "style.safetensors")
    (tmp_path / "taken.safetensors").touch()
    with pytest.raises(ConfigError, match=words):
        nb.refit(
            **{
                "file": "style.safetensors",
                "store": opened,
                "prompts": USED,
                "output": "new.safetensors",
                "device": "cpu",
                **changes,
            }
        )


def test_changes_that_cannot_be_refitted(opened: nb.OpenStore, finished: tuple[Config, Store], tmp_path: Path) -> None:
    def refused(words: str, place: Path, prompts: list[str] = USED) -> None:
        with pytest.raises(ConfigError, match=words):
            nb.refit(place, opened, prompts, output=tmp_path / "never.safetensors", device="cpu")
        assert not (tmp_path / "never.safetensors").exists()

    tensors = lora_files.kohya_tensors()
    name = f"lora_unet_{lora_files.LAYER.replace('.', '_')}"
    other = {key.replace("attn2", "attn1"): t[:, :80] if "down" in key else t for key, t in tensors.items()}
    save_file({key: t.contiguous() for key, t in other.items()}, tmp_path / "outside.safetensors")
    refused("none of the 1 module of .* is in .*attn1_to_v", tmp_path / "outside.safetensors")
    save_file({**tensors, f"{name}.dora_scale": torch.ones(80, 1)}, tmp_path / "dora.safetensors")
    refused(r"1 module, such as .*to_v \(dora\), for which the weight itself counts", tmp_path / "dora.safetensors")
    refused("no prompt has the word that was taught, <sks>", trained_folders.lora_files(tmp_path / "trained"))
    refused("was trained on other", trained_folders.lora_files(tmp_path / "other", model="other"), ["a <sks> circle"])
    toy().save_pretrained(tmp_path / "whole")
    refused("a whole pipeline", tmp_path / "whole")


def test_what_has_no_form_is_refused_before_it_is_predicted(opened: nb.OpenStore, tmp_path: Path) -> None:
    """A LoHa of PEFT: its config knows no plain LoRA beside it."""
    sizes = {"hada_w1_a": (80, 2), "hada_w1_b": (2, 96), "hada_w2_a": (80, 2), "hada_w2_b": (2, 96)}
    tensors = {f"base_model.model.{lora_files.LAYER}.{role}": torch.ones(size) for role, size in sizes.items()}
    save_file(tensors, tmp_path / "loha.safetensors")
    with pytest.raises(ConfigError, match="to_v is a loha of PEFT, whose config knows no plain LoRA"):
        nb.refit(tmp_path / "loha.safetensors", opened, USED, output=None, device="cpu")


def test_a_store_before_its_moments_is_refused(tmp_path: Path) -> None:
    store = nb.OpenStore(execute(small_config(tmp_path / "run.zarr"), "schedule"))
    with pytest.raises(StageError, match="covariance"):
        nb.refit(lora_files.kohya_file(tmp_path / "style.safetensors"), store, USED, output=None)


def test_the_report_is_a_sentence(opened: nb.OpenStore, tmp_path: Path) -> None:
    report = nb.refit(lora_files.kohya_file(tmp_path / "style.safetensors"), opened, USED, output=None, m=10, device="cpu")
    assert str(report).startswith("1 weight refitted at m = 10: ")
    json.dumps(report.notes)
