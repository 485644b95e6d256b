import hashlib
import importlib.util
import io
import json
import random
import tarfile
from dataclasses import astuple, replace
from functools import partial

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import admit, exports, imports
from ingest.arrivals import NotImportable
from ingest.clip import Contract, Prep
from ingest.encode import encode_clip, encode_still
from ingest.exports import export
from ingest.objects import Root
from ingest.select import Selection
from ingest.shards import read_payload
from ingest.store import ContractMismatch, Dataset
from ingest.vet import Vetting
from tests.ingest.made import allow, digest, label, made, run, told

import_clips = partial(imports.import_clips, workers=1)
NO_LANCE = importlib.util.find_spec("lance") is None
FORMATS = [
    "webdataset",
    "folder",
    pytest.param("lance", marks=pytest.mark.skipif(NO_LANCE, reason="the extra is absent")),
]


def frames(count, seed=0, px=64):
    y, x = np.mgrid[:px, :px]
    waves = [128 + 90 * np.sin((x + 2 * k + 7 * seed) / 9 + y / 14) for k in range(count)]
    return np.stack([np.stack([wave] * 3, axis=-1).astype(np.uint8) for wave in waves])


@pytest.fixture(scope="module")
def clips():
    """Encoded clips: two that satisfy the contract, one too short, one at another rate."""
    fast = Prep(contract=Contract(frames=80, fps=25))
    return {
        "one": encode_clip(frames(80), Prep()),
        "two": encode_clip(frames(80, seed=1), Prep()),
        "short": encode_clip(frames(20), Prep(contract=Contract(frames=20))),
        "fast": encode_clip(frames(80), fast),
    }


def tar(path, members):
    """Write members (name, bytes), or a TarInfo as it is, in their order."""
    with tarfile.open(path, "w") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            entry = tarfile.TarInfo(member[0])
            entry.size = len(member[1])
            file.addfile(entry, io.BytesIO(member[1]))
    return path


def rows(dataset, *columns, kind="source"):
    """Ledger rows of one kind by the last part of their source's name."""
    found = dataset.ledger().to_pylist()
    return {
        row["source_uri"].rpartition("/")[2]: tuple(row[name] for name in columns)
        for row in found
        if row["kind"] == kind
    }


def payload(dataset, row):
    place = row["shard"], row["offset"], row["length"], row["crc32"]
    return bytes(read_payload(dataset.root, *place))


def annotations(dataset):
    return {
        name: sorted(
            json.dumps(row, sort_keys=True) for row in dataset.annotation(name).to_pylist()
        )
        for name in ("captions", "labels", "rights")
    }


def full(root):
    dataset = made(root, sources=5, clips=4)
    label(dataset, "walking")
    label(dataset, "running", producer="other")
    allow(dataset, 1, "cc-by-4.0")
    return dataset


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_comes_back_as_it_was(name, tmp_path):
    dataset = full(tmp_path / "dataset")
    export(dataset, tmp_path / "out", format=name, shard_bytes=20_000)
    done = import_clips(tmp_path / "back", tmp_path / "out")
    assert astuple(done)[:6] == (20, 0, 0, 0, 5, 5)
    back = Dataset.open(tmp_path / "back")
    assert told(back) == told(dataset)
    assert annotations(back) == annotations(dataset)
    assert back.digest() == dataset.digest()
    assert back.freeze_view().digest == dataset.freeze_view().digest
    assert back.balance().ok
    assert (back.contract, back.prep_digest) == (dataset.contract, dataset.prep_digest)
    for row in back.kept_clips().to_pylist():
        assert hashlib.sha256(payload(back, row)).hexdigest() == row["payload_sha256"]
    columns = ["start_pts", "end_pts", "timebase_den", "shot_index", "source_bytes", "keep_digest"]
    asked = f"SELECT id, {', '.join(columns)} FROM ledger WHERE kind = 'clip' ORDER BY id"
    assert back.query(asked).equals(dataset.query(asked))

    versions, history = back.versions(), back.history()
    again = import_clips(tmp_path / "back", tmp_path / "out")
    assert again == replace(done, new_units=0)
    back = Dataset.open(tmp_path / "back")
    assert (back.versions(), back.history()) == (versions | {"log": 1}, history)
    assert [row["operation"] for row in history] == ["import"]


