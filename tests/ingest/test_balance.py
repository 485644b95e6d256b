import pytest

from ingest.balance import balance
from ingest.ledger import to_table


def books():
    source = {"kind": "source", "fate": "kept", "attempts": 1, "num_candidates": 2, "num_kept": 1}
    clip = {"kind": "clip", "attempts": 1}
    return [
        source | {"unit_id": "u", "id": "s"},
        clip | {"unit_id": "u", "id": "a", "fate": "kept", "shard": "data/x"},
        clip | {"unit_id": "u", "id": "b", "fate": "rejected"},
        source | {"unit_id": "v", "id": "t", "fate": "failed", "num_candidates": 0, "num_kept": 0},
    ]


def test_good_books_balance():
    result = balance(to_table(books()), {"u", "v"})
    assert (result.ok, result.sources, result.candidates) == (True, 2, 2)
    assert balance(to_table([])).ok


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: rows.pop(0), "0 source rows"),
        (lambda rows: rows.append(rows[0]), "2 source rows"),
        (lambda rows: rows.pop(2), "2 candidates but 1 fates"),
        (lambda rows: rows[2].update(fate="kept", shard="data/x"), "1 kept counted but 2"),
        (lambda rows: rows[2].update(id="a"), "several fates"),
        (lambda rows: rows[1].update(shard=None), "no shard"),
        (lambda rows: rows[2].update(fate="lost"), "unknown fate lost"),
        (lambda rows: rows.pop(3), "unit v: no fate"),
    ],
)
def test_every_gap_is_named(spoil, words):
    rows = books()
    spoil(rows)
    result = balance(to_table(rows), {"u", "v"})
    assert not result.ok
    assert any(words in problem for problem in result.problems)
