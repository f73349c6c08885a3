import csv
import io
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import load_config
from nullbooth_cli.settings.prompts import load_prompts


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
    with pytest.raises(ConfigError, match="has no prompt"):
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'file,Caption\n1.png,"a dog, running"\n\n2.png,a cat\n'),
        ("p.CSV", '\ufeffprompt\r\n"a dog, running"\r\na cat\r\n'),
        ("p.csv", 'text\n"a dog,\nrunning"\na cat\n'),
        ("p.jsonl", '{"id": 1, "text": "a dog, running"}\n\n{"prompt": " a cat ", "id": 2}\n'),
        ("p.jsonl", '"a dog, running"\r\n"a cat"'),
        ("p.json", '{"annotations": [{"caption": "a dog, running\\n"}, {"caption": "a cat"}, {"caption": "a dog, running"}]}'),
        ("p.txt", "a dog, running\na cat"),
        ("p.txt", "a dog, running\ra cat\r\n"),
        ("p.tsv", "Prompt\tCategory\na dog, running\tanimals\n\na cat\tanimals\n"),
        ("p.TSV", 'id\ttext\r\n1\t"a dog,\nrunning"\r\n2\ta cat\r\n'),
        ("p.json", '["a dog, running", "a cat"]'),
        ("p.json", '[{"prompt": "a dog, running", "id": 1}, {"Text": "a cat"}]'),
        ("p.ndjson", '"a dog, running"\n{"caption": "a cat"}'),
    ],
    ids=lambda value: None,
)
def test_the_ending_says_how_a_file_is_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, newline="")
    assert [p.text for p in load_prompts(str(tmp_path / name))] == ["a dog, running", "a cat"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a#b.csv", "prompt,title#1\nno,a dog\n"),
        ("a#b.jsonl", '{"prompt": "no", "title#1": "a dog"}'),
        ("a#b.json", '{"annotations": [{"prompt": "no", "title#1": "a dog"}]}'),
    ],
)
def test_a_column_can_be_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert load_prompts(f"{tmp_path / name}#title#1") == (Prompt("a dog"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "", "has no prompt"),
        ("p.csv", "prompt\n", "has no prompt"),
        ("p.csv", "a;prompt\n1;a dog\n", "the header has no prompt, caption or text; it has: a;prompt"),
        ("p.csv", "text,prompt\na,b\n", "the header has more than one prompt, caption or text; it has: text, prompt"),
        ("p.csv", "id,prompt\n1,a dog, running\n", "line 2 has 3 cells, the header has 2"),
        ("p.csv", "id,prompt\n1\n", "line 2 has 1 cells, the header has 2"),
        ("p.csv", 'prompt\n"a dog\n', "line 2 is not CSV: unexpected end of data"),
        ("p.csv", "id,prompt\n1,a dog\n2, \n", "the prompt of line 3 is ' '"),
        ("p.csv", "prompt\na dog\na cat\na dog\n", "line 4 repeats line 2: 'a dog'"),
        ("p.jsonl", '"a dog"\n{"prompt": "a cat"', "line 2 is not JSON: "),
        ("p.jsonl", '"a dog"\n["a cat"]', "line 2 is neither an object nor a string"),
        ("p.jsonl", '{"title": "a dog", "id": 3}', "line 1 has no prompt, caption or text; it has: title, id"),
        ("p.jsonl", '{"prompt": "a dog"}\n{"prompt": null}', "the prompt of line 2 is None"),
        ("p.jsonl", '"a dog"\n""', "the prompt of line 2 is ''"),
        ("p.jsonl", '"a dog"\n"a dog"', "line 2 repeats line 1"),
        ("p.json", "[", "p.json is not JSON: "),
        ("p.json", '{"captions": []}', "p.json has neither a list nor annotations"),
        ("p.json", '["a dog", ["a cat"]]', "entry 2 is neither an object nor a string"),
        ("p.json", '["a dog", {"caption": "a dog"}]', "entry 2 repeats entry 1: 'a dog'"),
        ("p.json", '{"annotations": [], "annotations": []}', "is not JSON: the key 'annotations' appears twice"),
        ("p.json", "[" * 100_000, "that is nested too deep"),
        ("p.json", '["\\ud800"]', "the prompt of entry 1 has half a surrogate pair"),
        ("p.jsonl", '"a\\u0000dog"', "the prompt of line 1 has a NUL character"),
        ("p.txt", "a dog\0", "it has NUL bytes"),
        ("p.tsv", "id\tprompt\n1\ta\tdog\n", "line 2 has 3 cells, the header has 2"),
        ("p.tsv", 'prompt\n"a dog\n', "line 2 is not TSV: unexpected end of data"),
        ("p.yaml", "- a dog\n", "prompts are not read from a .yaml file"),
        ("p.json", '{"annotations": [{"bbox": [1]}]}', "annotation 1 has no prompt, caption or text; it has: bbox"),
        ("p.json", '{"annotations": [{"caption": "a dog"}, 3]}', "annotation 2 is neither an object nor a string"),
        ("p.json", '{"annotations": [{"caption": 3}]}', "the prompt of annotation 1 is 3"),
        ("p.json", '{"annotations": []}', "has no prompt"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_prompts(str(tmp_path / name))
    assert str(tmp_path / name) in caught.value.message


def test_a_column_that_is_not_there_says_how_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,title\n1,a dog\n")
    with pytest.raises(ConfigError, match=r"no 'name'; it has: id, title") as caught:
        load_prompts(f"{tmp_path / 'p.csv'}#name")
    assert caught.value.hint.endswith("p.csv#NAME")


LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # of str.splitlines, beside \n and \r
CHARACTERS = st.characters(exclude_categories=("C", "Z"), include_characters=LINE_ENDS)
TEXTS = st.lists(st.text(CHARACTERS, min_size=1).filter(lambda text: text == text.strip()), min_size=1, unique=True)


@given(texts=TEXTS)
def test_every_kind_of_file_gives_back_what_was_written(texts: list[str]) -> None:
    table, tabs = io.StringIO(), io.StringIO()
    csv.writer(tabs, delimiter="\t").writerows([["id", "prompt"], *enumerate(texts)])
    csv.writer(table).writerows([["id", "prompt"], *enumerate(texts)])
    contents = {
        "p.csv": table.getvalue(),
        "p.jsonl": "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts),
        "p.tsv": tabs.getvalue(),
        "p.json": json.dumps({"annotations": [{"caption": text} for text in texts]}),
        "list.json": json.dumps(texts),
        "p.txt": "\n".join(texts),
    }
    with TemporaryDirectory() as folder:
        for name, content in contents.items():
            (Path(folder) / name).write_text(content, newline="", encoding="utf-8")
            assert [p.text for p in load_prompts(str(Path(folder) / name))] == texts
        (Path(folder) / "c.yaml").write_text(
            f"original_knowledge_prompts: {json.dumps(texts, ensure_ascii=False)}", encoding="utf-8"
        )
        assert load_config(Path(folder) / "c.yaml").original_knowledge_prompts == texts


@pytest.mark.parametrize("form", ["- a{}dog", '- "a{}dog"', "- 'a{}dog'", "- |-\n  a{}dog", "- >-\n  a{}dog"])
@pytest.mark.parametrize("end", LINE_ENDS[5:])
def test_yaml_does_not_split_a_prompt_where_only_python_does(form: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"original_knowledge_prompts:\n{form.format(end)}\n- a cat", encoding="utf-8")
    assert load_config(tmp_path / "c.yaml").original_knowledge_prompts == [f"a{end}dog", "a cat"]
