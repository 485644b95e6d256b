"""That the storage bench measures what it says: every reader gives what was written, the proxy counts every request."""

import urllib.request
import zlib

import pytest

from tests.bench.storage_child import check, consume, orders
from tests.bench.storage_corpus import from_payloads
from tests.bench.storage_formats import OWN
from tests.bench.storage_remote import counting_proxy, random_reads

PAYLOADS = [bytes([i]) * (1000 + 37 * i) for i in range(23)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return from_payloads("tiny", PAYLOADS, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def written(corpus, tmp_path_factory):
    folders = {}
    for name, kind in OWN.items():
        if not kind.stored:
            folders[name] = tmp_path_factory.mktemp(name)
            kind.write(corpus, folders[name])
    return folders


@pytest.mark.parametrize("name", OWN)
def test_every_reader_gives_what_was_written(name, corpus, written):
    kind = OWN[name]
    opened = kind(written[kind.stored or name], corpus)
    if kind.reads:
        order = orders(len(PAYLOADS), passes=2, seed=3)
        assert [bytes(p) for p in opened.random(order)] == [corpus.payloads[i] for i in order]
        check(opened.sequential(), corpus)
        consume([lambda: opened.random(order)], order, opened, corpus)
    if kind.filters:
        found = {zlib.crc32(p) for p in opened.best(corpus.threshold)}
        assert found == {corpus.crcs[i] for i in corpus.best}
        assert len(found) == 2


def test_a_reader_that_gives_other_bytes_is_found_out(corpus):
    with pytest.raises(SystemExit, match="other order"):
        check(reversed(corpus.payloads), corpus)
    wrong = OWN["memory"](corpus.path, corpus)
    wrong.payloads = [payload[:-1] + b"!" for payload in corpus.payloads]
    with pytest.raises(SystemExit, match="other payloads"):
        consume([wrong.sequential], list(range(len(PAYLOADS))), wrong, corpus)


def test_orders_are_permutations_and_those_of_the_seed():
    order = orders(50, passes=3, seed=1)
    assert [sorted(order[i : i + 50]) for i in (0, 50, 100)] == [list(range(50))] * 3
    assert order == orders(50, passes=3, seed=1) != orders(50, passes=3, seed=2)
    assert order[:50] == orders(50, passes=1, seed=1)


def test_the_proxy_counts_every_request_and_byte(object_store):
    with counting_proxy(object_store) as (url, counted):
        sizes = [len(urllib.request.urlopen(url).read()) for _ in range(3)]
    assert counted.requests == 3
    assert counted.bytes == sum(sizes) > 0
    assert counted.methods == ["GET"] * 3


def test_a_random_clip_costs_one_request_and_its_own_bytes(object_store):
    found = random_reads(object_store, "kinoray", PAYLOADS, num_reads=40)
    assert found == {"reads": 40, "requests": 1.0, "bytes": 1.0}
