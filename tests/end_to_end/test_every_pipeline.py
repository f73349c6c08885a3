"""Every pipeline class of the zoo: what is recorded is what plain hooks see, and what is constrained is what was recorded.

The hooks run one prompt after the other, so that nothing is batched and no text is padded to the length of another. They count
every row and every token of every forward, but those which the entry knows to be padding.
"""

import copy
import functools
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file

import nullbooth_cli as nb
from nullbooth_cli.datatypes import Site
from nullbooth_cli.errors import NullboothError
from nullbooth_cli.model import load as load_module
from nullbooth_cli.model.denoise import use_schedule
from nullbooth_cli.model.denoisers import denoisers_of
from nullbooth_cli.model.scheduler import build_scheduler
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import execute, small_config, vectors_at
from tests.support.loading import load, use_loaded
from tests.support.zoo import ENTRIES, Entry

# diffusers says these of its own pipelines and calls.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in (":FutureWarning", "In CPU autocast:UserWarning")]
WORKING = [name for name, entry in ENTRIES.items() if entry.refused is None]
REFUSED = [name for name, entry in ENTRIES.items() if entry.refused is not None]
NUM_STEPS = 2
Rows = dict[tuple[str, int], NDArray[np.float64]]  # by (site, step): `[N, D]`


@dataclass(frozen=True)
class Made:
    """A pipeline of the zoo, loaded from a folder, with the scheduler that it ships with, and the current folder of its runs."""

    entry: Entry
    folder: Path
    pipe: Any
    scheduler: Any

    def config(self, name: str, **changes: Any) -> Config:
        """The config of a store with this name."""
        size, settings = self.entry.size, self.entry.settings
        return small_config(
            self.folder / f"{name}.zarr",
            **{
                "model": str(self.folder / "model"),
                "original_knowledge_prompts": list(self.entry.prompts),
                "schedule__num_denoising_steps": NUM_STEPS,
                "schedule__sampler_strategy": "model",
                "collect__keep": "both",
                "collect__batch_size": 2,
                "collect__height": size,
                "collect__width": size,
                "project__relative_threshold": 1e-12,
                "project__empty": "freeze",
                **changes,
                **{key.replace(".", "__"): value for key, value in settings.items()},
            },
        )

    def call(self, config: Config, row: int) -> None:
        """Denoise the prompt of a row, alone; not as a list where the class is run with one at a time."""
        collect, text, generator = config.collect, self.entry.prompts[row], torch.Generator("cpu").manual_seed(row)
        in_list = collect.batch_size > 1
        arguments = {
            "prompt": [text] if in_list else text,
            "num_inference_steps": NUM_STEPS,
            "guidance_scale": collect.guidance_scale,
            "generator": [generator] if in_list else generator,
            "output_type": self.entry.output,
            "height": collect.height,
            "width": collect.width,
            **{name: opened(value) for name, value in collect.pipeline_inputs.items()},
        }
        taken = inspect.signature(type(self.pipe).__call__).parameters
        self.pipe(**{name: value for name, value in arguments.items() if name in taken and value is not None})


def opened(value: Any) -> Any:
    """A value of pipeline_inputs with its files read."""
    if isinstance(value, list):
        return [opened(each) for each in value]
    if isinstance(value, str) and value.endswith(".safetensors"):
        return next(iter(load_file(value).values()))
    return Image.open(value).convert("RGB") if isinstance(value, str) and value.endswith(".png") else value


