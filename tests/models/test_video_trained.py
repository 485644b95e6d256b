"""What trained Lumiere models can do, each beside a control that cannot: `make trained`, minutes on a first run.

The world's truth is known (tests/models/shape_world.py): a square moves in the direction that its caption names.
"""

import math

import pytest
import torch

from models import checkpoint, known, samplers, ssr, stunet, style, windows
from models.metrics.psnr import psnr
from models.metrics.seam import seam_ratio
from tests.models import shape_world as world
from tests.models import tiny_video as tiny

pytestmark = [pytest.mark.trained, pytest.mark.timeout(3600)]

NUM = 64


@pytest.fixture(scope="module")
def model() -> stunet.STUNet:
    return tiny.video_model()


@pytest.fixture(scope="module")
def scenes() -> list[world.Scene]:
    return [world.scene(seed) for seed in range(NUM)]


def captions(scenes: list[world.Scene]) -> list[str]:
    return [scene.caption for scene in scenes]


def say(*words: object) -> None:
    print(*words)  # noqa: T201  figures for who runs it with -s


def lower_bound(hits: int, number: int, z: float = 1.96) -> float:
    """Return the lower end of Wilson's 95 % interval of a share."""
    share = hits / number
    middle = share + z**2 / (2 * number)
    spread = z * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return (middle - spread) / (1 + z**2 / number)


def right(videos_BCTHW: torch.Tensor, scenes: list[world.Scene]) -> int:
    return sum(world.direction(x) == s.direction for x, s in zip(videos_BCTHW, scenes, strict=True))


def test_the_judge_is_right_about_real_clips(scenes):
    real = torch.stack([world.render(scene, tiny.FRAMES) for scene in scenes])
    assert right(real, scenes) == NUM
    assert torch.stack([world.track(x).norm(dim=1) for x in real]) == pytest.approx(1.0, abs=0.05)


def test_samples_move_as_their_caption_says(model, scenes):
    hits = right(tiny.sampled(model, captions(scenes)), scenes)
    say(f"direction accuracy {hits / NUM:.2f}, at least {lower_bound(hits, NUM):.2f}")
    assert lower_bound(hits, NUM) >= 0.6
    # The frozen image model, frame by frame: chance.
    alone = right(tiny.sampled(model, captions(scenes), temporal=False), scenes)
    say(f"image model alone {alone / NUM:.2f}")
    assert lower_bound(NUM - alone, NUM) > 0.5


def test_an_image_starts_its_video_without_compositing(model, scenes):
    first = torch.stack([world.render(scene, 1)[:, 0] for scene in scenes[:32]])
    given = known.image_to_video(first, tiny.FRAMES)
    made = tiny.sampled(model, captions(scenes[:32]), known=given)
    each = kept_db(made, first)
    hits = right(made, scenes[:32])
    moved = torch.stack([world.track(x).sum(0).norm() for x in made])
    say(
        f"frame 0: {each.mean():.1f} dB, worst {each.min():.1f}, {(each >= 30).float().mean():.2f} of the videos at "
        f"30 or above; of all pixels {psnr(made[:, :, 0], first):.1f}; direction {hits / 32:.2f}; "
        f"moved {moved.median():.1f} px"
    )
    assert each.min() >= 30.0
    assert float(moved.median()) > 0.5 * (tiny.FRAMES - 1)
    assert lower_bound(hits, 32) > 0.25
    # Without being told the image it shows another one.
    assert kept_db(tiny.sampled(model, captions(scenes[:32])), first).mean() < 20.0


def kept_db(videos_BCTHW: torch.Tensor, first_BCHW: torch.Tensor) -> torch.Tensor:
    """Return each video's PSNR of frame 0 against the image it was given."""
    pairs = zip(videos_BCTHW[:, :, :1], first_BCHW.unsqueeze(2), strict=True)
    return torch.tensor([psnr(made, given) for made, given in pairs])


def test_a_cinemagraph_moves_inside_its_region_only(model, scenes):
    first = torch.stack([world.render(scene, 1)[:, 0] for scene in scenes[:16]])
    region = torch.stack([world.path(scene) for scene in scenes[:16]])
    given = known.cinemagraph(first, region, tiny.FRAMES)
    made = tiny.sampled(model, captions(scenes[:16]), known=given)
    inside, outside = variances(made, region)
    say(f"variance over time inside {inside:.4f}, outside {outside:.6f}: {outside / inside:.4f}")
    assert outside < 0.01 * inside
    # Without being told the picture it moves elsewhere.
    free_inside, free_outside = variances(tiny.sampled(model, captions(scenes[:16])), region)
    assert free_outside > 0.3 * free_inside


def variances(videos_BCTHW: torch.Tensor, region_B1HW: torch.Tensor) -> tuple[float, float]:
    variance_BHW = videos_BCTHW.var(dim=2).mean(1)
    chosen = region_B1HW[:, 0] == 1
    return float(variance_BHW[chosen].mean()), float(variance_BHW[~chosen].mean())


def test_a_style_blends_in_by_alpha_and_leaves_motion_alone(scenes):
    original, pale = tiny.base(), tiny.style()
    levels, videos = [], []
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        model = tiny.video_model(style.interpolate(original, pale, alpha))
        assert checkpoint.state_digest(stunet.motion_state(model)) == checkpoint.state_digest(
            tiny.motion()
        )
        videos.append(tiny.sampled(model, captions(scenes[:16])))
        levels.append(float(videos[-1].mean()))
    say("mean level by alpha:", [round(level, 3) for level in levels])
    assert torch.equal(videos[0], tiny.sampled(tiny.video_model(), captions(scenes[:16])))
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 0.3


def test_sdedit_forgets_its_source_with_strength(model, scenes):
    source = torch.stack([world.render(scene, tiny.FRAMES) for scene in scenes[:16]])
    found = []
    for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
        start = samplers.Start(video_BCTHW=source, strength=strength)
        made = tiny.sampled(model, captions(scenes[:16]), start=start)
        found.append(psnr(made, source))
    say("PSNR by strength:", [round(value, 1) for value in found])
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 6.0
    untouched = samplers.Start(video_BCTHW=source, strength=0.0)
    assert torch.equal(tiny.sampled(model, captions(scenes[:16]), start=untouched), source)


def test_overlapping_windows_halve_what_is_seen_of_seams():
    model, total = tiny.ssr_model(), 24
    clips, texts = tiny.textured(range(16), total)
    low = ssr.shrink(clips, tiny.SSR.scale)
    text, null = tiny.TEXT(texts), tiny.TEXT([""] * len(texts))

    def seams(plan: windows.Plan) -> float:
        made = samplers.sample_ssr(
            model,
            low,
            text,
            null,
            seeds=list(range(len(texts))),
            scale=tiny.SSR.scale,
            plan=plan,
            settings=samplers.Sampling(schedule=tiny.SCHEDULE, steps=20),
            augment_level=0.1,
            micro_batch=4,
        )
        ratios = [seam_ratio(x, windows.boundaries(plan)) for x in made]
        return sum(ratios) / len(ratios)

    disjoint = seams(windows.exact(total, tiny.SSR_WINDOW, 0))
    overlapping = seams(windows.even(total, tiny.SSR_WINDOW, 2))
    say(f"seam ratio: disjoint {disjoint:.2f}, overlapping {overlapping:.2f}")
    assert disjoint >= 2.0
    assert overlapping - 1.0 <= 0.5 * (disjoint - 1.0)
