"""Provenance of scores: judge, dates, prompts, and the settings of the generated images."""

from __future__ import annotations

import json
from typing import Any

from scone_pl.evaluation.groups import Records


def provenance(records: Records) -> dict[str, Any]:
    """Provenance as stored in the records; missing parts are empty.

    Returns:
        `models` (requested), `answered_by`, `prompts` (see `Template.identity`), `dates` (first and last answer, UTC),
        `generation` (settings of the images, each with the `rounds` that share them).
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
        settings = record.get("generation")
        if isinstance(settings, dict) and settings:
            common = json.dumps({name: value for name, value in settings.items() if name != "round"}, sort_keys=True)
            rounds.setdefault(common, set()).add(record["sampling"])
    return [
        {**json.loads(common), "rounds": sorted(rounds_of_settings)} for common, rounds_of_settings in rounds.items()
    ]
