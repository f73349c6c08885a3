from pathlib import Path

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.prompts import load_prompts


def test_one_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffa dog\n\n  a cat  \n# a hash is a word\n")
    assert [p.text for p in load_prompts(str(tmp_path / "p.txt"))] == ["a dog", "a cat", "# a hash is a word"]


def test_ids_depend_on_the_text_alone() -> None:
    first, second = load_prompts(["a dog", "a cat"]), load_prompts(["a cat", "a bird", "a dog"])
    assert first[0].id == second[2].id
    assert len({prompt.id for prompt in second}) == 3


@pytest.mark.parametrize("content", ["", "\n \n"], ids=["empty", "blank"])
def test_no_prompt(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(ConfigError, match="holds no prompt"):
        load_prompts(str(tmp_path / "p.txt"))


def test_a_repeated_prompt_names_both_places(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a dog\na cat\na dog \n")
    with pytest.raises(ConfigError, match="line 3 repeats line 1: 'a dog'"):
        load_prompts(str(tmp_path / "p.txt"))
    with pytest.raises(ConfigError, match="prompt 2 repeats prompt 1"):
        load_prompts(["x", "x"])


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prompt file at"):
        load_prompts(str(tmp_path / "nothing.txt"))


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the prompt file"):
        load_prompts(str(tmp_path / "p.txt"))
