"""The command `nullbooth teach`."""

from typing import Annotated

import typer

from nullbooth_cli.commands.hints import OUTPUT
from nullbooth_cli.commands.options import AsJson, Device, Quiet, Verbose
from nullbooth_cli.commands.train import PushToHub

Pictures = Annotated[str | None, typer.Argument(metavar="PICTURES", help="Folder of pictures of the subject, of any size.")]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="DIR", help="Folder for the settings, the store and the taught model.")
]
Word = Annotated[
    str | None, typer.Option("--word", metavar="WORD", help="Name of the subject in prompts, a rare word (default: sks).")
]
Noun = Annotated[
    str | None, typer.Option("--class", metavar="NOUN", help="What the subject is, such as dog (embedded model: circle).")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Pipeline folder, hub id, or sd15, sd21, sdxl, sd3, flux, pixart (default: the embedded model).",
    ),
]
After = Annotated[
    str | None,
    typer.Option(
        "--after", metavar="DIR", help="Output that was taught before: training starts from its model, and its subject stays."
    ),
]
Preserve = Annotated[
    list[str] | None, typer.Option("--preserve", metavar="FILE", help="More prompts that must not change. Repeatable.")
]
Caption = Annotated[
    str | None,
    typer.Option(
        "--caption", metavar="TEXT", help="One caption for all pictures (default: their own, else 'a photo of WORD NOUN')."
    ),
]
NoCrop = Annotated[bool, typer.Option("--no-crop", help="Pad pictures to the model's shape instead of cropping them.")]
Lora = Annotated[bool, typer.Option("--lora", help="Train a LoRA instead of the weights themselves.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Training steps.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the recipe, or of the config. Repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Report steps, time, disk and memory; write nothing.")]


def teach(
    pictures: Pictures = None,
    output: Output = OUTPUT,
    word: Word = None,
    noun: Noun = None,
    model: Model = None,
    after: After = None,
    preserve: Preserve = None,
    caption: Caption = None,
    no_crop: NoCrop = False,
    lora: Lora = False,
    steps: Steps = None,
    settings: Settings = None,
    push_to_hub: PushToHub = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Teach a model a subject from pictures, and measure the result.

    Preserves what the model knows, trains on the pictures, measures what was learned and forgotten, and draws the base and the
    taught model side by side. Config, recipe and store are ordinary files in the output, which every other command takes. The
    same command resumes.

    With --after, training starts from the model of another output, whose store is copied and remembers what was taught there.

    Example: nullbooth teach photos/ --word sks --class dog --model sd15 -o taught
    """
    from nullbooth_cli.commands.teach_subject import TeachOptions, teach_subject

    given = {
        "pictures": pictures,
        "word": word,
        "noun": noun,
        "model": model,
        "after": after,
        "preserve": preserve or None,
        "caption": caption,
        "resize": "letterbox" if no_crop else None,
        "method": "lora" if lora else None,
        "steps": steps,
        "settings": settings or None,
    }
    options = TeachOptions(
        given={key: value for key, value in given.items() if value is not None},
        output=output,
        push_to_hub=push_to_hub,
        device=device,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
    )
    teach_subject(options)
