"""The short form of the dataset's kill campaign; hundreds of kills run under `make faults`."""

import pytest
from deltalake import DeltaTable, write_deltalake

from tests.faults.writers import POINTS, Campaign, recipes


@pytest.mark.parametrize("place", ["folder", "store"])
def test_writers_killed_at_any_point_lose_and_double_nothing(place, tmp_path, request):
    name = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    slots, units = (8, 8) if place == "folder" else (3, 4)
    campaign = Campaign(f"{name}/dataset", recipes(slots, units, rivals=slots // 2), chance=0.02)
    campaign.run(limit_s=200)
    assert campaign.kills.total() >= 3
    assert {kill.split()[1] for kill in campaign.kills} <= set(POINTS)
    campaign.check()


def test_the_check_notices_what_is_doubled_or_missing(tmp_path):
    """Negative control: rows that did not go through the protocol."""
    campaign = Campaign(f"{tmp_path}/dataset", recipes(1, 4, rivals=0), chance=0)
    campaign.run(limit_s=60)
    campaign.check()
    campaign.recipes[0][1].append("never written")
    with pytest.raises(AssertionError):
        campaign.check()
    campaign.recipes[0][1].pop()
    ledger = tmp_path / "dataset" / "ledger"
    write_deltalake(ledger, DeltaTable(ledger).to_pyarrow_table().slice(0, 2), mode="append")
    with pytest.raises(AssertionError):
        campaign.check()
