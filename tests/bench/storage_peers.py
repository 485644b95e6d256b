"""The peers of the storage bench: libraries with an environment of their own (requirements.lock in this folder)."""

# ruff: noqa: PLC0415  a format's process must load nothing but that format

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.bench.storage_corpus import Corpus
from tests.bench.storage_formats import Format, Memmap, arrow_table, views

SHARD_BYTES = 64_000_000
TAKE, BATCH = 32, 8  # how many clips Lance is asked for at once: the fastest of 1, 8, 32, 128
SHUFFLE = 256


class MemmapBeside(Memmap):
    """The limit again, in the peers' environment: their ratios are against this one."""

    about = "np.memmap, in the peers' environment"


class HuggingFace(Format):
    about = "HF datasets (Arrow), view of the row"
    version_of = "datasets"

    @staticmethod
    def imports() -> None:
        import datasets  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import datasets

        made = datasets.Dataset(arrow_table(corpus))
        made.save_to_disk(folder / "dataset", max_shard_size=SHARD_BYTES)

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import datasets

        self.dataset = datasets.load_from_disk(folder / "dataset")
        self.rows = self.dataset.select_columns(["payload"]).with_format("arrow")
        self.count = len(corpus.lengths)

    def payload(self, index: int):
        array = self.rows[index].column(0).chunk(0)
        return next(views(array))

    def sequential(self) -> Iterator:
        for table in self.rows.iter(TAKE):
            for chunk in table.column(0).chunks:
                yield from views(chunk)

    def best(self, threshold: float) -> Iterable:
        import numpy as np

        scores = np.asarray(self.dataset.with_format("numpy")["score"][:])
        return self.random(np.flatnonzero(scores >= threshold).tolist())


class Lance(Format):
    about = "Lance, large_binary, take of 32"
    version_of = "pylance"

    @staticmethod
    def imports() -> None:
        import lance  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import lance

        lance.write_dataset(arrow_table(corpus), str(folder / "dataset"))

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import lance

        self.dataset = lance.dataset(str(folder / "dataset"))
        self.count = len(corpus.lengths)

    def random(self, order: list[int]) -> Iterator:
        for i in range(0, len(order), TAKE):
            taken = self.dataset.take(order[i : i + TAKE], columns=["payload"])
            for chunk in taken.column(0).chunks:
                yield from views(chunk)

    def sequential(self) -> Iterator:
        for batch in self.dataset.to_batches(columns=["payload"], batch_size=BATCH):
            yield from views(batch.column(0))

    def best(self, threshold: float) -> Iterator:
        found = f"score >= {threshold!r}"
        for batch in self.dataset.to_batches(columns=["payload"], filter=found):
            yield from views(batch.column(0))


class LanceBlob(Format):
    about = "Lance blob v2, read_blobs of 32"
    version_of = "pylance"

    @staticmethod
    def imports() -> None:
        import lance  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import lance
        import pyarrow as pa

        schema = pa.schema([pa.field("score", pa.float64()), lance.blob_field("payload")])
        columns = [pa.array(corpus.scores, pa.float64()), lance.blob_array(corpus.payloads)]
        table = pa.Table.from_arrays(columns, schema=schema)
        lance.write_dataset(table, str(folder / "dataset"), data_storage_version="2.2")

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import lance

        self.dataset = lance.dataset(str(folder / "dataset"))
        self.count = len(corpus.lengths)

    def random(self, order: list[int]) -> Iterator:
        for i in range(0, len(order), TAKE):
            some = list(order[i : i + TAKE])
            for _row, payload in self.dataset.read_blobs(
                "payload", indices=some, preserve_order=True
            ):
                yield payload

    def best(self, threshold: float) -> Iterator:
        scores = self.dataset.to_table(columns=["score"]).column("score").to_pylist()
        return self.random([i for i, score in enumerate(scores) if score >= threshold])


class Mds(Format):
    about = "MosaicML MDS, dataset[i]"
    version_of = "mosaicml-streaming"

    @staticmethod
    def imports() -> None:
        import streaming  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import streaming

        columns = {"payload": "bytes", "score": "float64"}
        out = str(folder / "dataset")
        with streaming.MDSWriter(out=out, columns=columns, size_limit=SHARD_BYTES) as writer:
            for payload, score in zip(corpus.payloads, corpus.scores, strict=True):
                writer.write({"payload": payload, "score": score})

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import streaming

        streaming.base.util.clean_stale_shared_memory()
        self.dataset = streaming.StreamingDataset(local=str(folder / "dataset"), batch_size=1)
        self.count = len(corpus.lengths)

    def payload(self, index: int):
        return self.dataset[index]["payload"]

    def best(self, threshold: float) -> Iterator:
        for index in range(len(self)):
            row = self.dataset[index]
            if row["score"] >= threshold:
                yield row["payload"]


def row_of(pair: tuple[bytes, float]) -> tuple[bytes, float]:
    """What LitData's writer is given; a module's function, because it sends it to a process.

    A tuple of plain values is its fastest layout, a view of the map; rows that are dictionaries were read in
    random order a hundred times slower.
    """
    return pair


class Lit(Format):
    about = "LitData, dataset[i] / iteration"
    version_of = "litdata"

    @staticmethod
    def imports() -> None:
        import litdata  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import litdata

        litdata.optimize(
            row_of,
            list(zip(corpus.payloads, corpus.scores, strict=True)),
            str(folder / "dataset"),
            chunk_bytes=SHARD_BYTES,
            num_workers=1,
            keep_data_ordered=True,
            verbose=False,
        )

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        import litdata

        self.dataset = litdata.StreamingDataset(str(folder / "dataset"))
        self.count = len(corpus.lengths)

    def payload(self, index: int):
        return self.dataset[index][0]

    def sequential(self) -> Iterator:
        for payload, _score in self.dataset:
            yield payload

    def best(self, threshold: float) -> Iterator:
        for payload, score in self.dataset:
            if score >= threshold:
                yield payload


class WebDataset(Format):
    about = "WebDataset; random = its shuffle buffer of 256"
    version_of = "webdataset"

    @staticmethod
    def imports() -> None:
        import webdataset  # noqa: F401

    @staticmethod
    def write(corpus: Corpus, folder: Path) -> None:
        import webdataset

        pattern = str(folder / "shard-%04d.tar")
        with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as writer:
            for i, (payload, score) in enumerate(zip(corpus.payloads, corpus.scores, strict=True)):
                facts = json.dumps({"score": score}).encode()
                writer.write({"__key__": f"{i:08d}", "mp4": payload, "json": facts})

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.shards = [str(path) for path in sorted(folder.glob("*.tar"))]
        self.count = len(corpus.lengths)

    def _rows(self):
        import webdataset

        return webdataset.WebDataset(self.shards, shardshuffle=False)

    def sequential(self) -> Iterator:
        for row in self._rows():
            yield row["mp4"]

    def random(self, order: list[int]) -> Iterator:
        for _ in range(len(order) // len(self)):
            for row in self._rows().shuffle(SHUFFLE):
                yield row["mp4"]

    def best(self, threshold: float) -> Iterator:
        for row in self._rows():
            if json.load(io.BytesIO(row["json"]))["score"] >= threshold:
                yield row["mp4"]


PEERS: dict[str, type[Format]] = {
    "memmap_beside": MemmapBeside,
    "hf": HuggingFace,
    "lance": Lance,
    "lance_blob": LanceBlob,
    "mds": Mds,
    "litdata": Lit,
    "webdataset": WebDataset,
}
