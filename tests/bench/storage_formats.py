"""Every format the storage bench compares: how it writes a corpus, and its fastest way to give payloads back.

Each class imports its library only when it is used, because a format's process must load nothing else. A payload is
anything with the buffer protocol; where a library can hand out a view of its file, that view is taken and not a copy
(`view`). A format with `verifies` has compared the CRC-32 itself before it hands a payload out; of all others the
bench computes it.
"""

# ruff: noqa: PLC0415  a format's process must load nothing but that format

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.bench.storage_corpus import Corpus

PLACE = ("shard", "offset", "length", "crc32")


class Format:
    """One format. An instance is an opened data set; `imports` must have been called."""

    about = ""
    version_of = ""
    verifies = False
    reads = filters = True  # what is measured of it
    stored = ""  # another format's name when it reads what that one wrote

    @staticmethod
    def imports() -> None:
        """Import what reading needs."""

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        raise NotImplementedError

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.count

    def payload(self, index: int):
        """Return the payload of one clip."""
        raise NotImplementedError

    def random(self, order: list[int]) -> Iterable:
        """Yield the payloads of clips in the given order."""
        return map(self.payload, order)

    def sequential(self) -> Iterable:
        """Yield all payloads in the order they were written."""
        return self.random(range(len(self)))

    def best(self, threshold: float) -> Iterable:
        """Yield the payloads of all clips whose score reaches the threshold."""
        raise NotImplementedError


class Memmap(Format):
    """The limit: one file, offsets in memory, a slice of a map."""

    about = "np.memmap, one file (the limit)"
    version_of = "numpy"

    @staticmethod
    def imports() -> None:
        import numpy  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import numpy as np

        shutil.copyfile(corpus.path, folder / "payloads.bin")
        np.save(folder / "offsets.npy", np.array([*corpus.offsets, corpus.num_bytes]))
        np.save(folder / "scores.npy", np.array(corpus.scores))

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import numpy as np

        self.map = np.memmap(folder / "payloads.bin", mode="r")
        self.offsets = np.load(folder / "offsets.npy").tolist()
        self.scores = np.load(folder / "scores.npy", mmap_mode="r")
        self.count = len(corpus.lengths)

    def payload(self, index: int):
        return self.map[self.offsets[index] : self.offsets[index + 1]]

    def best(self, threshold: float) -> Iterable:
        return self.random((self.scores >= threshold).nonzero()[0].tolist())


class InMemory(Format):
    """No storage at all: what remains is the CRC-32 and the loop."""

    about = "bytes in memory (the CRC-32 and the loop alone)"
    version_of = "numpy"
    filters = False

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        """Write nothing."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:  # noqa: ARG002
        self.payloads, self.count = corpus.payloads, len(corpus.lengths)

    def payload(self, index: int):
        return self.payloads[index]


class Ours(Format):
    """Shards, ledger and a frozen view; the places of a batch's clips held as plain numbers."""

    about = "**kinoray, read_payload, verified**"
    version_of = "kinoray"
    verifies = True

    @staticmethod
    def imports() -> None:
        import ingest.shards
        import ingest.views  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        from ingest.clip import Prep
        from ingest.select import Selection
        from ingest.store import Dataset, empty_captions
        from tests.bench.storage_rows import commit_clips

        prep = Prep()
        dataset = Dataset.create(folder / "dataset", prep.contract, prep)
        dataset.commit(commit_clips(corpus, dataset), empty_captions(), app_id="bench", batch=1)
        best = Selection(where=f"motion >= {corpus.threshold!r}")
        views = {"all": dataset.freeze_view(), "best": dataset.freeze_view(selection=best)}
        names = {name: view.digest for name, view in views.items()}
        (folder / "views.json").write_text(json.dumps(names))

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        from ingest.objects import Root

        self.root = Root.of(folder / "dataset")
        self.digests = json.loads((folder / "views.json").read_text())
        self.places = self._places("all")
        self.count = len(corpus.lengths)

    def _places(self, name: str) -> list[tuple[str, int, int, int]]:
        from ingest.views import open_view

        table, _digest = open_view(self.root, self.digests[name])
        columns = [table.column(n).to_pylist() for n in PLACE]
        return list(zip(*columns, strict=True))

    def random(self, order: list[int]) -> Iterator:
        from ingest.shards import read_payload

        for index in order:
            yield read_payload(self.root, *self.places[index])

    def best(self, threshold: float) -> Iterator:  # noqa: ARG002  the view has been chosen by it
        from ingest.shards import read_payload

        for place in self._places("best"):
            yield read_payload(self.root, *place)


class OursReader(Ours):
    """The same through ViewReader.payload, which makes the clip's whole row for every read."""

    about = "kinoray, ViewReader.payload, verified"
    stored = "ours"
    filters = False

    @staticmethod
    def imports() -> None:
        import ingest.reader  # noqa: F401

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        from ingest.reader import ViewReader

        digests = json.loads((folder / "views.json").read_text())
        self.reader = ViewReader(folder / "dataset", digests["all"])
        self.count = len(corpus.lengths)

    def random(self, order: list[int]) -> Iterable:
        return map(self.reader.payload, order)


