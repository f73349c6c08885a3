"""The command `nullbooth edit`."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose

Pairs = Annotated[bool, typer.Option("--map", help="SOURCE and TARGET follow. It may be left out. Repeatable.")]
Erase = Annotated[
    list[str] | None, typer.Option("--erase", metavar="CONCEPT", help="Let a word or a prompt mean nothing. Repeatable.")
]
Neutral = Annotated[
    str | None, typer.Option("--to", metavar="TEXT", help="What erased concepts look like instead; else the empty prompt.")
]
Debias = Annotated[
    list[str] | None,
    typer.Option(
        "--debias", metavar="PROFESSION", help="Its target is the mean of it with each attribute of --over. Repeatable."
    ),
]
Over = Annotated[str | None, typer.Option("--over", metavar="A,B", help="The attributes of --debias, such as male,female.")]
File = Annotated[
    str | None,
    typer.Option(
        "--pairs",
        metavar="FILE",
        help="More pairs: YAML of lines `source: target`, or of lists map, erase and debias, beside settings.",
    ),
]
Output = Annotated[str | None, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the edited pipeline.")]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="alphaedit (default), speed and ace change weights within the null space; uce weighs the edit against the preserved "
        "prompts.",
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        "--tokens",
        metavar="subject|all",
        help="subject (default): pair tokens from the last one of the [subject] on; all: pair them by position.",
    ),
]
Ridge = Annotated[
    float | None,
    typer.Option("--ridge", metavar="A", help="A larger one changes less, and more of the edit is missing (default: 0.01)."),
]
Preserve = Annotated[
    float | None,
    typer.Option(
        "--preserve", metavar="B", help="uce: the weight of all preserved tokens together, in edited ones (default: 100)."
    ),
]
Copies = Annotated[
    int | None,
    typer.Option("--copies", metavar="N", help="Noisy copies of each edited token, so that what is near it is edited too."),
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
        "--max-missing",
        min=0,
        max=1,
        metavar="M",
        help="Save nothing if this share or more is missing, of a pair or in other prompts; 1 saves all.",
    ),
]
Preview = Annotated[bool, typer.Option("--dry-run", help="Report what would be missing, and the drift; write nothing.")]


class EditCommand(TyperCommand):
    """The command, with a check of where each --map is: typer only tells that there is one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises ConfigError for a --map without a pair after it, or inside a pair."""
        from nullbooth_cli.commands.edit_options import require_map_pairs

        def before(arguments: Sequence[str]) -> int:
            given, _, _ = self.make_parser(ctx).parse_args(list(arguments))
            return len(given.get("prompts") or ())

        require_map_pairs(args, before)
        return super().parse_args(ctx, args)


def edit(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE TARGET", help="Pairs of prompts: the one to edit, then the one it should look like."),
    ] = None,
    output: Output = None,
    map_: Pairs = False,
    erase: Erase = None,
    to: Neutral = None,
    debias: Debias = None,
    over: Over = None,
    file: File = None,
    method: Method = None,
    tokens: Tokens = None,
    ridge: Ridge = None,
    preserve: Preserve = None,
    copies: Copies = None,
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

    Example: nullbooth edit "a sks star" "a red star" -s runs/toy.zarr --output edited
    """
    from functools import partial
    from pathlib import Path

    from nullbooth_cli.api import OpenStore
    from nullbooth_cli.collect.edited_model import load_edited
    from nullbooth_cli.collect.open_model import load_model
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.draw_edit import draw_edit
    from nullbooth_cli.commands.edit_after import edits_before, record_of, remember_chain
    from nullbooth_cli.commands.edit_options import pairs_to_edit, require_place, require_reached
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.editing.edit import edit_problem, require_possible
    from nullbooth_cli.editing.reach import thresholds
    from nullbooth_cli.editing.record import write_edit_record
    from nullbooth_cli.editing.settings import settings_of
    from nullbooth_cli.editing.verbs import as_mapping
    from nullbooth_cli.model.quiet import quiet_libraries
    from nullbooth_cli.nullspace.export import written
    from nullbooth_cli.report.answers import EditAnswer

    require_place(output, dry_run=dry_run)
    asked = pairs_to_edit(prompts or (), erase=erase or (), to=to, debias=debias or (), over=over, file=file, around=around)
    options = {"method": method, "tokens": tokens, "ridge": ridge, "preserve": preserve, "copies": copies}
    settings = settings_of({**asked.settings, **{name: value for name, value in options.items() if value is not None}})
    of_method = {name: value for name, value in settings.items() if name not in ("method", "tokens")}
    pairs = as_mapping(asked.pairs)
    session = start(Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose))
    opened = OpenStore(session.open_finished())
    require_possible(opened, pairs, **settings)  # before seconds of loading
    earlier = edits_before(session, after) if after is not None and dry_run else ()
    remembered = remember_chain(session, after, device) if after is not None and not dry_run else []
    pipe = load_model(session.config, device) if after is None else load_edited(session.config, after, device)

    problem = edit_problem(pipe, opened, pairs, earlier=earlier, **settings)
    plan = problem.solve()
    report, tried = plan.report, partial(thresholds, problem, plan)
    if report.cut_off:
        session.terminal.note(report.cut_off)
    if not dry_run:
        require_reached(report, opened.url, max_missing, tried)
    if output is not None:
        plan.apply()
        with written(Path(output)) as folder, quiet_libraries():
            pipe.save_pretrained(folder)
            made_with = {"url": opened.url, "fingerprint": opened.provenance()["fingerprint"]}
            earlier_model = None if after is None else record_of(session.config, after, Path(output))
            write_edit_record(folder, report, settings=of_method, after=earlier_model, store=made_with, dtype=opened.config.dtype)
    answer = EditAnswer(
        store=session.url,
        output=output,
        after=after,
        remembered=remembered,
        method=report.method,
        tokens=report.tokens,
        settings=of_method,
        pairs=pairs,
        verdicts=report.verdicts,
        by_pair=report.by_pair,
        in_context=report.in_context,
        missing=report.missing,
        drift=report.drift,
        heldout=report.heldout,
        weights=report.weights,
        ladder=None if output is not None or report.is_reached else tried(),
    )
    session.terminal.answer(answer, draw_edit)
    if output is not None:
        session.terminal.next(next_command.measure(output, session.options))
