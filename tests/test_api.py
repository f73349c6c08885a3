"""The Python interface: what it gives, what it refuses, and that it stays light."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.nullspace.usable import check_model
from nullbooth_cli.settings.config import Config, build_config
from nullbooth_cli.store import Store
from nullbooth_cli.tensors import tensor_digest
from tests.support.builders import ROOT, execute, features_at

NAME = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"


@pytest.fixture
def opened(finished: Any) -> nb.OpenStore:
    return nb.open_store(finished[1].path)


@pytest.fixture
def copied(finished: tuple[Config, Store], tmp_path: Path) -> tuple[Config, Store]:
    shutil.copytree(finished[1].path, tmp_path / "run.zarr")
    return finished[0], Store.open(tmp_path / "run.zarr", write=True)


def test_looking_imports_no_torch(finished: Any) -> None:
    code = (
        "import sys, nullbooth_cli as nb; assert not {'zarr', 'numpy', 'torch'} & set(sys.modules); "
        f"store = nb.open_store({str(finished[1].path)!r}); site = store.sites()[0]; store.schedule(); store.moment(site, 0); "
        "store.moment(site); store.projector(site).dense(); store.projectors(); store.provenance(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nb.nothing  # noqa: B018  # looking it up is the test


def test_moments_are_those_of_the_arrays(opened: nb.OpenStore, finished: Any) -> None:
    store = finished[1]
    for site in opened.sites():
        sums = [store.moments.read_one(site, t) for t in range(site.num_recorded(4))]
        for step in opened.schedule():
            sum_xxt, sum_x, count = sums[0 if site.timestep_free else step.index]
            found = opened.moment(site.name, step.index)
            np.testing.assert_allclose(found.second_moment, sum_xxt / count, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(found.mean, sum_x / count)
            assert found.count == count
        of_all = opened.moment(site)
        assert of_all.count == sum(s[2] for s in sums)
        np.testing.assert_allclose(of_all.second_moment, sum(s[0] for s in sums) / of_all.count, rtol=1e-10, atol=1e-12)


def test_projectors_are_those_of_the_store(opened: nb.OpenStore, finished: Any) -> None:
    store = finished[1]
    by_weight = opened.projectors()
    assert set(by_weight) == {weight for site in opened.sites() for weight in site.weights}
    for site in opened.sites():
        null = store.projectors.read_eigenvectors(site, 0)[:, : store.projectors.read_cut(site, 0).null_dim]
        np.testing.assert_allclose(opened.projector(site.name).dense(), null @ null.T, atol=1e-12)
        assert len({id(by_weight[weight]) for weight in site.weights}) == 1


def test_what_is_not_there(opened: nb.OpenStore) -> None:
    with pytest.raises(ConfigError, match=r"no site nothing\.q in"):
        opened.moment("nothing.q")
    with pytest.raises(ConfigError, match="no step 4"):
        opened.moment(opened.sites()[0], 4)
    with pytest.raises(ConfigError, match="pooled: there is one for each site"):
        opened.projector(opened.sites()[0], 0)


def test_before_the_stage_is_complete(copied: tuple[Config, Store]) -> None:
    _, store = copied
    store.write_record("project", None)
    opened = nb.open_store(store.path)
    assert opened.moment(opened.sites()[0]).count
    with pytest.raises(StageError, match=r"project in .* is missing"):
        opened.projectors()


def test_per_timestep_projectors_are_for_looking(copied: tuple[Config, Store]) -> None:
    config, store = copied
    data = config.model_dump()
    execute(build_config({**data, "project": {**data["project"], "scope": "timestep"}}), "project", store=store, force=True)
    opened = nb.open_store(store.path)
    assert opened.projector(opened.sites()[0], 2).null_dim
    with pytest.raises(ConfigError, match="one per timestep"):
        opened.projector(opened.sites()[0])
    with pytest.raises(ConfigError, match="cannot constrain a weight"):
        opened.projectors()


class TestTheModel:
    def test_the_one_that_was_collected_from(self, opened: nb.OpenStore, pipe: Any) -> None:
        assert set(opened.projectors(pipe.unet)) == set(opened.projectors(pipe.unet.state_dict()))

    def test_one_changed_weight_is_named(self, opened: nb.OpenStore, pipe: Any) -> None:
        tensors = dict(pipe.unet.state_dict())
        tensors[NAME] = tensors[NAME] + 1e-3
        with pytest.raises(ConfigError, match=rf"belong to another model.*: 1 weights differ, such as {re.escape(NAME)}"):
            opened.projectors(tensors)

    def test_a_missing_weight_is_named(self, opened: nb.OpenStore, pipe: Any) -> None:
        tensors = {name: tensor for name, tensor in pipe.unet.state_dict().items() if name != NAME}
        with pytest.raises(ConfigError, match=rf"1 weights are missing, such as {re.escape(NAME)}"):
            opened.projectors(tensors)

    def test_what_is_not_protected_may_differ(self, opened: nb.OpenStore, pipe: Any) -> None:
        assert opened.projectors({**pipe.unet.state_dict(), "conv_in.weight": torch.zeros(1)})

    def test_a_lower_precision_is_another_model(self, opened: nb.OpenStore, pipe: Any) -> None:
        rounded = {name: tensor.bfloat16() for name, tensor in pipe.unet.state_dict().items()}
        with pytest.raises(ConfigError, match=r"belong to another model.*differ"):
            opened.projectors(rounded)

    def test_a_higher_precision_is_rounded_first(self, copied: tuple[Config, Store], pipe: Any) -> None:
        _, store = copied
        record, tensors = store.records["collect"], pipe.unet.state_dict()
        digests = {name: tensor_digest(tensors[name].bfloat16(), "bfloat16") for name in record["tensors"]}
        store.write_record("collect", {**record, "tensors": digests})
        store.write_config({**store.config, "dtype": "bfloat16"})
        check_model(store, tensors)
        with pytest.raises(ConfigError, match="belong to another model"):
            check_model(store, {**tensors, NAME: tensors[NAME] * 1.02})

    def test_a_store_that_does_not_know(self, copied: tuple[Config, Store], pipe: Any) -> None:
        _, store = copied
        store.write_record("collect", {k: v for k, v in store.records["collect"].items() if k != "tensors"})
        with pytest.raises(ConfigError, match="does not record which weights"):
            nb.open_store(store.path).projectors(pipe.unet)


def test_provenance_names_everything(opened: nb.OpenStore, copied: tuple[Config, Store], pipe: Any) -> None:
    found = opened.provenance()
    assert json.loads(json.dumps(found)) == found
    assert set(found["tensors"]) == {weight for site in opened.sites() for weight in site.weights}
    assert found["prompts"]["count"] == 8
    assert [step["timestep"] for step in found["schedule"]] == [step.timestep for step in opened.schedule()]
    assert found["settings"]["collect"]["collect.guidance_scale"] == 4.0
    assert found["settings"]["project"]["project.relative_threshold"] == 0.05
    assert found["packages"]["torch"] == version("torch")
    config, store = copied
    data = config.model_dump()
    execute(build_config({**data, "project": {**data["project"], "relative_threshold": 0.1}}), "project", store=store, force=True)
    assert nb.open_store(store.path).provenance()["fingerprint"] != found["fingerprint"]


def test_the_page_runs(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished[1].path, tmp_path / "runs/toy.zarr")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/reference/python.md").read_text(), re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 6
    site = next(s for s in names["store"].sites() if NAME in s.weights)
    k = np.concatenate([features_at(finished[1], site, t, u).reshape(-1, site.dim) for t in range(4) for u in range(3)]).astype(
        np.float64
    )
    drift = names["projectors"][NAME].apply(names["change"]).numpy() @ k.T
    assert np.linalg.norm(drift) < 0.3 * np.linalg.norm(names["change"].numpy() @ k.T)
    with pytest.raises(ConfigError, match="another model"):
        names["store"].projectors(names["pipe"].unet)
