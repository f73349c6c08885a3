"""The store: one Zarr v3 group that all stages share. Nothing else in the project touches Zarr.

    run.zarr/                  attributes: format version, config, records of the stages, sites, package versions
    ├── schedule/              timesteps [T], sigmas [T], keys [T]
    ├── prompts/               text [N], ids [N]
    ├── features/<site>        [T, N, L, D], chunks (1, B, L, D); a site that no timestep changes has T = 1
    ├── moments/<site>         sum_xxT [T, D, D] float64, sum_x [T, D] float64, count [T] int64
    ├── projectors/<site>      eigenvalues [S, D], eigenvectors [S, D, D], null_dim [S], leakage [S]; S = 1 pooled
    └── progress/<stage>       one cell per unit, one chunk per cell, written last; `decomposition` is the first half of project

What must stay true:

- A chunk is written whole by one writer, to a temporary file that is renamed: a kill leaves the old or the new one.
- `commit()` makes everything written so far durable and only then marks the unit. A chunk that is there proves nothing; only
  `progress` does. So no interruption can leave a mark beside data that the unit has not finished writing.
- A missing, empty or altered chunk never reads as data: it is an error that names the array and the chunk.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from nullbooth_cli.errors import ResourceError, StoreError
from nullbooth_cli.prompts import Prompt
from nullbooth_cli.schedule import Step

FORMAT = "nullbooth"
FORMAT_VERSION = 1
PACKAGES = ("nullbooth", "torch", "diffusers", "transformers", "zarr", "numpy")
# bfloat16 has no Zarr data type: its bits are stored, and a chunk that was never written reads as its NaN.
STORED_DTYPES: dict[str, tuple[str, Any]] = {"float16": ("f2", "NaN"), "float32": ("f4", "NaN"), "bfloat16": ("u2", 0x7FC0)}
_DATA_CHUNK = re.compile(r"^(features|moments|projectors)/.*(^|/)c[./]\d")


@dataclass(frozen=True)
class Site:
    """One recording: the tensor that enters (or leaves) one projection, or several that always share it.

    `layer` and `feature` are the first of the projections that share it, `weights` the parameters of all of them.
    """

    layer: str
    feature: str
    side: str
    weights: tuple[str, ...]
    timestep_free: bool
    num_tokens: int  # per prompt, over the recorded branches of guidance
    dim: int

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.feature}"


class DurableLocalStore(LocalStore):
    """LocalStore that can wait until its writes are on the disk, and that refuses to read data chunks which are not there."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._unsynced: set[Path] = set()
        self._guard = threading.Lock()

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        await super()._set(key, value, exclusive=exclusive)
        with self._guard:
            self._unsynced.add(self.root / key)

    async def delete_dir(self, prefix: str) -> None:
        await super().delete_dir(prefix)
        with self._guard:
            self._unsynced = {path for path in self._unsynced if not path.is_relative_to(self.root / prefix)}

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: Any = None) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        if _DATA_CHUNK.match(key) and (value is None or len(value) == 0):
            raise FileNotFoundError(errno.ENOENT, "chunk is missing or empty", str(self.root / key))
        return value

    def sync(self) -> None:
        """Return when every file written so far, and its folder's entry, is on the disk. Cost: one flush per file and folder."""
        with self._guard:
            paths, self._unsynced = self._unsynced, set()
        folders = {folder for path in paths for folder in (path.parent, path.parent.parent)}
        for path in [*paths, *folders]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class Store:
    """An open store. `Store.create` and `Store.open` make one; `lock()` guards every stage that writes."""

    def __init__(self, path: Path, group: zarr.Group, backing: DurableLocalStore) -> None:
        self.path = path
        self._group = group
        self._backing = backing
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> "Store":
        """Make an empty store. Raises StoreError if something else is there."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path} exists and is not a nullbooth store", "name another place with -s; nothing was changed")
        backing = DurableLocalStore(path)
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": dict(config),
            "packages": {name: version(name) for name in PACKAGES},
            "records": {},
            "sites": [],
        }
        try:
            group = zarr.create_group(backing, attributes=attributes)
        except OSError as error:
            raise _resource(error, path) from error
        return cls(path, group, backing)

    @classmethod
    def open(cls, path: str | Path, *, write: bool = False) -> "Store":
        """Open an existing store. Raises StoreError if there is none, or it is foreign or of a newer format."""
        path = Path(path)
        if not path.exists():
            raise StoreError(f"no store at {path}", "nullbooth collect makes one, from a config (-c)")
        backing = DurableLocalStore(path, read_only=not write)
        try:
            group = zarr.open_group(backing, mode="r+" if write else "r", use_consolidated=False)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is not a Zarr v3 group", "a store is the folder that nullbooth collect made") from error
        if group.attrs.get("format") != FORMAT:
            raise StoreError(
                f"{path} is a Zarr group, but not a nullbooth store", "name another place with -s; nothing was changed"
            )
        found = group.attrs.get("format_version")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise StoreError(
                f"{path} has store format {found}; this nullbooth reads up to {FORMAT_VERSION}", "pip install --upgrade nullbooth"
            )
        return cls(path, group, backing)

    @staticmethod
    def exists(path: str | Path) -> bool:
        return (Path(path) / "zarr.json").exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing. Raises StoreError naming the holder; a killed holder leaves nothing behind.

        The lock is a file beside the store: inside, Zarr would find an object that it does not know.
        """
        path = Path(f"{self.path}.lock")
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            holder = path.read_text() or "another process"
            raise StoreError(
                f"{self.path} is in use by {holder}", "wait for it, or stop it; its finished units are kept"
            ) from error
        try:
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            for leftover in self.path.rglob("*.partial"):
                leftover.unlink()
            yield
        finally:
            path.write_text("")
            lock.release()

    # Attributes: config, records, sites

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._attribute("config"))

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """What each stage that was begun depended on: {stage: {settings, upstream, fingerprint}}."""
        return dict(self._attribute("records"))

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(**{**site, "weights": tuple(site["weights"])}) for site in self._attribute("sites"))

    def write_config(self, config: Mapping[str, Any]) -> None:
        self._update(config=dict(config))

    def write_record(self, stage: str, record: Mapping[str, Any] | None) -> None:
        records = {name: value for name, value in self.records.items() if name != stage}
        self._update(records=records if record is None else {**records, stage: dict(record)})

    def _attribute(self, name: str) -> Any:
        return self._group.attrs[name]

    def _update(self, **attributes: Any) -> None:
        with self._writing():
            self._group.update_attributes(attributes)

    # Schedule and prompts

    def write_schedule(self, steps: tuple[Step, ...]) -> None:
        self.delete("schedule")
        self._write_vector("schedule/timesteps", np.array([step.timestep for step in steps]))
        self._write_vector("schedule/sigmas", np.array([step.sigma for step in steps]))
        self._write_vector("schedule/keys", [step.key for step in steps])
        self._backing.sync()

    def schedule(self) -> tuple[Step, ...]:
        names = ("timesteps", "sigmas", "keys")
        timesteps, sigmas, keys = (self._read(self._array(f"schedule/{name}"), slice(None), "schedule") for name in names)
        columns = zip(keys, timesteps, sigmas, strict=True)
        return tuple(Step(i, str(key), float(t), float(s)) for i, (key, t, s) in enumerate(columns))

    def write_prompts(self, prompts: tuple[Prompt, ...]) -> None:
        self.delete("prompts")
        self._write_vector("prompts/text", [prompt.text for prompt in prompts])
        self._write_vector("prompts/ids", [prompt.id for prompt in prompts])
        self._backing.sync()

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the collection, in its order; none before a collection was begun."""
        if "prompts/text" not in self._group:
            return ()
        return tuple(Prompt(str(text)) for text in self._read(self._array("prompts/text"), slice(None), "collect"))

    # Features

    def create_features(
        self, sites: tuple[Site, ...], num_steps: int, num_prompts: int, batch_size: int, dtype: str, compression: str | None
    ) -> None:
        """Size every features array at once, before any worker starts. Cost: about 5 ms a site."""
        stored, fill = STORED_DTYPES[dtype]
        crc = Crc32cCodec()
        codecs = [crc] if compression is None else [BloscCodec(cname="lz4", shuffle="bitshuffle"), crc]
        self.delete("features")
        for site in sites:
            self._create(
                f"features/{site.name}",
                (1 if site.timestep_free else num_steps, num_prompts, site.num_tokens, site.dim),
                (1, batch_size, site.num_tokens, site.dim),
                stored,
                fill,
                codecs,
                {"torch_dtype": dtype},
            )
        self._update(sites=[asdict(site) for site in sites])
        self.create_progress("collect", -(-num_prompts // batch_size))

    def feature_layout(self) -> tuple[int, str]:
        """(prompts per unit, torch dtype) of the features."""
        array = self._array(f"features/{self.sites[0].name}")
        return array.chunks[1], str(array.attrs["torch_dtype"])

    def write_features(self, site: Site, step_index: int, unit: int, values: NDArray[Any]) -> None:
        """Write one chunk, `[b, L, D]` in the stored dtype; b is a whole unit, or what the last one has."""
        array = self._array(f"features/{site.name}")
        start = unit * array.chunks[1]
        self._write(array, (step_index, slice(start, start + len(values))), values)

    def read_features(self, site: Site, step_index: int, unit: int) -> NDArray[Any]:
        """Read one chunk, `[b, L, D]` in the stored dtype (bfloat16 as its uint16 bits)."""
        array = self._array(f"features/{site.name}")
        batch = array.chunks[1]
        return self._read(array, (step_index, slice(unit * batch, (unit + 1) * batch)), "collect")

    # Moments

    def create_moments(self, sites: tuple[Site, ...], num_steps: int) -> None:
        self.delete("moments")
        for site in sites:
            t, d = 1 if site.timestep_free else num_steps, site.dim
            self._create(f"moments/{site.name}/sum_xxT", (t, d, d), (1, d, d), "f8", "NaN")
            self._create(f"moments/{site.name}/sum_x", (t, d), (1, d), "f8", "NaN")
            self._create(f"moments/{site.name}/count", (t,), (1,), "i8", 0)
        self.create_progress("covariance", sum(1 if site.timestep_free else num_steps for site in sites))

    def write_moment(self, site: Site, step_index: int, sum_xxt: NDArray[Any], sum_x: NDArray[Any], count: int) -> None:
        for name, value in (("sum_xxT", sum_xxt), ("sum_x", sum_x), ("count", count)):
            self._write(self._array(f"moments/{site.name}/{name}"), (step_index,), value)

    def read_moment(self, site: Site, step_index: int) -> tuple[NDArray[Any], NDArray[Any], int]:
        """(sum_xxT `[D, D]`, sum_x `[D]`, count) of one timestep."""
        parts = (self._array(f"moments/{site.name}/{name}") for name in ("sum_xxT", "sum_x", "count"))
        sum_xxt, sum_x, count = (self._read(array, (step_index,), "covariance") for array in parts)
        return sum_xxt, sum_x, int(count)

    # Projectors

    def create_projectors(self, sites: tuple[Site, ...], num_scopes: Mapping[str, int]) -> None:
        """Arrays for `num_scopes[site.name]` decompositions a site: 1 pooled, or one per timestep."""
        self.delete("projectors")
        for site in sites:
            s, d = num_scopes[site.name], site.dim
            self._create(f"projectors/{site.name}/eigenvalues", (s, d), (1, d), "f8", "NaN")
            self._create(f"projectors/{site.name}/eigenvectors", (s, d, d), (1, d, d), "f8", "NaN")
            self._create(f"projectors/{site.name}/null_dim", (s,), (1,), "i8", 0)
            self._create(f"projectors/{site.name}/leakage", (s,), (1,), "f8", "NaN")
        self.create_progress("decomposition", sum(num_scopes[site.name] for site in sites))

    def write_decomposition(self, site: Site, index: int, eigenvalues: NDArray[Any], eigenvectors: NDArray[Any]) -> None:
        self._write(self._array(f"projectors/{site.name}/eigenvalues"), (index,), eigenvalues)
        self._write(self._array(f"projectors/{site.name}/eigenvectors"), (index,), eigenvectors)

    def read_eigenvalues(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D]`, ascending."""
        return self._read(self._array(f"projectors/{site.name}/eigenvalues"), (index,), "project")

    def read_eigenvectors(self, site: Site, index: int) -> NDArray[np.float64]:
        """`[D, D]`, column i belongs to eigenvalue i."""
        return self._read(self._array(f"projectors/{site.name}/eigenvectors"), (index,), "project")

    def write_cut(self, site: Site, index: int, null_dim: int, leakage: float) -> None:
        """What a threshold made of one decomposition."""
        self._write(self._array(f"projectors/{site.name}/null_dim"), (index,), null_dim)
        self._write(self._array(f"projectors/{site.name}/leakage"), (index,), leakage)

    def read_cut(self, site: Site, index: int) -> tuple[int, float]:
        """(null_dim, leakage) of one decomposition."""
        null_dim, leakage = (
            self._read(self._array(f"projectors/{site.name}/{name}"), (index,), "project") for name in ("null_dim", "leakage")
        )
        return int(null_dim), float(leakage)

    # Progress

    def create_progress(self, stage: str, num_units: int) -> None:
        self.delete(f"progress/{stage}")
        self._create(f"progress/{stage}", (num_units,), (1,), "u1", 0)
        self._backing.sync()

    def progress(self, stage: str) -> NDArray[np.bool_]:
        """Which units of a stage are done, `[units]`; empty before the stage was begun. Cost: about 0.5 ms a unit."""
        if f"progress/{stage}" not in self._group:
            return np.zeros(0, dtype=bool)
        return np.asarray(self._read(self._array(f"progress/{stage}"), slice(None), stage) == 1)

    def commit(self, stage: str, unit: int) -> None:
        """Make all that was written durable, then mark the unit done: in this order."""
        with self._writing():
            self._backing.sync()
        self._write(self._array(f"progress/{stage}"), (unit,), 1)

    # Plumbing

    def delete(self, name: str) -> None:
        """Remove an array or a group and all below it, if it is there."""
        self._arrays = {path: array for path, array in self._arrays.items() if not path.startswith(name)}
        if name in self._group:
            with self._writing():
                del self._group[name]

    def bytes_of(self, name: str) -> int:
        """Bytes on disk below a group of the store."""
        folder = self.path / name
        return sum(os.path.getsize(os.path.join(root, file)) for root, _, files in os.walk(folder) for file in files)

    def _create(
        self,
        name: str,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: str,
        fill: Any,
        codecs: list[Any] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        with self._writing():
            self._arrays[name] = self._group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=fill,
                filters=None,
                compressors=codecs or [Crc32cCodec()],
                chunk_key_encoding={"name": "default", "separator": "."},
                attributes=attributes or {},
                config={"write_empty_chunks": True},
            )

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            found = self._group.get(name)
            if not isinstance(found, zarr.Array):
                raise StoreError(f"{self.path} has no array {name}", f"nullbooth {_stage_of(name)} --force writes it again")
            self._arrays[name] = found
        return self._arrays[name]

    def _write_vector(self, name: str, values: Any) -> None:
        data: Any = np.asarray(values, dtype=object if isinstance(values[0], str) else None)
        with self._writing():
            array = self._group.create_array(
                name, shape=data.shape, chunks=data.shape, dtype=str if data.dtype == object else "f8"
            )
            array[:] = data

    def _write(self, array: zarr.Array[Any], where: Any, values: Any) -> None:
        with self._writing():
            array[where] = values

    def _read(self, array: zarr.Array[Any], where: Any, stage: str) -> NDArray[Any]:
        try:
            return np.asarray(array[where])
        except (ValueError, RuntimeError, OSError) as error:
            index = where[0] if isinstance(where, tuple) else 0
            chunk = f"{array.path}[{index}" + (
                f", prompts {where[1].start}..]" if isinstance(where, tuple) and len(where) > 1 else "]"
            )
            raise StoreError(
                f"{self.path}: a chunk of {chunk} is damaged: {error}",
                f"nullbooth {stage} -s {self.path} --force writes it again",
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _resource(error, self.path) from error


def _resource(error: OSError, path: Path) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        return ResourceError(
            f"no room left for {path} ({free:,} bytes free)", "free some space and run the same command: finished units are kept"
        )
    return ResourceError(f"cannot write to {path}: {error}", "check the path and its permissions; finished units are kept")


def _stage_of(name: str) -> str:
    owners = {
        "schedule": "schedule",
        "prompts": "collect",
        "features": "collect",
        "moments": "covariance",
        "projectors": "project",
    }
    group, _, rest = name.partition("/")
    return owners.get(group, rest or group)
