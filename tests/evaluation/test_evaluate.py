"""What `evaluate` measures, held against the same computed plainly; and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from transformers import BitImageProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

import nullbooth_cli as nb
from nullbooth_cli.collect import open_model
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.evaluation import compare, evaluate, pictures
from nullbooth_cli.evaluation.encoders import ALEXNET, ENCODERS, FeatureSpaces, load_feature_spaces
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.model import denoise, load
from nullbooth_cli.nullspace.projector import relative_drift
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.toy import FOLDER, world
from tests.support import tiny
from tests.support.builders import PROMPTS, execute, features_at, small_config
from tests.support.cli import nullbooth, refused

SUBJECT = "a sks circle on a red background"


def toy() -> Any:
    return open_model.load_model(Config(), "cpu")


def save_lora(folder: Path, *, scale: float = 0.05) -> Any:
    """A LoRA of rank 2 on to_k and to_v of the middle block; returns the U-Net that has it."""
    pipe = toy()
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=r"mid_block.*attn2\.(to_k|to_v)"))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, scale)
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return pipe.unet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    config = small_config(
        tmp_path_factory.mktemp("evaluation") / "run.zarr",
        original_knowledge_prompts=PROMPTS[:5],
        heldout_prompts=PROMPTS[6:],
        collect__cross_attention_layers=["mid_block*"],
    )
    return config, execute(config, "schedule", "collect", "covariance", "project")


@pytest.fixture(scope="module")
def models(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of edited models: `constrained` and `free` change the same weights alike, one through the projectors; a `lora`."""
    folder = tmp_path_factory.mktemp("models")
    projectors = nb.open_store(run[1].path).projectors()
    for name in ("constrained", "free"):
        pipe = toy()
        torch.manual_seed(0)
        for weight, projector in projectors.items():
            value = pipe.unet.get_parameter(weight)
            change = 0.5 * value.std() * torch.randn_like(value)
            value.data += projector.apply(change) if name == "constrained" else change
        if name == "free":
            pipe.unet.conv_out.bias.data += 0.01
        pipe.save_pretrained(folder / name)
    save_lora(folder / "lora")
    return folder


