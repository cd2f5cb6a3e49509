"""`python -m scone_pl layers` compares the decoder layers of a checkpoint as sources of the bridge's similarity."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from scone_pl.analysis.drawing import MapRow, draw_histograms, draw_maps
from scone_pl.analysis.measures import exchanged, measure
from scone_pl.analysis.report import report_of, words_of
from scone_pl.analysis.samples import choose_samples, collecting_maps
from scone_pl.analysis.similarity import PACK_TOKENS, read_images
from scone_pl.checkpoints.folder import check_folder, read_config
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.files import write_json
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole
from scone_pl.sampling.checks import as_device, as_dtype


def layers(
    checkpoint: Path,
    data: str,
    samples: int = 64,
    output: Path | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    tokens: int = PACK_TOKENS,
    packing: PackingConfig | None = None,
) -> int:
    """Compare the decoder layers as sources of the bridge's similarity; suggest one, with and without labels.

    Labels are the samples' `candidates`, boxes of target and distractor subjects in the references. Without any, a
    layer is judged by how much its similarities change when the instruction is exchanged.

    Args:
        checkpoint: Checkpoint folder: BAGEL's, Scone's, or one that training here wrote.
        data: Shard set (folder or URL), JSONL file or folder of them, or parquet; a target is not needed.
        samples: Number of samples to read, the first that have references and an instruction.
        output: Folder for layers.json (all numbers), maps.png and, with labels, histograms.png; by default nothing is
            written.
        device: cpu, cuda, cuda:1, ...; auto = a GPU if there is one.
        dtype: Dtype of weights and activations; auto = bfloat16 on a GPU, else float32.
        tokens: Maximum tokens per forward pass; fewer need less memory (a longer sample is a pass by itself).
        packing: Sizes of images, as `data.packing` of the recipe in question; by default those of sampling.
    """
    check_whole("--samples", samples, minimum=1)
    check_whole("--tokens", tokens, minimum=1)
    if output is not None:
        check_output_folder(output, files=("layers.json", "maps.png", "histograms.png"))
    chosen_device = as_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    kind = as_dtype(("bfloat16" if chosen_device.type == "cuda" else "float32") if dtype == "auto" else dtype)
    tokenizer = Tokenizer.from_folder(check_folder(checkpoint))
    config = read_config(checkpoint)
    tokenizer.check_embedding(config.decoder.vocab_size)
    sequence_format = config.sequence_format(tokenizer.special)
    packing = packing or PackingConfig.for_inference(sequence_format)
    packing.check(sequence_format)
    chosen = choose_samples(data, samples)
    for sample in chosen:
        tokenizer.encode(sample.instruction)  # unknown words show before the weights are read
    model = from_pretrained(
        checkpoint, dtype=kind, device=chosen_device, understanding_only=sequence_format.layout.single_stream
    ).requires_grad_(False)
    pairs = read_images(model, tokenizer, chosen, packing, exchanged([s.instruction for s in chosen]), tokens)
    rows: list[MapRow] = []
    try:
        readings = measure(collecting_maps(pairs, chosen, rows, packing.exif_orientation), chosen)
    except torch.OutOfMemoryError:
        raise UserError(f"out of memory on {chosen_device}; lower --tokens, or the images' sizes (--packing)") from None
    report = {"checkpoint": str(checkpoint), "data": data, "samples": len(chosen), **report_of(readings)}
    print(
        f"{checkpoint}: {len(chosen)} samples of {data}, {report['images']} reference images, "
        f"{report['labelled_images']} of them with boxes of target and distractor subjects\n\n{words_of(report)}"
    )
    if output is not None:
        draw_maps(rows, output / "maps.png")
        written = ["layers.json", "maps.png"]
        if "histograms" in report:
            draw_histograms({"": report["histograms"]}, output / "histograms.png")
            written.append("histograms.png")
        write_json(report, output / "layers.json")
        print("\n" + "   ".join(str(output / name) for name in written))
    return 0
