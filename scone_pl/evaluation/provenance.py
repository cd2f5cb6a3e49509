"""Where numbers come from: who judged, when, with which words, and what drew the pictures."""

from __future__ import annotations

import json
from typing import Any

from scone_pl.evaluation.groups import Records


def provenance(records: Records) -> dict[str, Any]:
    """What the records say of themselves; each part is empty if they do not.

    Returns:
        `models` that were asked, `answered_by`, `prompts` (identities, see `Template.identity`), `dates` (first and
        last answer, UTC), `generation` (settings of the pictures, rounds that share them together under `rounds`).
    """
    judges = [record["judge"] for record in records if isinstance(record.get("judge"), dict)]
    dates = sorted(str(judge["date"]) for judge in judges if judge.get("date"))
    prompts = {str(name) for judge in judges for name in (judge.get("prompts") or {}).values()}
    return {
        "models": sorted({str(judge["model"]) for judge in judges if judge.get("model")}),
        "answered_by": sorted({str(name) for judge in judges for name in judge.get("answered_by") or ()}),
        "prompts": sorted(prompts),
        "dates": [dates[0], dates[-1]] if dates else [],
        "generation": _generation(records),
    }


def _generation(records: Records) -> list[dict[str, Any]]:
    rounds: dict[str, set[int]] = {}
    for record in records:
        made = record.get("generation")
        if isinstance(made, dict) and made:
            common = json.dumps({name: value for name, value in made.items() if name != "round"}, sort_keys=True)
            rounds.setdefault(common, set()).add(record["sampling"])
    return [{**json.loads(common), "rounds": sorted(found)} for common, found in rounds.items()]
