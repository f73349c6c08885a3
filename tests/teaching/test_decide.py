"""The files that a request becomes."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.settings.class_prompts import class_prompts
from nullbooth_cli.settings.config import load_config
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings
from nullbooth_cli.settings.shipped import configs, shipped
from nullbooth_cli.settings.starter import RECIPES
from nullbooth_cli.teaching import decide
from nullbooth_cli.teaching.decision import Decision, write
from nullbooth_cli.teaching.request import HELDOUT_EVERY
from tests.support.builders import ROOT


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Bare pictures."""
    (tmp_path / "photos").mkdir()
    for side in (40, 50):
        Image.new("RGB", (side, side), "red").save(tmp_path / f"photos/{side}.png")
    return str(tmp_path / "photos")


def found(output: Path, *, on_cpu: bool = True, **given: Any) -> Decision:
    return decide.find(given, str(output), on_cpu=on_cpu)


def texts(name: str) -> list[str]:
    return [prompt.text for prompt in load_prompts(str(shipped(name)))]


def test_the_embedded_model_is_the_demo(tmp_path: Path) -> None:
    decision = found(tmp_path / "out")
    assert decision.is_new
    assert decision.recipe.instance_images == str(shipped("instances/toy_varied"))
    assert decision.recipe.instance_prompt is None  # the demo's pictures have captions
    assert decision.preserved == texts("toy.txt")
    assert decision.heldout == texts("toy_heldout.txt")
    assert decision.config.collect.guidance_scale == decision.recipe.guidance_scale == 4.0


def test_decisions_of_a_real_model(tmp_path: Path, photos: str) -> None:
    decision = found(tmp_path / "out", pictures=photos, noun="dog", model="sd15", on_cpu=False)
    config, recipe = decision.config, decision.recipe
    assert config.model == recipe.model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert config.store == recipe.store == str(tmp_path / "out/store.zarr")
    assert config.collect.collect_features.chosen() == ("k", "v")
    assert config.project.relative_threshold == 1e-4
    assert config.dtype == "float32"
    assert recipe.instance_prompt == "a photo of sks dog"
    assert recipe.word == "sks"
    assert recipe.features == ["k", "v"]
    assert recipe.mixed_precision == "fp16"
    assert recipe.validation_prompts[:2] == decision.subject[:2]


def test_what_trains_is_collected(tmp_path: Path, photos: str) -> None:
    """Training refused, after the store was made: "8 weights would train without a constraint"."""
    settings = ["features=[q]", "linear_layers=[attn1, ff_in]"]
    config = found(tmp_path / "out", pictures=photos, noun="dog", model="sd15", settings=settings).config
    collect = config.collect
    assert config.project.empty == "freeze", "they read pictures"
    assert collect.collect_features.chosen() == ("q", "k", "v")
    assert collect.linear_layers == ["attn1", "ff_in"]
    flux = found(tmp_path / "flux", pictures=photos, noun="dog", model="flux")
    assert flux.config.collect.linear_layers == flux.recipe.linear_layers != []
    own = [*settings, "collect.linear_layers=[all]"]
    assert found(tmp_path / "own", pictures=photos, model="sd15", settings=own).config.collect.linear_layers == ["all"]


def test_prompts_hold_out_some_by_themselves(tmp_path: Path, photos: str) -> None:
    (tmp_path / "mine.txt").write_text("my own prompt\nanother of mine\n")
    mine = str(tmp_path / "mine.txt")
    decision = found(tmp_path / "out", pictures=photos, noun="dog", model="sd15", preserve=[mine])
    known = ["my own prompt", "another of mine", *texts("knowledge_1000.txt"), *class_prompts("dog")]
    assert sorted(decision.preserved + decision.heldout) == sorted(known)
    assert decision.heldout == known[HELDOUT_EVERY - 1 :: HELDOUT_EVERY]
    assert "my own prompt" in decision.preserved


