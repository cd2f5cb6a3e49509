"""`python -m scone_pl generate`: one image from reference images and an instruction."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch

from scone_pl.checkpoints.adapters import adapters_of, read_adapters
from scone_pl.checkpoints.hub import readable_headers
from scone_pl.data.decoding import ExifOrientation
from scone_pl.errors import UserError
from scone_pl.image_files import check_image_output, write_image
from scone_pl.model.quantized import Quantization, check_quantization
from scone_pl.model.tiling import TILE
from scone_pl.progress import Progress
from scone_pl.sampling.checks import as_device, check_negative, check_rebalancing
from scone_pl.sampling.memory import Saving
from scone_pl.sampling.offload import Offload, check_offload
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.plan import bridge_setting, plan_generation
from scone_pl.sampling.settings import SamplingConfig


def generate(
    checkpoint: str,
    instruction: str,
    image: list[str] | None = None,
    negative_prompt: str | None = None,
    output: str = "image.png",
    settings: SamplingConfig = SamplingConfig(),  # noqa: B008 (immutable)
    lora: list[str] | None = None,
    lora_scale: list[float] | None = None,
    bridge: str = "off",
    bridge_image: str | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    attention: Literal["split", "flex", "dense"] = "split",
    compile: bool = False,
    quantization: Quantization | None = None,
    offload: Offload | None = None,
    vae_tiling: bool = False,
    exif_orientation: ExifOrientation = "apply",
    dry_run: bool = False,
) -> int:
    """Generate an image from reference images and an instruction; the defaults are Scone's published settings.

    Args:
        checkpoint: Checkpoint folder or id on the Hugging Face hub: BAGEL's, Scone's, or one that training here wrote.
        instruction: What to generate.
        image: A reference image, file or http(s) URL; repeat it for several, in the order in which the instruction
            counts them.
        negative_prompt: What guidance leads away from; by default from no instruction.
        output: Image file to write; .png, .jpg, .jpeg or .webp decides the format.
        settings: How to sample.
        lora: LoRA adapter to merge into the weights, a folder in peft's layout or an id on the hub; repeat it for
            several.
        lora_scale: Weight of each adapter, in their order; by default 1.
        bridge: Hide irrelevant reference regions: off, trained (as the checkpoint was trained), or JSON settings.
        bridge_image: Image file for the bridge's maps of each reference.
        dtype: Dtype of weights and activations: bfloat16, float32 or float16.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
        attention: Backend of the prefill; flex needs CUDA.
        compile: Compile the decoder layers.
        quantization: int8 or nf4 weights in the decoder layers; everything else stays in --dtype.
        offload: Keep on the CPU what a phase does not need: model = ViT, autoencoder and token tables, sequential =
            decoder layers too, one by one on the GPU.
        vae_tiling: Encode and decode images by overlapping tiles of 512 pixels.
        exif_orientation: apply = references are rotated as their EXIF orientation says, as viewers show them; ignore =
            they stay as stored, as in the release.
        dry_run: Only print how many tokens and how much memory it would take; reads no weights.
    """
    check_image_output(output, "--output")
    if bridge_image is not None:
        check_image_output(bridge_image, "--bridge_image")
        if Path(bridge_image).absolute() == Path(output).absolute():
            raise UserError(f"--bridge_image {bridge_image}: is --output too; give it another name")
        if bridge == "off":
            raise UserError("--bridge_image shows the bridge's maps; turn it on with --bridge trained or --bridge JSON")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not dry_run:  # which counts for a GPU that may be elsewhere
        check_offload(offload, as_device(device))
    check_quantization(quantization)
    if compile and offload is not None:
        raise UserError(f"--compile does not go together with --offload {offload}; leave one out")
    saving = Saving(quantization, offload, TILE if vae_tiling else None)
    with readable_headers(checkpoint) if dry_run else nullcontext(checkpoint) as folder:
        settings = dataclasses.replace(settings, bridge=bridge_setting(folder, bridge))
        plan = plan_generation(
            folder,
            image or [],
            instruction,
            settings,
            dtype=dtype,
            exif_orientation=exif_orientation,
            negative=negative_prompt,
            saving=saving,
        )
    adapters = adapters_of(lora, lora_scale)
    read_adapters(adapters, plan.shapes)  # before the weights are read
    check_negative([plan.prompt], settings)
    check_rebalancing([plan.prompt], settings)
    if settings.bridge is not None and not image:
        raise UserError("--bridge hides parts of reference images, but there is none; give --image, or --bridge off")
    if dry_run:
        print(plan.report())
        return 0
    pipeline = SconePipeline.from_pretrained(
        checkpoint,
        torch_dtype=dtype,
        device_map="cpu" if offload else device,
        attention=attention,
        compile=compile,
        adapters=adapters,
        quantization=quantization,
    )
    if offload == "model":
        pipeline.enable_model_cpu_offload(device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device)
    if vae_tiling:
        pipeline.enable_vae_tiling()
    with Progress("denoising", settings.num_inference_steps, unit="steps") as bar:
        try:
            result = pipeline.generate([plan.prompt], settings, callback_on_step_end=lambda *_: bar.advance())
        except torch.OutOfMemoryError:
            peak = f"{plan.memory.peak / 1e9:.3f} GB"
            raise UserError(
                f"out of memory on {device} (estimated peak {peak}); see --dry_run; lower --height, "
                "--width, or try --quantization, --offload, --vae_tiling"
            ) from None
    write_image(result.images[0], output)
    print(output)
    if bridge_image is not None:
        write_image(result.bridge_image(), bridge_image)
        print(bridge_image)
    return 0
