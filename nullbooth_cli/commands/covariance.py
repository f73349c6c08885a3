"""The command `nullbooth covariance`."""

from nullbooth_cli.commands.stage_command import stage_command


@stage_command("covariance")
def covariance() -> None:
    """Reduce the stored features to second moments: sums of x x^T, sums of x, and counts.

    The moment is about zero by default, although the command has the name that the field uses. With covariance.centred the
    mean is subtracted: the mean direction then looks null, and an edit along it changes what the model knows. Both are read
    from the same sums, so changing it costs no new pass. Prompts that were added to the collection are added to the moments.
    With collect.keep: moments there is nothing left to do.

    Example: nullbooth covariance -s runs/toy.zarr
    """
