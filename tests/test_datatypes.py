"""The small values of every room: ids of prompts, keys of steps, and the sites that filters choose."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Prompt, Site, Sums, choose_sites, is_file_name, split_weight, step_key
from nullbooth_cli.errors import ConfigError, StoreError


@pytest.mark.parametrize(
    ("strategy", "index", "timestep", "key"),
    [
        (None, 0, 999.0, "timestep_0999"),
        (None, 9, 0.0, "timestep_0000"),
        ("Euler", 0, 999.0, "alpha_00_9e2"),
        ("Euler", 7, 12.0, "alpha_07_1e1"),
        ("Euler", 11, 0.0, "alpha_11_0e0"),
        ("Euler", 3, 517.24, "alpha_03_5e2"),
    ],
)
def test_step_keys(strategy: str | None, index: int, timestep: float, key: str) -> None:
    assert step_key(strategy, index, timestep) == key


@given(st.integers(0, 9999), st.integers(0, 99))
def test_step_key_keeps_the_leading_digit(timestep: int, index: int) -> None:
    prefix, position, short = step_key("model", index, float(timestep)).split("_")
    assert (prefix, int(position)) == ("alpha", index)
    assert float(short) <= timestep < float(short) + 10 ** int(short[-1])


def test_the_id_of_a_prompt_is_of_its_text_and_image() -> None:
    assert Prompt("a dog").id == hashlib.sha256(b"a dog").hexdigest()[:12]
    assert Prompt("a dog", "0a1b").id == hashlib.sha256(b"a dog\x000a1b").hexdigest()[:12]


def test_the_mean_is_the_sum_over_the_count() -> None:
    x = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(Sums(x.T @ x, x.sum(0), len(x)).mean, x.mean(0))


@pytest.mark.parametrize(
    ("weight", "layer", "feature"),
    [
        ("mid.attn2.to_q.weight", "mid.attn2", "q"),
        ("up.1.attn2.to_out.0.weight", "up.1.attn2", "out"),
        ("blocks.3.attn.add_k_proj.weight", "blocks.3.attn", "add_k"),
        ("mid.transformer_blocks.0.ff.net.0.proj.weight", "mid.transformer_blocks.0", "ff_in"),
        ("mid.transformer_blocks.0.ff.net.2.weight", "mid.transformer_blocks.0", "ff_out"),
        ("blocks.3.ff_context.net.0.proj.weight", "blocks.3", "add_ff_in"),
        ("blocks.3.ff_context.net.2.weight", "blocks.3", "add_ff_out"),
        ("single_transformer_blocks.7.proj_mlp.weight", "single_transformer_blocks.7", "ff_in"),
        ("single_transformer_blocks.7.proj_out.weight", "single_transformer_blocks.7", "proj_out"),
        ("mid.attentions.0.proj_in.weight", "mid.attentions.0", "proj_in"),
        ("blocks.3.norm1_context.linear.weight", "blocks.3.norm1_context", "modulation"),
        ("single_transformer_blocks.7.norm.linear.weight", "single_transformer_blocks.7.norm", "modulation"),
        ("norm_out.linear.weight", "norm_out.linear", "linear"),
        ("proj_out.weight", "proj_out", "linear"),
        ("mid.resnets.0.time_emb_proj.weight", "mid.resnets.0.time_emb_proj", "linear"),
    ],
)
def test_a_weight_is_split_into_layer_and_feature(weight: str, layer: str, feature: str) -> None:
    assert split_weight(weight) == (layer, feature)


@pytest.mark.parametrize("name", ["mid.attn2.to_q.bias", "mid.attn2.to_q", ".weight"])
def test_only_weights_have_a_layer_and_a_feature(name: str) -> None:
    with pytest.raises(StoreError, match="is not the weight of a projection"):
        split_weight(name)


class TestSites:
    """Two sites: the text of a layer in the middle and of one above it, and the queries of the first."""

    text = Site("mid.attn2", "k", "input", ("mid.attn2.to_k.weight", "up.attn2.to_v.weight"), True, 4, 6)
    queries = Site("mid.attn2", "q", "input", ("mid.attn2.to_q.weight",), False, 2, 3)

    def test_its_name_and_its_projections(self) -> None:
        assert self.text.name == "mid.attn2.k"
        assert self.text.projections == (("mid.attn2", "k"), ("up.attn2", "v"))

    def test_what_no_timestep_changes_is_stored_once(self) -> None:
        assert (self.text.num_recorded(30), self.queries.num_recorded(30)) == (1, 30)

    @pytest.mark.parametrize(
        ("layer", "feature", "name", "chosen"),
        [
            (None, None, None, "kq"),
            ("up", None, None, "k"),
            ("up.attn2", "v", None, "k"),
            ("m*", "q", None, "q"),
            (None, None, "*.q", "q"),
            (None, None, "mid.attn2.k", "k"),
        ],
    )
    def test_filters_choose_by_every_projection(
        self, layer: str | None, feature: str | None, name: str | None, chosen: str
    ) -> None:
        found = choose_sites([self.text, self.queries], layer, feature, name)
        assert "".join(site.feature for site in found) == chosen

    def test_layer_and_feature_must_be_of_one_projection(self) -> None:
        with pytest.raises(ConfigError, match="no site feeds the feature k of a layer up") as caught:
            choose_sites([self.text, self.queries], "up", "k")
        assert caught.value.hint == "choose one of v"
        with pytest.raises(ConfigError, match="no site feeds the feature out of any layer") as caught:
            choose_sites([self.text, self.queries], None, "out")
        assert caught.value.hint == "choose one of k, v, q"

    def test_the_hint_is_about_the_filter_that_is_wrong(self) -> None:
        with pytest.raises(ConfigError, match="no layer matches down") as caught:
            choose_sites([self.text, self.queries], "down", "k")
        assert caught.value.hint.endswith("\n  mid.attn2")
        with pytest.raises(ConfigError, match="kv is not a feature") as caught:
            choose_sites([self.text, self.queries], "down", "kv")
        assert caught.value.hint == (
            "choose one of q, k, v, out, add_q, add_k, add_v, add_out, "
            "ff_in, ff_out, add_ff_in, add_ff_out, proj_in, proj_out, modulation, linear"
        )

    def test_an_unknown_name_lists_the_sites(self) -> None:
        with pytest.raises(ConfigError, match=r"no site mid\.attn2\.out") as caught:
            choose_sites([self.text, self.queries], None, None, "mid.attn2.out")
        assert caught.value.hint.endswith("\n  mid.attn2.k\n  mid.attn2.q")


@pytest.mark.parametrize("name", ["", ".", "..", "/etc", "a/b", "../a", "a\\b", "..\\a", "C:", "a\0b", "/", "a/../../b"])
def test_a_path_is_no_file_name(name: str) -> None:
    assert not is_file_name(name)


@pytest.mark.parametrize("name", ["down_blocks.0.attentions.0.attn2", "timestep_0999", "alpha_00_9e2", "a b", "..a", "é"])
def test_names_of_layers_and_steps_are_file_names(name: str) -> None:
    assert is_file_name(name)
