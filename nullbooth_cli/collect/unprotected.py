"""What a LoRA with the default targets of each trainer leaves unprotected under a config, and what recording it would cost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from nullbooth_cli.collect.preview import Preview
from nullbooth_cli.datatypes import OTHER, split_weight
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.model.hooks import NotOnce
from nullbooth_cli.model.lora_targets import CONVOLUTION, Modules, default_modules, recorded_by
from nullbooth_cli.model.projections import SHORTHANDS, attention_of, find_projections
from nullbooth_cli.nullspace.moments import sums_nbytes


@dataclass(frozen=True, kw_only=True)
class DefaultLora:
    """A trainer's default LoRA: the number of its `modules`, of those that the config protects, and the others.

    `unprotected` counts the others by what records their inputs, as in `lora_targets.recorded_by`. `linear_layers` are those of
    its words that the setting of this name takes. Recording all that have a word adds `sites` with `moment_bytes` of moments.
    """

    trainer: str
    modules: int
    protected: int
    unprotected: Mapping[str, int]
    linear_layers: tuple[str, ...]
    sites: int
    moment_bytes: int


def default_loras(preview: Preview, num_steps: int) -> tuple[DefaultLora, ...]:
    """The default LoRA of each trainer for this model. Cost: as of `preview.find`, once."""
    denoiser, kind = denoiser_of(preview.pipe), type(preview.pipe).__name__
    shapes = {name: tuple(value.shape) for name, value in denoiser.named_parameters()}
    trainers = default_modules(denoiser, kind)
    chosen = {projection.weight for projection in preview.chosen}
    text = {name: layer.sees_text for name, layer in attention_of(denoiser).items()}
    words = {
        weight: recorded_by(weight, shapes[weight], kind, sees_text=text.get(split_weight(weight)[0]))
        for each in trainers.values()
        for module in each
        for weight in module
    }
    with_word = [weight for weight, word in words.items() if word not in (OTHER, CONVOLUTION) and weight not in chosen]
    paths = [weight.removesuffix(".weight") for weight in with_word]
    projections = preview.undisturbed(find_projections(denoiser, (), "all", paths)) if paths else ()
    try:
        found = preview.find((*preview.chosen, *projections))
    except NotOnce as error:  # CogView4 feeds text and image forward by the same layers, one after the other
        found = preview.find((*preview.chosen, *(each for each in projections if each not in error.projections)))
    sites = {projection.weight: site for projection, site in found.site_of.items()}
    recorded = {sites[weight] for weight in chosen}

    can_record = {words[weight] for weight in sites if weight in words}

    def of(trainer: str, modules: Modules) -> DefaultLora:
        left = [module for module in modules if not chosen & set(module)]
        needed = dict.fromkeys(sites[weight] for module in left for weight in module if weight in sites)
        new = [site for site in needed if site not in recorded]
        unprotected = Counter(words[module[0]] for module in left)
        return DefaultLora(
            trainer=trainer,
            modules=len(modules),
            protected=len(modules) - len(left),
            unprotected=dict(unprotected),
            linear_layers=tuple(word for word in SHORTHANDS if word in unprotected and word in can_record),
            sites=len(new),
            moment_bytes=sums_nbytes(new, num_steps, preview.factoring),
        )

    return tuple(of(trainer, modules) for trainer, modules in trainers.items())
