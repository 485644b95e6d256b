"""A small CLIP and a small CoCa that know something: coloured shapes that move over backgrounds.

Rendered clips with captions train them for about a minute each; the weights are kept by a digest
of what made them in ~/.cache/kinoray/tests, so that it happens once a machine.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch.nn import functional

from models.clip_pixels import Pixels, picked
from models.clip_weights import Weights
from tests.models.kept import CACHE, locked

PX, FRAMES = 48, 16
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 200, 50),
    "blue": (50, 80, 230),
    "yellow": (230, 215, 40),
    "purple": (160, 50, 190),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = ("standing still", "moving sideways", "moving up and down")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a clip shows; its caption says all of it."""

    colour: str
    shape: str
    motion: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} {self.motion}"


SCENES = tuple(Scene(colour=c, shape=s, motion=m) for c, s, m in product(COLOURS, SHAPES, MOTIONS))


def render(scene: Scene, seed: int, *, px: int = PX, frames: int = FRAMES) -> np.ndarray:
    """Return uint8 THWC; place, size, speed and background are the seed's, the rest the scene's."""
    rng = np.random.default_rng([seed, SCENES.index(scene)])
    y, x = np.mgrid[:px, :px] / px
    radius = rng.uniform(0.17, 0.25)
    sway = rng.uniform(0.18, 0.25) * np.sin(
        rng.uniform(0, 6.28) + np.linspace(0, 2 * np.pi, frames, endpoint=False)
    )
    middle = rng.uniform(0.45, 0.55, 2)
    sideways, upright = scene.motion == "moving sideways", scene.motion == "moving up and down"
    ground = np.full((px, px, 3), rng.uniform(20, 110)) + rng.uniform(-15, 15, 3)
    slope = rng.uniform(-40, 40, 2)
    ground += (slope[0] * (x - 0.5) + slope[1] * (y - 0.5))[..., None]
    colour = np.array(COLOURS[scene.colour]) + rng.uniform(-15, 15, 3)
    clip = np.empty((frames, px, px, 3))
    for t in range(frames):
        inside = _inside(
            scene.shape,
            (x - middle[0] - sideways * sway[t]) / radius,
            (y - middle[1] - upright * sway[t]) / radius,
        )
        clip[t] = np.where(inside[..., None], colour, ground)
    return (clip + rng.normal(0, 3, clip.shape)).round().clip(0, 255).astype(np.uint8)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if shape == "circle":
        return x**2 + y**2 < 1
    if shape == "square":
        return (abs(x) < 0.9) & (abs(y) < 0.9)
    if shape == "triangle":
        return (y < 0.8) & (y > 2 * abs(x) - 1)
    return ((abs(x) < 0.3) & (abs(y) < 1)) | ((abs(y) < 0.3) & (abs(x) < 1))


_VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
_TEXT = {"context_length": 14, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
CLIP_CONFIG = {"embed_dim": 64, "vision_cfg": _VISION, "text_cfg": _TEXT}
COCA_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": _VISION
    | {
        "attentional_pool": True,
        "attn_pooler_queries": 16,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": _TEXT | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": _TEXT | {"attn_pooler_heads": 2},
    "custom_text": True,
}


def trained_clip(cache: Path = CACHE) -> Weights:
    """Return weights of a small CLIP that tells the scenes apart; trained when not yet in `cache`."""
    return _kept(cache, "clip", CLIP_CONFIG, _train_clip)


def trained_coca(cache: Path = CACHE) -> Weights:
    """Return weights of a small CoCa that captions colour and shape of a scene."""
    return _kept(cache, "coca", COCA_CONFIG, _train_coca)


def untrained(folder: Path, config: dict, seed: int = 0) -> Weights:
    """Return random weights of the same architecture: the negative control."""
    torch.manual_seed(seed)
    return _written(folder, "untrained", config, _built(config))


def digest() -> str:
    """Return what decides the trained weights: this file, the preparation of images, open_clip."""
    pixels = Path(__file__).parents[2] / "models" / "clip_pixels.py"
    whole = hashlib.sha256(Path(__file__).read_bytes() + pixels.read_bytes())
    whole.update(open_clip.__version__.encode())
    return whole.hexdigest()[:16]


def _kept(
    cache: Path, name: str, config: dict, train: Callable[[torch.nn.Module], None]
) -> Weights:
    folder = cache / f"{name}-{digest()}"
    with locked(folder):
        told = folder / "weights.json"
        if not told.exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = _built(config)
                train(model)
            torch.set_num_threads(threads)
            made = _written(folder, name, config, model)
            told.write_text(json.dumps({"sha256": made.sha256}))
        sha256 = json.loads(told.read_text())["sha256"]
    return Weights(
        model=str(folder / f"{name}.json"), path=folder / f"{name}.safetensors", sha256=sha256
    )


def _written(folder: Path, name: str, config: dict, model: torch.nn.Module) -> Weights:
    (folder / f"{name}.json").write_text(json.dumps(config))
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(model=str(folder / f"{name}.json"), path=path, sha256=sha256)


def _built(config: dict) -> torch.nn.Module:
    own = {key: value for key, value in config.items() if key != "custom_text"}
    return (open_clip.CoCa if "multimodal_cfg" in own else open_clip.CLIP)(**own)


def _corpus(variants: int, num_frames: int) -> torch.Tensor:
    """Return prepared images (scene, variant, frame, C, H, W) of training seeds, from 1000 on."""
    pixels = Pixels(height_px=32, width_px=32, mean=_MEAN, deviation=_DEVIATION)
    scenes = [
        torch.stack(
            [
                pixels(
                    torch.from_numpy(picked(render(scene, 1000 + v), num_frames)).permute(
                        0, 3, 1, 2
                    )
                )
                for v in range(variants)
            ]
        )
        for scene in SCENES
    ]
    return torch.stack(scenes)


_MEAN, _DEVIATION = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def _batches(images: torch.Tensor, steps: int, size: int):
    """Yield (scene numbers, clips) of different scenes: two equal captions would be a wrong target."""
    for _ in range(steps):
        scenes = torch.randperm(len(SCENES))[:size]
        variants = torch.randint(images.shape[1], (size,))
        yield scenes, images[scenes, variants]


def _optimised(model: torch.nn.Module, steps: int, rate: float):
    # The vocabulary's own vectors stay as drawn: a few dozen words are apart as they are.
    learnt = [p for name, p in model.named_parameters() if "token_embedding" not in name]
    for name, p in model.named_parameters():
        p.requires_grad_("token_embedding" not in name)
    optimizer = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    return optimizer, schedule


def _train_clip(model: torch.nn.Module, *, steps: int = 600) -> None:
    """Contrastive (open_clip's loss) on what Clip.embed_frames gives: means of frame embeddings."""
    texts = open_clip.SimpleTokenizer(context_length=14)([scene.caption for scene in SCENES])
    images = _corpus(variants=16, num_frames=8)
    loss_of = open_clip.ClipLoss()
    optimizer, schedule = _optimised(model, steps, 2e-3)
    for scenes, clips in _batches(images, steps, 48):
        frames = clips[:, ::2]
        seen = model.encode_image(frames.flatten(0, 1), normalize=True)
        seen = functional.normalize(seen.unflatten(0, frames.shape[:2]).mean(1), dim=-1)
        loss = loss_of(
            seen, model.encode_text(texts[scenes], normalize=True), model.logit_scale.exp()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6)
    model.eval()


def said(scene: Scene) -> str:
    """Return what one frame can tell: motion is left out of CoCa's captions."""
    return f"a {scene.colour} {scene.shape} on a background"


def _train_coca(model: torch.nn.Module, *, steps: int = 650) -> None:
    """Contrastive and captioning losses together, as open_clip trains it; one frame a caption."""
    tokens = open_clip.SimpleTokenizer(context_length=14)([said(scene) for scene in SCENES])[:, :8]
    images = _corpus(variants=16, num_frames=2)
    used = tokens.unique()
    whole = model.text_decoder.text_projection.detach()
    # Words that never occur keep a logit of exactly 0: one number stands for all of them in the
    # loss, which is that over the whole vocabulary at a hundredth of its cost.
    model.text_decoder.text_projection = torch.nn.Parameter(whole[:, used].clone())
    silent = float(np.log(whole.shape[1] - len(used)))
    optimizer, schedule = _optimised(model, steps, 2e-3)
    for scenes, clips in _batches(images, steps, 48):
        out = model(clips.flatten(0, 1), tokens[scenes].repeat_interleave(2, 0))
        logits = functional.pad(out["logits"], (0, 1), value=silent).flatten(0, 1)
        labels = out["labels"].flatten()
        words = torch.searchsorted(used, labels)
        # padding is no target, but the end is
        captioning = functional.cross_entropy(logits[labels > 0], words[labels > 0])
        cosines = out["logit_scale"] * out["image_features"] @ out["text_features"].T
        kinds = (scenes // len(MOTIONS)).repeat_interleave(2)
        target = (kinds[:, None] == kinds[None]).float()
        contrast = functional.cross_entropy(cosines, target / target.sum(1, keepdim=True))
        optimizer.zero_grad()
        (captioning + 0.5 * contrast).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6)
    projection = torch.zeros_like(whole)
    projection[:, used] = model.text_decoder.text_projection.detach()
    model.text_decoder.text_projection = torch.nn.Parameter(projection)
    model.eval()
