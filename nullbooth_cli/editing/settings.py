"""How an edit is solved: the method and its numbers, each with the value that its authors use."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict, get_args

from pydantic import Field

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.schema import Section

Method = Literal["alphaedit", "uce", "speed", "ace"]
Tokens = Literal["subject", "all"]
Weights = Literal["kv", "k", "v"]


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """The settings of an edit. Raises ConfigError for values that make none.

    `method` and its equation: see `editing.edit`.
    `tokens`: "subject" pairs the tokens of source and target from the last one of the subject to the end of the text that the
    model receives, by their distance to it, as UCE, SPEED and ACE do; "all" pairs all of them by position. Brackets mark the
    subject, `a [sks star] on a table`; without them it is what differs between the two (`positions.Positions`). By position `on`
    may become `star`; from the subject on, what comes before its last token has no target. The embedded model drew 0.82 of the
    targets of 48 edits between as many words from the subject on, and 0.83 by position; of 24 others 0.70 and 0.61
    (docs/studies/edit_words.py); of single edits of words of several tokens all, and 0.08 to 0.96 by position
    (docs/explanation/sequences.md).
    `weights`: those to change, "kv", "k" or "v"; None for those of the method, v alone for speed and both for the others.
    `ridge` is a in units of the mean squared norm of a preserved token, the same for every edit of a store: a larger one changes
    less and leaves more missing. With a squared norm of 768 (768 values after a layer norm, as Stable Diffusion 1 has), the
    authors' values are 6.5e-4 (uce, .5; ace for one concept, .5), 1.3e-3 for each concept (speed, 1), and .26 (ace for a hundred
    concepts, 20 / .1).
    `preserve` (uce) is b in edited tokens: all preserved tokens together weigh as much as this number of edited ones. The authors
    let each preserved concept weigh as much as an edited one.
    `copies`: noisy copies of each edited token, with the same target, so that what is near it is edited too.
    `prompts` (speed, ace): preserved prompts that speed filters and ace draws. Its authors draw 1200, ten steps each.
    `noise` (speed): noisy copies of each filtered token, authors 10.
    `project` (ace): the share of the query directions that targets of keys may have, authors .16 (the code's default is .01).
    `seed`: of the noise, and of the centres of speed.
    """

    method: Method = "alphaedit"
    tokens: Tokens = "subject"
    weights: Weights | None = None
    ridge: float = 1e-2
    preserve: float = 100.0
    copies: int = 0
    prompts: int = 200
    noise: int = 10
    project: float = 0.16
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"method": get_args(Method), "tokens": get_args(Tokens), "weights": (None, *get_args(Weights))}
        for key, allowed in choices.items():
            if (value := getattr(self, key)) not in allowed:
                named = [each for each in allowed if each is not None]
                raise ConfigError(f"{key}={value!r} is not a choice", f"set {key} to {' or '.join(named)}")
        ranges = {
            "ridge": (0 < self.ridge < math.inf, "a number above 0"),
            "preserve": (0 <= self.preserve < math.inf, "a number, 0 or more"),
            "copies": (self.copies >= 0, "a whole number, 0 or more"),
            "prompts": (self.prompts >= 1, "a whole number, 1 or more"),
            "noise": (self.noise >= 0, "a whole number, 0 or more"),
            "project": (0 < self.project <= 1, "a share above 0, at most 1"),
        }
        if wrong := [key for key, (is_right, _) in ranges.items() if not is_right]:
            raise ConfigError(
                ", ".join(f"{key}={getattr(self, key)}" for key in wrong),
                "\n".join(f"set {key} to {ranges[key][1]}" for key in wrong),
            )

    @property
    def features(self) -> set[str]:
        """The features whose weights change."""
        chosen = self.weights or ("v" if self.method == "speed" else "kv")
        return {f"{stream}{letter}" for letter in chosen for stream in ("", "add_")}


# The settings that only some methods have; all others belong to every method.
METHODS_OF: Mapping[str, tuple[Method, ...]] = {
    "preserve": ("uce",),
    "prompts": ("speed", "ace"),
    "noise": ("speed",),
    "project": ("ace",),
}


class GivenSettings(Section):
    """The settings of an edit as a file may have them; those that are left out are those of `EditSettings`."""

    method: Method | None = Field(None, description=f"one of {', '.join(get_args(Method))}")
    tokens: Tokens | None = Field(None, description="subject, or all")
    weights: Weights | None = Field(None, description="kv, k or v")
    ridge: float | None = Field(None, description="a number above 0")
    preserve: float | None = Field(None, description="uce: a number, 0 or more")
    copies: int | None = Field(None, description="a whole number, 0 or more")
    prompts: int | None = Field(None, description="speed and ace: a whole number, 1 or more")
    noise: int | None = Field(None, description="speed: a whole number, 0 or more")
    project: float | None = Field(None, description="ace: a share above 0, at most 1")
    seed: int | None = Field(None, description="a whole number")


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a part in an edit: those that are given, not None, and the values of the others.

    Raises ConfigError for wrong ones, and for one that has no part in the method: it would change nothing.
    """
    given = {name: value for name, value in given.items() if value is not None}
    how = EditSettings(**given)
    for name in given:
        if how.method not in (methods := METHODS_OF.get(name, get_args(Method))):
            raise ConfigError(f"{name} has no part in {how.method}", f"leave it out, or choose the method {' or '.join(methods)}")
    every = {**asdict(how), "weights": "".join(sorted(each for each in how.features if "add_" not in each))}
    return {name: value for name, value in every.items() if how.method in METHODS_OF.get(name, (how.method,))}


class EditOptions(TypedDict, total=False):
    """The settings as keyword arguments."""

    method: Method
    tokens: Tokens
    weights: Weights | None
    ridge: float
    preserve: float
    copies: int
    prompts: int
    noise: int
    project: float
    seed: int
