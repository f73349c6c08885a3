"""One pipeline class of the zoo: how it is built, which settings it needs, and what a test knows of its text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth_cli.datatypes import Site

# (pipeline, text, site, L) to `[L]` bool, False for padding, of a row with this text; None if nothing in this site is padding.
Attended = Callable[[Any, str, Site, int], NDArray[np.bool_] | None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A pipeline class that works, with `settings` if it needs any, or that is `refused` for a reason (a regular expression).

    `build` makes a tiny random pipeline of the class; a class that is refused by its name needs none. `settings` are the config
    keys that a user of the class has to set, by their dotted names; files in them are "picture.png" and "mask.png". `size` is
    that of the images in pixels, None for a class that takes none. `output` is the output_type of the test's own call, where a
    class has no "latent".

    `attended` is what the test itself knows of padding, with the rows of a step in `own`: whether each is the prompt's, in the
    order in which they run; the others have the text "". `layers` is a regular expression of the names of the layers that attend
    to text, where the test knows them: these and no others are recorded. `note` is for the reader of docs/reference/models.md.
    """

    build: Callable[[], Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("a cat", "a dog with a hat", "a red star")
    size: int | None = 16
    attended: Attended | None = None
    own: tuple[bool, ...] = (False, True)
    layers: str | None = None
    output: str = "latent"
    refused: str | None = None
    note: str = ""


def text_comes_first(num_attended: Callable[[Any, str], int], *, text: int, both: str | None = None) -> Attended:
    """Of a text of `text` tokens the first ones are attended; in layers whose name has `both`, the image follows them."""

    def attended(pipe: Any, prompt: str, site: Site, length: int) -> NDArray[np.bool_] | None:
        of_both = both is not None and both in site.layer
        if not (of_both or site.feature == "k" or site.feature.startswith("add_")):
            return None
        places = np.arange(length)
        return (places < num_attended(pipe, prompt)) | (places >= text)

    return attended
