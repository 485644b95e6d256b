import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ingest.clips import NotAQuery
from ingest.objects import Root
from ingest.select import Selection
from ingest.views import NotAView, freeze, open_view, views

ALL = Selection()


def test_a_view_is_sorted_and_named_by_what_it_says(small_dataset, tmp_path):
    clips = small_dataset.kept_clips()
    view = small_dataset.freeze_view()
    table, digest = open_view(small_dataset.root, view.digest)
    ids = [clip.hex() for clip in table.column("clip_id").to_pylist()]
    assert (digest, view.num_clips) == (view.digest, clips.num_rows)
    assert (view.name, view.num_clips) == (f"views/{view.digest}.arrow", 7)
    assert views(small_dataset.root) == [view.digest]
    assert ids == sorted(clips.column("clip_id").to_pylist())
    elsewhere = Root.of(tmp_path)
    backwards = clips.take(pa.array(range(clips.num_rows - 1, -1, -1)))
    assert freeze(elsewhere, backwards, ALL).digest == view.digest
    moved = clips.set_column(
        clips.schema.get_field_index("offset"), "offset", pc.add(clips.column("offset"), 8)
    )
    assert freeze(elsewhere, moved, ALL).digest == view.digest  # repacking changes no order
    assert freeze(elsewhere, clips.slice(1), ALL).digest != view.digest
    spoken = clips.set_column(
        clips.schema.get_field_index("caption"), "caption", pa.array(["x"] * clips.num_rows)
    )
    assert freeze(elsewhere, spoken, ALL).digest != view.digest


def test_nothing_to_freeze_and_no_view(small_dataset, tmp_path):
    with pytest.raises(ValueError, match="no clip is selected"):
        freeze(Root.of(tmp_path), small_dataset.kept_clips().slice(0, 0), ALL)
    (tmp_path / "x.arrow").write_bytes(b"nothing")
    with pytest.raises(NotAView, match="not a view"):
        open_view(tmp_path / "x.arrow")
    with pytest.raises(FileNotFoundError):
        open_view(small_dataset.root, "0" * 64)


def test_no_condition_reaches_the_guards(small_dataset):
    """Whatever a person writes into `where`, the split and the rights still hold."""
    for where in ("true) OR (true", "1 = 1) OR (1 = 1", "true", "true -- ", "true /*"):
        asked = Selection(where=where, licences=("nobody's",))
        try:
            assert small_dataset.select(asked).num_rows == 0
        except NotAQuery:
            continue
    sides = [Selection(split=side, val_share=0.5) for side in ("train", "val")]
    parts = [small_dataset.select(side).column("source_sha256").to_pylist() for side in sides]
    assert not set(parts[0]) & set(parts[1])
    assert len(parts[0]) + len(parts[1]) == small_dataset.kept_clips().num_rows
