"""The average follows its formula and can be put in and taken out again."""

import pytest
import torch

from models.ema import EMA


def test_warm_up_follows_min_of_decay_and_one_plus_n_over_ten_plus_n():
    p = {"w": torch.zeros(1)}
    ema, expected = EMA(p, decay=0.5), 0.0
    for n in range(1, 15):
        p["w"] = torch.tensor([float(n)])
        ema.update(p)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.average["w"].item() == pytest.approx(expected, rel=1e-5)
    assert ema.num_updates == 14


def test_the_average_is_applied_for_a_while_only():
    layer = torch.nn.Linear(2, 2)
    p = dict(layer.named_parameters())
    ema = EMA(p)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1.0
    with ema.applied(p):
        assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before + 1.0)


def test_continuing_equals_never_having_stopped():
    steps = [{"w": torch.full((2,), float(i))} for i in range(6)]
    whole, first = EMA(steps[0]), EMA(steps[0])
    for p in steps:
        whole.update(p)
    for p in steps[:3]:
        first.update(p)
    second = EMA({"w": torch.zeros(2)})
    second.load_state_dict(first.state_dict())
    for p in steps[3:]:
        second.update(p)
    assert torch.equal(second.average["w"], whole.average["w"])
    with pytest.raises(ValueError, match="EMA names differ"):
        second.load_state_dict({"num_updates": torch.tensor(1), "v": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"EMA of w is \(1,\), not \(2,\)"):
        second.load_state_dict({"num_updates": torch.tensor(1), "w": torch.zeros(1)})
