"""Which clips: a condition, a side of the split, and what the rights allow."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

SPLIT_DIGITS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """A choice of clips, as data; the default is every kept clip.

    `where` is an SQL condition over the columns of `clips` (see `kinoray dataset query`). The split
    goes by the hash of the source, so that no source is on both sides; a bigger `val_share` only
    adds sources to `val`. With `licences` or `consents`, only clips whose source has one of these
    are taken: what nobody has stated is not allowed.
    """

    where: str = ""
    split: Literal["all", "train", "val"] = "all"
    val_share: float = 0.1
    licences: tuple[str, ...] = ()
    consents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the share and the form of the condition; what it means is checked by the engine."""
        if not 0.0 <= self.val_share <= 1.0:
            raise ValueError(f"val_share={self.val_share}: must be between 0 and 1")
        if ";" in self.where:
            raise ValueError("where: one condition, without ';'")

    def guards(self) -> list[str]:
        """Return the SQL conditions that the split and the rights add to `where`."""
        found: list[str] = []
        if self.split != "all":
            # Both are hexadecimal text of equal length, so their order is that of the numbers.
            bound = round(self.val_share * 16**SPLIT_DIGITS)
            side = f"substr(source_sha256, 1, {SPLIT_DIGITS}) < '{bound:0{SPLIT_DIGITS}x}'"
            inside = "true" if bound >= 16**SPLIT_DIGITS else side
            found.append(f"({inside})" if self.split == "val" else f"(NOT ({inside}))")
        for column, allowed in (("licence", self.licences), ("consent", self.consents)):
            if allowed:
                found.append(f"{column} IN ({', '.join(_quoted(word) for word in allowed)})")
        return found

    def plain(self) -> dict[str, Any]:
        """Return the selection as plain values."""
        return asdict(self)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"