class OursKept(Ours):
    """Ad hoc: the table of kept clips in memory, filtered and read."""

    about = "kinoray, kept_clips in memory, filter + read"
    stored = "ours"
    reads = False

    @staticmethod
    def imports() -> None:
        import ingest.store  # noqa: F401

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        from ingest.store import Dataset

        self.dataset = Dataset.open(folder / "dataset")
        self.root = self.dataset.root
        kept = self.dataset.kept_clips().combine_chunks()
        self.places, self.scores = kept.select(PLACE), kept.column("motion")
        self.count = len(corpus.lengths)

    def _read(self, table) -> Iterator:
        from ingest.shards import read_payload

        columns = [table.column(n).to_pylist() for n in PLACE]
        for place in zip(*columns, strict=True):
            yield read_payload(self.root, *place)

    def best(self, threshold: float) -> Iterable:
        import pyarrow.compute as pc

        return self._read(self.places.filter(pc.greater_equal(self.scores, threshold)))


class OursSelect(OursKept):
    """Ad hoc: the stored ledger asked in SQL every time, then read."""

    about = "kinoray, Dataset.select (SQL over the stored ledger) + read"

    def best(self, threshold: float) -> Iterable:
        from ingest.select import Selection

        return self._read(self.dataset.select(Selection(where=f"motion >= {threshold!r}")))


def view(array, index: int):
    """Return one value of a large_binary array as a view. `as_buffer()` would copy it."""
    index += array.offset
    _valid, bounds, data = array.buffers()
    start, end = memoryview(bounds)[index * 8 : index * 8 + 16].cast("q")
    return data.slice(start, end - start)


def views(array) -> Iterator:
    """Yield all values of a large_binary array as views."""
    _valid, bounds, data = array.buffers()
    ends = memoryview(bounds).cast("q")[array.offset : array.offset + len(array) + 1]
    for start, end in itertools.pairwise(ends):
        yield data.slice(start, end - start)


def arrow_table(corpus: Corpus):
    import pyarrow as pa

    return pa.table(
        {
            "score": pa.array(corpus.scores, pa.float64()),
            "payload": pa.array(corpus.payloads, pa.large_binary()),
        }
    )


class ArrowBatches(Format):
    """A plain Arrow IPC file of 8 rows a batch, mapped, without an index of its own."""

    about = "Arrow IPC file, get_batch of 8 rows"
    version_of = "pyarrow"
    rows = 8

    @staticmethod
    def imports() -> None:
        import pyarrow  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import pyarrow as pa

        table = arrow_table(corpus)
        with pa.ipc.new_file(str(folder / "payloads.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=ArrowBatches.rows)

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import pyarrow as pa

        self.reader = pa.ipc.open_file(pa.memory_map(str(folder / "payloads.arrow")))
        self.count = len(corpus.lengths)

    def payload(self, index: int):
        batch = self.reader.get_batch(index // self.rows)
        return view(batch.column("payload"), index % self.rows)

    def sequential(self) -> Iterator:
        for number in range(self.reader.num_record_batches):
            yield from views(self.reader.get_batch(number).column("payload"))

    def best(self, threshold: float) -> Iterator:
        for number in range(self.reader.num_record_batches):
            batch = self.reader.get_batch(number)
            for place, score in enumerate(batch.column("score").to_pylist()):
                if score >= threshold:
                    yield view(batch.column("payload"), place)


class Parquet(Format):
    """Uncompressed Parquet, 8 rows a group, page index and statistics as written by default."""

    about = "Parquet, 8-row groups, uncompressed"
    version_of = "pyarrow"
    rows = 8

    @staticmethod
    def imports() -> None:
        import pyarrow.parquet  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import pyarrow.parquet as pq

        path = folder / "payloads.parquet"
        settings = {"compression": "none", "use_dictionary": False}
        pq.write_table(arrow_table(corpus), path, row_group_size=Parquet.rows, **settings)

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import pyarrow.parquet as pq

        self.path = folder / "payloads.parquet"
        self.file = pq.ParquetFile(self.path, memory_map=True)
        self.count = len(corpus.lengths)

    def _group(self, number: int):
        columns = {"columns": ["payload"], "use_threads": False}
        return self.file.read_row_group(number, **columns).column(0).chunk(0)

    def payload(self, index: int):
        return view(self._group(index // self.rows), index % self.rows)

    def sequential(self) -> Iterator:
        for number in range(self.file.num_row_groups):
            yield from views(self._group(number))

    def best(self, threshold: float) -> Iterator:
        import pyarrow.parquet as pq

        found = pq.read_table(
            self.path,
            columns=["payload"],
            filters=[("score", ">=", threshold)],
            memory_map=True,
            use_threads=False,
        )
        for chunk in found.column(0).chunks:
            yield from views(chunk)


OWN: dict[str, type[Format]] = {
    "memmap": Memmap,
    "memory": InMemory,
    "ours": Ours,
    "ours_reader": OursReader,
    "ours_kept": OursKept,
    "ours_select": OursSelect,
    "arrow": ArrowBatches,
    "parquet": Parquet,
}
