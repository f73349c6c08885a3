"""Writes what a run trained, without the base: the folder `lora`, and the folder `trained` of every checkpoint.

`model/trained_files.py` describes the files and reads them.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nullbooth_cli.model.adapter_files import PEFT_FILES
from nullbooth_cli.model.quiet import quiet_libraries
from nullbooth_cli.model.trained_files import BASE_FILE, DENOISER_FILE, Base
from nullbooth_cli.training.parametrization import saved_name
from nullbooth_cli.training.setup import TrainingRun


def write_trained(run: TrainingRun, folder: Path) -> None:
    """Write the folder from the weights that the run has now; it can train on.

    Constraint and word stay attached: the state dict has plain weights already. Cost: four bytes for each parameter that trains.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if run.recipe.method == "lora":
        _write_lora(run, folder)
    else:
        state = run.denoiser.state_dict()
        names = [saved_name(name) for name in run.trained]
        save_file({name: state[name].detach().float().cpu().contiguous() for name in names}, folder / DENOISER_FILE)
    if run.word is not None:
        run.word.save(folder)
    (folder / BASE_FILE).write_text(json.dumps(_base(run, folder), indent=2) + "\n")


def _write_lora(run: TrainingRun, folder: Path) -> None:
    """As the pipeline's own `load_lora_weights` reads it, or, where it has none, as PEFT's `from_pretrained`."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    # PEFT's names stay: diffusers' older ones are for attention alone, and a file with both kinds does not load.
    layers = get_peft_model_state_dict(run.denoiser)
    if run.process.family.loads_lora:
        part = "unet" if hasattr(run.pipe, "unet") else "transformer"
        with quiet_libraries():
            run.pipe.save_lora_weights(folder, **{f"{part}_lora_layers": layers})
        return
    config: Any = run.denoiser.peft_config
    config["default"].save_pretrained(str(folder))
    named = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in layers.items()}
    save_file(named, folder / PEFT_FILES[0], {"format": "pt"})


def _base(run: TrainingRun, folder: Path) -> dict[str, Any]:
    return {
        **asdict(Base.of(run.recipe)),
        "after": None if run.earlier is None else run.earlier.record(folder).document(),
        "step": run.steps_done,
        "token": run.word.name if run.word else None,
        "instance_prompt": run.subject.captions[0],
        "prompts": list(dict.fromkeys(run.subject.captions)),
    }
