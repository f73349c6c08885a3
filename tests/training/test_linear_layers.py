"""Everything that a LoRA usually touches can be constrained: the whole model then repeats what was collected.

The store has two prompts of two steps, in a model that is wide enough for them: at every site fewer vectors than dimensions.
"""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli import toy
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.adapter_files import AdapterFile
from nullbooth_cli.model.adapters import attached
from nullbooth_cli.model.denoise import use_schedule
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.projections import find_projections
from nullbooth_cli.model.scheduler import build_scheduler
from nullbooth_cli.store import Store
from nullbooth_cli.training.setup import make_trainable
from tests.support import tiny
from tests.support.builders import PROMPTS, execute, small_config
from tests.support.tiny_dreambooth import recipe, run
from tests.support.tiny_training import adamw, trainable

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, SIDE, TEXT = 2, 8, 192
LIERLA = r".*\.attentions\.\d+\.(proj_in|proj_out|transformer_blocks\..*\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1 whose widths are larger than the number of collected tokens: 64 of the image, 154 of the text."""
    torch.manual_seed(0)
    parts = {**tiny.sd1().components, "text_encoder": tiny.clip(TEXT)}
    parts["unet"] = tiny.unet(cross_attention_dim=TEXT, block_out_channels=(96, 128))
    made = tmp_path_factory.mktemp("wide") / "sd1"
    diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def collected(folder: Path) -> Store:
    config = small_config(
        folder.parent / "run.zarr",
        model=str(folder),
        original_knowledge_prompts=PROMPTS[:2],
        schedule__num_denoising_steps=STEPS,
        schedule__sampler_strategy="DDIM",
        collect__linear_layers=["all"],
        collect__keep="moments",
        collect__guidance_scale=1.0,
        collect__height=SIDE,
        collect__width=SIDE,
        project__null_dim=24,
        project__relative_threshold=None,
    )
    return execute(config, "schedule", "collect", "covariance", "project")


def fresh(folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.requires_grad_(False)
    return pipe


def drawn(pipe: Any, store: Store) -> torch.Tensor:
    """The latents at the end of the collected paths."""
    use_schedule(pipe, build_scheduler("DDIM", pipe.scheduler), store.schedule())
    found: torch.Tensor = pipe(
        prompt=PROMPTS[:2],
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        generator=[torch.Generator("cpu").manual_seed(row) for row in range(2)],
        output_type="latent",
        height=SIDE,
        width=SIDE,
    ).images
    return found


def prepare(unet: Any, kind: str, weights: list[str]) -> None:
    """Let the weights train, or an adapter on every target of kohya's default network."""
    if kind == "full":
        for weight in weights:
            unet.get_parameter(weight).requires_grad_(True)
        return
    from peft import LoraConfig

    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=LIERLA))


