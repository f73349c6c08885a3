"""How a pipeline class is called: which arguments it takes and under which names, and what it needs beside a prompt.

`call_of()` reads this from the signature of the class, and what no signature tells from its name (`pipeline_classes`). Arguments
that a class does not take are not passed, and a setting for one is an error. `class_named()` finds the class of a name, if
diffusers can load it.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.formatting import listed
from nullbooth_cli.model.pipeline_classes import (
    OTHER,
    UNUSED,
    ends_in_latents,
    needed_inputs,
    require_usable,
    takes_one_prompt,
    takes_pictures_by_prompt,
)
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.settings.pipeline_inputs import KEY

# Names of what nullbooth hands over, the likely first; those of a decoder belong to pipelines of several stages without a name of
# their own for it.
_STEPS = ("num_inference_steps", "decoder_num_inference_steps")
_GUIDANCE = ("guidance_scale", "decoder_guidance_scale")
# What a config sets elsewhere, or nullbooth itself: the key, or what sets it.
_OWN: Mapping[str, str] = {
    "prompt": "original_knowledge_prompts",
    "prompt_embeds": "original_knowledge_prompts",
    **dict.fromkeys(_STEPS, "schedule.num_denoising_steps"),
    **dict.fromkeys(("timesteps", "sigmas"), "schedule.sampler_strategy"),
    **dict.fromkeys(_GUIDANCE, "collect.guidance_scale"),
    "height": "collect.height",
    "width": "collect.width",
    "generator": "collect.seed",
    "latents": "collect.seed",
    **dict.fromkeys(("num_images_per_prompt", "num_videos_per_prompt"), "the number of prompts"),
    **dict.fromkeys(("output_type", "return_dict"), "nullbooth itself"),
}
# Where they are below 1, the path starts in the middle of the schedule.
_SHARES = ("denoise_strength", "strength")
_PICTURES = ("image", "mask_image", "original_image")


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of a pipeline class: `takes` has all names, with their defaults.

    `steps` and `guidance` are the names of the number of steps and of the guidance scale; `guidance` is None for a class without.
    `needs` are the inputs that it cannot be called without, beside the prompt. `latent_output` is the output_type of a call that
    needs no pictures: "latent", which ends before the autoencoder, or "pt" for a class that cannot. `takes_one_prompt`: a call
    takes one prompt, not a list.
    """

    class_name: str
    takes: Mapping[str, Any]
    steps: str
    guidance: str | None
    needs: tuple[str, ...]
    latent_output: str
    takes_one_prompt: bool

    @property
    def own_guidance(self) -> float | None:
        """The guidance scale that the class has by default; None for a class without."""
        return None if self.guidance is None else self.takes[self.guidance]

    def require_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Raise ConfigError for names of inputs that the class does not have, and for a missing one that it needs."""
        for name in inputs:
            if name in _OWN or name.startswith("callback"):
                place = _OWN.get(name, "nullbooth itself")
                raise ConfigError(f"{KEY} has {name}, which is set by {place}", f"take {name} out of {KEY}")
            if name not in self.takes:
                free = [each for each in self.takes if each not in _OWN and not each.startswith("callback")]
                near = difflib.get_close_matches(name, free, n=1)
                hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(free)}"
                raise ConfigError(f"{self.class_name} has no input {name} ({KEY})", hint)
        if missing := [name for name in self.needs if inputs.get(name) is None]:
            example = ", ".join(f"{name}: {_example(name)}" for name in missing)
            raise ConfigError(
                f"{self.class_name} needs {listed(missing)} beside the prompt, and {KEY} does not give it",
                f"set {KEY} to {{{example}}}, or choose a text-to-image pipeline",
            )
        self._require_whole_path(inputs)

    def require_settings(self, *, guidance_is_set: bool, size_is_set: bool, batch_size: int = 1) -> None:
        """Raise ConfigError for a guidance scale, a size, or a number of prompts a call that the class does not take."""
        if self.takes_one_prompt and batch_size > 1:
            raise self.too_many(batch_size)
        if guidance_is_set and self.guidance is None:
            others = [name for name in self.takes if "guidance" in name]
            hint = f"leave it out; {KEY} can set {listed(others)}" if others else "leave it out"
            raise ConfigError(f"collect.guidance_scale is set, and {self.class_name} takes no guidance_scale", hint)
        if size_is_set and not {"height", "width"} <= self.takes.keys():
            raise ConfigError(
                f"collect.height and collect.width are set, and {self.class_name} takes no size",
                "set both to null: if it is given an image, its pictures have the size of that image",
            )

    def too_many(self, count: int, because: str = "") -> ConfigError:
        """The error for several prompts in a call."""
        return ConfigError(f"{self.class_name} takes one prompt a call, not {count}{because}", "set collect.batch_size to 1")

    def arguments(
        self,
        prompts: Sequence[str],
        *,
        num_inference_steps: int,
        guidance_scale: float | None,
        size: Mapping[str, int],
        generators: Sequence[torch.Generator],
        output_type: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The arguments of a call for these prompts. `output_type` "latent" ends before the autoencoder where the class can.

        Raises ConfigError as `require_inputs` does, and for several prompts where the class takes one.
        """
        self.require_inputs(inputs)
        if self.takes_one_prompt and len(prompts) > 1:
            raise self.too_many(len(prompts))
        made: dict[str, Any] = {
            **{name: self._for_prompts(name, value, len(prompts)) for name, value in inputs.items()},
            "prompt": prompts[0] if self.takes_one_prompt else list(prompts),
            self.steps: num_inference_steps,
            "generator": generators[0] if self.takes_one_prompt else list(generators),
            "output_type": self.latent_output if output_type == "latent" else output_type,
            **size,
        }
        if self.guidance is not None:
            made[self.guidance] = guidance_scale
        return {name: value for name, value in made.items() if name in self.takes}

    def _for_prompts(self, name: str, value: Any, count: int) -> Any:
        """A value for each prompt: texts such as a negative prompt, tensors of one row, and pictures where the class can.

        A class that gets one picture for all may encode it once, with the noise of the first prompt.
        """
        if isinstance(value, torch.Tensor) and value.dim() and len(value) == 1:
            return value.expand(count, *value.shape[1:])
        if name in _PICTURES and isinstance(value, Image.Image) and takes_pictures_by_prompt(self.class_name):
            return [value] * count
        return [value] * count if isinstance(value, str) and "prompt" in name and not self.takes_one_prompt else value

    def _require_whole_path(self, inputs: Mapping[str, Any]) -> None:
        share = next((name for name in _SHARES if name in self.takes), None)
        if share is None or not isinstance(value := inputs.get(share, self.takes[share]), int | float) or value >= 1:
            return
        raise ConfigError(
            f"{self.class_name} walks only the last part of the stored schedule with {share} {value:g}",
            f"set {KEY} to {{..., {share}: 1.0}}: then every stored step is walked",
        )


