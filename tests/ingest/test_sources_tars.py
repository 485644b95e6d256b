import io
import json
import os
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.clip import Prep, digest_of
from ingest.objects import Root
from ingest.places import OnDisk
from ingest.source import Wanted
from ingest.sources import (
    Layout,
    Said,
    SourceError,
    Spoken,
    check_readable,
    check_unchanged,
    fingerprint,
    list_sources,
    local,
    sha256_file,
)
from ingest.tar_headers import Headers, entries
from ingest.tar_members import members
from ingest.tars import TarPart
from ingest.unit import plan_unit

LIMIT = 1 << 30
PLAIN = [
    ("dogs/0001.mp4", b"first"),
    ("dogs/0001.txt", b" a dog \n"),
    ("dogs/0001.cls", b"3\n"),
    ("dogs/0002.webm", b"second" * 1000),
    ("dogs/0002.json", json.dumps({"caption": "two", "licence": "CC0", "x": [1]}).encode()),
    ("dogs/0002.txt", b"not asked, for the json speaks"),
    ("0003.left.mp4", b"left"),
    ("0003.right.mp4", b"right"),
    ("0003.txt", b"both eyes"),
    ("0004.png", b"a picture"),
    ("notes.md", b"nothing"),
    ("._0005.mp4", b"what a mac leaves"),
]


