"""What a source was found to be is remembered until the source, or how it is read, may be another."""

import os
from dataclasses import replace

from ingest.clip import Prep
from ingest.sources import list_sources
from ingest.unit import Named
from pipelines.naming import FILE, Names

OLD_NS = 1_600_000_000_000_000_000


def listed(folder, content=b"one", mtime_ns=OLD_NS):
    path = folder / "videos" / "a.mp4"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return list_sources([str(path)])[0]


def test_a_name_holds_for_the_same_source_only(tmp_path):
    source, known = listed(tmp_path), Named(sha256="ab", num_parts=3)
    Names(tmp_path, Prep()).put([(source, known)])
    again = Names(tmp_path, Prep())
    assert again.get(listed(tmp_path)) == known
    assert again.get(listed(tmp_path, mtime_ns=OLD_NS + 1)) is None
    assert again.get(listed(tmp_path, content=b"more")) is None
    assert again.get(replace(source, etag="x")) is None
    assert again.get(replace(source, uri=source.uri + "x")) is None
    assert Names(tmp_path, Prep(max_unit_s=77)).get(source) is None


def test_what_may_still_change_is_not_remembered(tmp_path):
    young = listed(tmp_path, mtime_ns=tmp_path.stat().st_mtime_ns)
    names = Names(tmp_path, Prep())
    names.put([(young, Named(sha256="ab", num_parts=1))])
    names.put([(listed(tmp_path), Named(sha256="", num_parts=1))])  # could not be read
    assert names.get(young) is None
    assert names.get(listed(tmp_path)) is None


def test_a_torn_line_costs_only_itself(tmp_path):
    one = listed(tmp_path)
    other = replace(one, uri="/other.mp4")
    Names(tmp_path, Prep()).put([(one, Named(sha256="ab", num_parts=1))])
    with (tmp_path / FILE).open("a") as file:
        file.write('["abc", "d')
    Names(tmp_path, Prep()).put([(other, Named(sha256="cd", num_parts=2))])
    names = Names(tmp_path, Prep())
    assert (names.get(one), names.get(other)) == (
        Named(sha256="ab", num_parts=1),
        Named(sha256="cd", num_parts=2),
    )
