"""What `kinoray cluster render` writes: checked offline, by schemas and by reading it back; nothing here needs a cluster."""

import dataclasses
import email.parser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.autoscaler._private import (
    util as ray_up,  # private, of the pinned Ray: there is no `ray up --dry-run`
)

from cluster import render, shapes
from cluster.environment import CHECKOUT
from tests.cluster.kuberay_schema import SCHEMAS, of_crd

KUBERAY = {"image": "lab/kinoray:1.0", "command": "train /storage/base.toml out=/storage/base"}
SLURM = {
    "command": "train /shared/base.toml",
    "storage": "/shared/kinoray",
    "venv": "/shared/.venv",
}
AWS = {"image": "lab/kinoray:1.0", "region": "eu-west-1", "storage": "fs-0123abcd"}
FULL = {
    "accelerator": "H100",
    "queue": "research",
    "priority": "high",
    "storage_class": "nfs",
    "gpu_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
}


def objects(**keys):
    files = render.kuberay(shapes.KubeRay(**{**KUBERAY, **keys})).files
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return {o["kind"]: o for text in texts for o in yaml.safe_load_all(text)}


def cluster_specs(**keys):
    found = objects(**keys)
    return [found["RayCluster"]["spec"], found["RayJob"]["spec"]["rayClusterSpec"]]


def pods(spec):
    return [
        group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]


@pytest.mark.parametrize("keys", [{}, FULL])
def test_manifests_fit_the_schema(keys):
    found = objects(**keys)
    assert found.keys() == SCHEMAS.keys()
    for kind, thing in found.items():
        jsonschema.validate(thing, SCHEMAS[kind], cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shutdownAfterJobFinish", True),
        ("ttlSecondsAfterFinished", "600"),
        ("backoffLimit", -1),
        ("rayClusterSpec", {"authOptions": {"mode": "none"}}),
    ],
)
def test_the_schema_catches_mistakes(field, value):
    job = objects()["RayJob"]
    job["spec"][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMAS["RayJob"], cls=jsonschema.Draft202012Validator)


def crd(kind):
    """A definition in the form of KubeRay's own, from our schema, so that the reading of theirs is tested without it."""
    schema = json.loads(
        json.dumps(SCHEMAS[kind]).replace(
            '"additionalProperties": false', '"x-kubernetes-of-no-interest": 1'
        )
    )
    return {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}


def test_a_definition_is_read_strictly():
    cluster = objects()["RayCluster"]
    schema = of_crd(crd("RayCluster"))
    jsonschema.validate(cluster, schema, cls=jsonschema.Draft202012Validator)
    cluster["spec"]["authOption"] = {}
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(cluster, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("kind", "file"), [("RayCluster", "ray.io_rayclusters.yaml"), ("RayJob", "ray.io_rayjobs.yaml")]
)
@pytest.mark.parametrize("keys", [{}, FULL])
def test_manifests_fit_kuberays_own_definitions(kind, file, keys):
    folder = os.environ.get("KINORAY_KUBERAY_CRD")
    if not folder:
        pytest.skip("KINORAY_KUBERAY_CRD does not name the folder of KubeRay's crd/bases")
    definition = yaml.load((Path(folder) / file).read_text(), Loader=yaml.CSafeLoader)
    jsonschema.validate(
        objects(**keys)[kind], of_crd(definition), cls=jsonschema.Draft202012Validator
    )


