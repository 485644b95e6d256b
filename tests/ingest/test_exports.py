import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
import tarfile

import pyarrow.parquet as pq
import pytest

from ingest import exports, lance
from ingest.clip import Prep
from ingest.decode import check_payload
from ingest.exports import DONE, UNFINISHED, NotEmpty, export
from ingest.select import Selection
from ingest.shards import CorruptPayload, read_payload
from ingest.store import Dataset
from ingest.sync import sync
from tests.ingest.made import allow, label, made, run, told

SMALL = 24_000  # bytes of a tar: a few clips


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    found = made(tmp_path_factory.mktemp("exports") / "dataset", sources=4, clips=5)
    label(found, "walking")
    allow(found, 0, "cc-by-4.0")
    allow(found, 1, "cc-by-4.0", "refused")
    return found


def payloads(dataset):
    return {
        row["clip_id"]: bytes(
            read_payload(dataset.root, row["shard"], row["offset"], row["length"], row["crc32"])
        )
        for row in dataset.kept_clips().to_pylist()
    }


def files(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def samples(folder):
    """Group the members of all tars by WebDataset's rule: the name up to its first dot."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for key, members in itertools.groupby(tar, lambda m: m.name.partition(".")[0]):
                yield (
                    key,
                    {m.name.partition(".")[2]: tar.extractfile(m).read() for m in members},
                )


def test_tars_say_all_of_every_clip_and_depend_on_nothing_else(dataset, tmp_path):
    heard = []
    done = export(
        dataset, tmp_path / "a", shard_bytes=SMALL, progress=lambda *found: heard.append(found)
    )
    assert (done.clips, done.bytes, done.found_clips) == (20, 40_000, 0)
    assert heard[-1] == (20, 20)
    assert len(done.files) > 2
    stored, found = payloads(dataset), list(samples(tmp_path / "a"))
    assert [key for key, _ in found] == sorted(stored)
    clips = {row["clip_id"]: row for row in told(dataset)}
    for key, sample in found:
        sheet = json.loads(sample["json"])
        assert sample["mp4"] == stored[key]
        assert {name: sheet[name] for name in clips[key]} == clips[key]
        assert sample["txt"].decode() == clips[key]["caption"] != ""
        assert sheet["label"] == "walking"
        assert (sheet["timebase_den"], sheet["prep_digest"]) == (16, Prep().digest())
        assert not {"shard", "offset"} & sheet.keys()
    assert all(path.stat().st_size <= SMALL + 10240 for path in (tmp_path / "a").glob("*.tar"))
    export(dataset, tmp_path / "b", shard_bytes=SMALL)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_what_is_told_of_the_export(dataset, tmp_path):
    done = export(
        dataset, tmp_path / "out", shard_bytes=SMALL, selection=Selection(where="width > 0")
    )
    text = json.loads((tmp_path / "out" / DONE).read_text())
    assert text["view"] == done.view == dataset.freeze_view().digest
    assert text["selection"]["where"] == "width > 0"
    assert text["prep"]["contract"]["frames"] == 80
    assert [f["name"] for f in text["files"]] == list(done.files)
    for file in text["files"]:
        data = (tmp_path / "out" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(file["clips"] for file in text["files"]) == text["clips"] == 20


def test_a_folder_names_every_file_in_its_table(dataset, tmp_path):
    done = export(dataset, tmp_path / "out", format="folder")
    assert done.files == ("metadata.parquet",)
    stored, rows = (
        payloads(dataset),
        pq.read_table(tmp_path / "out" / "metadata.parquet").to_pylist(),
    )
    assert [row["clip_id"] for row in rows] == sorted(stored)
    for row in rows:
        assert row["file_name"] == f"clips/{row['clip_id'][:2]}/{row['clip_id']}.mp4"
        assert (tmp_path / "out" / row["file_name"]).read_bytes() == stored[row["clip_id"]]
        assert row["label"] == "walking"
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 20


def test_lance_holds_the_payloads_as_blobs(dataset, tmp_path):
    pytest.importorskip("lance")
    export(dataset, tmp_path / "out", format="lance")
    stored, (ids, blobs) = payloads(dataset), lance_rows(tmp_path / "out")
    assert ids == sorted(stored)
    assert dict(zip(ids, blobs, strict=True)) == stored
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clips.lance", DONE]


def test_without_the_extra_one_line_says_what_to_install(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(lance.LanceMissing, match=r"kinoray\[lance\]"):
        export(dataset, tmp_path / "out", format="lance")


def test_only_what_the_rights_allow_leaves(dataset, tmp_path):
    cases = {
        "all": (Selection(), {0, 1, 2, 3}),
        "licence": (Selection(licences=("cc-by-4.0",)), {0, 1}),
        "both": (Selection(licences=("cc-by-4.0", "mit"), consents=("given",)), {0}),
    }
    for name, (selection, sources) in cases.items():
        export(dataset, tmp_path / name, selection=selection)
        found = [json.loads(sample["json"]) for _, sample in samples(tmp_path / name)]
        assert {sheet["source_uri"] for sheet in found} == {f"/videos/{n}.mp4" for n in sources}
    with pytest.raises(ValueError, match="no clip"):
        export(dataset, tmp_path / "none", selection=Selection(licences=("mit",)))
    assert not (tmp_path / "none").exists()


def test_a_folder_with_anything_else_is_refused(dataset, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(NotEmpty, match=r"thesis\.txt"):
        export(dataset, tmp_path / "mine")
    assert files(tmp_path / "mine") == {"thesis.txt": b"x"}
    export(dataset, tmp_path / "out", shard_bytes=SMALL)
    before = files(tmp_path / "out")
    again = export(dataset, tmp_path / "out", shard_bytes=SMALL)
    assert again.found_clips == again.clips == 20
    for changed in ({"shard_bytes": SMALL + 1}, {"selection": Selection(where="start_s < 6")}):
        with pytest.raises(NotEmpty, match="another export"):
            export(dataset, tmp_path / "out", **{"shard_bytes": SMALL} | changed)
    (tmp_path / "out" / "more.txt").write_text("x")
    with pytest.raises(NotEmpty, match=r"more\.txt"):
        export(dataset, tmp_path / "out", shard_bytes=SMALL)
    (tmp_path / "out" / "more.txt").unlink()
    assert files(tmp_path / "out") == before
    with pytest.raises(ValueError, match="webdataset, folder, lance"):
        export(dataset, tmp_path / "x", format="zip")


def test_a_damaged_shard_stops_the_export_by_name(tmp_path):
    dataset = made(tmp_path / "dataset", sources=1, clips=2)
    row = dataset.kept_clips().to_pylist()[1]
    path = dataset.root.path / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptPayload, match=f"{row['shard']}.*{row['clip_id']}"):
        export(dataset, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [UNFINISHED]


def test_real_clips_from_a_store_play(small_dataset, bucket, tmp_path):
    sync(small_dataset, bucket)
    remote = Dataset.open(bucket)
    export(remote, tmp_path / "remote")
    export(small_dataset, tmp_path / "local")
    assert files(tmp_path / "remote") == files(tmp_path / "local")
    _, sample = next(samples(tmp_path / "remote"))
    check_payload(sample["mp4"], small_dataset.contract)


READ = """
import hashlib, sys
import webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    print(sample["__key__"], hashlib.sha256(sample["mp4"]).hexdigest(), sample["txt"].decode())
"""


@pytest.mark.skipif(importlib.util.find_spec("webdataset") is None, reason="not installed")
def test_the_library_of_that_name_reads_the_tars(dataset, tmp_path):
    export(dataset, tmp_path / "out", shard_bytes=SMALL)
    paths = sorted((tmp_path / "out").glob("*.tar"))
    # In a process of its own, for it leaves files open.
    command = [sys.executable, "-W", "ignore", "-c", READ, *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = dataset.kept_clips().to_pylist()
    wanted = [f"{row['clip_id']} {row['payload_sha256']} {row['caption']}" for row in rows]
    assert found.splitlines() == wanted


EXPORT = """
import sys, time
from pathlib import Path
from ingest import exports
from ingest.store import Dataset
exports.LANCE_BATCH_BYTES = 10_000
out = Path(sys.argv[2])
exports.export(
    Dataset.open(sys.argv[1]), out, format=sys.argv[3], shard_bytes=30_000,
    progress=lambda *_: time.sleep(0.01),
)
"""
KILLS = {
    "webdataset": ("*.tar", (1, 4)),
    "folder": ("clips/*/*.mp4", (10,)),
    "lance": (".clips.lance*/_versions/*.manifest", (2,)),
}


@pytest.mark.parametrize("name", exports.FORMATS)
def test_killed_exports_end_as_undisturbed_ones(name, tmp_path):
    if name == "lance":
        pytest.importorskip("lance")
    dataset = made(tmp_path / "dataset", sources=12, clips=8, size=4000)
    out, (mark, counts) = tmp_path / "out", KILLS[name]
    for count in counts:
        assert run(
            EXPORT,
            dataset.root,
            out,
            name,
            kill_when=lambda n=count: len(list(out.glob(mark))) >= n,
        )
        assert (out / UNFINISHED).exists()
        assert not (out / DONE).exists()
    done = export(dataset, out, format=name, shard_bytes=30_000)
    assert 0 < done.found_clips < done.clips
    export(dataset, tmp_path / "calm", format=name, shard_bytes=30_000)
    if name == "lance":
        assert lance_rows(out) == lance_rows(tmp_path / "calm")
        assert (out / DONE).read_bytes() == (tmp_path / "calm" / DONE).read_bytes()
    else:
        assert files(out) == files(tmp_path / "calm")


def lance_rows(folder):
    data = lance.library().dataset(str(folder / "clips.lance"))
    ids = data.to_table(columns=["clip_id"]).column("clip_id").to_pylist()
    return ids, [blob for _, blob in data.read_blobs("payload", indices=list(range(len(ids))))]


def test_a_finished_tar_that_changed_is_written_again(tmp_path):
    dataset = made(tmp_path / "dataset", sources=4, clips=8, size=4000)
    out = tmp_path / "out"

    def stop(done, _total):
        if done == 20:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        export(dataset, out, shard_bytes=30_000, progress=stop)
    assert len(list(out.glob("*.tar"))) > 1
    (out / "clips-000000.tar").write_bytes(b"changed")
    export(dataset, out, shard_bytes=30_000)
    export(dataset, tmp_path / "calm", shard_bytes=30_000)
    assert files(out) == files(tmp_path / "calm")
