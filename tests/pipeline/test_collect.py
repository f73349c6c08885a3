"""What collect stores is what the model's projections received, on the model's own path."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from nullbooth_cli.collect import find_sites, open_model
from nullbooth_cli.collect import recorder as recorder_module
from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.errors import ConfigError, DataError, ResourceError
from nullbooth_cli.model.denoise import truncated_prompts
from nullbooth_cli.model.load import denoiser_of
from nullbooth_cli.pipeline import collect, run, stages
from nullbooth_cli.progress import Note
from nullbooth_cli.store import Store
from nullbooth_cli.store.feature_arrays import FeatureArrays
from nullbooth_cli.toy import FOLDER
from tests.support.builders import PROMPTS, execute, features_at, prompts_of, small_config

NOISE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}


def by_hand(pipe: Any, prompts: list[str], first: int, module: str, scheduler: Any = None) -> np.ndarray:
    """Inputs of one projection at each of four steps, `[T, rows, L, D]`, through a pipeline and a scheduler of our own."""
    pipe.scheduler = scheduler or diffusers.DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True)
    seen: list[np.ndarray] = []
    handle = pipe.unet.get_submodule(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy().copy()))
    try:
        generators = [torch.Generator("cpu").manual_seed(first + i) for i in range(len(prompts))]
        pipe(prompts, num_inference_steps=4, guidance_scale=4.0, generator=generators, output_type="latent")
    finally:
        handle.remove()
    return np.stack(seen)


@pytest.mark.parametrize("feature", ["q", "k", "v", "out"])
def test_features_are_what_an_independent_hook_sees(finished: Any, pipe: Any, feature: str) -> None:
    _, store = finished
    layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    projection = f"{layer}.to_{feature}" + (".0" if feature == "out" else "")
    site = next(site for site in store.sites if f"{projection}.weight" in site.weights)
    expected = by_hand(pipe, PROMPTS[3:6], 3, projection)
    tokens = expected.shape[2]
    assert site.num_tokens == 2 * tokens
    for t in range(1 if site.timestep_free else 4):
        stored = features_at(store, site, t, 1)
        np.testing.assert_allclose(stored[:, :tokens], expected[t, :3], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stored[:, tokens:], expected[t, 3:], rtol=1e-4, atol=1e-4)


def test_text_is_stored_once_for_all_layers_and_steps(finished: Any) -> None:
    _, store = finished
    text = [site for site in store.sites if site.feature in "kv"]
    assert len(text) == 1
    assert text[0].timestep_free
    assert len(text[0].weights) == 20
    assert len(store.sites) == 21


def test_every_chunk_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int, int]] = []
    real = FeatureArrays.write

    def recorded(self: Store, site: Site, block: range, rows: list[int], values: Any) -> None:
        written.extend((site.name, step, rows[0] // 3) for step in block)
        real(self, site, block, rows, values)

    monkeypatch.setattr(FeatureArrays, "write", recorded)
    store = execute(small_config(tmp_path / "run.zarr", collect__cross_attention_layers=[0, "mid_block*"]), "collect")
    steps = {site.name: range(1 if site.timestep_free else 4) for site in store.sites}
    assert sorted(written) == sorted((name, t, unit) for name, ts in steps.items() for t in ts for unit in range(3))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_features_do_not_depend_on_the_batch(finished: Any, tmp_path: Path, batch_size: int) -> None:
    _, store = finished
    other = execute(small_config(tmp_path / "other.zarr", collect__batch_size=batch_size), "collect")
    for site in store.sites:
        for t in range(1 if site.timestep_free else 4):
            mine, theirs = (
                np.concatenate([features_at(s, site, t, u) for u in range(len(s.progress.done("collect")))])
                for s in (store, other)
            )
            assert np.abs(mine - theirs).max() <= 1e-4 * np.abs(mine).max()


@pytest.mark.parametrize("strategy", [None, "DPM++ 3M SDE Karras", "Euler a", "UniPC", "LCM", "model"])
def test_every_sampler_can_be_walked_and_repeated(tmp_path: Path, strategy: str | None) -> None:
    changes = {
        "schedule__sampler_strategy": strategy,
        "schedule__seed": 5,
        "original_knowledge_prompts": PROMPTS[:2],
        "collect__cross_attention_layers": ["mid_block*"],
    }
    first, second = (
        execute(small_config(tmp_path / f"{name}.zarr", collect__batch_size=batch, **changes), "collect")
        for name, batch in (("a", 2), ("b", 1))
    )
    for site in first.sites:
        for t in range(1 if site.timestep_free else 4):
            one, two = (
                np.concatenate([features_at(s, site, t, u) for u in range(len(s.progress.done("collect")))])
                for s in (first, second)
            )
            assert np.abs(one - two).max() <= 2e-4 * np.abs(one).max()


def test_the_models_own_scheduler_may_walk_more_steps_than_asked(tmp_path: Path, pipe: Any) -> None:
    """PNDM, which Stable Diffusion 1 ships with, repeats its second step."""
    shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("scheduler", "*.py", "__pycache__"))
    pndm = diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1)
    pndm.save_pretrained(tmp_path / "model" / "scheduler")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace("DPMSolverMultistepScheduler", "PNDMScheduler"))
    config = small_config(
        tmp_path / "run.zarr",
        model=str(tmp_path / "model"),
        schedule__sampler_strategy="model",
        collect__cross_attention_layers=["mid_block*"],
    )
    store = execute(config, "collect")
    assert len(store.schedule()) == 5
    site = next(site for site in store.sites if site.feature == "q")
    projection = f"{site.layer}.to_q"
    expected = by_hand(pipe, PROMPTS[:3], 0, projection, diffusers.PNDMScheduler.from_config(pndm.config))
    np.testing.assert_allclose(features_at(store, site, 4, 0)[:, :4], expected[4, :3], rtol=1e-3, atol=1e-3)


def test_chosen_layers_and_features(tmp_path: Path) -> None:
    store = execute(
        small_config(
            tmp_path / "run.zarr",
            collect__cross_attention_layers=["mid_block*", 0],
            collect__collect_features={"k_features": False, "v_features": False},
        ),
        "collect",
    )
    assert [site.name.split(".attentions")[0] + " " + site.feature for site in store.sites] == [
        "down_blocks.0 q",
        "down_blocks.0 out",
        "mid_block q",
        "mid_block out",
    ]


def test_only_the_prompts_branch_or_no_guidance(tmp_path: Path, finished: Any) -> None:
    _, both = finished
    cond = execute(small_config(tmp_path / "cond.zarr", collect__branches="cond", collect__cross_attention_layers=[0]), "collect")
    site = cond.sites[0]
    twin = next(s for s in both.sites if s.name == site.name)
    assert twin.num_tokens == 2 * site.num_tokens
    np.testing.assert_allclose(features_at(cond, site, 3, 0), features_at(both, twin, 3, 0)[:, site.num_tokens :], atol=1e-5)
    single = execute(
        small_config(tmp_path / "one.zarr", collect__guidance_scale=1.0, collect__cross_attention_layers=[0]), "collect"
    )
    assert single.sites[0].num_tokens == site.num_tokens


def test_outputs_can_be_collected_but_not_projected(tmp_path: Path, pipe: Any) -> None:
    config = small_config(tmp_path / "run.zarr", collect__side="output", collect__cross_attention_layers=["mid_block*"])
    store = execute(config, "collect", "covariance")
    site = next(site for site in store.sites if site.feature == "k")
    assert (site.side, site.timestep_free, len(site.weights)) == ("output", True, 1)
    text = by_hand(pipe, PROMPTS[:3], 0, f"{site.layer}.to_k")[0]
    with torch.no_grad():
        expected = pipe.unet.get_submodule(f"{site.layer}.to_k")(torch.from_numpy(text[3:])).numpy()
    np.testing.assert_allclose(features_at(store, site, 0, 0)[:, 16:], expected, atol=1e-4)
    with pytest.raises(ConfigError, match=r"features are outputs"):
        execute(config, "project")


@pytest.mark.parametrize("where", ["model", "dtype"])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    config = small_config(
        tmp_path / "run.zarr",
        collect__cross_attention_layers=["mid_block*"],
        collect__feature_dtype="float16" if where == "dtype" else "float32",
    )
    real = find_sites.split_branches

    def spoiled(tensor: torch.Tensor, num_prompts: int, branches: str) -> torch.Tensor:
        values = real(tensor, num_prompts, branches).clone()
        if num_prompts > 1:
            values[1, 0, 0] = float("nan") if where == "model" else 1e6
        return values

    monkeypatch.setattr(recorder_module, "split_branches", spoiled)
    expected = (
        rf"{'not finite' if where == 'model' else 'does not fit float16'}: prompt '{PROMPTS[1]}', layer mid_block.*timestep 999"
    )
    with pytest.raises(DataError, match=expected):
        execute(config, "collect")


def test_a_failed_write_stops_the_run_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ResourceError("the disk is gone", "plug it in")

    monkeypatch.setattr(FeatureArrays, "write", fail)
    config = small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["mid_block*"])
    with pytest.raises(ResourceError, match="the disk is gone"):
        execute(config, "collect")
    assert not Store.open(config.store).progress.done("collect").any()


def test_long_prompts_are_said_with_the_lost_words(tmp_path: Path, pipe: Any) -> None:
    long = "a photo of a sks red circle at the left of a blue background with a green star"
    assert truncated_prompts(pipe, [Prompt(PROMPTS[0]), Prompt(long)]) == [(Prompt(long), "with a green star")]
    config = small_config(tmp_path / "run.zarr", original_knowledge_prompts=[long], collect__cross_attention_layers=[0])
    store = Store.create(config.store, config.model_dump())
    events = list(stages.execute("collect", run.Run(config=config, prompts=prompts_of(config), store=store, device="cpu")))
    assert any(isinstance(event, Note) and "green star' is cut off" in event.text for event in events)


def test_no_hooks_are_left_behind(pipe: Any) -> None:
    assert not any(module._forward_pre_hooks for module in denoiser_of(pipe).modules())


class TestNothingMoreIsComputed:
    """Modules of the model are counted: what nobody asked for does not run."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        counts: Counter[str] = Counter()
        load = open_model.load_recordable

        def counted(*arguments: Any) -> Any:
            loaded = load(*arguments)
            unet = loaded.pipe.unet
            for name, module in {
                "unet": unet,
                "down": unet.down_blocks[0],
                "up": unet.up_blocks[-1],
                "text": loaded.pipe.text_encoder,
                "vae": loaded.pipe.vae.decoder,
            }.items():
                module.register_forward_hook(lambda *_, name=name: counts.update([name]))
            return loaded

        monkeypatch.setattr(collect, "load_recordable", counted)
        return counts

    @pytest.mark.parametrize("keep", ["features", "moments"])
    def test_text_needs_no_denoiser(self, tmp_path: Path, finished: Any, calls: Counter[str], keep: str) -> None:
        switches = {"q_features": False, "out_features": False}
        config = small_config(tmp_path / "run.zarr", collect__collect_features=switches, collect__keep=keep)
        store = execute(config, "collect", "covariance")
        assert calls["text"] > 0
        assert calls["unet"] == calls["down"] == calls["vae"] == 0
        _, whole = finished
        text = next(site for site in whole.sites if site.feature == "k")
        (site,) = store.sites
        assert (site, site.timestep_free) == (text, True)
        np.testing.assert_allclose(store.moments.read_one(site, 0)[0], whole.moments.read_one(text, 0)[0], rtol=1e-6, atol=1e-6)

    def test_the_last_forward_ends_at_the_last_wanted_layer(self, tmp_path: Path, calls: Counter[str]) -> None:
        execute(small_config(tmp_path / "run.zarr", collect__cross_attention_layers=["down_blocks.1*"]), "collect")
        # Three units of four steps each; the last step of each does not reach the end.
        assert calls["down"] == 12
        assert calls["unet"] == calls["up"] == 9
        assert calls["vae"] == 0

    def test_one_forward_is_enough_for_what_is_free_of_the_timestep(
        self, tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in PixArt, whose text is transformed inside the denoiser: nothing is given, yet no timestep plays a part."""
        find = find_sites.find_sites
        monkeypatch.setattr(
            find_sites, "find_sites", lambda *a, **how: dataclasses.replace(find(*a, **how), arguments=frozenset())
        )
        switches = {"q_features": False, "out_features": False}
        execute(small_config(tmp_path / "run.zarr", collect__collect_features=switches), "collect")
        assert calls["down"] == 3
        assert calls["unet"] == 0
