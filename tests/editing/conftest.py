"""Fixtures of edits."""

import pytest

import nullbooth_cli as nb
from nullbooth_cli.settings.config import build_config
from tests.support.builders import ROOT, execute


@pytest.fixture(scope="session")
def text_store(tmp_path_factory: pytest.TempPathFactory) -> nb.OpenStore:
    """All of the toy's prompts, k and v only: the text encoder is all that runs."""
    config = build_config(
        {
            "store": str(tmp_path_factory.mktemp("text") / "run.zarr"),
            "original_knowledge_prompts": str(ROOT / "dataset/prompts/toy.txt"),
            "collect": {"batch_size": 48, "keep": "moments", "collect_features": {"q_features": False, "out_features": False}},
        }
    )
    return nb.OpenStore(execute(config, "schedule", "collect", "covariance", "project"))
