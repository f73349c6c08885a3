"""The command `nullbooth refit`."""

from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose

Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompts", metavar="TEXT", help="A prompt that uses FILE, its word included, or a file of them. Repeatable."),
]
Word = Annotated[
    str | None, typer.Option("--word", metavar="TEXT", help='Word and noun, such as "sks dog": 150 prompts are made around it.')
]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="PATH", help="The refitted file or folder, in the form of FILE."),
]
Weight = Annotated[
    str,
    typer.Option(
        "--m", metavar="M|auto", help="Weight of preservation: with more, less is forgotten and less is left of the subject."
    ),
]
Outside = Annotated[
    str,
    typer.Option("--outside", metavar="keep|drop", help="Keep what the store does not protect as it is, or drop it."),
]
NumDrawn = Annotated[
    int, typer.Option("--num-drawn", min=1, metavar="N", help="Prompts to draw for layers that see pictures: the first N.")
]
Preview = Annotated[bool, typer.Option("--dry-run", help="Print what each M would do; write nothing.")]


def refit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A LoRA, a training output, a checkpoint, or a pipeline folder.")],
    prompts: Prompts = None,
    word: Word = None,
    output: Output = None,
    m: Weight = "auto",
    outside: Outside = "keep",
    num_drawn: NumDrawn = 16,
    dry_run: Preview = False,
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a finished LoRA forget less, without training.

    Solves every module of FILE again: it keeps what it does to the inputs of its own prompts, as far as that leaves the
    outputs on the preserved prompts alone. Rank and format stay. Name prompts as they will be written, in every wording that
    matters. All figures are predictions from moments: the line that follows measures them.

    Example: nullbooth refit lora.safetensors --prompts "a photo of sks dog" --word "sks dog" -s run.zarr -o refitted.safetensors
    """
    from nullbooth_cli.api import OpenStore
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.prompt_options import prompts_to_use
    from nullbooth_cli.commands.refit_options import draw, weight_of
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.report.answers import RefitAnswer
    from nullbooth_cli.training.refit import RefitRequest, refit_events

    if (output is None) is not dry_run:
        raise ConfigError(
            "--dry-run writes nothing, and --output names a place" if dry_run else "no output is named",
            "leave one of them out" if dry_run else "name a place with -o, or add --dry-run to see what each M would do",
        )
    request = RefitRequest(
        file=file,
        prompts=prompts_to_use(prompts or [], word),
        output=output,
        m=weight_of(m),
        outside=outside,  # type: ignore[arg-type]  # it refuses others
        num_drawn=num_drawn,
        device=device,
    )
    session = start(Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose))
    report = session.terminal.result_of(refit_events(OpenStore(session.open()), session.config, request))
    session.terminal.answer(RefitAnswer.of(report), lambda _: draw(report))
    if output is not None:
        session.terminal.next(next_command.measure(output, session.options, request.prompts[0]))
