"""The prompt files in dataset/: made by their script, balanced, distinct, and written as people write."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataset.make import prompts as make_prompts
from nullbooth_cli.settings.class_prompts import class_prompts
from nullbooth_cli.settings.prompts import load_prompts
from tests.support.builders import ROOT

FILES = [ROOT / "dataset/prompts" / name for name in make_prompts.COUNTS]
KNOWLEDGE, DOG, TEMPLATES = FILES
DOGS = r"dogs?|pupp(y|ies)|hounds?|terriers?|poodles?|beagles?|collies?|retrievers?|huskies|spaniels?"
NAMED = """
    van gogh|monet|picasso|dali|warhol|rembrandt|vermeer|hokusai|hiroshige|klimt|mucha|kahlo|banksy|rutkowski|artgerm|miyazaki
    hopper|kandinsky|matisse|mondrian|cezanne|gauguin|renoir|degas|escher|rockwell|giger|caravaggio|michelangelo|leonardo|da vinci
    botticelli|bosch|munch|basquiat|hockney|beksinski|o'keeffe|ansel adams|leibovitz|haring|kusama|tim burton|ghibli
    musk|bezos|obama|trump|biden|putin|beyonce|swift|rihanna|messi|ronaldo|einstein|shakespeare|mozart|beethoven|chaplin
    frisbee|polaroid|lego|jeep|vespa|kodak|leica|nikon|coca-cola|coke|pepsi|starbucks|mcdonald's|nike|adidas|disney|pixar|marvel
    barbie|nintendo|playstation|pokemon|ikea|google|iphone|tesla|ferrari|porsche|bmw|toyota|volkswagen|ford|chevrolet|cadillac
    harley|boeing|airbus|cessna|jacuzzi|popsicle|crayola|photoshop|unreal|octane|blender|artstation|deviantart|netflix|youtube
    midjourney|gopro|fujifilm|instagram|tiktok|rolex|gucci|chanel|steinway|stradivarius|tupperware|velcro|jello|nutella|oreo
"""
NAMES = rf"\b({'|'.join(NAMED.strip().splitlines())})\b".replace("    ", "")


def lines(path: Path) -> list[str]:
    """The prompts of a file, or its templates: they are lines too."""
    return [prompt.text for prompt in load_prompts(str(path))]


def test_the_script_writes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "lists").symlink_to(ROOT / "dataset/lists")
    monkeypatch.setattr(make_prompts, "FOLDER", tmp_path)
    make_prompts.main()
    assert {path.name: path.read_text() for path in (tmp_path / "prompts").iterdir()} == {
        path.name: path.read_text() for path in FILES
    }


@pytest.mark.parametrize(("lists", "topics"), [("knowledge", 10), ("dog", 10), ("class", 5)])
def test_topics_take_turns(lists: str, topics: int) -> None:
    made = [topic for topic, _ in make_prompts.make(ROOT / f"dataset/lists/{lists}.yaml", count=71) if topic != "plain"][:70]
    assert set(Counter(made).values()) == {70 // topics}
    assert len(set(made[:topics])) == topics


def test_every_list_of_the_templates_is_used() -> None:
    """And nearly all of its phrases: 150 templates go round most lists once."""
    lists = make_prompts.yaml.safe_load((ROOT / "dataset/lists/class.yaml").read_text())
    text = TEMPLATES.read_text()
    for topic in lists.keys() - {"plain", "shared"}:
        for group, of in lists[topic].items():
            for name in of.keys() - {"patterns"}:
                assert any(phrase in text for phrase in of[name].splitlines()), (topic, group, name)


def test_lists_that_are_too_short_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "lists.yaml").write_text("shared: {}\nsky:\n  sun:\n    patterns: a yellow sun\n")
    with pytest.raises(ValueError, match="200 tries gave no new prompt, the last was 'a yellow sun'"):
        list(make_prompts.make(tmp_path / "lists.yaml", count=2))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_two_prompts_share_half_of_their_words(path: Path) -> None:
    prompts = lines(path)
    assert len(prompts) == make_prompts.COUNTS[path.name]
    found = [make_prompts.words(prompt) for prompt in prompts]
    index = {word: column for column, word in enumerate(sorted(set().union(*found)))}
    has = np.zeros((len(found), len(index)), dtype=np.float32)  # [prompts, words]
    for row, of_prompt in enumerate(found):
        has[row, [index[word] for word in of_prompt]] = 1
    common, sizes = has @ has.T, has.sum(axis=1)
    jaccard = common / (sizes[:, None] + sizes[None, :] - common)
    np.fill_diagonal(jaccard, 0)
    assert jaccard.max() < 0.5, [prompts[i] for i in np.unravel_index(jaccard.argmax(), jaccard.shape)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_prompts_are_short_enough_for_clip(path: Path) -> None:
    """At most 30 words: CLIP's own tokenizer made at most 2 tokens a word of these, 37 in all, of the 77 it takes."""
    sizes = [len(prompt.split()) for prompt in lines(path)]
    assert min(sizes) >= (2 if path == TEMPLATES else 3)  # two {}s
    assert max(sizes) <= 30
    assert np.percentile(sizes, 90) >= 1.8 * np.percentile(sizes, 10)  # short and long ones


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_prompts_are_written_well(path: Path) -> None:
    text = "".join(f"{prompt}\n" for prompt in class_prompts("owl")) if path == TEMPLATES else path.read_text()
    assert not re.findall(r"[{}_|]|  |,,| ,| \n", text)
    assert not re.findall(r"\b(?!chow)(\w+) \1\b", text)  # a word twice
    assert not re.findall(r"\b(an? \S+(?: \S+)?) and \1\b", text)  # a thing beside itself
    vowel, consonant = r"(?:[aeiou]|8|hour|hono|hones)", r"(?:uni|use|usu|euro|one\b|uku|uti)"  # how words begin when spoken
    assert not re.findall(rf"\ba (?!{consonant}){vowel}\w*|\ban (?!{vowel})\w+|\ban {consonant}\w*", text, re.IGNORECASE)
    assert not re.findall(NAMES, text, re.IGNORECASE)


def test_the_sets_are_about_different_things() -> None:
    assert not re.findall(rf"\b({DOGS})\b", KNOWLEDGE.read_text(), re.IGNORECASE)
    breeds = make_prompts.yaml.safe_load((ROOT / "dataset/lists/dog.yaml").read_text())["shared"]["breed"].splitlines()
    text = "|".join([DOGS, *breeds])
    assert [prompt for prompt in lines(DOG) if not re.search(rf"\b({text})\b", prompt)] == []
    mentions = Counter(breed for prompt in lines(DOG) for breed in breeds if breed in prompt)
    assert set(mentions) == set(breeds)
    assert max(mentions.values()) < 40
