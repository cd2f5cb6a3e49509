"""Conditions on numbers of a row, such as `vlm_filter_cot.score_final >= 3.5`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scone_pl.data.fields import look_up
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|==|!=|>|<)\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Condition:
    """A field, an operator and a number."""

    field: str
    operator: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parses `FIELD OPERATOR NUMBER`.

        Raises:
            UserError: it is something else.
        """
        match = _CONDITION.fullmatch(text) if isinstance(text, str) else None
        try:
            number = float(match[3]) if match else math.nan
        except ValueError:
            number = math.nan
        if match is None or not math.isfinite(number):
            raise UserError(f"where {text!r}: must look like 'vlm_filter_cot.score_final >= 3.5'")
        return cls(match[1], match[2], number)

    def __str__(self) -> str:
        return f"{self.field} {self.operator} {self.number:g}"

    def check(self, row: Mapping[str, Any]) -> None:
        """Checks a row.

        Raises:
            BrokenSampleError: the condition does not hold, or the field is no number.
        """
        value = look_up(row, self.field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BrokenSampleError(f"no number {self.field}", f"{self.field} is {value!r:.60}")
        if not _OPERATORS[self.operator](value, self.number):
            raise BrokenSampleError(f"not {self}", f"{self.field} is {value}")
