"""What a unit records: the inputs of the projections on the model's own path, the same of a wrapped model, or an error."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import pytest
import torch

from nullbooth_cli.collect import find_sites, open_model
from nullbooth_cli.collect import recorder as recorder_module
from nullbooth_cli.collect import units as units_module
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model import load as load_module
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.stored_schedule import write_steps
from nullbooth_cli.nullspace.usable import usable_projectors
from nullbooth_cli.pipeline import collect
from tests.support.builders import PROMPTS, execute, features_at, small_config, vectors_at
from tests.support.by_hand import by_hand
from tests.support.loading import load, refused
from tests.support.model_files import copy_folder


class Kept:
    dtype = None

    def __init__(self) -> None:
        self.tensors: dict[tuple[str, int], torch.Tensor] = {}

    def receive(self, site: Any, step: int, _: Any, values: torch.Tensor) -> None:
        self.tensors[site.name, step] = values.clone()

    def due(self) -> bool:
        return False

    def checkpoint(self, units: Any) -> None:
        pass


def recorded(pipe: Any) -> tuple[dict[tuple[str, int], torch.Tensor], tuple[str, ...]]:
    """What collect records of two prompts, by site and step; and the names of the weights that it belongs to."""
    config = small_config(Path("none"))
    _, steps = open_model.compute_steps(config, 2)
    path = open_model.follow_schedule(config, steps, pipe)
    model = open_model.find_recordable(config, pipe, path, (Prompt(PROMPTS[0]),))
    kept = Kept()
    members = [(row, Prompt(PROMPTS[row])) for row in range(2)]
    recorder = recorder_module.Recorder(model, members, sinks=[kept])
    units_module.run_unit(model, recorder)
    recorder.check()
    return kept.tensors, tuple(weight for site in model.sites for weight in site.weights)


@pytest.fixture(scope="module")
def plain() -> tuple[dict[tuple[str, int], torch.Tensor], tuple[str, ...]]:
    return recorded(load("toy"))


def adapted(unet: Any, *, random: bool) -> Any:
    """LoRA around every projection, as diffusers' training scripts put it; at the start it changes nothing."""
    unet.add_adapter(
        peft.LoraConfig(
            r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian" if not random else False
        )
    )
    return unet


