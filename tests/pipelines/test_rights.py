"""What a listing says of licence and consent: stated once of each content, and never against a later word."""

import pytest

from ingest.annotate import annotate_file
from ingest.ledger import Unit
from ingest.select import Selection
from ingest.source import Said, Source
from ingest.store import Dataset
from pipelines import rights
from tests.ingest.made import digest
from tests.pipelines.made_clips import Heard, made_clips


@pytest.fixture
def dataset(tmp_path):
    return made_clips(tmp_path / "dataset", tmp_path / "videos", clips=1, frames=16)


def unit(number, *, copy="", **said):
    source = Source(uri=f"/videos/{number}{copy}", bytes=0, mtime_ns=0, said=Said(**said))
    return Unit(unit_id=f"{number}{copy}", source=source, source_sha256=digest(f"source {number}"))


def held(dataset):
    """Return licence and consent of each source, in their order."""
    rows = Dataset.open(dataset.root).kept_clips().to_pylist()
    by_source = {row["source_sha256"]: (row["licence"], row["consent"]) for row in rows}
    return [by_source[digest(f"source {number}")] for number in range(3)]


def test_what_is_said_is_held_and_said_once(dataset):
    listed = [unit(0, licence="cc0", consent="given"), unit(1, consent="refused"), unit(2)]
    assert rights.state(dataset, listed, Heard()) == 2
    assert held(dataset) == [("cc0", "given"), ("", "refused"), ("", "")]
    allowed = dataset.select(Selection(licences=("cc0",), consents=("given",)))
    assert allowed.column("source_sha256").to_pylist() == [digest("source 0")]
    assert rights.state(dataset, listed, Heard()) == 0
    assert rights.state(dataset, [unit(0), unit(1), unit(2)], Heard()) == 0
    assert held(dataset) == [("cc0", "given"), ("", "refused"), ("", "")]
    listed[0] = unit(0, licence="cc-by-4.0")
    before = dataset.annotation("rights").to_pylist()
    assert rights.state(dataset, listed, Heard()) == 1
    assert held(dataset) == [("cc-by-4.0", "given"), ("", "refused"), ("", "")]
    after = dataset.annotation("rights").to_pylist()
    assert all(row in after for row in before)
    assert {row["source_sha256"] for row in after if row not in before} == {digest("source 0")}


def test_a_later_word_of_somebody_else_holds_until_the_listing_says_something_new(
    dataset, tmp_path
):
    table = tmp_path / "rights.csv"

    def stated(consent):
        table.write_text(f"source_sha256,consent\n{digest('source 0')},{consent}\n")
        annotate_file(dataset, table, name="rights")

    rights.state(dataset, [unit(0, consent="given")], Heard())
    stated("refused")
    assert rights.state(dataset, [unit(0, consent="given")], Heard()) == 0
    assert held(dataset)[0] == ("", "refused")
    assert rights.state(dataset, [unit(0, licence="cc0")], Heard()) == 1
    assert held(dataset)[0] == ("cc0", "refused")
    stated("given")
    # It repeats here what held when it last spoke, and is heard all the same: it never said so itself.
    assert rights.state(dataset, [unit(0, licence="cc0", consent="refused")], Heard()) == 1
    assert held(dataset)[0] == ("cc0", "refused")


def test_copies_that_contradict_each_other_allow_nothing(dataset):
    heard = Heard()
    listed = [
        unit(0, consent="given", licence="cc0"), unit(0, copy=" copy", consent="refused"),
        unit(1, licence="cc0"), unit(1, copy=" copy", licence="cc-by-4.0"),
        unit(2, licence="cc0"), unit(2, copy=" copy", consent="given"),
    ]  # fmt: skip
    rights.state(dataset, listed, heard)
    assert held(dataset) == [("cc0", "refused"), ("", ""), ("cc0", "given")]
    (warning,) = heard.warnings
    assert "2 contents with two statements" in warning
    assert "/videos/1 and /videos/1 copy" in warning
