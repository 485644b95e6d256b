import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from ingest.clip import Contract, Prep
from ingest.files import StorageError
from ingest.ledger import to_table
from ingest.schema import captions_schema
from ingest.store import ContractMismatch, Dataset, NotADataset
from ingest.tables import NotOurs
from ingest.unit import with_attempts

CHECKOUT = Path(__file__).parents[2]
NO_CAPTIONS = captions_schema().empty_table()


def unit_rows(name, fate="kept", clips=1):
    source = {"unit_id": name, "kind": "source", "id": f"s{name}", "fate": fate, "attempts": 1}
    clip = {"unit_id": name, "kind": "clip", "fate": "kept", "attempts": 1, "frame_count": 80}
    clip |= {"fps_num": 16, "fps_den": 1}
    place = {"shard": "data/x", "offset": 0, "length": 5, "crc32": 2**32 - 1}
    found = [
        clip | place | {"id": f"c{name}{n}", "payload_sha256": f"p{name}{n}"} for n in range(clips)
    ]
    return to_table([source | {"num_candidates": clips, "num_kept": clips}, *found])


def caption_rows(*clips, text="said", producer="name/v1", rank=1):
    rows = [
        {"clip_id": f"c{c}", "producer": producer, "payload_sha256": f"p{c}",
         "caption": f"{text} {c}", "rank": rank} for c in clips
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=captions_schema())


@pytest.fixture
def dataset(tmp_path):
    return Dataset.create(tmp_path / "dataset", Contract(), Prep())


def test_contract_and_settings_live_in_the_ledger(dataset):
    again = Dataset.open(dataset.root)
    assert (again.contract, again.prep_digest) == (Contract(), Prep().digest())
    log = (dataset.root.path / "ledger" / "_delta_log" / f"{0:020}.json").read_text()
    metadata = next(json.loads(line)["metaData"] for line in log.splitlines() if "metaData" in line)
    assert json.loads(metadata["configuration"]["kinoray.contract"]) == {"fps": 16, "frames": 80}
    assert json.loads(metadata["configuration"]["kinoray.prep"])["crf"] == Prep().crf
    fields = {f["name"]: f for f in json.loads(metadata["schemaString"])["fields"]}
    assert fields["motion"]["metadata"]["kinoray.unit"] == "frame diagonals per second"


