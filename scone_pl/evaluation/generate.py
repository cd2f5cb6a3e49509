"""The benchmark's pictures, by the `predict` verb: one run a round, each in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from scone_pl.errors import UserError
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_images import Fingerprints
from scone_pl.files import read_json, read_text, write_json, write_text
from scone_pl.progress import Progress, Watcher

RECIPE = Path(__file__).parent / "sampling.yaml"
_MISTAKE = 2
"""Status of a command that cannot work as it was typed."""
_DONE = "generated.json"
_DRAWN_FROM = "drawn_from.json"


def launched_rank() -> int | None:
    """The number of this process if torchrun or Slurm has started several, else None."""
    from scone_pl.training.chain import needs_own_process

    if needs_own_process("auto"):
        return None
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def generate(
    folder: EvaluationFolder,
    items: Sequence[Item],
    checkpoint: str,
    rounds: int,
    *,
    seed: int = 1234,
    exif_orientation: str = "apply",
    extra: Sequence[str] = (),
) -> None:
    """Makes the pictures that are missing; a finished round costs nothing, not even reading the weights.

    Under torchrun every rank calls this. Without it, `predict` runs in a process of its own and uses all GPUs.

    Args:
        folder: where to.
        items: what to draw.
        checkpoint: folder of weights.
        rounds: samplings, each with noise of its own.
        seed: of the noise, together with the round's number, the task and the key.
        exif_orientation: of references, see `PackingConfig.exif_orientation`.
        extra: more arguments for `predict`.

    Raises:
        UserError: no such checkpoint; or `predict` has stopped, and what it said stands above.
    """
    from scone_pl.training.chain import run_in_own_process
    from scone_pl.training.outcome import LEFT_OUT_STATUS

    rank, weights = launched_rank(), _identity(checkpoint)
    _write_prompts(items, folder.prompts, rank)
    for sampling in range(1, rounds + 1):
        command = predict_command(folder, checkpoint, sampling, seed, exif_orientation, extra)
        _check_unchanged(folder, sampling, items, write=not rank)
        done = {"command": command, "weights": weights}
        if rank is not None:
            from scone_pl.cli.lightning import main as run_lightning

            with _watched(folder, sampling, rounds, items, show=rank == 0):
                status = run_lightning(command)
                _wait_for_all(last=sampling == rounds)
        elif _is_done(folder, sampling, items, done):
            continue
        else:
            with _watched(folder, sampling, rounds, items, show=True):
                status = run_in_own_process(command)
        if status == LEFT_OUT_STATUS:
            continue  # not marked as done: the next start tries these again, and the tables name them until then
        if status:
            advice = "" if status == _MISTAKE else "; the same command goes on"
            raise UserError(f"generating round {sampling} stopped (status {status}), see above{advice}")
        if not rank:
            write_json(done, folder.round(sampling) / _DONE)


def _watched(folder: EvaluationFolder, sampling: int, rounds: int, items: Sequence[Item], *, show: bool) -> Watcher:
    """Counts the pictures of all ranks, which Lightning's bar for one rank does not."""
    progress = Progress(f"generating round {sampling} of {rounds}", len(items), unit="images", show=show)
    return Watcher(progress, lambda: sum(folder.picture(item, sampling).is_file() for item in items) if show else 0)


def _check_unchanged(folder: EvaluationFolder, sampling: int, items: Sequence[Item], *, write: bool) -> None:
    """Remembers what each picture is drawn from, and refuses to pass an old picture off as a changed item's.

    Raises:
        UserError: an item that has a picture had another instruction, or other references, when it was drawn.
    """
    file = folder.round(sampling) / _DRAWN_FROM
    known = read_json(file, dict) if file.exists() else {}
    prints = Fingerprints()
    for item in items:
        content = json.dumps([item.instruction, [prints[image] for image in item.images]])
        now = hashlib.sha256(content.encode()).hexdigest()[:16]
        name = "/".join(item.place)
        picture = folder.picture(item, sampling)
        if known.get(name, now) != now and picture.is_file():
            raise UserError(
                f"{picture}: was drawn from another instruction or other references than the data now has; choose "
                "another --output, or move that image aside"
            )
        known[name] = now
    if write:
        write_json(known, file)


def _wait_for_all(*, last: bool) -> None:
    """Ranks do not draw equally fast; after the last round the others leave, and rank 0 goes on alone."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        if last:
            dist.destroy_process_group()


def predict_command(
    folder: EvaluationFolder, checkpoint: str, sampling: int, seed: int, exif_orientation: str, extra: Sequence[str]
) -> list[str]:
    """The arguments of `python -m scone_pl` that make one round."""
    import torch

    return [
        *("predict", "--config", str(RECIPE)),
        *("--trainer.enable_progress_bar", "false"),
        *("--trainer.precision", "bf16-true" if torch.cuda.is_available() else "32-true"),
        *("--model.init_args.init_from", str(checkpoint)),
        *("--model.init_args.sampling.seed", str(seed)),
        *("--model.init_args.sampling_round", str(sampling - 1)),
        *("--data.predict", json.dumps([{"path": str(folder.prompts)}])),
        *("--data.packing.exif_orientation", exif_orientation),
        *("--output_dir", str(folder.round(sampling))),
        *extra,
    ]


def _write_prompts(items: Sequence[Item], file: Path, rank: int | None) -> None:
    """The chosen items as `predict` reads them. Every rank writes the same: another machine may not see rank 0's."""
    lines = [
        {
            "key": item.key,
            "task_type": item.task_type,
            "instruction": item.instruction,
            "input_images": [str(image.resolve()) for image in item.images],
        }
        for item in items
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if rank and file.is_file() and read_text(file) == text:
        return
    write_text(text, file)


def _identity(checkpoint: str) -> str:
    from scone_pl.checkpoints.model import check_folder
    from scone_pl.training.runs import weights_identity

    return weights_identity(check_folder(checkpoint))


def _is_done(folder: EvaluationFolder, sampling: int, items: Sequence[Item], done: dict[str, object]) -> bool:
    """Whether the same command has finished and all its pictures are there, whole."""
    from scone_pl.data.sample import Sample
    from scone_pl.training.predictions import PredictionFolder

    record = folder.round(sampling) / _DONE
    if not record.exists() or read_json(record, dict) != done:
        return False
    place = PredictionFolder(folder.pictures_of(sampling))
    return all(
        place.is_finished(
            Sample(key=i.key, references=(), instruction=i.instruction, target=b"", metadata={"task_type": i.task_type})
        )
        for i in items
    )
