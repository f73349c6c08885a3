"""Every check of a run that can start, and what is left out."""

import re
from pathlib import Path

import pytest

from nullbooth_cli.collect import batch_size
from nullbooth_cli.pipeline.doctor.checks import CHECKS
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute
from tests.support.doctor import K_ONLY, files, findings, found, little


class TestARunThatCanStart:
    def test_everything_is_ok_and_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batch_size, "time_step", lambda *_: 0.25)  # whatever this machine takes
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
        config = little(
            tmp_path / "runs/run.zarr",
            original_knowledge_prompts=str(tmp_path / "prompts.txt"),
            heldout_prompts=["a green cross on a black background"],
            collect__visual_attention_map=True,
        )
        before = files(tmp_path)
        every = findings(config)
        assert {finding.verdict for finding in every.values()} == {"ok"}, every
        assert list(every) == [check for check in CHECKS if check not in ("images", "tasks")]
        assert files(tmp_path) == before
        assert not (tmp_path / "runs").exists()
        assert every["layers"].text == "1 of 10 layers of attention to text match, with 1 projection"
        assert "takes 16 tokens" in every["tokenizer"].text
        assert every["batch"].text == "a step of 4 prompts takes 0.25 s"
        assert re.search(r"about \S+ MB to write, \S+ GB free", every["disk"].text)
        # 16 steps of 2 units, and 1 unit of held-out prompts.
        assert every["time"].text == "collect about 12 s; not estimated, because never run here: covariance, project"

    def test_what_the_run_does_without_is_not_mentioned(self, tmp_path: Path) -> None:
        every = findings(little(tmp_path / "run.zarr"))
        assert set(CHECKS) - set(every) == {"images", "held-out prompts", "tasks", "attention maps"}

    def test_a_store_that_is_begun_goes_on(self, begun: Config) -> None:
        before = files(Path(begun.store))
        every = findings(begun)
        assert {finding.verdict for finding in every.values()} == {"ok"}, every
        assert "collect partial (1 of 2 units)" in every["stages"].text
        assert "when it was last run here" in every["batch"].text
        assert files(Path(begun.store)) == before

    def test_a_store_that_is_finished(self, finished: tuple[Config, Store]) -> None:
        every = findings(finished[0])
        assert {finding.verdict for finding in every.values()} <= {"ok", "warning"}
        assert every["time"].text == "nothing is left to do"
        assert every["disk"].text.startswith("about 0 B to write")

    def test_the_time_is_that_of_the_forwards_which_are_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batch_size, "time_step", lambda *_: 10.0)
        # 16 steps and 2 units; the text of a U-Net needs no forward at all.
        assert "collect about 5 min" in found("time", little(tmp_path / "a.zarr")).text
        config = little(tmp_path / "a.zarr", collect__collect_features=K_ONLY)
        assert "collect about 0 s" in found("time", config).text

    def test_what_is_planned_is_what_is_written(self, tmp_path: Path) -> None:
        config = little(tmp_path / "run.zarr")
        text = found("disk", config).text
        store = execute(config, "schedule", "collect", "covariance", "project")
        arrays = sum(store.nbytes(name) for name in ("features", "moments", "projectors"))
        said = re.match(r"about (\S+) MB", text) or re.match(r"about (\S+) kB", text)
        assert said
        planned = float(said[1]) * (1e6 if " MB to" in text else 1e3)
        assert planned == pytest.approx(arrays, rel=0.05)
