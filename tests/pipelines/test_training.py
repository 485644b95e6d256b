"""Laws of the training loop on real clips, in this process: exact continuation, learning, rate 0."""

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ingest.files import StorageError
from models import checkpoint, ssr, stunet
from models.conditioning import HashedText
from models.diffusion import Schedule
from pipelines import notices, pieces, saved, training, weights
from pipelines.guard import Guard
from pipelines.optimizer import Optimizer
from pipelines.shelves import Shelf
from pipelines.train_posts import described
from pipelines.training import Job

NETWORK = stunet.Config(sample_px=16, widths=(8, 16), temporal_factor=(2,), text_dim=16, head_dim=8)
SSR = ssr.Config(sample_px=32, widths=(8, 16), text_dim=16, head_dim=8)


@pytest.fixture(autouse=True)
def _ordinary_torch():
    yield
    torch.use_deterministic_algorithms(mode=False)


def job(tiny, folder: Path, role: str, **changes: Any) -> Job:
    view = tiny.dataset.freeze_view()
    network = SSR.network if role == "ssr" else NETWORK
    spec = weights.Spec(
        role=role,
        network=network,
        schedule=Schedule(),
        text=HashedText(dim=16),
        frames=80,
        fps=16,
        ssr=SSR if role == "ssr" else None,
    )
    values = {
        "spec": spec,
        "optimizer": Optimizer(learning_rate=3e-3, warmup_steps=2, ema_decay=0.9),
        "shelves": (Shelf(root=str(tiny.root), view=view.digest),),
        "view_digest": view.digest,
        "folder": str(folder),
        "base": "",
        "identity": "test",
        "seed": 3,
        "steps": 6,
        "global_batch": 2,
        "frames": 4,
        "caption_dropout": 0.2,
        "checkpoint_every": 2,
        "threads": 1,
        "px": network.sample_px,
        "decode_workers": 0,
        "max_bad_clips": 8,
    }
    return Job(**{**values, **changes})


