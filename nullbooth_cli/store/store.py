"""A store: how it is made and opened, its attributes, its schedule and its prompts. Its other groups are objects of their own."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nullbooth_cli.datatypes import HELDOUT, Prompt, Site, Step, is_file_name
from nullbooth_cli.errors import StoreError
from nullbooth_cli.store.arrays import ArrayGroup
from nullbooth_cli.store.attention_maps import AttentionMapArrays
from nullbooth_cli.store.backing import Backing
from nullbooth_cli.store.feature_arrays import FeatureArrays
from nullbooth_cli.store.format import Root, create_root, is_there, open_root, require_empty
from nullbooth_cli.store.heartbeats import HeartbeatNotes
from nullbooth_cli.store.layout import Layout
from nullbooth_cli.store.locks import locked
from nullbooth_cli.store.moment_arrays import MomentArrays
from nullbooth_cli.store.open_backing import open_backing
from nullbooth_cli.store.progress_cells import ProgressCells
from nullbooth_cli.store.projector_arrays import ProjectorArrays


class Store:
    """An open store. `Store.create` and `Store.open` make one; `lock()` guards every stage that writes.

    `features`, `moments`, `projectors`, `attention`, `progress` and `heartbeats` read and write one group each, on `arrays`.
    `place` is a folder or a URL, `options` are those of the URL's client.
    """

    def __init__(self, root: Root, backing: Backing) -> None:
        self.url = backing.url
        self.arrays = ArrayGroup(root, backing)
        self.progress = ProgressCells(self.arrays)
        self.features = FeatureArrays(self.arrays, self.members)
        self.moments = MomentArrays(self.arrays, self.progress)
        self.projectors = ProjectorArrays(self.arrays, self.progress)
        self.attention = AttentionMapArrays(self.arrays)
        self.heartbeats = HeartbeatNotes(self.arrays)
        self._rows: tuple[Prompt | None, ...] | None = None
        self._sites: tuple[list[dict[str, Any]], tuple[Site, ...]] = ([], ())

    @classmethod
    def create(cls, place: str | Path, config: Mapping[str, object], options: Mapping[str, object] | None = None) -> "Store":
        """Make an empty store. Raises StoreError if something else is there."""
        backing = open_backing(place, options)
        return cls(create_root(backing, config), backing)

    @classmethod
    def open(cls, place: str | Path, *, write: bool = False, options: Mapping[str, object] | None = None) -> "Store":
        """Open an existing store. Raises StageError if there is none, StoreError if it is foreign or of another format."""
        backing = open_backing(place, options, read_only=not write)
        return cls(open_root(backing), backing)

    @classmethod
    def open_if_there(cls, place: str | Path, options: Mapping[str, object] | None = None) -> "Store | None":
        """The store at a place; None if it is empty. Raises StoreError as `open` and `create` do; writes nothing."""
        if cls.exists(place, options):
            return cls.open(place, options=options)
        require_empty(open_backing(place, options, read_only=True))
        return None

    @classmethod
    def open_or_create(
        cls, place: str | Path, config: Mapping[str, object], options: Mapping[str, object] | None = None
    ) -> "Store":
        """The store at a place, open for writing; an empty one with this config if there is none."""
        return cls.open(place, write=True, options=options) if cls.exists(place, options) else cls.create(place, config, options)

    @staticmethod
    def exists(place: str | Path, options: Mapping[str, object] | None = None) -> bool:
        """Whether a Zarr group is at a place."""
        return is_there(open_backing(place, options, read_only=True))

    def heldout(self, *, write: bool = False) -> "Store | None":
        """The store of the held-out prompts, which is inside this one; None if there is none."""
        return self.inside(HELDOUT, write=write)

    def inside(self, name: str, *, write: bool = False) -> "Store | None":
        """The store of a name inside this one; None if there is none. Raises StoreError for one of another store."""
        backing = self.arrays.backing.inside(name, read_only=not write)
        return type(self)(open_root(backing, self._inner_id(name)), backing) if is_there(backing) else None

    def inside_or_create(self, name: str, config: Mapping[str, object]) -> "Store":
        """The same, open for writing; an empty one with this config if there is none."""
        if found := self.inside(name, write=True):
            return found
        self.arrays.make_groups_above(name)
        backing = self.arrays.backing.inside(name)
        return type(self)(create_root(backing, config, self._inner_id(name)), backing)

    def _inner_id(self, name: str) -> str:
        """With an id that follows from this store's, an inner store that was copied from another one is found."""
        return f"{self.arrays.id}-{name}"

    @property
    def path(self) -> Path:
        """The folder of a local store."""
        return Path(self.url)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store alone for writing. Raises StoreError that names the holder; a killed holder leaves no lock behind."""
        return locked(self.arrays.backing)

    def reload(self) -> None:
        """Forget all attributes, shapes and rows that were read: another process may have changed them."""
        self.arrays.reload()
        self._rows = None

    def reload_if_changed(self) -> bool:
        """`reload` if a record, the sites or the config is no longer the one that was read. Cost: one small object."""
        changed = self.arrays.reload_if_changed()
        if changed:
            self._rows = None
        return changed

    def delete(self, name: str) -> None:
        """Remove an array, or a group and all below it, if it is there."""
        self.arrays.delete(name)

    def nbytes(self, name: str) -> int:
        """Bytes of all objects below a group of the store."""
        return self.arrays.nbytes(name)

    def free_nbytes(self) -> int | None:
        """Bytes that can still be written; None if that is unknown, as at a URL."""
        return self.arrays.backing.free_nbytes()

    # Attributes: config, records, sites

    @property
    def config(self) -> dict[str, Any]:
        """The config that the store was made with, as JSON."""
        return dict(self.arrays.attribute("config"))

    @property
    def packages(self) -> dict[str, str]:
        """The versions of the packages that made this store, by their names."""
        return dict(self.arrays.attribute("packages"))

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The record of each stage that was started: {stage: {settings, upstream, fingerprint}}, as JSON."""
        return dict(self.arrays.attribute("records"))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the collection, in its order; none before a collection was started."""
        stored = self.arrays.attribute("sites")
        if stored is not self._sites[0]:
            sites = tuple(_site_of(site) for site in stored)
            self._require_file_names(name for site in sites for name in (site.name, site.layer, *dict(site.projections)))
            self._sites = stored, sites
        return self._sites[1]

    def _require_file_names(self, names: Iterable[str]) -> None:
        """Raise StoreError for a name that would lead out of a folder: exports and arrays have names that were read from here."""
        if wrong := next((name for name in names if not is_file_name(name)), None):
            raise StoreError(
                f"{self.url} has a layer or step with the name {wrong!r}, which is a path", "use a store that nullbooth made"
            )

    @property
    def layout(self) -> Layout:
        """How the collection is stored. Raises KeyError before a collection was started."""
        return Layout(**self.records["collect"]["layout"])

    def write_config(self, config: Mapping[str, object]) -> None:
        """Put another config in the place of the stored one."""
        self.arrays.update_attributes(config=dict(config))

    def write_record(self, stage: str, record: Mapping[str, object] | None) -> None:
        """Put another record of a stage in the place of the stored one, or remove it."""
        records = {name: value for name, value in self.records.items() if name != stage}
        self.arrays.update_attributes(records=records if record is None else {**records, stage: dict(record)})

    def write_sites(self, sites: Sequence[Site]) -> None:
        """Put other sites in the place of the stored ones."""
        self.arrays.update_attributes(sites=[_as_stored(site) for site in sites])

    # Schedule and prompts

    def write_schedule(self, steps: Sequence[Step]) -> None:
        """Put another schedule in the place of the stored one."""
        self.delete("schedule")
        self.arrays.write_vector("schedule/timesteps", [step.timestep for step in steps])
        self.arrays.write_vector("schedule/sigmas", [step.sigma for step in steps])
        self.arrays.write_texts("schedule/keys", 0, [step.key for step in steps])
        self.arrays.backing.sync()

    @property
    def num_steps(self) -> int:
        """The number of steps in the schedule. Raises StoreError if there is no schedule."""
        return int(self.arrays.array("schedule/timesteps").shape[0])

    def schedule(self) -> tuple[Step, ...]:
        """The steps of the schedule, in order. Raises StoreError if there is none, or it is damaged."""
        columns = zip(
            self.arrays.read_texts("schedule/keys"),
            self.arrays.read_vector("schedule/timesteps"),
            self.arrays.read_vector("schedule/sigmas"),
            strict=True,
        )
        steps = tuple(Step(i, key, float(t), float(s)) for i, (key, t, s) in enumerate(columns))
        self._require_file_names(step.key for step in steps)
        return steps

    @property
    def rows(self) -> tuple[Prompt | None, ...]:
        """The prompt in each row of the features; None where one was taken out, or where a unit was filled up.

        A prompt stays in its row, and so starts from the same noise, whatever is added or taken out later.
        """
        if self._rows is None:
            names = ("prompts/text", "prompts/images")
            texts, images = map(self.arrays.read_texts, names) if self.arrays.find(names[0]) is not None else ([], [])
            # A kill may have left images behind the last text.
            self._rows = tuple(Prompt(text, image or None) if text else None for text, image in zip(texts, images, strict=False))
        return self._rows

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the collection, in its order; none before a collection was started."""
        return tuple(prompt for prompt in self.rows if prompt is not None)

    def write_rows(self, start: int, rows: Sequence[Prompt | None]) -> None:
        """Write prompts into rows from `start`; the text is written last."""
        self.arrays.write_texts("prompts/ids", start, [prompt.id if prompt else "" for prompt in rows])
        self.arrays.write_texts("prompts/images", start, [(prompt.image if prompt else None) or "" for prompt in rows])
        self.arrays.write_texts("prompts/text", start, [prompt.text if prompt else "" for prompt in rows])
        self.arrays.backing.sync()
        self._rows = None

    def remove_rows(self) -> None:
        """Remove all rows."""
        self.arrays.delete("prompts")
        self._rows = None

    def members(self, unit: int) -> list[tuple[int, Prompt]]:
        """(row, prompt) of each prompt in a unit of collect."""
        batch = self.layout.batch_size
        rows = self.rows[unit * batch : (unit + 1) * batch]
        return [(unit * batch + i, prompt) for i, prompt in enumerate(rows) if prompt is not None]

    def blocks(self, site: Site) -> list[range]:
        """The recorded timesteps of a site that share a chunk, in order."""
        return self.layout.blocks(site, self.num_steps)


def _as_stored(site: Site) -> dict[str, Any]:
    """A site as it is written: without `steps` where it is recorded in all of them, as in every store before there was one."""
    return {name: value for name, value in asdict(site).items() if name != "steps" or value is not None}


def _site_of(stored: Mapping[str, Any]) -> Site:
    """A site as it was written: JSON has lists for tuples."""
    steps = stored.get("steps")
    return Site(**{**stored, "weights": tuple(stored["weights"]), "steps": None if steps is None else tuple(steps)})
