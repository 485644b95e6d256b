"""A pass: one stage over kept clips, and the annotation that its answers go to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ingest.caption_clean import Clean
from ingest.stage import needs_of, producer_of, settings_digest

TableName = Literal["captions", "labels", "scores", "embeddings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A stage over kept clips, and the annotation that its answers go to.

    `make` constructs the stage (in each worker; it must pickle unless the stage is inline), `stage` is
    the driver's own. A pass of captions that is `chained` is asked for clips that no chained one
    before it has a caption for. Embeddings that the stage needs are those of `vectors`.
    """

    table: TableName
    make: Callable[[], Any]
    stage: Any
    rank: int = 0
    clean: Clean | None = None
    chained: bool = False
    vectors: "Pass | None" = None

    @property
    def producer(self) -> str:
        """Who says so."""
        return producer_of(self.stage)

    @property
    def settings(self) -> str:
        """The digest of all that decides the answers beside the clip."""
        more: dict[str, str] = {"clean": self.clean.digest()} if self.clean else {}
        if needs_of(self.stage).frames:  # how many it is shown decides what it says
            more["frames"] = str(needs_of(self.stage).frames)
        if self.vectors is not None:
            more["vectors"] = self.vectors.settings
        return settings_digest(self.stage, more)
