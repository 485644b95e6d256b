"""kinoray doctor --extension: somebody's stage, held to its promises from the command line."""

import json

import pytest

from ingest.stage import NotAStage
from jobs import config, extension

MADE = "tests.ingest.stages_made"


def ran(capsys, use, *keys, **how):
    with pytest.raises(SystemExit) as ended:
        extension.run(use, keys, as_json=True, **how)
    return ended.value.code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Brightness", "scorer"), ("Jumps", "shot_detector"), ("NotStill", "keep_rule")],
)
def test_the_kind_is_found(capsys, name, kind):
    code, told = ran(capsys, f"{MADE}:{name}")
    assert (code, told["kind"], told["problems"]) == (0, kind, [])


def test_broken_promises_and_no_stage_at_all(capsys):
    code, told = ran(capsys, "tests.ingest.test_stage:Drifts", 'prompt="x"', kind="captioner")
    assert code == 1
    assert "not deterministic" in told["problems"][0]
    with pytest.raises(NotAStage, match="cannot be imported"):
        extension.run("no.such:Thing", (), as_json=True)
    with pytest.raises(config.ConfigError, match="did you mean captioner"):
        extension.run(f"{MADE}:Shades", (), kind="captoner", as_json=True)
