"""Damage to one file of a store at random, and what a user of the damaged store is told or given."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullbooth_cli.errors import NullboothError
from nullbooth_cli.nullspace.usable import usable_projectors
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.report.status import verify_store
from nullbooth_cli.settings.config import STAGES, Config
from nullbooth_cli.store import RELEASED, Store
from nullbooth_cli.store.moment_arrays import STAGED
from nullbooth_cli.store.pieces import Piece, pieces
from tests.support.builders import prompts_of


@dataclass(frozen=True)
class Case:
    """A complete or partial store that is damaged; `other` is one of the same files, made in another run."""

    config: Config
    other: Path

    @property
    def path(self) -> Path:
        return Path(self.config.store)


@dataclass(frozen=True)
class Happened:
    """One damage: its kind, the files that must be named (relative to the store), all or one of them, and the test's words."""

    kind: str
    files: tuple[str, ...]
    what: str
    all_named: bool = True


def files_of(store: Path) -> list[str]:
    """Every file of a store that makes up its content; notes of processes do not."""
    found = (path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith("activity"))


def in_force(place: Path) -> set[str]:
    """Every chunk that something relies on, and the metadata of its array."""
    outer = Store.open(place)
    progress = {key for key in outer.arrays.backing.keys("") if "progress/" in key and not key.endswith("progress/zarr.json")}
    found = {"zarr.json", *progress}
    for prefix, store in (("", outer), ("heldout/", outer.heldout())):
        for stage in (*STAGES, "attention") if store else ():
            keys = [f"{prefix}{piece.key}" for piece in pieces(store, stage) if isinstance(piece, Piece) and piece.key]
            found |= {*keys, *(f"{key.rpartition('/')[0]}/zarr.json" for key in keys)}
    return found


def read_numbers(config: Config, store: Store) -> dict[str, str]:
    """A digest of each thing that a store gives: states, prompts, schedule, features, moments, projectors, leakage, maps."""
    found: dict[str, Any] = {
        "states": {name: str(state) for name, state in stage_states(config, prompts_of(config), store).items()}
    }
    for prefix, each in (("", store), ("heldout/", store.heldout())):
        if each is not None:
            found |= {f"{prefix}{name}": _digest(value) for name, value in _numbers(each)}
    if found["states"] and store.progress.done("project").all() and "project" in store.records:
        for weight, projector in usable_projectors(store).items():
            found[f"projector {weight}"] = _digest((projector.factor, projector.is_complement))
    found["states"] = _digest(str(found["states"]))
    return found


def _numbers(store: Store) -> Iterator[tuple[str, Any]]:
    yield "attributes", json.dumps([store.config, store.records, [str(site) for site in store.sites]], sort_keys=True)
    yield "schedule", str(store.schedule())
    yield "rows", str(store.rows)
    cells = store.progress.cells("collect")
    for unit, cell in enumerate(cells.tolist()):
        for site in store.sites if cell not in (0, RELEASED) and store.layout.keeps_features else ():
            for block in store.blocks(site):
                if store.members(unit):
                    yield f"features {unit} {site.name} {block}", store.features.read(site, block, unit)
    for part in store.moments.all_partial_sums():
        yield f"part {part.name}", str(part.units)
        for site in store.sites if part.units else ():
            yield f"part {part.name} {site.name}", tuple(array for sums in part.read(site) for array in sums)
    if "covariance" in store.records:
        done = iter(store.progress.cells("covariance").tolist())
        for site in store.sites:
            for block in store.blocks(site):
                if (cell := next(done)) and not cell & STAGED:
                    sums = store.moments.read(site, block)
                    yield f"moments {site.name} {block}", tuple(array for of_step in sums for array in of_step)
    if "project" in store.records:
        made, cut = (store.progress.done(name).tolist() for name in ("decomposition", "project"))
        every = [(site, i) for site in store.sites for i in range(store.projectors.num_decompositions(site))]
        for unit, (site, index) in enumerate(every):
            if made[unit]:
                yield f"decomposition {site.name} {index}", tuple(vars(store.projectors.read_decomposition(site, index)).values())
            if cut[unit]:
                yield f"cut {site.name} {index}", tuple(store.projectors.read_cut(site, index))
    if "attention" in store.records:
        prompts, maps = {prompt.id: prompt for prompt in store.prompts()}, store.progress.done("attention")
        for unit, key in enumerate(store.records["attention"]["settings"]["prompts"]):
            if maps[unit]:
                read = store.attention.read(prompts[key])
                yield f"maps {key}", (str(read.words), str(read.steps), read.image, *read.layers.values())


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for part in value if isinstance(value, tuple) else (value,):
        digest.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())
    return digest.hexdigest()


