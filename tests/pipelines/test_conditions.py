"""Conditions from real files: to the bit where nothing is resized, at the right place where something is."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from ingest.decode import resize_crop
from ingest.encode import encode_still, encode_video
from models import samplers
from models.diffusion import Schedule
from pipelines.conditions import content, given
from pipelines.output import WrongInput
from pipelines.prompts import Prompt, read_prompts

H, W, T = 24, 32, 6
SIZE = (H, W)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def x_of(frames_THWC):
    """Return BCTHW in [-1, 1], by the definition."""
    return torch.from_numpy(frames_THWC.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]


@dataclass(frozen=True)
class Made:
    """Files of known pixels: two pictures, a lossless video of T + 2 frames, masks of its left half."""

    folder: Path
    first: np.ndarray
    last: np.ndarray
    video: np.ndarray

    def prompt(self, **columns):
        rows = self.folder / "p.jsonl"
        rows.write_text(json.dumps({"prompt": "a fox", **columns}))
        (prompt,) = read_prompts(rows, None)
        return prompt


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    found = Made(folder, noise(H, W, 3, seed=1), noise(H, W, 3, seed=2), noise(T + 2, H, W, 3))
    (folder / "first.png").write_bytes(encode_still(found.first))
    (folder / "last.png").write_bytes(encode_still(found.last))
    (folder / "v.mp4").write_bytes(encode_video(found.video, 16, lossless=True))
    left = np.zeros((H, W, 3), np.uint8)
    left[:, : W // 2] = 255
    (folder / "left.png").write_bytes(encode_still(left))
    moving = np.zeros((T + 2, H, W, 3), np.uint8)
    for t in range(T + 2):
        moving[t, :, 4 * t : 4 * t + 4] = 255
    (folder / "moving.mp4").write_bytes(encode_video(moving, 16, lossless=True))
    (folder / "black.png").write_bytes(encode_still(np.zeros((H, W, 3), np.uint8)))
    (folder / "square.png").write_bytes(encode_still(np.full((H, H, 3), 255, np.uint8)))
    return found


def test_a_text_alone_gives_nothing(made):
    prompt = made.prompt()
    found = given(prompt, frames=T, size_px=SIZE)
    assert found.known is None
    assert found.start_video is None
    assert found.start is None
    assert content(prompt) == ""


def test_image_to_video_knows_the_picture_as_frame_0(made):
    known = given(made.prompt(task="image", image="first.png"), frames=T, size_px=SIZE).known
    assert known.video_BCTHW.shape == (1, 3, T, H, W)
    assert known.video_BCTHW.dtype == torch.float32
    assert torch.equal(known.video_BCTHW[:, :, :1], x_of(made.first[None]))
    assert known.mask_B1THW[:, :, 0].eq(1).all()
    assert known.mask_B1THW[:, :, 1:].eq(0).all()


def test_first_and_last_frame(made):
    prompt = made.prompt(task="first_last", image="first.png", last_image="last.png")
    known = given(prompt, frames=T, size_px=SIZE).known
    both = x_of(np.stack([made.first, made.last]))
    assert torch.equal(known.video_BCTHW[:, :, [0, -1]], both)
    assert known.mask_B1THW[0, 0, :, 0, 0].tolist() == [1, 0, 0, 0, 0, 1]


def test_prediction_knows_the_first_frames_and_needs_no_more_of_the_video(made):
    prompt = made.prompt(task="predict", video="v.mp4", frames_known=3)
    for frames in (T, 40):
        known = given(prompt, frames=frames, size_px=SIZE).known
        assert torch.equal(known.video_BCTHW[:, :, :3], x_of(made.video[:3]))
        assert known.mask_B1THW[0, 0, :, 0, 0].tolist() == [1] * 3 + [0] * (frames - 3)


def test_inpainting_makes_the_white_anew(made):
    prompt = made.prompt(task="inpaint", video="v.mp4", mask="left.png")
    known = given(prompt, frames=T, size_px=SIZE).known
    assert torch.equal(known.video_BCTHW[..., W // 2 :], x_of(made.video[:T])[..., W // 2 :])
    assert known.mask_B1THW[..., : W // 2].eq(0).all()
    assert known.mask_B1THW[..., W // 2 :].eq(1).all()


def test_what_is_transparent_in_a_mask_is_made_anew(made):
    mask_HWC = np.zeros((H, W, 4), np.uint8)
    mask_HWC[:, W // 2 :, 3] = 255  # black and opaque on the right
    assert cv2.imwrite(str(made.folder / "clear.png"), mask_HWC)
    prompt = made.prompt(task="inpaint", video="v.mp4", mask="clear.png")
    left = made.prompt(task="inpaint", video="v.mp4", mask="left.png")
    masks = [given(p, frames=T, size_px=SIZE).known.mask_B1THW for p in (prompt, left)]
    assert torch.equal(*masks)


def test_a_mask_may_be_a_video_that_moves(made):
    prompt = made.prompt(task="inpaint", video="v.mp4", mask="moving.mp4")
    mask = given(prompt, frames=T, size_px=SIZE).known.mask_B1THW
    for t in range(T):
        wanted = torch.ones(W)
        wanted[4 * t : 4 * t + 4] = 0
        assert torch.equal(mask[0, 0, t, 0], wanted)


def test_outpainting_puts_the_whole_video_inside_a_margin(made):
    prompt = made.prompt(task="outpaint", video="v.mp4", margin=0.25)
    known = given(prompt, frames=T, size_px=(2 * H, 2 * W)).known
    inside = (..., slice(H // 2, H // 2 + H), slice(W // 2, W // 2 + W))
    assert torch.equal(known.video_BCTHW[inside], x_of(made.video[:T]))
    assert known.mask_B1THW[inside].eq(1).all()
    assert known.mask_B1THW.sum() == T * H * W


def test_a_cinemagraph_is_still_outside_the_white(made):
    prompt = made.prompt(task="cinemagraph", image="first.png", mask="left.png")
    known = given(prompt, frames=T, size_px=SIZE).known
    still = x_of(made.first[None]).expand(-1, -1, T, -1, -1)
    assert torch.equal(known.video_BCTHW[..., W // 2 :], still[..., W // 2 :])
    assert torch.equal(known.video_BCTHW[:, :, 0], still[:, :, 0])
    assert known.mask_B1THW[:, :, 1:, :, : W // 2].eq(0).all()


def test_video_to_video_begins_from_the_first_frames(made):
    prompt = made.prompt(task="video", video="v.mp4", strength=0.5)
    found = given(prompt, frames=T, size_px=SIZE)
    assert torch.equal(found.start_video, x_of(made.video[:T]))
    assert found.start.strength == 0.5
    assert found.start.first_step(10) == 5
    assert found.known is None


@pytest.mark.parametrize(
    "columns",
    [
        {"task": "image", "image": "first.png"},
        {"task": "predict", "video": "v.mp4", "frames_known": 2},
        {"task": "inpaint", "video": "v.mp4", "mask": "left.png"},
        {"task": "outpaint", "video": "v.mp4", "margin": 0.25},
        {"task": "cinemagraph", "image": "first.png", "mask": "left.png"},
        {"task": "video", "video": "v.mp4", "strength": 0.6},
    ],
    ids=lambda columns: columns["task"],
)
def test_samplers_take_what_is_given(made, columns):
    """The solver itself checks shapes; known pixels are in the result bit for bit."""
    found = given(made.prompt(**columns), frames=T, size_px=SIZE)
    result = samplers.solve(
        lambda x, _t: torch.zeros_like(x),
        samplers.initial([7], frames=T, shape=(3, H, W)),
        seeds=[7],
        settings=samplers.Sampling(schedule=Schedule(), steps=3),
        known=found.known,
        composite="none" if found.known is None else "final",
        start=found.start,
    )
    assert result.shape == (1, 3, T, H, W)
    if found.known is not None:
        seen = found.known.mask_B1THW.expand_as(result) == 1
        assert torch.equal(result[seen], found.known.video_BCTHW[seen])


def test_frames_are_cropped_and_resized_as_training_data_is(made):
    prompt = made.prompt(task="video", video="v.mp4", strength=1)
    for size_px in ((12, 12), (8, 30), (64, 48), (1, 1)):
        wanted = resize_crop(made.video[:T], size_px[1], size_px[0])
        found = given(prompt, frames=T, size_px=size_px).start_video
        assert torch.equal(found, x_of(wanted))
    # area averaging by its definition: half the size is the mean of four pixels, to a level
    found = given(prompt, frames=T, size_px=(H // 2, W // 2)).start_video
    mean = x_of(made.video[:T]).reshape(1, 3, T, H // 2, 2, W // 2, 2).mean((4, 6))
    assert (found - mean).abs().max() <= 1 / 127.5


def test_grey_has_one_channel(made):
    prompt = made.prompt(task="image", image="first.png")
    known = given(prompt, frames=T, size_px=SIZE, channels=1).known
    assert known.video_BCTHW.shape == (1, 1, T, H, W)
    grey = cv2.cvtColor(made.first, cv2.COLOR_RGB2GRAY)
    assert torch.equal(known.video_BCTHW[:, :, 0], x_of(grey[None, ..., None])[:, :, 0])


def test_at_a_rate_frames_are_those_on_screen(made, tmp_path):
    """16 frames of a second at 16 fps: at 8 fps every second one, at 32 each twice, at 4 every fourth."""
    frames = noise(16, H, W, 3, seed=3)
    path = tmp_path / "second.mp4"
    path.write_bytes(encode_video(frames, 16, lossless=True))
    prompt = made.prompt(task="video", video=str(path), strength=1)
    for fps, chosen in ((0, range(8)), (16, range(8)), (8, range(0, 16, 2)), (4, range(0, 16, 4))):
        found = given(prompt, frames=len(chosen), size_px=SIZE, fps=fps).start_video
        assert torch.equal(found, x_of(frames[list(chosen)])), fps
    found = given(prompt, frames=16, size_px=SIZE, fps=32).start_video
    assert torch.equal(found, x_of(np.repeat(frames[:8], 2, 0)))
    whole = given(prompt, frames=16, size_px=SIZE, fps=16).start_video
    assert torch.equal(whole, x_of(frames))


@settings(max_examples=12, deadline=None)
@drawn(
    grey=st.integers(0, 255),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
@example(grey=127, size=(7, 40))
@example(grey=128, size=(7, 40))
def test_a_flat_mask_is_white_from_128_at_any_size(tmp_path_factory, grey, size):
    folder = tmp_path_factory.mktemp("flat")
    for name, value in (("m.png", grey), ("i.png", 9)):
        (folder / name).write_bytes(encode_still(np.full((20, 20, 3), value, np.uint8)))
    prompt = Prompt(
        text="", task="cinemagraph", image=str(folder / "i.png"), mask=str(folder / "m.png")
    )
    if grey < 128:
        with pytest.raises(WrongInput, match="no white left"):
            given(prompt, frames=2, size_px=size)
    else:
        mask = given(prompt, frames=2, size_px=size).known.mask_B1THW
        assert mask[:, :, 1].eq(0).all()


def test_the_same_bytes_have_the_same_content_wherever_they_lie(made, tmp_path):
    prompt = made.prompt(task="inpaint", video="v.mp4", mask="left.png")
    copies = {}
    for column, name in (("video", "other.mp4"), ("mask", "other.png")):
        copies[column] = str(tmp_path / name)
        Path(copies[column]).write_bytes(Path(getattr(prompt, column)).read_bytes())
    moved = replace(prompt, **copies)
    assert content(moved) == content(prompt)
    assert len(content(prompt)) == 64
    others = [
        replace(prompt, mask=str(made.folder / "moving.mp4")),
        replace(prompt, task="cinemagraph", video="", image=prompt.video),
        replace(prompt, task="video", mask="", strength=0.5),
        replace(prompt, task="video", mask="", strength=0.25),
        replace(prompt, task="outpaint", mask="", margin=0.25),
        replace(prompt, task="predict", mask="", frames_known=2),
    ]
    all_of = {content(one) for one in (prompt, *others)} | {content(prompt, fps=16)}
    assert len(all_of) == len(others) + 2
    assert content(replace(prompt, text="another", name="n", num_seeds=3)) == content(prompt)


def test_a_change_of_one_byte_is_another_content(made, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encode_still(made.first))
    prompt = made.prompt(task="image", image=str(path))
    before = content(prompt)
    other = made.first.copy()
    other[0, 0, 0] ^= 1
    path.write_bytes(encode_still(other))
    assert content(prompt) != before
    path.unlink()
    with pytest.raises(WrongInput, match=r"x\.png: cannot be read \(No such file.*\); next: "):
        content(prompt)


def wrong(made, columns, frames=T, size_px=SIZE, **choices):
    prompt = made.prompt(**columns)
    with pytest.raises(WrongInput) as caught:
        given(prompt, frames=frames, size_px=size_px, **choices)
    said = str(caught.value)
    assert said.isprintable()
    assert prompt.id in said
    assert "next: " in said
    return said


VIDEO = {"task": "video", "video": "v.mp4", "strength": 0.5}
INPAINT = {"task": "inpaint", "video": "v.mp4", "mask": "left.png"}


@pytest.mark.parametrize(
    ("columns", "choices", "said"),
    [
        (VIDEO, {"frames": 9}, "v.mp4: video of prompt "),
        (VIDEO, {"frames": 9}, "has 8 frames, 9 are needed; next: name a longer video"),
        (VIDEO, {"frames": 6, "fps": 8}, "has 4 frames at 8 fps, 6 are needed; next: "),
        (VIDEO | {"video": "first.png"}, {}, "is a picture; next: name a video"),
        (VIDEO | {"video": "p.jsonl"}, {}, "NotAVideo: "),
        ({"task": "image", "image": "v.mp4"}, {}, "is no picture that we know; next: name a pict"),
        ({"task": "image", "image": "cut.png"}, {}, "Truncated: "),
        ({"task": "image", "image": "first.png"}, {"frames": 1}, "leaves nothing to make in 1"),
        (
            {"task": "first_last", "image": "first.png", "last_image": "last.png"},
            {"frames": 2},
            "leaves nothing to make in 2 frames",
        ),
        (
            {"task": "predict", "video": "v.mp4", "frames_known": 6},
            {"frames": 6},
            "leaves nothing to make in 6 frames; next: lower frames_known or make longer videos",
        ),
        (
            {"task": "predict", "video": "v.mp4", "frames_known": 9},
            {"frames": 20},
            "has 8 frames, 9 are needed",
        ),
        (INPAINT | {"mask": "moving.mp4"}, {"frames": 9}, "has 8 frames, 9 are needed"),
        (INPAINT | {"mask": "black.png"}, {}, "mask of prompt "),
        (INPAINT | {"mask": "black.png"}, {}, "has no white left at 32x24 px; next: paint white"),
        (INPAINT | {"mask": "square.png"}, {}, "is 24x24 px, its video 32x24; next: cut it"),
        (
            {"task": "cinemagraph", "image": "first.png", "mask": "moving.mp4"},
            {},
            "is no picture that we know",
        ),
        ({"task": "outpaint", "video": "v.mp4", "margin": 0.001}, {}, "leaves nothing to make"),
        ({"task": "outpaint", "video": "v.mp4", "margin": 0.49}, {}, "leaves nothing known"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(made, columns, choices, said):
    (made.folder / "cut.png").write_bytes((made.folder / "first.png").read_bytes()[:-40])
    assert said in wrong(made, columns, **choices)


def test_an_empty_file_and_one_that_went_away(made, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"")
    assert "next: " in wrong(made, {"task": "image", "image": str(path)})
    prompt = made.prompt(task="image", image=str(path))
    path.unlink()
    with pytest.raises(WrongInput, match="No such file or directory; next: name another file"):
        given(prompt, frames=T, size_px=SIZE)


@pytest.mark.parametrize(
    "choices",
    [{"channels": 4}, {"frames": 0}, {"size_px": (0, 8)}, {"fps": -1}],
)
def test_shapes_that_no_model_makes_are_faults_of_the_caller(made, choices):
    prompt = made.prompt(task="image", image="first.png")
    with pytest.raises(ValueError, match="channels at") as caught:
        given(prompt, **{"frames": T, "size_px": SIZE} | choices)
    assert not isinstance(caught.value, WrongInput)


def test_a_viewing_copy_comes_close(made, tmp_path):
    """Lossy and in yuv420p, so not to the bit; colours and places hold (controls: mirrored, red and blue swapped)."""
    y, x = np.mgrid[:96, :128]
    frame = np.stack([2 * x, 2 * y, 255 - x - y], axis=-1).clip(0, 255).astype(np.uint8)
    frames = np.repeat(frame[None], 4, 0)
    path = tmp_path / "view.mp4"
    path.write_bytes(encode_video(frames, 16, lossless=False))
    found = given(made.prompt(**VIDEO | {"video": str(path)}), frames=4, size_px=(96, 128))
    apart = (found.start_video - x_of(frames)).abs().mean()
    assert apart < 0.02
    assert (found.start_video - x_of(frames).flip(-1)).abs().mean() > 10 * apart
    assert (found.start_video - x_of(frames).flip(1)).abs().mean() > 10 * apart
