"""What a cluster is to be: the keys of `kinoray cluster render`, one dataclass a kind, with every problem told at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cluster import plain_words as words

VERBS = ("run", "curate", "train", "sample", "evaluate")
# Ray's nodes need some time to end after the last checkpoint is written.
ENDING_S = 60
# ... and Slurm's some more: it looks at its clocks once a minute.
REQUEUE_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class KubeRay:
    """A cluster on Kubernetes, through KubeRay 1.6 or newer.

    Decoding runs on `num_cpu_nodes` pods, models on `num_gpu_nodes`; without a `queue` these are the most there may be, and
    the autoscaler starts and ends them; with one (a local queue of Kueue's) they are admitted together and stay. `image` has
    Kinoray in it, `storage` is a claim that all pods mount at /storage. `command` adds a job with a cluster of its own.
    """

    name: str = "kinoray"
    namespace: str = "kinoray"
    service_account: str = "kinoray"
    image: str
    command: str = ""
    retries: int = 3
    num_cpu_nodes: int = 4
    num_gpu_nodes: int = 2
    cpus_per_node: int = 8
    gpus_per_node: int = 1
    memory_gib: int = 32
    head_memory_gib: int = 8
    accelerator: str = ""
    gpu_selector: Mapping[str, str] = field(default_factory=dict)
    gpu_taints: tuple[str, ...] = ("nvidia.com/gpu",)
    spot_taints: tuple[str, ...] = ("cloud.google.com/gke-spot",)
    storage: str = "kinoray-storage"
    storage_class: str = ""
    storage_gib: int = 500
    queue: str = ""
    priority: str = ""
    checkpoint_s: int = 180
    idle_s: int = 300

    def __post_init__(self) -> None:
        """Refuse what could not be applied, or could be read as something else."""
        words.found(self._problems())

    def _problems(self) -> Iterator[str]:
        for key in ("name", "namespace", "service_account", "storage"):
            yield words.dns(key, getattr(self, key))
        yield words.image("image", self.image)
        if self.command:
            yield words.command("command", self.command, VERBS)
        for key in ("accelerator", "queue", "priority", "storage_class"):
            yield words.name(key, getattr(self, key), empty=True)
        for key in ("gpu_taints", "spot_taints"):
            yield from (words.label_key(key, taint) for taint in getattr(self, key))
        for label, value in self.gpu_selector.items():
            yield words.label_key("gpu_selector", label)
            yield words.name(f"gpu_selector.{label}", value)
        for key in ("num_cpu_nodes", "num_gpu_nodes", "gpus_per_node", "retries"):
            yield words.count(key, getattr(self, key), 0)
        for key in (
            "cpus_per_node",
            "memory_gib",
            "head_memory_gib",
            "storage_gib",
            "checkpoint_s",
            "idle_s",
        ):
            yield words.count(key, getattr(self, key), 1)
        yield _workers(self.num_cpu_nodes, self.num_gpu_nodes)

    @property
    def grace_s(self) -> int:
        """Return how long a pod may take to end: longer than a checkpoint."""
        return self.checkpoint_s + ENDING_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Slurm:
    """A batch job that starts a cluster on its nodes, runs `command` in it, and is queued again before its time is over.

    `storage` is a folder that all nodes share, `venv` the environment with Kinoray in it (on a path that all nodes share).
    """

    name: str = "kinoray"
    command: str
    storage: str
    venv: str
    num_nodes: int = 2
    cpus_per_node: int = 8
    gpus_per_node: int = 0
    accelerator: str = ""
    partition: str = ""
    account: str = ""
    queue: str = ""
    time_limit: str = "04:00:00"
    checkpoint_s: int = 180
    port: int = 6379

    def __post_init__(self) -> None:
        """Refuse what could not be run, or could be read as something else."""
        words.found(self._problems())

    def _problems(self) -> Iterator[str]:
        yield words.name("name", self.name)
        yield words.command("command", self.command, VERBS)
        yield words.path("storage", self.storage)
        yield words.path("venv", self.venv)
        for key in ("accelerator", "partition", "account", "queue"):
            yield words.name(key, getattr(self, key), empty=True)
        for key in ("num_nodes", "cpus_per_node", "checkpoint_s"):
            yield words.count(key, getattr(self, key), 1)
        yield words.count("gpus_per_node", self.gpus_per_node, 0)
        if not words.LIMIT.fullmatch(self.time_limit):
            yield f"time_limit: {self.time_limit!r} must be [days-]hours:minutes[:seconds]"
        elif _limit_s(self.time_limit) <= 2 * self.notice_s:
            yield f"time_limit: {self.time_limit} must be longer than twice the {self.notice_s} s before its end"
        if not 1024 <= self.port <= 65535:
            yield f"port: {self.port} must lie in 1024..65535"

    @property
    def notice_s(self) -> int:
        """Return how long before the time limit the job is told to save and be queued again."""
        return self.checkpoint_s + REQUEUE_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Aws:
    """A cluster on EC2 through `ray up`: the head, and up to so many spot nodes as there is work for.

    `storage` is an EFS file system (fs-...) that is mounted at /storage on every node, in the containers too.
    """

    name: str = "kinoray"
    image: str
    region: str
    storage: str
    num_cpu_nodes: int = 4
    num_gpu_nodes: int = 2
    cpus_per_node: int = 8
    gpus_per_node: int = 1
    head_instance: str = "m7i.xlarge"
    cpu_instance: str = "m7i.2xlarge"
    gpu_instance: str = "g6.2xlarge"
    accelerator: str = "L4"
    spot: bool = True
    disk_gib: int = 200
    ssh_user: str = "ubuntu"
    idle_minutes: int = 5

    def __post_init__(self) -> None:
        """Refuse what could not be started, or could be read as something else."""
        words.found(self._problems())

    def _problems(self) -> Iterator[str]:
        yield words.dns("name", self.name)
        yield words.image("image", self.image)
        for key in (
            "region",
            "storage",
            "head_instance",
            "cpu_instance",
            "gpu_instance",
            "ssh_user",
        ):
            yield words.name(key, getattr(self, key))
        yield words.name("accelerator", self.accelerator, empty=True)
        for key in ("num_cpu_nodes", "num_gpu_nodes", "gpus_per_node"):
            yield words.count(key, getattr(self, key), 0)
        for key in ("cpus_per_node", "disk_gib", "idle_minutes"):
            yield words.count(key, getattr(self, key), 1)
        yield _workers(self.num_cpu_nodes, self.num_gpu_nodes)


def _workers(cpu_nodes: int, gpu_nodes: int) -> str:
    return (
        ""
        if cpu_nodes + gpu_nodes > 0
        else "num_cpu_nodes, num_gpu_nodes: at least one node must work"
    )


def _limit_s(text: str) -> int:
    days, _, clock = text.rpartition("-")
    hours, minutes, *seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + sum(seconds)
