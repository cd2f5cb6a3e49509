"""`python -m scone_pl similarity`: DINO, CLIP-I and CLIP-T of generated images, without a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from scone_pl.errors import UserError
from scone_pl.evaluation.similarity.lists import read_list, write_prompts
from scone_pl.files import write_json, write_text
from scone_pl.outputs import check_output_file, check_output_folder
from scone_pl.ranges import check_whole

_FILES = ("similarity.md", "similarity.json")
MAX_IMAGES = 1000


def similarity(
    data: str,
    images: str | None = None,
    prompts: str | None = None,
    output: str | None = None,
    num_images_per_prompt: int = 6,
    views: Literal["all", "given"] = "all",
    name: str | None = None,
    dino: str = "facebook/dino-vits16",
    clip: str = "openai/clip-vit-base-patch32",
    dinov2: str = "facebook/dinov2-small",
    device: str | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Print DINO, CLIP-I and CLIP-T of generated images by UNO's protocol, beside published rows.

    Args:
        data: JSON list of prompt and image_paths, with the subjects' folders of views beside it.
        images: Folder of generated images INDEX_NUMBER.png.
        prompts: Instead of --images, a JSONL file to write, from which predict generates these images.
        output: Folder for similarity.md and similarity.json; by default nothing is written.
        num_images_per_prompt: Images for each prompt.
        views: Compare with all images in the folder of a reference, as published, or with the given one.
        name: What to call the model.
        dino: DINO, as hub id or folder.
        clip: CLIP, as hub id or folder.
        dinov2: DINOv2 of the collapse rate, as hub id or folder.
        device: Such as cuda or cpu; by default a GPU if there is one.
        seed: Seed of the bootstrap.
        json: Print everything as JSON.
    """
    check_whole("--num_images_per_prompt", num_images_per_prompt, minimum=1, maximum=MAX_IMAGES)
    check_whole("--seed", seed)
    if (images is None) == (prompts is None):
        raise UserError("give either --images (to score) or --prompts (to write what predict generates)")
    if prompts is not None:
        unused = [option for option, value in (("--output", output), ("--name", name)) if value is not None]
        if unused or json:
            raise UserError(f"{(*unused, '--json')[0]} has no effect with --prompts; leave it out")
        check_output_file(prompts)
        entries = read_list(Path(data))
        write_prompts(entries, num_images_per_prompt, Path(prompts))
        print(f"{len(entries) * num_images_per_prompt} prompts: {prompts}")
        return
    if output is not None:
        check_output_folder(Path(output), files=_FILES)
    entries = read_list(Path(data), views)
    folder = Path(images or "")
    if not folder.is_dir():
        raise UserError(f"--images {images}: no such folder; it must hold INDEX_NUMBER.png, such as 0_0.png")
    import torch

    from scone_pl.evaluation.similarity.encoders import load_encoders
    from scone_pl.evaluation.similarity.scores import similarity as score
    from scone_pl.evaluation.similarity.tables import markdown
    from scone_pl.evaluation.steps import print_json, print_line

    encoders = load_encoders(dino, clip, dinov2, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    result = score(entries, folder, num_images_per_prompt, encoders, seed=seed)
    text = markdown(result, len(entries[0].references), name or folder.resolve().name, views)
    content = {"encoders": {"dino": dino, "clip": clip, "dinov2": dinov2}, "views": views, **result.as_dict()}
    if output is not None:
        write_text(text, Path(output) / "similarity.md")
        write_json(content, Path(output) / "similarity.json")
    if json:
        print_json(content)
    else:
        print_line(text)
