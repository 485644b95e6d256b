"""The demo's promises on trained weights and real video (`make trained`), each with its negative control.

The trained run is kept under .kinoray/trained, named by a digest of the code and the recipe that made it, so that a second
call measures without training again. It learns four clips of Big Buck Bunny and is judged on these: that it learned them, not
that it generalises.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from ingest.decode import payload_frames
from ingest.loader import read_clip
from ingest.store import Dataset
from models import objective, samplers, ssr, stunet, windows
from models.metrics.motion import motion_magnitude
from models.metrics.psnr import psnr
from pipelines import weights
from pipelines.guard import Guard
from pipelines.manifest import read_set
from pipelines.optimizer import Optimizer
from pipelines.shelves import Mixed, freeze
from pipelines.videos import to_model
from tests.models.kept import kept_folder
from tests.pipelines import drawn
from tests.pipelines.conftest import CHECKOUT, Ran, kinoray

RECIPE = CHECKOUT / "jobs" / "recipes" / "demo.toml"
pytestmark = [pytest.mark.trained, pytest.mark.ray, pytest.mark.timeout(3600)]

UNTRAINED = """
name = "untrained"
out = "{out}"
seed = 7
[steps.base]
verb = "train"
role = "base"
dataset = "{dataset}"
steps = 1
global_batch = 2
model = {{sample_px = 32, widths = [16, 32, 64], text_levels = 1}}
optimizer = {{learning_rate = 0.0, warmup_steps = 0}}
[steps.motion]
verb = "train"
role = "motion"
dataset = "{dataset}"
base = "@base"
steps = 1
global_batch = 2
optimizer = {{learning_rate = 0.0, warmup_steps = 0}}
[steps.ssr]
verb = "train"
role = "ssr"
dataset = "{dataset}"
steps = 1
global_batch = 2
frames = 4
ssr = {{sample_px = 64, scale = 2, widths = [16, 32, 48], norm_groups = 4}}
optimizer = {{learning_rate = 0.0, warmup_steps = 0}}
[steps.sample]
verb = "sample"
prompts = "{dataset}"
max_prompts = 3
num_seeds = 4
base = "@base"
motion = "@motion"
base_solver = {{steps = 10}}
[steps.evaluate]
verb = "evaluate"
sets = ["@sample"]
reference = "{dataset}"
"""


def code_digest() -> str:
    whole = hashlib.sha256(RECIPE.read_bytes())
    for package in ("ingest", "models", "pipelines"):
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


@pytest.fixture(scope="module")
def folder() -> Path:
    return CHECKOUT / ".kinoray" / "trained" / code_digest()


@pytest.fixture(scope="module")
def demo(folder: Path) -> Ran:
    ran = kinoray(CHECKOUT, "demo", f"out={folder}", "--json", timeout=1800)
    assert ran.code == 0, ran.err[-2000:]
    return ran


@pytest.mark.parametrize(("step", "most"), [("base", 0.6), ("ssr", 0.6), ("motion", 0.9)])
def test_the_loss_on_fixed_draws_falls(demo, step, most):
    told = demo.told["steps"][step]
    assert told["loss_last"] / told["loss_first"] <= most


def test_samples_look_like_their_prompts_clip(demo):
    metrics = demo.told["steps"]["evaluate"]["metrics"]
    assert metrics["nearest_of"] == 12
    assert metrics["nearest_is_own"] >= 8


@pytest.fixture(scope="module")
def untrained(demo, folder, tmp_path_factory) -> Ran:
    """The same steps at rate zero, over the demo's own clips."""
    assert demo.code == 0
    recipe = tmp_path_factory.mktemp("untrained") / "untrained.toml"
    recipe.write_text(UNTRAINED.format(out=folder / "untrained", dataset=folder / "curate"))
    ran = kinoray(CHECKOUT, "run", str(recipe), "--json", timeout=1800)
    assert ran.code == 0, ran.err[-2000:]
    return ran


def test_untrained_weights_do_not(untrained):
    for step in ("base", "motion", "ssr"):
        told = untrained.told["steps"][step]
        assert told["loss_last"] == pytest.approx(told["loss_first"], rel=1e-5)
    assert untrained.told["steps"]["evaluate"]["metrics"]["nearest_is_own"] <= 6


# ------------------------------------------------------------------ what each role knows of the real clips


