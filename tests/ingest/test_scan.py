import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import scan as scanning
from ingest.objects import Root
from ingest.scan import Probe, Scan, probe


def search(folder, probes):
    root = Root.of(folder)
    return {(entry.name, name) for entry, name in Scan(probes).files(root, root.names())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scan")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.integers(20, 3000), st.integers(0, 300), st.integers(0, 9))
def test_a_payload_is_found_wherever_it_lies(folder, before, size, after, seed):
    draw = random.Random(seed)
    payload, other = draw.randbytes(size), draw.randbytes(size)
    (folder / "x").write_bytes(draw.randbytes(before) + payload + draw.randbytes(after))
    (folder / "y").write_bytes(payload[: size // 2] + other)
    probes = [probe("mine", payload), probe("other", draw.randbytes(size))]
    assert search(folder, probes) - {("y", "mine")} == {("x", "mine")}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 400), st.integers(0, 9))
def test_also_across_the_blocks_that_a_file_is_read_in(folder, before, seed):
    draw = random.Random(seed)
    payload = draw.randbytes(200)
    (folder / "x").write_bytes(draw.randbytes(before) + payload + draw.randbytes(300))
    (folder / "y").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "BLOCK_BYTES", 128)
        assert search(folder, [probe("mine", payload)]) == {("x", "mine")}


def test_a_part_at_the_end_of_a_file_counts_and_a_lookalike_does_not(tmp_path):
    payload = random.Random(1).randbytes(1000)
    (tmp_path / "cut").write_bytes(b"z" * 77 + payload[:600])
    (tmp_path / "begun").write_bytes(payload[400:])
    (tmp_path / "alike").write_bytes(payload[:-1] + b"!")
    found = search(tmp_path, [probe("mine", payload)])
    assert found == {("cut", "mine"), ("begun", "mine")}


def test_what_tells_nothing_is_not_searched():
    assert probe("black", bytes(5000)) is None
    assert probe("short", b"0123456789") is None
    mostly = bytes(3000) + random.Random(2).randbytes(3000)
    found = probe("half", mostly)
    assert found.offset >= 2900
    assert Probe.told(json.loads(json.dumps(found.settings()))) == found
    assert list(Scan([]).files(Root.of("/nowhere"), [])) == []
