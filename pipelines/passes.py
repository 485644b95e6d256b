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
    before it has a caption for. Embeddings that the stage needs are those of `vectors`. With
    `call_timeout_s` a recipe sets the limit of a call; 0 leaves it to the stage's needs.
    """

    table: TableName
    make: Callable[[], Any]
    stage: Any
    rank: int = 0
    clean: Clean | None = None
    chained: bool = False
    vectors: "Pass | None" = None
    call_timeout_s: float = 0.0

    @property
    def producer(self) -> str:
        """Who says so."""
        return producer_of(self.stage)

    @property
    def settings(self) -> str:
        """The digest of all that decides what is stored, beside the clip."""
        clean = {"clean": self.clean.digest()} if self.clean else {}
        return settings_digest(self.stage, clean | self._more())

    @property
    def asked(self) -> str:
        """The digest of all that decides the answers, before any clean-up of theirs."""
        return settings_digest(self.stage, self._more())

    def _more(self) -> dict[str, str]:
        more: dict[str, str] = {}
        if needs_of(self.stage).frames:  # how many it is shown decides what it says
            more["frames"] = str(needs_of(self.stage).frames)
        if self.vectors is not None:  # and so do the vectors that it reads
            more["vectors"] = self.vectors.settings
        return more
