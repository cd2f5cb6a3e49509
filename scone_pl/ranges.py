"""Numbers from command lines, recipes and callers, checked against their range before anything uses them.

Comparisons alone do not do that: NaN is neither below nor above anything, and infinity is above everything.
"""

from __future__ import annotations

import math
import numbers

from scone_pl.errors import UserError

LARGEST = 2**63 - 1
"""Largest whole number that numpy, torch and file formats take."""


def check_whole(name: str, value: object, *, minimum: int = 0, maximum: int = LARGEST) -> None:
    """Checks a whole number.

    Args:
        name: option, key or argument, for the message.
        value: to be checked; bools are refused.
        minimum: smallest allowed value.
        maximum: largest allowed value.

    Raises:
        UserError: `value` is not a whole number from `minimum` to `maximum`.
    """
    whole = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if whole is None or not minimum <= whole <= maximum:
        limits = f"at least {minimum}" if maximum == LARGEST else f"from {minimum} to {maximum}"
        raise UserError(f"{name} is {_shown(value)}; it must be a whole number, {limits}")


def check_number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> None:
    """Checks a number.

    Args:
        name: option, key or argument, for the message.
        value: to be checked; bools, NaN and infinities are refused.
        minimum: smallest allowed value.
        above: `value` must exceed this.
        maximum: largest allowed value.
        below: `value` must be smaller than this.

    Raises:
        UserError: `value` is not a finite number within these limits.
    """
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if (
        not fits
        or (minimum is not None and not value >= minimum)  # type: ignore[operator]  # any number
        or (above is not None and not value > above)  # type: ignore[operator]  # any number
        or (maximum is not None and not value <= maximum)  # type: ignore[operator]  # any number
        or (below is not None and not value < below)  # type: ignore[operator]  # any number
    ):
        limits = {"at least": minimum, "more than": above, "at most": maximum, "less than": below}
        words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
        raise UserError(f"{name} is {_shown(value)}; it must be a finite number{', ' if words else ''}{words}")


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an int beyond every float
        return False


def _shown(value: object) -> str:
    """A value for a message; Python writes no int of more than 4300 digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
    return f"{value!r:.80}" if isinstance(value, str) else f"{value!s:.80}"
