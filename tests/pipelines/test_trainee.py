"""The network in training: accumulation, precision, checkpoints in memory, beginnings. One process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.group import Place
from models import known, objective, ssr, stunet
from models.checkpoint import state_digest
from models.conditioning import HashedText
from models.diffusion import Schedule
from pipelines import pieces, weights
from pipelines.optimizer import Optimizer
from pipelines.pieces_read import Kept
from pipelines.trainee import Form, Trainee
from tests.models import tiny_unet

TEXT = HashedText(dim=16, length=4)
NETWORK = stunet.Config(sample_px=8, widths=(8, 16), temporal_factor=(2,), text_dim=16, head_dim=8)
SSR = ssr.Config(sample_px=8, widths=(8, 16), text_dim=16, head_dim=8)
SPEC = weights.Spec(
    role="motion", network=NETWORK, schedule=Schedule(), text=TEXT, frames=4, fps=16
)
BATCH = 5


def trainee(
    role: stunet.Role = "motion", *, precision: str = "fp32", start=None, **form
) -> Trainee:
    network = SSR.network if role == "ssr" else replace(NETWORK, known=role == "motion")
    told = objective.Objective(
        role=role, schedule=Schedule(), text=TEXT, run_seed=1, frames=2,
        ssr=SSR if role == "ssr" else None,
        masks=known.Mixture() if role == "motion" else None,
    )  # fmt: skip
    return Trainee(
        told,
        replace(SPEC, role=role, network=network, ssr=told.ssr),
        form=Form(**form),
        precision=precision,
        optimizer=Optimizer(learning_rate=1e-2, ema_decay=0.9),
        seed=0,
        start=start or {},
        place=Place(rank=0, world_size=1),
    )


def clips() -> objective.Clips:
    generator = torch.Generator().manual_seed(0)
    return objective.Clips(
        x_BCTHW=torch.rand(BATCH, 3, 4, 8, 8, generator=generator) * 2 - 1,
        captions=[f"word{i}" for i in range(BATCH)],
        clip_ids=[str(i) for i in range(BATCH)],
        positions=list(range(BATCH)),
    )


def gradients(made: Trainee) -> tuple[float, torch.Tensor]:
    loss = made.gradients(clips(), step=3, global_batch=BATCH)
    found = [p.grad for p in made.parameters.values()]
    assert all(g is not None for g in found)
    return loss, torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("role", ["base", "motion", "ssr"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 99])
def test_accumulation_changes_rounding_only(role, micro_batch):
    loss, whole = gradients(trainee(role))
    same, parts = gradients(trainee(role, micro_batch=micro_batch))
    assert same == pytest.approx(loss, rel=1e-5)
    assert (parts - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.parametrize("role", ["base", "motion", "ssr"])
def test_activation_checkpointing_changes_no_bit(role):
    loss, whole = gradients(trainee(role))
    again, found = gradients(trainee(role, checkpointing=True))
    assert again == loss
    assert torch.equal(found, whole)


@pytest.mark.parametrize("role", ["base", "motion", "ssr"])
def test_bf16_keeps_weights_gradients_and_average_in_fp32_and_is_close(role):
    made = trainee(role, precision="bf16")
    loss, found = gradients(made)
    exact, whole = gradients(trainee(role))
    assert loss == pytest.approx(exact, rel=0.05)
    assert loss != exact
    assert (found - whole).norm() < 0.2 * whole.norm()
    kept = [*made.parameters.values(), *made.ema.average.values(), found]
    assert {t.dtype for t in kept} == {torch.float32}


def kept(made: Trainee, folder: Path) -> Kept:
    """What the trainee's checkpoint is when it is read again."""
    own = pieces.cut(made.groups()[0], made.place)
    pieces.write(folder, own, 0)
    note = json.loads((folder / pieces.note_name(0)).read_text())
    pieces.finish(folder, own, {"meta": {}}, [note])
    return Kept(folder, pieces.read_index(folder))


def digests_of(made: Trainee) -> dict[str, str]:
    return {name: state_digest(state) for name, state in made.groups()[0].items()}


@pytest.mark.parametrize("role", ["base", "motion", "ssr"])
def test_what_a_checkpoint_holds_continues_to_the_same_bits(role, tmp_path):
    def stepped(made: Trainee, steps: range) -> Trainee:
        for step in steps:
            made.gradients(clips(), step=step, global_batch=BATCH)
            made.clipped()
            made.update(1e-2)
        return made

    whole = stepped(trainee(role), range(4))
    first = stepped(trainee(role), range(2))
    half = trainee(role)
    with kept(first, tmp_path) as found:
        half.restore(found, first.groups()[1])
    assert digests_of(half) == digests_of(first)
    begun = {n: p.detach().clone() for n, p in first.parameters.items()}
    assert digests_of(stepped(half, range(2, 4))) == digests_of(whole)
    assert state_digest(whole.published()) != state_digest(whole.groups()[0]["params"])
    # control: without the optimizer's state it goes elsewhere
    forgetful = trainee(role)
    forgetful.model.load_state_dict({**forgetful.model.state_dict(), **begun})
    gone = digests_of(stepped(forgetful, range(2, 4)))
    assert gone["params"] != digests_of(whole)["params"]


def test_a_step_on_single_frames_leaves_the_temporal_modules_as_they_are():
    made = trainee("ssr")
    made.objective = replace(made.objective, image_share=0.5)
    kinds = {made.objective.temporal(step) for step in range(20)}
    assert kinds == {True, False}
    image_step = next(step for step in range(20) if not made.objective.temporal(step))
    made.gradients(clips(), step=0 if made.objective.temporal(0) else 1, global_batch=BATCH)
    made.update(1e-2)
    before = {n: p.detach().clone() for n, p in made.parameters.items()}
    made.gradients(clips(), step=image_step, global_batch=BATCH)
    made.update(1e-2)
    same = {n for n, p in made.parameters.items() if torch.equal(p, before[n])}
    assert same == {n for n in made.parameters if n.startswith("motion.")}


def test_pieces_are_copies_that_training_on_does_not_change():
    made = trainee("base")
    gradients(made)
    made.update(1e-2)
    own = pieces.cut(made.groups()[0], made.place)
    before = [p.rows.clone() for state in own.values() for p in state.values()]
    gradients(made)
    made.update(1e-2)
    after = [p.rows for state in own.values() for p in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(after) == sum(map(len, made.groups()[0].values()))


def test_a_public_image_model_is_where_a_base_begins(tmp_path):
    from pipelines.trainee import start_from  # noqa: PLC0415

    folder = tiny_unet.save("deepfloyd-1", tmp_path / "image")
    wanted = {f"unet.{n}": t for n, t in tiny_unet.unet("deepfloyd-1").state_dict().items()}
    spec = replace(SPEC, role="base")
    found = start_from(spec, base=None, image=str(folder), start="")
    assert state_digest(found) == state_digest(wanted)
