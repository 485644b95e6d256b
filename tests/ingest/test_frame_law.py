"""The frame law against a second decoder: PyAV tells what is on screen when, with no line of ours.

Slot k must show the source frame that is on screen k/16 s after the first. Frames are compared as
small grey pictures. The frame that the law names must be nearer than each of its neighbours by a
factor of MARGIN, wherever the neighbours differ from it at all (a still scene tells nothing).
"""

import itertools
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from ingest import ffmpeg, planes
from ingest.clip import Contract, Prep
from ingest.reading import Reading

FPS = 16
SECONDS = 4
LINES_PX = 64  # of the grey pictures that are compared
MARGIN = 1.5  # a neighbour's distance over that of the right frame, at least
TELLING_LEVELS = (
    1.0  # what a neighbour must differ, for the choice between the two to mean anything
)
LEAST_TELLING = 0.5  # share of the slots in which both neighbours differ that much
PLAIN = Prep(crop_bars=False)
RATES = ("24000/1001", "25", "30000/1001", "30", "50", "60000/1001", "60")
SOURCES = ("mdn_elf.mp4", "tmh_VP9-tractor.webm", "mdn_frog.webm")  # that move all the time


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What PyAV says of a file: frames as small grey pictures, and the exact time of each."""

    pictures: np.ndarray
    times_s: list[Fraction]


def seen(path: Path, size: tuple[int, int]) -> Seen:
    """Decode with PyAV; pictures upright and shrunk by area to `size` (width, height)."""
    smalls, times = [], []
    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda one: (one.width * one.height, -one.index))
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            turned = size if frame.rotation % 180 == 0 else size[::-1]
            smalls.append(np.rot90(_grey(frame, turned), frame.rotation // 90))
            times.append(frame.pts * frame.time_base)
    return Seen(pictures=np.stack(smalls), times_s=times)


def _grey(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The light of a yuv420p frame as BT.709 weighs it, full range; what is untagged is BT.601."""
    assert frame.format.name == "yuv420p"
    height, width = frame.height, frame.width
    planes_ = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size) for p in frame.planes]
    wide = [p[:, :w] for p, w in zip(planes_, (width, -(-width // 2), -(-width // 2)), strict=True)]
    assert len(wide[0]) == height
    y, u, v = (cv2.resize(p.astype(np.float32), size, interpolation=cv2.INTER_AREA) for p in wide)
    light, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    if frame.colorspace != Colorspace.ITU709:
        r, b = light + 1.402 * red, light + 1.772 * blue
        g = (light - 0.299 * r - 0.114 * b) / 0.587
        light = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return (255 * light).clip(0, 255)


def ours(path: Path, prep: Prep) -> tuple[np.ndarray, Reading]:
    """Decode with Reading; small grey pictures of its frames."""
    with Reading(str(path), ffmpeg.probe(str(path), prep), prep) as reading:
        frames = list(reading)
    return np.stack([planes.luma(frame, side_px=LINES_PX) for frame in frames]), reading


def law(path: Path, prep: Prep = PLAIN) -> float:
    """Check every slot of a file; return the share of slots in which the choice meant something."""
    got_THW, reading = ours(path, prep)
    truth = seen(path, got_THW.shape[:0:-1])
    times = [at - truth.times_s[0] for at in truth.times_s]
    assert times == sorted(set(times))
    if prep.contract.native:
        wanted = list(range(len(times)))
    else:
        wanted = [bisect_right(times, Fraction(k, FPS)) - 1 for k in range(len(got_THW))]
        slots = int(times[-1] * FPS) + 1  # and the last frame stays for its own length
        assert (
            0 <= len(got_THW) - slots <= FPS * max(b - a for a, b in itertools.pairwise(times)) + 1
        )
    assert len(got_THW) == len(wanted)
    assert reading.frames_decoded == len(times)
    return _compared(got_THW, truth.pictures, wanted)


def _compared(got_THW: np.ndarray, truth_THW: np.ndarray, wanted: list[int]) -> float:
    def apart(one, other):
        return float(np.abs(one.astype(np.float32) - other).mean())

    telling = 0
    for slot, right in enumerate(wanted):
        near = apart(got_THW[slot], truth_THW[right])
        told = True
        for neighbour in {max(0, right - 1), min(len(truth_THW) - 1, right + 1)} - {right}:
            if apart(truth_THW[right], truth_THW[neighbour]) < TELLING_LEVELS:
                told = False
                continue
            far = apart(got_THW[slot], truth_THW[neighbour])
            assert far > MARGIN * near, (
                f"slot {slot}: frame {right} {near:.2f}, {neighbour} {far:.2f}"
            )
        telling += told
    return telling / len(wanted)


def remade(studio, source: Path, name: str, *options: str, inputs: tuple[str, ...] = ()) -> Path:
    """A few seconds of a real file under another clock or shape, every frame stored well."""
    path = studio.folder / f"law-{source.stem}-{name}"
    studio.run(*inputs, "-t", str(SECONDS), "-i", source, "-an", "-sn", "-dn", "-map", "0:V:0", *options,
               "-c:v", "libx264", "-crf", "8", "-preset", "ultrafast", "-pix_fmt", "yuv420p", path)  # fmt: skip
    return path


@pytest.mark.parametrize("rate", RATES)
def test_slots_of_real_videos_at_every_rate(studio, shared_videos, rate):
    for source, suffix in zip(SOURCES, ("mp4", "mkv", "ts"), strict=True):
        # Each frame of the source gets the next moment of the wanted clock: none is made or lost.
        clock = f"setpts=N/({rate})/TB,scale=320:-2"
        path = remade(studio, shared_videos / source, f"{rate.replace('/', '_')}.{suffix}",
                      "-vf", clock, "-r", rate)  # fmt: skip
        assert law(path) > LEAST_TELLING
    assert (
        law(path, Prep(crop_bars=False, contract=Contract(frames=16, fps="native"))) > LEAST_TELLING
    )


def test_the_comparison_tells_a_shifted_clock(studio, shared_videos):
    """The control: one frame late is found out."""
    path = remade(studio, shared_videos / SOURCES[0], "control.mp4", "-vf", "scale=320:-2")
    got_THW, _ = ours(path, PLAIN)
    truth = seen(path, got_THW.shape[:0:-1])
    times = [at - truth.times_s[0] for at in truth.times_s]
    wanted = [bisect_right(times, Fraction(k, FPS)) - 1 for k in range(len(got_THW))]
    assert _compared(got_THW, truth.pictures, wanted) > LEAST_TELLING
    with pytest.raises(AssertionError, match="slot"):
        _compared(got_THW, truth.pictures, [min(n + 1, len(times) - 1) for n in wanted])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("source", SOURCES)
def test_slots_of_a_variable_rate(studio, shared_videos, source, suffix):
    clock = "settb=1/1000,setpts='37*N+mod(11*N*N,31)',scale=320:-2"
    timing = ("-fps_mode", "passthrough", "-enc_time_base", "1/1000")
    track = ("-video_track_timescale", "1000") if suffix == "mp4" else ()
    path = remade(studio, shared_videos / source, f"vfr.{suffix}", "-vf", clock, *timing, *track)
    assert law(path) > LEAST_TELLING


def test_slots_of_an_edit_list(studio, shared_videos):
    whole = remade(studio, shared_videos / SOURCES[0], "whole.mp4", "-vf", "scale=320:-2",
                   "-g", "30", "-bf", "2")  # fmt: skip
    for start in ("0.7", "1.35"):
        path = studio.folder / f"law-edit-{start}.mp4"
        studio.run("-ss", start, "-i", whole, "-c", "copy", path)
        assert law(path) > LEAST_TELLING


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_slots_of_a_turned_video(studio, shared_videos, degrees):
    plain = remade(studio, shared_videos / SOURCES[0], "plain.mp4", "-vf", "scale=320:-2")
    path = studio.folder / f"law-turned-{degrees}.mp4"
    studio.run("-display_rotation", str(degrees), "-i", plain, "-c", "copy", path)
    assert law(path) > LEAST_TELLING


@pytest.mark.parametrize("aspect", ["4/3", "1/2", "135/121"])
def test_slots_of_pixels_that_are_not_square(studio, shared_videos, aspect):
    path = remade(studio, shared_videos / SOURCES[0], f"sar-{aspect.replace('/', '_')}.mp4",
                  "-vf", f"scale=320:180,setsar={aspect}")  # fmt: skip
    assert law(path) > LEAST_TELLING
    width, height = ffmpeg.probe(str(path), PLAIN).display_size
    assert Fraction(width, height) == pytest.approx(Fraction(320, 180) * Fraction(aspect), rel=0.01)


@pytest.mark.parametrize("name", ["stream-of-water.mp4", "rabbit320.webm", "mdn_elf.mp4"])
def test_slots_of_shared_videos_as_they_are(shared_videos, name):
    assert law(shared_videos / name) > 0
