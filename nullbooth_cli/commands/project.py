"""The command `nullbooth project`."""

from nullbooth_cli.commands.stage_command import stage_command


@stage_command("project")
def project() -> None:
    """Decompose the moments and cut each spectrum into known and null.

    One threshold rule of the config's project section is in force. Another threshold re-uses the stored decomposition.

    Example: nullbooth project -s runs/toy.zarr --set project.relative_threshold=1e-2 --force
    """
