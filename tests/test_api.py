"""The Python interface: what it gives, what it refuses, and that it stays light."""

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, StageError, StoreError
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.settings.config import STAGES, Config, build_config
from nullbooth_cli.store import Store, locked, open_backing
from nullbooth_cli.tensors import tensor_digest
from tests.support import lora_files
from tests.support.builders import PROMPTS, ROOT, execute, features_at, small_config
from tests.support.counting import counted
from tests.support.pages import python_of

NAME = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"


@pytest.fixture
def opened(finished: Any) -> nb.OpenStore:
    return nb.open_store(finished[1].path)


@pytest.fixture
def copied(finished: tuple[Config, Store], tmp_path: Path) -> tuple[Config, Store]:
    shutil.copytree(finished[1].path, tmp_path / "run.zarr")
    return finished[0], Store.open(tmp_path / "run.zarr", write=True)


@pytest.mark.parametrize(
    ("changes", "control", "error", "words"),
    [
        ({}, {"device": "cuda:99"}, nb.ResourceError, "no such device: cuda:99"),
        ({"model": "./gone"}, {}, nb.NullboothError, "gone"),
        ({"collect__side": "output"}, {}, nb.ConfigError, "these features are outputs"),
        ({"heldout_prompts": PROMPTS[:1]}, {}, nb.ConfigError, "1 of the held-out prompts are also preserved"),
        (
            {"collect__visual_attention_map": True, "collect__attention_prompts": ["a cat"]},
            {},
            nb.ConfigError,
            "'a cat' is not one of the 8 prompts",
        ),
    ],
    ids=["device", "model", "outputs", "held out", "maps"],
)
def test_what_can_be_known_is_known_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], control: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        nb.run(small_config(tmp_path / "runs" / "run.zarr", **changes), **control)
    assert list(tmp_path.iterdir()) == []