def test_without_a_class_only_general_prompts_are_preserved(tmp_path: Path, photos: str) -> None:
    decision = found(tmp_path / "out", pictures=photos, model="sd15")
    assert len(decision.preserved) + len(decision.heldout) == 1000
    assert "no class is named" in decision.notes[-1]


def test_on_the_cpu_there_is_no_mixed_precision(tmp_path: Path, photos: str) -> None:
    assert found(tmp_path / "out", pictures=photos, noun="dog", model="sd15").recipe.mixed_precision == "no"


def test_steps_bring_their_checkpoints(tmp_path: Path) -> None:
    recipe = found(tmp_path / "out", steps=20).recipe
    assert (recipe.max_train_steps, recipe.checkpointing_steps) == (20, 5)


def test_settings_go_where_their_key_is(tmp_path: Path) -> None:
    decision = found(tmp_path / "out", settings=["rank=3", "schedule.num_denoising_steps=7", "seed=4"])
    assert decision.recipe.rank == 3
    assert decision.recipe.seed == 4
    assert decision.config.schedule.num_denoising_steps == 7


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("store=x.zarr", "store cannot be set: it follows from the request"),
        ("output=x", "output cannot be set"),
        ("word=zwx", "word cannot be set"),
        ("instance_images=x", "instance_images cannot be set"),
        ("heldout_prompts=[a, b]", "heldout_prompts cannot be set"),
        ("wrod=sks", "unknown key 'wrod'"),
        ("schedule.steps=2", "unknown key 'schedule.steps'"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        found(tmp_path / "out", settings=[setting])


def test_files_have_the_decision(tmp_path: Path) -> None:
    made = found(tmp_path / "out", word="zwx", settings=["rank=3"])
    write(made)
    again = found(tmp_path / "out")
    assert not again.is_new
    assert (again.request, again.config, again.recipe) == (made.request, made.config, made.recipe)
    assert (again.preserved, again.heldout, again.subject) == (made.preserved, made.heldout, made.subject)
    assert load_config(tmp_path / "out/nullbooth.yaml") == made.config
    assert load_settings(Recipe, tmp_path / "out/train.yaml") == made.recipe


def test_edited_files_count(tmp_path: Path) -> None:
    write(found(tmp_path / "out"))
    path = tmp_path / "out/train.yaml"
    path.write_text(path.read_text().replace("\nlearning_rate: 3.0e-03", "\nlearning_rate: 0.25", 1))
    assert found(tmp_path / "out").recipe.learning_rate == 0.25


def test_another_request_is_refused(tmp_path: Path) -> None:
    write(found(tmp_path / "out", word="zwx"))
    assert found(tmp_path / "out", word="zwx").request.word == "zwx"
    with pytest.raises(ConfigError, match=r"made for another request\n  word: zwx -> qfj"):
        found(tmp_path / "out", word="qfj")


def test_more_steps_are_a_matter_of_the_recipe(tmp_path: Path) -> None:
    write(found(tmp_path / "out", steps=4))
    with pytest.raises(ConfigError, match="steps: 4 -> 8") as refused:
        found(tmp_path / "out", steps=8)
    assert str(tmp_path / "out/train.yaml") in refused.value.hint


def test_a_request_is_the_same_from_another_folder(tmp_path: Path, photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("my own prompt\nanother of mine\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    write(found(tmp_path / "out", pictures="photos", preserve=["mine.txt"]))
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = found(tmp_path / "out", pictures="../photos", preserve=["../mine.txt"])
    assert again.recipe.instance_images == photos
    assert not again.is_new


def test_an_output_that_was_moved_is_used_where_it_is(tmp_path: Path) -> None:
    made = found(tmp_path / "out", word="zwx", settings=["rank=3"])
    write(made)
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = found(tmp_path / "moved")
    assert moved.notes == (f"{tmp_path / 'moved'} was moved: its files are written again with the new place",)
    assert moved.config.store == moved.recipe.store == str(tmp_path / "moved/store.zarr")
    assert moved.config.heldout_prompts == str(tmp_path / "moved/prompts/heldout.txt")
    assert (moved.recipe.output, moved.recipe.rank) == (str(tmp_path / "moved"), 3)
    write(moved)
    again = found(tmp_path / "moved")
    assert (again.is_new, again.config, again.recipe) == (False, moved.config, moved.recipe)


@pytest.mark.parametrize("name", [name for name in configs() if name not in RECIPES])
def test_names_of_models_that_cannot_be_trained_are_refused(tmp_path: Path, photos: str, name: str) -> None:
    with pytest.raises(ModelError, match=f"^{name} cannot be trained here"):
        found(tmp_path / "out", pictures=photos, model=name)


ARCHITECTURES = ROOT / "tests/architectures"


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "toy"])
def test_a_folder_starts_as_the_name_of_its_kind_does(tmp_path: Path, photos: str, name: str) -> None:
    """By the class of its pipeline, whatever the folder is called."""
    (tmp_path / "mine").symlink_to(ARCHITECTURES / name)
    given = {"pictures": photos, "noun": "dog", "on_cpu": False}
    named = found(tmp_path / "out", model=name, **given)
    decision = found(tmp_path / "out", model=str(tmp_path / "mine"), **given)
    assert decision.recipe.model == decision.config.model == str(tmp_path / "mine")
    nearest = found(tmp_path / "out", model={"sd14": "sd15"}.get(name, name), **given)
    for one, other in ((decision.recipe, nearest.recipe), (decision.config, nearest.config)):
        assert one.model_copy(update={"model": other.model}) == other
    shipped_recipe = load_settings(Recipe, shipped(RECIPES[name]))
    follow = {"model", "store", "output", "instance_images", "instance_prompt", "validation_prompts", "resize"}
    assert named.recipe.model_dump(exclude=follow) == shipped_recipe.model_dump(exclude=follow)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("sd15", "float32"), ("sdxl", "float32"), ("pixart", "float32"), ("sd3", "bfloat16"), ("flux", "bfloat16")],
)
def test_a_store_of_text_is_collected_in_float32(tmp_path: Path, photos: str, name: str, dtype: str) -> None:
    config = found(tmp_path / "out", pictures=photos, noun="dog", model=name, on_cpu=False).config
    assert config.dtype == dtype
    assert config.project.empty == ("freeze" if dtype == "bfloat16" else "refuse")
    assert config.collect.collect_features.chosen() == ("k", "v")


