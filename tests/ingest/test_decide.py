"""Fates as a function of columns: against one row at a time, and repeated, and beside a takedown."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decide import READS, decide, give_fates, judge, readable
from ingest.keep import RULES, Bound, Keep
from ingest.ledger import to_table
from ingest.likeness import leaks_of, twins_of
from ingest.purge import purge
from ingest.rewrite import replace_units
from ingest.schema import SCORES, conformed, ledger_schema
from ingest.stage import NotAStage
from ingest.store import Dataset
from tests.ingest.made_shards import made, name_of
from tests.ingest.stages_made import NotStill

values = st.one_of(st.none(), st.sampled_from([0.0, 0.02, 0.3, 10.0, 100.0, 300.0]))
clip_rows = st.fixed_dictionaries(
    {
        **dict.fromkeys((*SCORES, "aesthetic"), values),
        "unit": st.sampled_from("uvw"),
        "was": st.sampled_from(
            ["kept", "purged", "failed", "near_duplicate", "leakage", "max_gone", *RULES]
        ),
        "stored": st.booleans(),
    }
)
keeps = st.builds(
    Keep,
    min_motion=st.sampled_from([None, 0.01, 1.0]),
    max_motion=st.sampled_from([None, 0.1]),
    min_luma=st.sampled_from([None, 16.0]),
    min_sharpness=st.sampled_from([None, 50.0]),
    bounds=st.sampled_from([(), (Bound(score="aesthetic", min=1.0, max=200.0),)]),
)


def ledger_of(drawn):
    rows = []
    for number, one in enumerate(drawn):
        fate = {"kept": "kept", "failed": "failed", "near_duplicate": "duplicate"}
        rows.append(
            {
                "unit_id": one["unit"],
                "kind": "clip",
                "id": f"clip{number}",
                "attempts": 1,
                "fate": fate.get(one["was"], "rejected"),
                "rule": None if one["was"] in ("kept", "failed") else one["was"],
                "shard": "s" if one["stored"] or one["was"] == "kept" else None,
                **{name: one[name] for name in SCORES},
            }
        )
    for unit in "uvw":
        kept = sum(row["fate"] == "kept" for row in rows if row["unit_id"] == unit)
        rows.append(
            {
                "unit_id": unit,
                "kind": "source",
                "id": f"source {unit}",
                "attempts": 1,
                "fate": "kept" if kept else "rejected",
                "rule": None if kept else "no_clip_kept",
                "num_kept": kept,
            }
        )
    found = to_table(rows)
    beside = [one["aesthetic"] for one in drawn] + [None] * 3
    return found.append_column("aesthetic", pa.array(beside, pa.float64()))


def one_by_one(row, keep, units, *, leaks, twins, own=None):
    """The law for one clip row: its fate after the decision."""
    same = {name: row[name] for name in ("fate", "rule", "score", "threshold", "duplicate_of")}
    closed = row["fate"] == "failed" or row["rule"] == "purged"
    mine = row["unit_id"] in units
    passes = row["fate"] == "kept" or row["rule"] == "near_duplicate"
    if closed or not (mine or passes):
        return same
    new = dict.fromkeys(same)
    if mine:
        fate = keep.decide({name: row[name] for name in (*SCORES, "aesthetic")})
        if fate.name != "kept":
            return {name: fate.columns()[name] for name in same}
        (objection,) = own([row]) if own else [None]
        if objection:
            told = {"score": objection.score, "threshold": objection.threshold}
            return new | told | {"fate": "rejected", "rule": own.name}
        if row["id"] in leaks:
            return new | {"fate": "rejected", "rule": "leakage", "duplicate_of": leaks[row["id"]]}
    if row["id"] in twins:
        better, far = twins[row["id"]]
        told = {"fate": "duplicate", "rule": "near_duplicate", "score": far, "duplicate_of": better}
        return new | told
    return new | {"fate": "kept"}


@settings(max_examples=150, deadline=None)
@given(st.lists(clip_rows, max_size=12), keeps, st.sets(st.sampled_from("uvw")),
       st.sampled_from([None, NotStill()]), st.data())  # fmt: skip
def test_the_decision_is_that_of_each_row(drawn, keep, units, own, data):
    ledger = ledger_of(drawn)
    ids = [f"clip{n}" for n in range(len(drawn))]
    some = st.sets(st.sampled_from(ids)) if ids else st.just(set())
    leaks = dict.fromkeys(data.draw(some), "eval")
    twins = dict.fromkeys(data.draw(some), ("better", 3.0))
    judged = judge(ledger, keep=keep, units=units, own=[own] if own else [], leaks=leaks)
    found = decide(ledger, judged, twins=twins, leaks=leaks)
    changed = {(r["unit_id"], r["kind"], r["id"]): r for r in found.changes.to_pylist()}
    kept = dict.fromkeys("uvw", 0)
    wanted = {}
    for row in ledger.to_pylist():
        if row["kind"] == "clip":
            wanted[row["id"]] = one_by_one(row, keep, units, leaks=leaks, twins=twins, own=own)
            kept[row["unit_id"]] += wanted[row["id"]]["fate"] == "kept"
    unstored = {
        r["unit_id"]
        for r in ledger.to_pylist()
        if r["kind"] == "clip" and wanted[r["id"]]["fate"] == "kept" and not r["shard"]
    }
    assert found.unstored == unstored
    for row in ledger.to_pylist():
        now = row | changed.get((row["unit_id"], row["kind"], row["id"]), {})
        if row["unit_id"] in unstored:
            assert now == row
        elif row["kind"] == "clip":
            assert {name: now[name] for name in wanted[row["id"]]} == wanted[row["id"]]
        else:
            assert now["num_kept"] == kept[row["unit_id"]]
            assert now["fate"] == ("kept" if kept[row["unit_id"]] else "rejected")
    assert all(r != {**r, **changed[k]} for r in ledger.to_pylist()
               if (k := (r["unit_id"], r["kind"], r["id"])) in changed)  # fmt: skip


@pytest.fixture
def judged_dataset(tmp_path):
    dataset = made(tmp_path, "abc")
    rows = dataset.ledger().to_pylist()
    for row in rows:
        if row["kind"] == "clip" and row["fate"] == "kept":
            row["motion"] = 0.1 * int(row["source_sha256"] == name_of("b")) + 0.02
    replace_units(dataset.table("ledger"), to_table(rows))
    return Dataset.open(tmp_path)


def refate(dataset, keep, **more):
    table = dataset.table("ledger")
    table.refresh()
    ledger = readable(table)
    units = ledger.column("unit_id").unique().to_pylist()
    found = decide(ledger, judge(ledger, keep=keep, units=units), **more)
    return give_fates(table, found.changes), found


def test_other_thresholds_and_back_again_give_the_same_dataset(judged_dataset):
    dataset = judged_dataset
    digest = dataset.digest()
    files, _found = refate(dataset, Keep(min_motion=0.1))
    assert files
    strict = Dataset.open(dataset.root)
    assert set(strict.kept_clips().column("source_sha256").to_pylist()) == {name_of("b")}
    assert strict.balance().ok
    empty = [r for r in strict.ledger().to_pylist() if r["rule"] == "no_clip_kept"]
    assert {row["id"] for row in empty} == {name_of("a"), name_of("c")}
    assert refate(strict, Keep(min_motion=0.1))[0] == 0
    assert strict.version == Dataset.open(dataset.root).version
    files, found = refate(strict, Keep())
    assert files
    assert not found.unstored
    assert Dataset.open(dataset.root).digest() == digest


def test_near_duplicates_are_hidden_and_come_back(judged_dataset):
    dataset = judged_dataset
    digest = dataset.digest()
    twins = {name_of("a/1"): (name_of("b/0"), 2.0)}
    refate(dataset, Keep(), twins=twins)
    after = Dataset.open(dataset.root)
    assert name_of("a/1") not in after.kept_clips().column("clip_id").to_pylist()
    (row,) = [r for r in after.ledger().to_pylist() if r["id"] == name_of("a/1")]
    told = (row["fate"], row["rule"], row["score"], row["duplicate_of"])
    assert told == ("duplicate", "near_duplicate", 2.0, name_of("b/0"))
    assert after.balance().ok
    refate(after, Keep())
    assert Dataset.open(dataset.root).digest() == digest


def test_what_was_taken_down_stays_down(judged_dataset):
    dataset = judged_dataset
    table = dataset.table("ledger")
    ledger = readable(table)
    units = ledger.column("unit_id").unique().to_pylist()
    strict = decide(ledger, judge(ledger, keep=Keep(min_motion=0.1), units=units))
    assert purge(dataset, clips=[name_of("a/0")], reason="asked").clean
    give_fates(Dataset.open(dataset.root).table("ledger"), strict.changes)
    (row,) = [
        r for r in Dataset.open(dataset.root).ledger().to_pylist() if r["id"] == name_of("a/0")
    ]
    assert (row["fate"], row["rule"], row["score"]) == ("rejected", "purged", None)


def test_a_million_rows_are_judged_in_columns():
    """No Python object a row: the whole decision over a million rows, in seconds."""
    count = 1_000_000
    draw = np.random.default_rng(0)
    columns = {
        "unit_id": pa.array(np.repeat(np.arange(count // 10), 10)).cast(pa.utf8()),
        "kind": pa.array(["clip"] * count),
        "id": pa.array(np.arange(count)).cast(pa.utf8()),
        "fate": pa.array(["kept"] * count),
        "shard": pa.array(["s"] * count),
        **{name: pa.array(draw.random(count)) for name in SCORES},
    }
    wanted = pa.schema([ledger_schema().field(name) for name in READS])
    ledger = conformed(pa.table(columns), wanted)
    ledger = ledger.append_column("aesthetic", pa.array(1 + draw.random(count)))
    keep = Keep(min_motion=0.5, max_motion=None, min_luma=None, min_luma_range=None,
                max_duplicate_frame_share=None, bounds=(Bound(score="aesthetic", min=1.0),))  # fmt: skip
    judged = judge(ledger, keep=keep, units=ledger.column("unit_id").unique())
    found = decide(ledger, judged)
    motion = ledger.column("motion").to_numpy()
    assert found.changes.num_rows == int((motion < 0.5).sum())
    assert judged.passing.sum() == int((motion >= 0.5).sum())


class Wordy(NotStill):
    def __call__(self, rows):
        said = super().__call__(rows)
        return [
            one and replace(one, message=f"{row['motion']} is still")
            for one, row in zip(said, rows, strict=True)
        ]


def test_an_own_rule_says_why_and_takes_it_back(judged_dataset):
    dataset = judged_dataset
    digest = dataset.digest()
    table = dataset.ledger_table
    ledger = readable(table)
    units = ledger.column("unit_id").unique().to_pylist()
    found = decide(ledger, judge(ledger, keep=Keep(), units=units, own=[Wordy()]))
    assert give_fates(table, found.changes)
    after = Dataset.open(dataset.root)
    told = [r for r in after.ledger().to_pylist() if r["rule"] == "not_still"]
    assert {row["source_sha256"] for row in told} == {name_of("a"), name_of("c")}
    assert {(r["fate"], r["score"], r["threshold"], r["message"]) for r in told} == {
        ("rejected", 0.02, 0.1, "0.02 is still")
    }
    assert after.balance().ok
    assert not decide(
        readable(after.ledger_table),
        judge(readable(after.ledger_table), keep=Keep(), units=units, own=[Wordy()]),
    ).changes.num_rows
    refate(after, Keep())
    assert Dataset.open(dataset.root).digest() == digest
    assert not any(
        r["message"]
        for r in Dataset.open(dataset.root).ledger().to_pylist()
        if r["kind"] == "clip" and r["fate"] == "kept"
    )


def test_an_own_rule_that_answers_short_is_named():
    class Short(NotStill):
        def __call__(self, rows):
            return super().__call__(rows)[1:]

    with pytest.raises(NotAStage, match="not_still: 0 answers for 1 clips"):
        judge(hashed(("x", "a", BASE, 100)), keep=Keep(), units=["a"], own=[Short()])


def hashed(*clips):
    """Rows of kept clips as (id, source, hash, width)."""
    rows = [
        {
            "unit_id": source,
            "kind": "clip",
            "id": name,
            "fate": "kept",
            "attempts": 1,
            "shard": "s",
            "phash": f"{bits:048x}",
            "source_sha256": source,
            "width": width,
            "height": 100,
        }
        for name, source, bits, width in clips
    ]
    return to_table(rows)


BASE = int("0123456789abcdef" * 3, 16)


def twins(table, **settings):
    judged = judge(table, keep=Keep(), units=set(table.column("unit_id").to_pylist()))
    return twins_of(table, judged, **settings)


def test_the_best_copy_stays_whatever_came_first():
    near = BASE ^ 0b111  # three bits
    clips = [
        ("small", "a", BASE, 100),
        ("large", "b", near, 200),
        ("other", "c", ~BASE % 2**192, 100),
    ]
    for order in (clips, clips[::-1]):
        assert twins(hashed(*order)) == {"small": ("large", 3.0)}
    assert twins(hashed(*clips), max_bits=2) == {}


def test_vectors_may_say_that_near_hashes_are_no_copies():
    clips = [("small", "a", BASE, 100), ("large", "b", BASE ^ 1, 200), ("mid", "c", BASE ^ 6, 150)]
    asked = []

    def confirm(names):
        asked.extend(names)
        return lambda one, other: {one, other} != {"large", "mid"}

    far = ("far", "d", ~BASE % 2**192, 100)
    assert twins(hashed(*clips, far), confirm=confirm) == {"small": ("large", 1.0)}
    assert sorted(asked) == ["large", "mid", "small"]


def test_clips_of_one_source_are_no_copies_and_a_copied_source_goes_whole():
    """A camera that stands still gives clips that look alike; a second copy of the film does not stay."""
    film = [(f"a{n}", "a", BASE, 200) for n in range(4)]
    copy = [(f"b{n}", "b", BASE ^ 1, 100) for n in range(4)]
    assert twins(hashed(*film)) == {}
    found = twins(hashed(*film, *copy))
    assert set(found) == {f"b{n}" for n in range(4)}
    assert {better for better, _ in found.values()} <= {f"a{n}" for n in range(4)}


def test_flat_and_unknown_hashes_match_nothing():
    flat = [("x", "a", 0, 100), ("y", "b", 0, 100)]
    assert twins(hashed(*flat)) == {}
    table = hashed(("x", "a", BASE, 100), ("y", "b", BASE, 100))
    at = table.schema.get_field_index("phash")
    assert twins(table.set_column(at, "phash", pa.nulls(2, pa.utf8()))) == {}


def test_leaks_name_the_clip_of_the_evaluation_set():
    ours = hashed(("x", "a", BASE, 100), ("y", "b", ~BASE % 2**192, 100))
    theirs = hashed(("eval", "c", BASE ^ 3, 100))
    judged = judge(ours, keep=Keep(), units={"a", "b"})
    leaks = leaks_of(ours, judged, theirs)
    assert leaks == {"x": "eval"}
    judged = judge(ours, keep=Keep(), units={"a", "b"}, leaks=leaks)
    (row,) = decide(ours, judged, leaks=leaks).changes.to_pylist()
    assert (row["id"], row["fate"], row["rule"], row["duplicate_of"]) == (
        "x", "rejected", "leakage", "eval",
    )  # fmt: skip
