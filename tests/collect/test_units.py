"""What a unit records of a model that was changed after loading: the same, or an error."""

from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch

from nullbooth_cli.collect import open_model
from nullbooth_cli.collect import recorder as recorder_module
from nullbooth_cli.collect import units as units_module
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ModelError
from nullbooth_cli.model import load as load_module
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.scheduler import write_steps
from nullbooth_cli.nullspace.usable import usable_projectors
from tests.support.builders import PROMPTS, small_config
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
    model = open_model.find_recordable(config, pipe, path, Prompt(PROMPTS[0]))
    kept = Kept()
    members = [(row, Prompt(PROMPTS[row])) for row in range(2)]
    recorder = recorder_module.Recorder(model, members, branches="both", sinks=[kept])
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
        assert len(freed) == 2

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
            find_projections(load_module.denoiser_of(pipe), ("q",), "all")
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
    model = open_model.find_recordable(config, pipe, path, Prompt(PROMPTS[0]))
    walk = pipe.scheduler.set_timesteps

    def walk_two(*given: Any, **how: Any) -> None:
        walk(*given, **how)
        write_steps(pipe.scheduler, steps[:2])

    pipe.scheduler.set_timesteps = walk_two
    recorder = recorder_module.Recorder(model, [(0, Prompt(PROMPTS[0]))], branches="both", sinks=[])
    with pytest.raises(ModelError, match="the pipeline ran 2 forwards for 4 steps"):
        units_module.run_unit(model, recorder)
