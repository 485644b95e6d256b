"""Checkpoints kept by real groups of 1 to 3 workers: other forms, killed and failing writers, damage. Gloo, without Ray."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models import checkpoint
from pipelines import pieces, saved
from tests.pipelines.conftest import CHECKOUT

pytestmark = pytest.mark.timeout(600)
FORMS = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (3, "ddp"), (3, "fsdp")]
DEAD = -9


class Groups:
    """A process that forks groups of workers, with a folder for their checkpoints."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self.folder = process, folder

    def call(self, do: str, world: int, form: str = "ddp", **told: Any) -> list[Any]:
        """For each worker its exit code and what it found."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        call = {"do": do, "world": world, "form": form, "folder": str(self.folder), **told}
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def good(self, do: str, world: int, form: str = "ddp", **told: Any) -> list[dict[str, Any]]:
        answers = self.call(do, world, form, **told)
        assert [code for code, _ in answers] == [0] * world, answers
        return [found for _, found in answers]

    def begun(self, world: int = 2, form: str = "ddp") -> int:
        """The step that a new start goes on from, the same on all workers; nothing is left of dead ones."""
        found = self.good("save", world, form, steps=[])
        assert all(one["left"] == [] for one in found)
        (step,) = {one["begun"] for one in found}
        return step

    def remains(self) -> list[str]:
        whole = {f"step-{step:07d}" for step in saved.steps(self.folder)}
        return sorted({p.name for p in (self.folder / "checkpoints").iterdir()} - whole)


@pytest.fixture(scope="module")
def process() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.pipelines.keeper_child"]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


@pytest.fixture
def groups(process, tmp_path) -> Groups:
    return Groups(process, tmp_path)


@pytest.mark.parametrize(("world", "form"), FORMS)
def test_any_form_on_any_workers_goes_on_from_any_other(groups, world, form):
    found = groups.good("save", world, form, steps=[1, 2, 3])
    # whole on every worker as soon as it was waited for
    assert [one["seen"] for one in found] == [[1, 2, 3]] * world
    assert saved.steps(groups.folder) == [2, 3]
    index = pieces.read_index(saved.folder_of(groups.folder, 3))
    ranks = {name[-17:-12] for name in index["files"]}
    assert ranks == {f"{rank:05d}" for rank in range(world)}
    sizes = [sum(t["bytes"] for n, t in index["files"].items() if f"-{r}." in n) for r in ranks]
    assert max(sizes) < 1.2 * sum(sizes) / world
    for other, other_form in FORMS:
        assert groups.begun(other, other_form) == 3


def test_waiting_is_for_the_whole_checkpoint_on_every_worker(groups):
    slow = {"what": "slow", "rank": 0, "step": 1}
    found = groups.good("save", 2, steps=[1, 2], trouble=slow)
    assert [one["seen"] for one in found] == [[1, 2]] * 2


def test_saving_waits_for_the_writer_before(groups):
    slow = {"what": "slow", "rank": 0, "step": 1}
    groups.good("save", 3, "fsdp", steps=[1, 2, 3, 4], waits=False, trouble=slow)
    assert groups.begun() == 4
    assert saved.steps(groups.folder) == [3, 4]


@pytest.mark.parametrize("writer", [1, 2])
def test_a_sharded_worker_reads_its_own_rows_and_no_more(groups, writer):
    groups.good("save", writer, "fsdp", steps=[1])
    found = groups.good("count", 2, "fsdp")
    for one in found:
        assert one["begun"] == 1
        assert one["read"] == one["kept"] < 0.52 * one["whole"]
    # control: without shards each needs all
    for one in groups.good("count", 2, "ddp"):
        assert one["read"] == one["whole"]


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("form", ["ddp", "fsdp"])
def test_a_worker_killed_in_a_file_leaves_the_checkpoint_before(groups, form, rank):
    told = {"what": "killed", "rank": rank, "step": 2}
    answers = groups.call("save", 3, form, steps=[1, 2, 3], trouble=told, last_s=2.0)
    assert answers[rank][0] == DEAD
    assert all(code == 1 for r, (code, _) in enumerate(answers) if r != rank), answers
    assert saved.steps(groups.folder) == [1]
    if rank == 0:  # nobody to clear up
        assert len(groups.remains()) == 1
    assert groups.begun(3, form) == 1
    assert groups.remains() == []
    found = groups.good("save", 2, form, steps=[2, 3])
    assert [one["begun"] for one in found] == [1, 1]
    assert groups.begun() == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_killed_before_it_says_that_it_is_done_leaves_the_checkpoint_before(groups, rank):
    told = {"what": "killed at the note", "rank": rank, "step": 2}
    answers = groups.call("save", 2, steps=[1, 2], trouble=told, last_s=2.0)
    assert [code for code, _ in answers] == [DEAD if r == rank else 1 for r in range(2)]
    assert groups.begun() == 1


@pytest.mark.parametrize("form", ["ddp", "fsdp"])
def test_killed_at_any_moment_it_goes_on_from_what_was_whole(groups, form):
    """The workers check at each start: nothing whole is lost, every row is right, nothing is left of the dead."""
    for number in range(8):
        world = 2 + number % 2
        ranks = [list(range(world)), [number // 2 % world]][number % 2]
        kill = {"seed": number, "ranks": ranks}
        answers = groups.call("for_ever", world, form, kill=kill, last_s=2.0)
        errors = [found.get("error", "") for _, found in answers]
        assert all(answers[rank][0] == DEAD for rank in ranks), answers
        assert not any("AssertionError" in error for error in errors), errors
    assert groups.begun(3, form) >= 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_writer_that_fails_ends_it_on_every_worker_with_a_clear_line(groups, rank):
    told = {"what": "full", "rank": rank, "step": 2}
    answers = groups.call("save", 3, "fsdp", steps=[1, 2, 3], trouble=told)
    for code, found in answers:
        assert code == 1
        assert found["error"].startswith("StorageError: [Errno 27] File too large: '/"), found
        assert found["error"].endswith(".safetensors'")
    assert saved.steps(groups.folder) == [1]
    assert groups.remains() == []
    assert groups.begun() == 1


def test_workers_without_a_shared_folder_are_told(groups):
    for code, found in groups.call("apart", 2, last_s=1.0):
        assert code == 1
        assert "next: an out= on storage that all workers share" in found["error"]


def files(folder: Path, step: int) -> list[Path]:
    return sorted(saved.folder_of(folder, step).iterdir())


def test_each_file_damaged_cut_short_swapped_or_gone_is_passed_over_and_said(groups):
    groups.good("save", 2, "fsdp", steps=[1, 2])
    kept = groups.folder / "kept"
    shutil.copytree(groups.folder / "checkpoints", kept)
    paths = files(groups.folder, 2)
    assert len(paths) == 7

    def flipped(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def short(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def swapped(path: Path) -> None:
        other = paths[(paths.index(path) + 1) % len(paths)]
        data = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)

    for number, path in enumerate(paths):
        damage = (flipped, short, swapped, Path.unlink)[number % 4]
        damage(path)
        if (damage, path.name) == (Path.unlink, pieces.INDEX):
            continue
        found = groups.good("save", 1 + number % 3, ("ddp", "fsdp")[number % 2], steps=[])
        assert [one["begun"] for one in found] == [1] * len(found)
        (text,) = found[0]["warnings"]
        assert text.startswith("checkpoint of step 2 is damaged and was passed over: /"), text
        assert not any(one["warnings"] for one in found[1:])
        assert saved.steps(groups.folder) == [1]
        assert groups.remains() == []
        shutil.rmtree(groups.folder / "checkpoints")
        shutil.copytree(kept, groups.folder / "checkpoints")


def test_what_one_worker_alone_cannot_read_is_not_thrown_away(groups):
    groups.good("save", 2, steps=[1])
    for code, found in groups.call("alone_in_doubt", 2):
        assert code == 1
        assert "whole for the first worker and not for another; next: " in found["error"]
    assert groups.begun() == 1


def test_another_version_and_another_recipe_are_refused_everywhere_and_stay(groups):
    groups.good("save", 2, steps=[1])
    for code, found in groups.call("save", 2, steps=[], identity="other"):
        assert (code, "belong to another recipe; next: " in found["error"]) == (1, True)
    tensors = {name: {"w": torch.zeros(2)} for name in ("params", "ema", "optimizer")}
    told: dict[str, Any] = {"role": "base", "spec": {}, "parents": {}, "meta": {}}
    checkpoint.save(saved.folder_of(groups.folder, 2), tensors=tensors, **told)
    for code, found in groups.call("save", 2, steps=[]):
        assert code == 1
        assert "written by another version" in found["error"]
        assert "next: " in found["error"]
    assert saved.steps(groups.folder) == [1, 2]


def test_what_is_half_discarded_is_removed_and_what_is_not_ours_stays(groups):
    groups.good("save", 2, steps=[1, 2])
    folder = groups.folder / "checkpoints"
    (folder / "step-0000002" / pieces.INDEX).unlink()
    (folder / ".step-0000003.writing-1234").mkdir()
    (folder / ".step-0000003.writing-1234" / "params-00000.safetensors").touch()
    (folder / "notes").mkdir()
    found = groups.good("save", 2, steps=[2, 3])
    assert [one["left"] for one in found] == [["notes"]] * 2
    assert saved.steps(groups.folder) == [2, 3]
    assert groups.remains() == ["notes"]
