"""A mini model with random weights, and samples of the mini-world for it."""

import dataclasses
import json

from scone_pl.worlds.shapes.episode import TASKS
from scone_pl.worlds.shapes.world import fixed_set


def mini_samples(per_task, tasks=(TASKS[0], TASKS[3], TASKS[5])):
    """Of a composition and two distinction tasks, one of which has two references."""
    return [episode.to_sample() for episode in fixed_set(per_task, stream="validation", tasks=tasks)]


def write_jsonl(samples, folder, *, boxes):
    """The samples as a JSONL file without targets."""
    folder.mkdir(exist_ok=True)
    lines = []
    for sample in samples:
        names = [f"{sample.key}-{i}.png" for i in range(len(sample.references))]
        for name, data in zip(names, sample.references, strict=True):
            (folder / name).write_bytes(data)
        line = {"input_images": names, "instruction": sample.instruction}
        if boxes:
            line["candidates"] = [[dataclasses.asdict(c) for c in group] for group in sample.candidates]
        lines.append(json.dumps(line))
    file = folder / f"{'with' if boxes else 'without'}_boxes.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file
