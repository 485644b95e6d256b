import hashlib
import random
import zlib

import pyarrow as pa
import pytest

from ingest import sync as sync_module
from ingest.clip import Contract, Prep
from ingest.files import StorageError
from ingest.objects import Root
from ingest.purge import purge
from ingest.refs import Place, Tag, write_tag
from ingest.schema import ANNOTATIONS, latents_schema
from ingest.shards import CorruptPayload, read_payload, write_shard
from ingest.store import ContractMismatch, Dataset, NotADataset
from ingest.sync import SyncMismatch, WouldLose, sync
from ingest.upkeep import merge_update
from tests.ingest.made import allow, label, made, run, said, told


def alike(one, other):
    """Whether two datasets hold the same rows, and the second reads the same payloads."""
    by = [(name, "ascending") for name in ("unit_id", "kind", "id")]
    assert one.ledger().sort_by(by).equals(other.ledger().sort_by(by))
    for name, (_make, key) in ANNOTATIONS.items():
        by = [(column, "ascending") for column in key.split(",")]
        assert one.annotation(name).sort_by(by).equals(other.annotation(name).sort_by(by)), name
    rows = [*other.kept_clips().to_pylist(), *other.annotation("latents").to_pylist()]
    for row in rows:
        read_payload(other.root, row["shard"], row["offset"], row["length"], row["crc32"])
    return one.digest() == other.digest()


def add_latents(dataset):
    """Store something that a model made of every clip, in a shard of its own."""
    clips = dataset.kept_clips().to_pylist()
    payloads = [random.Random(row["clip_id"]).randbytes(64) for row in clips]
    shard = [
        {
            "clip_id": bytes.fromhex(row["clip_id"]),
            "payload_sha256": hashlib.sha256(payload).digest(),
            "payload_crc32": zlib.crc32(payload),
            "payload": payload,
        }
        for row, payload in zip(clips, payloads, strict=True)
    ]
    rows = []
    for row, place in zip(clips, write_shard(shard, dataset.root), strict=True):
        where = {name: getattr(place, name) for name in place.__slots__}
        kind = {"payload_kind": "latent_f16_tchw", "shape": "[1, 2, 4, 4]"}
        rows.append(said(row | {"id": row["clip_id"]}, "vae") | where | kind)
    table = pa.Table.from_pylist(rows, schema=latents_schema())
    dataset.annotate(
        "latents", table, app_id="vae", batch=dataset.next_annotation("latents", "vae")
    )


@pytest.fixture
def source(tmp_path):
    dataset = made(tmp_path / "source", sources=4, clips=2, shards=2)
    label(dataset, "walking")
    allow(dataset, 1, "cc0")
    add_latents(dataset)
    return dataset


def test_the_second_place_says_and_holds_the_same(source, tmp_path):
    heard = []
    done = sync(source, tmp_path / "copy", progress=lambda *found: heard.append(found))
    copy = Dataset.open(tmp_path / "copy")
    assert alike(source, copy)
    assert (copy.contract, copy.prep_digest) == (source.contract, source.prep_digest)
    assert (done.copied, done.skipped, done.digest) == (3, 0, source.digest())
    assert done.bytes == sum(entry.bytes for entry in copy.root.names("data"))
    assert set(done.tables) == {"captions", "labels", "latents", "rights", "ledger"}
    assert heard[-1] == (3, 3)
    versions = copy.versions()
    again = sync(source, tmp_path / "copy")
    assert (again.copied, again.skipped, again.tables) == (0, 3, ())
    assert Dataset.open(tmp_path / "copy").versions() == versions
    for place, other in ((copy, "from"), (source, "to")):
        logged = [row["detail"] for row in place.history() if other in row["detail"]]
        assert [row["copied"] for row in logged] == [3]
    assert not list(copy.root.names("views"))


def test_to_a_store_and_back(source, bucket, tmp_path):
    assert sync(source, bucket).copied == 3
    remote = Dataset.open(bucket)
    assert alike(source, remote)
    assert sync(source, bucket).skipped == 3
    assert sync(remote, tmp_path / "back").copied == 3
    assert alike(source, Dataset.open(tmp_path / "back"))


