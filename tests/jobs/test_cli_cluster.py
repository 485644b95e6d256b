"""`kinoray cluster ...` as it is typed: words, exit codes, one line for each mistake."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import _guarded

CHECKOUT = Path(__file__).resolve().parents[2]
KUBERAY = ["render", "kuberay", "image=lab/kinoray:1.0"]
SLURM = [
    "render",
    "slurm",
    "venv=/shared/venv",
    "storage=/shared/kinoray",
    "command=train /shared/base.toml",
]
AWS = ["render", "aws", "image=lab/kinoray:1.0", "region=eu-west-1", "storage=fs-0123abcd"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def typed(*words) -> int:
    try:
        return _guarded(["cluster", *words])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (KUBERAY, ["Containerfile", "namespace.yaml", "raycluster.yaml"]),
        (
            [*KUBERAY, "command=curate /storage/c.toml"],
            ["Containerfile", "namespace.yaml", "raycluster.yaml", "rayjob.yaml"],
        ),
        (SLURM, ["kinoray.sbatch"]),
        (AWS, ["Containerfile", "aws.yaml", "token"]),
    ],
)
def test_files_are_written_once_and_kept(words, files, tmp_path, capsys):
    assert typed(*words, "out=deploy", "--dry-run") == 0
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    assert typed(*words, "out=deploy", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["files"]) == sorted(p.name for p in (tmp_path / "deploy").iterdir()) == files
    assert told["next"].startswith("cd deploy && ")
    before = {p.name: p.read_bytes() for p in (tmp_path / "deploy").iterdir()}
    assert typed(*words, "out=deploy") == 0
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "deploy").iterdir()}
    capsys.readouterr()
    assert typed(*words, "name=other", "out=deploy") == 1
    assert "says something else; next: another out" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "deploy").iterdir()}


def test_the_token_is_in_its_file_only(tmp_path, capsys):
    assert typed(*AWS, "out=deploy") == 0
    token = tmp_path / "deploy" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    streams = capsys.readouterr()
    assert token.read_text() not in streams.out + streams.err
    assert token.read_text() not in (tmp_path / "deploy" / "aws.yaml").read_text()
    assert str(token) in (tmp_path / "deploy" / "aws.yaml").read_text()


def test_keys_may_stand_in_a_file(tmp_path):
    (tmp_path / "ours.toml").write_text(
        'image = "lab/kinoray:1.0"\nqueue = "research"\nout = "deploy"\n[gpu_selector]\ngpu = "h100"\n'
    )
    assert typed("render", "kuberay", "ours.toml", "name=mine") == 0
    text = (tmp_path / "deploy" / "raycluster.yaml").read_text()
    assert 'name: "mine"' in text
    assert '"kueue.x-k8s.io/queue-name": "research"' in text
    assert '{"gpu": "h100"}' in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["render", "kuberay"], ("out: name the folder", "image: Field required")),
        ([*KUBERAY, "out=x", "nmae=a"], ("nmae: unknown key; did you mean name?",)),
        (
            [*KUBERAY, "out=x", "image=a:latest", "name=B", "quue=c"],
            ("a:latest", "name: 'B'", "quue: unknown key"),
        ),
        (
            [*KUBERAY, "out=x", "num_gpu_nodes=many"],
            ("num_gpu_nodes: Input should be a valid integer",),
        ),
        ([*SLURM, "out=x", "command=rm /"], ("must begin with one of run, curate",)),
        (["render", "slurm", "gone.toml"], ("gone.toml: no such recipe",)),
        ([*AWS, "out=x", "=1"], ("an override is written key=value",)),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, capsys):
    assert typed(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(text in line for text in said), line
    assert line.endswith("; next: kinoray cluster render --help")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["up", "num_nodes=0"], 2, "num_nodes: 0 must lie in 1..32"),
        (["up", "nodes=2"], 2, "did you mean num_nodes?"),
        (["status"], 1, "no cluster in .kinoray/cluster; next: kinoray cluster up"),
        (["status", "--folder=x"], 2, "No such option"),
        (["render", "swarm"], 2, "'swarm' is not one of"),
    ],
)
def test_other_mistakes(words, code, said, tmp_path, capsys):
    assert typed(*words) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_start_touches_nothing(tmp_path, capsys):
    assert typed("up", "num_nodes=3", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_nodes"] == 3
    assert list(tmp_path.iterdir()) == []


def test_down_where_nothing_is_up_is_no_failure(tmp_path, capsys):
    assert typed("down") == 0
    assert "nothing was up" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_up_status_down(tmp_path, capsys):
    small = ["num_nodes=1", f"object_store_bytes={80 << 20}"]
    assert typed("up", *small) == 0
    try:
        streams = capsys.readouterr()
        token = tmp_path / ".kinoray" / "cluster" / "token"
        assert (
            f"RAY_AUTH_TOKEN_PATH={shlex.quote(str(token))} kinoray curate RECIPE --address"
            in streams.err
        )
        assert token.read_text() not in streams.out + streams.err
        assert typed("up", *small, "--json") == 0
        assert json.loads(capsys.readouterr().out)["status"] == "already up"
        assert typed("status", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["status"], told["without_token"], told["counted"]) == ("up", "401", 1)
    finally:
        assert typed("down") == 0
    assert "ended" in capsys.readouterr().out
    assert not (tmp_path / ".kinoray" / "cluster").exists()


def test_looking_at_a_cluster_imports_no_ray():
    code = "import sys; from jobs import cluster_commands; print([m for m in ('ray', 'torch', 'mlflow') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