def outcome(case: Case, happened: Happened, expected: dict[str, str]) -> str:
    """`named` if an error names what was damaged, `same` if every number is the same; fails for anything else.

    Units that are no longer marked as done are done again by the next run: `again`.
    """
    messages: list[str] = []
    found: dict[str, str] | None = None
    try:
        messages += [damage.error for damage in verify_store(Store.open(case.path)).damaged]
    except NullboothError as error:
        messages.append(error.message)
    try:
        found = read_numbers(case.config, Store.open(case.path))
    except NullboothError as error:
        messages.append(error.message)
    if found == expected and not messages:
        return "same"
    unnamed = [file for file in happened.files if not any(_names(message, file) for message in messages)]
    missed = unnamed if happened.all_named else unnamed if len(unnamed) == len(happened.files) else []
    if messages and not missed:
        return "named"
    # A cell that is gone is a unit that is not done; nothing else may have changed.
    lost = {name for name in expected if found is not None and found.get(name) != expected[name]}
    if (
        found is not None
        and not messages
        and happened.kind in ("delete", "lose")
        and _is_progress(happened)
        and _only_less(found, expected)
    ):
        return "again"
    raise AssertionError(f"{case.path.name}: {happened.what}: told {messages}, not named {missed}, changed {sorted(lost)[:5]}")


def _is_progress(happened: Happened) -> bool:
    return all("progress/" in file or file.startswith("heldout/") for file in happened.files)


def _only_less(found: dict[str, str], expected: dict[str, str]) -> bool:
    return all(expected.get(name) == value for name, value in found.items() if name != "states")


def _names(message: str, file: str) -> bool:
    """Whether a message names a file: its array and chunk, or the metadata of its array or group."""
    inner = file.removeprefix("heldout/")
    array, _, chunk = inner.rpartition("/")
    if file.startswith("heldout/") and "heldout" not in message:
        return False
    if inner.startswith("parts/") and "in the partial sums" in message:
        return True
    return f"{array} chunk {chunk}" in message or inner in message or (bool(array) and f"array {array}" in message)


