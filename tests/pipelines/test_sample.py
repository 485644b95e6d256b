"""Evaluation sets: what names a sample, what a set grows by, and that neither actors nor kills change a frame."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.decode import payload_frames
from jobs.__main__ import _guarded
from pipelines import sample, together
from pipelines.manifest import Asked, Incomplete, complete_rows, read_set
from pipelines.output import Occupied, WrongInput
from tests.models import tiny_pipelines
from tests.pipelines.made_roles import made_roles

PROMPTS = ("a cat", "a dog \U0001f415 'barks'", "../../etc/passwd", "")


@pytest.fixture(scope="session")
def roles(tmp_path_factory) -> dict[str, Any]:
    return made_roles(tmp_path_factory.mktemp("roles"))


def keys(roles: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys of a small set of two windows."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    return {
        **roles,
        "prompts": str(prompts),
        "out": folder / "set",
        "base_solver": sample.Solver(steps=2),
        "ssr_solver": sample.Solver(steps=2),
        "windows": sample.Windows(window=8, overlap=2),
    }


@pytest.fixture
def recipe(roles, tmp_path):
    return keys(roles, tmp_path)


@pytest.fixture(scope="session")
def first(roles, run_sample, ray_session, tmp_path_factory) -> tuple[Path, sample.Result]:  # noqa: ARG001  where it runs
    """A set of two seeds a prompt, made by two actors, and what its run told: to be copied, not changed."""
    told = keys(roles, tmp_path_factory.mktemp("first"))
    return told["out"], run_sample(sample.Config(**told, num_seeds=2, num_actors=2))


@pytest.fixture
def whole(first, recipe) -> sample.Result:
    """The first set, copied to where the recipe makes its own; a test goes on from there."""
    shutil.copytree(first[0], recipe["out"])
    return first[1]


@pytest.fixture
def made(recipe, run_sample):
    """Give a function that makes the set with some keys changed."""

    def make(*, verify: bool = False, **changes: Any) -> sample.Result:
        return run_sample(sample.Config(**{**recipe, **changes}), verify=verify)

    return make


def files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.mp4")
    }


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestSets:
    @pytest.mark.faults
    def test_the_same_set_on_any_actors_in_any_order(self, made, recipe, tmp_path):
        one = made(num_actors=1, num_seeds=2)
        assert (one.status, one.asked, one.samples, one.made, one.failed) == ("done", 6, 6, 6, 0)
        rows = complete_rows(recipe["out"])
        assert len({row["frames_sha256"] for row in rows}) == 6
        for row in rows:
            for path in ("base_path", "lossless_path", "view_path"):
                frames = payload_frames((recipe["out"] / row[path]).read_bytes())
                assert frames.shape[0] == row["frames"] == 12
        shuffled = tmp_path / "shuffled.txt"
        shuffled.write_text("\n".join(reversed(PROMPTS)), encoding="utf-8")
        for number, change in enumerate(
            (
                {"num_actors": 3},
                {"num_actors": 1, "ssr_actors": 2},
                {"num_actors": 2, "mode": "latency"},
            )
        ):
            again = {"out": tmp_path / f"again{number}", "prompts": str(shuffled), "num_seeds": 2}
            assert made(**again, **change).digest == one.digest, change

    def test_a_set_grows_by_what_is_new(self, made, recipe, whole):
        before = files(recipe["out"])
        grown = made(num_seeds=3)
        assert (whole.made, grown.made, grown.samples) == (6, 3, 9)
        assert before.items() <= files(recipe["out"]).items()
        after = files(recipe["out"])
        again = made(num_seeds=3)
        assert again.run_id == grown.run_id
        assert again.digest == grown.digest
        shrunk = made(num_seeds=2)
        assert (shrunk.made, shrunk.samples, shrunk.digest) == (0, 6, whole.digest)
        assert files(recipe["out"]) == after, "nothing is made twice, and nothing removed"
        assert len(complete_rows(recipe["out"])) == 6, "evaluated is what was asked for last"
        assert len(read_set(recipe["out"])) == 9

    def test_seeds_depend_neither_on_the_set_nor_on_its_actors(self, made, first, tmp_path):
        alone = tmp_path / "alone.jsonl"
        alone.write_text(json.dumps({"prompt": PROMPTS[1], "num_seeds": 3}))
        made(prompts=str(alone), out=tmp_path / "one", num_actors=1)
        whole = {row["identity"]: row for row in complete_rows(first[0])}
        one = {row["identity"]: row for row in complete_rows(tmp_path / "one")}
        both = whole.keys() & one.keys()
        assert len(both) == 2
        assert all(whole[i]["frames_sha256"] == one[i]["frames_sha256"] for i in both)

    def test_what_decides_pixels_is_in_the_name_and_another_recipe_is_refused(self, made, whole):
        for change in (
            {"seed": 1},
            {"base_solver": sample.Solver(steps=3)},
            {"windows": sample.Windows(window=8, overlap=4)},
            {"negative": "blurred"},
            {"micro_batch": 2},
        ):
            with pytest.raises(Occupied, match="was made by another recipe"):
                made(num_seeds=2, **change)
        assert made(num_seeds=2).digest == whole.digest

    def test_what_is_lost_or_damaged_is_made_again(self, made, recipe, whole):
        rows = complete_rows(recipe["out"])
        (recipe["out"] / rows[0]["view_path"]).unlink()
        gone = made(num_seeds=2)
        assert (gone.made, gone.digest) == (1, whole.digest)
        other = recipe["out"] / rows[1]["lossless_path"]
        other.write_bytes((recipe["out"] / rows[2]["lossless_path"]).read_bytes())
        cut = recipe["out"] / rows[4]["base_path"]
        cut.write_bytes(cut.read_bytes()[:500])
        seen = made(num_seeds=2, verify=True, num_actors=1)
        assert (seen.made, seen.digest) == (2, whole.digest)
        assert made(num_seeds=2, verify=True).made == 0

    @pytest.mark.faults
    def test_measured_once_how_many_windows_pass_at_once(self, made, recipe):
        first = made(max_prompts=1, micro_batch=0)
        told = json.loads((recipe["out"] / "measured.json").read_text())
        seconds = {int(k): v for k, v in told["seconds"].items()}
        chosen = told["micro_batch"]
        assert 1 in seconds
        assert seconds[chosen] / chosen <= seconds[1], "never slower than one by one"
        (row,) = complete_rows(recipe["out"])
        assert json.loads(row["settings"])["micro_batch"] == chosen
        (recipe["out"] / "measured.json").write_text(json.dumps({**told, "micro_batch": 2}))
        second = made(max_prompts=2, micro_batch=0)
        assert second.samples == 2
        assert (second.made == 1) == (chosen == 2), "the number is part of the name"
        assert first.samples == 1

    @pytest.mark.usefixtures("whole")
    def test_a_set_with_holes_is_refused(self, recipe):
        asked = Asked.read(recipe["out"])
        assert asked is not None
        Asked((*asked.identities, "0" * 64)).write(recipe["out"])
        with pytest.raises(Incomplete, match="1 of 7 samples are missing; next:"):
            complete_rows(recipe["out"])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_manifest_says_all_that_a_sample_depends_on(made, recipe):
    made(max_prompts=1, negative="blurred")
    (row,) = complete_rows(recipe["out"])
    assert (row["prompt"], row["negative"], row["task"], row["index"]) == (
        "a cat",
        "blurred",
        "text",
        0,
    )
    empty = {name for name, value in row.items() if value in (None, "")}
    assert empty == {"error", "condition", "style", "cudnn"}
    assert row["window_starts"] == [0, 4]
    assert row["base_s"] + row["ssr_s"] <= row["wall_s"]


@given(
    count=st.integers(1, 300),
    actors=st.integers(1, 70),
    windows=st.integers(1, 12),
    latency=st.booleans(),
)
def test_no_more_actors_than_windows_and_only_the_last_videos_are_shared(
    count, actors, windows, latency
):
    told = list(together.widths(count, actors=actors, windows=windows, latency=latency))
    assert len(told) == count
    assert all(1 <= width <= min(actors, windows) for width in told)
    if not latency:
        shared = [width for width in told if width > 1]
        assert sum(shared) <= actors, (
            "they all run at the same time while their times are not known"
        )
        assert told[: count - len(shared)] == [1] * (count - len(shared))


def ends_after(told: list[int], *, actors: int, windows: int, alone: float) -> float:
    """Return when all videos are made, in a video's time: each begins when enough actors are idle."""
    idle = [0.0] * actors
    for width in told:
        idle.sort()
        until = idle[width - 1] + alone + (1 - alone) * -(-windows // width) / windows
        idle[:width] = [until] * width
    return max(idle)


@given(
    actors=st.integers(2, 40),
    windows=st.integers(1, 9),
    alone=st.floats(0, 1),
    count=st.integers(1, 39),
)
def test_the_last_videos_end_no_later_for_being_shared(actors, windows, alone, count):
    told = together.tail(
        count := min(count, actors - 1), actors=actors, windows=windows, alone=alone
    )
    assert len(told) == count
    assert all(1 <= width <= min(actors, windows) for width in told)
    ends = ends_after(told, actors=actors, windows=windows, alone=alone)
    assert ends <= 1.0 + 1e-9
    everywhere = count * windows / actors / windows
    assert ends >= (1 - alone) * everywhere - 1e-9


def test_the_last_45_videos_on_64_actors_take_five_sevenths_of_a_video():
    """109 on 64 of seven windows: 1.714 in place of 2 (the bound is 109/64 = 1.703)."""
    told = together.tail(45, actors=64, windows=7, alone=0.0)
    assert ends_after(told, actors=64, windows=7, alone=0.0) == pytest.approx(5 / 7)
    assert together.tail(45, actors=64, windows=7, alone=0.6) == [1] * 45


def test_tasks_that_the_motion_model_has_not_learned_are_refused(made, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    rows = tmp_path / "p.jsonl"
    rows.write_text(json.dumps({"prompt": "a cat", "task": "image", "image": "cat.png"}))
    with pytest.raises(
        WrongInput, match=r"task is image, and the motion model was trained without masks; next:"
    ):
        made(prompts=str(rows))


def test_checkpoints_that_do_not_belong_together_are_refused(made, tmp_path):
    other = made_roles(tmp_path / "other", seed=7)
    with pytest.raises(WrongInput, match=r"motion: was trained over base .* not over .*; next:"):
        made(base=other["base"])
    shutil.rmtree(tmp_path / "other" / "ssr")
    with pytest.raises(FileNotFoundError):
        made(ssr=other["ssr"])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_public_pipeline_is_sampled_like_our_own(made, tmp_path):
    """A random tiny pipeline: the same names, manifest and growth; what it cannot do is said before anything starts."""
    folder = tiny_pipelines.make("TextToVideoSDPipeline", tmp_path / "public")
    told = {
        "base": f"diffusers:{folder}",
        "motion": None,
        "ssr": None,
        "public": sample.Public(frames=4, height_px=32, width_px=32, steps=2, guidance_scale=2.0),
        "num_actors": 1,
    }
    first = made(**told, max_prompts=1)
    grown = made(**told, max_prompts=2)
    assert (first.made, grown.made, grown.frames) == (1, 1, 4)
    rows = complete_rows(tmp_path / "set")
    assert {row["noise_id"] for row in rows} == {"philox4x32-10/bm/v1/drawn/v1"}
    assert all(row["base_digest"].startswith("public/v1/") for row in rows)
    assert len({row["frames_sha256"] for row in rows}) == 2
    with pytest.raises(WrongInput, match=r"ssr: a public pipeline .* next: leave it out"):
        made(**{**told, "ssr": tmp_path})
    with pytest.raises(ValueError, match=r"no .*model_index\.json"):
        made(**{**told, "base": f"diffusers:{tmp_path}"})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_one_video_at_a_terminal_is_that_of_a_set(first, recipe, tmp_path, capsys, monkeypatch):
    row = next(r for r in complete_rows(first[0]) if (r["prompt"], r["index"]) == ("a cat", 0))
    monkeypatch.chdir(tmp_path)
    words = [f"{role}={recipe[role]}" for role in ("base", "motion", "ssr")]
    words += ["base_solver.steps=2", "ssr_solver.steps=2", "windows={window = 8, overlap = 2}"]
    assert _guarded(["sample", "prompt=a cat", "out=films/cat.mp4", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["identity"] == row["identity"]
    assert (tmp_path / "films" / "cat.mp4").read_bytes() == (first[0] / row["view_path"]).read_bytes()  # fmt: skip
    assert _guarded(["sample", "prompt=a cat", "out=cat.gif", *words]) == 2
    assert "out: cat.gif is no .mp4; next: out=video.mp4" in capsys.readouterr().err
    assert _guarded(["sample", "prompt= ", "out=cat.mp4", *words]) == 2
