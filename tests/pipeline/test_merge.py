"""Stores that are merged: sums of sums, and what does not agree."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullbooth_cli.errors import ConfigError, StageError, StoreError
from nullbooth_cli.pipeline import merge
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, states_of
from tests.support.stages import config_of

pytestmark = pytest.mark.usefixtures("fast")


class TestMerging:
    def parts(self, tmp_path: Path, **changes: Any) -> list[Store]:
        return [
            execute(config_of(tmp_path / f"{name}.zarr", prompts, **changes), "collect", "covariance")
            for name, prompts in (("a", PROMPTS[:3]), ("b", PROMPTS[3:6]))
        ]

    def merged(self, tmp_path: Path, sources: list[Store]) -> Store:
        out = Store.create(tmp_path / "all.zarr", sources[0].config)
        for _ in merge.merge(sources, out):
            pass
        return out

    @pytest.mark.parametrize("keep", ["features", "moments"])
    def test_sums_of_sums(self, tmp_path: Path, keep: str) -> None:
        sources = self.parts(tmp_path, collect__keep=keep)
        out = self.merged(tmp_path, sources)
        for number, site in enumerate(out.sites):
            for t in range(site.num_recorded(out.num_steps)):
                found = out.moments.read_one(site, t)
                one, two = (source.moments.read_one(source.sites[number], t) for source in sources)
                assert found[2] == one[2] + two[2]
                np.testing.assert_allclose(found[0], one[0] + two[0], rtol=1e-12)
        config = build_config(out.config)
        assert set(states_of(config).values()) == {"complete", "missing"}
        execute(config, "project")
        more = config.model_copy(update={"original_knowledge_prompts": [*config.original_knowledge_prompts, PROMPTS[7]]})
        execute(more, "collect")
        assert out.moments.counts(out.sites[0])[0] == 7 * out.sites[0].num_tokens
        with pytest.raises(StoreError, match="has a collection already"):
            list(merge.merge(sources, out))

    def test_what_does_not_agree_is_refused(self, tmp_path: Path) -> None:
        a = execute(config_of(tmp_path / "a.zarr", PROMPTS[:3]), "collect", "covariance")
        b = execute(config_of(tmp_path / "b.zarr", PROMPTS[3:6], collect__guidance_scale=2.0), "collect", "covariance")
        c = execute(config_of(tmp_path / "c.zarr", PROMPTS[2:4]), "collect", "covariance")
        d = execute(config_of(tmp_path / "d.zarr", PROMPTS[6:7]), "collect")
        with pytest.raises(ConfigError, match=r"collect\.guidance_scale: 4\.0 in .*a\.zarr, 2\.0 in .*b\.zarr"):
            merge.check_mergeable([a, b])
        with pytest.raises(ConfigError, match=rf"1 prompts are in .*a\.zarr and in .*c\.zarr, such as '{PROMPTS[2]}'"):
            merge.check_mergeable([a, c])
        with pytest.raises(StageError, match=r"covariance in .*d\.zarr is missing"):
            merge.check_mergeable([a, d])
