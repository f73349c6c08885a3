"""Where a constraint gets its projectors from, and which of its denoisers a model is: found by weights, never by a guess."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from nullbooth_cli.datatypes import SECOND_DENOISERS, Site, denoiser_of_weight
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.denoisers import MAIN_PARTS
from nullbooth_cli.nullspace.moment import Moment
from nullbooth_cli.nullspace.projector import Projector


class ProjectorSource(Protocol):
    """The source of a constraint. `nb.OpenStore` is one; another may cut its projectors in another way."""

    def sites(self) -> Sequence[Site]:
        """The sites whose weights are protected."""

    def moment(self, site: Site) -> Moment:
        """The second moment of all inputs that were collected at a site."""

    def heldout_moment(self, site: Site) -> Moment | None:
        """The same of the held-out prompts; None without any."""

    def projectors(self, model: Mapping[str, torch.Tensor]) -> Mapping[str, Projector]:
        """The projector of each weight of the sites, by name; weights of one site have equal ones.

        `model` is the state dict of the model to constrain. Raises an error if the projectors do not belong to it.
        """


def names_inside(sites: Sequence[Site]) -> list[str]:
    """The names that the weights of sites have in their own denoiser, each once."""
    return [*dict.fromkeys(weight.removeprefix(denoiser_of_weight(weight)) for site in sites for weight in site.weights)]


def projectors_of(model: nn.Module, store: ProjectorSource, part: str | None) -> tuple[str, Mapping[str, Projector]]:
    """The prefix of the denoiser that a model is, and the projectors of its weights by their names in the store.

    `part` is the name of the denoiser in its pipeline, None where the weights tell. Raises ConfigError for a name that the store
    has nothing of, if the weights are those of several denoisers, and for the weights of none.
    Cost: one read of the model's weights for each denoiser of the store.
    """
    prefixes = [*dict.fromkeys(denoiser_of_weight(weight) for site in store.sites() for weight in site.weights)]
    if part is not None:
        named = f"{part}." if part in SECOND_DENOISERS else ""
        if named not in prefixes or part not in (*MAIN_PARTS, *SECOND_DENOISERS):
            raise ConfigError(
                f"part={part!r}: the store has no projectors of it", f"set part to {_names(prefixes)}, or leave it out"
            )
        prefixes = [named]
    found: dict[str, Mapping[str, Projector]] = {}
    errors = []
    for prefix in prefixes:
        try:
            found[prefix] = store.projectors({f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()})
        except ConfigError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    if len(found) > 1:
        raise ConfigError(
            f"this {type(model).__name__} may be any of {len(found)} denoisers of the store: their protected weights are equal",
            f"set part to {_names([*found])}",
        )
    return next(iter(found.items()))


def _names(prefixes: Sequence[str]) -> str:
    return " or ".join(prefix.removesuffix(".") or "the name of the main one (unet, transformer)" for prefix in prefixes)
