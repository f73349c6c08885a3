"""What `nullbooth doctor` finds about a config, as tests read it."""

from pathlib import Path
from typing import Any

from nullbooth_cli.pipeline.doctor.examination import Examination
from nullbooth_cli.pipeline.doctor.examine import Finding, examine
from nullbooth_cli.settings.config import Config
from tests.support.builders import small_config

Q_ONLY = {"q_features": True, "k_features": False, "v_features": False, "out_features": False}
K_ONLY = {**Q_ONLY, "q_features": False, "k_features": True}


def little(store: Path, **changes: Any) -> Config:
    """One layer and feature, with enough steps for its 80 dimensions; everything about it is as it should be."""
    few = {
        "schedule__num_denoising_steps": 16,
        "collect__cross_attention_layers": ["mid_block*"],
        "collect__collect_features": Q_ONLY,
        "collect__batch_size": 4,
    }
    return small_config(store, **few | changes)


def findings(config: Config, device: str = "cpu") -> dict[str, Finding]:
    """What every check finds, by the name of the check."""
    return {finding.check: finding for finding in examine(Examination(lambda: (config, "c.yaml", None), device))}


def found(check: str, config: Config, device: str = "cpu") -> Finding:
    """What one check finds; those after it are not made."""
    every = examine(Examination(lambda: (config, "c.yaml", None), device))
    return next(finding for finding in every if finding.check == check)


def refused(finding: Finding, *words: str, verdict: str = "error") -> None:
    """The check failed, and says these words in its text or its hint."""
    assert finding.verdict == verdict, finding
    assert finding.checked
    assert finding.hint
    for word in words:
        assert word in f"{finding.text}\n{finding.hint}"


def files(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, to see that nothing was written."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
