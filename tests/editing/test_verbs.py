"""What an edit is asked for: every verb, and every mistake in a file of them."""

from pathlib import Path

import pytest

from nullbooth_cli.editing.verbs import Pair, as_mapping, debiased, erased, mapped, read_edits, require_pairs
from nullbooth_cli.errors import ConfigError

FILE = """
map:
  - a sks star: a red star
  - a [zwx]: a [ring]
erase:
  - circle
  - square: triangle
debias:
  - doctor: [male, female]
  - a photo of a [nurse]: [male, "no"]
"""


def written(folder: Path, text: str) -> str:
    (folder / "pairs.yaml").write_text(text)
    return str(folder / "pairs.yaml")


def test_each_verb_has_its_targets() -> None:
    assert mapped("a sks", "a star") == [Pair("a sks", ("a star",))]
    assert erased("circle", around=None) == erased("circle", " ", None) == [Pair("circle", ("",))], "the empty prompt"
    assert erased("circle", "square", None) == [Pair("circle", ("square",))]
    assert erased("a [circle] here") == [Pair("a [circle] here", ("",))]
    assert debiased("doctor", ["male", " female "], None) == [Pair("doctor", ("male doctor", "female doctor"))]
    assert debiased("a [doctor] at work", ["old", "young"])[0].targets == ("a old [doctor] at work", "a young [doctor] at work")


def test_words_are_edited_in_prompts_around_them() -> None:
    assert mapped("sks", "star")[:2] == [Pair("[sks]", ("[star]",)), Pair("image of [sks]", ("image of [star]",))]
    assert len(mapped("sks", "red star")) == 1, "a prompt"
    assert Pair("photo of [red circle]", ("",)) in erased("red circle")
    assert Pair("style of [Monet]", ("style of [art]",)) in erased("Monet", "art", "style")
    assert Pair("photo of [nurse]", ("photo of [male nurse]", "photo of [female nurse]")) in debiased("nurse", ["male", "female"])


@pytest.mark.parametrize(
    ("verb", "given", "message"),
    [
        (mapped, (" ", "a"), "the source of 'a' is empty"),
        (mapped, ("a", ""), "the target of 'a' is empty"),
        (mapped, ("a []", "b"), r"'a \[\]' does not mark one subject"),
        (mapped, ("a [b]", "a b"), "'a b' is its own target"),
        (mapped, ("a\0", "b"), "has a NUL character"),
        (erased, ("",), "a concept to erase is empty"),
        (erased, ("a", "a"), "'a' is its own target"),
        (erased, ("a {}",), r"'a \{\}' is not a word to edit"),
        (debiased, ("", ["x", "y"]), "a profession to debias is empty"),
        (debiased, ("nurse", ["x", " "]), "an attribute of 'nurse' is empty"),
        (debiased, ("nurse", ["x"]), "'nurse' is debiased over x"),
        (debiased, ("nurse", ["x", "x "]), "'nurse' is debiased over x, x"),
        (debiased, ("nurse", []), "'nurse' is debiased over nothing"),
    ],
)
def test_a_verb_without_a_meaning_is_refused(verb: object, given: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        verb(*given)  # type: ignore[operator]


def test_a_file_has_lists_by_verb(tmp_path: Path) -> None:
    assert as_mapping(read_edits(written(tmp_path, FILE), None).pairs) == {
        "a sks star": "a red star",
        "a [zwx]": "a [ring]",
        "circle": "",
        "square": "triangle",
        "doctor": ("male doctor", "female doctor"),
        "a photo of a [nurse]": ("a photo of a male [nurse]", "a photo of a no [nurse]"),
    }


def test_a_file_of_lines_is_pairs(tmp_path: Path) -> None:
    read = read_edits(written(tmp_path, 'a sks: a red star\n"no": yes\nmap: star\n'), None).pairs
    assert read == [Pair("a sks", ("a red star",)), Pair("no", ("yes",)), Pair("map", ("star",))]


def test_a_mapping_serves_as_a_list(tmp_path: Path) -> None:
    assert read_edits(written(tmp_path, "map:\n  a: b\n  c: d\n"), None).pairs == [Pair("a", ("b",)), Pair("c", ("d",))]


def test_every_mistake_is_named(tmp_path: Path) -> None:
    text = "map: [{a: 1}, {'': c}, d]\nerasee: [x]\nerase: [[y], ~]\ndebias: [x, {y: male}, {z: [q]}, {w: [1, 2]}]\n"
    with pytest.raises(ConfigError) as caught:
        read_edits(written(tmp_path, text))
    first, *others = caught.value.message.splitlines()
    assert first == f"{tmp_path}/pairs.yaml: map: a: 1 has 1, which is not a text"
    assert [line.strip() for line in others] == [
        "the source of 'c' is empty",
        "map: d is not `source: target`",
        "'erasee' is not map, erase, debias or settings",
        "erase: ['y'] is not `concept` or `concept: neutral`",
        "erase: None has None, which is not a text",
        "debias: x is not `profession: [one, another]`",
        "debias: y: male is not `profession: [one, another]`",
        "'z' is debiased over q",
        "debias: w: [1, 2] has 1, which is not a text",
    ]
    assert "put it in quotes" in caught.value.hint


@pytest.mark.parametrize("text", ["", "- x\n- y", "just text"])
def test_a_file_without_pairs_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="has no pairs of prompts") as caught:
        read_edits(written(tmp_path, text))
    assert "under map, erase and debias" in caught.value.hint


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="and 2 more") as caught:
        read_edits(written(tmp_path, "\n".join(f"a{n}: {n}" for n in range(12))))
    assert len(caught.value.message.splitlines()) == 11


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file at") as caught:
        read_edits(str(tmp_path / "nothing.yaml"))
    assert "`source: target`" in caught.value.hint


def test_a_source_that_appears_twice_is_named_whatever_its_brackets() -> None:
    pairs = [*mapped("a [b]", "c"), *erased("x", "", None), *mapped("a b", "d"), *erased("x", "y", None), *mapped("z", "w", None)]
    with pytest.raises(ConfigError, match="'a b', 'x' appear twice as a source"):
        as_mapping(pairs)


def test_what_an_edit_takes_is_checked_whole() -> None:
    require_pairs({"a [b]": "c [d]", "x": ("y", "z"), "circle": ""})
    for pairs, message in (
        ({}, "no prompt to edit"),
        ({"a": ()}, "'a' has no target"),
        ({"a": ("b", "a")}, "'a' is its own target"),
        ({"a [b]": "c", "a b": "d"}, "'a b' appears twice as a source"),
        ({"a": "[b"}, "does not mark one subject"),
    ):
        with pytest.raises(ConfigError, match=message):
            require_pairs(pairs)
