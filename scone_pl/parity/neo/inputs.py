"""A parity folder of SenseNova-U1 or U1.5, opened: its model, tokenizer and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.neo import Tokenizer
from scone_pl.data.transforms import PixelResize, ResizeLimits
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.layout import ReferenceImages
from scone_pl.model.neo.layout import ChatTemplate
from scone_pl.model.neo.network import Neo
from scone_pl.model.sequence import PackedSequence
from scone_pl.parity.comparison import TrackedTensors
from scone_pl.sampling.checks import as_device


def byte_tokenizer(special_tokens: dict[str, int], system_message: str) -> Tokenizer:
    """Special tokens with given ids; every other UTF-8 byte is its own value."""
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {_symbol(byte): byte for byte in range(256)}
    backend = Backend(models.BPE(vocabulary | special_tokens, []))
    backend.pre_tokenizer, backend.decoder = symbols, decoders.ByteLevel()
    return Tokenizer(backend, "expected.json", system_message)


def _symbol(byte: int) -> str:
    """What stands for a byte in a byte-level vocabulary: itself if printable, else a letter from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return chr(byte if byte in printable else 256 + others.index(byte))


class ParityInputs:
    """A parity folder, opened, with its model."""

    def __init__(self, folder: Path, *, attention: str, device: str) -> None:
        """Raises `UserError` if the folder is not a parity folder."""
        self.device, self.folder = as_device(device), folder
        for name in ("expected.json", "expected.safetensors"):
            if not (folder / name).exists():
                raise UserError(f"{folder}: not a parity folder, {name} is missing")
        self.expected: dict[str, Any] = read_json(folder / "expected.json", dict)
        self.tensors = TrackedTensors.of(folder / "expected.safetensors")
        packed = folder / "pack.safetensors"
        self.pack_tensors = TrackedTensors.of(packed) if packed.exists() else None
        model = from_pretrained(folder, device=device)
        assert isinstance(model, Neo)
        self.model = model
        model.attention = attention
        model.requires_grad_(True)
        self.tokenizer = byte_tokenizer(self.expected["special_tokens"], self.expected["system_message"])
        self.format = model.config.sequence_format(self.tokenizer.special)
        assert isinstance(self.format.special, ChatTemplate)
        self.template = self.format.special
        self.samples: list[dict[str, Any]] = self.expected["samples"]
        self.image_id: int = self.expected["special_tokens"]["<IMG_CONTEXT>"]

    @property
    def references(self) -> int:
        """Reference images of all samples."""
        return sum(sample["num_references"] for sample in self.samples)

    def images(self, number: int) -> list[ReferenceImages]:
        """The references of a sample, resized."""
        limits = ResizeLimits(max_size=1, min_size=1)
        stride, count = self.format.vit_patch_size, self.samples[number]["num_references"]
        low, high = self.expected["min_pixels"], self.expected["max_pixels"]
        resize = PixelResize(stride, limits.max_size, limits.min_size, high, min_pixels=low)
        originals = [Image.fromarray(self.tensors[f"sample{number}.image{i}"].numpy()) for i in range(count)]
        return [ReferenceImages(None, resize(original, interleaved=True)) for original in originals]

    def pack(self, numbers: list[int], *, closed: bool = False) -> PackedSequence:
        """Samples in one sequence, with the expected noise levels; `closed`: with the text after their targets."""
        builder = SequenceBuilder(self.format)
        for number in numbers:
            description = self.samples[number]
            builder.begin_sample()
            text = self.tokenizer.encode(description["prompt"])
            self.format.layout.add_context(builder, self.images(number), text)
            logit = torch.logit(torch.tensor(1 - description["t"], dtype=torch.float64)).item()
            builder.add_targets(self.tensors[f"sample{number}.target.clean"], [logit])
            if closed:
                builder.add_closing([self.format.special.end_image, *self.template.turn_end])
        return builder.build().to(self.device)

    def ids_of(self, pack: PackedSequence) -> Tensor:
        """(L,): ids of all tokens, those of images as `<IMG_CONTEXT>`."""
        ids = torch.full((len(pack),), self.image_id, device=pack.device)
        return ids.index_put((pack.text_index,), pack.text_ids)
