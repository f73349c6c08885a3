"""The command `nullbooth collect`."""

from nullbooth_cli.commands.options import stage_command


@stage_command("collect")
def collect() -> None:
    """Run the model over the prompts and store what enters its cross-attention projections.

    Writes the schedule first if there is none. Stop it at any time: finished batches of prompts are kept, and the same
    command goes on.

    Example: nullbooth collect -c configs/nullbooth.yaml --dry-run
    """