@pytest.fixture(scope="module", params=WORKING)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    entry, folder = ENTRIES[request.param], tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    entry.build().save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(256, size=(entry.size or 16, entry.size or 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    mask = np.zeros_like(noise[..., 0])
    mask[: len(mask) // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        pipe = load(folder / "model")
        assert type(pipe).__name__ == request.param
        use_loaded(pipe, patched)
        yield Made(entry, folder, pipe, pipe.scheduler)


def seen_by_hooks(made: Made, config: Config, store: Store) -> Rows:
    """What the weights of every site receive, by hooks on the modules that their names say."""
    pipe, entry, seen = made.pipe, made.entry, dict[tuple[str, int], list[NDArray[np.float64]]]()
    use_schedule(pipe, build_scheduler(config.schedule.sampler_strategy, made.scheduler), store.schedule())
    step, num_rows, rows_before = 0, Counter[str](), Counter[str]()  # rows of the forward now, and before it in its step
    running = set[str]()  # control networks may run layers of the denoiser as well

    def begin(prefix: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            running.add(prefix)
            rows_before[prefix] += num_rows[prefix]
            num_rows[prefix] = len(inputs[0] if inputs else next(iter(named.values())))

        return hook

    def keep(site: Any, prefix: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor], named: dict[str, Any]) -> None:
            if not running:
                return
            x = (inputs[0] if inputs else next(iter(named.values()))).double().numpy()
            for row, tokens in enumerate(x.reshape(len(x), -1, x.shape[-1])):
                branch = rows_before[prefix] + row * num_rows[prefix] // len(x)
                attended = None
                if entry.attended is not None:
                    text = entry.prompts[now] if entry.own[branch] else ""
                    attended = entry.attended(pipe, text, site, len(tokens))
                seen.setdefault((site.name, step), []).append(tokens if attended is None else tokens[attended])

        return hook

    original, handles = pipe.scheduler.step, []

    @functools.wraps(original)  # pipelines look at its arguments
    def count(*arguments: Any, **named: Any) -> Any:
        nonlocal step
        step += 1
        num_rows.clear()
        rows_before.clear()
        return original(*arguments, **named)

    pipe.scheduler.step = count
    for prefix, denoiser in denoisers_of(pipe).items():
        handles.append(denoiser.register_forward_pre_hook(begin(prefix), with_kwargs=True))
        handles.append(denoiser.register_forward_hook(lambda *_: running.clear()))
        for site in store.sites:
            path = site.weights[-1].removesuffix(".weight")
            if path.startswith(prefix) and (prefix or path in dict(denoiser.named_modules())):
                module = denoiser.get_submodule(path.removeprefix(prefix))
                handles.append(module.register_forward_pre_hook(keep(site, prefix), with_kwargs=True))
    for now in range(len(entry.prompts)):
        step = 0
        made.call(config, now)
        num_rows.clear()
        rows_before.clear()
    for handle in handles:
        handle.remove()
    return {place: np.concatenate(found) for place, found in seen.items()}


def test_moments_are_those_of_plain_hooks(made: Made) -> None:
    config = made.config("moments")
    store = execute(config, "schedule", "collect", "covariance")
    assert store.sites
    if made.entry.layers is not None:
        names = {f"{prefix}{name}" for prefix, each in denoisers_of(made.pipe).items() for name, _ in each.named_modules()}
        recorded = {layer for site in store.sites for layer, _ in site.projections}
        assert recorded == {name for name in names if re.search(made.entry.layers, name)}
    seen = seen_by_hooks(made, config, store)
    for site in store.sites:
        if site.timestep_free:
            first, *others = (seen[site.name, step] for step in replace(site, timestep_free=False).recorded_steps(NUM_STEPS))
            assert all(np.array_equal(first, other) for other in others), site.name
        for t, step in enumerate(site.recorded_steps(NUM_STEPS)):
            x = seen[site.name, step]
            sum_xxt, sum_x, number = store.moments.read_one(site, t)
            assert number == len(x), site.name
            np.testing.assert_allclose(sum_xxt, x.T @ x, rtol=0, atol=1e-4 * np.abs(x.T @ x).max(), err_msg=site.name)
            np.testing.assert_allclose(sum_x, x.sum(0), rtol=0, atol=1e-4 * np.abs(x).sum(0).max(), err_msg=site.name)


@pytest.fixture(scope="module")
def narrow(made: Made) -> Store:
    """A store of one prompt and one token of each image: fewer vectors than dimensions, so that null spaces are exact."""
    changes = {"original_knowledge_prompts": ["a"], "collect__tokens_per_prompt": 1, "collect__branches": "cond"}
    return execute(made.config("narrow", **changes), "schedule", "collect", "covariance", "project")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_constrained_weights_do_not_move_what_was_recorded(made: Made, narrow: Store, kind: str) -> None:
    opened, site_of = nb.open_store(narrow.path), {weight: site for site in narrow.sites for weight in site.weights}
    for prefix, original in denoisers_of(made.pipe).items():
        names = set(dict(original.named_parameters()))
        paths = {w.removeprefix(prefix).removesuffix(".weight"): site_of[w] for w in site_of if w.removeprefix(prefix) in names}
        for is_constrained in (True, False):
            denoiser = copy.deepcopy(original).requires_grad_(kind == "full")
            if kind == "lora":
                inject_adapter_in_model(LoraConfig(r=2, target_modules="|".join(map(re.escape, paths))), denoiser)
            before = {path: output(denoiser, path, site, narrow) for path, site in paths.items()}
            if is_constrained:
                constraint = nb.constrain(denoiser, opened)
                assert any(null_dim for null_dim, _ in constraint.report().constrained.values())
            take_a_large_step(denoiser)
            for path, site in paths.items():
                moved = np.linalg.norm(output(denoiser, path, site, narrow) - before[path]) / np.linalg.norm(before[path])
                assert moved < 1e-4 if is_constrained else moved > 1e-2, path


def take_a_large_step(denoiser: torch.nn.Module) -> None:
    """Gradient descent along random gradients: the constraint is for any."""
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    torch.optim.SGD(parameters, lr=0.3).step()


def output(denoiser: torch.nn.Module, path: str, site: Site, store: Store) -> NDArray[np.float64]:
    """What a module makes of everything that was recorded for it, without padding."""
    found = np.concatenate([vectors_at(store, site, t).reshape(-1, site.dim) for t in range(site.num_recorded(NUM_STEPS))])
    with torch.no_grad():
        made: torch.Tensor = denoiser.get_submodule(path)(torch.from_numpy(found[~np.isnan(found[:, 0])]))
    return made.double().numpy()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_comes_before_anything_is_loaded_or_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, folder = ENTRIES[name], tmp_path / "model"
    if entry.build is None:
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": diffusers.__version__}))
    else:
        entry.build().save_pretrained(folder)
    monkeypatch.setattr(load_module, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    settings = {key.replace(".", "__"): value for key, value in entry.settings.items()}
    config = small_config(tmp_path / "run.zarr", model=str(folder), schedule__sampler_strategy="model", **settings)
    with pytest.raises(NullboothError) as caught:
        nb.run(config)
    assert re.search(entry.refused, caught.value.message), caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "run.zarr").exists()