def test_another_class_of_pipelines_is_refused_from_its_config_files(tmp_path: Path, photos: str) -> None:
    for name, kind in (("lcm", "LatentConsistencyModelPipeline"),):
        with pytest.raises(ModelError, match=f"^{kind} cannot be trained here"):
            found(tmp_path / "out", pictures=photos, model=str(ARCHITECTURES / name))


@pytest.mark.parametrize(("method", "expected"), [(None, "lora"), ("full", "full")])
def test_the_recipe_of_a_large_model_trains_a_lora(tmp_path: Path, photos: str, method: str | None, expected: str) -> None:
    given = {} if method is None else {"method": method}
    assert found(tmp_path / "out", pictures=photos, noun="dog", model="flux", **given).recipe.method == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"noun": "a circle"}, "article"),
        ({"noun": "sks circle"}, "the class 'sks circle' has the word 'sks'"),
        ({"word": "--lora"}, "begins with a hyphen"),
    ],
)
def test_words_and_classes_that_are_refused(tmp_path: Path, given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        found(tmp_path / "out", **given)


def test_captions_of_some_pictures_only_are_refused(tmp_path: Path, photos: str) -> None:
    (Path(photos) / "40.txt").write_text("a photo of sks circle")
    with pytest.raises(ConfigError, match="no caption for") as refused:
        found(tmp_path / "out", pictures=photos)
    assert "or set caption, one caption for all images" in refused.value.hint


def test_a_real_model_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pictures are named"):
        found(tmp_path / "out", model="sd15")


def test_nothing_is_written_by_a_decision(tmp_path: Path) -> None:
    found(tmp_path / "out")
    assert not (tmp_path / "out").exists()
