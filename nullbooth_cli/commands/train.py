"""The command `nullbooth train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Device, Quiet, Verbose

if TYPE_CHECKING:
    from nullbooth_cli.training.dreambooth import TrainingResult

RecipeFile = Annotated[str, typer.Option("-c", "--config", metavar="FILE", help="Recipe, such as configs/train/toy.yaml.")]
ConstraintStore = Annotated[
    str | None,
    typer.Option("-s", "--store", metavar="PATH", help="Store whose projectors constrain training (default: the recipe's)."),
]
RecipeOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as learning_rate=1e-4. Repeatable."),
]


def train(
    config: RecipeFile,
    store: ConstraintStore = None,
    overrides: RecipeOverrides = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Teach a model a subject, constrained by a store's projectors.

    Trains weights of the cross-attention, or LoRA adapters on them, on a few pictures, and preserves the outputs on the
    store's prompts. Run the same command again to resume from the last checkpoint. Without a store, training is not
    constrained.

    Example: nullbooth train -c configs/train/toy.yaml -s runs/words.zarr
    """
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.settings.recipe import Recipe
    from nullbooth_cli.settings.schema import load_settings
    from nullbooth_cli.training import dreambooth, setup

    if not Path(config).is_file():
        raise ConfigError(f"no file at {config}", "give a recipe with -c; configs/train/toy.yaml is an example")
    recipe = load_settings(Recipe, Path(config), overrides or ())
    ready = setup.set_up(recipe.model_copy(update={"store": store}) if store else recipe, device)
    terminal = Terminal(as_json=as_json, quiet=quiet, silent=not ready.accelerator.is_main_process)
    if verbose:
        terminal.note(f"recipe {config}, into {recipe.output}")
    by = f"constrained by {ready.recipe.store}" if ready.constraint else "without a constraint: no store is named"
    terminal.note(f"trains {len(ready.trained)} weights, {by}")
    terminal.follow(dreambooth.train(ready))
    result = dreambooth.finish(ready)
    if result:
        terminal.answer(result.document(), lambda _: _summary(result))


def _summary(result: "TrainingResult") -> str:
    drift = result.largest_drift
    moved = "without a constraint" if drift is None else f"outputs on the preserved prompts moved by {drift:.1e} at most"
    return f"{result.output}: {result.trained} weights after {result.steps} steps; {moved}"
