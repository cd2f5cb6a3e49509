"""The items of a benchmark, and the choice among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.ranges import check_whole

if TYPE_CHECKING:
    from scone_pl.evaluation.benchmark import Benchmark


@dataclass(frozen=True)
class Item:
    """One item of a benchmark; benchmarks with more fields derive from it."""

    key: str
    """Unique within its task."""
    task_type: str
    instruction: str
    images: tuple[Path, ...]
    """Reference images, in order."""
    scene: bool = False
    """Whether a reference shows a scene that must be preserved."""
    case_type: str | None = None
    language: str | None = None
    """`instruction_language` of the line."""
    subjects: tuple[tuple[str, ...], ...] = ()
    """Per reference the descriptions of its candidates; empty if presence is not judged."""
    labels: tuple[tuple[int, ...], ...] = ()
    """Same shape: 1 for targets, 0 for distractors."""

    @property
    def id(self) -> tuple[str, str]:
        """(task, key), unique within the benchmark."""
        return self.task_type, self.key

    @property
    def image_name(self) -> Path:
        """Path of its generated image within a folder of images (docs/benchmarks.md 2)."""
        return Path(self.task_type) / f"{self.key}.png"


def read_items(
    benchmark: Benchmark,
    data: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    language: str | None = None,
    max_references: int | None = None,
    say: Callable[[str], object] | None = None,
) -> list[Item]:
    """Reads a benchmark; all of it is checked, whatever the selection.

    Args:
        benchmark: the benchmark of the data.
        data: in its published layout.
        tasks: only these tasks.
        limit: only the first this many items per task.
        language: only items in this language.
        max_references: only items with at most this many references.
        say: called with each line of what the data hold (`Benchmark.inventory`).

    Raises:
        UserError: see `Benchmark.read`; two items of a task have the same key; an unknown task; nothing is selected.
    """
    if limit is not None:
        check_whole("--limit", limit, minimum=1)
    if max_references is not None:
        check_whole("--max_references", max_references, minimum=1)
    items = benchmark.read(data)
    if (most := Counter(item.id for item in items).most_common(1)) and most[0][1] > 1:
        task, key = most[0][0]
        raise UserError(
            f"{benchmark.data_file(data)}: {key!r:.60} comes {most[0][1]} times in {task}; images are found by it"
        )
    if say:
        for line in benchmark.inventory(data, items):
            say(line)
    chosen = benchmark.check_tasks(tasks) if tasks else benchmark.tasks
    seen: Counter[str] = Counter()
    selected = []
    for item in items:
        few_enough = max_references is None or len(item.images) <= max_references
        if item.task_type in chosen and language in (None, item.language) and few_enough:
            seen[item.task_type] += 1
            if limit is None or seen[item.task_type] <= limit:
                selected.append(item)
    if not selected:
        limits = (f" in language {language}" if language else "") + (
            f" with at most {max_references} references" if max_references else ""
        )
        raise UserError(f"{benchmark.data_file(data)}: no item of {', '.join(chosen)}{limits}")
    left_out = sum(len(item.images) > max_references for item in items) if max_references else 0
    if left_out:
        warn(f"{left_out} of {len(items)} items have more than {max_references} references and are left out")
    return selected
