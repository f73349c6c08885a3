"""Whatever happens to one file of a store, it is named, or every number is the same.

    NULLBOOTH_DAMAGES=10000 python -m pytest tests/end_to_end/test_damage.py -k random

draws that many damages; by default there are as many as fit a test suite.
"""

import os
import random
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.builders import CIRCLES, MID, PROMPTS, execute, small_config
from tests.support.cli import nullbooth, saved
from tests.support.comparisons import assert_same_run
from tests.support.damage import Case, Damager, outcome, read_numbers
from tests.support.loading import use_loaded

DAMAGES = int(os.environ.get("NULLBOOTH_DAMAGES", "240"))
SMALL = {**MID, "original_knowledge_prompts": PROMPTS[:3]}
HELDOUT = {"heldout_prompts": CIRCLES[1:]}
MAPS = {"collect__visual_attention_map": True, "collect__attention_prompts": 1, "collect__attention_layers": ["mid_block*"]}
CASES: dict[str, dict[str, Any]] = {
    "features": {"collect__keep": "features", **HELDOUT},
    "moments": {"collect__keep": "moments"},
    "both": {"collect__keep": "both", **MAPS},
    "partial": {"collect__keep": "features", "project__scope": "timestep"},
}


def made(name: str, config: Config) -> None:
    if name != "partial":
        execute(config, "schedule", "collect", "covariance", "project")
        return
    # Covariance is at work on prompts that were added, and half of the projectors are made.
    execute(config, "schedule", "collect", "covariance")
    execute(config, "project", limit=2)
    more = config.model_copy(update={"original_knowledge_prompts": PROMPTS[:4]})
    execute(more, "collect")
    execute(more, "covariance", limit=1)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Case:
    """A store, and one that was made in the same way from other noise."""
    folder = tmp_path_factory.mktemp(request.param)
    configs = [
        small_config(folder / f"{name}.zarr", **SMALL, **CASES[request.param], collect__seed=seed)
        for name, seed in (("run", 0), ("other", 1))
    ]
    with pytest.MonkeyPatch.context() as patched:
        use_loaded(pipe, patched)
        for config in configs:
            made(request.param, config)
    run, other = configs
    if request.param == "partial":
        run = run.model_copy(update={"original_knowledge_prompts": PROMPTS[:4]})
    return Case(run, Path(other.store))


def test_random_damage_is_named_or_changes_nothing(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(14)
    damager = Damager(case, rng)
    expected = read_numbers(case.config, Store.open(case.path))
    found: Counter[str] = Counter()
    problems = []
    for number in range(DAMAGES // len(CASES)):
        kind = list(damager.kinds)[number % len(damager.kinds)]
        with damager.damaged(kind) as happened:
            try:
                found[f"{kind}: {outcome(case, happened, expected)}"] += 1
            except AssertionError as error:
                problems.append(str(error))
    with capsys.disabled():
        if "NULLBOOTH_DAMAGES" in os.environ:
            print(f"\n{case.path.parent.name}: {sum(found.values())} damages", dict(sorted(found.items())))
    assert not problems, f"{len(problems)} of {sum(found.values()) + len(problems)}:\n" + "\n".join(problems[:20])
    assert read_numbers(case.config, Store.open(case.path)) == expected


# Every kind of file, and what must be lost of the others for its rebuilding: nothing.
SITE = "mid_block.attentions.0.transformer_blocks.0.attn2.q"
FILES = [
    "schedule/sigmas/c.0",
    "schedule/keys/zarr.json",
    "prompts/text/c.0",
    "prompts/ids/zarr.json",
    f"features/{SITE}/c.0.1.0.0",
    f"features/{SITE}/zarr.json",
    f"parts/1-of-1.0/{SITE}/*",
    "parts/1-of-1.0/zarr.json",
    f"parts/1-of-1.0/{SITE}/zarr.json",
    f"moments/{SITE}/count/c.0",
    f"moments/{SITE}/sum_xxT/zarr.json",
    f"projectors/{SITE}/eigenvectors/c.0.0.0",
    f"projectors/{SITE}/leakage/zarr.json",
    "progress/collect/c.1",
    "progress/covariance/zarr.json",
    "progress/decomposition/c.0",
    "progress/project/zarr.json",
    "progress/zarr.json",
    "attention/*/image/c.*",
    "attention/*/image/zarr.json",
    "heldout/zarr.json",
    "heldout/schedule/sigmas/c.0",
    "heldout/prompts/text/zarr.json",
    f"heldout/moments/{SITE}/sum_x/c.0.0",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Config:
    """A complete store with everything that one may have."""
    config = small_config(
        tmp_path_factory.mktemp("whole") / "run.zarr", **SMALL, **MAPS, **HELDOUT, collect__keep="both", project__scope="timestep"
    )
    with pytest.MonkeyPatch.context() as patched:
        use_loaded(pipe, patched)
        execute(config, "schedule", "collect", "covariance", "project")
    return config


KINDS = ("folder", "flip", "delete")


@pytest.mark.parametrize(("number", "file"), list(enumerate(FILES)))
def test_the_hints_lead_to_the_numbers_of_before(whole: Config, tmp_path: Path, fast: None, number: int, file: str) -> None:
    """Each hint is typed until all is complete: three different commands at most, and none twice."""
    damage = os.environ.get("NULLBOOTH_DAMAGE", KINDS[number % len(KINDS)])
    config = whole.model_copy(update={"store": str(tmp_path / "run.zarr")})
    shutil.copytree(whole.store, config.store)
    for path in sorted(Path(config.store).glob(file)):
        data = bytearray(path.read_bytes())
        path.unlink()
        if damage == "folder":
            (path / "inside").mkdir(parents=True)
        elif damage == "flip":
            data[len(data) // 2] ^= 8
            path.write_bytes(data)
    arguments, typed = saved(config, tmp_path / "c.yaml"), list[str]()
    while (result := nullbooth("status", "--verify", "--check", "project", *arguments)).exit_code:
        assert re.search(r"\nhint: ", result.stderr), result.output
        command = result.stderr.partition("hint: ")[2].splitlines()[0]
        if "heldout/zarr.json" in result.stderr:
            assert command.startswith("put this file back")
            return
        assert command not in typed, result.stderr
        typed.append(command)
        assert len(typed) <= 3
        shown = nullbooth(*shlex.split(command)[1:], "-q")
        assert shown.exit_code == 0, (typed, shown.stderr)
    assert_same_run(Store.open(config.store), Store.open(whole.store))