def test_looking_imports_no_torch(finished: Any) -> None:
    code = (
        "import sys, nullbooth_cli as nb; assert not {'zarr', 'numpy', 'torch', 'pydantic'} & set(sys.modules); "
        f"store = nb.open_store({str(finished[1].path)!r}); site = store.sites()[0]; store.schedule(); store.moment(site, 0); "
        "store.moment(site); store.projector(site).dense(); store.projectors(); store.provenance(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nb.nothing  # noqa: B018  # looking it up is the test


def test_moments_are_those_of_the_arrays(opened: nb.OpenStore, finished: Any) -> None:
    store = finished[1]
    for site in opened.sites():
        sums = [store.moments.read_one(site, t) for t in range(site.num_recorded(4))]
        for step in opened.schedule():
            sum_xxt, sum_x, count = sums[0 if site.timestep_free else step.index]
            found = opened.moment(site.name, step.index)
            np.testing.assert_allclose(found.second_moment, sum_xxt / count, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(found.mean, sum_x / count)
            assert found.count == count
        of_all = opened.moment(site)
        assert of_all.count == sum(s[2] for s in sums)
        np.testing.assert_allclose(of_all.second_moment, sum(s[0] for s in sums) / of_all.count, rtol=1e-10, atol=1e-12)


def test_projectors_are_those_of_the_store(opened: nb.OpenStore, finished: Any) -> None:
    store = finished[1]
    by_weight = opened.projectors()
    assert set(by_weight) == {weight for site in opened.sites() for weight in site.weights}
    for site in opened.sites():
        null = store.projectors.read_eigenvectors(site, 0)[:, : store.projectors.read_cut(site, 0).null_dim]
        np.testing.assert_allclose(opened.projector(site.name).dense(), null @ null.T, atol=1e-12)
        assert len({id(by_weight[weight]) for weight in site.weights}) == 1


def test_what_is_not_there(opened: nb.OpenStore) -> None:
    with pytest.raises(ConfigError, match=r"no site nothing\.q in"):
        opened.moment("nothing.q")
    with pytest.raises(ConfigError, match="no step 4"):
        opened.moment(opened.sites()[0], 4)
    with pytest.raises(ConfigError, match="pooled: there is one for each site"):
        opened.projector(opened.sites()[0], 0)


def test_before_the_stage_is_complete(copied: tuple[Config, Store]) -> None:
    _, store = copied
    store.write_record("project", None)
    opened = nb.open_store(store.path)
    assert opened.moment(opened.sites()[0]).count
    with pytest.raises(StageError, match=r"project in .* is missing"):
        opened.projectors()


def test_per_timestep_projectors_are_for_looking(copied: tuple[Config, Store]) -> None:
    config, store = copied
    data = config.model_dump()
    execute(build_config({**data, "project": {**data["project"], "scope": "timestep"}}), "project", store=store, force=True)
    opened = nb.open_store(store.path)
    assert opened.projector(opened.sites()[0], 2).null_dim
    with pytest.raises(ConfigError, match="one per timestep"):
        opened.projector(opened.sites()[0])
    with pytest.raises(ConfigError, match="cannot constrain a weight"):
        opened.projectors()


class TestTheModel:
    def test_the_one_that_was_collected_from(self, opened: nb.OpenStore, pipe: Any) -> None:
        assert set(opened.projectors(pipe.unet)) == set(opened.projectors(pipe.unet.state_dict()))

    def test_one_changed_weight_is_named(self, opened: nb.OpenStore, pipe: Any) -> None:
        tensors = dict(pipe.unet.state_dict())
        tensors[NAME] = tensors[NAME] + 1e-3
        with pytest.raises(ConfigError, match=rf"belong to another model.*: 1 weights differ, such as {re.escape(NAME)}"):
            opened.projectors(tensors)

    def test_a_missing_weight_is_named(self, opened: nb.OpenStore, pipe: Any) -> None:
        tensors = {name: tensor for name, tensor in pipe.unet.state_dict().items() if name != NAME}
        with pytest.raises(ConfigError, match=rf"1 weights are missing, such as {re.escape(NAME)}"):
            opened.projectors(tensors)

    def test_what_is_not_protected_may_differ(self, opened: nb.OpenStore, pipe: Any) -> None:
        assert opened.projectors({**pipe.unet.state_dict(), "conv_in.weight": torch.zeros(1)})

    def test_a_lower_precision_is_another_model(self, opened: nb.OpenStore, pipe: Any) -> None:
        rounded = {name: tensor.bfloat16() for name, tensor in pipe.unet.state_dict().items()}
        with pytest.raises(ConfigError, match=r"belong to another model.*differ"):
            opened.projectors(rounded)

    def test_a_higher_precision_is_rounded_first(self, copied: tuple[Config, Store], pipe: Any) -> None:
        _, store = copied
        record, tensors = store.records["collect"], pipe.unet.state_dict()
        digests = {name: tensor_digest(tensors[name].bfloat16(), "bfloat16") for name in record["tensors"]}
        store.write_record("collect", {**record, "tensors": digests})
        store.write_config({**store.config, "dtype": "bfloat16"})
        check_model(store, tensors)
        with pytest.raises(ConfigError, match="belong to another model"):
            check_model(store, {**tensors, NAME: tensors[NAME] * 1.02})

    def test_a_store_that_does_not_know(self, copied: tuple[Config, Store], pipe: Any) -> None:
        _, store = copied
        store.write_record("collect", {k: v for k, v in store.records["collect"].items() if k != "tensors"})
        with pytest.raises(ConfigError, match="does not record which weights"):
            nb.open_store(store.path).projectors(pipe.unet)


def test_provenance_names_everything(opened: nb.OpenStore, copied: tuple[Config, Store], pipe: Any) -> None:
    found = opened.provenance()
    assert json.loads(json.dumps(found)) == found
    assert set(found["tensors"]) == {weight for site in opened.sites() for weight in site.weights}
    assert found["prompts"]["count"] == 8
    assert [step["timestep"] for step in found["schedule"]] == [step.timestep for step in opened.schedule()]
    assert found["settings"]["collect"]["collect.guidance_scale"] == 4.0
    assert found["settings"]["project"]["project.relative_threshold"] == 0.05
    assert found["packages"]["torch"] == version("torch")
    config, store = copied
    data = config.model_dump()
    execute(build_config({**data, "project": {**data["project"], "relative_threshold": 0.1}}), "project", store=store, force=True)
    assert nb.open_store(store.path).provenance()["fingerprint"] != found["fingerprint"]


def test_the_page_runs(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = finished
    shutil.copytree(store.path, tmp_path / "runs/toy.zarr")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config.model_dump(), "store": "runs/toy.zarr"}))
    lora_files.diffusers_file(tmp_path / "lora.safetensors")
    names: dict[str, Any] = {}
    for block in python_of("docs/reference/python.md"):
        exec(block, names)
    site = next(s for s in names["store"].sites() if NAME in s.weights)
    k = np.concatenate([features_at(store, site, t, u).reshape(-1, site.dim) for t in range(4) for u in range(3)]).astype(
        np.float64
    )
    drift = names["projectors"][NAME].apply(names["change"]).numpy() @ k.T
    assert np.linalg.norm(drift) < 0.3 * np.linalg.norm(names["change"].numpy() @ k.T)
    with pytest.raises(ConfigError, match="another model"):
        names["store"].projectors(names["pipe"].unet)


def test_the_page_has_an_example_of_every_name() -> None:
    assert set(nb.__all__) <= set(re.findall(r"nb\.(\w+)", "".join(python_of("docs/reference/python.md"))))


def test_the_how_to_runs_in_forty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code = "\n".join(python_of("docs/how-to/from-python.md"))
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert (tmp_path / "trained/model_index.json").is_file()
    assert "Progress(stage='project'" in capsys.readouterr().out
    base = names["DiffusionPipeline"].from_pretrained(names["FOLDER"], dtype=torch.float32).unet
    moved = (names["pipe"].unet.get_parameter(NAME) - base.get_parameter(NAME)).abs().max()
    assert moved > 0
    with pytest.raises(ConfigError, match="another model"):
        names["store"].projectors(names["pipe"].unet)