def call_of(pipeline_class: type) -> Call:
    """How a pipeline class is called. Raises ModelError for a class that cannot be used, with the reason."""
    name = pipeline_class.__name__
    require_usable(name)
    parameters = inspect.signature(pipeline_class.__call__).parameters
    takes = {
        each.name: None if each.default is each.empty else each.default
        for each in parameters.values()
        if each.name != "self" and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    }
    without_default = [each for each in takes if parameters[each].default is inspect.Parameter.empty and each not in _OWN]
    if "prompt" not in takes:
        of = f": it draws from {listed(without_default)}" if without_default else ""
        raise ModelError(f"{name} takes no prompt{of}", OTHER)
    steps = next((each for each in _STEPS if each in takes), None)
    if steps is None:
        raise ModelError(f"{name} takes no number of steps (num_inference_steps): it walks a path of its own", OTHER)
    by_name = [next((each for each in names if each in takes), None) for names in needed_inputs(name)]
    return Call(
        class_name=name,
        takes=takes,
        steps=steps,
        guidance=next((each for each in _GUIDANCE if each in takes), None),
        needs=tuple(dict.fromkeys([*without_default, *filter(None, by_name)])),
        latent_output="latent" if ends_in_latents(name) else "pt",
        takes_one_prompt=takes_one_prompt(name) or not _takes_a_list(parameters["prompt"]),
    )


