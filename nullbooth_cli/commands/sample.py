"""The command `nullbooth sample`."""

from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Device, Quiet

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A pipeline folder, hub id or LoRA; the output of a training run or a checkpoint.")
]
Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="A text to draw. Several are rows of the sheet.")]
Output = Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="The sheet, a PNG.")]
BaseModel = Annotated[str | None, typer.Option("--base", metavar="MODEL", help="The base of a LoRA whose files do not name it.")]
WithBase = Annotated[bool, typer.Option("--with-base", help="Also draw with the base of the model, side by side.")]
Compare = Annotated[list[str] | None, typer.Option("--compare", metavar="MODEL", help="Also draw with this model. Repeatable.")]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The first seed.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=1000, metavar="N", help="Pictures of each prompt: N seeds.")]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, metavar="N", help="Denoising steps (default: the pipeline's own number).")
]
Guidance = Annotated[
    float | None, typer.Option("--guidance", min=0, metavar="X", help="Guidance scale (default: the pipeline's own).")
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="NAME", help='Scheduler, such as "DPM++ 2M" or DDIM (default: the pipeline\'s own).'),
]
Loading = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="How models are loaded, such as dtype=float16. Repeatable."),
]
ImagesFolder = Annotated[str | None, typer.Option("--images", metavar="DIR", help="Also write every picture into a folder.")]


def sample(
    model: Model,
    prompts: Prompts,
    output: Output = "sheet.png",
    base: BaseModel = None,
    with_base: WithBase = False,
    compare: Compare = None,
    seed: Seed = 0,
    seeds: Seeds = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    images: ImagesFolder = None,
    overrides: Loading = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw prompts with a model, on one sheet.

    Each model draws each prompt from the same noise, once for every seed. --set takes the keys that decide how models are loaded:
    dtype, local_files_only, allow_pickle, model_cpu_offload and attention_slicing.

    Example: nullbooth sample runs/toy-sks "a sks circle on a red background" --with-base -o sheet.png
    """
    from pathlib import Path

    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.evaluation.samples import SampleRequest, draw_samples
    from nullbooth_cli.report.files import require_writable
    from nullbooth_cli.report.sheet import SampleAnswer, Sheet, require_sheet, write_pictures, write_sheet
    from nullbooth_cli.settings.config import build_config

    terminal = Terminal(as_json=as_json, quiet=quiet)
    request = SampleRequest(
        models=(model, *(compare or ())),
        prompts=tuple(prompts),
        seeds=tuple(range(seed, seed + seeds)),
        base=base,
        with_base=with_base,
        num_inference_steps=steps,
        guidance_scale=guidance,
        strategy=scheduler,
        device=device,
        config=build_config({}, overrides or ()),
    )
    require_sheet(Path(output))
    if images is not None:
        require_writable(Path(images))
    samples = terminal.result_of(draw_samples(request))
    sheet = Sheet.of(samples)
    written = write_sheet(Path(output), sheet)
    answer = SampleAnswer.of(samples, written, [] if images is None else write_pictures(Path(images), sheet))
    terminal.answer(answer, lambda _: [answer.sheet, *answer.images])
