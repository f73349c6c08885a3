"""What `evaluate` measures, held against the same computed plainly; and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import nullbooth_cli as nb
from nullbooth_cli.collect import open_model
from nullbooth_cli.collect.edited_model import load_edited
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.evaluation import draw_models
from nullbooth_cli.evaluation.encoders import ENCODERS
from nullbooth_cli.evaluation.evaluate import evaluate
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.evaluation.summary import QUANTITIES
from nullbooth_cli.progress import Event, Progress
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.toy import FOLDER
from tests.support import tiny
from tests.support.builders import MID, PROMPTS, execute, small_config
from tests.support.cli import nullbooth, refused
from tests.support.edited_models import toy
from tests.support.encoder_weights import save_encoders
from tests.support.keys import keys_of

SUBJECT = "a sks circle on a red background"


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
    open_model.follow_schedule(config, store.schedule(), pipe)
    generator = torch.Generator("cpu").manual_seed(config.collect.seed + noise)
    steps = config.schedule.num_denoising_steps
    return pipe(text, num_inference_steps=steps, guidance_scale=4.0, generator=generator, output_type="latent").images


def test_latent_distances_are_those_of_the_pipelines_themselves(answer: Any, run: Any, models: Path) -> None:
    entry = answer[0]["against"][0]["preservation"]["preserved"]["by_picture"][1]
    spec = PictureSpec(Prompt(entry["text"]))
    base = by_hand(*run, toy(), entry["text"], spec.noise(0))
    another = by_hand(*run, toy(), entry["text"], spec.noise(1))
    edited = by_hand(*run, load_edited(run[0], str(models / "free"), "cpu"), entry["text"], spec.noise(0))
    assert entry["latent_mse"] == pytest.approx(float((base - edited).square().mean()), rel=1e-3)
    baseline = answer[0]["baseline"]["preserved"]["by_picture"][1]
    assert baseline["latent_mse"] == pytest.approx(float((base - another).square().mean()), rel=1e-4)


def test_relative_means_of_another_seed(answer: Any) -> None:
    document = answer[0]
    for name in ("preserved", "heldout"):
        kept, baseline = document["preservation"][name], document["baseline"][name]
        assert kept["latent_mse"] == pytest.approx(np.mean([each["latent_mse"] for each in kept["by_picture"]]))
        assert kept["latent_mse_relative"] == pytest.approx(kept["latent_mse"] / baseline["latent_mse"])
        assert baseline["latent_mse_relative"] == 1.0
    assert {name: each["pictures"] for name, each in document["baseline"].items()} == {
        "preserved": 5,
        "heldout": 2,
        "subject": 10,
    }


def test_a_projected_edit_forgets_less(answer: Any) -> None:
    constrained, (free, _) = answer[0], answer[0]["against"]
    for name in ("preserved", "heldout"):
        assert constrained["preservation"][name]["latent_mse"] < 0.3 * free["preservation"][name]["latent_mse"]
    assert constrained["drift"]["largest"] < 0.3 * free["drift"]["largest"]
    assert constrained["drift"]["unprotected_changed"] == []
    assert free["drift"]["unprotected_changed"] == ["unet.conv_out.bias"]
    assert constrained["drift"]["protected_changed"] == free["drift"]["protected_changed"] == 4


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
    assert document["preservation"]["preserved"]["pictures"] == 3


def test_distributions_need_enough_pictures_and_say_so(answer: Any) -> None:
    document = answer[0]
    kept, subject = document["preservation"]["preserved"]["features"]["latents"], document["subject"]["features"]["latents"]
    assert {key for key, value in kept.items() if value is None} == set(QUANTITIES)
    assert all(value is not None for value in subject.values())
    assert "5 pictures are too few" in document["not_measured"]["distributions of preserved"]
    assert "distributions of subject" not in document["not_measured"]
    assert {"clip", "dino", "lpips"} <= set(document["not_measured"])
    assert set(document["subject"]["instances"]) == {"latents"}
    assert "learned" not in document["not_measured"]


def test_the_verdicts_are_of_what_was_measured(answer: Any) -> None:
    document = answer[0]
    for model in (document, *document["against"]):
        learned, forgotten = model["verdicts"]
        assert (learned["value"], learned["base"]) == (model["subject"]["shown"]["edited"], 0.0)
        assert (learned["word"], learned["measured_by"]) == ("hardly", "exact scorer")
        name, worst = max(model["preservation"].items(), key=lambda item: item[1]["latent_mse_relative"])
        assert forgotten["value"] == worst["latent_mse_relative"]
        assert forgotten["measured_by"] == f"latent MSE on {name.replace('heldout', 'held-out')} prompts"


def test_every_picture_is_written(answer: Any) -> None:
    document, folder = answer
    models = {"base", "another-seed", "edited", "against-1", "against-2"}
    for name, found in document["baseline"].items():
        expected = {f"{each['id']}-{each['number']}-{model}.png" for each in found["by_picture"] for model in models}
        assert {path.name for path in (folder / name).iterdir()} == expected
    mse = []
    for spec in (PictureSpec(Prompt(text)) for text in PROMPTS[:5]):
        base, edited = (
            np.asarray(Image.open(folder / "preserved" / f"{spec.name}-{of}.png")) / 255 for of in ("base", "against-1")
        )
        mse.append(np.square(base - edited).mean())
    assert document["against"][0]["preservation"]["preserved"]["pixel_mse"] == pytest.approx(np.mean(mse))


class TestFromPython:
    def test_it_answers_as_the_command_does(self, answer: Any, run: Any, models: Path) -> None:
        """The same numbers from the same prompts; events arrive while it runs."""
        events: list[Event] = []
        store = nb.open_store(run[1].path)
        found = evaluate(store, models / "free", prompts=PROMPTS[:2], device="cpu", on_event=events.append)
        by_command = answer[0]["against"][0]["preservation"]["preserved"]["by_picture"][:2]
        given = to_json(found.report.preservation["given"].by_picture)
        assert [each["text"] for each in given] == PROMPTS[:2]
        for mine, theirs in zip(given, by_command, strict=True):
            assert mine["latent_mse"] == pytest.approx(theirs["latent_mse"], rel=1e-3)
        assert to_json(found.report.drift) == answer[0]["against"][0]["drift"]
        assert [event.done for event in events if isinstance(event, Progress)][-1] == 6
        assert found.drawn["base"].images.shape == (2, 32, 32, 3)

    def test_subject_and_instances(self, run: Any, models: Path, tmp_path: Path) -> None:
        Image.new("RGB", (40, 64), "orange").save(tmp_path / "a.png")
        found = evaluate(
            nb.OpenStore(run[1]),
            models / "constrained",
            num_prompts=1,
            subject=[SUBJECT],
            subject_images=2,
            instances=tmp_path,
            device="cpu",
        ).report
        assert {name: each.pictures for name, each in found.preservation.items()} == {"preserved": 1, "heldout": 1}
        assert found.subject is not None
        assert found.subject.pictures == 2
        assert set(found.subject.instances or {}) == {"latents"}

    def test_before_there_are_moments(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "early.zarr")
        with pytest.raises(StageError, match=r"covariance in .* is missing"):
            evaluate(nb.OpenStore(execute(config, "schedule")), "anything")

    def test_while_moments_are_partial(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "part.zarr", **MID)
        store = execute(config, "covariance", store=execute(config, "schedule", "collect"), limit=1)
        with pytest.raises(StageError, match=r"covariance in .* is partial"):
            evaluate(nb.OpenStore(store), "anything")

    def test_a_base_that_was_not_collected_from(self, run: Any, models: Path) -> None:
        config = run[0].model_copy(update={"model": str(models / "free")})
        with pytest.raises(ConfigError, match="belong to another model than the one at hand"):
            evaluate(nb.OpenStore(run[1]), str(models / "free"), config=config, prompts=["a"])


class TestSpaces:
    @pytest.fixture
    def weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        return save_encoders(tmp_path, monkeypatch)

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


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("nowhere",), "no model folder at nowhere"),
            (("{models}/free", "--against", "{models}"), "neither a pipeline folder"),
            (("{models}/free@2",), "is not a LoRA"),
            (("{models}/free", "--subject", "s", "--instances", "{models}"), "instances|neither images"),
            (("{models}/free", "--features", "clip={models}"), "no CLIP model at"),
        ],
        ids=["no model", "no model beside it", "a scale of a pipeline", "no instances", "no encoder"],
    )
    def test_before_a_model_is_loaded(
        self, run: Any, models: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
    ) -> None:
        monkeypatch.setattr(draw_models, "load_path", lambda *_: pytest.fail("the base was loaded"))
        places = [word.format(models=models) for word in arguments]
        shown = nullbooth("evaluate", *places, "-s", str(run[1].path))
        assert shown.exit_code == 2
        assert re.search(words, shown.stderr)

    def test_before_anything_is_drawn(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A LoRA that fits nothing exited with 0, and forgot nothing."""
        monkeypatch.setattr(draw_models, "draw_pictures", lambda *_: pytest.fail("a picture was drawn"))
        name = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
        tensors = {f"{name}.lora_A.weight": torch.ones(2, 96), f"{name}.lora_B.weight": torch.ones(80, 2)}
        save_file(tensors, tmp_path / "lora.safetensors")
        shown = nullbooth("evaluate", str(tmp_path / "lora.safetensors"), "-s", str(run[1].path))
        refused(shown, 2, "does not fit the StableDiffusionPipeline of this base: 1 of its 1 layer cannot be loaded")

    def test_another_architecture(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(draw_models, "draw_pictures", lambda *_: pytest.fail("a picture was drawn"))
        place = tiny.saved("sd1", tmp_path)
        shown = nullbooth("evaluate", str(place), "-s", str(run[1].path), "--num-prompts", "1", "-q")
        refused(shown, 2, "has the shape", "in the base", "architecture of the base")

    def test_before_there_are_moments(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "early.zarr")
        execute(config, "schedule")
        refused(nullbooth("evaluate", "anything", "-s", config.store), 3, "covariance")


COMPARISON = (
    "pictures latent_mse latent_mse_relative pixel_mse psnr lpips captions_right{base edited} text_alignment features{latents{"
    "dim cosine frechet_distance kernel_distance one_nn_accuracy jensen_shannon precision recall density coverage}} "
    "by_picture[{id number text latent_mse}]"
)
SETS = f"preserved{{{COMPARISON}}} heldout{{{COMPARISON}}}"
# Of the subject, captions are not read.
UNREAD = COMPARISON.replace("captions_right{base edited}", "captions_right")
TAUGHT = f"{UNREAD} shown{{base edited}} instances{{latents{{base edited among}}}} instance_loss"
LOSS = "{base edited fall standard_error draws}"
OF_SUBJECT = f"subject{{{TAUGHT}{LOSS}}}"
VERDICTS = "verdicts[{question value base word is_good measured_by advice}]"
DRIFT = "drift{largest largest_heldout protected_changed unprotected_changed[] weights[{weight drift heldout_drift}]}"


def test_the_keys_of_the_document(answer: Any) -> None:
    """Programs read them, in this order (tests/end_to_end/test_json_documents.py has those of the other commands)."""
    document = answer[0]
    found = {key: keys_of(value) for key, value in document.items() if key not in ("not_measured", "preservation", "against")}
    assert keys_of(document["preservation"]) == f"{{{SETS}}}"
    assert f"subject{found['subject']}" == OF_SUBJECT
    assert found["baseline"] == f"{{{SETS} subject{{{TAUGHT}}}}}"
    # The first of `against` changed one unprotected parameter.
    assert keys_of(document["against"][:1]) == f"[{{edited {VERDICTS} preservation{{{SETS}}} {OF_SUBJECT} {DRIFT}}}]"
    assert f"drift{found['drift']}" == DRIFT
    assert f"verdicts{found['verdicts']}" == VERDICTS
    assert " ".join(document) == (
        "schema_version store base edited verdicts dtype num_steps guidance_scale preservation subject baseline against "
        "not_measured drift files"
    )