def _takes_a_list(prompt: inspect.Parameter) -> bool:
    annotation = str(prompt.annotation).lower()
    return prompt.annotation is prompt.empty or "list" in annotation or "sequence" in annotation or "any" in annotation


def _example(name: str) -> str:
    return "FILE" if any(part in name for part in ("image", "mask", "hint", "frames", "video", "embed")) else "VALUE"


def class_named(name: str) -> Any:
    """The pipeline class of a name. Raises ConfigError for one that this diffusers does not know or cannot import.

    Raises ModelError, as `call_of` does, for one that cannot be used.
    """
    import diffusers

    require_usable(name)
    try:
        with quiet_libraries():  # the import of a class logs what is not installed
            found = getattr(diffusers, name)
            if hasattr(found, "_backends"):  # a dummy, which raises for all that is asked of it
                found.from_pretrained("")
    except AttributeError as error:
        raise ConfigError(f"this diffusers does not know the pipeline {name}", "upgrade it: pip install -U diffusers") from error
    except (ImportError, RuntimeError) as error:
        missing = re.search(r"requires the (.+?) library", str(error))
        command = re.search(r"`(pip install [^`]+)`", str(error))
        raise ConfigError(
            f"this diffusers cannot import {name}: {f'it needs {missing[1]}' if missing else str(error).strip()}",
            command[1] if command else "install what the message names",
        ) from error
    if not issubclass(found, diffusers.DiffusionPipeline):
        raise ModelError(f"{name} is not a pipeline of diffusers", OTHER)
    call_of(found)
    _require_loadable(found)
    _require_packages(found)
    return found


def _require_loadable(pipeline_class: Any) -> None:
    """Raise ModelError for a class with a part that diffusers does not find: it has moved the parts of old pipelines."""
    import diffusers
    from diffusers import pipelines

    for name, each in inspect.signature(pipeline_class.__init__).parameters.items():
        kind, place = each.annotation, getattr(each.annotation, "__module__", "").split(".")
        is_own = isinstance(kind, type) and place[:2] == ["diffusers", "pipelines"] and name not in UNUSED
        if is_own and not hasattr(diffusers, kind.__name__) and not hasattr(pipelines, place[-2]):
            raise ModelError(
                f"diffusers {diffusers.__version__} cannot load a {pipeline_class.__name__}: it no longer finds the class of "
                f"{name}, {kind.__name__}",
                OTHER,
            )


def _require_packages(pipeline_class: type) -> None:
    """Raise ConfigError for a class that needs a package that is missing: diffusers says so once all is loaded, or later."""
    module: Any = sys.modules[pipeline_class.__module__]
    clean = getattr(module, "basic_clean", None)
    names = () if clean is None else clean.__code__.co_names
    if "ftfy" in names and "is_ftfy_available" not in names and not hasattr(module, "ftfy"):
        raise ConfigError(
            f"{pipeline_class.__name__} reads its prompts with the package ftfy, which is not installed", "pip install ftfy"
        )
    checker = getattr(module, "CosmosSafetyChecker", None)
    if checker is not None and checker.__module__ == module.__name__:  # in the place of the one that is missing
        raise ConfigError(
            f"{pipeline_class.__name__} checks its prompts with the package cosmos_guardrail, which is not installed",
            "pip install cosmos_guardrail",
        )
