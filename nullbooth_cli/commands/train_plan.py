"""The lines of a plan of training: steps, time, disk, and the memory of each phase."""

from typing import TYPE_CHECKING, Any

from nullbooth_cli.formatting import duration, size

if TYPE_CHECKING:
    from nullbooth_cli.commands.console import Terminal
    from nullbooth_cli.settings.recipe import Recipe
    from nullbooth_cli.training.memory import TrainingMemory
    from nullbooth_cli.training.plan import TrainPlan


def answer_plan(terminal: "Terminal", recipe: "Recipe", device: str | None) -> None:
    """Print the plan of a recipe."""
    from nullbooth_cli.training.plan import plan_training

    planned = plan_training(recipe, device)
    terminal.answer(planned.document(), lambda _: draw_plan(planned))


def draw_plan(plan: "TrainPlan") -> list[Any]:
    """The notes, and lines for training, disk and memory."""
    free = "" if plan.bytes_free is None else f", {size(plan.bytes_free)} are free"
    return [
        *plan.notes,
        f"train   {steps_line(plan.steps, plan.steps_done, plan.train_seconds, plan.device)}",
        f"disk    {size(plan.bytes_needed)}{free}",
        f"memory  {size(plan.memory.peak)} at most, {size(plan.device_bytes_free)} are free",
        *memory_lines(plan.memory),
    ]


def steps_line(steps: int, done: int, seconds: float | None, device: str) -> str:
    """The steps, those that are done, and the time of the others; "?" where a step could not be timed."""
    finished = f", {done} are done" if done else ""
    time = f"about {duration(seconds)}" if seconds is not None else "too large to be timed"
    return f"{steps} steps{finished}, {time} on {device}"


def memory_lines(memory: "TrainingMemory") -> list[str]:
    """A line for each phase, and one for what training keeps."""
    parts = {
        "weights": memory.weights,
        "constraint": memory.constraint,
        "teacher": memory.teacher,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "averages": memory.averages,
        "activations": memory.activations,
    }
    kept = f"{size(memory.kept_plain)}, with gradient checkpointing {size(memory.kept_checkpointed)}"
    return [
        *(f"  {phase}: {size(num_bytes)}" for phase, num_bytes in memory.phases.items()),
        f"  in training: {', '.join(f'{name} {size(num_bytes)}' for name, num_bytes in parts.items() if num_bytes)}",
        f"  kept for the backward pass: {kept}",
        f"  beside it: {', '.join(f'{name} {size(num_bytes)}' for name, num_bytes in memory.helpers.items())}",
    ]
