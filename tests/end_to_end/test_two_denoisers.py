"""Two denoisers that take turns along a path, as those of Wan 2.2: the first two of five steps are one's, the rest the other's.

The pipeline is a small one of the tests; its stages, store and answers are the real ones.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import nullbooth_cli as nb
from nullbooth_cli.collect import units
from nullbooth_cli.collect.find_sites import RecordableModel, find_sites
from nullbooth_cli.datatypes import Prompt, Site, Step
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import DenoisingPath
from nullbooth_cli.model.denoisers import denoisers_of
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.nullspace.export import export_folder
from nullbooth_cli.pipeline import collect, prepare_collect, schedule
from nullbooth_cli.pipeline.import_moments import import_covariances
from nullbooth_cli.pipeline.project import decomposition_of
from nullbooth_cli.report.compare_stores import compare_stores
from nullbooth_cli.report.inspection import inspect_store, spectra_of
from nullbooth_cli.report.over_timesteps import over_timesteps
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.attention import Denoiser
from tests.support.builders import execute, per_timestep, small_config
from tests.support.pipelines import SmallPipeline

STEPS = tuple(Step(t, f"timestep_{900 - 100 * t:04d}", 900.0 - 100 * t, 1.0) for t in range(5))
BOUNDARY = 2
TEXTS = ["a cat", "a dog", "a tree", "a red star"]
OWN = {"": range(BOUNDARY), "transformer_2.": range(BOUNDARY, len(STEPS))}


def frozen_pipeline() -> Any:
    """As `load_pipeline` leaves one: its weights need no gradient."""
    torch.manual_seed(1)
    pipe = SmallPipeline(second=Denoiser(), boundary=BOUNDARY)
    for denoiser in (pipe.unet, pipe.transformer_2):
        denoiser.requires_grad_(False)
    return pipe


@pytest.fixture(scope="module", autouse=True)
def small_pipeline() -> Iterator[Any]:
    """Stages collect from the small pipeline, whatever model their config names."""

    def recordable(
        config: Config, steps: tuple[Step, ...], prompts: tuple[Prompt, ...], _: object, *, pipe: object
    ) -> RecordableModel:
        small = frozen_pipeline()
        path = DenoisingPath(num_inference_steps=len(steps), steps=steps, guidance_scale=1.0, height=None, width=None, seed=0)
        projections = find_projections(denoisers_of(small), ("q", "k", "v"), "all")
        found = find_sites(small, path, projections, side="input", branches="both", prompts=prompts)
        return RecordableModel(small, path, found)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schedule, "compute_steps", lambda *_: (None, STEPS))
        patched.setattr("nullbooth_cli.model.scheduler.is_flow_matching", lambda _: False)
        patched.setattr("nullbooth_cli.model.scheduler.noise_digest", lambda *_: "none")
        patched.setattr(collect, "load_recordable", recordable)
        patched.setattr(load, "weights_digest", lambda *_, **__: "none")
        patched.setattr("nullbooth_cli.model.prompt_length.cut_off_note", lambda *_: None)
        patched.setattr(prepare_collect, "require_same_noise", lambda *_: None)
        yield patched


def config_of(store: Path, **changes: Any) -> Config:
    given = {"original_knowledge_prompts": TEXTS, "collect__batch_size": 1, "collect__keep": "both"}
    rule = {"project__relative_threshold": None, "project__null_dim": 1}
    return small_config(store, **{**given, **rule, **changes})


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int], NDArray[np.float64]]:
    """What every projection receives in each step, by (weight, step): `[N, D]` over all prompts, from hooks of our own."""
    pipe = frozen_pipeline()
    seen: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
    step, original = 0, pipe.scheduler.step

    def count(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal step
        step += 1
        return original(*arguments)

    def keep(weight: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault((weight, step), []).append(inputs[0].double().numpy().reshape(-1, inputs[0].shape[-1]))

        return hook

    pipe.scheduler.step = count
    for prefix, denoiser in (("", pipe.unet), ("transformer_2.", pipe.transformer_2)):
        for block in (0, 1):
            for name in ("to_q", "to_k", "to_v"):
                path = f"blocks.{block}.attn2.{name}"
                denoiser.get_submodule(path).register_forward_pre_hook(keep(f"{prefix}{path}.weight"))
    for row, text in enumerate(TEXTS):
        step = 0
        pipe([text], num_inference_steps=len(STEPS), generator=[torch.Generator().manual_seed(row)])
    return {place: np.concatenate(found) for place, found in seen.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    config = config_of(tmp_path_factory.mktemp("two") / "run.zarr")
    return config, execute(config, "schedule", "collect", "covariance", "project")


def own(site: Site) -> range:
    return OWN["transformer_2." if site.layer.startswith("transformer_2.") else ""]


def moment(expected: dict[tuple[str, int], NDArray[np.float64]], site: Site, steps: Any) -> NDArray[np.float64]:
    """The sum of x x^T over these steps."""
    return np.sum([x.T @ x for x in (expected[site.weights[0], step] for step in steps)], axis=0)


@pytest.mark.parametrize("keep", ["both", "features", "moments"])
def test_every_step_has_the_moment_of_its_own_denoiser_also_when_resumed(
    expected: dict[tuple[str, int], NDArray[np.float64]], tmp_path: Path, keep: str, small_pipeline: Any
) -> None:
    config = config_of(tmp_path / "run.zarr", collect__keep=keep)
    store = execute(config, "schedule")
    execute(config, "collect", store=store, limit=2)
    assert store.progress.done("collect").tolist() == [True, True, False, False]
    run_unit, ran = units.run_unit, list[object]()
    small_pipeline.setattr(units, "run_unit", lambda model, recorder: (ran.append(1), run_unit(model, recorder)))
    execute(config, "collect", "covariance", store=store)
    small_pipeline.setattr(units, "run_unit", run_unit)
    assert len(ran) == 2
    assert {(site.layer.startswith("transformer_2."), site.feature, site.steps) for site in store.sites} == {
        (is_second, feature, steps) for is_second, steps in ((False, (0, 2)), (True, (2, 3))) for feature in "qk"
    }
    for site in store.sites:
        recorded = own(site)[:1] if site.timestep_free else own(site)
        assert list(site.recorded_steps(len(STEPS))) == list(recorded)
        for sums, step in zip(store.moments.read(site, range(len(recorded))), recorded, strict=True):
            np.testing.assert_allclose(sums.sum_xxt, moment(expected, site, [step]), rtol=1e-5)
            assert sums.count == len(expected[site.weights[0], step])


def test_the_python_interface_knows_steps_by_their_place_in_the_schedule(
    finished: tuple[Config, Store], expected: dict[tuple[str, int], NDArray[np.float64]]
) -> None:
    opened = nb.open_store(finished[1].path)
    for site in opened.sites():
        for step in own(site):
            wanted = moment(expected, site, [step]) / len(expected[site.weights[0], step])
            np.testing.assert_allclose(opened.moment(site, step).second_moment, wanted, rtol=1e-5)
        first, last = own(site)[0], own(site)[-1]
        for step in set(range(len(STEPS))) - set(own(site)):
            with pytest.raises(ConfigError, match=f"{site.name} has no step {step}: its denoiser does not run there") as caught:
                opened.moment(site, step)
            assert caught.value.hint == f"use a step from {first} to {last}"


def test_a_range_of_timesteps_pools_those_in_which_a_denoiser_runs(
    finished: tuple[Config, Store], expected: dict[tuple[str, int], NDArray[np.float64]], tmp_path: Path
) -> None:
    config = config_of(tmp_path / "run.zarr", project__timesteps=[600, 800])
    store = execute(config, "schedule", "collect", "covariance", "project")
    for site in store.sites:
        if not site.timestep_free:
            pooled = [step for step in own(site) if 600 <= STEPS[step].timestep <= 800]
            assert len(pooled) == (1 if own(site)[0] == 0 else 2)
            found = store.projectors.read_decomposition(site, 0)
            count = sum(len(expected[site.weights[0], step]) for step in pooled)
            np.testing.assert_allclose(
                found.eigenvalues, np.linalg.eigvalsh(moment(expected, site, pooled) / count), rtol=1e-5, atol=1e-9
            )


def test_a_range_without_a_step_of_one_denoiser_is_an_error(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run.zarr", project__timesteps=[750, 1000])
    with pytest.raises(ConfigError, match=r"transformer_2\.blocks\.0\.attn2\.q is recorded in none of the timesteps") as caught:
        execute(config, "schedule", "collect", "covariance", "project")
    assert caught.value.hint == "set a range with one of its own: 700, 600, 500"


@pytest.fixture(scope="module")
def stepwise(finished: tuple[Config, Store], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    return per_timestep(*finished, tmp_path_factory.mktemp("stepwise"))


def test_projectors_of_single_timesteps_are_named_by_their_steps(
    stepwise: tuple[Config, Store], expected: dict[tuple[str, int], NDArray[np.float64]]
) -> None:
    config, store = stepwise
    report = inspect_store(config, store)
    rows = [(entry.layer, entry.feature, entry.key) for entry in report.sites if entry.feature == "q"]
    assert rows == [
        (f"{prefix}blocks.{block}.attn2", "q", STEPS[step].key)
        for prefix, steps in OWN.items()
        for block in (0, 1)
        for step in steps
    ]
    by_name = {site.name: site for site in store.sites}
    for entry, eigenvalues in zip(report.sites, spectra_of(store, report.sites), strict=True):
        site = by_name[entry.site_name]
        step = own(site)[0] if entry.step_index is None else entry.step_index
        x = expected[site.weights[0], step]
        np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(x.T @ x / len(x)), rtol=1e-4, atol=1e-9)
    compared = compare_stores(config, store, config, store, store.sites)
    assert [site.key for site in compared.sites if site.feature == "q"] == [key for *_, key in rows]
    evolutions = {found.site.name: found for found in over_timesteps(store, torch.device("cpu"), config, store.sites)}
    for name, found in evolutions.items():
        steps = own(by_name[name])
        assert [found.site.first_step, *found.timesteps] == [steps[0], *(STEPS[t].timestep for t in steps)]
    assert len(evolutions) == 4


def test_covariances_are_exported_and_imported_by_the_steps_of_their_denoiser(
    finished: tuple[Config, Store], expected: dict[tuple[str, int], NDArray[np.float64]], tmp_path: Path
) -> None:
    config, store = finished
    settings = decomposition_of(config, store)
    run = export_folder(store, settings, tmp_path / "out", rule="relative_threshold", value=0.05, only_covariance=True)
    for step in STEPS:
        prefix = next(prefix for prefix, steps in OWN.items() if step.index in steps)
        assert {place.name for place in (run / step.key).iterdir()} == {f"{prefix}blocks.{block}.attn2" for block in (0, 1)}
        for block in (0, 1):
            for feature in "qkv":
                place = run / step.key / f"{prefix}blocks.{block}.attn2"
                x = expected[f"{prefix}blocks.{block}.attn2.to_{feature}.weight", step.index]
                np.testing.assert_allclose(np.load(place / f"{feature}_covariance.npy"), x.T @ x / len(x), rtol=1e-5)
                described = json.loads((place / f"{feature}_metadata.json").read_text())
                assert (described["step_index"], described["steps"]) == (step.index, [OWN[prefix][0], len(OWN[prefix])])
    into = config_of(tmp_path / "imported.zarr")
    imported = Store.create(into.store, into.model_dump())
    with imported.lock():
        list(import_covariances(run, imported, into))
    for site in imported.sites:
        assert site.steps == (own(site)[0], len(own(site)))
        for sums, step in zip(imported.moments.read(site, range(len(own(site)))), own(site), strict=True):
            np.testing.assert_allclose(sums.sum_xxt, moment(expected, site, [step]), rtol=1e-5)
    place = run / STEPS[3].key / "transformer_2.blocks.1.attn2" / "q_covariance.npy"
    place.unlink()
    again = config_of(tmp_path / "again.zarr")
    with pytest.raises(ConfigError, match=r"transformer_2\.blocks\.1\.attn2 q has no covariance in timestep_0600"):
        list(import_covariances(run, Store.create(again.store, again.model_dump()), again))