def test_real_clips_come_back_from_a_store(small_dataset, bucket, tmp_path):
    export(small_dataset, tmp_path / "out")
    import_clips(bucket, tmp_path / "out")
    back = Dataset.open(bucket)
    assert told(back) == told(small_dataset)
    assert back.freeze_view().digest == small_dataset.freeze_view().digest
    row = back.kept_clips().to_pylist()[0]
    assert hashlib.sha256(payload(back, row)).hexdigest() == row["payload_sha256"]


def test_parts_of_a_dataset_meet_again_in_one(tmp_path):
    dataset = full(tmp_path / "dataset")
    for name, where in (("a", "start_s < 8"), ("b", "start_s > 2")):
        export(dataset, tmp_path / name, selection=Selection(where=where))
    first = import_clips(tmp_path / "back", tmp_path / "a")
    second = import_clips(tmp_path / "back", tmp_path / "b")
    assert (first.kept, second.kept, second.duplicates) == (10, 10, 5)
    back = Dataset.open(tmp_path / "back")
    assert told(back) == told(dataset)
    assert back.balance().ok
    assert import_clips(dataset.root, tmp_path / "a").duplicates == 10
    assert told(Dataset.open(dataset.root)) == told(back)


def test_other_contracts_do_not_mix(tmp_path):
    export(made(tmp_path / "dataset", sources=1), tmp_path / "out")
    Dataset.create(tmp_path / "other", Contract(), Prep(crf=30))
    with pytest.raises(ContractMismatch):
        import_clips(tmp_path / "other", tmp_path / "out")
    with pytest.raises(ContractMismatch, match="another contract"):
        import_clips(tmp_path / "new", tmp_path / "out", contract=Contract(frames=40))
    tar(tmp_path / "x.tar", [("a.mp4", b"x")])
    with pytest.raises(ContractMismatch, match="another contract"):
        import_clips(tmp_path / "other", tmp_path / "x.tar", contract=Contract(frames=40))


def test_what_was_taken_down_does_not_come_back(tmp_path):
    dataset = made(tmp_path / "dataset", sources=3, clips=2)
    export(dataset, tmp_path / "out")
    clip = dataset.kept_clips().column("clip_id")[0].as_py()
    source = next(digest(f"source {n}") for n in range(3) if clip not in of_source(dataset, n))
    Dataset.create(tmp_path / "back", dataset.contract, Prep()).log_operation(
        "purge", {"sources": [source], "clips": [clip]}
    )
    done = import_clips(tmp_path / "back", tmp_path / "out")
    assert (done.kept, done.rejected) == (3, 3)
    back = Dataset.open(tmp_path / "back")
    assert back.query("SELECT DISTINCT rule FROM ledger WHERE fate = 'rejected'").to_pylist() == [
        {"rule": "purged"}
    ]
    assert clip not in back.kept_clips().column("clip_id").to_pylist()
    assert back.balance().ok


def of_source(dataset, number):
    rows = dataset.kept_clips().to_pylist()
    return {row["clip_id"] for row in rows if row["source_sha256"] == digest(f"source {number}")}


