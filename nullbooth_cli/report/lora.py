"""What finished LoRAs do to the preserved prompts of a store, as an answer and in words."""

from collections.abc import Iterator
from dataclasses import dataclass

from nullbooth_cli.evaluation.lora_drift import HARDLY, LoraDrift
from nullbooth_cli.formatting import counted, percent
from nullbooth_cli.model.projections import SHORTHANDS
from nullbooth_cli.report.json_document import Document


@dataclass(frozen=True, kw_only=True)
class LoraDocument(Document):
    """The LoRA files that were measured against a store."""

    store: str
    loras: tuple[LoraDrift, ...]


def lora_lines(lora: LoraDrift) -> Iterator[str]:
    """The verdict on a file, and what the store does not know of it, with what to do."""
    modules = len(lora.modules)
    yield f"{lora.path}: {lora.measured} of {counted(modules, 'module')} measured"
    yield from lora.notes
    if lora.largest_drift is not None:
        heldout = "" if lora.largest_heldout_drift is None else f"; {lora.largest_heldout_drift:.2g} on held-out prompts"
        yield (
            f"preserved prompts: drift {lora.largest_drift:.2g}: {lora.word} "
            f"(the largest of {counted(lora.measured, 'module')}{heldout}; up to {HARDLY:g} is good)"
        )
    else:
        yield f"preserved prompts: {lora.word}: no module of it could be measured"
    if lora.inside is not None:
        yield f"inside the null space: {percent(lora.inside)} of the change of these modules"
    if lora.outside:
        kinds = ", ".join(f"{count} {kind}" for kind, count in lora.outside.items())
        yield f"outside the store: {counted(sum(lora.outside.values()), 'module')}, of which nothing is known: {kinds}"
        words = [kind for kind in lora.outside if kind in SHORTHANDS]
        if words:
            yield f"  collect these inputs too: set collect.linear_layers to [{', '.join(words)}]"
    for part, count in lora.other_parts.items():
        modules_of = f"{counted(count, 'module')} of it {'changes' if count == 1 else 'change'}"
        yield f"{part}: {modules_of}, which moves the text of every prompt; no store protects that"
    reasons = {module.reason for module in lora.modules if module.site is not None and module.reason}
    yield from sorted(reasons)
