"""A second subject starts from the first: what was taught stays, and the files of both are one model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nullbooth_cli as nb
from nullbooth_cli.collect.edited_model import load_edited, read_place
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.pipeline.remember import RememberRequest, forget_events, remember_events
from nullbooth_cli.store import Store, tasks_of
from nullbooth_cli.training import dreambooth, output, setup
from nullbooth_cli.training.hub import require_account
from nullbooth_cli.training.plan import plan_training
from nullbooth_cli.training.refit import refit
from tests.support.builders import PROMPTS
from tests.support.edited_models import toy
from tests.support.subjects import Subjects, changes, collected, drift, loaded, moved, remember, rows, teach_two
from tests.support.tiny_dreambooth import recipe, run

LORA = "lora/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    """LoRAs. Read only."""
    return teach_two(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    """A LoRA after a pipeline. Read only."""
    return teach_two(tmp_path_factory.mktemp("pipelines"), first="full")


def protected(subjects: Subjects) -> list[str]:
    return [weight for site in Store.open(subjects.config.store).sites for weight in site.weights]


def copied(subjects: Subjects, folder: Path) -> Subjects:
    shutil.copytree(subjects.dog.parent, folder / "copy")
    config = subjects.config.model_copy(update={"store": str(folder / "copy/run.zarr")})
    return Subjects(config, folder / "copy/dog", folder / "copy/cat")


def next_one(subjects: Subjects, place: Path, **rest: Any) -> Any:
    """The recipe of a third subject."""
    return recipe(place, **{**changes("qfj", subjects.config, method="lora", after=str(subjects.cat)), **rest})


@pytest.mark.parametrize("fixture", ["both", "pipelines"])
def test_the_first_subject_stays(fixture: str, request: pytest.FixtureRequest) -> None:
    subjects: Subjects = request.getfixturevalue(fixture)
    base, dog, cat = toy(), loaded(subjects.config, subjects.dog), loaded(subjects.config, subjects.cat)
    names, outputs = protected(subjects), (subjects.dog, subjects.cat)
    tokens = [json.loads((place / "train.json").read_text())["token"] for place in outputs]
    of_dog, of_cat = ([f"a {token} circle"] for token in tokens)
    assert drift(dog, cat, of_dog, names) < 1e-6, "what was taught first"
    assert drift(base, cat, PROMPTS[:3], names) < 1e-6
    assert drift(base, dog, of_dog, names) > 1e-2
    assert drift(dog, cat, of_cat, names) > 1e-3
    assert torch.equal(rows(dog, tokens[0]), rows(cat, tokens[0])), "both words are there"
    assert not torch.equal(rows(cat, tokens[1]), rows(cat, tokens[0]))


def test_files_are_the_model_in_memory(both: Subjects, tmp_path: Path) -> None:
    """The LoRAs of two folders, drawn from files, are what trained."""
    made = next_one(both, tmp_path / "bird", store=None, after=str(both.dog), max_train_steps=1, word=None)
    ready = setup.set_up(made, "cpu")
    for _ in dreambooth.train(ready):
        pass
    dreambooth.finish(ready)
    from_files = loaded(both.config, tmp_path / "bird").unet.state_dict()
    trained: Any = ready.denoiser
    for name in protected(both):
        layer = trained.get_submodule(name.removesuffix(".weight"))
        expected = layer.base_layer.weight + layer.get_delta_weight("default")
        torch.testing.assert_close(from_files[name], expected.detach(), rtol=1e-5, atol=1e-7)


def test_what_an_output_records(both: Subjects, pipelines: Subjects) -> None:
    document, beside = (json.loads((both.cat / name).read_text()) for name in ("train.json", "lora/base.json"))
    expected = {"place": str(both.dog), "relative": "../../dog", "prompts": ["a <sks> circle"]}
    assert document["after"] == beside["after"] == {**expected, "digest": read_place(both.config, str(both.dog)).digest}
    assert document["recipe"]["after"] == str(both.dog)
    inside = json.loads((both.cat / "checkpoint-000004/trained/base.json").read_text())["after"]
    assert inside == {**document["after"], "relative": "../../../dog"}
    card = (both.cat / "README.md").read_text()
    assert f"It was trained after `{both.dog}`, and goes on top of it." in card
    of_pipeline = json.loads((pipelines.cat / "train.json").read_text())["after"]
    assert (of_pipeline["digest"], of_pipeline["prompts"]) == (None, ["a sks circle"])


def test_the_code_of_the_card_loads_both(both: Subjects) -> None:
    code = (both.cat / "README.md").read_text().split("```python\n")[1].split("picture =")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    expected = loaded(both.config, both.cat).unet.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found["pipe"].unet.state_dict().items())


def test_both_folders_may_move(both: Subjects, tmp_path: Path) -> None:
    here = moved(copied(both, tmp_path), tmp_path / "moved")
    expected = loaded(both.config, both.cat).unet.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded(here.config, here.cat).unet.state_dict().items())


def test_an_earlier_model_that_is_gone_or_another(both: Subjects, tmp_path: Path) -> None:
    here = copied(both, tmp_path)
    file = here.dog / LORA
    tensors = load_file(file)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, file)
    with pytest.raises(ConfigError, match=r"cat/lora was trained after .*copy/dog, which has changed since"):
        read_place(here.config, str(here.cat))
    base = here.cat / "lora/base.json"
    document = json.loads(base.read_text())
    base.write_text(json.dumps({**document, "after": {**document["after"], "place": "/nowhere/dog"}}))
    shutil.rmtree(here.dog)
    with pytest.raises(ConfigError, match=r"was trained after /nowhere/dog, which is gone"):
        read_place(here.config, str(here.cat))


def test_a_place_brings_along_what_is_before_it(both: Subjects) -> None:
    with pytest.raises(ConfigError, match=r"dog/lora is in .* twice: one of them was trained after it"):
        read_place(both.config, f"{both.cat}+{both.dog}")
    weakened = read_place(both.config, f"{both.cat}@0.5")
    assert [each.scale for each in weakened.additions] == [1.0, 0.5]


class TestTheStore:
    def test_must_remember_it(self, both: Subjects, tmp_path: Path) -> None:
        made = next_one(both, tmp_path / "bird", after=str(both.dog), store=collected(tmp_path / "run.zarr").store)
        for refuse in (lambda: setup.set_up(made, "cpu"), lambda: plan_training(made, "cpu")):
            with pytest.raises(ConfigError, match=r"run\.zarr does not remember .*dog: training after it would change") as caught:
                refuse()
            assert "let the store remember" in caught.value.hint

    def test_must_remember_it_last(self, both: Subjects, tmp_path: Path) -> None:
        """The model in the middle of the chain, and one that nobody remembered."""
        here = copied(both, tmp_path)
        with pytest.raises(ConfigError, match=r"cat is not the last that .*run\.zarr remembers: that is dog"):
            setup.set_up(next_one(here, tmp_path / "bird"), "cpu")
        remember(here.config, here.cat)
        with pytest.raises(ConfigError, match=r"dog is not the last that .*run\.zarr remembers: that is cat"):
            setup.set_up(next_one(here, tmp_path / "bird", after=str(here.dog)), "cpu")
        assert [task.name for task in tasks_of(Store.open(here.config.store))] == ["dog", "cat"]
        ready = setup.set_up(next_one(here, tmp_path / "bird", dtype="bfloat16", mixed_precision="bf16"), "cpu")
        assert ready.constraint is not None, "in another precision than the store's"
        assert {tensor.dtype for name, tensor in ready.denoiser.named_parameters() if "base_layer" in name} == {torch.bfloat16}

    def test_a_pipeline_is_told_by_its_weights(self, pipelines: Subjects, tmp_path: Path) -> None:
        shutil.copytree(pipelines.dog, tmp_path / "dog")
        file = tmp_path / "dog/pipeline/unet/diffusion_pytorch_model.safetensors"
        tensors, name = load_file(file), protected(pipelines)[0]
        save_file({**tensors, name: tensors[name] + 1}, file)
        with pytest.raises(ConfigError, match=rf"after dog\): 1 weights differ, such as {name}"):
            setup.set_up(next_one(pipelines, tmp_path / "bird", after=str(tmp_path / "dog")), "cpu")

    def test_files_go_onto_a_model_of_the_chain_only(self, both: Subjects, tmp_path: Path) -> None:
        pipe = toy()
        pipe.unet.get_parameter(protected(both)[0]).data += 1
        pipe.save_pretrained(tmp_path / "other")
        bare = tmp_path / "dog.safetensors"
        shutil.copyfile(both.dog / LORA, bare)
        config = collected(tmp_path / "run.zarr")
        for _ in remember_events(config, RememberRequest(source=str(bare), name="dog", prompts=("a sks circle",)), device="cpu"):
            pass
        made = recipe(tmp_path / "bird", **changes("qfj", config, after=str(bare), model=str(tmp_path / "other")))
        with pytest.raises(ConfigError, match="these projectors belong to another model"):
            setup.set_up(made, "cpu")
        assert setup.set_up(made.model_copy(update={"model": "toy"}), "cpu").constraint is not None

    def test_one_that_was_taught_more_is_another_task(self, both: Subjects, tmp_path: Path) -> None:
        here = copied(both, tmp_path)
        file = here.dog / LORA
        save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
        with pytest.raises(ConfigError, match="remembers another task by the name dog"):
            remember(here.config, here.dog)
        for _ in forget_events(here.config, "dog"):
            pass
        remember(here.config, here.dog)
        assert tasks_of(Store.open(here.config.store))[0].digest == read_place(here.config, str(here.dog)).digest


class TestRefused:
    def test_the_word_of_a_lora(self, both: Subjects, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the vocabulary of this model has '<sks>' already"):
            setup.set_up(next_one(both, tmp_path, after=str(both.dog), word="sks", instance_prompt="a sks"), "cpu")

    def test_the_word_of_a_pipeline(self, pipelines: Subjects, tmp_path: Path) -> None:
        made = next_one(
            pipelines, tmp_path, after=str(pipelines.dog), store=None, method="full", word="sks", instance_prompt="a sks"
        )
        with pytest.raises(ConfigError, match="the word 'sks' is in 1 preserved prompt, such as 'a sks circle'"):
            setup.set_up(made, "cpu")

    def test_no_model_and_another_base(self, both: Subjects, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"after: no model at {tmp_path}/nowhere"):
            setup.set_up(next_one(both, tmp_path, after=f"{tmp_path}/nowhere"), "cpu")
        toy().save_pretrained(tmp_path / "other")
        with pytest.raises(ConfigError, match="was trained on toy, and the base here is"):
            setup.set_up(next_one(both, tmp_path, model=str(tmp_path / "other")), "cpu")

    def test_a_lora_on_top_of_another_is_not_pushed(self, both: Subjects, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"goes on top of .*cat, which the repository would not have"):
            require_account("me/bird", next_one(both, tmp_path))


class TestResume:
    def test_a_finished_run_is_recognised_where_the_earlier_one_is_now(self, both: Subjects, tmp_path: Path) -> None:
        here = copied(both, tmp_path)
        made = recipe(here.cat, **changes("zwx", here.config, method="lora", after=str(here.dog)))
        shutil.copytree(here.dog, tmp_path / "elsewhere")
        for place in (here.dog, tmp_path / "elsewhere"):
            assert run(made.model_copy(update={"after": str(place)}))["steps"] == 4
        found = output.finished(made)
        assert found is not None
        assert found.after is not None
        assert found.after.place in (str(here.dog), str(tmp_path / "elsewhere"))

    def test_another_earlier_model_is_another_run(self, both: Subjects) -> None:
        made = recipe(both.cat, **changes("zwx", both.config, method="lora"))
        with pytest.raises(output.OtherSettings, match=r"after: \w{16} -> None"):
            output.finished(made)


def test_a_refit_starts_from_the_earlier_one(both: Subjects, tmp_path: Path) -> None:
    """What it keeps and what drifts are those of the second LoRA on the model with the first."""
    report = refit(both.cat, nb.open_store(both.config.store), ["a <zwx> circle"], output=tmp_path / "refitted", device="cpu")
    assert report.drift_before < 1e-6
    again = load_edited(both.config, str(tmp_path / "refitted"), "cpu")
    assert drift(loaded(both.config, both.dog), again, ["a <sks> circle"], protected(both)) < 1e-4
    assert torch.equal(rows(again, "<sks>"), rows(loaded(both.config, both.dog), "<sks>"))


def test_inspection_measures_the_last_change_alone(pipelines: Subjects, both: Subjects, tmp_path: Path) -> None:
    store = nb.open_store(pipelines.config.store)
    found = store.inspect_lora(pipelines.cat, device="cpu")
    assert found.largest_drift is not None
    assert found.largest_drift < 1e-6
    free = next_one(both, tmp_path / "bird", after=str(both.dog), method="full", store=None, word=None, max_train_steps=1)
    run(free)
    whole = nb.open_store(both.config.store).inspect_lora(tmp_path / "bird", device="cpu")
    dog, bird = loaded(both.config, both.dog), loaded(both.config, tmp_path / "bird")
    norms = {module.weights[0]: module.norm for module in whole.modules if module.norm is not None}
    for name in protected(both):
        moved_by = bird.unet.get_parameter(name) - dog.unet.get_parameter(name)
        assert norms[name] == pytest.approx(float(moved_by.double().norm()), rel=1e-4)
