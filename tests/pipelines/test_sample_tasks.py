"""A set of every task, made as a user makes it: what is known of a video is in it, on any actors, and in the manifest."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ingest.encode import encode_still, encode_video
from pipelines import sample
from pipelines.manifest import complete_rows
from pipelines.videos import read_frames
from tests.pipelines.made_roles import made_roles

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
PX, FRAMES = 16, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, a mask, a video, a style, and a prompt for each task."""
    found = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    first, last = rng.integers(0, 256, (2, PX, PX, 3), np.uint8)
    video = rng.integers(0, 256, (FRAMES, PX, PX, 3), np.uint8)
    left = np.zeros((PX, PX, 3), np.uint8)
    left[:, : PX // 2] = 255
    for name, picture in (("first", first), ("last", last), ("left", left)):
        (found / f"{name}.png").write_bytes(encode_still(picture))
    (found / "v.mp4").write_bytes(encode_video(video, 16, lossless=True))
    roles = made_roles(found / "roles", frames=FRAMES, known=True)
    style = made_roles(found / "style", frames=FRAMES, known=True, seed=9)
    rows = [
        {"task": "text"},
        {"task": "image", "image": "first.png"},
        {"task": "first_last", "image": "first.png", "last_image": "last.png"},
        {"task": "predict", "video": "v.mp4", "frames_known": 3},
        {"task": "inpaint", "video": "v.mp4", "mask": "left.png"},
        {"task": "outpaint", "video": "v.mp4", "margin": 0.25},
        {"task": "cinemagraph", "image": "first.png", "mask": "left.png"},
        {"task": "video", "video": "v.mp4", "strength": 0.2},
        {"task": "text", "style": str(style["base"]), "alpha": 0.5},
    ]
    lines = [json.dumps({"prompt": "a thing", **row}) for row in rows]
    (found / "tasks.jsonl").write_text("\n".join(lines))
    config = sample.Config(
        prompts=str(found / "tasks.jsonl"),
        base=roles["base"],
        motion=roles["motion"],
        out=found / "set",
        base_solver=sample.Solver(steps=5),
    )
    return config, first, last, video


@pytest.fixture(scope="module")
def made(folder, run_sample, ray_session):  # noqa: ARG001
    """Return the set's rows and frames by task; the styled one is "style"."""
    config = folder[0]
    told = run_sample(config)
    assert (told.samples, told.failed) == (9, 0)
    rows = {("style" if row["style"] else row["task"]): row for row in complete_rows(config.out)}
    frames = {
        name: read_frames(config.out / row["base_path"], row["base_sha256"]).astype(int)
        for name, row in rows.items()
    }
    return rows, frames


def test_what_is_known_is_in_the_video_to_the_bit(folder, made):
    _, first, last, video = folder
    _, frames = made
    half = PX // 2
    assert np.array_equal(frames["image"][0], first)
    assert np.array_equal(frames["first_last"][[0, -1]], np.stack([first, last]))
    assert np.array_equal(frames["predict"][:3], video[:3])
    assert np.array_equal(frames["inpaint"][:, :, half:], video[:, :, half:])
    assert (frames["cinemagraph"][:, :, half:] == first[:, half:]).all()


def test_the_rest_is_made(folder, made):
    _, first, _, video = folder
    _, frames = made
    half = PX // 2
    assert np.abs(frames["image"][1:] - first).mean() > 10
    assert np.abs(frames["inpaint"][:, :, :half] - video[:, :, :half]).mean() > 10
    assert np.abs(frames["cinemagraph"][:, :, :half] - first[:, :half]).mean() > 10
    assert np.abs(frames["text"] - frames["style"]).mean() > 1
    edited, free = (np.abs(frames[name] - video).mean() for name in ("video", "text"))
    assert edited < 0.8 * free, "SDEdit stays nearer to its video than a video made without it"


def test_the_manifest_says_what_was_asked(made):
    rows, _ = made
    assert all(row["condition"] for name, row in rows.items() if name not in {"text", "style"})
    assert not rows["text"]["condition"]
    assert rows["style"]["style_alpha"] == 0.5
    assert len({row["identity"] for row in rows.values()}) == 9


def test_one_actor_makes_the_same_and_a_changed_picture_another(folder, made, run_sample):
    config, first, _, _ = folder
    rows, _ = made
    place = config.out.parent
    run_sample(replace(config, num_actors=1, out=place / "one"))
    one = {row["identity"]: row["frames_sha256"] for row in complete_rows(place / "one")}
    assert one == {row["identity"]: row["frames_sha256"] for row in rows.values()}
    (place / "first.png").write_bytes(encode_still(255 - first))
    try:
        changed = run_sample(config)
    finally:
        (place / "first.png").write_bytes(encode_still(first))
    assert changed.made == 3, "those that see the picture, and no others"
