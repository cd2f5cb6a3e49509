"""Frozen weights in 8 or 4 bits: the projections of the decoder's layers, of both experts.

Everything else stays in the dtype of the model: embedding table, language head, norms, biases, ViT, connector, latent
projections, time embedder, autoencoder, and adapters. A weight is restored to the dtype of what enters just before
each product, and again in the backward pass, so that one restored weight is there at a time.

- `int8`: rounded to nearest, one float32 scale a row (output channel); 8 bits a weight. Needs torch only.
- `nf4`: NormalFloat of QLoRA (arXiv 2305.14314) in blocks of 64 with a float32 scale each, which is not quantised
  again; 4.5 bits a weight. Needs bitsandbytes, whose kernels run on the CPU and on CUDA.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl.errors import UserError

Quantization = Literal["int8", "nf4"]
BLOCK_SIZE = 64
"""Weights that share a scale in nf4."""


def check_quantization(kind: str | None) -> None:
    """Raises `UserError` for an unknown kind, and for one whose library is not installed."""
    if kind is None:
        return
    if kind not in get_args(Quantization):
        raise UserError(f"quantization {kind!r:.80} is not one of {', '.join(get_args(Quantization))}, or null")
    if kind == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantization nf4 needs bitsandbytes: pip install bitsandbytes (int8 needs nothing)")


class QuantizableLinear(nn.Linear):
    """A linear map whose weight may be quantised; adapters build on it.

    A quantised weight is in two buffers that no state dict holds, `codes` and `scales`, and `weight` is None. Scales
    are held by their bits, as int32, so that a change of the model's dtype leaves them as they are.
    """

    quantization: Quantization | None = None
    codes: Tensor
    scales: Tensor

    def __init__(self, base: nn.Linear) -> None:
        """`base`: its weights are taken over, not copied."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        if isinstance(base, QuantizableLinear) and base.quantization is not None:
            self._hold(base.quantization, base.codes, base.scales)

    @property
    def device(self) -> torch.device:
        return self.codes.device if self.quantization is not None else self.weight.device

    def quantize(self, kind: Quantization) -> None:
        """Replaces the weight by room for its quantised form, which `set_weight` fills."""
        size, device = (self.out_features, self.in_features), self.device
        if kind == "int8":
            codes = torch.empty(size, dtype=torch.int8, device=device)
            scales = torch.empty(self.out_features, 1, dtype=torch.int32, device=device)
        else:
            codes = torch.empty(-(-math.prod(size) // 2), 1, dtype=torch.uint8, device=device)
            scales = torch.empty(-(-math.prod(size) // BLOCK_SIZE), dtype=torch.int32, device=device)
        self.register_parameter("weight", None)
        self._hold(kind, codes, scales)

    def _hold(self, kind: Quantization, codes: Tensor, scales: Tensor) -> None:
        self.quantization = kind
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Quantises (out, in) into the buffers."""
        weight = weight.to(self.device)
        if self.quantization == "int8":
            scales = weight.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
            codes = weight.float().div_(scales).round_().to(torch.int8)
        else:
            from bitsandbytes.functional import quantize_4bit

            codes, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK_SIZE, quant_type="nf4")
            scales = state.absmax
        self.codes.copy_(codes)
        self.scales.copy_(scales.float().view(torch.int32))

    def restored(self, dtype: torch.dtype) -> Tensor:
        """(out, in): the quantised weight in `dtype`."""
        size, scales = (self.out_features, self.in_features), self.scales.view(torch.float32)
        if self.quantization == "int8" or self.codes.is_meta:
            weight = torch.empty(size, dtype=dtype, device=self.device)
            return weight if weight.is_meta else torch.mul(self.codes, scales, out=weight)
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(scales, size, dtype=dtype, blocksize=BLOCK_SIZE, quant_type="nf4")
        return dequantize_4bit(self.codes, state)

    def product(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), of the map alone."""
        if self.quantization is None:
            return F.linear(x, self.weight, self.bias)
        result: Tensor = _RestoredProduct.apply(x, self)
        return result if self.bias is None else result + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.product(x)


class _RestoredProduct(torch.autograd.Function):
    """Product with a quantised weight; the restored one is not kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizableLinear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.restored(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.linear.restored(gradient.dtype), None


def quantize_layers(layers: nn.Module, kind: Quantization) -> None:
    """Makes room for quantised weights in every linear map of the decoder's layers, in place; adapters stay.

    Raises:
        UserError: see `check_quantization`.
    """
    check_quantization(kind)
    for name, module in list(layers.named_modules()):
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            if not isinstance(module, QuantizableLinear):
                module = QuantizableLinear(module)
                path, _, own = name.rpartition(".")
                setattr(layers.get_submodule(path), own, module)
            module.quantize(kind)


def quantized_weights(model: nn.Module) -> Iterator[tuple[str, QuantizableLinear]]:
    """Published name of each quantised weight, and the map that holds it."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizableLinear) and module.quantization is not None:
            yield f"{name}.weight", module


def weight_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Shape of each parameter by name, those with a quantised weight included."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return shapes | {n: torch.Size((m.out_features, m.in_features)) for n, m in quantized_weights(model)}
