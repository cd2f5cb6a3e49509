"""Encoders of images and texts: DINO, DINOv2 and CLIP of transformers, with UNO's preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from scone_pl.errors import UserError

if TYPE_CHECKING:
    import torch

CROP = 224
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(Protocol):
    """Features of images."""

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(n, d) float32 features of RGB images."""


class TextEncoder(ImageEncoder, Protocol):
    """Features of images and texts in one space."""

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, d) float32 features of texts."""


@dataclass(frozen=True)
class Encoders:
    """All encoders of the protocol."""

    dino: ImageEncoder
    clip: TextEncoder
    dinov2: ImageEncoder


def centre_crop(image: Image.Image, short_side: int) -> Image.Image:
    """Bicubic resize to a short side, then the centre of `CROP` x `CROP` pixels."""
    width, height = image.size
    if width <= height:
        size = short_side, int(short_side * height / width)
    else:
        size = int(short_side * width / height), short_side
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
    return image.crop((left, top, left + CROP, top + CROP))


def pixels(
    images: Sequence[Image.Image], short_side: int, normalisation: tuple[Sequence[float], Sequence[float]]
) -> torch.Tensor:
    """(n, 3, `CROP`, `CROP`) float32, normalised by mean and standard deviation."""
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(centre_crop(image, short_side)) for image in images])
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation)
    return (torch.from_numpy(stacked).permute(0, 3, 1, 2) / 255 - mean) / std


class Dino:
    """The CLS token of a vision transformer: short side 256, ImageNet's mean and deviation."""

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoModel

        self.device = device
        self.model = _loaded(lambda: AutoModel.from_pretrained(name), name).eval().to(device)

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(n, d) float32."""
        import torch

        with torch.inference_mode():
            output = self.model(pixel_values=pixels(images, 256, IMAGENET).to(self.device))
        token: torch.Tensor = output.last_hidden_state[:, 0]
        return token.float().cpu()


class Clip:
    """CLIP's projected features: short side 224, its own mean and deviation; texts are truncated."""

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.device = device
        self.model = _loaded(lambda: CLIPModel.from_pretrained(name), name).eval().to(device)
        self.tokenizer = _loaded(lambda: AutoTokenizer.from_pretrained(name), name)

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(n, d) float32."""
        import torch

        with torch.inference_mode():
            hidden = self.model.vision_model(pixel_values=pixels(images, 224, OPENAI_CLIP).to(self.device))
            features: torch.Tensor = self.model.visual_projection(hidden.pooler_output)
            return features.float().cpu()

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, d) float32."""
        import torch

        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            hidden = self.model.text_model(**tokens)
            features: torch.Tensor = self.model.text_projection(hidden.pooler_output)
            return features.float().cpu()


def load_encoders(dino: str, clip: str, dinov2: str, device: str) -> Encoders:
    """The encoders by hub id or folder.

    Raises:
        UserError: one cannot be loaded.
    """
    return Encoders(Dino(dino, device), Clip(clip, device), Dino(dinov2, device))


def _loaded(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: cannot be loaded ({reason}); give a hub id, or the folder of a download") from None
