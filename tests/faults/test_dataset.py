"""The dataset's campaign: eight writers, hundreds of SIGKILLs at named points, in a folder and in an S3 store."""

import pytest

from tests.faults.writers import Campaign, recipes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
# The store answers one request at a time, so each of its kills takes several times as long.
KILLS = {"folder": 500, "store": 150}


@pytest.mark.parametrize("place", ["folder", "store"])
@pytest.mark.parametrize("rivals", [0, 4, 8])
def test_hundreds_of_kills_lose_and_double_nothing(place, rivals, tmp_path, request):
    total, units, chance = 0, *((40, 0.01) if place == "folder" else (8, 0.03))
    for number in range(100):
        name = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
        campaign = Campaign(f"{name}/{number}", recipes(8, units, rivals=rivals), chance=chance)
        campaign.run(limit_s=900)
        campaign.check()
        total += campaign.kills.total()
        if total >= KILLS[place] / 3:  # the three mixtures of recipes together make the campaign
            break
    print(f"{place}, {rivals} rivals: {total} kills in {number + 1} datasets")  # noqa: T201
    assert total >= KILLS[place] / 3
