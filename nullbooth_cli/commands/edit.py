"""The command `nullbooth edit`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose

if TYPE_CHECKING:
    from nullbooth_cli.api import OpenStore
    from nullbooth_cli.editing.report import EditPlan

Mark = Annotated[bool, typer.Option("--map", help="SOURCE and TARGET follow. It may be left out. Repeatable.")]
Erase = Annotated[
    list[str] | None, typer.Option("--erase", metavar="CONCEPT", help="Let a word or a prompt mean nothing. Repeatable.")
]
Neutral = Annotated[
    str | None, typer.Option("--to", metavar="TEXT", help="What erased concepts look like instead; else the empty prompt.")
]
Debias = Annotated[
    list[str] | None,
    typer.Option("--debias", metavar="PROFESSION", help="Give it the mean of it with each attribute of --over. Repeatable."),
]
Over = Annotated[str | None, typer.Option("--over", metavar="A,B", help="The attributes of --debias, such as male,female.")]
File = Annotated[
    str | None,
    typer.Option(
        "--pairs", metavar="FILE", help="More pairs: YAML of lines `source: target`, or of lists map, erase and debias."
    ),
]
Output = Annotated[str | None, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the edited pipeline.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="alphaedit, speed and ace change weights within the null space; uce weighs the edit against the preserved prompts.",
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        "--tokens",
        metavar="subject|all",
        help="Pair tokens from the subject's last on, or by position (default: subject if brackets mark a [subject], else all).",
    ),
]
Ridge = Annotated[
    float, typer.Option("--ridge", metavar="A", help="A larger one changes the weights less, and more of the edit is missing.")
]
Preserve = Annotated[
    float | None,
    typer.Option("--preserve", metavar="B", help="uce: how many edited tokens all preserved ones weigh as much as; else 100."),
]
Copies = Annotated[
    int, typer.Option("--copies", metavar="N", help="Noisy copies of each edited token, so that what is near it is edited too.")
]
Around = Annotated[
    str,
    typer.Option(
        "--around", metavar="KIND", help="Prompts to edit around a word of a verb: object, style, class (150 prompts) or none."
    ),
]
After = Annotated[
    str | None,
    typer.Option(
        "--after",
        metavar="MODEL",
        help="Edit this edited or trained model: the store remembers it first, so that it is preserved too.",
    ),
]
MaxMissing = Annotated[
    float,
    typer.Option(
        "--max-missing", min=0, max=1, metavar="M", help="Save nothing if this share of a pair or more is missing; 1 saves all."
    ),
]
Preview = Annotated[bool, typer.Option("--dry-run", help="Report what would be missing, and the drift; write nothing.")]


def edit(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE TARGET", help="Pairs of prompts: the one to edit, then the one it should look like."),
    ] = None,
    output: Output = None,
    map_: Mark = False,
    erase: Erase = None,
    to: Neutral = None,
    debias: Debias = None,
    over: Over = None,
    file: File = None,
    method: Method = "alphaedit",
    tokens: Tokens = None,
    ridge: Ridge = 1e-2,
    preserve: Preserve = None,
    copies: Copies = 0,
    around: Around = "object",
    after: After = None,
    max_missing: MaxMissing = 0.9,
    dry_run: Preview = False,
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Give prompts the meaning of other prompts, in closed form.

    Saves an edited pipeline. The k and v weights of cross-attention change so that SOURCE gives the keys and values of
    TARGET. The answer reports how much of that is missing, and how far the weights have drifted on the preserved prompts.

    Example: nullbooth edit "a sks star" "a red star" --erase circle -s runs/toy.zarr --output edited
    """
    from pathlib import Path

    from nullbooth_cli.api import OpenStore
    from nullbooth_cli.collect.edited_model import load_edited
    from nullbooth_cli.collect.open_model import load_model
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.edit_after import edits_before, record_of, remember_chain
    from nullbooth_cli.commands.edit_options import (
        draw,
        pairs_to_edit,
        preserved_notes,
        require_place,
        require_reached,
        settings_of,
        tokens_of,
    )
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.editing.edit import plan_edit, require_possible, text_sites
    from nullbooth_cli.editing.reach import Trial
    from nullbooth_cli.editing.record import write_edit_record
    from nullbooth_cli.editing.verbs import as_mapping
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.model.quiet import quiet_libraries
    from nullbooth_cli.nullspace.export import written
    from nullbooth_cli.report.answers import EditAnswer

    require_place(output, dry_run=dry_run)
    if map_ and not prompts:
        raise ConfigError("--map has no SOURCE and TARGET", 'write --map "a sks star" "a red star"')
    asked = pairs_to_edit(prompts or (), erase=erase or (), to=to, debias=debias or (), over=over, file=file, around=around)
    pairs, how = as_mapping(asked), {"method": method, "tokens": tokens_of(tokens, asked)}
    settings = settings_of(method, {"ridge": ridge, "preserve": preserve, "copies": copies})
    session = start(Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose))
    opened = OpenStore(session.open_finished())
    require_possible(opened, pairs, **how, **settings)  # before seconds of loading
    earlier = edits_before(session, after) if after is not None and dry_run else ()
    remembered = remember_chain(session, after, device) if after is not None and not dry_run else []
    pipe = load_model(session.config, device) if after is None else load_edited(session.config, after, device)

    def plan_at(store: "OpenStore", **other: Any) -> "EditPlan":
        return plan_edit(pipe, store, pairs, earlier=earlier, **{**how, **settings, **other})

    trial = Trial(opened, text_sites(opened), plan_at)
    report = trial.plan.report
    for note in (*([report.cut_off] if report.cut_off else []), *preserved_notes(pairs, opened.prompts())):
        session.terminal.note(note)
    if not dry_run:
        require_reached(trial, max_missing)
    if output is not None:
        trial.plan.apply()
        with written(Path(output)) as folder, quiet_libraries():
            pipe.save_pretrained(folder)
            made_with = {"url": opened.url, "fingerprint": opened.provenance()["fingerprint"]}
            earlier_model = None if after is None else record_of(session.config, after, Path(output))
            write_edit_record(folder, report, settings=settings, after=earlier_model, store=made_with, dtype=opened.config.dtype)
    answer = EditAnswer(
        store=session.url,
        output=output,
        after=after,
        remembered=remembered,
        method=report.method,
        tokens=report.tokens,
        settings=settings,
        pairs=pairs,
        verdicts=report.verdicts,
        by_pair=report.by_pair,
        missing=report.missing,
        drift=report.drift,
        heldout=report.heldout,
        weights=report.weights,
        ladder=trial.thresholds() if dry_run and not report.verdicts[0].is_good else None,
    )
    session.terminal.answer(answer, draw)
    if output is not None:
        session.terminal.next(next_command.measure(output, session.options))
