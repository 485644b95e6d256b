"""What a training recipe makes: public image models, masks, text, beginnings; and what does not fit is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import checkpoint, known, ssr, stunet
from models.diffusion import Schedule
from pipelines import training, weights
from pipelines.output import WrongInput
from pipelines.shelves import Mixed, Shelves, freeze
from pipelines.train_config import Config, Text
from pipelines.train_spec import inputs_of, spec_of
from tests.models import tiny_unet
from tests.pipelines.test_training import ALONE, NETWORK, Posts, job


@pytest.fixture(autouse=True)
def _ordinary_torch():
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def shelves(tiny) -> Shelves:
    return freeze((Mixed(dataset=str(tiny.root)),))


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Path:
    """A pipeline folder as DeepFloyd's: image model and scheduler."""
    folder = tiny_unet.save("deepfloyd-1", tmp_path_factory.mktemp("public") / "if")
    (folder / "scheduler").mkdir()
    told = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    return folder


def config(**keys: Any) -> Config:
    told = {"dataset": "x", "out": Path("out"), "steps": 1, "global_batch": 2}
    return Config(**{**told, **keys})


def test_a_public_image_model_is_a_base_by_its_own_shape_and_schedule(shelves, public):
    made = config(role="base", image=public, steps=0)
    spec = spec_of(made, shelves, None)
    assert spec.network == stunet.Config.of_image(json.loads((public / "unet" / "config.json").read_text()))  # fmt: skip
    assert spec.schedule == Schedule(prediction="epsilon", zero_terminal_snr=False)
    assert weights.Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    wanted = checkpoint.state_digest(tiny_unet.unet("deepfloyd-1").state_dict())
    assert inputs_of(made, None, spec) == {"image": wanted}
    other = replace(made, schedule=Schedule(name="linear"))
    assert spec_of(other, shelves, None).schedule == Schedule(name="linear")


def test_no_step_publishes_the_public_weights_as_they_are(tiny, tmp_path, shelves, public):
    spec = spec_of(config(role="base", image=public, steps=0), shelves, None)
    told = job(tiny, tmp_path, "base", image=str(public), steps=0)
    training.train(replace(told, spec=spec, px=8), ALONE, Posts())
    found = weights.load(tmp_path, "base")
    assert checkpoint.state_digest(found.state) == checkpoint.state_digest(
        tiny_unet.unet("deepfloyd-1").state_dict()
    )
    # and a motion model with masks is trained over it
    motion = spec_of(config(role="motion", base=tmp_path, masks=known.Mixture()), shelves, found)
    assert motion.network == replace(spec.network, known=True)
    made = job(tiny, tmp_path / "motion", "motion", base=str(tmp_path), steps=1, masks=known.Mixture())  # fmt: skip
    training.train(replace(made, spec=motion, px=8), ALONE, Posts())
    trained = weights.load(tmp_path / "motion", "motion")
    assert float(trained.state["known_in.weight"].abs().max()) > 0.0
    assert weights.video_model(found, trained).config.known


def test_a_training_begins_with_the_weights_of_another(tiny, tmp_path, shelves):
    training.train(job(tiny, tmp_path / "first", "base", steps=2), ALONE, Posts())
    first = weights.load(tmp_path / "first", "base")
    from_it, from_seed = Posts(), Posts()
    told = job(tiny, tmp_path / "on", "base", steps=1, start=str(tmp_path / "first"))
    training.train(told, ALONE, from_it)
    training.train(job(tiny, tmp_path / "new", "base", steps=1), ALONE, from_seed)
    ends = [next(e["loss"] for e in posts.events if e["event"] == "probe") for posts in (from_it, from_seed)]  # fmt: skip
    assert ends[0] == checkpoint.load(tmp_path / "first" / "checkpoint").meta["loss_last"]
    assert ends[1] != ends[0]
    made = config(role="base", model=NETWORK, start=tmp_path / "first")
    assert inputs_of(made, None, spec_of(made, shelves, None)) == {"start": first.digest}
    other = config(role="ssr", ssr=ssr.Config(), start=tmp_path / "first")
    with pytest.raises(WrongInput, match="holds a base checkpoint where a ssr one is needed"):
        inputs_of(other, None, spec_of(other, shelves, None))


def test_what_does_not_fit_is_refused_by_name(shelves, tmp_path):
    upscaler = tiny_unet.save("deepfloyd-2", tmp_path / "two")
    (upscaler / "scheduler").mkdir()
    (upscaler / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    cases = [
        (config(role="base", image=upscaler), "works on 6 channels"),
        (config(role="base", image=tmp_path), "image: no image model"),
        (
            config(role="base", model=NETWORK, text=Text(kind="hashed", length=4)),
            None,
        ),
        (config(role="ssr", ssr=ssr.Config(), frames=99), "more than the 80 of a clip"),
    ]
    for made, message in cases:
        if message is None:
            assert spec_of(made, shelves, None).text.settings()["length"] == 4
            continue
        with pytest.raises(WrongInput, match=message):
            spec_of(made, shelves, None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"role": "base", "model": NETWORK, "masks": known.Mixture()}, "masks: a base"),
        ({"role": "ssr", "ssr": ssr.Config(known=True)}, "exactly when ssr.known"),
        ({"role": "ssr", "ssr": ssr.Config(), "masks": known.Mixture()}, "exactly when ssr.known"),
        ({"role": "base"}, "model or image: a base training needs one of them"),
        ({"role": "motion"}, "base: a motion training needs it"),
        ({"role": "base", "model": NETWORK, "ssr": ssr.Config()}, "ssr: a base training does not"),
        ({"role": "base", "model": NETWORK, "image_share": 0.5}, "image_share"),
        ({"role": "base", "model": NETWORK, "min_workers": 3}, "min_workers"),
        ({"role": "base", "model": NETWORK, "steps": 0}, "at least 1"),
        ({"role": "base", "model": NETWORK, "min_snr_gamma": -1.0}, "min_snr_gamma"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        config(**keys)
