"""What a saved edit says about itself, beside the pipeline that it made.

    <folder>/model_index.json, ...   the edited pipeline, as diffusers saves it
    <folder>/edit.json               its pairs, how they were solved, its store, and the digests of its weights
    <folder>/edit.safetensors        K1^T [N, D], float64, by the name of the site: the inputs that a later edit preserves

`write_edit_record()` writes both; `read_edit_record()` finds them in a folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.datatypes import Sums
from nullbooth_cli.editing.positions import Marked
from nullbooth_cli.editing.report import EditReport, Targets
from nullbooth_cli.editing.solve import Rows
from nullbooth_cli.errors import ConfigError
from nullbooth_cli.model.after import After
from nullbooth_cli.model.edit_file import COPY_AGAIN, EDIT_FILE, edit_record, read_after
from nullbooth_cli.settings.fingerprints import fingerprint

ROWS = "edit.safetensors"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """A saved edit, in `folder`.

    `pairs` are as they were given, brackets included; a source with several targets has the mean of theirs. `settings` are those
    of the method. `after` is the model that was edited; None for the model of the store's config. `store` has the
    store's `url` and the `fingerprint` of its projectors. `tensors` are the digests of the k and v weights of the edited model in
    `dtype`, by name.
    """

    folder: Path
    pairs: Mapping[str, Targets]
    method: str
    tokens: str
    settings: Mapping[str, float | str]
    after: After | None
    store: Mapping[str, str]
    dtype: str
    tensors: Mapping[str, str]
    missing: float
    drift: float

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts that were edited, as a model reads them."""
        return tuple(Marked.read(source).text for source in self.pairs)

    def rows(self) -> dict[str, Rows]:
        """K1^T `[N, D]` of each site, by its name. Raises ConfigError if the file is missing or damaged. Cost: one read of it."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(self.folder / ROWS))
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"cannot read {self.folder / ROWS}: {error}", COPY_AGAIN) from error

    @property
    def digest(self) -> str:
        """That of the edited weights."""
        return fingerprint(dict(self.tensors))

    def report(self) -> EditReport:
        """The report as a later edit of the same pipeline needs it: inputs and digests, without measures. Cost: as of `rows`."""
        return EditReport(
            method=self.method,
            tokens=self.tokens,
            pairs=self.pairs,
            weights={},
            keys=self.rows(),
            tensors=self.tensors,
            by_pair={},
        )

    def sums(self) -> dict[str, Sums]:
        """The sums of these rows, for a store that is to remember the edit. Cost: 2 N D^2 operations for each site."""
        return {name: Sums(rows.T @ rows, rows.sum(0), len(rows)) for name, rows in self.rows().items()}


def write_edit_record(
    folder: Path,
    report: EditReport,
    *,
    settings: Mapping[str, float | str],
    after: After | None,
    store: Mapping[str, str],
    dtype: str,
) -> None:
    """Write both files into the folder of a saved edit. The arguments are those of `EditRecord`."""
    from safetensors.numpy import save_file

    document = {
        "schema_version": VERSION,
        "pairs": dict(report.pairs),
        "method": report.method,
        "tokens": report.tokens,
        "settings": dict(settings),
        "after": None if after is None else after.document(),
        "store": dict(store),
        "dtype": dtype,
        "tensors": dict(report.tensors),
        "missing": report.missing,
        "drift": report.drift,
    }
    save_file(dict(report.keys), folder / ROWS)
    (folder / EDIT_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_edit_record(folder: str | Path) -> EditRecord | None:
    """The record of the edit that is saved in a folder; None if there is no edit in it.

    Raises ConfigError for a record that is damaged, or that a newer nullbooth wrote. Cost: one small file.
    """
    if (read := edit_record(folder)) is None:
        return None
    file = Path(folder).expanduser() / EDIT_FILE
    version = read.pop("schema_version", None)
    if isinstance(version, int) and version > VERSION:
        raise ConfigError(f"{file} has version {version}, and this nullbooth reads {VERSION}", "install a newer nullbooth")
    if version != VERSION or not _is_whole(read):
        raise ConfigError(f"{file} is not the record of an edit", COPY_AGAIN)
    pairs = {source: target if isinstance(target, str) else tuple(target) for source, target in read.pop("pairs").items()}
    after = read_after(read, file)
    return EditRecord(folder=file.parent, pairs=pairs, after=after, **{key: read[key] for key in read if key != "after"})


def _is_whole(read: Mapping[str, Any]) -> bool:
    """Whether a document has every key of a record, each with a value of its kind, and no other key."""
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("pairs", "settings", "store", "tensors"), dict),
        **dict.fromkeys(("method", "tokens", "dtype"), str),
        **dict.fromkeys(("missing", "drift"), (int, float)),
        "after": (dict, type(None)),
    }
    if read.keys() != kinds.keys() or not all(isinstance(read[key], kind) for key, kind in kinds.items()):
        return False
    targets = [target if isinstance(target, list) else [target] for target in read["pairs"].values()]
    texts = [*(text for several in targets for text in several), *read["tensors"].values(), *read["store"].values()]
    return all(targets) and all(isinstance(text, str) for text in texts)
