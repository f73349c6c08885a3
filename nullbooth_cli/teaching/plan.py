"""What teaching would take: steps, time, disk and memory. Nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nullbooth_cli.model.device import free_memory, pick_device
from nullbooth_cli.pipeline.plan import Plan, plan
from nullbooth_cli.report.json_document import Document
from nullbooth_cli.settings.config import STAGES
from nullbooth_cli.settings.knowledge import HELDOUT_FIELD, PROMPTS_FIELD, knowledge_prompts
from nullbooth_cli.store import Store, open_backing, remembered
from nullbooth_cli.teaching.decide import find
from nullbooth_cli.teaching.go_on import store_before, task_prompts
from nullbooth_cli.teaching.teach import measured, sets_of, taught
from nullbooth_cli.training import checkpoint_files
from nullbooth_cli.training.before_loading import read_inputs
from nullbooth_cli.training.memory import TrainingMemory
from nullbooth_cli.training.plan import checkpoint_bytes, cost_of


@dataclass(frozen=True, kw_only=True)
class TeachPlan(Document):
    """The plan of what is left to do: the stages, training (`train_seconds`) and evaluation (`pictures`, `draw_seconds`).

    `steps_done` of the `steps` of training are done. Seconds of training are those of a step that was timed here; those of
    pictures follow from it by the work of a forward; both are None if the device has less memory free than a step takes.
    `device_bytes` are the most of all phases of training. `bytes_needed` are on disk. `remembers` are the prompts of what was
    taught before, until the store remembers them: seconds for inputs that are text.
    """

    dry_run: bool = True
    output: str
    model: str
    device: str
    notes: tuple[str, ...]
    stages: Mapping[str, Plan]
    steps: int
    steps_done: int
    train_seconds: float | None
    pictures: int
    draw_seconds: float | None
    bytes_needed: int
    bytes_free: int | None
    device_bytes: int
    memory: TrainingMemory
    device_bytes_free: int
    remembers: tuple[str, ...] = ()


def plan_teaching(given: Mapping[str, Any], output: str, *, device: str | None = None) -> TeachPlan:
    """The plan of a request. Raises as `teach_events` does before it loads. Cost: one training step with random weights."""
    chosen = pick_device(device)
    decision = find(given, output, on_cpu=chosen.type == "cpu")
    recipe = decision.recipe
    inputs = read_inputs(recipe, decision.preserved)
    config = decision.config.model_copy(
        update={PROMPTS_FIELD: list(decision.preserved), HELDOUT_FIELD: list(decision.heldout)}  # the files may not be there yet
    )
    backing, after = open_backing(config.store, read_only=True), decision.request.after
    is_there, free = backing.exists(), backing.free_nbytes()
    place = config.store if is_there or after is None else store_before(after)
    store = Store.open(place) if is_there or after is not None else None
    stages = {each.stage: each for each in plan(STAGES, config, knowledge_prompts(config), store, device=device, free=free)}
    is_taught = taught(recipe) is not None
    steps_done = recipe.max_train_steps if is_taught else max(checkpoint_files.steps(output), default=0)
    cost = cost_of(recipe, inputs.resizing.size, device)
    num_steps, drawn = config.schedule.num_denoising_steps, sets_of(decision, config, decision.subject).values()
    is_measured = is_taught and measured(output) is not None
    # By the model before, by its other seed, and by the taught one.
    pictures = 0 if is_measured else 3 * sum(map(len, drawn))
    steps_left = recipe.max_train_steps - steps_done
    # A training step is a forward and a backward, which is twice the work; guidance takes two forwards.
    seconds = cost.seconds
    forward = None if seconds is None else seconds / (3 * recipe.train_batch_size * recipe.gradient_accumulation_steps)
    return TeachPlan(
        output=output,
        model=recipe.model,
        device=str(chosen),
        notes=decision.notes,
        stages=stages,
        steps=recipe.max_train_steps,
        steps_done=steps_done,
        train_seconds=None if seconds is None else steps_left * seconds,
        pictures=pictures,
        draw_seconds=None if forward is None else 2 * num_steps * pictures * forward,
        bytes_needed=(
            sum(each.bytes_needed for each in stages.values())
            + checkpoint_bytes(recipe, cost, steps_left)
            + (0 if is_taught else cost.result_bytes)
            + (0 if is_there or store is None else store.nbytes(""))  # the copy
        ),
        bytes_free=free,
        device_bytes=cost.memory.peak,
        memory=cost.memory,
        device_bytes_free=free_memory(chosen),
        remembers=() if after is None or (store is not None and remembered(store, after)) else task_prompts(after),
    )
