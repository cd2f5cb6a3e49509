"""The benchmarks: a package each; see `scone_pl.evaluation.benchmark` and docs/new_benchmark.md."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from functools import cache

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark


def names() -> list[str]:
    """Names of the packages in here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


@cache
def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name, or by the name of a module that holds a `BENCHMARK`.

    Raises:
        UserError: there is none.
    """
    if name in names():
        return importlib.import_module(f"{__name__}.{name}").BENCHMARK  # type: ignore[no-any-return]  # by convention a Benchmark
    parts = name.split(".")
    if all(part.isidentifier() for part in parts) and importlib.util.find_spec(parts[0]) is not None:
        try:
            found = getattr(importlib.import_module(name), "BENCHMARK", None)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            found = None
        if isinstance(found, Benchmark):
            return found
    close = difflib.get_close_matches(name, names(), n=1)
    advice = f"did you mean {close[0]}?" if close else f"one of {', '.join(names())}, or a module with a BENCHMARK"
    raise UserError(f"--benchmark {name}: no such benchmark; {advice}")


def all_benchmarks() -> dict[str, Benchmark]:
    """Name -> each of the package's benchmarks."""
    return {name: find_benchmark(name) for name in names()}
