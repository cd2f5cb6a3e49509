"""`python -m scone_pl VERB ...`: one command, a verb for each job."""

from __future__ import annotations

import importlib
import sys

from scone_pl import messages
from scone_pl.cli.failures import USER_ERROR, end_with_line, flush_output, report_threads
from scone_pl.processes import end_with_parent, wait_for_first_rank

INTERRUPTED = 130
VERBS = {
    "fit": ("scone_pl.cli.lightning", "train a stage, or a chain of stages"),
    "validate": ("scone_pl.cli.lightning", "loss on the validation data"),
    "test": ("scone_pl.cli.lightning", "loss on the test data"),
    "predict": ("scone_pl.cli.lightning", "generate a picture for every sample of the prediction data"),
    "export": ("scone_pl.cli.export", "a run's weights as a checkpoint folder in the published layout"),
    "estimate": ("scone_pl.cli.estimate", "memory, time and cost of a recipe on named GPUs"),
    "generate": ("scone_pl.cli.generate", "one picture from reference images and an instruction"),
    "evaluate": ("scone_pl.cli.evaluate", "SconeEval or OmniContext: generate, judge, tables"),
    "judge": ("scone_pl.cli.evaluate", "have a benchmark's pictures judged"),
    "tables": ("scone_pl.cli.evaluate", "tables of judged pictures beside the paper's"),
    "shards": ("scone_pl.cli.shards", "convert, verify and describe data sets"),
    "layers": ("scone_pl.cli.layers", "which decoder layer the bridge should read, with and without labels"),
    "parity": ("scone_pl.cli.parity", "compare with numbers that the published implementation computed"),
    "study": ("scone_pl.cli.study", "a question as a YAML file: arms, seeds, evaluations, intervals, page"),
    "mini": ("scone_pl.cli.mini", "the mini-world: shards, base weights, exact evaluation, pictures"),
}
SHARED = ("fit", "validate", "test", "predict", "evaluate", "judge", "tables")
"""Verbs that share a module with others: it is told which."""


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(["usage: python -m scone_pl VERB [--help] ...", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Runs a verb.

    Returns:
        0; 1 where a verb has counted faults; 2 for what the user can put right, told in one line; 130 after Ctrl-C; 141
        if nobody reads the output any more. 128 plus its number for a signal that has ended a run. A mistake in the
        program is raised, so Python ends with its traceback and status 1.
    """
    report_threads()
    if argv is None:
        end_with_parent()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        return flush_output() or status
    except (SystemExit, GeneratorExit):
        raise
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:  # torch's CheckpointException is no Exception
        wait_for_first_rank()
        ended = end_with_line(error)
        if ended is None:
            raise
        return flush_output() or ended


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb = args[0]
    if verb not in VERBS:
        print(f"error: no verb {verb}; one of {', '.join(VERBS)}", file=sys.stderr)
        return USER_ERROR
    messages.configure()
    from scone_pl.cli.parsing import check_typed  # not for --help alone: jsonargparse takes its time

    check_typed(args[1:])
    module = importlib.import_module(VERBS[verb][0])
    return module.main(args if verb in SHARED else args[1:])


if __name__ == "__main__":
    sys.exit(main())
