"""`python -m scone_pl VERB ...`: one command, a verb for each job."""

from __future__ import annotations

import importlib
import sys
import warnings

from scone_pl.errors import UserError

VERBS = {
    "fit": ("scone_pl.cli", "train a stage, or a chain of stages"),
    "validate": ("scone_pl.cli", "loss on the validation data"),
    "test": ("scone_pl.cli", "loss on the test data"),
    "predict": ("scone_pl.cli", "generate a picture for every sample of the prediction data"),
    "export": ("scone_pl.export", "a run's weights as a checkpoint folder in the published layout"),
    "estimate": ("scone_pl.estimate.commands", "memory, time and cost of a recipe on named GPUs"),
    "generate": ("scone_pl.generation.commands", "one picture from reference images and an instruction"),
    "evaluate": ("scone_pl.evaluation.commands", "SconeEval or OmniContext: generate, judge, tables"),
    "judge": ("scone_pl.evaluation.commands", "have a benchmark's pictures judged"),
    "tables": ("scone_pl.evaluation.commands", "tables of judged pictures beside the paper's"),
    "shards": ("scone_pl.data.commands", "convert, verify and describe data sets"),
    "layers": ("scone_pl.layers.commands", "which decoder layer the bridge should read, with and without labels"),
    "parity": ("scone_pl.parity", "compare with numbers that the published implementation computed"),
    "mini": ("scone_pl.mini.commands", "the mini-world: shards, base weights, exact evaluation, pictures"),
}
SHARED = ("fit", "validate", "test", "predict", "evaluate", "judge", "tables")
"""Verbs that share a module with others: it is told which."""


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(["usage: python -m scone_pl VERB [--help] ...", "", *lines])


def _user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` that an exception is or was caused by: jsonargparse wraps what a constructor raises."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, UserError):
        found = found.__cause__ or found.__context__
    if found is None and type(error).__name__ in ("MisconfigurationException", "FileNotFoundError"):
        return UserError(str(error))  # Lightning's own words: no GPU, no such strategy, no such ckpt_path
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; mistakes that the user can put right end in one line and status 2."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb = args[0]
    if verb not in VERBS:
        print(f"error: no verb {verb}; one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", module="lightning")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        module = importlib.import_module(VERBS[verb][0])
        return module.main(args if verb in SHARED else args[1:])
    except Exception as error:
        meant = _user_error(error)
        if meant is None:
            raise
        print(f"error: {' '.join(str(meant).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
