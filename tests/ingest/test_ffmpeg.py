import pickle
from fractions import Fraction

import numpy as np
import pytest

from ingest import ffmpeg
from ingest.clip import Contract, Prep
from ingest.encode import encode_video
from ingest.rates import Pace
from ingest.reading import Reading
from ingest.sources import SourceError


def test_rotation_and_pixel_aspect_become_an_upright_square_size(studio):
    plain = studio.numbered("n24.mp4", fps="24", count=123)
    turned, wide = studio.folder / "turned.mp4", studio.folder / "wide.mp4"
    studio.run("-display_rotation", "90", "-i", plain, "-c", "copy", turned)
    studio.run("-i", plain, "-vf", "setsar=4/3", "-c:v", "libx264", wide)
    assert ffmpeg.probe(str(plain), Prep()).display_size == (192, 128)
    assert ffmpeg.probe(str(turned), Prep()).display_size == (128, 192)
    assert ffmpeg.probe(str(wide), Prep()).display_size == (192, 96)  # shrinks, never grows


def test_the_largest_real_video_stream_is_chosen(studio):
    plain = studio.numbered("n24.mp4", fps="24", count=123)
    cover, two = studio.folder / "cover.png", studio.folder / "two_streams.mkv"
    studio.run("-i", plain, "-frames:v", "1", "-vf", "scale=640:480", cover)
    studio.run("-i", plain, "-filter_complex", "[0:v]split[a][b];[a]scale=96:64[c]", "-map", "[c]",
               "-map", "[b]", "-c:v", "libx264", two)  # fmt: skip
    chosen = {ffmpeg.probe(str(two), Prep()).stream_index for _ in range(12)}
    assert chosen == {1}  # by size and not by which of the two decodes first
    covered = studio.folder / "covered.mp4"
    studio.run("-i", plain, "-i", cover, "-map", "0", "-map", "1", "-c", "copy",
               "-c:v:1", "png", "-disposition:v:1", "attached_pic", covered)  # fmt: skip
    assert ffmpeg.probe(str(covered), Prep()).stream_index == 0


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_seen(studio, transfer):
    path = studio.folder / f"{transfer}.mp4"
    tags = f"setparams=color_primaries=bt2020:colorspace=bt2020nc:color_trc={transfer}"
    source = ("-f", "lavfi", "-i", "testsrc2=s=192x128:r=24:d=1")
    studio.run(*source, "-c:v", "libx265", "-x265-params", "log-level=error",
               "-pix_fmt", "yuv420p10le", "-vf", tags, path)  # fmt: skip
    assert ffmpeg.probe(str(path), Prep()).hdr
    assert not ffmpeg.probe(str(studio.numbered("n24.mp4", fps="24", count=123)), Prep()).hdr


def test_a_huge_picture_is_refused_before_it_is_decoded(studio):
    path = str(studio.numbered("n24.mp4", fps="24", count=123))
    with pytest.raises(SourceError):
        ffmpeg.probe(path, Prep(max_pixels=1000))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.mp4", "ffconcat version 1.0\nfile '{secret}'\n"),
        ("list.ts", "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:5,\nfile://{secret}\n#EXT-X-ENDLIST\n"),
        ("list.mkv", "#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_playlist_opens_nothing_else(studio, name, text):
    secret = studio.numbered("n24.mp4", fps="24", count=123)
    playlist = studio.folder / name
    playlist.write_text(text.format(secret=secret))
    with pytest.raises(SourceError):
        ffmpeg.probe(str(playlist), Prep())


def test_rgb_video_is_decoded_exactly(studio):
    """Its matrix has a name that no scaler takes."""
    frames = studio.frames(8)
    path = studio.folder / "rgb.mp4"
    path.write_bytes(encode_video(frames, 16, lossless=True))
    info = ffmpeg.probe(str(path), Prep())
    with Reading(str(path), info, Prep()) as reading:
        assert np.array_equal(np.stack(list(reading)), frames)


def test_the_pace_is_measured_for_native_frames_only(studio):
    path = str(studio.numbered("n30000_1001.mp4", fps="30000/1001", count=60))
    assert ffmpeg.probe(path, Prep()).pace is None
    native = Prep(contract=Contract(fps="native"))
    assert ffmpeg.probe(path, native).pace == Pace(fps=Fraction(30000, 1001), steady=True)
    with pytest.raises(SourceError, match="decode_timeout_s"):
        ffmpeg.probe(path, Prep(contract=Contract(fps="native"), decode_timeout_s=0.0))


def test_source_errors_travel_between_processes():
    error = SourceError("decode", "Timeout", "too slow")
    again = pickle.loads(pickle.dumps(error))
    assert (again.stage, again.error_class, again.message) == ("decode", "Timeout", "too slow")
    assert "too slow" in str(again)
