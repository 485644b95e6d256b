"""A dry run of curate: the plan in full, and an estimate that says what it rests on and leaves nothing behind."""

import pytest

from ingest.clip import Prep
from ingest.schema import ledger_schema
from ingest.sources import list_sources
from pipelines import curate
from pipelines.captioners import passes_of
from pipelines.estimate import SAMPLES, WRITES, estimated, steps
from tests.conftest import KEEP_ALL, make_videos


@pytest.fixture
def config(tmp_path):
    make_videos(tmp_path / "videos")
    return curate.Config(
        source=(str(tmp_path / "videos"),),
        out=str(tmp_path / "out"),
        prep=Prep(payload_short_side_px=64),
        keep=KEEP_ALL,
        scratch=str(tmp_path / "scratch"),
    )


def test_what_is_timed_in_full_is_estimated_right(config, tmp_path):
    (tmp_path / "scratch").mkdir()
    told = estimated(config, curate.plan(config))
    assert told.counts["units"] == told.counts["videos"] == SAMPLES
    assert told.estimate["kept clips"] == told.estimate["candidate clips"] == "about 3"
    assert "3 timed pieces" in " ".join(told.notes)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_source_that_cannot_be_timed_is_named(config, tmp_path):
    (tmp_path / "scratch").mkdir()
    for video in (tmp_path / "videos").glob("*.mp4"):
        video.write_bytes(b"no video at all")
    told = estimated(config, curate.plan(config))
    assert told.estimate == {}
    assert "no source could be timed" in told.notes[-1]
    assert any("red.mp4" in note for note in told.notes)


def test_every_stage_names_columns_that_there_are(config):
    names = set(ledger_schema().names)
    passes = passes_of(config.captions, config.scorers, list_sources(config.source))
    found = steps(passes)
    own = [step.name for step in found if not step.name.startswith(("captions", "labels"))]
    assert own == [name for name in curate.STAGES if name != "annotate"]
    assert set(WRITES) == set(curate.STAGES)
    for stage in ("hash", "decode", "shots", "scores", "keep", "shard", "decide"):
        columns = [c for c in WRITES[stage].split(", ") if not c.endswith("*")]
        assert set(columns) <= names, stage
    assert [s.name for s in found if s.name.startswith("captions")] == [
        "captions: manifest/v1",
        "captions: sidecar/v1",
        "captions: name/v1",
    ]
    assert all(step.needs for step in found)