def test_create_opens_the_same_and_refuses_others(dataset, tmp_path):
    dataset.commit(unit_rows("a"), NO_CAPTIONS, app_id="run", batch=1)
    assert Dataset.create(dataset.root, Contract(), Prep()).committed_units() == {"a"}
    assert Dataset.create(dataset.root, Contract(), Prep(stall_timeout_s=1)).version == 1
    with pytest.raises(ContractMismatch, match="another contract"):
        Dataset.create(dataset.root, Contract(), Prep(crf=30))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(NotADataset, match=r"thesis\.txt"):
        Dataset.create(tmp_path / "mine", Contract(), Prep())
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for path in (tmp_path / "mine", tmp_path / "absent", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(NotADataset):
            Dataset.open(path)
    with pytest.raises(NotADataset, match="a file"):
        Dataset.create(tmp_path / "mine" / "thesis.txt", Contract(), Prep())


def test_a_commit_lands_once_with_its_captions(dataset):
    rows = pa.concat_tables([unit_rows("a"), unit_rows("b", clips=2)])
    captions = caption_rows("a0", "b1")
    assert dataset.commit(rows, captions, app_id="run", batch=1) == 1
    assert dataset.commit(rows, captions, app_id="run", batch=1) == 1
    assert dataset.commit(unit_rows("b", clips=2), captions, app_id="other", batch=1) == 1
    said = {row["clip_id"]: row["caption"] for row in dataset.kept_clips().to_pylist()}
    assert said == {"ca0": "said a0", "cb0": "", "cb1": "said b1"}
    assert dataset.captions().num_rows == 2
    with pytest.raises(NotOurs):
        dataset.commit(unit_rows("c"), NO_CAPTIONS, app_id="run", batch=1)


def test_captions_of_a_lost_commit_are_not_doubled(dataset):
    dataset.table("annotations/captions").append_missing(
        caption_rows("a0")
    )  # died between captions and ledger
    dataset.commit(unit_rows("a"), caption_rows("a0", text="new"), app_id="run", batch=1)
    assert dataset.captions().num_rows == 1
    assert dataset.kept_clips().column("caption").to_pylist() == ["said a0"]


def test_a_caption_of_other_bytes_is_not_believed(dataset):
    stranger = caption_rows("a0").set_column(2, captions_schema().field(2), pa.array(["other"]))
    dataset.table("annotations/captions").append_missing(stranger)
    dataset.commit(unit_rows("a"), NO_CAPTIONS, app_id="run", batch=1)
    assert dataset.kept_clips().column("caption").to_pylist() == [""]


def test_the_preferred_caption_is_that_of_lowest_rank(dataset):
    dataset.commit(unit_rows("a"), caption_rows("a0"), app_id="run", batch=1)
    dataset.table("annotations/captions").append_missing(
        caption_rows("a0", text="best", producer="x", rank=0)
    )
    dataset.table("annotations/captions").append_missing(
        caption_rows("a0", text="worst", producer="y", rank=9)
    )
    assert dataset.kept_clips().column("caption").to_pylist() == ["best a0"]


def test_the_digest_is_what_is_said_and_nothing_else(tmp_path):
    def made(name, order, batches, attempts=1, text="said"):
        dataset = Dataset.create(tmp_path / name, Contract(), Prep())
        tables = [with_attempts(unit_rows(unit), attempts) for unit in order]
        groups = [tables] if batches == 1 else [[table] for table in tables]
        for batch, group in enumerate(groups, 1):
            captions = caption_rows(*(f"{unit}0" for unit in order), text=text)
            dataset.commit(pa.concat_tables(group), captions, app_id=name, batch=batch)
        return dataset.digest()

    base = made("one", "abc", 1)
    assert made("two", "cab", 3, attempts=2) == base
    assert made("three", "ab", 1) != base
    assert made("four", "abc", 1, text="other") != base


def test_info_counts(dataset):
    dataset.commit(unit_rows("a", clips=3), NO_CAPTIONS, app_id="run", batch=1)
    row = {"unit_id": "b", "kind": "source", "id": "sb", "attempts": 1, "num_candidates": 0,
           "num_kept": 0, "fate": "rejected", "rule": "hdr"}  # fmt: skip
    failed = row | {"unit_id": "c", "fate": "failed", "rule": None}
    twin = row | {"unit_id": "d", "fate": "duplicate", "rule": None}
    dataset.commit(to_table([row, failed, twin]), NO_CAPTIONS, app_id="run", batch=2)
    info = dataset.info()
    wanted = {"sources": 4, "sources_rejected": 1, "clips_kept": 3, "clips_rejected": 0,
              "failed": 1, "duplicates": 1, "rules": {"hdr": 1}, "frames": 240, "seconds": 15.0,
              "payload_bytes": 15}  # fmt: skip
    assert info == wanted
    assert dataset.balance({"a", "b", "c", "d"}).ok
    assert not dataset.balance({"e"}).ok


FULL = """
import resource, sys
from pathlib import Path
from ingest.files import StorageError
from ingest.store import Dataset
from test_store import NO_CAPTIONS, unit_rows
dataset = Dataset.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    dataset.commit(unit_rows("b", clips=500), NO_CAPTIONS, app_id="run", batch=2)
except StorageError as error:
    print(error.filename)
"""


def test_a_full_disk_at_a_commit_keeps_the_dataset(dataset):
    dataset.commit(unit_rows("a"), NO_CAPTIONS, app_id="run", batch=1)
    paths = os.pathsep.join((str(CHECKOUT), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(dataset.root)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert str(dataset.root) in done.stdout, done.stderr
    again = Dataset.open(dataset.root)
    assert again.committed_units() == {"a"}
    again.commit(unit_rows("b"), NO_CAPTIONS, app_id="run", batch=again.next_batch("run"))
    assert again.committed_units() == {"a", "b"}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Dataset.create(tmp_path / "file" / "dataset", Contract(), Prep())
