"""Reader of MultiBanana's published layout: `TASK/NNN_prompt.txt` with references `TASK/NNN_0.jpg`, `NNN_1.jpg`, ..."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scone_pl.errors import UserError
from scone_pl.evaluation.items import Item
from scone_pl.files import read_json, read_text
from scone_pl.messages import warn

TWO = ("add", "replace", "background", "color", "material", "pose", "hair", "makeup", "tone", "style", "text")
STRUCTURES = ("local", "global", "back", "object")
NUMBERS = (3, 4, 5, 6, 7, 8)
TASKS = ("single", *TWO, *(f"{n}_{structure}" for n in NUMBERS for structure in STRUCTURES))
SOURCES = "from_where.csv"
"""Which references are real and which synthetic."""
_PROMPT = re.compile(r"(\d{1,9})_prompt\.txt")
_REFERENCE = re.compile(r"(\d{1,9})_(\d{1,3})\.(?:jpe?g|png|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class MultiBananaItem(Item):
    """One set."""

    difficulty: tuple[str, ...] = ()
    """Categories of `types.json`: domain, scale, rare, ling, font."""


def references_of(task: str) -> int:
    """Number of references of a task's sets."""
    return 1 if task == "single" else 2 if task in TWO else int(task.partition("_")[0])


def read_sets(root: Path) -> Iterator[MultiBananaItem]:
    """All sets below a folder, by task and number; numbers may have gaps, tasks without a folder are left out.

    Raises:
        UserError: names the file: a reference or prompt that is missing, one too many, an invalid `types.json`; or no
            set at all.
    """
    found = False
    for task in TASKS:
        if (root / task).is_dir():
            for item in _sets(root / task, task):
                found = True
                yield item
    if not found:
        raise UserError(f"{root}: no TASK/NNN_prompt.txt of MultiBanana; its tasks are {', '.join(TASKS)}")


def _sets(folder: Path, task: str) -> Iterator[MultiBananaItem]:
    prompts: dict[str, Path] = {}
    references: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := _PROMPT.fullmatch(file.name):
            prompts[match[1]] = file
        elif match := _REFERENCE.fullmatch(file.name):
            images = references.setdefault(match[1], {})
            if int(match[2]) in images:
                raise UserError(f"{file}: the same reference as {images[int(match[2])].name}")
            images[int(match[2])] = file
    if orphans := sorted(set(references) - set(prompts)):
        raise UserError(f"{folder}: {orphans[0]}_prompt.txt is missing, but the set has references")
    difficulties = _difficulties(folder, set(prompts))
    count = references_of(task)
    for name in sorted(prompts, key=int):
        images = references.get(name, {})
        if missing := [i for i in range(count) if i not in images]:
            raise UserError(f"{folder}: reference {name}_{missing[0]}.jpg is missing; sets of {task} have {count}")
        if more := sorted(set(images) - set(range(count))):
            raise UserError(f"{images[more[0]]}: one reference too many; sets of {task} have {count}, from 0")
        instruction = read_text(prompts[name]).strip()
        if not instruction:
            raise UserError(f"{prompts[name]}: is empty")
        yield MultiBananaItem(
            key=name,
            task_type=task,
            instruction=instruction,
            images=tuple(images[i] for i in range(count)),
            difficulty=difficulties.get(name, ()),
        )


def _difficulties(folder: Path, names: set[str]) -> dict[str, tuple[str, ...]]:
    """`types.json`: number of a set -> its category or categories."""
    by_number = {int(name): name for name in sorted(names)}
    if len(by_number) < len(names):
        twice = min(name for name in names if by_number[int(name)] != name)
        raise UserError(f"{folder}: the sets {twice} and {by_number[int(twice)]} have the same number")
    file = folder / "types.json"
    if not file.exists():
        return {}
    result: dict[str, tuple[str, ...]] = {}
    unknown = []
    for number, value in read_json(file, dict).items():
        categories = [value] if isinstance(value, str) else value
        if not isinstance(categories, list) or not all(isinstance(one, str) and one for one in categories):
            raise UserError(
                f"{file}: {number!r:.40} must have a category (domain, scale, rare, ling, font) or several; without "
                "the file nothing is missing but the table of difficulties"
            )
        name = by_number.get(int(number)) if re.fullmatch(r"[0-9]{1,9}", number) else None
        if name is None:
            unknown.append(number)
        else:
            result[name] = tuple(dict.fromkeys(categories))
    if unknown:
        number_of = f"{len(unknown)} entries, such as {unknown[0]!r:.40}, belong"
        warn(f"{file}: {number_of if len(unknown) > 1 else f'the entry {unknown[0]!r:.40} belongs'} to no set here")
    return result


def side_files(root: Path, items: Sequence[Item]) -> Iterator[str]:
    """What `types.json` and `from_where.csv` hold, in lines.

    Raises:
        UserError: `from_where.csv` is no CSV in UTF-8.
    """
    categories = [item.difficulty for item in items if isinstance(item, MultiBananaItem)]
    counts = Counter(one for several in categories for one in several)
    listed = ", ".join(f"{name!r:.40} {count}" for name, count in sorted(counts.items())) or "none"
    several = sum(len(one) > 1 for one in categories)
    yield f"data: difficulties of types.json: {listed}; {sum(map(bool, categories))} sets have one, {several} several"
    file = root / SOURCES
    if not file.is_file():
        yield f"data: no {SOURCES}, so nothing says which references are real"
        return
    try:
        head, *rows = list(csv.reader(read_text(file).splitlines())) or [[]]
    except csv.Error as error:
        raise UserError(f"{file}: not CSV ({error}); the file is not used, so it can be removed") from None
    columns = []
    for number, name in enumerate(head):
        values = Counter(row[number] for row in rows if len(row) > number)
        few = ": " + ", ".join(f"{value!r:.40} {count}" for value, count in values.most_common())
        columns.append(f"{name!r:.40} ({len(values)} values{few if len(values) <= 8 else ''})")
    yield f"data: {SOURCES} has {len(rows)} rows of {'; '.join(columns) or 'nothing'}; it is not used"