def test_a_damaged_export_is_refused_or_its_clip_fails(tmp_path):
    dataset = made(tmp_path / "dataset", sources=2, clips=3)
    export(dataset, tmp_path / "tars")
    path = tmp_path / "tars" / "clips-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:700] + b"x" + whole[701:])
    with pytest.raises(NotImportable, match="clips-000000"):
        import_clips(tmp_path / "new", tmp_path / "tars")
    path.unlink()
    with pytest.raises(NotImportable, match="clips-000000"):
        import_clips(tmp_path / "new", tmp_path / "tars")
    assert not (tmp_path / "new").exists()

    export(dataset, tmp_path / "files", format="folder")
    first, second, *_ = sorted((tmp_path / "files").rglob("*.mp4"))
    first.write_bytes(b"other" * 400)
    second.unlink()
    (tmp_path / "files" / "clips" / "more.mp4").write_bytes(b"more")
    done = import_clips(tmp_path / "new", tmp_path / "files")
    assert (done.kept, done.failed) == (4, 3)
    found = Dataset.open(tmp_path / "new")
    messages = found.query("SELECT message FROM ledger WHERE fate = 'failed'").to_pylist()
    assert any("not the one its sheet names" in row["message"] for row in messages)
    assert any("no such file" in row["message"] for row in messages)
    assert found.balance().ok


