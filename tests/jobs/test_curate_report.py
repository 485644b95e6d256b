"""The page of a curate run tells every fate, shows the clips around each bound, and loads nothing."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.clip import Prep
from ingest.keep import Bound, Rule
from ingest.ledger import to_table
from ingest.schema import scores_schema
from ingest.store import Dataset, empty_captions
from jobs import curate_report, dataset_report, run_notes
from jobs.candidates import candidates
from jobs.charts import passing_share, spread
from jobs.contact import around
from jobs.curate_report import steps
from jobs.rule_words import counted, words
from pipelines.identity import plain
from tests.conftest import KEEP_ALL
from tests.ingest.made import digest

HOSTILE = '/videos/<script src="away">&.mp4'
LIMIT = 0.05


def row(number: int, **fields) -> dict:
    return {
        "unit_id": digest(f"unit {number}"),
        "kind": "clip",
        "id": digest(f"clip {number}"),
        "source_uri": f"/videos/{number}.mp4",
        "attempts": 1,
        "start_s": 0.0,
        "end_s": 5.0,
        **fields,
    }


@pytest.fixture
def dataset(tiny, tmp_path) -> Dataset:
    """The tiny dataset and beside its three clips: four too still, a copy of one, a failed source."""
    shutil.copytree(tiny.root, tmp_path / "ds")
    found = Dataset.open(tmp_path / "ds")
    kept = found.kept_clips().to_pylist()
    still = {"fate": "rejected", "rule": "min_motion", "threshold": LIMIT}
    rows = [row(n, **still, score=n / 1000, motion=n / 1000) for n in range(4)]
    place = {name: kept[0][name] for name in ("shard", "offset", "length", "crc32", "payload_kind")}
    copy = {"fate": "duplicate", "rule": "near_duplicate", "duplicate_of": kept[1]["clip_id"]}
    rows.append(row(5, **copy, **place, score=3.0, motion=0.2, frame_count=80))
    told = {"stage": "probe", "error_class": "NotAVideo", "message": "no <b>stream</b>"}
    rows.append(row(6, kind="source", source_uri=HOSTILE, fate="failed", **told))
    found.commit(to_table(rows), empty_captions(), app_id="more", batch=1)
    return found


def page_of(dataset: Dataset, folder) -> str:
    return curate_report.page_of(dataset, folder).decode()


@pytest.fixture
def folder(dataset, tmp_path):
    """The notes of a run: its keep rule, and what two units and the run took."""
    folder = tmp_path / "ds" / "runs" / "abc"
    assert dataset.root.path == tmp_path / "ds"
    folder.mkdir(parents=True)
    keep = replace(KEEP_ALL, min_motion=LIMIT, bounds=(Bound(score="beauty", min=0.5),))
    (folder / "recipe.json").write_text(json.dumps({"recipe": {"keep": plain(keep)}}))
    took = {"wall_s": 4.0, "cpu_s": 3.0, "source_s": 30.0, "decode_s": 1.0, "encode_s": 2.0}
    events = [{"event": "cost", "unit": unit, "time": 1.0, **took} for unit in ("a", "b", "a")]
    events.append({"event": "cost", "unit": "run", "wall_s": 9.0, "cpu_s": 7.0, "source_s": 60.0})
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


def test_the_page_tells_every_fate_and_loads_nothing(dataset, folder):
    text = page_of(dataset, folder)
    assert "<script" not in text
    assert "<b>" not in text
    loads = re.findall(r'(?:src|href|url)[=(]"?([^"&)]+)"', text)
    assert loads
    assert all(place.startswith("data:image/jpeg;base64,") for place in loads)
    for told in ("-4 by min_motion", "-1 by near_duplicate", "NotAVideo: 1", "too little motion"):
        assert told in text
    assert "&lt;script src=&quot;away&quot;&gt;&amp;.mp4" in text
    assert "sidecar/v1" in text
    assert "1.0 minutes in 2 units of work" in text  # the one that came twice counts once
    assert "prefers-color-scheme:dark" in text


def test_the_funnel_adds_up(dataset):
    told = steps(candidates(dataset))
    assert [left for _, left, _ in told] == [8, 4, 3, 3]
    assert told[-1][0] == "kept clips"


def test_clips_around_a_bound_are_the_nearest_with_what_is_stored(dataset):
    bound = Rule(name="min_motion", score="motion", sign=-1, threshold=LIMIT)
    shown = "".join(around(dataset, candidates(dataset), [bound]))
    inside, outside = shown.split("just outside")
    assert inside.count("data:image/jpeg") == 3 * 3
    assert outside.count("never stored, so no picture") == 4
    assert re.findall(r"motion (0\.?\d*);", outside) == ["0.003", "0.002", "0.001", "0"]


def test_a_score_of_an_annotation_pass_has_its_chart_and_bound(dataset, folder):
    clip = dataset.kept_clips().to_pylist()[0]
    bound = {"clip_id": clip["clip_id"], "payload_sha256": clip["payload_sha256"]}
    said = {**bound, "producer": "judge/v1", "settings": "s", "name": "beauty", "value": 0.75}
    said |= {"unit": "millihelens", "range": "[0, 1000]", "direction": "lower"}
    rows = scores_schema().empty_table().from_pylist([said], schema=scores_schema())
    dataset.annotate("scores", rows, app_id="judge", batch=1)
    found = candidates(dataset)
    assert np.isfinite(found.scores["beauty"]).sum() == 1
    assert found.rows(np.flatnonzero(np.isfinite(found.scores["beauty"])))[0]["beauty"] == 0.75
    text = page_of(dataset, folder)
    assert "min_beauty 0.5 alone lets 100.0 % pass; 1 of 8 candidates have it" in text
    assert ">millihelens</text>" in text
    assert found.signs_of("beauty") == (1,)
    assert (found.unit_of("sharpness"), found.signs_of("motion")) == ("grey level squared", (-1, 1))
    assert (found.unit_of("unheard"), found.signs_of("unheard")) == ("", (-1,))


def test_a_dataset_without_notes_or_clips_has_a_page(dataset, tmp_path):
    assert run_notes.latest(dataset) == run_notes.Notes()
    assert b"what became" in dataset_report.write(dataset, tmp_path / "a.html").read_bytes()
    empty = Dataset.create(tmp_path / "empty", dataset.contract, run_prep())
    assert "candidate clips" in page_of(empty, tmp_path / "nowhere")


def run_prep() -> Prep:
    return Prep()


@pytest.mark.usefixtures("folder")
def test_the_latest_run_of_a_dataset_is_the_one_that_is_told(dataset):
    told = run_notes.latest(dataset)
    assert [(b.name, b.threshold) for b in told.bounds] == [
        ("min_motion", LIMIT),
        ("min_beauty", 0.5),
    ]
    assert set(told.units) == {"a", "b"}
    assert told.whole["wall_s"] == 9.0


VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=40)


@given(VALUES, st.sampled_from([-1, 1]), st.floats(-1e6, 1e6))
def test_the_share_that_passes_is_what_the_rule_would_let_pass(values, sign, threshold):
    passing = [not sign * (value - threshold) > 0 for value in values]
    share = passing_share(np.array(values), sign, np.array([threshold]))[0]
    assert share == pytest.approx(sum(passing) / len(values))


@given(VALUES, st.floats(-1e9, 1e9))
def test_any_scores_have_a_chart_with_every_value_in_it(values, threshold):
    array = np.array(values)
    bound = Rule(name="min_x", score="x", sign=-1, threshold=threshold)
    chart = spread(array, np.isfinite(array), [bound], "", (-1, 1))
    assert "nan" not in chart
    assert "inf" not in chart
    assert bool(chart) == bool(np.isfinite(array).any())
    if chart:
        assert "min_x" in chart
        assert 'class="bar"' in chart


def test_rules_are_words():
    assert counted({"too_short": 2, "hdr": 3}) == "3 PQ or HLG picture, 2 shorter than a clip"
    assert words("min_aesthetic") == "aesthetic too low"
    assert words("my_own_rule") == "my own rule"
    assert counted({}) == "none"
