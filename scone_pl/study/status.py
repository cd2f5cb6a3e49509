"""What a study will run, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scone_pl.checkpoints.folder import is_checkpoint_folder
from scone_pl.errors import UserError
from scone_pl.markdown import markdown_table
from scone_pl.study.run import folder_of, origin_of, result_file, start_of, trained_weights
from scone_pl.study.runner import pairs_of, sources_of
from scone_pl.study.spec import Study


def plan_text(study: Study, seeds: int, arms: Sequence[str] = (), *, quick: bool = False) -> str:
    """All runs of a study, those of other studies that it needs first, and what each arm is."""
    chosen = list(arms) or list(study.arms)
    lines = [f"# {study.title}", "", f"{study.file}, scale {study.scale}{', quick' if quick else ''}", ""]
    for one, names in _sources_first(study, chosen):
        runs = len(pairs_of(one, names, range(one.first_seed, one.first_seed + seeds)))
        rows = [[name, one.arms[name].label, _start(one, name), _training(one, name, quick=quick)] for name in names]
        lines += [f"## {one.name}: {runs} runs", ""]
        lines += [f"prepares {recipes}" for recipes in one.prepare]
        lines += [markdown_table(["arm", "label", "starts from", "training"], rows, text=range(4)), ""]
        for name, evaluation in one.evaluations_of(quick=quick).items():
            settings = {k: v for k, v in evaluation.settings.items() if v not in ("", None, {}, (), [])}
            lines.append(f"evaluation {name}: {', '.join(f'{k} {v}' for k, v in settings.items())}")
        lines.append("")
    return "\n".join(lines)


def status_text(study: Study, seeds: int, arms: Sequence[str] = (), *, quick: bool = False) -> str:
    """The state of every run."""
    rows = []
    for one, names in _sources_first(study, list(arms) or list(study.arms)):
        for arm, seed in pairs_of(one, names, range(one.first_seed, one.first_seed + seeds)):
            rows.append([one.name, arm, str(seed), *_state(one, arm, seed, quick=quick)])
    done = sum(row[3] == "finished" for row in rows)
    table = markdown_table(["study", "arm", "seed", "state", "folder"], rows, text=(0, 1, 3, 4))
    return f"{table}\n\n{done} of {len(rows)} runs finished\n"


def _sources_first(study: Study, arms: list[str]) -> Iterator[tuple[Study, list[str]]]:
    for other, names in sources_of(study, arms).items():
        yield from _sources_first(study.other(other), names)
    yield study, arms


def _start(study: Study, arm: str) -> str:
    origin = origin_of(study, arm)
    return " ".join(origin) if origin else study.arms[arm].weights or study.init_from or "nothing"


def _training(study: Study, arm: str, *, quick: bool) -> str:
    if not study.arms[arm].trained:
        return "none"
    whole = {**study.recipe_of(arm), **study.settings_of(arm, 0, quick=quick)}
    steps = [f"{step['name']} {step['trainer']['max_steps']}" for step in whole.get("chain") or []]
    return f"{', '.join(steps) or whole['trainer']['max_steps']} steps"


def _state(study: Study, arm: str, seed: int, *, quick: bool) -> tuple[str, str]:
    try:
        folder = folder_of(study, arm, seed, quick=quick)
    except UserError:
        return f"waits for {start_of_text(study, arm, seed, quick=quick)}", ""
    if result_file(study, folder, quick=quick).is_file():
        return "finished", str(folder)
    if study.arms[arm].trained and is_checkpoint_folder(trained_weights(study, arm, folder)):
        return "trained", str(folder)
    return ("started" if (folder / "fit").is_dir() else "not started"), str(folder)


def start_of_text(study: Study, arm: str, seed: int, *, quick: bool) -> str:
    """The weights that a run waits for; by the name of their run if they have none yet."""
    try:
        return str(start_of(study, arm, seed, quick=quick))
    except UserError:
        return _start(study, arm)