class Damager:
    """Draws damages by a seed, does each one to a store, and undoes it."""

    def __init__(self, case: Case, rng: random.Random) -> None:
        self.case, self.rng = case, rng
        self.files, self.in_force = files_of(case.path), in_force(case.path)
        self.kinds: dict[str, Callable[[], Happened]] = {
            "flip": self._flip,
            "cut": self._cut,
            "empty": self._empty,
            "delete": self._delete,
            "lose": self._lose,
            "exchange": self._exchange,
            "folder": self._folder,
            "another run": self._another_run,
            "edit": self._edit,
        }

    @contextmanager
    def damaged(self, kind: str) -> Iterator[Happened]:
        """The store with one damage of a kind; it is whole again afterwards."""
        self._kept: dict[Path, bytes] = {}
        try:
            yield self.kinds[kind]()
        finally:
            for path, data in self._kept.items():
                if path.is_dir():
                    shutil.rmtree(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def _pick(self, files: list[str] | None = None) -> tuple[str, Path]:
        name = self.rng.choice(files or self.files)
        path = self.case.path / name
        self._kept[path] = path.read_bytes()
        return name, path

    def _flip(self) -> Happened:
        name, path = self._pick()
        data = bytearray(self._kept[path])
        position, bit = self.rng.randrange(len(data)), self.rng.randrange(8)
        data[position] ^= 1 << bit
        path.write_bytes(data)
        return Happened("flip", (name,), f"bit {bit} of byte {position} of {name} was flipped")

    def _cut(self) -> Happened:
        name, path = self._pick()
        length = self.rng.randrange(len(self._kept[path]))
        path.write_bytes(self._kept[path][:length])
        return Happened("cut", (name,), f"{name} was cut to {length} bytes")

    def _empty(self) -> Happened:
        name, path = self._pick()
        path.write_bytes(b"")
        return Happened("empty", (name,), f"{name} was emptied")

    def _delete(self) -> Happened:
        name, path = self._pick()
        path.unlink()
        return Happened("delete", (name,), f"{name} was deleted")

    def _lose(self) -> Happened:
        folder = self.rng.choice(sorted({parent for name in self.files for parent in Path(name).parents if parent.name}))
        files = tuple(name for name in self.files if name.startswith(f"{folder}/"))
        self._kept = {self.case.path / name: (self.case.path / name).read_bytes() for name in files}
        shutil.rmtree(self.case.path / folder)
        return Happened("lose", files, f"the folder {folder} was lost", all_named=False)

    def _exchange(self) -> Happened:
        name, path = self._pick()
        size = len(self._kept[path])
        alike = [other for other in self.files if other != name and (self.case.path / other).stat().st_size == size]
        others = alike or [
            other for other in self.files if other != name and other.endswith("zarr.json") == name.endswith("zarr.json")
        ]
        other, other_path = self._pick(others)
        path.write_bytes(self._kept[other_path])
        other_path.write_bytes(self._kept[path])
        # Two that nothing relies on may be exchanged, and of one that something relies on only that one can be named.
        # What the metadata of a group should say of an array inside it is not known either.
        pairs = ((name, other), (other, name))
        above = {file for file, inner in pairs if file.endswith("zarr.json") and inner.startswith(file.removesuffix("zarr.json"))}
        files = tuple(file for file in above or (name, other) if file in self.in_force)
        return Happened("exchange", files, f"{name} and {other} were exchanged")

    def _folder(self) -> Happened:
        name, path = self._pick()
        path.unlink()
        (path / "inside").mkdir(parents=True)
        return Happened("folder", (name,), f"{name} became a folder")

    def _another_run(self) -> Happened:
        other = self.case.other
        name, path = self._pick(sorted(set(self.files) & set(files_of(other))))
        path.write_bytes((other / name).read_bytes())
        return Happened("another run", (name,), f"{name} was taken from {other.name}")

    def _edit(self) -> Happened:
        name, path = self._pick([name for name in self.files if name.endswith("zarr.json")])
        document = json.loads(self._kept[path])
        where = self._edit_leaf(document)
        path.write_text(json.dumps(document, indent=2))
        return Happened("edit", (name,), f"{where} of {name} was edited")

    def _edit_leaf(self, document: Any) -> str:
        leaves = list(_leaves(document))
        place, key = self.rng.choice(leaves)
        old = place[key]
        if self.rng.random() < 0.2:
            del place[key]
            return f"{key} (removed)"
        if isinstance(old, bool) or old is None:
            new: Any = self.rng.choice([1, "edited"])
        elif isinstance(old, int | float):
            new = self.rng.choice([old + 1, -1, old * 2 + 3, str(old), None])
        elif isinstance(old, str):
            new = self.rng.choice([f"{old}x", old[:-1] + "?", 7, None])
        else:
            new = self.rng.choice([7, None, "edited"])
        place[key] = new
        return f"{key} ({old!r} -> {new!r})"


def _leaves(document: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value of a JSON document that has nothing inside."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        if isinstance(value, dict | list) and value:
            yield from _leaves(value)
        else:
            yield document, key
