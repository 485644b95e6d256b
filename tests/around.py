"""What a run is given beside its recipe, for tests that call a pipeline's parts."""

from dataclasses import dataclass, field

from cluster.interrupt import Interrupt
from cluster.session import Cluster
from pipelines.context import Context, silent


@dataclass
class Heard:
    """What a run says, kept."""

    stages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, done: int, total: int, *, stage: str = "", text: str = "") -> None:
        pass


def surroundings(*, ray_is_open: bool = True, cluster: Cluster | None = None) -> Context:
    """A context without a tracker; `ray_is_open` when a session is open already."""
    return Context(
        cluster=cluster or Cluster(),
        tracker=None,
        stop=Interrupt(),
        show=silent,
        resume=True,
        _started=[True] if ray_is_open else [],
    )
