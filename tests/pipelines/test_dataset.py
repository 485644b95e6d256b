"""What a dataset needs of Ray and the tracker, on real ones."""

import hashlib

import pytest

from cluster.tracking import Tracker, embedded_uri
from ingest.decode import payload_frames
from ingest.select import Selection
from pipelines.dataset import to_ray_dataset
from pipelines.lineage import descendants


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Data sets its own old keys
@pytest.mark.filterwarnings("ignore:.*Configure `shuffle_strategy`:DeprecationWarning")
def test_a_ray_dataset_of_the_clips(tiny):
    kept = {row["clip_id"]: row for row in tiny.dataset.kept_clips().to_pylist()}
    rows = to_ray_dataset(str(tiny.root)).take_all()
    red = Selection(where="caption LIKE '%red%'")
    some = to_ray_dataset(str(tiny.root), selection=red, read="frames").take_all()
    assert {row["clip_id"] for row in rows} == set(kept)
    for row in rows:
        known = kept[row["clip_id"]]
        assert hashlib.sha256(row["payload"]).hexdigest() == known["payload_sha256"]
        assert row["caption"] == known["caption"]
    (clip,) = some
    payload = next(row["payload"] for row in rows if row["clip_id"] == clip["clip_id"])
    assert (clip["frames"] == payload_frames(payload)).all()


def test_what_came_of_a_view(tmp_path):
    uri = embedded_uri(tmp_path)
    tracker = Tracker(uri, spool=tmp_path / "spool")

    def run(name, inputs, **made):
        tags = {f"kinoray.input.{k}": v for k, v in inputs.items()} | {"kinoray.verb": name}
        tracked = tracker.start(name, experiment="kinoray", tags=tags)
        tracked.set_tags({f"kinoray.{k}": v for k, v in made.items()})
        tracked.end("FINISHED")

    run("train", {"dataset": "view1"}, checkpoint="base1")
    run("train", {"dataset": "view1", "base": "base1"}, checkpoint="motion1")
    run("train", {"dataset": "view2"}, checkpoint="base2")
    run("sample", {"prompts": "p", "base": "base1", "motion": "motion1"}, set="set1")
    run("sample", {"prompts": "p", "base": "base2"}, set="set2")
    run("evaluate", {"set_a": "set1"})
    found = descendants(["view1"], tracking_uri=uri)
    assert {d.made for d in found[:2]} == {"base1", "motion1"}
    assert [(d.verb, d.made) for d in found[2:]] == [("sample", "set1"), ("evaluate", "")]
    assert descendants(["elsewhere"], tracking_uri=uri) == []
    assert descendants(["view1"], tracking_uri=f"sqlite:///{tmp_path}/absent.db") == []
