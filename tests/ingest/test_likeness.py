"""Near hashes among many: what comparing all with all finds, at a cost that one still camera cannot raise."""

import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pytest

from ingest import likeness, nearness
from ingest.decide import judge
from ingest.duplicates import leaks, pairs
from ingest.keep import Keep
from ingest.ledger import to_table
from ingest.likeness import twins_of

BITS = 192


def turned(rng, words, count):
    """Each hash with up to `count` bits turned."""
    words = words.copy()
    for row in words:
        for bit in rng.choice(BITS, rng.integers(0, count + 1), replace=False).tolist():
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return words


def random(rng, count):
    return rng.integers(1, 1 << 63, (count, 3), dtype=np.uint64)


def crowded(rng, sizes, around=6):
    """Views of still cameras, and as many clips of other things."""
    views = [np.repeat(random(rng, 1), size, 0) for size in sizes]
    return turned(rng, np.concatenate([*views, random(rng, sum(sizes))]), around)


def hexed(words):
    return [row.astype(">u8").tobytes().hex() for row in words]


def bits_between(one, other):
    return np.bitwise_count(one[:, None] ^ other[None]).sum(axis=2)


def table_of(words, sources, rng):
    rows = [
        {
            "unit_id": f"{source:03}",
            "kind": "clip",
            "id": f"{n:06}",
            "fate": "kept",
            "attempts": 1,
            "shard": "s",
            "phash": hashed,
            "source_sha256": f"{source:03}",
            "width": int(rng.integers(1, 4)) * 100,
            "height": 100,
        }
        for n, (hashed, source) in enumerate(zip(hexed(words), sources, strict=True))
    ]
    return to_table(rows)


def twins(table, max_bits, confirm):
    judged = judge(table, keep=Keep(), units=set(table.column("unit_id").to_pylist()))
    return twins_of(table, judged, max_bits=max_bits, confirm=lambda _clips: confirm)


def by_comparing_all(table, words, max_bits, confirm):
    """What the docstring of twins_of promises, said plainly."""
    rows = table.to_pylist()
    bits = bits_between(words, words)
    order = sorted(range(len(rows)), key=lambda n: (-rows[n]["width"], rows[n]["id"]))
    stay, found = [], {}
    for n in order:
        one = rows[n]
        copies = sorted(
            (int(bits[n, m]), rows[m]["id"])
            for m in stay
            if bits[n, m] <= max_bits and rows[m]["source_sha256"] != one["source_sha256"]
        )
        best = next((c for c in copies if confirm(one["id"], c[1])), None)
        if best:
            found[one["id"]] = (best[1], float(best[0]))
        elif all(
            rows[m]["phash"] != one["phash"] or rows[m]["source_sha256"] != one["source_sha256"]
            for m in stay
        ):
            stay.append(n)  # of clips with one source and hash the first speaks for all
    return found


def always(_one, _other):
    return True


def at_times(one, other):
    return bool(zlib.crc32(f"{one} {other}".encode()) % 3)