@pytest.fixture(scope="module")
def answer(run: Any, models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One evaluation with everything, and the folder of its pictures."""
    images, instances = (tmp_path_factory.mktemp(name) for name in ("images", "instances"))
    Image.new("RGB", (40, 64), "orange").save(instances / "a.png")
    places = [str(models / name) for name in ("constrained", "free", "lora")]
    arguments = ["evaluate", places[0], "--against", places[1], "--against", places[2], "-s", str(run[1].path), "--device", "cpu"]
    subject = ["--subject", SUBJECT, "--subject-images", "10", "--instances", str(instances)]
    shown = nullbooth(*arguments, *subject, "--images", str(images), "--json")
    assert shown.exit_code == 0, shown.stderr
    return json.loads(shown.stdout), images


def by_hand(config: Config, store: Store, pipe: Any, text: str, noise: int) -> torch.Tensor:
    """The final latents of one prompt, by the pipeline as its users call it."""
    open_model.path_of(config, store.schedule(), pipe)
    generator = torch.Generator("cpu").manual_seed(config.collect.seed + noise)
    steps = config.schedule.num_denoising_steps
    return pipe(text, num_inference_steps=steps, guidance_scale=4.0, generator=generator, output_type="latent").images


def test_latent_distances_are_those_of_the_pipelines_themselves(answer: Any, run: Any, models: Path) -> None:
    entry = answer[0]["against"][0]["preservation"]["kept"]["by_picture"][1]
    shot = PictureSpec(Prompt(entry["text"]))
    base = by_hand(*run, toy(), entry["text"], shot.noise(0))
    another = by_hand(*run, toy(), entry["text"], shot.noise(1))
    edited = by_hand(*run, pictures.load_edited(run[0], str(models / "free"), "cpu"), entry["text"], shot.noise(0))
    assert entry["latent_mse"] == pytest.approx(float((base - edited).square().mean()), rel=1e-3)
    baseline = answer[0]["baseline"]["kept"]["by_picture"][1]
    assert baseline["latent_mse"] == pytest.approx(float((base - another).square().mean()), rel=1e-4)


def test_relative_means_of_another_seed(answer: Any) -> None:
    document = answer[0]
    for name in ("kept", "heldout"):
        kept, baseline = document["preservation"][name], document["baseline"][name]
        assert kept["latent_mse"] == pytest.approx(np.mean([each["latent_mse"] for each in kept["by_picture"]]))
        assert kept["latent_mse_relative"] == pytest.approx(kept["latent_mse"] / baseline["latent_mse"])
        assert baseline["latent_mse_relative"] == 1.0
    assert {name: each["pictures"] for name, each in document["baseline"].items()} == {"kept": 5, "heldout": 2, "subject": 10}


def test_drift_is_that_of_the_recorded_inputs(answer: Any, run: Any, models: Path) -> None:
    """norm(dW K) / norm(W K) with the vectors themselves, in float64."""
    store, weights = run[1], {entry["weight"]: entry for entry in answer[0]["against"][0]["drift"]["weights"]}
    base, edited = toy().unet, pictures.load_edited(run[0], str(models / "free"), "cpu").unet
    assert set(weights) == {name for site in store.sites for name in site.weights}
    for site in store.sites:
        k = np.concatenate(
            [
                features_at(store, site, t, unit).reshape(-1, site.dim)
                for t in range(site.num_recorded(store.num_steps))
                for unit in range(2)
            ]
        ).astype(np.float64)
        for name in site.weights:
            w, v = (unet.get_parameter(name).double().numpy() for unet in (base, edited))
            expected = np.linalg.norm((v - w) @ k.T) / np.linalg.norm(w @ k.T)
            assert weights[name]["drift"] == pytest.approx(expected, rel=1e-5)
            assert weights[name]["heldout_drift"] > 0.01


def test_a_projected_edit_forgets_less(answer: Any) -> None:
    constrained, (free, _) = answer[0], answer[0]["against"]
    for name in ("kept", "heldout"):
        assert constrained["preservation"][name]["latent_mse"] < 0.3 * free["preservation"][name]["latent_mse"]
    assert constrained["drift"]["largest"] < 0.3 * free["drift"]["largest"]
    assert constrained["drift"]["unprotected_changed"] == []
    assert free["drift"]["unprotected_changed"] == ["unet.conv_out.bias"]
    assert constrained["drift"]["protected_changed"] == free["drift"]["protected_changed"] == 4


def test_a_lora_is_fused(answer: Any, run: Any, models: Path, tmp_path: Path) -> None:
    """Its drift is that of B A, and its file and its folder mean the same."""
    adapted, found = save_lora(tmp_path), answer[0]["against"][1]
    entries = {entry["weight"]: entry["drift"] for entry in found["drift"]["weights"]}
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    wrapped, site = adapted.get_submodule(layer), next(s for s in run[1].sites if f"{layer}.weight" in s.weights)
    delta = (wrapped.lora_B["default"].weight @ wrapped.lora_A["default"].weight).detach()
    moment = nb.open_store(run[1].path).moment(site).second_moment
    weight = wrapped.base_layer.weight.detach().numpy()
    assert entries[f"{layer}.weight"] == pytest.approx(relative_drift(delta.numpy(), weight, moment), rel=1e-4)
    assert entries[f"{layer.removesuffix('to_v')}to_q.weight"] == 0.0
    assert found["drift"]["protected_changed"] == 2
    from_file = pictures.load_edited(run[0], str(models / "lora/pytorch_lora_weights.safetensors"), "cpu")
    expected = toy().unet.get_parameter(f"{layer}.weight") + delta
    torch.testing.assert_close(from_file.unet.get_parameter(f"{layer}.weight").data, expected)


def test_the_base_against_itself_is_at_zero(run: Any) -> None:
    shown = nullbooth("evaluate", str(FOLDER), "-s", str(run[1].path), "--num-prompts", "3", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert "nothing was edited" in shown.stderr
    document = json.loads(shown.stdout)
    for found in document["preservation"].values():
        assert (found["latent_mse"], found["latent_mse_relative"], found["pixel_mse"], found["psnr"]) == (0, 0, 0, None)
        assert found["features"]["latents"]["cosine"] == pytest.approx(1)
        assert found["captions_right"]["base"] == found["captions_right"]["edited"]
    assert document["drift"]["largest"] == document["drift"]["largest_heldout"] == 0
    assert document["drift"]["protected_changed"] == 0
    assert document["subject"] is None
    assert document["preservation"]["kept"]["pictures"] == 3


def test_distributions_need_enough_pictures_and_say_so(answer: Any) -> None:
    document = answer[0]
    kept, subject = document["preservation"]["kept"]["features"]["latents"], document["subject"]["features"]["latents"]
    assert {key for key, value in kept.items() if value is None} == set(compare.QUANTITIES)
    assert all(value is not None for value in subject.values())
    assert "5 pictures are too few" in document["not_measured"]["distributions of kept"]
    assert "distributions of subject" not in document["not_measured"]
    assert {"clip", "dino", "lpips"} <= set(document["not_measured"])
    assert set(document["subject"]["instances"]) == {"latents"}


def test_every_picture_is_written(answer: Any) -> None:
    document, folder = answer
    models = {"base", "another-seed", "edited", "against-1", "against-2"}
    for name, found in document["baseline"].items():
        expected = {f"{each['id']}-{each['number']}-{model}.png" for each in found["by_picture"] for model in models}
        assert {path.name for path in (folder / name).iterdir()} == expected
    mse = []
    for shot in (PictureSpec(Prompt(text)) for text in PROMPTS[:5]):
        base, edited = (np.asarray(Image.open(folder / "kept" / f"{shot.name}-{of}.png")) / 255 for of in ("base", "against-1"))
        mse.append(np.square(base - edited).mean())
    assert document["against"][0]["preservation"]["kept"]["pixel_mse"] == pytest.approx(np.mean(mse))


def test_the_table_has_models_side_by_side(answer: Any) -> None:
    from nullbooth_cli.commands.evaluate_models import draw_table

    document = answer[0]
    rows = evaluate.summary(document)
    assert [row["values"] for row in rows if row["quantity"] == "latent MSE" and row["prompts"] == "subject"] == [
        [found["latent_mse"] for found in (document["baseline"]["subject"], document["subject"])]
        + [found["subject"]["latent_mse"] for found in document["against"]]
    ]
    drawn, *said = draw_table(document)
    assert [column.header for column in drawn.columns][3:] == ["constrained", "free", "lora"]
    assert sum("drifts by at most" in line for line in said) == 3
    assert any(line.startswith("not measured: clip: no CLIP weights") for line in said)


def test_models_of_one_name_keep_their_places() -> None:
    for places, names in ((["a/model", "b/model"], ["a/model", "b/model"]), (["a/one", "two"], ["one", "two"])):
        assert evaluate.names_of({"edited": places[0], "against": [{"edited": places[1]}]}) == names


class TestDrawing:
    def test_noise_is_a_prompts_own(self, run: Any, pipe: Any) -> None:
        """In any company, order and batch; and of a size that torch's CPU generator does not cut."""
        path = open_model.path_of(run[0], run[1].schedule(), pipe)
        shots = [PictureSpec(Prompt(text)) for text in PROMPTS[:4]]
        together = pictures.Pictures.joined(list(pictures.draw_pictures(pipe, path, shots, 3)))
        alone = pictures.Pictures.joined(list(pictures.draw_pictures(pipe, path, shots[::-1][:2], 1)))
        np.testing.assert_allclose(alone.latents[::-1], together.latents[2:], rtol=1e-3, atol=1e-4)
        noises = {shot.noise(series) for shot in (*shots, PictureSpec(shots[0].prompt, 1)) for series in (0, 1)}
        assert len(noises) == 10
        assert max(noises) < 1 << 32

    @pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
    def test_latents_are_those_that_the_pipeline_gives(self, name: str) -> None:
        """Whatever a pipeline does between its latents and its autoencoder: scale, shift, unpack."""
        torch.manual_seed(0)
        pipe = load.freeze(tiny.PIPELINES[name]())
        pipe.vae.register_to_config(shift_factor=None if name == "sdxl" else 0.1)
        path, shot = denoise.DenoisingPath(2, (), 3.0, 32, 32, 0), PictureSpec(Prompt("a"))
        [drawn] = pictures.draw_pictures(pipe, path, [shot], 1)
        given = denoise.denoise(pipe, path, [(shot.noise(0), shot.prompt)])
        # Flux packs its latents: the same values in another order.
        np.testing.assert_allclose(np.sort(drawn.latents.ravel()), np.sort(given.numpy().ravel()), atol=1e-5)
        assert "decode" not in vars(pipe.vae)

    def test_pictures_are_encoded_back_to_their_latents(self, run: Any, pipe: Any) -> None:
        path = open_model.path_of(run[0], run[1].schedule(), pipe)
        [drawn] = pictures.draw_pictures(pipe, path, [PictureSpec(Prompt(text)) for text in PROMPTS[:2]], 2)
        own = np.linalg.norm(pictures.pooled_latents(pipe, drawn.images) - drawn.pooled(), axis=1)
        other = np.linalg.norm(pictures.pooled_latents(pipe, drawn.images)[::-1] - drawn.pooled(), axis=1)
        assert (own < 0.7 * other).all()  # pictures of four steps are none that the autoencoder knows


def test_a_picture_is_right_if_it_shows_all_that_is_named() -> None:
    texts = ["a red circle on a blue background", "a red square on a blue background", "a sks thing", "a sks circle"]
    image = (world.draw(world.Drawing("circle", "red", "blue")) * 255).astype(np.uint8)
    drawn = pictures.Pictures(np.stack([image] * 4), np.zeros((4, 8, 8, 8), np.float32))
    np.testing.assert_array_equal(compare.extract_features(drawn, texts, FeatureSpaces(), is_toy=True).right, [1, 0, np.nan, 1])
    assert compare.extract_features(drawn, texts, FeatureSpaces(), is_toy=False).right is None


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny random CLIP and DINO, and a stand-in for the package lpips that gives the mean absolute difference in [-1, 1]."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12)
    ).save_pretrained(tmp_path / "clip")
    tiny.clip_tokenizer().save_pretrained(tmp_path / "clip")
    Dinov2Model(Dinov2Config(**{**small, "image_size": 28})).save_pretrained(tmp_path / "dino")
    for kind, name, side in ((CLIPImageProcessor, "clip", 32), (BitImageProcessor, "dino", 28)):
        kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(tmp_path / name)
    (tmp_path / "lpips.py").write_text(
        "import torch\n\nclass LPIPS(torch.nn.Module):\n    def __init__(self, net, verbose):\n        super().__init__()\n"
        "    def forward(self, x, y):\n        assert x.min() >= -1 and x.max() <= 1\n"
        "        return (x - y).abs().mean((1, 2, 3), keepdim=True)\n"
    )
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints" / ALEXNET).write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