def write(path, files, *, kinds=None):
    """Write a tar; `kinds` turns members into links and the like."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), 7
            entry.type = (kinds or {}).get(name, tarfile.REGTYPE)
            if entry.type != tarfile.REGTYPE:
                entry.linkname, entry.size = "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture(params=["disk", "store"])
def put(request):
    """Put a file on a disk or into a store; gives its path or URI."""
    if request.param == "disk":
        return str
    bucket = request.getfixturevalue("bucket")

    def upload(path):
        Root.of(bucket).replace(path.name, path.read_bytes())
        return f"{bucket}/{path.name}"

    return upload


def named(sources):
    return {source.uri.partition("#")[2]: source for source in sources}


def problem(source):
    with pytest.raises(SourceError) as caught:
        check_readable(source, LIMIT)
    assert fingerprint(source) == ""
    return caught.value.error_class


def test_members_and_what_lies_beside_them(tmp_path, put):
    uri = put(write(tmp_path / "s-0.tar", PLAIN))
    sources = list_sources([uri])
    assert [s.uri for s in sources] == sorted(
        f"{uri}#{name}" for name, _ in PLAIN if name.endswith(("mp4", "webm")) and name[0] != "."
    )
    found = named(sources)
    assert found["dogs/0001.mp4"].said == Said(captions=(Spoken(text="a dog"),), label="3")
    assert found["dogs/0002.webm"].said == Said(captions=(Spoken(text="two"),), licence="CC0")
    assert {found[f"0003.{eye}.mp4"].said.captions[0].text for eye in ("left", "right")} == {
        "both eyes"
    }
    assert "0004.png" in named(list_sources([uri], pictures=True))
    content = dict(PLAIN)
    for name, source in found.items():
        assert source.bytes == len(content[name])
        check_readable(source, LIMIT)
        check_unchanged(source)
        with local(source, tmp_path / "scratch", max_bytes=LIMIT) as copy:
            assert copy.path.endswith(name[name.rindex(".") :])
            assert (copy.frames_fps, sha256_file(copy.path)) == (None, fingerprint(source))
            assert Path(copy.path).read_bytes() == content[name]
        assert not list((tmp_path / "scratch").iterdir())


def test_a_folder_and_a_glob_of_tars(tmp_path, put):
    for number in range(3):
        uri = put(write(tmp_path / f"s-{number}.tar", [(f"{number}.mp4", b"x")]))
    folder = uri.rpartition("/")[0]
    assert set(named(list_sources([folder]))) == {"0.mp4", "1.mp4", "2.mp4"}
    assert set(named(list_sources([f"{folder}/s-[01].tar"]))) == {"0.mp4", "1.mp4"}


def test_a_class_folder_holds_tars(tmp_path):
    (tmp_path / "cats").mkdir()
    write(tmp_path / "cats" / "a.tar", [("1.mp4", b"x"), ("2.mp4", b"y"), ("2.cls", b"lion")])
    found = named(list_sources([str(tmp_path)], layout=Layout(labels="folder")))
    assert {name: source.said.label for name, source in found.items()} == {
        "1.mp4": "cats",
        "2.mp4": "lion",
    }


def test_what_is_refused_is_one_members_fate(tmp_path, put):
    hostile = {
        "../up.mp4": "BadName",
        "a/../../up.mp4": "BadName",
        "/abs.mp4": "BadName",
        "a\\..\\..\\b.mp4": "BadName",
        "twice.mp4": "Duplicate",
        "symbolic.mp4": "NotAFile",
        "hard.mp4": "NotAFile",
        "fifo.mp4": "NotAFile",
        "device.mp4": "NotAFile",
        "zero.mp4": "EmptyFile",
        "sheet.mp4": "BadSheet",
        "linked.mp4": "BadSheet",
        "bytes.mp4": "BadSheet",
        "two.mp4": "BadSheet",
        "long.mp4": "BadSheet",
        "twocaps.mp4": "BadSheet",
        f"{'long/' * 1000}x.mp4": "BadName",
    }
    files = [(name, b"" if name == "zero.mp4" else b"x") for name in hostile]
    files += [
        ("twice.mp4", b"again"),
        ("sheet.json", b"{"),
        ("linked.txt", b""),
        ("good.mp4", b"g"),
    ]
    files += [
        ("bytes.txt", b"\xff"),
        ("two.json", b'{"caption": 3}'),
        ("long.txt", b"x" * (2 << 20)),
    ]
    files += [("twocaps.txt", b"one"), ("twocaps.txt", b"two")]
    kinds = {"symbolic.mp4": tarfile.SYMTYPE, "hard.mp4": tarfile.LNKTYPE, "x": tarfile.DIRTYPE}
    kinds |= {"fifo.mp4": tarfile.FIFOTYPE, "device.mp4": tarfile.CHRTYPE}
    kinds["linked.txt"] = tarfile.SYMTYPE
    sources = named(list_sources([put(write(tmp_path / "h.tar", files, kinds=kinds))]))
    assert {n: problem(s) for n, s in sources.items() if n not in ("good.mp4", "zero.mp4")} == {
        name: kind for name, kind in hostile.items() if name != "zero.mp4"
    }
    with pytest.raises(SourceError, match="EmptyFile"):
        check_readable(sources["zero.mp4"], LIMIT)
    with local(sources["good.mp4"], tmp_path, max_bytes=1) as copy:
        assert Path(copy.path).read_bytes() == b"g"
    with (
        pytest.raises(SourceError, match="TooLarge"),
        local(sources["good.mp4"], tmp_path, max_bytes=0),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"no tar", bytes(600), b"\x1f\x8b\x08 packed" * 100])
def test_no_tar_is_a_fate(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    if content == bytes(600):  # an empty tar, as tar makes it
        with pytest.raises(FileNotFoundError, match="no video found"):
            list_sources([str(path)])
        return
    [source] = list_sources([str(path)])
    assert (source.uri, problem(source)) == (str(path), "BadTar")


def test_a_tar_that_is_absent_or_changes(tmp_path, put):
    with pytest.raises(FileNotFoundError):
        list_sources([put(write(tmp_path / "a.tar", PLAIN)).replace("a.tar", "b.tar")])
    (tmp_path / "dangling.tar").symlink_to("nowhere")
    [source] = list_sources([str(tmp_path / "dangling.tar")])
    assert problem(source) == "FileNotFoundError"
    source = named(list_sources([put(tmp_path / "a.tar")]))["dogs/0001.mp4"]
    put(write(tmp_path / "a.tar", [*PLAIN, ("more.mp4", b"x")]))
    with pytest.raises(SourceError, match="Changed"):
        check_unchanged(source)
    with pytest.raises(SourceError, match="Changed"), local(source, tmp_path, max_bytes=LIMIT):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("whole") / "w.tar", PLAIN)
    good = {s.uri.partition("#")[2]: fingerprint(s) for s in list_sources([str(path)])}
    return path.read_bytes(), good


PLACES = st.integers(0, 1 << 30)


@given(
    cut_at=st.one_of(st.none(), PLACES),
    flips=st.lists(st.tuples(PLACES, st.integers(0, 7)), max_size=4),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_tars_never_crash_and_no_single_fault_passes_in_silence(
    tmp_path, whole, cut_at, flips
):
    content, good = bytearray(whole[0]), whole[1]
    end = max(i for i, byte in enumerate(content) if byte) + 1
    for place, bit in flips:
        content[place % end] ^= 1 << bit
    if cut_at is not None:
        del content[1 + cut_at % (end - 1) :]
    path = tmp_path / "d.tar"
    path.write_bytes(content)
    try:
        found = list_sources([str(path)])
    except FileNotFoundError:
        found = []
    fates = Counter()
    for source in found:
        try:
            check_readable(source, LIMIT)
            with local(source, tmp_path / "scratch", max_bytes=LIMIT) as copy:
                assert sha256_file(copy.path) == fingerprint(source)
        except SourceError as error:
            fates[error.error_class] += 1
    if cut_at is not None:
        assert fates["BadTar"] == 1
    elif len(flips) < 2:  # headers have sums, which two flips can keep
        assert fates["BadTar"] or {s.uri.partition("#")[2] for s in found} >= set(good)


def header(name, size, kind=tarfile.REGTYPE):
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def pax(**words):
    text = b"".join(
        b"%d %s=%s\n" % (len(name) + len(value) + 5, name.encode(), value.encode())
        for name, value in words.items()
    )
    return header("pax", len(text), tarfile.XHDTYPE) + text.ljust(512, b"\0")


@pytest.mark.parametrize(
    "content",
    [
        header("back.mp4", -1024),
        header("a.mp4", 0) + header("back.mp4", -512),
        pax(size="-2048") + header("back.mp4", 0),
        pax(path="deeper.mp4") * 3000 + header("a.mp4", 0),
        header("huge.mp4", 1 << 70),
    ],
    ids=["back", "onto itself", "back by words", "deep", "huge"],
)
@pytest.mark.timeout(20)
def test_headers_that_lead_in_circles(tmp_path, content):
    (tmp_path / "evil.tar").write_bytes(content + bytes(2048))
    found = list_sources([str(tmp_path / "evil.tar")])
    assert "BadTar" in [problem(source) for source in found if source.uri.endswith(".tar")]
    assert TarPart(tmp_path / "evil.tar", "evil.tar", "").problem  # nor in an import


def test_headers_that_want_all_memory(tmp_path):
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    (tmp_path / "bomb.tar").write_bytes(entry.tobuf() + bytes(2048))
    [source] = list_sources([str(tmp_path / "bomb.tar")])
    assert problem(source) == "BadTar"


def test_a_file_that_is_called_like_a_member_is_another_source(tmp_path, curate):
    write(tmp_path / "a.tar", [("b.mp4", b"member"), ("b.tar#c.mp4", b"deep")])
    write(tmp_path / "a.tar#b.tar", [("c.mp4", b"other")])
    (tmp_path / "a.tar#b.mp4").write_bytes(b"a file")
    found = list_sources([str(tmp_path)])
    uris = [f"{tmp_path}/a.tar#{name}" for name in ("b.mp4", "b.mp4", "b.tar#c.mp4", "b.tar#c.mp4")]
    assert [source.uri for source in found] == uris
    content = {(source.member.tar if source.member else ""): "" for source in found}
    assert len(content) == 3
    assert len({source.key for source in found}) == len({s.printable_uri for s in found}) == 4
    assert len({plan_unit(source, prep=Prep()).unit_id for source in found}) == 4
    assert len({fingerprint(source) for source in found}) == 4
    fates = [curate(source, tmp_path / "out").rows.to_pylist()[0] for source in found]
    assert len({(row["source_uri"], row["source_bytes"], row["fate"]) for row in fates}) == 4


def test_other_sources_have_the_names_that_they_had(tmp_path):
    """What ledgers know of them by."""
    write(tmp_path / "a.tar", [("b.mp4", b"member")])
    (tmp_path / "c.mp4").write_bytes(b"a file")
    (tmp_path / "d#e.mp4").write_bytes(b"a file")
    for source in list_sources([str(tmp_path)]):
        assert source.key == source.printable_uri == source.uri
        whole = {"uri": os.fsencode(source.uri).hex(), "sha": fingerprint(source)}
        unit = plan_unit(source, prep=Prep())
        assert unit.unit_id == digest_of(whole | {"prep": Prep().digest()})


def test_words_on_a_member_find_it(tmp_path):
    write(tmp_path / "a.tar", [("b.mp4", b"member")])
    (tmp_path / "m.csv").write_text("video,caption\na.tar#b.mp4,a dog\n")
    for order in (["a.tar", "m.csv"], ["m.csv", "a.tar"]):
        [source] = list_sources([str(tmp_path / name) for name in order])
        assert source.member
        assert source.said.captions == (Spoken(text="a dog"),)


def peak_of(work):
    tracemalloc.start()
    try:
        done = work()
        return done, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("count", "words"), [(4000, 0), (100, 200_000)], ids=["many", "wordy"])
def test_memory_for_headers_does_not_grow_with_their_number(tmp_path, count, words):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for at in range(count):
            entry = tarfile.TarInfo(f"folder/{at:08d}.dat")
            entry.pax_headers = {"comment": "x" * words} if words else {}
            tar.addfile(entry)
    headers = Headers(OnDisk(str(path)).read_at, path.stat().st_size)
    found, peak = peak_of(lambda: sum(1 for _ in entries(headers)))
    assert found == count
    assert peak < (400 << 10) + 8 * words


def test_words_for_all_members_end(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for at in range(40):
            text = b"".join(b"%d k%02d=%s\n" % (100_010, at, b"x" * 99_998) for _ in range(1))
            entry = tarfile.TarInfo("global")
            entry.type, entry.size = tarfile.XGLTYPE, len(text)
            tar.fileobj.write(
                entry.tobuf(tarfile.USTAR_FORMAT) + text.ljust(-(-len(text) // 512) * 512, b"\0")
            )
            tar.fileobj.write(tarfile.TarInfo(f"{at}.mp4").tobuf())
    headers = Headers(OnDisk(str(path)).read_at, path.stat().st_size)
    with pytest.raises(tarfile.ReadError, match="for all members"):
        list(entries(headers))


def test_sheets_are_not_held_all_at_once(tmp_path, put):
    """Half a megabyte beside each of 60 videos; what stands there arrives all the same."""
    files = []
    for at in range(60):
        files += [
            (f"{at:02d}.mp4", b"v"),
            (f"{at:02d}.txt", f"{at:02d}".encode() + b" " * (1 << 19)),
        ]
    files += [("gone.json", b" " * (1 << 19)), ("late.txt", b"late"), ("00.json", b'{"label": 7}')]
    uri = put(write(tmp_path / "x.tar", files))
    wanted = Wanted.of(Layout(), pictures=False)
    found, peak = peak_of(lambda: list(members(uri, wanted, Said())))
    assert [source.said.captions[0].text for source in found] == [f"{at:02d}" for at in range(60)]
    assert found[0].said.label == "7"
    assert peak < 14 << 20
