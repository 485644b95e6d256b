"""`python -m jobs`: maps what went wrong to one line and an exit code, and nothing else."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence

OURS = ("jobs", "pipelines", "ingest", "models", "cluster")
DONE, FAILED, USAGE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # Read by Ray when it is imported: no worker through uv with an environment of its own.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    argv = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_guarded(argv))


def _guarded(argv: list[str]) -> int:
    import click

    from jobs.cli import kinoray

    try:
        code = kinoray.main(args=argv, prog_name="kinoray", standalone_mode=False)
    except click.ClickException as error:
        return _say(argv, error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _say(argv, "stopped at once; next: the same command again continues", INTERRUPTED)
    except Exception as error:  # noqa: BLE001  the outermost border: every failure becomes one line and a code
        if "--debug" in argv:
            traceback.print_exc()
        return _say(argv, *_explain(error))
    return code if isinstance(code, int) else DONE


def _explain(error: Exception) -> tuple[str, int]:
    """Return the line and the exit code for `error`; classes that know their code carry it as `exit_code`."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error), code
    if isinstance(error, FileNotFoundError):
        return _file_line(error), USAGE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" at {error.filename}" if error.filename else ""
        return (
            f"the disk is full{where}; next: free space, then the same command again continues",
            FAILED,
        )
    if isinstance(error, (ValueError, OSError)) or type(error).__module__.partition(".")[0] in OURS:
        return str(error), FAILED
    return (
        f"{type(error).__name__}: {error}; next: the same command with --debug shows where",
        FAILED,
    )


def _file_line(error: FileNotFoundError) -> str:
    return f"{error.filename}: no such file" if error.filename else str(error)


def _say(argv: list[str], line: str, code: int) -> int:
    from jobs import render

    render.error(line, code=code, as_json="--json" in argv)
    return code


if __name__ == "__main__":
    main()