class TestWrapped:
    """Models that something was done to after loading: what is recorded stays the same, or it is refused."""

    def same(self, pipe: Any, plain: Any, atol: float = 0.0) -> None:
        tensors, weights = recorded(pipe)
        assert weights == plain[1]
        assert tensors.keys() == plain[0].keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, plain[0][key], rtol=0, atol=atol)

    def test_offloaded_whole(self, plain: Any, pipe: Any) -> None:
        offloaded = load("toy")
        offloaded.enable_model_cpu_offload(device="cpu")
        self.same(offloaded, plain)
        assert load_module.weights_digest(offloaded) == load_module.weights_digest(pipe)

    def test_an_early_end_leaves_nothing_on_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The denoiser is offloaded by the part after it, which a path that is ended early never reaches."""
        offloaded = load("toy")
        offloaded.enable_model_cpu_offload(device="cpu")
        freed = []
        monkeypatch.setattr(type(offloaded), "maybe_free_model_hooks", lambda _: freed.append(1))
        recorded(offloaded)
        assert len(freed) == 6  # two texts for their lengths, three prompts to find sites and branches, and the unit

    def test_offloaded_layer_by_layer(self, plain: Any) -> None:
        offloaded = load("toy")
        accelerate.cpu_offload(offloaded.unet, execution_device=torch.device("cpu"))
        self.same(offloaded, plain)

    def test_sliced(self, plain: Any) -> None:
        # Sums of another order.
        self.same(load("toy", attention_slicing=True), plain, atol=1e-4)

    def test_adapters_give_the_names_of_the_plain_weights(self, plain: Any, finished: Any) -> None:
        pipe = load("toy")
        adapted(pipe.unet, random=False)
        self.same(pipe, plain)
        projectors = usable_projectors(finished[1], pipe.unet.state_dict())
        assert set(projectors) == set(plain[1])
        unloaded = load("toy")
        adapted(unloaded.unet, random=False).delete_adapters("default")
        self.same(unloaded, plain)

    def test_adapters_that_do_something_are_another_model(self, plain: Any) -> None:
        pipe = load("toy")
        digest = load_module.weights_digest(pipe)
        adapted(pipe.unet, random=True)
        tensors, weights = recorded(pipe)
        assert weights == plain[1]
        assert any(not torch.equal(tensor, plain[0][key]) for key, tensor in tensors.items())
        assert load_module.weights_digest(pipe) != digest

    def test_a_model_that_is_wrapped_whole(self, plain: Any, finished: Any) -> None:
        pipe = load("toy")
        pipe.unet = peft.get_peft_model(pipe.unet, peft.LoraConfig(r=2, target_modules=["to_k"]))
        with pytest.raises(ModelError, match=r"pipe\.unet is wrapped in a PeftModel, which renames its weights") as caught:
            recorded(pipe)
        assert "pipe.unet = pipe.unet.get_base_model()" in caught.value.hint
        assert usable_projectors(finished[1], pipe.unet.state_dict())
        pipe.unet = pipe.unet.get_base_model()
        self.same(pipe, plain)

    def test_adapters_saved_into_the_weights_are_refused(self, tmp_path: Path) -> None:
        """diffusers would load such a file with the projections at random."""
        folder = copy_folder(tmp_path / "model")
        pipe = load(folder)
        adapted(pipe.unet, random=True).save_pretrained(folder / "unet")
        refused(folder, "is not whole: weights are missing", "attn", "adapters fused or unloaded")

    def test_fused_projections(self) -> None:
        pipe = load("toy")
        pipe.fuse_qkv_projections()
        with pytest.raises(ModelError, match="are fused") as caught:
            find_projections(denoiser_of(pipe), ("q",), "all")
        assert "pipe.unfuse_qkv_projections()" in caught.value.hint

    @pytest.mark.parametrize("how", ["function", "method", "blocks"])
    def test_compiled(self, how: str) -> None:
        pipe = load("toy")
        if how == "function":
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        elif how == "method":
            pipe.unet.compile(backend="eager")
        else:
            pipe.unet._repeated_blocks = ["BasicTransformerBlock"]
            pipe.unet.compile_repeated_blocks(backend="eager")
        with pytest.raises(ModelError, match=r"pipe\.unet is compiled: hooks that are set after the first") as caught:
            recorded(pipe)
        assert "as it was loaded" in caught.value.hint


def test_a_pipeline_that_skips_steps_is_refused() -> None:
    """One that ends after two of four steps, as caching pipelines leave forwards out."""
    config = small_config(Path("none"))
    _, steps = open_model.compute_steps(config, 2)
    pipe = load("toy")
    path = open_model.follow_schedule(config, steps, pipe)
    model = open_model.find_recordable(config, pipe, path, (Prompt(PROMPTS[0]),))
    walk = pipe.scheduler.set_timesteps

    def walk_two(*given: Any, **how: Any) -> None:
        walk(*given, **how)
        write_steps(pipe.scheduler, steps[:2])

    pipe.scheduler.set_timesteps = walk_two
    recorder = recorder_module.Recorder(model, [(0, Prompt(PROMPTS[0]))], sinks=[])
    with pytest.raises(ModelError, match="walks 2 steps, the stored schedule has 4"):
        units_module.run_unit(model, recorder)


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


@pytest.mark.parametrize("batch_size", [1, 8])
def test_features_do_not_depend_on_the_batch(finished: Any, tmp_path: Path, batch_size: int) -> None:
    _, store = finished
    other = execute(small_config(tmp_path / "other.zarr", collect__batch_size=batch_size), "collect")
    for site in store.sites:
        for t in range(1 if site.timestep_free else 4):
            mine, theirs = (vectors_at(each, site, t) for each in (store, other))
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
            one, two = (vectors_at(each, site, t) for each in (first, second))
            assert np.abs(one - two).max() <= 2e-4 * np.abs(one).max()


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


def test_no_hooks_are_left_behind(pipe: Any) -> None:
    assert not any(module._forward_pre_hooks for module in denoiser_of(pipe).modules())


class TestNothingMoreIsComputed:
    """Modules of the model are counted: what nobody asked for does not run."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        counts: Counter[str] = Counter()
        load = open_model.load_recordable

        def counted(*arguments: Any, **given: Any) -> Any:
            loaded = load(*arguments, **given)
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