class Real:
    """The demo's clips, and its networks before and after training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = Dataset.open(folder / "curate").kept_clips().to_pylist()
        self.captions = [row["caption"] for row in self.rows]
        base, motion, enlarger = (weights.load(folder / r, r) for r in ("base", "motion", "ssr"))
        self.specs = {"base": base.spec, "motion": motion.spec, "ssr": enlarger.spec}
        self.models = {
            "untrained": stunet.build(base.spec.network, seed=7),
            "base": weights.network(base.spec, seed=7, base=base).eval(),
            "video": weights.video_model(base, motion),
            "ssr": weights.ssr_model(enlarger),
            "untrained ssr": stunet.build(enlarger.spec.network, seed=7),
        }

    def clips(self, px: int) -> torch.Tensor:
        root = self.folder / "curate"
        return torch.stack([to_model(read_clip(root, row, px, px)) for row in self.rows])

    def probed(
        self, model: str, role: stunet.Role, x_BCTHW: torch.Tensor, captions: Sequence[str]
    ) -> float:
        """Return the loss on two fixed draws of each clip."""
        spec = self.specs[role]
        told = objective.Objective(
            role=role, schedule=spec.schedule, text=spec.text, run_seed=1, frames=8
        )
        several = [
            objective.Clips(
                x_BCTHW=x_BCTHW[[b]], captions=[captions[b]], clip_ids=[f"{i}"], positions=[i]
            )
            for i, b in enumerate(2 * list(range(len(captions))))
        ]
        return objective.probe(told, self.models[model], several)

    def frames(self, model: str) -> torch.Tensor:
        """Return 8 frames of the image model for each clip's caption."""
        spec = self.specs["base"]
        px = spec.network.sample_px
        return samplers.sample_base(
            self.models[model],
            spec.text(self.captions),
            spec.text([""] * len(self.captions)),
            seeds=range(len(self.captions)),
            frames=8,
            size_px=(px, px),
            settings=samplers.Sampling(steps=10),
            temporal=False,
        ).clamp(-1.0, 1.0)


@pytest.fixture(scope="module")
def real(demo, folder) -> Real:
    assert demo.code == 0
    torch.set_num_threads(1)
    return Real(folder)


def say(*words: object) -> None:
    print(*words)  # noqa: T201  figures for who runs it with -s


def test_a_base_knows_which_caption_belongs_to_a_real_clip(real):
    """Loss 0.07 by the clip's caption and 0.17 by another clip's; untrained 0.79 by both."""
    clips = real.clips(32)
    others = real.captions[::-1]
    assert all(a != b for a, b in zip(real.captions, others, strict=True))
    own, wrong = (real.probed("base", "base", clips, said) for said in (real.captions, others))
    blind = [real.probed("untrained", "base", clips, said) for said in (real.captions, others)]
    say(f"base: {own:.4f} by own captions, {wrong:.4f} by others, untrained {blind}")
    assert own < 0.7 * wrong
    assert own < 0.3 * blind[0]
    assert blind[0] == pytest.approx(blind[1], rel=0.02)


def test_a_base_draws_frames_of_its_captions_clip(real):
    """Frames lie within 19.6 dB of a frame of the own clip and 14.1 of another's; untrained 7.3 and 8.5."""
    clips = real.clips(32).transpose(1, 2).flatten(2)
    same = torch.tensor([[a == b for b in real.captions] for a in real.captions])
    found = {}
    for model in ("base", "untrained"):
        made = real.frames(model).transpose(1, 2).flatten(2)
        error_BB = torch.tensor(
            [[float(torch.cdist(m, c).min(1).values.pow(2).mean()) for c in clips] for m in made]
        )
        near_BB = 10.0 * torch.log10(4.0 * clips.shape[-1] / error_BB)
        found[model] = (
            float(near_BB.masked_fill(~same, -math.inf).amax(1).mean()),
            float(near_BB.masked_fill(same, -math.inf).amax(1).mean()),
        )
    say("base: dB to the nearest frame of the own clip and of another:", found)
    assert found["base"][0] > found["base"][1] + 3.0
    assert found["base"][0] > found["untrained"][0] + 6.0
    assert found["untrained"][0] < found["untrained"][1] + 1.0


def test_motion_knows_the_order_of_real_frames(real):
    """Shuffled frames cost it half as much again; motion modules that learned nothing hardly tell."""
    clips = real.clips(32)
    order = torch.randperm(clips.shape[2], generator=torch.Generator().manual_seed(0))
    own, wrong = (
        real.probed("video", "motion", x, real.captions) for x in (clips, clips[:, :, order])
    )
    plain, mixed = (
        real.probed("base", "motion", x, real.captions) for x in (clips, clips[:, :, order])
    )
    say(
        f"motion: {own:.4f} in order, {wrong:.4f} shuffled; without training {plain:.4f}, {mixed:.4f}"
    )
    assert wrong > 1.25 * own
    assert mixed < 1.15 * plain
    assert own < plain


def apart(x_CTHW: torch.Tensor) -> float:
    """Return how far neighbouring frames are over how far frames 8 apart are: 1 where frames have no order."""
    near, far = ((x_CTHW[:, k:] - x_CTHW[:, :-k]).abs().mean() for k in (1, 8))
    return float(near / far)


def made(folder: Path) -> list[torch.Tensor]:
    """Return the base-resolution videos of an evaluation set."""
    paths = [folder / row["base_path"] for row in read_set(folder)]
    return [to_model(payload_frames(path.read_bytes())) for path in paths]


