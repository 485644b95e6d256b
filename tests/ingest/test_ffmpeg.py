import pickle
from fractions import Fraction

import numpy as np
import pytest

from ingest import child, ffmpeg, planes
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


def test_a_stream_without_packets_does_not_hide_the_other(studio):
    made = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2")
    path, half = studio.folder / "both-streams.ts", studio.folder / "one-stream.ts"
    studio.run(*made, *made, "-map", "0", "-map", "1", "-c:v", "libx264", path)
    raw = path.read_bytes()
    packets = [raw[at : at + 188] for at in range(0, len(raw), 188)]
    half.write_bytes(b"".join(p for p in packets if (p[1] & 31) << 8 | p[2] != 0x101))
    assert ffmpeg.probe(str(half), Prep()).stream_index == 0
    half.write_bytes(b"".join(p for p in packets if (p[1] & 31) << 8 | p[2] != 0x100))
    assert ffmpeg.probe(str(half), Prep()).stream_index == 1


def test_of_the_three_words_for_colour_only_the_first_is_the_matrix(studio):
    path = studio.folder / "words.mp4"
    source = ("-f", "lavfi", "-i", "testsrc2=s=192x128:r=24:d=1", "-pix_fmt", "yuv420p")
    for space, matrix in (("unknown", "smpte170m"), ("bt709", "bt709")):
        tags = f"setparams=color_primaries=bt709:color_trc=smpte170m:colorspace={space}"
        studio.run(*source, "-vf", tags, "-c:v", "libx264", path)
        assert ffmpeg.probe(str(path), Prep()).matrix == matrix


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


COLOURS = np.array(
    [[230, 30, 40], [20, 200, 60], [30, 60, 220], [240, 220, 30], [128, 128, 128], [250, 250, 250]]
)


def patches():
    """Eight frames with a stripe of each colour, 32 px wide."""
    row = np.repeat(COLOURS, 32, 0).astype(np.uint8)
    return np.tile(row, (8, 128, 1, 1))


def colours_of(frame):
    """Return RGB of the middle of each stripe, by the equations of BT.709 in TV range."""
    width, height = planes.size(frame)
    y, u, v = np.split(frame.reshape(-1).astype(float), [width * height, width * height * 5 // 4])
    at = 32 * np.arange(len(COLOURS)) + 16
    luma = (y.reshape(height, width)[64, at] - 16) / 219
    blue, red = ((c.reshape(height // 2, -1)[32, at // 2] - 128) / 224 for c in (u, v))
    rgb = np.stack([luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue])
    return 255 * rgb.T


@pytest.mark.parametrize("matrix", ["smpte170m", "bt709", "rgb"])
@pytest.mark.parametrize("levels", ["tv", "pc"])
def test_colours_come_through_whatever_the_source_stores(studio, matrix, levels):
    exact, path = studio.folder / "rgb.mp4", studio.folder / f"{matrix}-{levels}.mp4"
    exact.write_bytes(encode_video(patches(), 16, lossless=True))
    if matrix == "rgb":
        path = exact
    else:
        scale = f"scale=out_color_matrix={matrix}:out_range={levels}:flags=accurate_rnd"
        told = ["-colorspace", matrix, "-color_range", levels]
        lossless = ["-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p"]
        studio.run("-i", exact, "-vf", scale, *lossless, *told, path)
    info = ffmpeg.probe(str(path), Prep())
    with Reading(str(path), info, Prep()) as reading:
        (first, *_rest) = list(reading)
    assert np.abs(colours_of(first) - COLOURS).max() < 5
    grey = planes.luma(first)[64, 16::32] - COLOURS @ (0.2126, 0.7152, 0.0722)
    assert np.abs(grey).max() < 3


def test_the_pace_is_measured_for_native_frames_only(studio):
    path = str(studio.numbered("n30000_1001.mp4", fps="30000/1001", count=60))
    assert ffmpeg.probe(path, Prep()).pace is None
    native = Prep(contract=Contract(fps="native"))
    assert ffmpeg.probe(path, native).pace == Pace(fps=Fraction(30000, 1001), steady=True)
    with pytest.raises(SourceError, match="decode_timeout_s"):
        ffmpeg.probe(path, Prep(contract=Contract(fps="native"), decode_timeout_s=0.0))


def test_looking_into_a_file_has_the_limit_of_decoding_it():
    with pytest.raises(SourceError, match=r"Timeout.*decode_timeout_s=0.2"):
        child.ask(["sleep", "30"], Prep(decode_timeout_s=0.2))


def test_source_errors_travel_between_processes():
    error = SourceError("decode", "Timeout", "too slow")
    again = pickle.loads(pickle.dumps(error))
    assert (again.stage, again.error_class, again.message) == ("decode", "Timeout", "too slow")
    assert "too slow" in str(again)
