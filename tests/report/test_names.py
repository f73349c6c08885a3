"""What layers and sites are called."""

from nullbooth_cli.report.names import layer_names, site_name

DOWN = "down_blocks.0.attentions.1.transformer_blocks.0.attn2"
MID = "mid_block.attentions.0.transformer_blocks.0.attn2"


def test_layers_lose_the_ending_that_all_share() -> None:
    called = layer_names([DOWN, MID, DOWN])
    assert called == {DOWN: "down_blocks.0.attentions.1", MID: "mid_block.attentions.0"}
    assert site_name(called, DOWN, "k") == "down_blocks.0.attentions.1 k"
    assert site_name(called, MID, "q", 901.5) == "mid_block.attentions.0 q t 901.5"


def test_layers_that_end_differently_stay_whole() -> None:
    second = DOWN.replace("blocks.0.attn2", "blocks.1.attn2")
    assert list(layer_names([DOWN, second]).values()) == [name.removesuffix(".attn2") for name in (DOWN, second)]