@pytest.mark.usefixtures("untrained")
def test_sampled_frames_follow_each_other(real):
    """Neighbours over frames 8 apart: 0.6 to 0.7, real clips 0.2, frame by frame and untrained 0.95 to 1.

    They still flicker: their mean frame difference is some 0.06 where real clips have 0.003 to 0.015, the image model
    alone 0.08 and untrained weights 0.4. Nor are they frozen.
    """
    sets = {
        "real": list(real.clips(32)),
        "trained": made(real.folder / "sample"),
        "untrained": made(real.folder / "untrained" / "sample"),
    }
    ratios = {name: float(np.mean([apart(x) for x in videos])) for name, videos in sets.items()}
    moved = {name: float(np.mean([motion_magnitude(x) for x in v])) for name, v in sets.items()}
    alone = float(np.mean([motion_magnitude(x) for x in real.frames("base")]))
    say("frames apart:", ratios, "frame differences:", moved, "image model alone:", alone)
    assert ratios["real"] < 0.4
    assert ratios["trained"] < 0.85
    assert ratios["untrained"] > 0.95
    assert moved["real"] < moved["trained"] < 0.85 * alone
    assert alone < 0.5 * moved["untrained"]


def enlarged(
    model: stunet.STUNet, spec: weights.Spec, high: torch.Tensor, captions: list[str], **how
) -> float:
    """Return the PSNR of clips enlarged from half their size."""
    frames = high.shape[2]
    video = samplers.sample_ssr(
        model,
        ssr.shrink(high, 2),
        spec.text(captions),
        spec.text([""] * len(captions)),
        seeds=range(len(captions)),
        scale=2,
        plan=windows.exact(frames, frames, 0),
        **how,
    )
    return psnr(video.clamp(-1.0, 1.0), high)


def bicubic(high_BCTHW: torch.Tensor) -> float:
    flat = ssr.shrink(high_BCTHW, 2).transpose(1, 2).flatten(0, 1)
    large = functional.interpolate(flat, scale_factor=2, mode="bicubic").clamp(-1.0, 1.0)
    return psnr(large, high_BCTHW.transpose(1, 2).flatten(0, 1))


def test_the_demos_ssr_enlarges_real_clips_better_than_untrained(real):
    """23.5 dB against 18.7 as the demo samples; but bicubic has 29.2: so short a training does not reach it."""
    high, spec = real.clips(64)[:, :, 32:40], real.specs["ssr"]
    how = {"settings": samplers.Sampling(steps=4)}
    found = [
        enlarged(real.models[name], spec, high, real.captions, **how)
        for name in ("ssr", "untrained ssr")
    ]
    say(f"demo's SSR {found[0]:.2f} dB, untrained {found[1]:.2f}, bicubic {bicubic(high):.2f}")
    assert found[0] > found[1] + 2.0


def test_an_ssr_trained_longer_beats_bicubic_on_real_clips(real):
    """16 to 32 px, by the product's loop in this process, 800 steps: under two minutes of one thread, kept like other weights.

    By 0.7 and 0.6 dB with the training seeds 0 and 1 (28.66, 28.56; bicubic 27.98); untrained 26.0 to 26.4. That is over the
    pixels of all four clips, the ones trained on: two gain 1.2 to 2.1 dB, the two others lose 0.6 to 1.8. With 10 solver steps,
    which draw more detail, it is below bicubic (27.73). So the loop teaches an SSR; this is no claim that it enlarges better.
    """
    shelves = freeze((Mixed(dataset=str(real.folder / "curate")),))
    shape = ssr.Config(sample_px=32, scale=2, widths=(16, 32), norm_groups=4, max_level=0.1)
    spec = replace(real.specs["ssr"], ssr=shape, network=shape.network)

    def make(place: Path) -> None:
        # An SSR's losses spread wide at two clips a step: one in ten lies above ten times their median, and is no spike.
        told = drawn.job(
            shelves.shelves[0], place, spec, steps=800, global_batch=2, frames=4, guard=Guard(spike=0.0),
            optimizer=Optimizer(learning_rate=4e-3, warmup_steps=20, ema_decay=0.98),
        )  # fmt: skip
        drawn.trained(told)

    sources = [p for n in ("ingest", "models", "pipelines") for p in (CHECKOUT / n).rglob("*.py")]
    name = f"real-ssr-{shelves.digest[:16]}"
    place = kept_folder(name, [*sources, Path(__file__), Path(drawn.__file__)], make)
    high, model = real.clips(32)[:, :, 32:36], weights.ssr_model(weights.load(place, "ssr"))
    how = {"settings": samplers.Sampling(steps=2), "augment_level": 0.0}
    found = [
        enlarged(one, spec, high, real.captions, **how) for one in (model, ssr.build(shape, seed=0))
    ]
    say(f"SSR {found[0]:.2f} dB, untrained {found[1]:.2f}, bicubic {bicubic(high):.2f}")
    assert found[0] > bicubic(high) + 0.3
    assert found[1] < bicubic(high)