@pytest.fixture(params=["as they are", "everything is dense", "nothing is"])
def dense(request, monkeypatch):
    if request.param == "everything is dense":
        monkeypatch.setattr(nearness, "DENSE_PAIRS", 2)
        monkeypatch.setattr(nearness, "CROWD", 3)
        monkeypatch.setattr(nearness, "CHUNK_PAIRS", 5)
    elif request.param == "nothing is":
        monkeypatch.setattr(nearness, "DENSE_PAIRS", 1 << 40)


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("confirm", [always, at_times])
@pytest.mark.parametrize(
    ("sizes", "num_sources", "max_bits"),
    [
        ([60], 1, 16),
        ([60], 4, 16),
        ([40, 50, 9], 3, 12),
        ([150, 30], 150, 16),
        ([90], 2, 4),
        ([80], 3, 20),
    ],
)
def test_twins_are_what_comparing_all_finds(sizes, num_sources, max_bits, confirm):
    rng = np.random.default_rng(sum(sizes) + num_sources)
    words = crowded(rng, sizes)
    words[-4:] = words[:4]  # the very same too
    sources = rng.integers(0, num_sources, len(words)).tolist()
    table = table_of(words, sources, rng)
    wanted = by_comparing_all(table, words, max_bits, confirm)
    assert twins(table, max_bits, confirm) == wanted
    assert bool(wanted) == (num_sources > 1)


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("max_bits", [0, 2, 5, 16])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_and_crowds_lose_none_and_invent_none(seed, max_bits):
    rng = np.random.default_rng(seed)
    words = crowded(rng, [70, 20, 5], around=max_bits)
    labels = rng.integers(0, 1 + 3 * seed, len(words))
    bits = bits_between(words, words)
    near = nearness.search(words, max_bits, labels)
    listed = {tuple(pair) for pair in near.pairs.tolist()}
    for one, other in zip(*np.nonzero(np.triu(bits <= max_bits, 1)), strict=True):
        if labels[one] != labels[other]:
            same = near.crowds[one] == near.crowds[other] >= 0
            assert same or (int(one), int(other)) in listed
    assert all(bits[one, other] <= max_bits for one, other in listed)
    assert all(labels[one] != labels[other] for one, other in listed)
    everything = np.argwhere(np.triu(bits <= max_bits, 1)).tolist()
    assert pairs(hexed(words), max_bits).tolist() == everything


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("seed", range(4))
def test_leaks_are_the_nearest_of_all(seed):
    rng = np.random.default_rng(seed)
    words = crowded(rng, [120, 40], around=8)
    words = words[rng.permutation(len(words))]
    words[:5] = words[-5:]
    ours, theirs = words[:200], words[200:]
    bits = bits_between(ours, theirs)
    near = bits.min(axis=1) <= 16
    wanted = {n: int(bits[n].argmin()) for n in np.flatnonzero(near).tolist()}
    assert leaks(hexed(ours), hexed(theirs)) == wanted
    assert wanted


def counted(monkeypatch):
    """Count the hashes that are compared."""
    count = [0]
    inside = nearness.apart

    def apart(words, one):
        count[0] += len(words)
        return inside(words, one)

    monkeypatch.setattr(nearness, "apart", apart)
    monkeypatch.setattr(likeness, "apart", apart)
    return count


@pytest.mark.parametrize("num_sources", [1, 4])
def test_still_cameras_cost_no_square(num_sources, monkeypatch):
    """20 000 clips of one view and 100 000 of other things: two hundred million near pairs."""
    rng = np.random.default_rng(0)
    view = np.repeat(random(rng, 1), 20_000, 0)
    words = np.concatenate([turned(rng, view, 6), random(rng, 100_000)])
    sources = np.concatenate([np.arange(20_000) % num_sources, 10 + np.arange(100_000) % 500])
    rows = [
        {"id": f"{n:06}", "phash": hashed, "source_sha256": f"{source:03}"}
        for n, (hashed, source) in enumerate(zip(hexed(words), sources.tolist(), strict=True))
    ]
    blank = {"width": 1, "height": 1, "sharpness": 1.0, "source_bytes": 1}
    table = pa.Table.from_pylist([row | blank for row in rows])
    judged = type("All", (), {"passing": np.ones(len(rows), bool)})()
    count = counted(monkeypatch)
    found = twins_of(table, judged)
    assert len(found) == 20_000 * (num_sources - 1) // num_sources
    assert count[0] < 1000 * len(rows)  # all with all would be 60 000 for each


def test_memory_grows_with_hashes_and_not_with_pairs():
    rng = np.random.default_rng(0)
    words = turned(rng, np.repeat(random(rng, 1), 6000, 0), 6)
    tracemalloc.start()
    try:
        near = nearness.search(words, 16, np.arange(6000) % 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(rows) for rows in near.crowded()] == [6000]
    assert peak < 60 << 20  # a list of the pairs would take 200 MB
