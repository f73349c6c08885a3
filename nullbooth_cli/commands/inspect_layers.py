"""`nullbooth inspect --layers`: the layers of a model and the sites that each would record, before anything is collected."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from nullbooth_cli.commands import next_command
from nullbooth_cli.commands.console import Terminal
from nullbooth_cli.commands.find_config import configure
from nullbooth_cli.commands.options import Common
from nullbooth_cli.commands.tables import shortened, table
from nullbooth_cli.datatypes import require_feature
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.formatting import counted, size

if TYPE_CHECKING:
    from nullbooth_cli.collect.preview import Total
    from nullbooth_cli.collect.unprotected import DefaultLora
    from nullbooth_cli.report.layers import LayersDocument


def list_layers(common: Common, layer: str | None, feature: str | None, device: str | None) -> None:
    """Answer with every layer that attends to text; `layer` (a name, a part of one, a glob) and `feature` filter them."""
    from nullbooth_cli.collect.open_model import compute_steps, open_preview
    from nullbooth_cli.collect.preview import layers_report
    from nullbooth_cli.collect.unprotected import default_loras
    from nullbooth_cli.report.layers import layers_document

    if feature is not None:
        require_feature(feature)
    terminal = Terminal(as_json=common.as_json, quiet=common.quiet)
    given = configure(common)
    config = given.config

    def passes(name: str, of: str) -> bool:
        return (layer is None or fnmatchcase(name, f"*{layer}*")) and (feature is None or of == feature)

    _, steps = compute_steps(config, 1, device)
    shapes = open_preview(config, device, terminal.note)
    report = layers_report(shapes, shapes.find(shapes.every()), len(steps), passes)
    if not report.layers:
        raise ConfigError("no layer passes the filters", "leave --layer and --feature out to list all of them")
    terminal.answer(layers_document(report, default_loras(shapes, len(steps))), _draw)
    terminal.next(next_command.check(given.options))


def _draw(document: "LayersDocument") -> list[Any]:
    """A row for each site of each layer, and the totals; the bytes of a site that several layers share appear once."""
    names, ending = shortened([layer.layer for layer in document.layers])
    columns = ["", "index", "layer", "features", "tokens", "dim", "weights", "recorded", "features/prompt", "moments"]
    drawn = table(columns, _rows(document, names), right=frozenset({1, 4, 5, 6, 8, 9}))
    return [
        drawn,
        *([f"layers end in {ending}"] if ending else []),
        *_attention(document),
        f"{document.model}, {document.pipeline}: {_total(document.totals.all, document.steps)}",
        f"* chosen by the config: {_total(document.totals.chosen, document.steps)}",
        *(line for lora in document.default_loras for line in _default_lora(lora)),
    ]


def _attention(document: "LayersDocument") -> Iterator[str]:
    """A line for each reason that layers count as attending to text, or do not."""
    from nullbooth_cli.model.attention_layers import SELF

    reasons: dict[tuple[str, str], list[str]] = {}
    for each in document.attention:
        reasons.setdefault((each.attends_to, each.why), []).append(each.layer)
    for (attends_to, why), layers in reasons.items():
        left_out = ", not of text" if attends_to == SELF else ""
        some = layers[0] if len(layers) == 1 else f"{len(layers)} layers such as {layers[0]}"
        yield f"{attends_to}{left_out}: {some}, because {why}"


def _default_lora(lora: "DefaultLora") -> Iterator[str]:
    """What a trainer's default LoRA would leave unprotected, and what recording the inputs of that takes."""
    left = ", ".join(f"{count} {word}" for word, count in lora.unprotected.items())
    unprotected = f"; unprotected: {left}" if left else ""
    protected = f"this config protects {lora.protected or 'none'}"
    yield f"the default LoRA of {lora.trainer} changes {lora.modules} modules; {protected}{unprotected}"
    if lora.linear_layers:
        words = ",".join(lora.linear_layers)
        cost = f"{counted(lora.sites, 'more site')}, {size(lora.moment_bytes)} more of moments"
        yield f"  to protect more: --set 'collect.linear_layers=[{words}]' ({cost})"


def _rows(document: "LayersDocument", names: list[str]) -> list[list[str]]:
    sites, seen = {site.name: site for site in document.sites}, set[str]()
    rows = []
    for name, layer in zip(names, document.layers, strict=True):
        for place, recording in enumerate(layer.recordings):
            site, first = sites[recording.site], recording.site not in seen
            seen.add(recording.site)
            rows.append(
                [
                    "*" if recording.chosen else "",
                    "" if place or layer.index is None else str(layer.index),
                    "" if place else name,
                    " ".join(recording.features),
                    str(site.num_tokens),
                    str(site.dim),
                    str(len(site.weights)),
                    "once" if site.timestep_free else "every step",
                    size(site.feature_bytes_per_prompt) if first else "above",
                    size(site.moment_bytes) if first else "above",
                ]
            )
    return rows


def _total(total: "Total", steps: int) -> str:
    return (
        f"{total.layers} layers, {total.sites} sites for {total.weights} weights; over {steps} steps "
        f"{size(total.feature_bytes_per_prompt)} of features a prompt, or {size(total.moment_bytes)} of moments in all"
    )
