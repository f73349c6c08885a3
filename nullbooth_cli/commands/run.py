"""The command `nullbooth run`."""

from nullbooth_cli.commands.stage_command import stage_command


@stage_command("schedule", "collect", "covariance", "project")
def run() -> None:
    """Run all stages in order: schedule, collect, covariance, project.

    Complete stages are left alone, partial ones go on; with --force, stale ones are replaced.

    Example: nullbooth run -c configs/nullbooth.yaml
    """
