"""`python -m scone_pl generate`: one picture from the command line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from tqdm import tqdm

from scone_pl.checkpoints.model import check_folder, read_config
from scone_pl.checkpoints.training_record import FILE, bridge_from, read_record
from scone_pl.cli.parsing import StrictParser, parse_quietly
from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.files import parse_json
from scone_pl.image_files import check_image_output, write_image
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.checks import as_dtype, check_fits, check_sampling
from scone_pl.sampling.guidance import GuidanceConfig
from scone_pl.sampling.images import load_all
from scone_pl.sampling.memory import count_prompt, estimate_memory
from scone_pl.sampling.pictures import save_picture
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.prompts import make_prompt, picture_size
from scone_pl.sampling.sampler import SamplingConfig
from scone_pl.sampling.step_cache import StepCacheConfig


def generate(
    checkpoint: str,
    instruction: str,
    image: list[str] | None = None,
    output: str = "picture.png",
    seed: int = 1234,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 49,
    text_guidance_scale: float = 4.0,
    image_guidance_scale: float = 2.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_rescale: Literal["global", "channel", "text_channel"] = "text_channel",
    guidance_rescale_min: float = 0.0,
    timestep_shift: float = 3.0,
    bridge: str = "off",
    bridge_picture: str | None = None,
    step_cache: StepCacheConfig | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    attention: Literal["split", "flex", "dense"] = "split",
    compile: bool = False,
    exif_orientation: ExifOrientation = "apply",
    dry_run: bool = False,
) -> int:
    """Draw a picture from reference images and an instruction; the defaults are Scone's published settings.

    Args:
        checkpoint: checkpoint folder: BAGEL's, Scone's, or one that training here wrote.
        instruction: what to draw.
        image: a reference image; repeat it for several, in the order in which the instruction counts them.
        output: image file to write; .png, .jpg, .jpeg or .webp decides the format.
        seed: of the initial noise.
        height: of the picture in pixels; by default 1024, or the largest that the checkpoint can.
        width: likewise.
        num_inference_steps: Euler steps; the release's num_timesteps=50 counts points and is 49 here.
        text_guidance_scale: weight of the instruction; 1 = no guidance.
        image_guidance_scale: weight of the references on top of it; 1 = none.
        guidance_interval: guidance acts while low < t <= high.
        guidance_rescale: what keeps the guided velocity from growing.
        guidance_rescale_min: smallest factor of it.
        timestep_shift: over 1 spends more steps near noise.
        bridge: hide irrelevant reference regions: off, trained (as the checkpoint was trained), or JSON settings.
        bridge_picture: image file for what the bridge did to each reference.
        step_cache: extrapolate some steps, such as '{interval: 2, order: 1}'.
        dtype: of weights and activations: bfloat16 or float32.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
        attention: backend of the prefill; flex needs CUDA.
        compile: compile the decoder layers; for many pictures on CUDA.
        exif_orientation: apply = references are turned as their EXIF orientation says, as viewers show them; ignore =
            they stay as they are stored, as in the release.
        dry_run: only say how many tokens and how much memory it would take; reads no weights.
    """
    check_image_output(output, "--output")
    if bridge_picture is not None:
        check_image_output(bridge_picture, "--bridge_picture")
        if Path(bridge_picture).absolute() == Path(output).absolute():
            raise UserError(f"--bridge_picture {bridge_picture}: is --output too; give it another name")
    chosen = bridge_of(checkpoint, bridge)
    if bridge_picture is not None and chosen is None:
        raise UserError("--bridge_picture shows what the bridge did; turn it on with --bridge trained or --bridge JSON")
    sampling: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "text_guidance_scale": text_guidance_scale,
        "image_guidance_scale": image_guidance_scale,
        "guidance_interval": guidance_interval,
        "guidance_rescale": guidance_rescale,
        "guidance_rescale_min": guidance_rescale_min,
        "timestep_shift": timestep_shift,
        "bridge": chosen,
        "step_cache": step_cache,
    }
    images = load_all(image or [], exif_orientation)
    # Also before the weights are read: whatever is wrong shows at once.
    report = _plan(checkpoint, instruction, images, height, width, dtype, sampling)
    if dry_run:
        print(report)
        return 0
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = SconePipeline.from_pretrained(checkpoint, dtype, place, attention, compile)
    with tqdm(total=num_inference_steps, desc="denoising", unit="step", file=sys.stderr) as bar:
        try:
            found = pipeline(
                images=images,
                prompt=instruction,
                height=height,
                width=width,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
                callback_on_step_end=lambda *_: bar.update(),
                **sampling,
            )
        except torch.OutOfMemoryError:
            needs = " ".join(report.splitlines()[-1].split())
            raise UserError(
                f"out of memory on {place} (estimated {needs}); see --dry_run, lower --height, --width"
            ) from None
    save_picture(found.images[0], output)
    print(output)
    if bridge_picture is not None:
        write_image(found.bridge_picture(), bridge_picture)
        print(bridge_picture)
    return 0


def bridge_of(checkpoint: str, setting: str) -> BridgeConfig | None:
    """The bridge that `--bridge` means.

    Args:
        checkpoint: folder whose `training.json` tells how it was trained.
        setting: off, trained, or a JSON object of `BridgeConfig` fields.

    Raises:
        UserError: none of these, or the checkpoint's training is not known.
    """
    if setting == "off":
        return None
    if setting == "trained":
        folder = check_folder(checkpoint)
        if not (folder / FILE).exists():
            raise UserError(f"{folder / FILE}: not there; give the bridge's settings as JSON instead")
        trained = read_record(folder).get("bridge")
        if not trained:
            raise UserError(
                f"{checkpoint}: was trained without a bridge; use --bridge off or give its settings as JSON"
            )
        return dataclasses.replace(bridge_from(trained, f"{folder / FILE}: bridge"), apply_mask=True)
    try:
        return bridge_from(parse_json(setting, "JSON", dict), "JSON")
    except UserError as error:
        raise UserError(
            f"--bridge {setting:.200}: give off, trained, or JSON such as "
            f'\'{{"source_layer": 8, "first_masked_layer": 9, "last_masked_layer": 15, "threshold": 0.88}}\' ({error})'
        ) from None


def _plan(
    checkpoint: str,
    instruction: str,
    images: list[Image.Image],
    height: int | None,
    width: int | None,
    dtype: str,
    sampling: dict[str, Any],
) -> str:
    """Checks everything that needs no weights; tokens and memory as text."""
    config = read_config(checkpoint)
    tokenizer = Tokenizer.from_folder(checkpoint)
    tokenizer.check_embedding(config.decoder.vocab_size)
    sequence_format = config.sequence_format(tokenizer.special)
    guidance = GuidanceConfig(
        text_scale=sampling["text_guidance_scale"],
        image_scale=sampling["image_guidance_scale"],
        interval=tuple(sampling["guidance_interval"]),
        rescale=sampling["guidance_rescale"],
        rescale_min=sampling["guidance_rescale_min"],
    )
    names = ("num_inference_steps", "timestep_shift", "bridge", "step_cache")
    settings = SamplingConfig(guidance=guidance, **{name: sampling[name] for name in names})
    check_sampling(settings, config.decoder.num_layers)
    kind = as_dtype(dtype)
    size = picture_size(sequence_format, height, width)
    prompt = make_prompt(
        images, instruction, size, sequence_format, tokenizer, PackingConfig.for_inference(sequence_format)
    )
    check_fits(prompt, config.decoder.max_position_embeddings)
    counts = count_prompt(prompt, sequence_format)
    shapes = ", ".join(
        f"{vae.shape[1]} x {vae.shape[2]} (ViT {vit.shape[1]} x {vit.shape[2]})" for vae, vit in prompt.references
    )
    estimate = estimate_memory(config, sequence_format, [prompt], settings, kind)
    return "\n".join(
        [
            f"picture: {size[0]} x {size[1]} pixels, {counts.target} tokens; references: {shapes or 'none'}",
            f"context: {counts.context} tokens ({counts.vae} VAE, {counts.vit} ViT, {counts.frames} frames, "
            f"{counts.text} text)",
            f"memory in {dtype}:",
            estimate.report(),
        ]
    )


def main(args: list[str]) -> int:
    """Runs `generate`; `--image` may be repeated, switches need no `true`; mistakes are one line."""
    parser = StrictParser(prog="python -m scone_pl generate", description=generate.__doc__.split("\n")[0])
    parser.add_function_arguments(generate)
    settings = parser.instantiate_classes(parse_quietly(parser, _spelled_out(args)))
    return generate(**settings.as_dict())


def _spelled_out(args: list[str]) -> list[str]:
    """As jsonargparse spells it: `--image+` appends to a list, switches have a value."""
    spelled = []
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if arg == "--image" or arg.startswith("--image="):
            arg = arg.replace("--image", "--image+", 1)
        elif arg in ("--dry_run", "--compile") and following not in ("true", "false"):
            arg = f"{arg}=true"
        spelled.append(arg)
    return spelled
