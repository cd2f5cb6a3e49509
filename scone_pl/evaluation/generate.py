"""Generates a benchmark's images with the `predict` verb: one run per round, each with its own output folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scone_pl.errors import UserError
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_images import Fingerprints
from scone_pl.files import read_json, read_text, write_json, write_text
from scone_pl.progress import Progress, Watcher

RECIPE = Path(__file__).parent / "sampling.yaml"
_USAGE_ERROR = 2
"""Exit status of a command with invalid arguments."""
_FINISHED = "generated.json"
_INPUTS = "drawn_from.json"


def launched_rank() -> int | None:
    """Rank of this process if torchrun or Slurm has launched several, else None."""
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
    arguments: Sequence[str] = (),
    predict: Callable[[list[str]], int],
) -> None:
    """Generates the missing images; finished rounds are skipped without loading the weights.

    Under torchrun every rank calls this. Otherwise `predict` runs in a separate process and uses all GPUs.

    Args:
        folder: the evaluation's folder.
        items: the items.
        checkpoint: folder of weights.
        rounds: number of samplings, each with different noise.
        seed: seed of the noise, together with round, task and key.
        exif_orientation: for references, see `PackingConfig.exif_orientation`.
        arguments: further arguments for `predict`.
        predict: runs a command line in this process; called under torchrun and Slurm.

    Raises:
        UserError: no such checkpoint, or `predict` failed (it has printed the reason).
    """
    from scone_pl.training.chain import run_in_own_process
    from scone_pl.training.outcome import LEFT_OUT_STATUS

    rank, weights = launched_rank(), _weights_identity(checkpoint)
    _write_prompts(items, folder.prompts, rank)
    for sampling in range(1, rounds + 1):
        command = predict_command(folder, checkpoint, sampling, seed, exif_orientation, arguments)
        _check_unchanged(folder, sampling, items, write=not rank)
        done = {"command": command, "weights": weights}
        if rank is not None:
            with _watched(folder, sampling, rounds, items, show=rank == 0):
                status = predict(command)
                _barrier(last=sampling == rounds)
        elif _is_finished(folder, sampling, items, done):
            continue
        else:
            with _watched(folder, sampling, rounds, items, show=True):
                status = run_in_own_process(command)
        if status == LEFT_OUT_STATUS:
            continue  # not marked as finished: the next run retries the skipped items; until then the tables list them
        if status:
            advice = "" if status == _USAGE_ERROR else "; run the same command to resume"
            raise UserError(f"generating round {sampling} failed (status {status}), see above{advice}")
        if not rank:
            write_json(done, folder.round(sampling) / _FINISHED)


def _watched(folder: EvaluationFolder, sampling: int, rounds: int, items: Sequence[Item], *, show: bool) -> Watcher:
    """Counts the images of all ranks; Lightning's progress bar counts those of one."""
    progress = Progress(f"generating round {sampling} of {rounds}", len(items), unit="images", show=show)

    def count() -> int:
        return sum(folder.image(item, sampling).is_file() for item in items) if show else 0

    return Watcher(progress, count)


def _check_unchanged(folder: EvaluationFolder, sampling: int, items: Sequence[Item], *, write: bool) -> None:
    """Records a hash of each item's inputs, and refuses existing images of items whose inputs have changed.

    Raises:
        UserError: the image of an item was generated from another instruction or other references.
    """
    file = folder.round(sampling) / _INPUTS
    stored = read_json(file, dict) if file.exists() else {}
    fingerprints = Fingerprints()
    for item in items:
        content = json.dumps([item.instruction, [fingerprints[image] for image in item.images]])
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        name = "/".join(item.id)
        image = folder.image(item, sampling)
        if stored.get(name, digest) != digest and image.is_file():
            raise UserError(
                f"{image}: was generated from another instruction or other references than the data has now; choose "
                "another --output, or move that image aside"
            )
        stored[name] = digest
    if write:
        write_json(stored, file)


def _barrier(*, last: bool) -> None:
    """Waits for all ranks; after the last round only rank 0 continues."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        if last:
            dist.destroy_process_group()


def predict_command(
    folder: EvaluationFolder, checkpoint: str, sampling: int, seed: int, exif_orientation: str, arguments: Sequence[str]
) -> list[str]:
    """The arguments of `python -m scone_pl` that generate one round."""
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
        *arguments,
    ]


def _write_prompts(items: Sequence[Item], file: Path, rank: int | None) -> None:
    """Writes the items as prompts for `predict`. Every rank does so: nodes may not share a file system."""
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


def _weights_identity(checkpoint: str) -> str:
    from scone_pl.checkpoints.folder import check_folder
    from scone_pl.training.runs import weights_identity

    return weights_identity(check_folder(checkpoint))


def _is_finished(folder: EvaluationFolder, sampling: int, items: Sequence[Item], done: Mapping[str, object]) -> bool:
    """Whether the same command has finished and all its images are intact."""
    from scone_pl.data.sample import Sample
    from scone_pl.training.predictions import PredictionFolder

    record = folder.round(sampling) / _FINISHED
    if not record.exists() or read_json(record, dict) != done:
        return False
    predictions = PredictionFolder(folder.images_of(sampling))
    return all(
        predictions.is_finished(
            Sample(key=i.key, references=(), instruction=i.instruction, target=b"", metadata={"task_type": i.task_type})
        )
        for i in items
    )