def test_what_changes_at_the_source_follows(source, tmp_path):
    sync(source, tmp_path / "copy")
    made(source.root, sources=1, clips=2, first=9)
    source.refresh()
    label(source, "running", producer="later")
    done = sync(source, tmp_path / "copy")
    assert (done.copied, done.skipped) == (1, 3)
    assert set(done.tables) == {"captions", "labels", "ledger"}
    assert alike(source, Dataset.open(tmp_path / "copy"))

    # A corrected label and a re-fated clip: rows that are there already change.
    rows = source.annotation("labels").slice(0, 1)
    fixed = rows.set_column(3, rows.schema.field(3), pa.array(["standing"]))
    on = {name: name for name in ANNOTATIONS["labels"][1].split(",")}
    merge_update(source.table("annotations/labels"), fixed, on=on, update=["label"])
    clip = source.ledger().filter(pa.compute.field("kind") == "clip").slice(0, 1)
    columns = clip.schema.names
    refated = clip.set_column(
        columns.index("fate"), clip.schema.field("fate"), pa.array(["rejected"])
    )
    on = {name: name for name in ("unit_id", "kind", "id")}
    merge_update(source.table("ledger"), refated, on=on, update=["fate"])
    source.refresh()
    done = sync(source, tmp_path / "copy")
    assert set(done.tables) == {"labels", "ledger"}
    copy = Dataset.open(tmp_path / "copy")
    assert alike(source, copy)
    assert copy.kept_clips().num_rows == 9


def test_an_old_version_can_be_sent(source, tmp_path):
    write_tag(source.root, tag_of(source))
    before = told(source)
    made(source.root, sources=1, clips=2, first=9)
    sync(Dataset.open(source.root, "first"), tmp_path / "copy")
    assert told(Dataset.open(tmp_path / "copy")) == before
    sync(Dataset.open(source.root), tmp_path / "copy")
    with pytest.raises(WouldLose, match="1 units of work"):
        sync(Dataset.open(source.root, "first"), tmp_path / "copy")


def tag_of(dataset):
    tables = {
        name: Place(path=name, version=version)
        for name, version in dataset.versions().items()
        if name != "log"
    }
    return Tag(name="first", at="", digest=dataset.digest(), tables=tables)


def test_nothing_is_lost_at_the_destination(source, tmp_path):
    sync(source, tmp_path / "copy")
    copy = Dataset.open(tmp_path / "copy")
    label(copy, "running", producer="there")
    with pytest.raises(WouldLose, match="8 labels that the source lacks"):
        sync(source, tmp_path / "copy")
    sync(copy, source.root)
    source.refresh()
    assert sync(source, tmp_path / "copy").tables == ()
    made(copy.root, sources=1, clips=1, first=7)
    versions = Dataset.open(copy.root).versions()
    with pytest.raises(WouldLose, match="1 units"):
        sync(source, copy.root)
    assert Dataset.open(copy.root).versions() == versions


def test_wrong_destinations(source, tmp_path):
    with pytest.raises(WouldLose, match="overlap"):
        sync(source, source.root)
    Dataset.create(tmp_path / "other", Contract(), Prep(crf=30))
    with pytest.raises(ContractMismatch):
        sync(source, tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(NotADataset):
        sync(source, tmp_path / "mine")


def test_a_damaged_shard_stops_by_name_and_the_tables_wait(source, tmp_path):
    name = sorted(entry.name for entry in source.root.names("data"))[1]
    path = source.root.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + b"x" + whole[51:])
    with pytest.raises(CorruptPayload, match=name):
        sync(source, tmp_path / "copy", workers=1)
    copy = Dataset.open(tmp_path / "copy")
    assert copy.ledger().num_rows == copy.captions().num_rows == 0
    assert name not in {entry.name for entry in copy.root.names("data")}
    path.unlink()
    with pytest.raises(CorruptPayload, match=f"{name}.*gone"):
        sync(source, tmp_path / "copy")
    path.write_bytes(whole)
    assert sync(source, tmp_path / "copy").skipped >= 1
    assert alike(source, Dataset.open(tmp_path / "copy"))


