"""The JSON document of layers: its keys and values, from a report written out by hand."""

from nullbooth_cli.collect.preview import AttentionReport, LayerReport, LayersReport, RecordingReport, RecordingSize, Total
from nullbooth_cli.collect.unprotected import DefaultLora
from nullbooth_cli.datatypes import Site
from nullbooth_cli.report.json_document import to_json
from nullbooth_cli.report.layers import layers_document


def test_the_document_has_every_key_of_the_report() -> None:
    site = Site("mid.attn2", "k", "input", ("mid.attn2.to_k.weight", "mid.attn2.to_v.weight"), True, 2, 5, steps=(2, 1))
    report = LayersReport(
        model="toy",
        pipeline="StableDiffusionPipeline",
        num_steps=4,
        layers=(LayerReport(0, "mid.attn2", (RecordingReport("mid.attn2.k", ("k", "v"), True),)),),
        attention=(AttentionReport("mid.attn2", "cross", "it is so"),),
        sites=((site, RecordingSize(20, 240)),),
        every=Total(layers=1, sites=1, weights=2, feature_bytes_per_prompt=20, moment_bytes=240),
        chosen=Total(layers=1, sites=1, weights=1, feature_bytes_per_prompt=20, moment_bytes=240),
    )
    lora = DefaultLora(
        trainer="kohya",
        modules=3,
        protected=2,
        unprotected={"attn1": 1},
        linear_layers=("attn1",),
        sites=1,
        moment_bytes=240,
    )
    recording = {"site": "mid.attn2.k", "features": ["k", "v"], "chosen": True}
    size = {"feature_bytes_per_prompt": 20, "moment_bytes": 240}
    assert to_json(layers_document(report, (lora,))) == {
        "schema_version": 1,
        "model": "toy",
        "pipeline": "StableDiffusionPipeline",
        "steps": 4,
        "layers": [{"index": 0, "layer": "mid.attn2", "recordings": [recording]}],
        "attention": [{"layer": "mid.attn2", "attends_to": "cross", "why": "it is so"}],
        "sites": [{**to_json(site), "name": "mid.attn2.k", **size, "steps": [2, 1]}],
        "totals": {
            "all": {"layers": 1, "sites": 1, "weights": 2, **size},
            "chosen": {"layers": 1, "sites": 1, "weights": 1, **size},
        },
        "default_loras": [
            {
                "trainer": "kohya",
                "modules": 3,
                "protected": 2,
                "unprotected": {"attn1": 1},
                "linear_layers": ["attn1"],
                "sites": 1,
                "moment_bytes": 240,
            }
        ],
    }