def test_the_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "nullbooth_cli/__init__.py").read_text())
    imports = [
        node for under in tree.body if isinstance(under, ast.If) for node in under.body if isinstance(node, ast.ImportFrom)
    ]
    typed = [name.name for node in imports for name in node.names]
    assert sorted(typed) == sorted(nb.__all__) == sorted(name for name in nb.__all__ if getattr(nb, name) is not None)


class TestRun:
    SMALL = {"collect__cross_attention_layers": ["mid_block*"], "collect__keep": "moments"}

    def test_a_config_a_mapping_and_a_file_are_one_run(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "run.zarr", **self.SMALL)
        events: list[nb.Event] = []
        store = nb.run(config, device="cpu", on_event=events.append)
        assert {type(event) for event in events} == {nb.Begin, nb.Progress, nb.Note}
        assert store.url == str(tmp_path / "run.zarr")
        assert {event.stage for event in events if isinstance(event, nb.Progress)} == set(STAGES)
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
        for again in (config.model_dump(), tmp_path / "c.yaml", str(tmp_path / "c.yaml")):
            events.clear()
            nb.run(again, on_event=events.append)
            assert [event.text.split(":")[0] for event in events if isinstance(event, nb.Note)] == [
                f"{stage} is complete" for stage in STAGES
            ]

    def test_it_resumes_and_refuses_in_words_of_python(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "run.zarr", **self.SMALL)
        nb.run(config, stages=["collect"], device="cpu", limit=1)
        with pytest.raises(StageError, match=r"collect in .* is partial: 1 of 3 units") as caught:
            nb.run(config, stages=["covariance"])
        assert caught.value.hint == 'nb.run(config, stages=["collect"])'
        events: list[nb.Event] = []
        nb.run(config, stages="collect", device="cpu", on_event=events.append)
        assert [event.done for event in events if isinstance(event, nb.Progress) and event.stage == "collect"] == [2, 3]
        changed = {**config.model_dump(), "schedule": {**config.model_dump()["schedule"], "num_denoising_steps": 3}}
        with pytest.raises(StageError, match="num_denoising_steps: 4 -> 3") as caught:
            nb.run(changed)
        assert caught.value.hint.startswith('nb.run(config, stages=["schedule"], force=True)')
        nb.run(changed, device="cpu", force=True)
        assert len(nb.open_store(config.store).schedule()) == 3

    def test_nothing_is_made_for_a_stage_that_comes_too_early(self, tmp_path: Path) -> None:
        with pytest.raises(StageError, match="nothing was collected yet"):
            nb.run(small_config(tmp_path / "run.zarr"), stages=["project"])
        assert not (tmp_path / "run.zarr").exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"stages": ["inspect"]}, "no such stage: inspect"),
            ({"stages": []}, "no stage is named"),
            ({"limit": 1}, "limit counts the units of one stage"),
            ({"limit": 0, "stages": ["collect"]}, "limit is 0"),
            ({"stages": ["project"], "repair": True}, "project cannot be repaired"),
        ],
    )
    def test_a_request_without_a_meaning(self, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            nb.run(small_config(tmp_path / "run.zarr"), **arguments)

    def test_the_store_is_locked_while_it_is_written(self, tmp_path: Path) -> None:
        config = small_config(tmp_path / "run.zarr", **self.SMALL)
        with locked(open_backing(config.store)), pytest.raises(StoreError, match="is in use by process"):
            nb.run(config)


def test_many_calls_read_the_progress_once(finished: Any) -> None:
    store = nb.open_store(finished[1].path)
    with counted() as objects:
        for _ in range(3):
            for site in store.sites():
                store.moment(site)
                store.projector(site)
            store.projectors()
            store.provenance()
    cells = [key for key in objects.read if key.startswith("progress/") and "/c." in key]
    assert cells
    assert len(cells) == len(set(cells))


def test_a_stage_that_is_finished_later_is_seen(copied: tuple[Config, Store]) -> None:
    _, store = copied
    record = store.records["project"]
    store.write_record("project", None)
    opened = nb.open_store(store.path)
    with pytest.raises(StageError, match="project"):
        opened.projectors()
    store.write_record("project", record)
    assert opened.projectors()


def test_an_open_store_follows_a_run_that_replaces_what_it_holds(tmp_path: Path) -> None:
    """Else a moment would be that of the former timesteps, out of the new array."""
    small = {**TestRun.SMALL, "schedule__num_denoising_steps": 2}
    opened = nb.run(small_config(tmp_path / "run.zarr", **small), device="cpu")
    site, steps = opened.sites()[0].name, len(opened.schedule())
    before = opened.moment(site).count
    changed = small_config(tmp_path / "run.zarr", **{**small, "schedule__num_denoising_steps": 3})
    nb.run(changed, stages=["schedule"], device="cpu", force=True)
    assert (len(opened.schedule()), steps) == (3, 2)
    fresh = nb.run(changed, device="cpu", force=True)
    assert opened.moment(site).count == fresh.moment(site).count == before * 3 // 2
    assert opened.config == fresh.config
