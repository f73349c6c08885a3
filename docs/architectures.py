"""What docs/generate.py writes about the models that configs/ names: all of it computed from their config files alone.

tests/architectures/<name>/ holds those of configs/<name>.yaml: shapes, sharing, bytes and work need no weights.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pipelines

ROOT = Path(__file__).parent.parent
NAMES = ("sd15", "sd14", "sd21", "sdxl", "lcm", "pixart", "sd3", "flux")
NUM_PROMPTS = 1000
OPERATIONS_PER_SECOND = 100e12


@cache
def looked(name: str) -> tuple[Any, Any, Any, Any]:
    """(config, steps, shapes, what was found) of configs/<name>.yaml, with the model's config files in the place of the hub."""
    from nullbooth_cli.collect.open_model import compute_steps, open_preview
    from nullbooth_cli.settings.config import load_config

    config = load_config(ROOT / f"configs/{name}.yaml", [f"model={ROOT / 'tests/architectures' / name}"])
    _, steps = compute_steps(config, 1)
    shapes = open_preview(config, "cpu", print)
    return config, steps, shapes, shapes.find(shapes.every())


def num_parameters(name: str) -> int:
    """Of the denoiser."""
    from nullbooth_cli.model.denoisers import denoiser_of

    return sum(parameter.numel() for parameter in denoiser_of(looked(name)[2].pipe).parameters())


def plans(name: str) -> dict[str, Any]:
    """The plan of every stage for `NUM_PROMPTS` prompts, by its name."""
    from nullbooth_cli.datatypes import Prompt
    from nullbooth_cli.pipeline.plan import Work, plan_for
    from nullbooth_cli.pipeline.state import stage_states
    from nullbooth_cli.settings.config import STAGES

    config, steps, shapes, found = looked(name)
    prompts = tuple(Prompt(f"prompt {number}") for number in range(NUM_PROMPTS))
    states = stage_states(config, prompts, None)
    sites = found.of(shapes.chosen)
    made = plan_for(
        STAGES,
        Work(
            config=config,
            prompts=prompts,
            store=None,
            states=states,
            steps=steps,
            sites=sites,
            device="cpu",
            operations=shapes.count_operations(found, len(steps)),
        ),
    )
    return {plan.stage: plan for plan in made}


def config_file(name: str) -> str:
    """configs/<name>.yaml as it is, below a first paragraph that says what it takes."""
    from nullbooth_cli.formatting import duration, operations, size

    _, steps, shapes, _ = looked(name)
    made = plans(name)
    _, body = (ROOT / f"configs/{name}.yaml").read_text().split("\n\n", 1)
    needs = ", ".join(f"{stage} {size(made[stage].bytes_needed)}" for stage in ("collect", "covariance", "project"))
    collect = made["collect"]
    lines = [
        f"{type(shapes.pipe).__name__}, {num_parameters(name) / 1e6:,.0f} M parameters in the denoiser; "
        f"{len(steps)} steps of {NUM_PROMPTS:,} prompts.",
        f"Disk: {needs}. Memory beside the model: {size(collect.device_bytes_needed)} of sums, on device or host.",
        f"Time: {operations(collect.operations)} of the denoiser, {duration(collect.operations / OPERATIONS_PER_SECOND)} "
        "at 100 TFLOP/s; counted, not measured.",
        "Computed from the model's config files alone, as `nullbooth run --dry-run` does; `make docs` writes these lines.",
    ]
    return "".join(f"# {line}\n" for line in lines) + f"\n{body}"


def models_page() -> str:
    return f"""\
# Models

{pipelines.summary()}
[The table of classes](#pipeline-classes) has each of them; [another model](../how-to/another-model.md) explains how to look at
yours, and [the glossary](glossary.md) defines the words.

## Architectures

The sites that nullbooth records of each architecture, computed from the config files of the models in `configs/` by the code of
`nullbooth inspect --layers`. Bytes are those of one timestep, every layer and every feature.

| config | pipeline | parameters of the denoiser | layers | weights | sites | features of a prompt, float16 | moments |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(_summary(name) for name in NAMES)}

## Sites

A *site* is one recorded tensor, for all weights that it enters. Its tokens are those of one prompt at the model's own size, both
branches of guidance together; LCM and Flux have one branch. Timestep-free tensors are recorded *once*, the others at *every
step*.

| config | feature | sites | tokens | dimensions | weights that share it | recorded |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(row for name in NAMES for row in _recordings(name))}

- **U-Nets** (Stable Diffusion 1, 2, XL, LCM): every `attn2.to_k` and `to_v` receives the text encoder's output, one tensor for
  all layers and all timesteps. It is an argument of the denoiser: collecting k and v alone runs no forward at all.
- **PixArt** projects the caption first, inside the transformer: one tensor for all layers and timesteps, of which the tokens that
  pad the prompt are no part.
- **SD3 and Flux** attend to image and text at once. In every block q, k and v of a stream share their input, and nothing is
  shared between blocks or timesteps: every block changes the text, under the timestep's modulation. The `add_` projections are
  those of the text stream; the single-stream blocks of Flux have one stream of both. The last block of SD3 has no `add_out`.
- The **self-attention** of U-Nets and PixArt (`attn1`), and the `attn2` of SD3.5's dual-attention blocks, is recorded when
  `collect.cross_attention_layers` asks for it by name, as in `["*.attn1"]`.

## Pipeline classes

{pipelines.explained()}

{pipelines.table()}
"""


@cache
def _document(name: str) -> dict[str, Any]:
    from nullbooth_cli.collect.preview import layers_report
    from nullbooth_cli.report.json_document import to_json
    from nullbooth_cli.report.layers import layers_document

    _, _, shapes, found = looked(name)
    document: dict[str, Any] = to_json(layers_document(layers_report(shapes, found, 1), ()))
    return document


def _summary(name: str) -> str:
    from nullbooth_cli.formatting import size

    document = _document(name)
    total = document["totals"]["all"]
    return (
        f"| [{name}](../../configs/{name}.yaml) | {document['pipeline']} | {num_parameters(name) / 1e6:,.1f} M | "
        f"{total['layers']} | {total['weights']} | {total['sites']} | "
        f"{size(total['feature_bytes_per_prompt'])} | {size(total['moment_bytes'])} |"
    )


def _recordings(name: str) -> list[str]:
    """One row for the recordings of one shape."""
    from nullbooth_cli.datatypes import split_weight

    kinds: dict[tuple[Any, ...], dict[str, int]] = {}
    for site in _document(name)["sites"]:
        features = " ".join(dict.fromkeys(split_weight(weight)[1] for weight in site["weights"]))
        once = "once, without padding" if site["masked"] else "once" if site["timestep_free"] else "every step"
        alike = kinds.setdefault((site["num_tokens"], site["dim"], len(site["weights"]), once), {})
        alike[features] = alike.get(features, 0) + 1
    return [
        f"| {name} | {'; '.join(alike)} | {sum(alike.values())} | {tokens:,} | {dim:,} | {weights} | {once} |"
        for (tokens, dim, weights, once), alike in kinds.items()
    ]
