"""The command `nullbooth collect`."""

from nullbooth_cli.commands.stage_command import stage_command


@stage_command("collect")
def collect() -> None:
    """Run the model over the prompts and store what enters its cross-attention projections, or add it up on the way.

    Writes the schedule first if there is none. Stop it at any time: finished batches of prompts are kept, and the same
    command goes on. Prompts that were added to the file are collected, the others are left alone; with --force, prompts that
    were removed are taken out. Under accelerate launch or torchrun the processes share the work out.

    Example: nullbooth collect -c configs/nullbooth.yaml --dry-run
    """