def test_a_forged_identity_fails(tmp_path):
    export(made(tmp_path / "dataset", sources=1, clips=2), tmp_path / "out", format="folder")
    path, last = tmp_path / "out" / "metadata.parquet", tmp_path / "out" / exports.DONE
    table = pq.read_table(path)
    moved = pa.array([7, 7], pa.int64())
    pq.write_table(
        table.set_column(table.schema.get_field_index("start_pts"), "start_pts", moved), path
    )
    words = json.loads(last.read_text())
    words["files"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    last.write_text(json.dumps(words))
    done = import_clips(tmp_path / "new", tmp_path / "out")
    assert (done.kept, done.failed) == (0, 2)


def test_strangers_tars(clips, tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    link = tarfile.TarInfo("link.mp4")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    sheet = {"text": "a wave\n", "license": "mit", "consent": "given", "fps": [1, {"x": None}]}
    tar(
        folder / "a.tar",
        [
            ("x/one.mp4", clips["one"]),
            ("x/one.json", json.dumps(sheet).encode()),
            ("x/one.cls", b"7\n"),
            ("two.mp4", clips["two"]),
            ("two.txt", "größe".encode()),
            ("short.mp4", clips["short"]),
            ("fast.mp4", clips["fast"]),
            ("text.mp4", b"no video"),
            ("old.avi", b"RIFF0000AVI "),
            ("empty.mp4", b""),
        ],
    )
    tar(
        folder / "b.tar",
        [
            ("again.mp4", clips["one"]),
            ("../../escape.mp4", clips["one"]),
            ("/absolute.mp4", clips["one"]),
            link,
            ("bad.mp4", clips["two"]),
            ("bad.json", b"{"),
            ("types.mp4", clips["two"]),
            ("types.json", b'{"caption": 5}'),
            ("twice.mp4", clips["two"]),
            ("twice.mp4", clips["two"]),
            ("alone.json", b"{}"),
            ("both.png", b"x"),
            ("both.mp4", clips["two"]),
        ],
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = import_clips(tmp_path / "new", folder)
    dataset = Dataset.open(tmp_path / "new")
    fates = rows(dataset, "fate", "rule")
    assert {n for n, f in fates.items() if f[0] == "kept"} == {"one.mp4", "two.mp4"}
    assert {n for n, f in fates.items() if f == ("rejected", "contract")} == {
        "short.mp4",
        "fast.mp4",
    }
    assert fates["again.mp4"] == ("duplicate", None)
    assert done.kept == 2
    assert done.units == sum((done.kept, done.rejected, done.failed, done.duplicates)) == 16
    assert dataset.balance().ok
    said = {row["source_uri"].rpartition("/")[2]: row for row in dataset.kept_clips().to_pylist()}
    one = said["one.mp4"]
    assert (one["caption"], one["label"], one["licence"], one["consent"]) == (
        "a wave", "7", "mit", "given",
    )  # fmt: skip
    assert said["two.mp4"]["caption"] == "größe"
    assert payload(dataset, one) == clips["one"]
    assert one["source_sha256"] == one["payload_sha256"] == hashlib.sha256(clips["one"]).hexdigest()
    assert (one["frame_count"], one["fps_num"], one["width"], one["end_s"]) == (80, 16, 64, 5.0)
    assert one["motion"] > 0
    assert dataset.select(Selection(licences=("mit",))).num_rows == 1
    messages = rows(dataset, "message")
    assert "kinoray curate" in messages["short.mp4"][0]
    assert "leads outside" in messages["escape.mp4"][0]
    assert "link" in messages["link"][0]
    assert "caption is int" in messages["types.mp4"][0]
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    made_files = {path for path in after if not path.is_relative_to(tmp_path / "new")}
    assert made_files == before.keys()
    assert import_clips(tmp_path / "new", folder) == replace(done, new_units=0)


def test_a_tar_cut_short_or_lying_about_sizes(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(admit, "MAX_PAYLOAD_BYTES", 1 << 20)
    path = tar(tmp_path / "cut.tar", [("one.mp4", clips["one"]), ("two.mp4", clips["two"])])
    path.write_bytes(path.read_bytes()[:-12_000])
    done = import_clips(tmp_path / "cut", path)
    assert (done.kept, done.failed) == (1, 1)
    assert "whole tar" in rows(Dataset.open(tmp_path / "cut"), "message")["cut.tar"][0]

    huge = tarfile.TarInfo("huge.mp4")
    huge.size = (1 << 20) + 1
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "bomb.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024)
    with (tmp_path / "huge.tar").open("wb") as file:
        file.write(huge.tobuf())
        file.truncate(huge.size + 4096)
    for name, words in (("bomb", "a header of"), ("huge", "bytes are more than")):
        assert import_clips(tmp_path / name, tmp_path / f"{name}.tar").failed == 1
        failed = rows(Dataset.open(tmp_path / name), "message").values()
        assert words in next(iter(failed))[0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_strangers_folder_with_a_table(suffix, clips, tmp_path):
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(clips["two"])
    (folder / "in" / "one.mp4").write_bytes(clips["one"])
    (folder / "two.mp4").write_bytes(clips["two"])
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    names = ["in/one.mp4", "in/one.mp4", "../secret.mp4", "link.mp4", "gone.mp4", ""]
    table = [{"file_name": name, "caption": "a wave", "label": 3} for name in names]
    text = "file_name,caption,label\n" + "".join(f"{name},a wave,3\n" for name in names)
    if suffix == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in table) + "broken\n"
    (folder / f"metadata.{suffix}").write_text(text)
    done = import_clips(tmp_path / "new", folder)
    assert (done.kept, done.failed) == (2, 5 + (suffix == "jsonl"))
    dataset = Dataset.open(tmp_path / "new")
    said = {r["source_uri"].rpartition("/")[2]: r for r in dataset.kept_clips().to_pylist()}
    assert (said["one.mp4"]["caption"], said["one.mp4"]["label"]) == ("a wave", "3")
    assert said["two.mp4"]["caption"] == ""


def test_a_strangers_lance_dataset(clips, tmp_path):
    library = pytest.importorskip("lance")
    plain = pa.table({"video": [clips["one"], clips["short"], None], "caption": ["a", "b", "c"]})
    library.write_dataset(plain, str(tmp_path / "plain.lance"))
    done = import_clips(tmp_path / "new", tmp_path / "plain.lance")
    assert (done.kept, done.rejected, done.failed) == (1, 1, 1)
    (tmp_path / "secret").write_bytes(clips["two"])
    schema = pa.schema([pa.field("caption", pa.utf8()), library.blob_field("payload")])
    away = library.blob_array([clips["two"], f"file://{tmp_path}/secret"])
    library.write_dataset(
        pa.table([["a", "b"], away], schema=schema),
        str(tmp_path / "blobs.lance"),
        data_storage_version="2.2",
        allow_external_blob_outside_bases=True,
    )
    done = import_clips(tmp_path / "new", tmp_path / "blobs.lance")
    assert (done.kept, done.failed) == (1, 1)
    library.write_dataset(pa.table({"caption": ["a"]}), str(tmp_path / "none.lance"))
    with pytest.raises(NotImportable, match="no column of payloads"):
        import_clips(tmp_path / "new", tmp_path / "none.lance")


def test_stills(tmp_path):
    ok, grey = cv2.imencode(".png", frames(1)[0][..., 0])
    assert ok
    still = encode_still(frames(1)[0])
    members = [("a.png", still), ("b.png", grey.tobytes()), ("c.png", still[:-30])]
    tar(tmp_path / "x.tar", members)
    done = import_clips(tmp_path / "new", tmp_path / "x.tar", contract=Contract(frames=1))
    assert (done.kept, done.failed) == (2, 1)
    found = Dataset.open(tmp_path / "new").kept_clips().to_pylist()
    assert {(row["payload_kind"], row["fps_num"], row["end_s"]) for row in found} == {
        ("png", 0, 0.0)
    }
    export(Dataset.open(tmp_path / "new"), tmp_path / "out")
    assert import_clips(tmp_path / "back", tmp_path / "out").kept == 2
    with tarfile.open(tmp_path / "out" / "clips-000000.tar") as file:
        assert file.getnames()[0].endswith(".png")


def test_places_that_hold_nothing_to_import(clips, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "holiday.mp4").write_bytes(clips["one"])
    with pytest.raises(NotImportable, match="kinoray curate"):
        import_clips(tmp_path / "new", tmp_path / "raw")
    with pytest.raises(NotImportable, match="absent"):
        import_clips(tmp_path / "new", tmp_path / "absent")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / exports.UNFINISHED).write_text("{}")
    with pytest.raises(NotImportable, match="unfinished"):
        import_clips(tmp_path / "new", tmp_path / "half")
    for text in ("", "[]", '{"prep": 5}', '{"kinoray.export": 1}'):
        (tmp_path / "raw" / exports.DONE).write_text(text)
        with pytest.raises(NotImportable, match="not an export"):
            import_clips(tmp_path / "new", tmp_path / "raw")
    assert not (tmp_path / "new").exists()


def test_a_decoder_that_dies_costs_one_clip(clips):
    with Vetting(Prep()) as vetting:
        assert vetting.verdict(clips["one"]).width == 64
        vetting._own.child[0].kill()
        assert vetting.verdict(clips["one"]).error_class == "DecoderLost"
        assert vetting.verdict(clips["one"]).width == 64


IMPORT = """
import sys, time
from pathlib import Path
from ingest import imports
imports.BATCH_UNITS = 1
imports.import_clips(sys.argv[1], Path(sys.argv[2]), progress=lambda *_: time.sleep(0.02))
"""


def test_killed_imports_end_as_undisturbed_ones(tmp_path):
    dataset = made(full(tmp_path / "dataset").root, sources=30, clips=2, size=8000, first=5)
    export(dataset, tmp_path / "out", shard_bytes=500_000)
    root = Root.of(tmp_path / "back")
    generator = random.Random(3)
    for _ in range(2):
        before = len(list(root.path.glob("ledger/_delta_log/*.json")))
        wanted = before + generator.randrange(1, 4)

        def reached(wanted=wanted):
            return len(list(root.path.glob("ledger/_delta_log/*.json"))) >= wanted

        assert run(IMPORT, root, tmp_path / "out", kill_when=reached)
    done = import_clips(root, tmp_path / "out")
    calm = import_clips(tmp_path / "calm", tmp_path / "out")
    assert 0 < done.new_units < done.units == 35
    assert replace(done, new_units=0) == replace(calm, new_units=0)
    back, other = Dataset.open(root), Dataset.open(tmp_path / "calm")
    assert back.digest() == other.digest() == Dataset.open(dataset.root).digest()
    assert told(back) == told(other)
    assert annotations(back) == annotations(other)
    assert back.balance().ok
    assert [row["operation"] for row in back.history()] == ["import"]
