"""Files that point at other files or at the network: nothing of it is opened, and each has its fate."""

import ctypes
import io
import os
import socket
import struct
import subprocess
import tarfile
import threading
import time
from contextlib import contextmanager

import imageio_ffmpeg
import pytest

from ingest.sources import list_sources
from tests.ingest.attacks import SHORT, only
from tests.ingest.boxes import box, place_of_box

IN_OPEN = 0x20


@contextmanager
def listener():
    """A socket on loopback that counts who comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        came = []

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                came.append(connection.recv(1000) or b"?")
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], came
        with socket.create_connection(server.getsockname()) as last:
            last.sendall(b"last")
        deadline = time.monotonic() + 5
        while b"last" not in came and time.monotonic() < deadline:
            time.sleep(0.01)
        server.shutdown(socket.SHUT_RDWR)
    assert came == [b"last"]  # the listener worked, and was not called before


@contextmanager
def untouched(path):
    """Fail when anybody opens a file in the meantime; the kernel tells (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0
    try:
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        path.read_bytes()
        assert os.read(watch, 4096)  # it would have been told
    finally:
        os.close(watch)


HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
DASH = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
 mediaPresentationDuration="PT9S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="9" width="192" height="128">
<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"""
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
POINTERS = {
    "hls": HLS,
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "concat_unsafe": "ffconcat version 1.0\nfile {target}\noption safe 0\n",
    "dash": DASH,
    "sdp": SDP + "a=rtpmap:96 H264/90000\n",
    "rtsp": "RTSPtext\nrtsp://127.0.0.1:{port}/x\n",
    "asx": '<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
    "key": HLS.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF'),
    "crypto": HLS.replace("{target}", "crypto:{target}"),
    "subfile": HLS.replace("{target}", "subfile,,start,0,end,0,,:{target}"),
    "concat_protocol": HLS.replace("{target}", "concat:{target}|{target}"),
}


def pointers(folder, target, port):
    """Each kind of pointer under its own name and disguised; and the last in a tar."""
    for kind, text in POINTERS.items():
        words = text.replace("{target}", target).replace("{port}", str(port)).encode()
        (folder / f"{kind}.mp4").write_bytes(words)
    (folder / "list.m3u8").write_bytes(HLS.replace("{target}", target).encode())
    (folder / "list.ffconcat").write_bytes(POINTERS["concat"].replace("{target}", target).encode())
    (folder / "list.mpd").write_bytes(DASH.replace("{target}", target).encode())
    (folder / "list.sdp").write_bytes(SDP.replace("{port}", str(port)).encode())
    with tarfile.open(folder / "pointers.tar", "w") as tar:
        for kind in POINTERS:
            words = (folder / f"{kind}.mp4").read_bytes()
            entry = tarfile.TarInfo(f"in/{kind}.mp4")
            entry.size = len(words)
            tar.addfile(entry, io.BytesIO(words))


@pytest.mark.parametrize("target", ["secret", "file", "http", "tcp", "relative"])
def test_what_points_elsewhere_is_not_followed(good, curate, tmp_path, target):
    folder = tmp_path / "videos"
    folder.mkdir()
    os.link(good, folder / "secret.bin")  # a real video, that would be kept if it were read
    with listener() as (port, came):
        place = {
            "secret": str(folder / "secret.bin"),
            "file": f"file:{folder / 'secret.bin'}",
            "http": f"http://127.0.0.1:{port}/x.mp4",
            "tcp": f"tcp://127.0.0.1:{port}",
            "relative": "secret.bin",
        }[target]
        pointers(folder, place, port)
        listed = list_sources([str(folder), str(folder / "list.*")])
        assert len(listed) == 2 * len(POINTERS) + 4
        with untouched(folder / "secret.bin"):
            for source in listed:
                result = curate(source, tmp_path / "out", prep=SHORT, scratch=tmp_path / "s")
                fate, why, message = only(result)
                assert (fate, why) == ("failed", "NotAVideo"), source.uri
                assert message
        assert not came
    assert not list((tmp_path / "out").rglob("*.arrow"))


def test_a_followed_pointer_would_be_seen(good, tmp_path):
    """The control: an ffmpeg without our limits does open what the pointers name."""
    (tmp_path / "secret.bin").symlink_to(good)
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile secret.bin\n")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin",
               "-i", tmp_path / "x.mp4", "-f", "null", "-"]  # fmt: skip
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("kind", [b"alis", b"url "])
def test_a_video_whose_data_lie_in_another_file(good, curate, tmp_path, kind):
    """A QuickTime reference file: its samples are to be read from a file that it names."""
    secret = tmp_path / "secret.bin"
    os.link(good, secret)
    raw = bytearray(good.read_bytes())
    begin, end = place_of_box(raw, (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"))
    name = str(secret).encode()
    name += bytes(len(name) % 2)
    alias = bytes(150) + struct.pack(">hh", 2, len(name)) + name + b"\xff\xff\0\0"
    entry = box(kind, bytes(4), alias if kind == b"alis" else b"file://" + name + b"\0")
    raw[begin:end] = bytes(4) + struct.pack(">I", 1) + entry
    grown = 8 + len(entry) - (end - begin)
    for depth in range(1, 7):
        path = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")[:depth]
        at, _ = place_of_box(good.read_bytes(), path)
        (size,) = struct.unpack(">I", good.read_bytes()[at - 8 : at - 4])
        raw[at - 8 : at - 4] = struct.pack(">I", size + grown)
    media, media_end = place_of_box(raw, (b"mdat",))
    raw[media:media_end] = bytes(media_end - media)  # what it says itself is nothing
    path = tmp_path / "reference.mov"
    path.write_bytes(raw)
    with untouched(secret):
        fate, why, message = only(curate(path, tmp_path / "out", prep=SHORT))
    assert fate == "failed", (why, message)
    assert message
    if kind == b"alis":  # the control: an ffmpeg that is told to follow does
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-enable_drefs", "1",
                   "-use_absolute_path", "1", "-i", path, "-f", "null", "-"]  # fmt: skip
        done = subprocess.run(command, timeout=60, check=True, capture_output=True)
        assert not done.stderr, done.stderr
