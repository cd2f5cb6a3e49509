"""The weights that a stage starts from."""

from __future__ import annotations

from pathlib import Path

from scone_pl.checkpoints.folder import check_folder
from scone_pl.checkpoints.hub import hub_id
from scone_pl.errors import UserError


def check_start(init_from: str) -> Path:
    """The folder to start from.

    Raises:
        UserError: it does not exist; the message names the source of published weights and what runs without them.
    """
    if not Path(init_from).is_dir() and hub_id(init_from) is None:
        missing = f"model.init_from: no checkpoint folder {init_from}"
        name, world = Path(init_from).name, Path(init_from).parent.name
        if name in ("random", "contrastive") and world in ("icons", "icons_large"):
            size = " SCALE=large" if world == "icons_large" else ""
            raise UserError(f"{missing}; make it with: make icons-{name.replace('contrastive', 'pretrained')}{size}")
        if name in ("base", "random", "random_dense"):
            preset = " --preset mini_photo" if "photo" in init_from else ""
            preset = " --preset mini_dense" if init_from.endswith("_dense") else preset
            raise UserError(f"{missing}; make it with: python -m scone_pl mini base --output {init_from}{preset}")
        bagel = "BAGEL-7B-MoT (python -m scone_pl download ByteDance-Seed/BAGEL-7B-MoT --to weights/BAGEL-7B-MoT)"
        how = f"it is {bagel}"
        if name == "weights":
            how = (
                f"the stage before writes it, so run that first; at 7B Stage I, experiments/stage1.yaml, needs {bagel}"
            )
        raise UserError(
            f"{missing}; {how}; without published weights `python -m scone_pl demo` runs the same recipe small: "
            "experiments/mini/stage1.yaml and stage2.yaml"
        )
    return check_folder(init_from)
