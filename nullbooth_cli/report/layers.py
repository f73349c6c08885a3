"""The layers of a model as the JSON document of `nullbooth inspect --layers`."""

from dataclasses import asdict
from typing import Any

from nullbooth_cli.collect.preview import LayersReport, Total

SCHEMA_VERSION = 1


def layers_document(report: LayersReport) -> dict[str, Any]:
    """The document of a report."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": report.model,
        "pipeline": report.pipeline,
        "steps": report.num_steps,
        "layers": [
            {"index": each.index, "layer": each.layer, "recordings": [asdict(recording) for recording in each.recordings]}
            for each in report.layers
        ],
        "sites": [{**vars(site), "name": site.name, **asdict(size)} for site, size in report.sites],
        "totals": {"all": _total(report.every), "chosen": _total(report.chosen)},
    }


def _total(total: Total) -> dict[str, int]:
    return {"layers": total.layers, "sites": total.sites, "weights": total.weights, **asdict(total.size)}
