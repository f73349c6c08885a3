"""What layers and sites are called in tables, pictures and pages: `down_blocks.0.attentions.0 k`."""

from collections.abc import Iterable, Mapping

from nullbooth_cli.formatting import without_shared_ending

Called = Mapping[str, str]  # the short name of every layer of an answer, by its whole name


def layer_names(layers: Iterable[str]) -> dict[str, str]:
    """The layers, in their order, without the ending that all of them share."""
    whole = list(dict.fromkeys(layers))
    return dict(zip(whole, without_shared_ending(whole)[0], strict=True))


def site_name(called: Called, layer: str, feature: str, timestep: float | None = None) -> str:
    """Layer and feature, and the timestep of an entry that has one: `mid_block.attentions.0 q t 900`."""
    return f"{called[layer]} {feature}" + ("" if timestep is None else f" t {timestep:g}")
