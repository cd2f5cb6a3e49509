"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: Collection[int] = (0,)) -> str:
    """A table with aligned columns; `text` are the indices of text columns, the others are right-aligned."""
    widths = [max(3, *(len(row[c]) for row in (heads, *rows))) for c in range(len(heads))]
    lines = [[head.ljust(width) for head, width in zip(heads, widths, strict=True)]]
    lines.append(["-" * w if c in text else "-" * (w - 1) + ":" for c, w in enumerate(widths)])
    lines += [
        [cell.ljust(w) if c in text else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
