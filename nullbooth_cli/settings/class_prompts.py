"""Prompts of a class, such as dog: what a model should still draw once it has learned one of its members.

A class with a prompt file of its own (dog) has that; for others the noun is put into the shipped templates, whose lines have `{}`
for it and `{}s` for its plural.
"""

import re
from collections.abc import Iterable

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.shipped import CLASS_TEMPLATES, prompt_files, shipped
from nullbooth_cli.settings.texts import flaw, lines_of, quoted

MOST = 60  # characters of a noun: the longest template is then still shorter than CLIP's 77 tokens

# How words begin when spoken: with a vowel, although the letter is not one, or the other way round.
_VOWEL = re.compile(r"[aeiou]|hour|honou?r|honest|heir", re.IGNORECASE)
_CONSONANT = re.compile(r"uni(?!n)|use|usu|eu|ewe|one\b|once|uku|uti|ura|ufo\b", re.IGNORECASE)
_SPELLED = re.compile(r"[AEFHILMNORSX][A-Z]{1,2}\b")  # read letter by letter: SUV

_IRREGULAR = {"person": "people", "child": "children", "mouse": "mice", "louse": "lice", "goose": "geese", "foot": "feet"}
_IRREGULAR |= {"tooth": "teeth", "ox": "oxen", "die": "dice", "cactus": "cacti", "bus": "buses", "gas": "gases"}
_IRREGULAR |= {"quiz": "quizzes", "lens": "lenses", "human": "humans", "german": "Germans", "talisman": "talismans"}
_SAME = re.compile(r"\w*(fish|sheep|aircraft|spacecraft)|deer|moose|elk|bison|shrimp|squid|salmon|trout")
_F_TO_VES = re.compile(r"\w*(wolf|calf|shelf|leaf|loaf|thief|scarf|knife|wife)|half|elf|life|hoof")
_O_TO_OES = re.compile(r"\w*(potato|tomato|hero)|echo|mosquito|buffalo|torpedo|volcano")
_SINGULAR_IN_S = re.compile(r"(ss|us|is|as|lens|species|series|chassis|bos|cos|ors)$", re.IGNORECASE)  # glass, bus, iris, gas
_PLURAL = re.compile(r"\w*(people|children|mice|geese|feet|teeth|oxen|cattle|police|men|women|clothes)")


def with_class_prompts(prompts: str | Iterable[str], word: str | None) -> tuple[str, ...]:
    """The prompts (a text is one), and those of a class that is a word and a noun, such as sks dog, each once.

    Raises as `class_prompts` does.
    """
    given = [prompts] if isinstance(prompts, str) else prompts
    return tuple(dict.fromkeys([*given, *(class_prompts(word) if word is not None else ())]))


def class_prompts(noun: str) -> list[str]:
    """Prompts of a class: those of its own shipped file, or about 150 made of the templates.

    Raises ConfigError for a noun that is empty, longer than `MOST` characters or several lines, has braces, or begins with an
    article. Cost: one small file.
    """
    noun = " ".join(noun.split()) if not flaw(noun) and len(lines_of(noun.strip())) == 1 else ""
    if not noun or len(noun) > MOST or re.search(r"[{}]", noun):
        raise ConfigError(f"the class {quoted(noun)} is not a noun", f"name it in at most {MOST} characters, such as cat")
    if article := re.match(r"(?i)(an?|the) (?=\S)", noun):
        raise ConfigError(f"the class {quoted(noun)} begins with an article", f"name it without: {noun[article.end() :]}")
    own = [name for name in prompt_files() if name.startswith(f"{noun.lower()}_prompts_")]
    if own:
        return [prompt.text for prompt in load_prompts(str(shipped(own[0])))]
    return [fill(template, noun) for template in shipped(CLASS_TEMPLATES).read_text(encoding="utf-8").splitlines()]


def fill(template: str, noun: str) -> str:
    """A template with a noun in it, its plural, and the article that it takes; a noun that is a plural takes none."""
    if is_plural(noun):
        several, one = noun, re.sub(r"\ban? ((?:[\w-]+ )?)\{\}(?!s)", r"\1{}", template)
    else:
        several, one = plural(noun), re.sub(r"\ban? \{\}(?!s)", f"{article(noun)} {{}}", template)
    return one.replace("{}s", several).replace("{}", noun)


def article(noun: str) -> str:
    """`a` or `an`, as a noun is spoken: an hour, a unicorn, an SUV."""
    return "an" if _SPELLED.match(noun) or (_VOWEL.match(noun) and not _CONSONANT.match(noun)) else "a"


def is_plural(noun: str) -> bool:
    """Whether a noun names several, or a pair: sneakers, glasses, people."""
    last = _head(noun).rpartition(" ")[2].lower()
    return bool(_PLURAL.fullmatch(last)) or (last.endswith("s") and not _SINGULAR_IN_S.search(last) and last not in _IRREGULAR)


def plural(noun: str) -> str:
    """The plural of an English noun; of `bowl of berries`, that of the bowl."""
    head = _head(noun)
    before, space, last = head.rpartition(" ")
    return f"{before}{space}{_plural_of_word(last)}{noun[len(head) :]}"


def _head(noun: str) -> str:
    """A noun without what follows it: `bowl` of `bowl of berries`."""
    return re.split(r" (?:of|in|with|on|for|from) ", noun)[0]


def _plural_of_word(word: str) -> str:
    low = word.lower()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if _SAME.fullmatch(low):
        return word
    if low.endswith("man"):
        return f"{word[:-3]}men"
    if _F_TO_VES.fullmatch(low):
        return f"{word.removesuffix('e')[:-1]}ves"
    if re.search(r"[^aeiou]y$", low):
        return f"{word[:-1]}ies"
    return f"{word}es" if _O_TO_OES.fullmatch(low) or re.search(r"(s|x|z|ch|sh)$", low) else f"{word}s"
