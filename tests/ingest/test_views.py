import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ingest.views import freeze, kept_clips, open_view


def test_a_view_is_sorted_and_named_by_what_it_says(small_dataset, tmp_path):
    clips = small_dataset.kept_clips()
    view = small_dataset.freeze_view()
    table, digest = open_view(view.path)
    ids = [clip.hex() for clip in table.column("clip_id").to_pylist()]
    assert (digest, view.num_clips) == (view.digest, clips.num_rows) == (view.path.stem, 7)
    assert ids == sorted(clips.column("clip_id").to_pylist())
    backwards = clips.take(pa.array(range(clips.num_rows - 1, -1, -1)))
    assert freeze(tmp_path, backwards).digest == view.digest
    moved = clips.set_column(
        clips.schema.get_field_index("offset"), "offset", pc.add(clips.column("offset"), 8)
    )
    assert freeze(tmp_path, moved).digest == view.digest  # repacking changes no order
    assert freeze(tmp_path, clips.slice(1)).digest != view.digest


def test_nothing_to_freeze_and_no_view(small_dataset, tmp_path):
    with pytest.raises(ValueError, match="no clip is selected"):
        freeze(tmp_path, small_dataset.kept_clips().slice(0, 0))
    (tmp_path / "x.arrow").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a view"):
        open_view(tmp_path / "x.arrow")


def test_a_clip_kept_by_two_recipes_is_one_clip(small_dataset):
    ledger, captions = small_dataset.ledger(), small_dataset.captions()
    twice = pa.concat_tables([ledger, ledger])
    assert kept_clips(twice, captions).equals(kept_clips(ledger, captions))
