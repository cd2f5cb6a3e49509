"""`python -m scone_pl VERB ...`: one command, a verb for each job."""

from __future__ import annotations

import sys

from scone_pl.cli import verbs
from scone_pl.cli.failures import end_with_line, flush_output, report_threads
from scone_pl.processes import end_with_parent, wait_for_first_rank

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs a verb.

    Returns:
        0; 1 where a verb has counted faults; 2 for an error that the user can correct, in one line; 130 after Ctrl-C;
        141 if the reader of the output is gone; 128 plus its number for a signal that has ended a run. A bug is raised,
        so Python ends with its traceback and status 1.
    """
    report_threads()
    if argv is None:
        end_with_parent()
    try:
        status = verbs.run(sys.argv[1:] if argv is None else argv)
        return flush_output() or status
    except (SystemExit, GeneratorExit):
        raise
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:  # torch's CheckpointException is no Exception
        wait_for_first_rank()
        ended = end_with_line(error)
        if ended is None:
            raise
        return flush_output() or ended


if __name__ == "__main__":
    sys.exit(main())
