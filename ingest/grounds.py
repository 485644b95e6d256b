"""Where a dataset may be made: an absent or empty folder or prefix, in a place that keeps commits."""

from pathlib import Path

from ingest.files import storage_error
from ingest.objects import Root

KNOWN_NAMES = frozenset(("ledger", "annotations", "data", "views", "runs", "tags", "log"))


class NotADataset(ValueError):
    """The folder is not a dataset, or not one that this version can read."""

    exit_code = 2


def prepare(root: Root) -> None:
    """Refuse strangers, make the folder, and prove that a store keeps what commits rest on."""
    if not root.is_local:
        root.self_test()
        return
    try:
        _refuse_strangers(root.path)
        root.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, root.uri) from error


def _refuse_strangers(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise NotADataset(f"{root}: is a file; name a folder for the dataset")
    found = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    strangers = [name for name in found if name not in KNOWN_NAMES]
    if strangers:
        raise NotADataset(
            f"{root}: holds other files ({', '.join(strangers[:3])}); name another output folder"
        )