class Posts:
    """Collects events; asks for a stop after `stop_after` steps."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.events: list[dict[str, Any]] = []
        self._stop_after = stop_after

    def __call__(self, event: Mapping[str, Any]) -> bool:
        self.events.append(dict(event))
        return event["event"] == "step" and event["step"] >= self._stop_after

    def losses(self) -> dict[int, float]:
        return {e["step"]: e["loss"] for e in self.events if e["event"] == "step"}


ALONE = training.Place(rank=0, world_size=1)


@pytest.mark.parametrize("role", ["base", "ssr"])
@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_stopped_training_continues_to_the_same_bits(tiny, tmp_path, role, stop_after):
    whole, parts = Posts(), Posts(stop_after)
    training.train(job(tiny, tmp_path / "whole", role), ALONE, whole)
    training.train(job(tiny, tmp_path / "parts", role), ALONE, parts)
    assert not (tmp_path / "parts" / "checkpoint").exists()
    rest = Posts()
    training.train(job(tiny, tmp_path / "parts", role), ALONE, rest)
    assert {**parts.losses(), **rest.losses()} == whole.losses()
    assert set(parts.losses()) & set(rest.losses()) == set()
    loaded = [checkpoint.load(tmp_path / name / "checkpoint") for name in ("whole", "parts")]
    assert loaded[0].digest == loaded[1].digest
    assert loaded[0].meta == loaded[1].meta


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_steps_left_out_and_weights_gone_back_are_the_same_in_parts(tiny, tmp_path, stop_after):
    # so strict that ordinary losses are spikes: some steps are left out, some send the weights back
    strict = Guard(spike=1.01, window=2, patience=2, rollbacks=99)
    told = {"steps": 12, "checkpoint_every": 3, "guard": strict}
    whole, parts, rest = Posts(), Posts(stop_after), Posts()
    training.train(job(tiny, tmp_path / "whole", "base", **told), ALONE, whole)
    training.train(job(tiny, tmp_path / "parts", "base", **told), ALONE, parts)
    training.train(job(tiny, tmp_path / "parts", "base", **told), ALONE, rest)
    texts = [e["text"] for e in whole.events if e["event"] == "warning"]
    assert any("was left out" in text for text in texts)
    assert any("weights went back" in text for text in texts)
    assert {**parts.losses(), **rest.losses()} == whole.losses()
    digests = [checkpoint.load(tmp_path / n / "checkpoint").digest for n in ("whole", "parts")]
    assert digests[0] == digests[1]


def test_a_machine_that_leaves_has_its_checkpoint_whole_before_the_next_step(
    tiny, tmp_path, monkeypatch
):
    def post(event: Mapping[str, Any]) -> bool:
        if event["event"] == "step":
            seen.append(saved.steps(tmp_path))
        if event["event"] == "checkpoint":
            begun.append(event["step"])
        return False

    monkeypatch.setattr(notices, "LOOK_EVERY_S", 0.0)
    seen: list[list[int]] = []
    begun: list[int] = []
    told = job(tiny, tmp_path, "base", steps=6, checkpoint_every=100)
    training.train(told, ALONE, post, leaving=lambda: len(seen) == 2)
    assert seen[:3] == [[], [], [2]]
    # and goes on saving, as often as nothing is being written
    assert begun[:2] == [2, 3]


def test_a_group_looks_for_leaving_machines_now_and_then(monkeypatch):
    asked: list[float] = []
    now = [100.0]
    monkeypatch.setattr(notices.time, "monotonic", lambda: now[0])
    watch = notices.Notices(ALONE, lambda: bool(asked.append(now[0])) or len(asked) == 3)
    for _ in range(100):
        assert watch.after(asked=False, idle=True) == (False, True)
        now[0] += 0.1
    assert len(asked) == 3
    assert watch.leaves
    assert min(b - a for a, b in itertools.pairwise(asked)) >= notices.LOOK_EVERY_S


def test_numbers_that_a_killed_driver_had_not_recorded_are_told_again(tiny, tmp_path):
    """The driver recorded the first step only; the checkpoint of step 4 has the others with it."""
    lost, rest = Posts(stop_after=4), Posts()
    told = job(tiny, tmp_path, "base", checkpoint_every=4)
    training.train(told, ALONE, lost, untaken=lambda: lost.events[2:])
    assert saved.steps(tmp_path) == [4]
    training.train(told, ALONE, rest)
    again = [dict(e) for e in rest.events if e.pop("again", False)]
    assert [e["step"] for e in again] == [2, 3, 4]
    assert again == [e for e in lost.events if e["event"] == "step"][1:]
    assert list(rest.losses()) == [2, 3, 4, 5, 6]


def test_a_stop_between_two_checkpoints_does_not_drive_out_the_regular_one(tiny, tmp_path):
    """Where weights go back to stays, whatever was saved besides."""
    told = {"steps": 8, "checkpoint_every": 3}
    training.train(job(tiny, tmp_path, "base", **told), ALONE, Posts(4))
    assert saved.steps(tmp_path) == [3, 4]
    training.train(job(tiny, tmp_path, "base", **told), ALONE, Posts(5))
    assert saved.steps(tmp_path) == [3, 4, 5]
    training.train(job(tiny, tmp_path, "base", **told), ALONE, Posts(7))
    assert saved.steps(tmp_path) == [6, 7]


def test_a_kill_between_the_last_checkpoint_and_the_result_costs_no_number(tiny, tmp_path):
    whole, rest = Posts(), Posts()
    told = job(tiny, tmp_path, "base", steps=4)
    training.train(told, ALONE, whole)
    meta = checkpoint.load(tmp_path / "checkpoint").meta
    shutil.rmtree(tmp_path / "checkpoint")
    training.train(told, ALONE, rest)
    assert checkpoint.load(tmp_path / "checkpoint").meta == meta
    assert [e["loss"] for e in rest.events if e["event"] == "probe"] == [meta["loss_last"]]


def test_another_seed_gives_other_bits(tiny, tmp_path):
    training.train(job(tiny, tmp_path / "a", "base"), ALONE, Posts())
    training.train(job(tiny, tmp_path / "b", "base", seed=4), ALONE, Posts())
    a, b = (checkpoint.load(tmp_path / name / "checkpoint").digest for name in "ab")
    assert a != b


def test_fixed_draws_fall_when_it_learns_and_stay_at_rate_zero(tiny, tmp_path):
    learning = Optimizer(learning_rate=4e-3, warmup_steps=2, ema_decay=0.9)
    training.train(
        job(tiny, tmp_path / "learn", "base", steps=40, optimizer=learning), ALONE, Posts()
    )
    still = replace(learning, learning_rate=0.0)
    training.train(job(tiny, tmp_path / "still", "base", steps=4, optimizer=still), ALONE, Posts())
    learned = checkpoint.load(tmp_path / "learn" / "checkpoint").meta
    stayed = checkpoint.load(tmp_path / "still" / "checkpoint").meta
    assert learned["loss_last"] < 0.8 * learned["loss_first"]
    assert stayed["loss_last"] == pytest.approx(stayed["loss_first"], rel=1e-5)


def test_motion_leaves_its_base_alone_and_names_it(tiny, tmp_path):
    training.train(job(tiny, tmp_path / "base", "base", steps=2), ALONE, Posts())
    base = weights.load(tmp_path / "base", "base")
    told = job(tiny, tmp_path / "motion", "motion", steps=2, base=str(tmp_path / "base"))
    training.train(told, ALONE, Posts())
    motion = weights.load(tmp_path / "motion", "motion")
    assert motion.parents == {"base": base.digest}
    assert not set(motion.state) & set(base.state)
    model = weights.video_model(base, motion)
    for name, tensor in stunet.base_state(model).items():
        assert torch.equal(tensor, base.state[name])
    training.train(job(tiny, tmp_path / "other", "base", steps=2, seed=9), ALONE, Posts())
    other = weights.load(tmp_path / "other", "base")
    with pytest.raises(ValueError, match="was trained over base"):
        weights.video_model(other, motion)
    # Under another base only as a style that is named.
    styles = [weights.Style(base=other, alpha=alpha) for alpha in (0.0, 0.5, 1.0)]
    models = [weights.video_model(base, motion, over=style) for style in styles]
    digests = [checkpoint.state_digest(stunet.base_state(model)) for model in models]
    ends = [checkpoint.state_digest(loaded.state) for loaded in (base, other)]
    assert [digests[0], digests[2]] == ends
    assert len({*digests}) == len({style.digest(base) for style in styles}) == 3
    for model in models:
        assert checkpoint.state_digest(stunet.motion_state(model)) == checkpoint.state_digest(
            motion.state
        )
    misfit = replace(other, spec=replace(other.spec, network=replace(NETWORK, text_dim=8)))
    with pytest.raises(ValueError, match="another shape"):
        weights.video_model(base, motion, over=weights.Style(base=misfit, alpha=0.5))


def test_only_the_newest_checkpoints_stay(tiny, tmp_path):
    training.train(job(tiny, tmp_path, "base", steps=6, checkpoint_every=1), ALONE, Posts())
    assert saved.steps(tmp_path) == [5, 6]


def test_a_full_disk_ends_it_with_a_clear_line_and_the_checkpoint_before_stays(
    tiny, tmp_path, monkeypatch
):
    def full(tensors: Any, path: Path) -> None:
        if "step-0000004" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    posts = Posts()
    monkeypatch.setattr(pieces, "save_file", full)
    with pytest.raises(StorageError, match=r"No space left on device: '.*/params-00000") as error:
        training.train(job(tiny, tmp_path, "base"), ALONE, posts)
    assert described(error.value).startswith("the disk is full at /")
    assert saved.steps(tmp_path) == [2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]
    monkeypatch.undo()
    rest = Posts()
    training.train(job(tiny, tmp_path, "base"), ALONE, rest)
    assert list(rest.losses()) == [3, 4, 5, 6]


def test_a_checkpoint_of_another_version_is_refused_and_stays(tiny, tmp_path):
    training.train(job(tiny, tmp_path, "base", steps=4), ALONE, Posts(2))
    old = saved.folder_of(tmp_path, 3)
    parts: dict[str, Any] = {name: {} for name in ("params", "ema", "optimizer")}
    checkpoint.save(old, role="base", spec={}, tensors=parts, parents={}, meta={})
    with pytest.raises(ValueError, match="was written by another version"):
        training.train(job(tiny, tmp_path, "base", steps=4), ALONE, Posts())
    assert saved.steps(tmp_path) == [2, 3]


def test_what_cannot_be_read_now_is_not_thrown_away(tiny, tmp_path):
    training.train(job(tiny, tmp_path, "base", steps=4), ALONE, Posts(2))
    path = saved.folder_of(tmp_path, 2) / "params-00000.safetensors"
    path.rename(path.with_name("kept"))
    path.symlink_to(path)  # an error of the storage: neither there nor missing
    with pytest.raises(StorageError, match="next: the same command once the storage answers"):
        training.train(job(tiny, tmp_path, "base", steps=4), ALONE, Posts())
    path.with_name("kept").replace(path)
    rest = Posts()
    training.train(job(tiny, tmp_path, "base", steps=4), ALONE, rest)
    assert list(rest.losses()) == [3, 4]


def test_a_checkpoint_of_another_recipe_is_refused(tiny, tmp_path):
    training.train(job(tiny, tmp_path, "base", steps=4), ALONE, Posts(2))
    with pytest.raises(ValueError, match="another recipe"):
        training.train(job(tiny, tmp_path, "base", steps=4, identity="other"), ALONE, Posts())
