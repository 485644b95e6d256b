import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from ingest.loader import ClipStream, read_clip
from ingest.order import Cursor
from ingest.shards import CorruptPayload
from ingest.views import View

SIZE = {"width": 24, "height": 16}


@pytest.fixture(scope="module")
def view(small_dataset) -> View:
    return small_dataset.freeze_view()


def batches(view, dataset, count, *, seed=5, global_batch=4, state=None, **settings):
    cursor = Cursor(view_digest=view.digest, seed=seed, global_batch=global_batch)
    state = state or cursor.state_dict()
    with ClipStream.resume(view.path, dataset.root, state, **SIZE, **settings) as stream:
        return list(itertools.islice(stream, count)), stream.state_dict()


def global_ids(view, dataset, count, world_size, **settings):
    parts = [
        batches(view, dataset, count, rank=rank, world_size=world_size, **settings)[0]
        for rank in range(world_size)
    ]
    return [
        [clip for part in step for clip in zip(part.positions, part.clip_ids, strict=True)]
        for step in zip(*parts, strict=True)
    ]


def test_the_order_is_the_same_for_any_number_of_ranks(small_dataset, view):
    alone = global_ids(view, small_dataset, 5, 1)
    for world_size in (2, 3, 6):  # 6 ranks share 4 slots: some have none
        assert global_ids(view, small_dataset, 5, world_size, threads=2) == alone
    assert global_ids(view, small_dataset, 5, 1, seed=6) != alone
    flat = [clip for step in alone for _position, clip in step]
    assert sorted(flat[:7]) == sorted(set(flat))  # an epoch is every clip once
    assert [position for step in alone for position, _clip in step] == list(range(20))


def test_resume_is_exact_at_every_step_and_into_any_world(small_dataset, view):
    whole = global_ids(view, small_dataset, 6, 1)
    for done in range(6):
        state = json.loads(json.dumps(batches(view, small_dataset, done, prefetch=3)[1]))
        assert state["samples_consumed"] == 4 * done  # prefetched batches do not count
        rest = global_ids(view, small_dataset, 6 - done, done % 3 + 1, state=state)
        assert rest == whole[done:]


def test_frames_are_those_of_the_clip(small_dataset, view):
    batch = batches(view, small_dataset, 1)[0][0]
    assert batch.frames_BTHWC.dtype == torch.uint8
    assert batch.frames_BTHWC.shape == (4, 80, 16, 24, 3)
    rows = {row["clip_id"]: row for row in small_dataset.kept_clips().to_pylist()}
    for index, name in enumerate(batch.clip_ids):
        frames = read_clip(small_dataset.root, rows[name], **SIZE)
        assert np.array_equal(batch.frames_BTHWC[index].numpy(), frames)
        assert batch.captions[index] == rows[name]["caption"] != ""


def test_a_cache_changes_nothing(small_dataset, view):
    plain = batches(view, small_dataset, 6)[0]
    for cache_bytes in (1, 200_000, 1 << 30):
        cached = batches(view, small_dataset, 6, cache_bytes=cache_bytes, threads=3)[0]
        for one, other in zip(plain, cached, strict=True):
            assert one.clip_ids == other.clip_ids
            assert torch.equal(one.frames_BTHWC, other.frames_BTHWC)


def test_a_changed_batch_size_continues_behind_what_was_consumed(small_dataset, view):
    first, state = batches(view, small_dataset, 2, global_batch=3)
    after = batches(view, small_dataset, 1, state=state | {"global_batch": 5})[0][0]
    assert (first[-1].positions, after.positions) == ([3, 4, 5], [6, 7, 8, 9, 10])


def test_another_view_is_refused(small_dataset, view):
    other = small_dataset.freeze_view(small_dataset.kept_clips().slice(2))
    cursor = Cursor(view_digest=other.digest, seed=0, global_batch=2)
    with pytest.raises(ValueError, match="resume with the view"):
        ClipStream(view.path, small_dataset.root, cursor=cursor, **SIZE)


def test_a_flipped_bit_stops_training_with_a_name(small_dataset, view, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(small_dataset.root, root)
    row = small_dataset.kept_clips().to_pylist()[3]
    path = root / row["shard"]
    bad = bytearray(path.read_bytes())
    bad[row["offset"] + row["length"] // 2] ^= 4
    path.write_bytes(bad)
    cursor = Cursor(view_digest=view.digest, seed=0, global_batch=7)
    with (
        ClipStream(view.path, root, cursor=cursor, **SIZE) as stream,
        pytest.raises(CorruptPayload, match=f"{row['clip_id']}.*checksum"),
    ):
        next(iter(stream))
