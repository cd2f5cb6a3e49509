"""Python in the documentation runs, with tiny weights and on the CPU."""

from __future__ import annotations

import re

import pytest
from documents import Block, blocks

PYTHON = blocks("python")


@pytest.mark.parametrize("block", [b for b in PYTHON if b.mode == "run"], ids=str)
@pytest.mark.usefixtures("in_sandbox")
def test_snippets_run(block: Block) -> None:
    text = block.text.replace('"cuda"', '"cpu"').replace('"bfloat16"', '"float32"')
    exec(compile(text, str(block), "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_snippets_compile(block: Block) -> None:
    compile(block.text, str(block), "exec")
    exec("\n".join(re.findall(r"^(?:import|from) .*$", block.text, re.MULTILINE)), {})
