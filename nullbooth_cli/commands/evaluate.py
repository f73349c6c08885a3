"""The command `nullbooth evaluate`."""

from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose


def evaluate(
    edited: Annotated[str, typer.Argument(metavar="EDITED", help="A pipeline folder, a hub id, or a LoRA (file or folder).")],
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="OTHER", help="Another edited model beside it. Repeatable.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="Preservation of these, not of the kept and held-out prompts.")
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option("--subject", metavar="TEXT", help="A prompt of what was to be learned. Repeatable.")
    ] = None,
    subject_prompts: Annotated[
        str | None, typer.Option("--subject-prompts", metavar="FILE", help="The same, from a file.")
    ] = None,
    instances: Annotated[
        str | None, typer.Option("--instances", metavar="DIR", help="Pictures that the subject was learned from.")
    ] = None,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", min=1, metavar="N", help="At most so many kept and so many held-out prompts.")
    ] = 48,
    subject_images: Annotated[
        int, typer.Option("--subject-images", min=1, max=1000, metavar="N", help="Pictures of each subject prompt.")
    ] = 16,
    features: Annotated[
        list[str] | None,
        typer.Option("--features", metavar="NAME=FOLDER", help="Weights of clip or dino; else those in the hub's cache."),
    ] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write one page with tables and pictures.")] = None,
    images: Annotated[str | None, typer.Option("--images", metavar="DIR", help="Write every picture into a folder.")] = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure what an edited model forgot, and what it learned, against its base.

    Both draw the same prompts from the same noise; a distance of 1 is that between two seeds of the base.

    Example: nullbooth evaluate trained -s runs/toy.zarr --subject "a sks circle on a red background" --html report.html
    """
    from nullbooth_cli.commands.evaluate_models import EvaluateOptions, evaluate_models

    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    evaluate_models(
        common,
        EvaluateOptions(
            (edited, *(against or ())),
            prompts,
            tuple(subject or ()),
            subject_prompts,
            instances,
            num_prompts,
            subject_images,
            tuple(features or ()),
            html,
            images,
            device,
        ),
    )
