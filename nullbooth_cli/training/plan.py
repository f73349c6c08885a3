"""What a training run would take: steps, time, disk and memory. Nothing is written, no weights are loaded."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from nullbooth_cli.api import open_store
from nullbooth_cli.model import load
from nullbooth_cli.model.device import free_memory, pick_device
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.resizing import Size
from nullbooth_cli.store import open_backing
from nullbooth_cli.training import checkpoint_files, optimizers, precision
from nullbooth_cli.training.before_loading import read_inputs, without_weights
from nullbooth_cli.training.earlier import Earlier, source_of
from nullbooth_cli.training.memory import TrainingMemory, text_encoders
from nullbooth_cli.training.step_cost import StepCost, step_cost

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """The plan of what is left to do: `steps_done` of `steps` are.

    Seconds are those of a step that was timed here, None if the device has less memory free than it takes. `bytes_needed` are on
    disk.
    """

    dry_run: bool = True
    output: str
    model: str
    device: str
    notes: tuple[str, ...]
    steps: int
    steps_done: int
    train_seconds: float | None
    bytes_needed: int
    bytes_free: int | None
    device_bytes_free: int
    memory: TrainingMemory

    def document(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "notes": list(self.notes), "memory": self.memory.document()}


def plan_training(recipe: Recipe, device: str | None = None) -> TrainPlan:
    """The plan of a recipe. Raises as `set_up` does before it loads. Cost: that of `step_cost`."""
    chosen = pick_device(device)
    precision.require_there(recipe.mixed_precision, chosen)
    optimizers.require_package(recipe.optimizer)
    store = None if recipe.store is None else open_store(recipe.store)
    projectors = {} if store is None else store.projectors()
    earlier = Earlier.of(recipe)
    remembered = earlier.require_remembered(store) if earlier and store else ()
    inputs = read_inputs(recipe, (*store.prompts(), *remembered) if store else (), projectors.keys() if store else None)
    factors = {id(projector): projector.factor.size * 4 for projector in projectors.values()}  # float32, once for each site
    cost = cost_of(recipe, inputs.resizing.size, device, factors=sum(factors.values()))
    done = max(checkpoint_files.steps(recipe.output), default=0)
    left = max(recipe.max_train_steps - done, 0)
    note = optimizers.rate_note(recipe)
    return TrainPlan(
        output=recipe.output,
        model=recipe.model,
        device=str(chosen),
        notes=(*inputs.notes, *([note] if note else [])),
        steps=recipe.max_train_steps,
        steps_done=done,
        train_seconds=None if cost.seconds is None else left * cost.seconds,
        bytes_needed=checkpoint_bytes(recipe, cost, left) + cost.result_bytes,
        bytes_free=open_backing(recipe.output).free_nbytes(),
        device_bytes_free=free_memory(chosen),
        memory=cost.memory,
    )


def cost_of(recipe: Recipe, size: Size, device: str | None, *, factors: int = 0) -> StepCost:
    """The cost of a step of a recipe, from the config files of its model."""
    source = source_of(recipe, Earlier.of(recipe))
    encoders = text_encoders(load.config_folder(source))
    return step_cost(recipe, without_weights(source), encoders, size, pick_device(device), factors=factors)


def checkpoint_bytes(recipe: Recipe, cost: StepCost, steps: int) -> int:
    """The most bytes of the checkpoints of so many steps at a time."""
    count = math.ceil(steps / recipe.checkpointing_steps)
    if limit := checkpoint_files.limit_of(recipe.checkpoints_total_limit, cost.checkpoint_bytes):
        count = min(count, limit + 1)  # the oldest goes once the newest is whole
    return count * cost.checkpoint_bytes
