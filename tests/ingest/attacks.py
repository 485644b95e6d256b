"""What tests of files that mean harm share."""

from ingest.clip import Prep

SHORT = Prep(decode_timeout_s=30.0, stall_timeout_s=10.0)


def only(result):
    """Return the fate, the rule or class of error, and the message of a unit's first row."""
    row = result.rows.to_pylist()[0]
    return row["fate"], row["rule"] or row["error_class"], row["message"] or ""