def train(unet: Any) -> None:
    """Five steps towards noise, from inputs that respect no null space."""
    optimizer = adamw(trainable(unet))
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        latents, target = (torch.randn(2, 4, 4, 4, generator=generator) for _ in range(2))
        optimizer.zero_grad()
        found = unet(latents, torch.tensor([step * 100, 999]), torch.randn(2, 20, TEXT, generator=generator)).sample
        (100 * nn.functional.mse_loss(found, target)).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_collected_paths_stay_as_they_were(folder: Path, collected: Store, kind: str, tmp_path: Path) -> None:
    weights = [weight for site in collected.sites for weight in site.weights]
    assert len(weights) == 4 * 12, "4 of 16 transformers of SD1, whose 192 modules a default LoRA trains"
    pipe = fresh(folder)
    before, start = drawn(pipe, collected), {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    prepare(pipe.unet, kind, weights)
    constraint = nb.constrain(pipe.unet, nb.open_store(collected.path), unprotected="refuse")
    report = constraint.report()
    assert len(report.constrained) == len(weights)
    assert {null_dim for null_dim, _ in report.constrained.values()} == {24}
    assert not report.unprotected
    assert not report.altered
    train(pipe.unet)
    found, drifts = drawn(pipe, collected), constraint.drift()
    assert set(drifts) == set(weights)
    assert max(drifts.values()) < 1e-5
    assert torch.linalg.norm(found - before) < 1e-5 * torch.linalg.norm(before)

    files = tmp_path / "saved"
    if kind == "lora":
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(pipe.unet)
        assert {tensor.dim() for name, tensor in layers.items() if "proj_in" in name} == {4}
        pipe.save_lora_weights(files, unet_lora_layers=layers)
        other = fresh(folder)
        other.load_lora_weights(files)
    else:
        assert {weight: pipe.unet.state_dict()[weight].shape for weight in weights} == {w: start[w].shape for w in weights}
        assert all(not torch.equal(pipe.unet.state_dict()[weight], start[weight]) for weight in weights), "every one trains"
        pipe.unet.save_pretrained(files)
        other = fresh(folder)
        other.unet = diffusers.UNet2DConditionModel.from_pretrained(files)
    torch.testing.assert_close(drawn(other, collected), found, rtol=0, atol=1e-4 * float(found.abs().max()))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_they_would_not_without_the_constraint(folder: Path, collected: Store, kind: str) -> None:
    pipe = fresh(folder)
    before = drawn(pipe, collected)
    prepare(pipe.unet, kind, [weight for site in collected.sites for weight in site.weights])
    train(pipe.unet)
    assert torch.linalg.norm(drawn(pipe, collected) - before) > 1e-2 * torch.linalg.norm(before)


class TestConvolutions:
    """What is measured of a 1x1 convolution, against plain numpy."""

    weight = "mid_block.attentions.0.proj_in.weight"

    @pytest.fixture
    def constrained(self, folder: Path, collected: Store) -> tuple[Any, nb.Constraint]:
        unet = fresh(folder).unet
        prepare(unet, "lora", [])
        unet.get_parameter(self.weight.replace("weight", "base_layer.weight")).requires_grad_(True)
        return unet, nb.constrain(unet, nb.open_store(collected.path))

    def moment(self, store: Store) -> np.ndarray:
        site = next(site for site in store.sites if self.weight in site.weights)
        sums = [store.moments.read_one(site, t) for t in range(STEPS)]
        return np.asarray(sum(each[0] for each in sums) / sum(each[2] for each in sums))

    def test_the_drift_of_an_adapter_that_is_not_constrained_any_more(
        self, constrained: tuple[Any, nb.Constraint], collected: Store
    ) -> None:
        unet, constraint = constrained
        layer = unet.get_submodule(self.weight.removesuffix(".weight"))
        start = layer.base_layer.weight.detach().double().numpy()[:, :, 0, 0]
        nn.utils.parametrize.remove_parametrizations(layer.lora_A["default"], "weight")
        generator = torch.Generator().manual_seed(3)
        for part in (layer.lora_A["default"], layer.lora_B["default"]):
            part.weight.data = torch.randn(part.weight.shape, generator=generator)
        a, b = (part["default"].weight.detach().double().numpy()[:, :, 0, 0] for part in (layer.lora_A, layer.lora_B))
        change, c = b @ a, self.moment(collected)
        expected = np.sqrt(np.trace(change @ c @ change.T) / np.trace(start @ c @ start.T))
        assert constraint.drift()[self.weight] == pytest.approx(expected, rel=1e-5)

    def test_another_forward_is_found_by_running_the_layer(
        self, constrained: tuple[Any, nb.Constraint], collected: Store
    ) -> None:
        unet, constraint = constrained
        layer = unet.get_submodule(self.weight.removesuffix(".weight"))
        start = layer.base_layer.weight.detach().double().numpy()[:, :, 0, 0]
        extra = torch.randn(layer.base_layer.weight.shape, generator=torch.Generator().manual_seed(4))
        layer.register_forward_hook(lambda _, inputs, output: output + nn.functional.conv2d(inputs[0], extra))
        change, c = extra.double().numpy()[:, :, 0, 0], self.moment(collected)
        expected = np.sqrt(np.trace(change @ c @ change.T) / np.trace(start @ c @ start.T))
        assert constraint.drift()[self.weight] == pytest.approx(expected, rel=1e-4)
        assert constraint.report().altered == {self.weight: "a forward hook is set on the layer"}


@pytest.mark.parametrize("name", ["sd35", "flux", "pixart", "sdxl"])
def test_every_linear_layer_of_the_other_architectures(name: str, tmp_path: Path) -> None:
    """Whatever an optimizer writes, the change has no part in the directions that the moments' eigenvectors call preserved."""
    config = small_config(
        tmp_path / "run.zarr",
        model=str(tiny.saved(name, tmp_path)),
        original_knowledge_prompts=PROMPTS[:1],
        schedule__num_denoising_steps=2,
        schedule__sampler_strategy="model",
        collect__linear_layers=["all"],
        collect__keep="moments",
        collect__height=16,
        collect__width=16,
        project__null_dim=8,
        project__relative_threshold=None,
    )
    store = execute(config, "schedule", "collect", "covariance", "project")
    denoiser = denoiser_of(diffusers.DiffusionPipeline.from_pretrained(config.model, dtype=torch.float32)).requires_grad_(False)
    weights = {weight: site for site in store.sites for weight in site.weights}
    start = {weight: denoiser.get_parameter(weight).detach().double().numpy().copy() for weight in weights}
    for weight in weights:
        denoiser.get_parameter(weight).requires_grad_(True)
    constraint = nb.constrain(denoiser, nb.open_store(store.path), unprotected="refuse")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(denoiser):
            parameter += torch.randn(parameter.shape, generator=generator)
    found, drifts = denoiser.state_dict(), constraint.drift()
    assert set(drifts) == set(weights)
    for weight, site in weights.items():
        sums = [store.moments.read_one(site, t) for t in range(site.num_recorded(2))]
        c = np.asarray(sum(each[0] for each in sums) / sum(each[2] for each in sums))
        eigenvalues, vectors = np.linalg.eigh(c)
        preserved = vectors[:, 8:][:, eigenvalues[8:] > 1e-9 * eigenvalues[-1]]  # those of zero can be chosen in many ways
        change = found[weight].double().numpy() - start[weight]
        assert np.linalg.norm(change @ preserved) < 1e-5 * np.linalg.norm(change)
        assert np.linalg.matrix_rank(change, tol=1e-4 * np.linalg.norm(change)) == 8
        output = np.trace(start[weight] @ c @ start[weight].T)
        expected = np.sqrt(max(np.trace(change @ c @ change.T), 0.0) / output)
        assert drifts[weight] == pytest.approx(expected, rel=1e-3, abs=1e-6)


LAYERS = ["ff_in", "*.proj_out", "mid_block.*.attn1.to_q"]


@pytest.fixture(scope="module")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = small_config(
        tmp_path_factory.mktemp("toy") / "run.zarr",
        original_knowledge_prompts=PROMPTS[:2],
        schedule__num_denoising_steps=2,
        collect__linear_layers=LAYERS,
        collect__keep="moments",
        project__null_dim=8,
        project__relative_threshold=None,
    )
    return execute(config, "schedule", "collect", "covariance", "project")


class TestTrain:
    """`train` with a recipe that names them, on the embedded model."""

    @pytest.mark.parametrize("method", ["full", "lora"])
    def test_they_train_and_are_constrained(self, tmp_path: Path, toy_store: Store, method: str) -> None:
        settings = {"features": ["k"], "linear_layers": LAYERS, "method": method, "max_train_steps": 2}
        document = run(recipe(tmp_path, **settings, store=str(toy_store.path)))
        names = {name.removesuffix(".weight").partition("transformer_blocks.0.")[2] for name in document["drift"]}
        assert names == {"attn2.to_k", "ff.net.0.proj", "attn1.to_q", ""}, "proj_out is beside the blocks"
        assert len(document["drift"]) == 10 + 10 + 10 + 1
        assert document["largest_drift"] > 0
        assert document["trained"] == 31 * (1 if method == "full" else 2)
        if method == "lora":
            pipe = diffusers.DiffusionPipeline.from_pretrained(toy.FOLDER, dtype=torch.float32)
            file = AdapterFile.find(Path(document["output"]), allow_pickle=False)
            assert file is not None
            with attached(pipe, file):  # nothing of it is left out
                assert sum(hasattr(module, "lora_A") for module in pipe.unet.modules()) == 31

    def test_a_layer_that_the_store_lacks_is_refused_before_loading(self, tmp_path: Path, toy_store: Store) -> None:
        settings = {"features": [], "linear_layers": ["ff_out"], "store": str(toy_store.path)}
        with pytest.raises(ConfigError, match="10 weights would train without a constraint") as caught:
            run(recipe(tmp_path, **settings))
        assert "collect.linear_layers" in caught.value.hint
        assert "leave ff_out out of features and linear_layers" in caught.value.hint

    def test_only_the_module_that_a_pattern_names_gets_an_adapter(self) -> None:
        """PEFT takes a name for the end of other names as well."""
        denoiser = denoiser_of(tiny.flux())
        made = recipe(Path("unused"), method="lora")
        make_trainable(denoiser, find_projections(denoiser, (), "all", ["proj_ou[t]"]), made)
        adapted = {name.partition(".lora_")[0] for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
        assert adapted == {"proj_out"}
