"""What Zarr's array API would add to collect and covariance in place of our chunk encoder (store/chunks.py), and what tags cost.

One run of each stage is recorded: every chunk that it writes and reads. The same chunks are then written and read again, by our
encoder and by `array[...]`, both through our storage, which flushes every file. The share is the difference over
the stage's time. CPU time is what counts on a shared machine; `--threads 1` makes it steady. Reads come from the system's cache.

Tags are timed in memory: the same chunk is encoded and decoded with its tag, and without one as in store format 4.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zarr

from nullbooth_cli.store import Store
from nullbooth_cli.store import chunks as encoder
from nullbooth_cli.store.arrays import ArrayGroup, chunk_key
from nullbooth_cli.store.metadata import ID, TAG_BYTES, StoredArray, array_document, new_id
from tests.benchmarks.collect import collected
from tests.benchmarks.common import Figure, Stopwatch, disk_rates, figure, in_turns, median_wall, parse, parser, show, workplace
from tests.benchmarks.covariance import reduced
from tests.benchmarks.subjects import Subject, random_subject, store_features, subject, toy_pipeline

SHAPES = {"70 kB": (96, 364), "10 MB": (4096, 1280)}  # tokens, dim of one prompt in float16
TAGGED = {"4 bytes": 1, "70 kB": 17_500, "4 MB": 1_000_000}  # float32 values of a chunk


@dataclass
class Chunks:
    """The chunks that a stage wrote and read, in order: name, index and, of those it wrote, the values."""

    written: list[tuple[str, tuple[int, ...], Any]] = field(default_factory=list)
    read: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)


@contextmanager
def recorded() -> Iterator[Chunks]:
    chunks, write, read = Chunks(), ArrayGroup.write_chunk, ArrayGroup.read_chunk

    def write_chunk(self: ArrayGroup, name: str, index: tuple[int, ...], values: Any) -> None:
        chunks.written.append((name, index, values.copy()))
        write(self, name, index, values)

    def read_chunk(self: ArrayGroup, name: str, index: tuple[int, ...]) -> Any:
        chunks.read.append((name, index))
        return read(self, name, index)

    with mock.patch.multiple(ArrayGroup, write_chunk=write_chunk, read_chunk=read_chunk):
        yield chunks


def ours(store: Store, chunks: Chunks) -> None:
    for name, index, values in chunks.written:
        store.arrays.write_chunk(name, index, values)
    for name, index in chunks.read:
        store.arrays.read_chunk(name, index)


def through_zarr(store: Store, chunks: Chunks) -> None:
    """A chunk that is missing reads as the fill value, so that its file is looked for first."""
    for name, index, values in chunks.written:
        array, places = placed(store, name, index)
        array[places] = values[tuple(slice(place.stop - place.start) for place in places)]
    for name, index in chunks.read:
        array, places = placed(store, name, index)
        assert (store.path / chunk_key(name, index)).exists()
        array[places]


@cache
def opened(store: Store, name: str) -> Any:
    """An array as Zarr opens it, on our storage. In the chunks that Zarr writes there is no tag."""
    return zarr.open_array(store.arrays.backing.zarr, path=name, mode="r+", config={"write_empty_chunks": True})


def placed(store: Store, name: str, index: tuple[int, ...]) -> tuple[Any, tuple[slice, ...]]:
    """An array, and where in it a chunk is; the last chunk of an axis may reach over the end."""
    array = opened(store, name)
    ends = zip(index, array.chunks, array.shape, strict=True)
    return array, tuple(slice(number * length, min((number + 1) * length, end)) for number, length, end in ends)


def shares(name: str, store: Store, chunks: Chunks, stage: Callable[[Stopwatch], None], repeats: int) -> tuple[Figure, float]:
    """(The time of all chunks through Zarr over ours; the share of the stage that the difference is, in CPU time)."""
    runs = {
        "stage": stage,
        "ours": lambda watch: timed(watch, ours, store, chunks),
        "zarr": lambda watch: timed(watch, through_zarr, store, chunks),
    }
    times = in_turns(runs, repeats)
    of = {run: statistics.median(watch.cpu for watch in watches) for run, watches in times.items()}
    share = (of["zarr"] - of["ours"]) / of["stage"]
    rest = (
        f"{len(chunks.written)} chunks written, {len(chunks.read)} read; CPU seconds: Zarr {of['zarr']:.3f}, "
        f"ours {of['ours']:.3f}, the whole stage {of['stage']:.3f}: Zarr would add {share:.1%}"
    )
    return figure(f"Zarr over ours, {name}", times["zarr"], times["ours"], rest=rest), share


def timed(watch: Stopwatch, act: Callable[[Store, Chunks], None], store: Store, chunks: Chunks) -> None:
    with watch:
        act(store, chunks)


def stages(folder: Path, of: Subject, repeats: int) -> Iterator[tuple[str, Figure, float]]:
    """Collect with features and with moments, and covariance."""
    for keep in ("features", "moments"):
        place, replayed = folder / "run.zarr", of.new_store(folder / f"{keep}.zarr", keep)
        with recorded() as chunks:
            collected(Stopwatch(), of, keep, place)
        name = f"collect, {keep}"
        yield name, *shares(name, replayed, chunks, lambda w, k=keep, p=place: collected(w, of, k, p) and None, repeats)
    store = of.new_store(folder / "covariance.zarr", "features")
    store_features(store, of, of.record())
    with recorded() as chunks:
        reduced(Stopwatch(), store, of)
    yield "covariance", *shares("covariance", store, chunks, lambda watch: reduced(watch, store, of), repeats)


def sizes(folder: Path, megabytes: int, repeats: int) -> Iterator[Figure]:
    """Chunks of one size each, of two timesteps where they fit."""
    written, read = disk_rates(folder)
    for size, shape in SHAPES.items():
        count = max(2, megabytes * 500_000 // (shape[0] * shape[1]))
        of, tensors = random_subject([shape], num_steps=2, batch_size=1, num_units=count)
        site, _, tensor = tensors[0]
        store = of.new_store(folder / size.replace(" ", ""), "features")
        values = np.stack([tensor.numpy()] * len(store.blocks(site)[0]))
        every = [(f"features/{site.name}", (0, unit, 0, 0)) for unit in range(count)]
        parts = {"write": Chunks(written=[(*where, values) for where in every]), "read": Chunks(read=every)}
        for what, chunks in parts.items():
            runs = {
                "ours": lambda w, s=store, c=chunks: timed(w, ours, s, c),
                "zarr": lambda w, s=store, c=chunks: timed(w, through_zarr, s, c),
            }
            ours(store, parts["write"])  # what Zarr wrote has no tags
            for warm_up in runs.values():
                warm_up(Stopwatch())
            times = in_turns(runs, repeats)
            own, other = (1e3 * median_wall(times[run]) / count for run in ("ours", "zarr"))
            floor = 1e3 * values.nbytes / {"write": written, "read": read}[what]
            rest = f"milliseconds a chunk: Zarr {other:.3f}, ours {own:.3f}, the bytes alone {floor:.3f}"
            yield figure(f"Zarr over ours, {what} {size}", times["zarr"], times["ours"], rest=rest)


def tags(most: int, repeats: int) -> Iterator[Figure]:
    """Encoding and decoding a chunk with a tag, over the same without one. `most` chunks are coded, or fewer of large ones."""
    untagged = {"TAG_BYTES": 0, "TAIL_BYTES": encoder.TAIL_BYTES - TAG_BYTES}
    for size, length in TAGGED.items():
        values = np.random.default_rng(0).random(length, np.float32)
        count = max(10, most // (1 + values.nbytes // 100_000))
        runs = {
            "with": lambda watch, v=values, n=count: coded(watch, v, n, one_chunk(len(v)).tag),
            "without": lambda watch, v=values, n=count: coded(watch, v, n, lambda _: b"", **untagged),
        }
        times = in_turns(runs, repeats)
        tagged, plain = (1e6 * min(watch.cpu for watch in times[run]) / count for run in runs)
        rest = f"microseconds of CPU a chunk, the least: with a tag {tagged:.1f}, without {plain:.1f}, {count} chunks"
        yield figure(f"a tag over none, {size}", times["with"], times["without"], rest=rest)


def one_chunk(length: int) -> StoredArray:
    """An array of one chunk of float32."""
    shape, attributes = (length,), {ID: new_id()}
    document = array_document(shape=shape, chunks=shape, dtype="float32", fill="NaN", attributes=attributes, compressed=False)
    return StoredArray.described(document, "features/site", new_id())


def coded(watch: Stopwatch, values: Any, count: int, tag: Callable[[tuple[int, ...]], bytes], **layout: int) -> None:
    """Encode and decode a chunk `count` times; `layout` replaces constants of the encoder."""
    with mock.patch.multiple(encoder, **layout) if layout else nullcontext():
        parts = encoder.encode(values, values.dtype, tag((0,)), compressed=False)
        data = np.frombuffer(b"".join(parts), np.uint8)
        with watch:
            for _ in range(count):
                encoder.encode(values, values.dtype, tag((0,)), compressed=False)
                encoder.decode(data, values.dtype, values.shape, tag((0,)), compressed=False)


def main() -> None:
    made = parser(__doc__, repeats=7)
    made.add_argument("--megabytes", type=int, default=100, help="bytes a run, of each size of chunk; 0 for none")
    made.add_argument("--tags", type=int, default=20_000, help="chunks to code with a tag and without; 0 for none")
    made.add_argument("--steps", type=int, default=30, help="denoising steps of the toy")
    made.add_argument("--batch", type=int, default=24, help="prompts a batch of the toy")
    made.add_argument("--units", type=int, default=4, help="batches of the toy")
    arguments = parse(made)
    figures: list[Figure] = []
    added: dict[str, float] = {}
    with workplace(arguments) as folder:
        of = subject(toy_pipeline(), num_steps=arguments.steps, batch_size=arguments.batch, num_units=arguments.units)
        for name, found, share in stages(folder, of, arguments.repeats):
            figures.append(found)
            added[name] = share
        if arguments.megabytes:
            figures.extend(sizes(folder, arguments.megabytes, arguments.repeats))
    if arguments.tags:
        figures.extend(tags(arguments.tags, arguments.repeats))
    show("chunks", figures, arguments, share_of_cpu_time_that_zarr_would_add=added)


if __name__ == "__main__":
    main()
