import itertools
import json
import multiprocessing
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ingest.augment import Frames
from ingest.feed import Part
from ingest.loader import ClipStream, TorchClips, read_clip
from ingest.order import Cursor, Mixture, mixture_digest, slots
from ingest.reader import ViewReader, latent_rows
from ingest.reads import Latents, Work
from ingest.schema import latents_schema
from ingest.shards import CorruptPayload
from tests.ingest.made_views import make, place

RANDOM = Frames(width=8, height=8, frames=3, start="random", crop="random", flip_share=0.5, low=2)
WHOLE = Frames(width=24, height=16)
STEPS, SEED, BATCH = 6, 5, 4
WORLDS = (*range(1, 10), 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def mixed(made, tmp_path_factory):
    other = make(tmp_path_factory.mktemp("two"), clips=5, frames=9, kind="h264_mp4", first=100)
    parts = (
        Part(root=made.root, view=made.view, weight=4),
        Part(root=other.root, view=other.view, weight=2),
    )
    return parts, mixture_digest([made.view.digest, other.view.digest], [2, 1])


def part_of(made, **settings):
    return Part(root=made.root, view=made.view, **settings)


def cursor_of(digest, done=0, *, batch=BATCH):
    return Cursor(view_digest=digest, seed=SEED, global_batch=batch, samples_consumed=done)


def take(parts, cursor, *, steps=STEPS, read=RANDOM, ranks=(1, 0), **work):
    settings = {"read": read, "world_size": ranks[0], "rank": ranks[1], "work": Work(**work)}
    with ClipStream(parts, cursor=cursor, **settings) as stream:
        return list(itertools.islice(stream, steps))


def said(batch):
    """Everything about each clip of a batch, comparable, in the order of positions."""
    columns = batch.clip_ids, batch.captions, batch.labels, batch.epochs
    frames = [frames.numpy().tobytes() for frames in batch.frames_BTHWC]
    low = [frames.numpy().tobytes() for frames in batch.low_BTHWC]
    return list(zip(batch.positions, *columns, frames, low, strict=True))


def gathered(parts, cursor, world_size, **settings):
    """The steps of all ranks together: what the whole cluster sees."""
    ranks = [take(parts, cursor, ranks=(world_size, r), **settings) for r in range(world_size)]
    for together in zip(*ranks, strict=True):
        assert len({json.dumps(batch.state) for batch in together}) == 1  # one state for all
    return [[clip for batch in step for clip in said(batch)] for step in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def alone(mixed):
    parts, digest = mixed
    return gathered(parts, cursor_of(digest), 1)


def test_the_order_is_the_same_for_any_number_of_ranks(mixed, alone):
    parts, digest = mixed
    assert [clip[0] for step in alone for clip in step] == list(range(STEPS * BATCH))
    for world_size in WORLDS:  # more ranks than clips in a batch, and none that divides it
        assert gathered(parts, cursor_of(digest), world_size) == alone
    other = gathered(parts, replace(cursor_of(digest), seed=SEED + 1), 1)
    assert [clip[1] for step in other for clip in step] != [c[1] for step in alone for c in step]


@pytest.mark.parametrize(
    "work", [{"threads": 3, "prefetch": 4}, *({"decode_workers": n} for n in (1, 2, 3))]
)
def test_the_order_is_the_same_however_reading_is_done(mixed, alone, work):
    parts, digest = mixed
    assert gathered(parts, cursor_of(digest), 1, **work) == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3")  # on a machine of 2 cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_data_loader_gives_the_same_order(mixed, alone, workers):
    parts, digest = mixed
    clips = TorchClips(parts, cursor=cursor_of(digest), read=RANDOM, steps=STEPS)
    batches = list(DataLoader(clips, batch_size=None, num_workers=workers))
    assert [said(batch) for batch in batches] == alone
    for done in (1, 4):  # the state of a batch is that of what was used, not of what was fetched
        assert batches[done - 1].state == cursor_of(digest, done * BATCH).state_dict()
        rest = TorchClips(
            parts,
            cursor=Cursor.from_state(batches[done - 1].state),
            read=RANDOM,
            steps=STEPS - done,
        )
        loader = DataLoader(rest, batch_size=None, num_workers=workers)
        assert [said(batch) for batch in loader] == alone[done:]


def test_a_data_loader_of_spawned_workers_on_two_ranks(mixed, alone):
    parts, digest = mixed
    ranks = []
    for rank in range(2):
        clips = TorchClips(
            parts, cursor=cursor_of(digest), read=RANDOM, rank=rank, world_size=2,
            work=Work(decode_workers=1), steps=2,
        )  # fmt: skip
        context = multiprocessing.get_context("spawn" if rank else "fork")
        loader = DataLoader(clips, batch_size=None, num_workers=1, multiprocessing_context=context)
        ranks.append([said(batch) for batch in loader])
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone[:2]


def test_a_store_is_read_like_a_folder(bucket, tmp_path):
    here, there = make(tmp_path, clips=5), make(bucket, clips=5)
    cursor = cursor_of(here.view.digest)
    local = gathered(part_of(here), cursor, 1, steps=2)
    assert gathered(part_of(there), cursor, 1, steps=2) == local
    assert gathered(part_of(there), cursor, 2, steps=2, decode_workers=1) == local
    clips = TorchClips(part_of(there), cursor=cursor, read=RANDOM, steps=2)
    assert [said(batch) for batch in DataLoader(clips, batch_size=None)] == local
    with pytest.raises(ValueError, match='multiprocessing_context="spawn"'):
        next(iter(DataLoader(clips, batch_size=None, num_workers=1, timeout=60)))


def test_resume_is_exact_at_every_step_and_into_any_world(mixed, alone):
    parts, digest = mixed
    for done in range(STEPS):
        with ClipStream(parts, cursor=cursor_of(digest), read=RANDOM) as stream:
            for _ in itertools.islice(stream, done):
                pass
            state = json.loads(json.dumps(stream.state_dict()))
        assert state["samples_consumed"] == done * BATCH  # what is read ahead does not count
        world_size = WORLDS[done]
        rest = gathered(parts, Cursor.from_state(state), world_size, steps=STEPS - done)
        assert rest == alone[done:]


def test_where_every_rank_of_every_world_goes_on(mixed):
    """The same law on the level of indices, for each step, into each world, to the last clip."""
    _, digest = mixed
    mixture, batch, steps = Mixture(sizes=(7, 5), weights=(4, 2)), 7, 12
    whole = mixture.draws(np.arange(steps * batch), seed=SEED)
    for done, world_size in itertools.product(range(steps), WORLDS):
        cursor = Cursor.from_state(cursor_of(digest, done * batch, batch=batch).state_dict())
        seen = [
            cursor.samples_consumed + step * batch + slot
            for step in range(steps - done)
            for rank in range(world_size)
            for slot in slots(batch, world_size, rank)
        ]
        rest = mixture.draws(np.array(seen), seed=cursor.seed)
        assert rest.indices.tolist() == whole.indices[done * batch :].tolist()
        assert rest.parts.tolist() == whole.parts[done * batch :].tolist()


def test_another_batch_size_goes_on_behind_what_was_consumed(mixed, alone):
    parts, digest = mixed
    flat = [clip for step in alone for clip in step]
    with ClipStream(parts, cursor=cursor_of(digest), read=RANDOM) as stream:
        next(stream)
        stream.load_state_dict(stream.state_dict() | {"global_batch": 7})
        assert said(next(stream)) == flat[4:11]
        assert stream.state_dict()["samples_consumed"] == 11
        stream.load_state_dict(cursor_of(digest, 8).state_dict())
        assert said(next(stream)) == alone[2]
        for other in ({"seed": 1}, {"view_digest": "f" * 64}, {"order_version": "order_v0"}):
            with pytest.raises(ValueError, match=r"resume with|order_v0"):
                stream.load_state_dict(stream.state_dict() | other)


def test_frames_are_those_of_the_clip(made):
    batch = take(part_of(made), cursor_of(made.view.digest), read=WHOLE, steps=1)[0]
    assert batch.frames_BTHWC.dtype == torch.uint8
    assert batch.frames_BTHWC.shape == (4, 6, 16, 24, 3)
    assert (batch.low_BTHWC.numel(), batch.latents.numel()) == (0, 0)
    for name, caption, label, frames in zip(
        batch.clip_ids, batch.captions, batch.labels, batch.frames_BTHWC, strict=True
    ):
        index = made.ids.index(name)
        assert np.array_equal(frames.numpy(), made.frames[index])
        assert (caption, label) == (made.rows[index]["caption"], made.rows[index]["label"])
        assert np.array_equal(read_clip(made.root, made.rows[index], 24, 16), made.frames[index])
    rank = take(part_of(made), cursor_of(made.view.digest), read=WHOLE, ranks=(9, 0), steps=1)[0]
    assert rank.frames_BTHWC.shape == (0, 6, 16, 24, 3)  # it still takes part in the step


def test_clips_that_were_curated(small_dataset):
    view = small_dataset.freeze_view()
    part = Part(root=small_dataset.root, view=view)
    rows = {row["clip_id"]: row for row in small_dataset.kept_clips().to_pylist()}
    with ClipStream(part, cursor=cursor_of(view.digest), read=WHOLE) as stream:
        assert len(stream) == 7
        batch = next(stream)
    assert batch.frames_BTHWC.shape == (4, 80, 16, 24, 3)
    for index, name in enumerate(batch.clip_ids):
        frames = read_clip(small_dataset.root, rows[name], 24, 16)
        assert np.array_equal(batch.frames_BTHWC[index].numpy(), frames)
        assert batch.captions[index] == rows[name]["caption"] != ""


def test_a_cache_changes_nothing(made):
    wanted = Frames(width=8, height=8, frames=3, low=2)
    plain = gathered(part_of(made), cursor_of(made.view.digest), 1, read=wanted)
    for cache_bytes in (1, 3000, 1 << 20):
        cached = {"read": wanted, "cache_bytes": cache_bytes}
        assert gathered(part_of(made), cursor_of(made.view.digest), 1, **cached) == plain


def test_a_killed_decode_worker_changes_nothing(mixed, alone):
    parts, digest = mixed
    with ClipStream(
        parts, cursor=cursor_of(digest), read=RANDOM, work=Work(decode_workers=2)
    ) as stream:
        seen, killed = [], set()
        for step, batch in zip(range(STEPS), stream, strict=False):
            seen.append(said(batch))
            for pid in stream.pids()[: step % 2]:
                with suppress(ProcessLookupError):  # it was killed before
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
    assert seen == alone
    assert killed


def test_stored_latents_and_tokens(made):
    for kind, dtype, shape in (
        ("latent_f16_tchw", np.float16, (2, 4, 2, 3)),
        ("tokens_i32", np.int32, (11,)),
    ):
        draws = np.random.default_rng(1)
        arrays = {n: (draws.standard_normal(shape) * 50).astype(dtype) for n in made.ids}
        places = place(made.root, [(n, array.tobytes()) for n, array in arrays.items()])
        bound = {"producer": "vae", "payload_sha256": "", "payload_kind": kind}
        rows = [
            {"clip_id": name, **bound, "shape": json.dumps(shape), **found}
            for name, found in zip(arrays, places, strict=True)
        ]
        table = type(latents_schema().empty_table()).from_pylist(rows, latents_schema())
        part = part_of(made, latents=latent_rows(table, producer="vae"))
        for batch in take(part, cursor_of(made.view.digest), read=Latents(), steps=4, threads=2):
            wanted = np.stack([arrays[name] for name in batch.clip_ids])
            assert np.array_equal(batch.latents.numpy(), wanted)
            assert batch.latents.numpy().dtype == dtype
            assert batch.frames_BTHWC.numel() == 0
        odd = {**part.latents, made.ids[3]: {**part.latents[made.ids[3]], "shape": "[1]"}}
        with pytest.raises(ValueError, match=rf"{made.ids[3]}: its latents are {kind} \[1\]"):
            take(replace(part, latents=odd), cursor_of(made.view.digest), read=Latents())
    with pytest.raises(ValueError, match="has no latents"):
        take(part_of(made), cursor_of(made.view.digest), read=Latents())


def test_what_does_not_fit_together_is_refused(made, mixed):
    parts, digest = mixed
    with pytest.raises(ValueError, match="resume with the view"):
        take(part_of(made), cursor_of(digest))
    with pytest.raises(ValueError, match=r"6 \(clip .* to 9 frames"):
        take(parts, cursor_of(digest), read=Frames(width=8, height=8))
    with pytest.raises(ValueError, match="7 frames at stride 1 span 7, the clip has 6"):
        take(parts, cursor_of(digest), read=Frames(width=8, height=8, frames=7))
    for wrong in ({"threads": 0}, {"prefetch": 0}, {"decode_workers": -1}, {"max_bad_clips": -1}):
        with pytest.raises(ValueError, match="at least"):
            Work(**wrong)


def seen_with_bad(parts, digest, world_size, **work):
    """Steps of all ranks together, and what was substituted, in the order of positions."""
    ranks = [
        take(parts, cursor_of(digest), ranks=(world_size, r), steps=9, **work)
        for r in range(world_size)
    ]
    steps = [[clip for batch in step for clip in said(batch)] for step in zip(*ranks, strict=True)]
    bad = [s for step in zip(*ranks, strict=True) for batch in step for s in batch.substitutions]
    return steps, sorted(bad)


def test_corrupt_clips_have_the_same_substitutes_in_any_world(tmp_path):
    one = make(tmp_path / "one", clips=7, shards=3)
    two = make(tmp_path / "two", clips=5, shards=2, first=50)
    parts = part_of(one, weight=2), part_of(two)
    digest = mixture_digest([one.view.digest, two.view.digest], [2, 1])
    shutil.copytree(tmp_path / "one", tmp_path / "copy")  # a shard that was read stays readable
    unspoilt = (
        replace(parts[0], root=tmp_path / "copy"),
        make(tmp_path / "three", clips=5, first=50),
    )
    whole, nothing = seen_with_bad((unspoilt[0], part_of(unspoilt[1])), digest, 1)
    assert nothing == []
    spoilt = set(one.spoil(1)) | set(two.spoil(0))
    gone = one.rows[6]["shard"]
    (one.root.path / gone).unlink()
    missing = {row["clip_id"] for row in one.rows if row["shard"] == gone}
    steps, bad = seen_with_bad(parts, digest, 1)
    flat = [clip for step in steps for clip in step]
    for before, after in zip((clip for step in whole for clip in step), flat, strict=True):
        assert after == before or before[1] in spoilt | missing  # nobody else moves
    assert {found.bad for found in bad} == spoilt | missing
    for found in bad:
        used = next(clip[1] for clip in flat if clip[0] == found.position)
        assert used == found.used
        assert used not in spoilt | missing
        assert (used in one.ids) == (found.bad in one.ids)  # of the same part
        assert found.bad in found.reason or gone in found.reason
    for world_size, work in ((3, {}), (9, {}), (1, {"decode_workers": 2}), (2, {"threads": 3})):
        assert seen_with_bad(parts, digest, world_size, **work) == (steps, bad)
    allowed = len(spoilt | missing)
    assert seen_with_bad(parts, digest, 1, max_bad_clips=allowed) == (steps, bad)
    with pytest.raises(
        CorruptPayload, match=rf"{allowed} corrupt clips, allowed are {allowed - 1}"
    ):
        seen_with_bad(parts, digest, 1, max_bad_clips=allowed - 1)


def test_too_many_corrupt_clips_end_it_with_their_names(tmp_path):
    made = make(tmp_path, clips=7)
    names = made.spoil(2, 5)
    with pytest.raises(CorruptPayload, match=r"allowed are 0: .*checksum") as caught:
        take(part_of(made), cursor_of(made.view.digest, batch=7), max_bad_clips=0)
    assert any(name in str(caught.value) for name in names)
    with ClipStream(
        part_of(made),
        cursor=cursor_of(made.view.digest, batch=7),
        read=WHOLE,
        work=Work(max_bad_clips=1),
    ) as stream:
        for _ in range(2):  # asking again does not help
            with pytest.raises(CorruptPayload, match="allowed are 1") as caught:
                next(stream)
            assert all(name in str(caught.value) for name in names)
    made.spoil(0, 1, 3, 4, 6)
    with pytest.raises(CorruptPayload, match="7 corrupt clips, no clip of a part is left"):
        take(part_of(made), cursor_of(made.view.digest), max_bad_clips=100)


def test_a_reader_and_a_stream_agree(mixed, alone):
    parts, _digest = mixed
    readers = [ViewReader(part.root, part.view) for part in parts]
    draws = Mixture(sizes=(7, 5), weights=(2, 1)).draws(np.arange(8), seed=SEED)
    flat = [clip for step in alone for clip in step]
    for k in range(8):
        reader, index = readers[draws.parts[k]], int(draws.indices[k])
        high, low = reader.frames(index, RANDOM, seed=SEED, epoch=int(draws.epochs[k]))
        assert flat[k][-2:] == (high.tobytes(), low.tobytes())
