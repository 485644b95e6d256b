"""The files of a cluster: templates in which every `$name` is a value of its keys, already in the target's own notation.

A value in YAML is written as JSON in ASCII, which YAML reads as it is; a line whose value is None is left out. Words for
batch scripts have a narrow alphabet (plain_words) and stand as they are.
"""

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata, resources
from string import Template
from typing import Any

from cluster.environment import DRAIN_S, ENVIRONMENT
from cluster.shapes import Aws, KubeRay, Slurm

OURS = {"app.kubernetes.io/part-of": "kinoray"}
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ACCELERATOR_LABEL = "ray.io/accelerator-type"
TOKEN = "token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The files by name, the command that uses them, and whether a token file must lie beside them."""

    files: Mapping[str, str]
    following: str
    token: bool = False


def kuberay(shape: KubeRay) -> Rendered:
    """Return the manifests of a long-lived cluster and, with a command, of a job with a cluster of its own."""
    values = _kuberay_values(shape)
    values["spec"] = _filled("cluster-spec.yaml", values)
    names = ["namespace.yaml", "raycluster.yaml", *(["rayjob.yaml"] if shape.command else [])]
    files = {name: _filled(name, values) for name in names}
    return Rendered(
        files={**files, "Containerfile": _text("Containerfile")},
        following="kubectl apply -f namespace.yaml -f raycluster.yaml",
    )


def slurm(shape: Slurm) -> Rendered:
    """Return the batch script."""
    label = f" --labels={ACCELERATOR_LABEL}={shape.accelerator}" if shape.accelerator else ""
    values: dict[str, Any] = {f.name: getattr(shape, f.name) for f in fields(shape)}
    values |= {name: getattr(shape, name) or None for name in ("partition", "account", "queue")}
    values |= {"gpus_per_node": shape.gpus_per_node or None, "num_gpus": shape.gpus_per_node}
    values |= {"notice_s": shape.notice_s, "ray_labels": label}
    text = _replaced(_text("kinoray.sbatch"), values, str)
    return Rendered(files={"kinoray.sbatch": text}, following="sbatch kinoray.sbatch")


def aws(shape: Aws, *, token: str) -> Rendered:
    """Return the description for `ray up`; `token` is the path of the token file on this machine."""
    where = f"{shape.storage}.efs.{shape.region}.amazonaws.com:/"
    cpu, gpu = {"CPU": shape.cpus_per_node}, {"GPU": shape.gpus_per_node}
    values = {
        "name": shape.name,
        "max_workers": shape.num_cpu_nodes + shape.num_gpu_nodes,
        "idle_minutes": shape.idle_minutes,
        "region": shape.region,
        "ssh_user": shape.ssh_user,
        "image": shape.image,
        "token": token,
        "mount": f"mountpoint -q /storage || sudo mount -t nfs4 -o nfsvers=4.1,hard {where} /storage",
        "num_cpu_nodes": shape.num_cpu_nodes,
        "num_gpu_nodes": shape.num_gpu_nodes,
        "cpu_resources": cpu,
        "gpu_resources": cpu | gpu,
        "gpu_labels": _gpu_labels(shape.accelerator),
        "head_config": _machine(shape, shape.head_instance, spot=False),
        "cpu_config": _machine(shape, shape.cpu_instance, spot=shape.spot),
        "gpu_config": _machine(shape, shape.gpu_instance, spot=shape.spot),
    }
    files = {"aws.yaml": _filled("aws.yaml", values), "Containerfile": _text("Containerfile")}
    return Rendered(files=files, following="ray up aws.yaml", token=True)


def _kuberay_values(shape: KubeRay) -> dict[str, Any]:
    # Kueue admits a cluster as a whole: its nodes are there from the start, and Ray's autoscaler must stay out of it.
    queued = bool(shape.queue)
    spot = [_toleration(taint) for taint in shape.spot_taints]
    return {
        "name": shape.name,
        "namespace": shape.namespace,
        "service_account": shape.service_account,
        "object_labels": OURS | ({QUEUE_LABEL: shape.queue} if queued else {}),
        "labels": OURS,
        "ray_version": metadata.version("ray"),
        "autoscaling": not queued,
        "idle_s": shape.idle_s,
        "priority": shape.priority or None,
        "grace_s": shape.grace_s,
        "image": shape.image,
        # A pod that is taken away tells Ray so, and trainings save: until then, but not longer, Ray waits.
        "env": [
            {"name": name, "value": value}
            for name, value in {**ENVIRONMENT, DRAIN_S: str(shape.checkpoint_s)}.items()
        ],
        "storage": shape.storage,
        "storage_class": shape.storage_class or None,
        "storage_size": f"{shape.storage_gib}Gi",
        "num_cpu_nodes": shape.num_cpu_nodes,
        "num_gpu_nodes": shape.num_gpu_nodes,
        "cpu_replicas": shape.num_cpu_nodes if queued else 0,
        "gpu_replicas": shape.num_gpu_nodes if queued else 0,
        "cpu_min": shape.num_cpu_nodes if queued else 0,
        "gpu_min": shape.num_gpu_nodes if queued else 0,
        "head_resources": _resources(cpus=2, memory_gib=shape.head_memory_gib),
        "cpu_resources": _resources(cpus=shape.cpus_per_node, memory_gib=shape.memory_gib),
        "gpu_resources": _resources(
            cpus=shape.cpus_per_node, memory_gib=shape.memory_gib, gpus=shape.gpus_per_node
        ),
        "gpu_labels": _gpu_labels(shape.accelerator),
        "gpu_selector": dict(shape.gpu_selector) or None,
        "spot_tolerations": spot,
        "gpu_tolerations": [*(_toleration(taint) for taint in shape.gpu_taints), *spot],
        "entrypoint": f"kinoray {shape.command} --address auto",
        "retries": shape.retries,
    }


def _resources(*, cpus: int, memory_gib: int, gpus: int = 0) -> dict[str, Any]:
    """Return limits equal to requests: the kernel's killer then takes nobody else's pod."""
    amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {"limits": amounts, "requests": amounts}


def _toleration(taint: str) -> dict[str, str]:
    return {"key": taint, "operator": "Exists"}


def _gpu_labels(accelerator: str) -> dict[str, str]:
    return {"kinoray.role": "models"} | ({ACCELERATOR_LABEL: accelerator} if accelerator else {})


def _machine(shape: Aws, instance: str, *, spot: bool) -> dict[str, Any]:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": shape.disk_gib, "VolumeType": "gp3"}}
    market = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
    return {"InstanceType": instance, "BlockDeviceMappings": [disk]} | market


def _filled(name: str, values: Mapping[str, Any]) -> str:
    return _replaced(_text(name), values, _yaml)


def _yaml(value: Any) -> str:
    """Return `value` as JSON that is YAML too: JSON's pairs of surrogates and raw control characters are not."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", text)


def _replaced(text: str, values: Mapping[str, Any], write: Any) -> str:
    """Return `text` with its values; `spec` is a text of several lines that goes in at the line's own depth."""
    lines = []
    for line in text.splitlines():
        if line.strip() == "$spec":
            lines.append(textwrap.indent(values["spec"], line[: -len("$spec")]).rstrip("\n"))
            continue
        asked = re.findall(r"(?<!\$)\$([a-z_]+)", line)
        if not any(values[name] is None for name in asked):
            lines.append(Template(line).substitute({name: write(values[name]) for name in asked}))
    return "\n".join(lines) + "\n"


def _text(name: str) -> str:
    return (resources.files("cluster") / "templates" / name).read_text(encoding="utf-8")