@pytest.mark.parametrize("keys", [{}, FULL])
def test_what_every_cluster_on_kubernetes_promises(keys):
    for spec in cluster_specs(**keys):
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
        decode, models = spec["workerGroupSpecs"]
        assert (
            "nvidia.com/gpu"
            not in decode["template"]["spec"]["containers"][0]["resources"]["limits"]
        )
        assert (
            models["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
            == "1"
        )
        assert {t["key"] for t in models["template"]["spec"]["tolerations"]} == {
            "nvidia.com/gpu",
            "cloud.google.com/gke-spot",
        }
        assert [t["key"] for t in decode["template"]["spec"]["tolerations"]] == [
            "cloud.google.com/gke-spot"
        ]
        for pod in pods(spec):
            told = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
            drain_s = int(told["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert 0 < drain_s < pod["terminationGracePeriodSeconds"]
            assert pod["terminationGracePeriodSeconds"] > shapes.KubeRay(**KUBERAY).checkpoint_s
            assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "kinoray-storage"
            assert pod["serviceAccountName"] == "kinoray"
            assert pod["securityContext"]["runAsNonRoot"]
    job = objects(**keys)["RayJob"]["spec"]
    assert job["entrypoint"] == "kinoray train /storage/base.toml out=/storage/base --address auto"


def test_without_a_queue_the_autoscaler_decides_and_with_one_kueue_does():
    (alone, _), (queued, _) = cluster_specs(), cluster_specs(**FULL)
    assert alone["enableInTreeAutoscaling"]
    assert [g["minReplicas"] for g in alone["workerGroupSpecs"]] == [0, 0]
    assert not queued["enableInTreeAutoscaling"]
    for group, number in zip(queued["workerGroupSpecs"], (4, 2), strict=True):
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == number
    assert queued["workerGroupSpecs"][1]["labels"]["ray.io/accelerator-type"] == "H100"
    assert {pod["priorityClassName"] for pod in pods(queued)} == {"high"}
    for thing in (objects(**FULL)["RayCluster"], objects(**FULL)["RayJob"]):
        assert thing["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
        assert thing["metadata"]["namespace"] == "kinoray"


def everything():
    yield from render.kuberay(shapes.KubeRay(**KUBERAY, **FULL)).files.items()
    yield from render.slurm(shapes.Slurm(**SLURM)).files.items()
    yield from render.aws(shapes.Aws(**AWS), token="/x/token").files.items()


@pytest.mark.parametrize(("name", "text"), [*everything()])
def test_nothing_is_open_or_moves_under_your_feet(name, text):
    assert "0.0.0.0" not in text
    assert ":latest" not in text
    assert "runtime_env" not in text
    assert "$name" not in text, name


@pytest.mark.parametrize(
    ("kind", "keys", "said"),
    [
        (shapes.KubeRay, {**KUBERAY, "image": "lab/kinoray:latest"}, "other than latest"),
        (shapes.KubeRay, {**KUBERAY, "image": "lab/kinoray"}, "other than latest"),
        (shapes.KubeRay, {**KUBERAY, "image": "host:5000/kinoray"}, "other than latest"),
        (shapes.KubeRay, {**KUBERAY, "name": "Mine"}, "name: 'Mine'"),
        (
            shapes.KubeRay,
            {**KUBERAY, "command": "curate /x.toml; rm -rf /"},
            "'/x.toml;' has characters",
        ),
        (
            shapes.KubeRay,
            {**KUBERAY, "command": "python x.py"},
            "must begin with one of run, curate",
        ),
        (shapes.KubeRay, {**KUBERAY, "num_cpu_nodes": 0, "num_gpu_nodes": 0}, "at least one node"),
        (shapes.KubeRay, {**KUBERAY, "gpu_selector": {"a b": "c"}}, "'a b' is no label key"),
        (shapes.Slurm, {**SLURM, "storage": "shared"}, "absolute path"),
        (shapes.Slurm, {**SLURM, "storage": "/a/../etc"}, "absolute path"),
        (shapes.Slurm, {**SLURM, "time_limit": "soon"}, "hours:minutes"),
        (shapes.Slurm, {**SLURM, "time_limit": "00:05:00"}, "longer than twice the 300 s"),
        (shapes.Slurm, {**SLURM, "partition": "gpu\n#SBATCH --uid=0"}, "partition"),
        (shapes.Aws, {**AWS, "region": "eu west"}, "region"),
    ],
)
def test_what_could_break_a_file_is_refused(kind, keys, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        kind(**keys)


def test_every_problem_is_told_at_once():
    with pytest.raises(ValueError, match=r"name: .*; image: .*; cpus_per_node: ") as refused:
        shapes.KubeRay(image="x", name="-", cpus_per_node=0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "image", ["a:1", "host:5000/a/b:v1.2", "a@sha256:" + "0" * 64, "a/b:1@sha256:" + "0" * 64]
)
def test_pinned_images_are_taken(image):
    assert (
        cluster_specs(image=image)[0]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
        == image
    )


def shape_of(thing):
    """The keys and lists of a document, without its values."""
    if isinstance(thing, dict):
        return {key: shape_of(value) for key, value in thing.items()}
    return [shape_of(item) for item in thing] if isinstance(thing, list) else type(thing).__name__


# Words that look like something else to YAML, to a shell or to #SBATCH, beside any text at all.
NASTY = st.sampled_from(
    [
        "no",
        "null",
        "1e3",
        "0x1f",
        "a: b",
        "- a",
        "#",
        "a #b",
        "{}",
        "'",
        '"',
        "\\",
        "$x",
        "${IFS}",
        "`id`",
        "a\nb",
        "a\n#SBATCH -N9",
        "é",
        "*a",
        "&a",
        "!!x",
        "%",
        ">",
    ]
)
WORDS = st.text(max_size=12) | NASTY | st.from_regex(r"[a-z0-9._/:=-]{1,12}", fullmatch=True)
SAFE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/:=@,+%- ")


def texts_of(kind):
    return st.sampled_from([f.name for f in dataclasses.fields(kind) if f.type in (str, "str")])


@settings(max_examples=100, deadline=None)
@given(key=texts_of(shapes.KubeRay), value=WORDS)
def test_no_word_breaks_a_manifest(key, value):
    try:
        found = objects(**FULL | {key: value})
    except ValueError:
        return
    optional = {"queue", "priority", "storage_class", "accelerator"}
    if value or key not in optional | {"command"}:
        assert shape_of(found) == shape_of(objects(**FULL))
        assert value in str(found)


@settings(max_examples=200, deadline=None)
@given(key=texts_of(shapes.Aws), value=WORDS)
def test_no_word_breaks_a_cluster_on_ec2(key, value):
    plain = yaml.safe_load(render.aws(shapes.Aws(**AWS), token="/x").files["aws.yaml"])
    try:
        text = render.aws(shapes.Aws(**AWS | {key: value}), token="/x").files["aws.yaml"]
    except ValueError:
        return
    if value:
        assert shape_of(yaml.safe_load(text)) == shape_of(plain)
        assert value in str(yaml.safe_load(text))


@settings(max_examples=100, deadline=None)
@given(token=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_path_of_a_token_comes_back(token):
    text = render.aws(shapes.Aws(**AWS), token=token).files["aws.yaml"]
    assert yaml.safe_load(text)["file_mounts"] == {"~/.ray/auth_token": token}


@settings(max_examples=300, deadline=None)
@given(key=texts_of(shapes.Slurm), value=WORDS)
def test_no_word_breaks_a_batch_script(key, value):
    optional = {"accelerator": "H100", "partition": "gpu", "account": "lab", "queue": "normal"}
    plain = render.slurm(shapes.Slurm(**SLURM, **optional)).files["kinoray.sbatch"]
    try:
        made = render.slurm(shapes.Slurm(**SLURM | optional | {key: value})).files["kinoray.sbatch"]
    except ValueError:
        return
    assert set(value) <= SAFE
    assert value or key in optional
    if value:
        assert len(made.splitlines()) == len(plain.splitlines())


def ray_accepts(text):
    """Raise what Ray's own check of a description for `ray up` raises."""
    ray_up.validate_config(ray_up.prepare_config(yaml.safe_load(text)))


@pytest.mark.parametrize("keys", [{}, {"spot": False, "accelerator": ""}, {"num_gpu_nodes": 0}])
def test_ray_up_takes_the_cluster_on_ec2(keys):
    text = render.aws(shapes.Aws(**AWS, **keys), token="/x/token").files["aws.yaml"]
    ray_accepts(text)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        ray_accepts(text + "max_worker: 3\n")
    told = yaml.safe_load(text)
    assert told["available_node_types"]["head"]["resources"] == {"CPU": 0}
    starts = told["head_start_ray_commands"][-1], told["worker_start_ray_commands"][-1]
    assert all(words.startswith("RAY_AUTH_MODE=token ") and "\n" not in words for words in starts)
    spot = "InstanceMarketOptions" in told["available_node_types"]["models"]["node_config"]
    assert spot == keys.get("spot", True)


def test_the_image_is_pinned_hashed_and_not_root():
    text = (CHECKOUT / "cluster" / "templates" / "Containerfile").read_text()
    (base,) = re.findall(r"^FROM (.+)$", text, re.MULTILINE)
    assert base == "python:3.11-slim-bookworm"
    assert "://" not in text
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["kinoray"]
    installs = re.findall(r"pip install (.+)$", text, re.MULTILINE)
    assert "--require-hashes" in installs[0]
    assert all("--no-deps" in line for line in installs[1:])


def test_what_the_image_copies_makes_a_wheel_with_the_templates(tmp_path):
    """The last step of the container file, done in a folder that holds just what it copies."""
    text = (CHECKOUT / "cluster" / "templates" / "Containerfile").read_text()
    copied = [
        word
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    context, wheels = tmp_path / "context", tmp_path / "wheels"
    context.mkdir()
    for name in copied:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, context)
    words = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run(
        [sys.executable, *words, "--wheel-dir", str(wheels), "."],
        cwd=context,
        check=True,
        timeout=120,
    )
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = next(name for name in names if name.endswith("METADATA"))
        assert email.parser.BytesParser().parsebytes(archive.read(about))["Name"] == "kinoray"
    templates = {
        f"cluster/templates/{p.name}" for p in (CHECKOUT / "cluster" / "templates").iterdir()
    }
    assert len(templates) == 7
    assert templates <= names
