"""The command `nullbooth train`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Device, Quiet, Verbose

if TYPE_CHECKING:
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.progress import Interrupts
    from nullbooth_cli.settings.recipe import Recipe
    from nullbooth_cli.training.output import TrainingResult

RecipeFile = Annotated[
    str | None,
    typer.Option("-c", "--config", metavar="FILE", help="Recipe; else ./train.yaml, else defaults for what -s and --set leave."),
]
ConstraintStore = Annotated[
    str | None,
    typer.Option("-s", "--store", metavar="PATH", help="Store whose projectors constrain training (default: the recipe's)."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--resume-with",
        metavar="KEY=VALUE",
        help="Resume with another value of a key, such as learning_rate=1e-4, which is otherwise refused. Repeatable.",
    ),
]
RecipeOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as learning_rate=1e-4. Repeatable."),
]

Finish = Annotated[
    int | None,
    typer.Option("--finish", min=1, metavar="STEP", help="Do not train: write the model of the checkpoint of this step."),
]
PushToHub = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="ID", help="Upload the result with its model card; a new repository is private."),
]

PlanOnly = Annotated[bool, typer.Option("--dry-run", help="Report steps, time, disk and memory; write nothing.")]


def train(
    config: RecipeFile = None,
    store: ConstraintStore = None,
    overrides: RecipeOverrides = None,
    resume_with: Changes = None,
    finish: Finish = None,
    push_to_hub: PushToHub = None,
    device: Device = None,
    dry_run: PlanOnly = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Teach a model a subject, constrained by a store's projectors.

    Trains weights of the cross-attention, or LoRA adapters on them, on a few pictures, and preserves the outputs on the
    store's prompts. Without a store, training is not constrained. Stop it at any time: the step that runs is finished and a
    checkpoint is written, and the same command resumes, or --finish writes the model as it is then. A larger max_train_steps
    continues a finished run.

    Example: nullbooth train -c configs/train/toy.yaml -s runs/words.zarr
    """
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.commands.find_config import find_recipe
    from nullbooth_cli.commands.hints import options_of
    from nullbooth_cli.commands.signals import interruptible
    from nullbooth_cli.commands.train_result import answer, offering_the_model
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.progress import Interrupts
    from nullbooth_cli.settings.places import expanded
    from nullbooth_cli.settings.recipe import Recipe
    from nullbooth_cli.settings.schema import load_settings, validate

    file, changed = find_recipe(config), [*(overrides or ()), *(resume_with or ())]
    if file is None and not (store or changed):
        raise ConfigError("no recipe: there is no ./train.yaml", "write one with nullbooth init, or give one with -c")
    recipe = validate(Recipe, {}, changed) if file is None else load_settings(Recipe, file, changed)
    recipe = recipe.model_copy(update={"store": expanded(store)}) if store else recipe
    _require_trainable(recipe, weights=not dry_run)
    from nullbooth_cli.training import output  # takes seconds, which a mistake in the recipe should not
    from nullbooth_cli.training.hub import push, require_account

    changes = tuple(change.partition("=")[0].strip() for change in resume_with or ())
    terminal = Terminal(as_json=as_json, quiet=quiet, silent=not output.is_first_process())
    if verbose:
        terminal.note(f"recipe {file or 'of defaults'}, into {recipe.output}")
    if dry_run:
        from nullbooth_cli.commands.train_plan import answer_plan

        return answer_plan(terminal, recipe, device)
    if finish is not None and changes:
        raise ConfigError("--finish does not train, so --resume-with has no effect", "leave one of them out")
    options = options_of([("-c", config), ("-s", store), *(("--set", override) for override in overrides or ())])
    interrupts = Interrupts()
    with (
        interruptible(interrupts, terminal.note, "the step that runs"),
        output.locked(recipe.output),
        offering_the_model(terminal, recipe.output, options),
    ):
        if push_to_hub:
            require_account(push_to_hub, recipe)
        result = _train(recipe, device, terminal, interrupts, changes=changes, at=finish)
        if result and push_to_hub:
            terminal.note(f"pushed to {push(push_to_hub, recipe, result)}")
    if result:
        answer(terminal, recipe, result)


def _require_trainable(recipe: "Recipe", *, weights: bool) -> None:
    """Refuse a folder of a model that cannot be trained here, and one without `weights` if they are to be loaded.

    What is on the hub is read later, when torch is there.
    """
    from pathlib import Path

    from nullbooth_cli.model.families import require_trainable_folder
    from nullbooth_cli.model.pipeline_folder import read_pipeline_folder
    from nullbooth_cli.model.sources import Source

    place = Source.of(recipe).located()
    if Path(place).is_dir():
        require_trainable_folder(place)
        if weights:
            read_pipeline_folder(place, weights=True)


def _train(
    recipe: "Recipe",
    device: str | None,
    terminal: "Terminal",
    interrupts: "Interrupts",
    *,
    changes: Sequence[str],
    at: int | None,
) -> "TrainingResult | None":
    from nullbooth_cli.commands.train_result import hint_of_changed
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.training import dreambooth, output, setup
    from nullbooth_cli.training.record import OtherSettings

    try:
        if at is None and (result := output.finished(recipe, changes)):
            terminal.note(f"the run in {recipe.output} is complete: {result.steps} steps are done")
            return None if terminal.silent else result
        ready = setup.set_up(recipe, device, changes=changes, at=at)
    except OtherSettings as error:
        raise ConfigError(error.message, hint_of_changed(error)) from error
    if at is not None:
        dreambooth.restore(ready)
        return dreambooth.finish(ready)
    by = f"constrained by {ready.recipe.store}" if ready.constraint else "without a constraint: no store is named"
    terminal.note(f"trains {len(ready.trained)} weights, {by}")
    for note in ready.notes:
        terminal.note(note)
    terminal.follow(dreambooth.train(ready, interrupts))
    return dreambooth.finish(ready)