class TestSpaces:
    def test_clip_dino_and_lpips_where_their_weights_are(self, weights: Path, run: Any, models: Path) -> None:
        given = [word for name in ENCODERS for word in ("--features", f"{name}={weights / name}")]
        place, subject = str(models / "free"), ("--subject", SUBJECT, "--subject-images", "2", "--num-prompts", "2")
        shown = nullbooth("evaluate", place, "-s", str(run[1].path), *subject, *given, "--json")
        assert shown.exit_code == 0, shown.stderr
        document = json.loads(shown.stdout)
        assert not {"clip", "dino", "lpips", "text_alignment"} & set(document["not_measured"])
        for found in (document["subject"], *document["preservation"].values()):
            assert {name: each["dim"] for name, each in found["features"].items()} == {"latents": 128, "clip": 12, "dino": 16}
            assert all(each["cosine"] < 1 for each in found["features"].values())
            assert found["lpips"] > 0
            assert found["text_alignment"]["base"] != found["text_alignment"]["edited"]

    def test_features_are_the_models_own(self, weights: Path) -> None:
        spaces = load_feature_spaces({"clip": str(weights / "clip"), "dino": str(weights / "dino")}, torch.device("cpu"))
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
        clip = CLIPModel.from_pretrained(weights / "clip")
        # 32 x 32 pictures are neither resized nor cut: what is left of the processing is CLIP's normalisation.
        mean, std = (np.array(values) for values in (CLIPImageProcessor().image_mean, CLIPImageProcessor().image_std))
        pixels = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected = clip.get_image_features(pixels).pooler_output
        vectors = spaces.encoders["clip"](images)
        np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            spaces.encoders["dino"](images[35:]), spaces.encoders["dino"](images)[35:], rtol=1e-4, atol=1e-5
        )
        aligned = spaces.alignment(vectors, ["a dog"] * 39 + ["a much longer text about a cat"])
        assert aligned.shape == (40,)
        assert (np.abs(aligned) <= 1).all()
        x, y = images, images.copy()
        y[1] = 255 - y[1]
        np.testing.assert_allclose(spaces.lpips(x, y)[:3], [0, np.abs(x[1] / 127.5 - y[1] / 127.5).mean(), 0], rtol=1e-4)

    def test_nothing_there_is_said(self) -> None:
        assert set(load_feature_spaces({}, torch.device("cpu")).missing) == {"clip", "dino", "lpips"}


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["{free}", "--against", "{free}"], ["named twice"]),
            (["{free}", "--features", "clip"], ["has no '='", "--features clip=FOLDER"]),
            (["{free}", "--features", "vgg=x"], ["no feature space vgg", "clip, dino"]),
            (["{free}", "--features", "clip=nowhere"], ["no CLIP model at nowhere"]),
            (["{free}", "--instances", "x"], ["none is named", "--subject"]),
            (["{free}", "--subject", "a", "--subject-prompts", "x"], ["name the same"]),
            (["nowhere"], ["no model folder at nowhere"]),
            (["{models}"], ["neither a pipeline folder", "nor a LoRA"]),
            (["{models}/free/unet/diffusion_pytorch_model.safetensors"], ["nor a LoRA"]),
        ],
    )
    def test_what_cannot_be_meant(self, run: Any, models: Path, arguments: list[str], words: list[str]) -> None:
        given = [text.format(models=models, free=models / "free") for text in arguments]
        shown = nullbooth("evaluate", *given, "-s", str(run[1].path), "--num-prompts", "1", "-q")
        refused(shown, 2, *words)

    def test_another_architecture(self, run: Any, tmp_path: Path) -> None:
        place = tiny.saved("sd1", tmp_path)
        shown = nullbooth("evaluate", str(place), "-s", str(run[1].path), "--num-prompts", "1", "-q")
        refused(shown, 2, "has the shape", "in the base", "architecture of its base")

    def test_a_lora_of_another_architecture(self, run: Any, tmp_path: Path) -> None:
        name = "unet.mid_block.attentions.7.transformer_blocks.0.attn2.to_k"
        save_file(
            {f"{name}.lora_A.weight": torch.ones(2, 5), f"{name}.lora_B.weight": torch.ones(5, 2)}, tmp_path / "l.safetensors"
        )
        shown = nullbooth("evaluate", str(tmp_path), "-s", str(run[1].path), "--num-prompts", "1", "-q")
        refused(shown, 2, "cannot load the LoRA", "made for this base")

    def test_a_base_that_was_not_collected_from(self, run: Any, models: Path) -> None:
        config = run[0].model_copy(update={"model": str(models / "free")})
        request = evaluate.Request(("x",), {"kept": (PictureSpec(Prompt("a")),)}, {})
        with pytest.raises(ConfigError, match="belong to another model than the one at hand"):
            list(evaluate.evaluate(config, run[1], request))

    def test_pictures_that_are_none(self, run: Any, models: Path, tmp_path: Path) -> None:
        arguments = ("evaluate", str(models / "free"), "-s", str(run[1].path), "--subject", SUBJECT, "--num-prompts", "1", "-q")
        arguments += ("--subject-images", "1", "--instances", str(tmp_path))
        refused(nullbooth(*arguments), 2, "no pictures in")
        (tmp_path / "a.png").write_text("no picture")
        refused(nullbooth(*arguments), 2, "cannot read", "a.png")

    def test_before_there_are_moments(self, models: Path, tmp_path: Path) -> None:
        config = small_config(tmp_path / "early.zarr")
        execute(config, "schedule")
        refused(nullbooth("evaluate", str(models / "free"), "-s", config.store), 3, "covariance")
