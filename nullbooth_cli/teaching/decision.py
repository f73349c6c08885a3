"""The files of what `teach` decided, which every other command reads.

    <output>/teach.json             the request, and the way to the output that it starts from, for both may be moved together
    <output>/nullbooth.yaml         the config of the store
    <output>/train.yaml             the recipe of the training run
    <output>/prompts/               preserved.txt, heldout.txt, subject.txt; earlier.txt if it starts from another output

Once they are there they count, not the defaults: a user may edit the config and the recipe.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from nullbooth_cli.model.after import After
from nullbooth_cli.model.trained_files import locate
from nullbooth_cli.model.words import with_token
from nullbooth_cli.settings.commented import commented_yaml
from nullbooth_cli.settings.config import Config, load_config
from nullbooth_cli.settings.prompts import load_prompts
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.schema import load_settings, validate
from nullbooth_cli.settings.starter import CONFIG, RECIPE
from nullbooth_cli.teaching.request import TeachRequest
from nullbooth_cli.training import durable

REQUEST, STORE, PROMPTS = "teach.json", "store.zarr", "prompts"
PRESERVED, HELDOUT, SUBJECT, EARLIER = "preserved.txt", "heldout.txt", "subject.txt", "earlier.txt"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The settings and prompts of a request; `is_new` unless they are in their files. `notes` are for the user.

    `earlier` are prompts of the subjects that were taught before, which should stay.
    """

    output: str
    request: TeachRequest
    config: Config
    recipe: Recipe
    preserved: list[str]
    heldout: list[str]
    subject: list[str]
    earlier: list[str] = field(default_factory=list)
    is_new: bool = False
    notes: tuple[str, ...] = ()

    @property
    def written_subject(self) -> list[str]:
        """The prompts of the subject as they are drawn once it is taught: with the token that trained."""
        word, token = self.recipe.word, locate(Path(self.output)).token
        return self.subject if word is None or token is None else [with_token(text, word, token) for text in self.subject]


def write(decision: Decision) -> None:
    """Write the files of a decision; teach.json last. Raises ResourceError if they cannot be written."""
    output = Path(decision.output)
    texts = {PRESERVED: decision.preserved, HELDOUT: decision.heldout, SUBJECT: decision.subject}
    texts |= {EARLIER: decision.earlier} if decision.earlier else {}
    for name, lines in texts.items():
        _write(output / PROMPTS / name, "".join(f"{line}\n" for line in lines))
    _write(output / CONFIG, commented_yaml(decision.config))
    _write(output / RECIPE, commented_yaml(decision.recipe))
    after = decision.request.after
    way = {} if after is None else {"relative": After.of(after, output, digest=None).relative}
    _write(output / REQUEST, durable.record_text({**decision.request.model_dump(mode="json"), **way}))


def _write(path: Path, text: str) -> None:
    with durable.replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read(output: str) -> Decision | None:
    """The decision in an output, from its files as they are now; None if there is none.

    Raises StoreError for a damaged teach.json, ConfigError for files that cannot be read, and if what it starts from is gone.
    """
    folder = Path(output)
    if not (folder / REQUEST).exists():
        return None
    written = durable.read_record(folder / REQUEST, "name another output")
    before, way = written.get("after"), written.pop("relative", None)
    if before is not None:
        written["after"] = str(After(place=before, relative=way, digest=None).find(folder.absolute()))
    preserved, heldout, subject = (texts_in(folder / PROMPTS / name) for name in (PRESERVED, HELDOUT, SUBJECT))
    config, recipe = load_config(folder / CONFIG), load_settings(Recipe, folder / RECIPE)
    decision = Decision(
        output=output,
        request=validate(TeachRequest, written, source=str(folder / REQUEST)),
        config=config.model_copy(update=places_in(output)),
        recipe=recipe.model_copy(update={"store": str(folder / STORE), "output": output, "after": written.get("after")}),
        preserved=preserved,
        heldout=heldout,
        subject=subject,
        earlier=texts_in(folder / PROMPTS / EARLIER) if (folder / PROMPTS / EARLIER).exists() else [],
    )
    if os.path.abspath(recipe.output) == os.path.abspath(output) and written.get("after") == before:
        return replace(decision, config=config, recipe=recipe)
    return replace(decision, is_new=True, notes=(f"{output} was moved: its files are written again with the new place",))


def places_in(output: str) -> dict[str, str]:
    """The keys of the config that name a place in the output."""
    prompts = Path(output) / PROMPTS
    return {
        "store": str(Path(output) / STORE),
        "original_knowledge_prompts": str(prompts / PRESERVED),
        "heldout_prompts": str(prompts / HELDOUT),
    }


def texts_in(file: Path) -> list[str]:
    """The prompts in a file."""
    return [prompt.text for prompt in load_prompts(str(file))]
