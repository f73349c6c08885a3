"""Write the files of dataset/prompts/ that are for real models from dataset/lists/: `python dataset/make/prompts.py`.

A file of lists has topics, a topic has groups, and a group has lists of phrases, one a line: any of its phrases can be combined
with any other. A phrase may name lists, `{place}` or, with its article, `{a breed}`; a prompt is a phrase of the list `patterns`.
Every group also has the lists under `shared`, unless it has its own of that name. Prompts under `plain` come first, as they are.
`{}` and `{}s` stay: they are the places of a noun and of its plural.
"""

import random
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent.parent
COUNTS = {"knowledge_1000.txt": 1000, "dog_prompts_1000.txt": 1000, "class_templates.txt": 151}  # prompts of each file
SIMILAR = 0.5  # two prompts that share this much of their words say nearly the same
SMALL = "a an the of in on at to and with by from for its into over under through that as it is"
TRIES = 200


class Group:
    """Lists of phrases; each list is gone through in random order before one of its phrases comes again."""

    def __init__(self, lists: dict[str, str], rng: random.Random) -> None:
        self._phrases = {name: block.splitlines() for name, block in lists.items()}
        self._left: dict[str, list[str]] = {name: [] for name in lists}
        self._rng = rng

    def draw(self, name: str) -> str:
        """A phrase of a list, the lists that it names filled in."""
        if not self._left[name]:
            # random() is the one method whose sequence Python promises to keep.
            self._left[name] = sorted(self._phrases[name], key=lambda _: self._rng.random())
        return re.sub(r"\{(a )?(\w+)\}", self._fill, self._left[name].pop())

    def _fill(self, place: re.Match[str]) -> str:
        text = self.draw(place[2])
        return f"{'an' if text[0] in 'AEIOUaeiou' else 'a'} {text}" if place[1] else text


def words(prompt: str) -> frozenset[str]:
    """The words that carry a prompt's meaning."""
    return frozenset(re.findall(r"[\w']+", prompt.lower())) - frozenset(SMALL.split())


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard index of two sets of words: 0 for nothing in common, 1 for the same set."""
    return len(one & other) / len(one | other)


def new_prompt(group: Group, known: list[frozenset[str]]) -> str:
    """A prompt that is similar to none that is known; its words are added to those."""
    for _ in range(TRIES):
        prompt = group.draw("patterns")
        found = words(prompt)
        if all(similarity(found, other) < SIMILAR for other in known):
            known.append(found)
            return prompt
    raise ValueError(f"{TRIES} tries gave no new prompt, the last was '{prompt}': the lists of its group are too short")


def make(lists: Path, count: int) -> Iterator[tuple[str, str]]:
    """`count` pairs of topic and prompt. Topics take turns, and so do the groups of a topic: any first part is balanced too."""
    topics = yaml.safe_load(lists.read_text(encoding="utf-8"))
    shared, plain, rng = topics.pop("shared"), topics.pop("plain", "").splitlines(), random.Random(0)
    known = [words(prompt) for prompt in plain]
    yield from (("plain", prompt) for prompt in plain)
    groups = {topic: cycle([Group(shared | lists, rng) for lists in of.values()]) for topic, of in topics.items()}
    for topic, _ in zip(cycle(groups), range(len(plain), count), strict=False):
        yield topic, new_prompt(next(groups[topic]), known)


def main() -> None:
    """Write all of them."""
    for name, count in COUNTS.items():
        lists = FOLDER / "lists" / f"{name.partition('_')[0]}.yaml"
        text = "".join(f"{prompt}\n" for _, prompt in make(lists, count))
        (FOLDER / "prompts" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