def test_bytes_that_arrive_damaged_are_sent_again_or_refused(source, tmp_path, monkeypatch):
    target = Root.of(tmp_path / "copy")
    name = sorted(entry.name for entry in source.root.names("data"))[0]
    whole = source.root.read(name)
    target.replace(name, whole[:-1] + b"?")  # of the right size, left by who knows whom
    assert sync(source, target).copied == 3
    assert target.read(name) == whole

    upload = Root.upload

    def flip(self, name, path):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"?")
        upload(self, name, path)

    monkeypatch.setattr(Root, "upload", flip)
    with pytest.raises(StorageError, match="reads back"):
        sync(source, tmp_path / "bad")
    assert not list(Root.of(tmp_path / "bad").names("data"))


def test_somebody_who_writes_meanwhile_is_noticed(source, tmp_path, monkeypatch):
    align = sync_module._align

    def meddle(*both):
        changed = align(*both)
        made(tmp_path / "copy", sources=1, clips=1, first=8)
        return changed

    monkeypatch.setattr(sync_module, "_align", meddle)
    with pytest.raises(SyncMismatch, match="run it again"):
        sync(source, tmp_path / "copy")


def payload_of(dataset, row):
    place = row["shard"], row["offset"], row["length"], row["crc32"]
    return bytes(read_payload(dataset.root, *place))


def test_what_is_taken_down_goes_everywhere(source, tmp_path, monkeypatch):
    target = Root.of(tmp_path / "copy")
    sync(source, target)
    Dataset.open(target).freeze_view()
    first, *_, last = source.kept_clips().to_pylist()
    gone = [row for row in source.kept_clips().to_pylist()
            if row["source_sha256"] == first["source_sha256"] or row == last]  # fmt: skip
    payloads = [payload_of(source, row)[:200] for row in gone]

    def holding(root):
        """Files with bytes of what is taken down; a clip's id does not count, it names its fate."""
        read = {entry.name: root.read(entry.name) for entry in root.names()}
        return [name for name, data in read.items() if any(one in data for one in payloads)]

    assert holding(target)
    purge(source, sources=[first["source_sha256"]], clips=[last["clip_id"]], reason="asked to")
    source = Dataset.open(source.root)
    assert not holding(source.root)

    def dies(_dataset):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(sync_module, "complete", dies)
        with pytest.raises(InterruptedError):
            sync(source, target)
    assert holding(target)
    done = sync(source, target)
    assert done.left == ()
    assert not holding(target)
    copy = Dataset.open(target)
    assert alike(source, copy)
    assert copy.purged() >= {first["source_sha256"], last["clip_id"]}
    operations = len(copy.history())
    assert sync(source, target).tables == ()
    assert len(Dataset.open(target).history()) == operations
    fresh = sync(source, tmp_path / "fresh")
    assert fresh.digest == copy.digest()
    assert Dataset.open(tmp_path / "fresh").purged() == source.purged()


SYNC = """
import sys
from ingest import sync
from ingest.store import Dataset
sync.PIECE_BYTES = int(sys.argv[3])  # small ones take their time
sync.sync(Dataset.open(sys.argv[1]), sys.argv[2], workers=2)
"""


@pytest.mark.parametrize(("place", "shards"), [("folder", 60), ("store", 16)])
def test_a_killed_sync_goes_on_where_it_was(place, shards, tmp_path, request):
    source = made(tmp_path / "source", sources=shards, clips=1, size=100_000, shards=shards)
    target = Root.of(tmp_path / "copy" if place == "folder" else request.getfixturevalue("bucket"))

    def arrived():
        return sum(".writing-" not in entry.name for entry in target.names("data"))

    piece = 512 if place == "folder" else 20_000
    for wanted in (3, 12) if place == "folder" else (3,):
        assert run(SYNC, source.root, target, piece, kill_when=lambda n=wanted: arrived() >= n)
        assert Dataset.open(target).ledger().num_rows == 0
    there = arrived()
    assert 0 < there < shards
    done = sync(source, target)
    assert (done.copied, done.skipped) == (shards - there, there)
    assert alike(source, Dataset.open(target))
