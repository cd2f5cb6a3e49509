"""Conditions on the result, such as `SC.spearman>=0.6`, for continuous integration."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.agreement.compare import POOLED
from scone_pl.evaluation.agreement.statistics import STATISTICS

_FORM = re.compile(
    r"\s*(?:(?P<task>[\w -]+)/)?(?P<column>[\w -]+)\.(?P<statistic>\w+)"
    r"\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>[-+.\deE]+)\s*"
)
_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Requirement:
    """One condition."""

    text: str
    task: str
    """Empty = all tasks pooled."""
    column: str
    statistic: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """From `[TASK/]COLUMN.STATISTIC>=NUMBER`.

        Raises:
            UserError: another form, or an unknown statistic.
        """
        match = _FORM.fullmatch(text)
        try:
            limit = float(match["limit"]) if match else 0.0
        except ValueError:
            match = None
        if match is None:
            raise UserError(f"--require {text!r:.60}: must look like 'SC.spearman>=0.6' or 'TASK/SC.bias<1'")
        if match["statistic"] not in STATISTICS:
            raise UserError(
                f"--require {text!r:.60}: no statistic {match['statistic']}; one of {', '.join(STATISTICS)}"
            )
        return cls(text.strip(), match["task"] or "", match["column"], match["statistic"], match["sign"], limit)

    def failure(self, result: Mapping[str, Any]) -> str | None:
        """The reason if the result does not meet it.

        Raises:
            UserError: the result has no such column or task.
        """
        columns = result["columns"]
        if self.column not in columns:
            raise UserError(f"--require {self.text}: no column {self.column}; there are {', '.join(columns)}")
        tasks = columns[self.column]["tasks"]
        name = self.task or (POOLED if POOLED in tasks else next(iter(tasks)))
        if name not in tasks:
            raise UserError(f"--require {self.text}: no task {name}; there are {', '.join(tasks)}")
        value = tasks[name][self.statistic]
        if value is None:
            return f"{self.text} fails: not defined ({tasks[name]['why'] or 'no value'})"
        if not _SIGNS[self.sign](value, self.limit):
            return f"{self.text} fails: it is {value:.3f}"
        return None


def failures(requirements: Sequence[Requirement], result: Mapping[str, Any]) -> list[str]:
    """Reasons of all that fail."""
    return [reason for one in requirements if (reason := one.failure(result))]
