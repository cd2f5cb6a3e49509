"""Comparison with the published code of SenseNova-U1 and U1.5 (tests/golden/neo).

Both experts run jointly here, as in training; the published numbers come from one after the other through a cache, and
sampling is compared with this project's cached sampling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor, nn

from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.neo import Tokenizer
from scone_pl.data.transforms import PixelResize, ResizeLimits
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.attention import dense_mask
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.experts import ByExpert, Routing
from scone_pl.model.layout import ReferenceImages
from scone_pl.model.neo.layout import ChatTemplate
from scone_pl.model.neo.network import IMAGENET_MEAN, IMAGENET_STD, Neo
from scone_pl.model.sequence import PackedSequence, SplitKind
from scone_pl.model.vae import as_float, latents_to_tokens
from scone_pl.parity.comparison import Comparison, TrackedTensors, exact
from scone_pl.sampling import sampler
from scone_pl.sampling.checks import as_device
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.sampler import sample
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.training.losses import FlowResult, flow_matching

TOLERANCE, LOOSE = 1e-5, 1e-4
"""Of relative L2 norms; the loose one for gradient norms and sampled images."""


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Comparison:
    """L2 norm of the difference over that of the expected values."""
    a, b = ours.detach().cpu().double(), theirs.cpu().double()
    if a.shape != b.shape:
        return Comparison(f"{name} {list(a.shape)} for {list(b.shape)}", math.inf, tolerance)
    error = float((a - b).norm() / b.norm().clamp(min=1e-12)) if b.numel() else 0.0
    return Comparison(name, error if error == error else math.inf, tolerance)


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


class _Recorded:
    """Layer outputs and layer 0's keys of one pass."""

    def __init__(self, model: Neo) -> None:
        self.layers: list[ByExpert] = []
        self._model = model

    def __enter__(self) -> _Recorded:
        layers = self._model.language_model.model.layers
        self._hooks = [layer.register_forward_hook(self._keep) for layer in layers]
        return self

    def _keep(self, layer: nn.Module, inputs: Any, output: ByExpert) -> None:
        self.layers.append(output)

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


class ParityCase:
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

    # ------------------------------------------------------------------ inputs, with the code of `data`
    def images(self, number: int) -> list[ReferenceImages]:
        """The references of a sample, resized."""
        limits = ResizeLimits(max_size=1, min_size=1)
        stride, count = self.format.vit_patch_size, self.samples[number]["num_references"]
        low, high = self.expected["min_pixels"], self.expected["max_pixels"]
        resize = PixelResize(stride, limits.max_size, limits.min_size, high, min_pixels=low)
        originals = [Image.fromarray(self.tensors[f"sample{number}.image{i}"].numpy()) for i in range(count)]
        return [ReferenceImages(None, resize(original, interleaved=True)) for original in originals]

    def pack(self, numbers: list[int], *, closed: bool = False) -> PackedSequence:
        """Samples in one sequence, with the expected noise levels; `closed`: with the text behind their targets."""
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

    # ------------------------------------------------------------------ comparisons
    def compare(self) -> Iterator[Comparison]:
        """All comparisons, in the order of computation."""
        for number in range(len(self.samples)):
            yield from self._sample(number)
        if self.pack_tensors is not None:
            yield from self._pack(self.pack_tensors)
        for name in self.expected["infer"]:
            yield from self._inference(name, self.expected["infer"][name])
        for tensors in filter(None, (self.tensors, self.pack_tensors)):
            for name in sorted(tensors.keys() - tensors.read):
                yield Comparison(f"{name}: not compared", math.inf, 0)

    def _noised(self, number: int) -> tuple[Tensor, Tensor]:
        """Clean tokens and standard normal noise of a sample's target, each (n, P)."""
        side = self.model.config.latent_patch_size
        names = (f"sample{number}.target.clean", f"sample{number}.target.noise")
        clean, noise = (latents_to_tokens(self.tensors[name], side).to(self.device) for name in names)
        return clean, noise

    def _sample(self, number: int) -> Iterator[Comparison]:
        prefix, tensors, description = f"sample{number}", self.tensors, self.samples[number]
        pack = self.pack([number])
        context = len(pack) - len(pack.target_index)
        patch = self.model.config.patch_size
        yield exact(f"{prefix}.prefix_length", [context], [description["prefix_length"]])
        yield exact(f"{prefix}.target_tokens", [len(pack.target_index)], [description["target_tokens"]])
        grids = [[2 * rows, 2 * columns] for rows, columns in pack.vit_grids]
        yield exact(f"{prefix}.grid_hw", grids, tensors[f"{prefix}.grid_hw"])
        yield exact(f"{prefix}.ids", self.ids_of(pack)[:context], tensors[f"{prefix}.ids"])
        yield exact(f"{prefix}.indexes", pack.axis_positions[:context].T, tensors[f"{prefix}.indexes"])
        target_positions = pack.axis_positions[pack.target_index].T
        yield exact(f"{prefix}.target.indexes", target_positions, tensors[f"{prefix}.target.indexes"])
        allowed = dense_mask(pack)[:context, :context]
        yield exact(f"{prefix}.allowed", allowed, tensors[f"{prefix}.allowed"])
        yield exact(f"{prefix}.instruction", pack.instruction_index, tensors[f"{prefix}.instruction"])
        patches = torch.cat([self._patches(image) for image in self.images(number)])
        expected = tensors[f"{prefix}.patches"]
        yield close(f"{prefix}.patches", patches, expected, 1e-6)
        yield exact(f"{prefix}.pixels", self._levels(patches, patch), self._levels(expected, patch))
        yield from self._passes(number, pack, context)

    def _patches(self, image: ReferenceImages) -> Tensor:
        """(patches, 3 p p): normalised, (channel, row, column)."""
        assert image.vit is not None
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        return self._cut(((as_float(image.vit) + 1) / 2 - mean) / std)

    def _cut(self, image: Tensor) -> Tensor:
        side = self.model.config.patch_size
        return rearrange(image, "c (h p) (w q) -> (h w) (c p q)", p=side, q=side)

    def _levels(self, patches: Tensor, side: int) -> Tensor:
        """Normalised patches as levels 0 to 255."""
        mean, std = (torch.tensor(x).repeat_interleave(side * side) for x in (IMAGENET_MEAN, IMAGENET_STD))
        return ((patches * std + mean) * 255).round().long()

    def _passes(self, number: int, pack: PackedSequence, context: int) -> Iterator[Comparison]:
        prefix, tensors, description = f"sample{number}", self.tensors, self.samples[number]
        model, config = self.model, self.model.config
        clean, noise = self._noised(number)
        scale = model.noise_scales([len(noise)])
        times = torch.tensor([1 - description["t"]], dtype=torch.float32, device=self.device)
        z = (1 - times) * clean + times * scale.to(self.device) * noise
        image = rearrange(z, "(h w) (p q c) -> c (h p) (w q)", h=_rows(pack), p=config.latent_patch_size, c=3)
        patches = self._cut(image)
        yield close(f"{prefix}.noise_scale", scale, torch.tensor([description["noise_scale"]]))
        yield close(f"{prefix}.target.z", z, tensors[f"{prefix}.target.z"])
        yield close(f"{prefix}.target.z_image", image, tensors[f"{prefix}.target.z_image"])
        yield close(f"{prefix}.target.patches", patches, tensors[f"{prefix}.target.patches"])
        with torch.no_grad():
            yield close(f"{prefix}.vision", model.embed_references(pack), tensors[f"{prefix}.vision"])
            features = model.embed_pixels(pack, z)
            yield close(f"{prefix}.target.features", features, tensors[f"{prefix}.target.features"])
            of_time, of_noise = model.embed_time(times)[0], model.embed_noise_scale(scale)[0]
            yield close(f"{prefix}.target.time_embedding", of_time, tensors[f"{prefix}.target.time_embedding"])
            yield close(f"{prefix}.target.noise_embedding", of_noise, tensors[f"{prefix}.target.noise_embedding"])
            embedded = model.embed(pack, z, times)
            yield close(f"{prefix}.embeds", embedded.understanding, tensors[f"{prefix}.embeds"])
            yield close(f"{prefix}.target.embeds", embedded.generation, tensors[f"{prefix}.target.embeds"])
            yield self._keys(prefix, pack, embedded, context)
        with _Recorded(model) as recorded:
            result = self._flow(pack, clean, noise, None)
        for layer, states in enumerate(recorded.layers):
            for expert, name in zip(states, ("prefix", "target"), strict=True):
                key = f"{prefix}.{name}.layer.{layer}"
                yield close(key, expert, tensors[key])
        hidden, velocity = result.output.hidden, -result.output.velocity
        yield close(f"{prefix}.prefix.final", hidden.understanding, tensors[f"{prefix}.prefix.final"])
        yield close(f"{prefix}.target.final", hidden.generation, tensors[f"{prefix}.target.final"])
        with torch.no_grad():
            predicted = model.predict_image(hidden.generation, pack)
        yield close(f"{prefix}.target.x_pred", predicted, tensors[f"{prefix}.target.x_pred"])
        yield close(f"{prefix}.target.v_pred", velocity, tensors[f"{prefix}.target.v_pred"])
        yield self._loss(f"{prefix}.loss", [(pack, result)], description["loss"], backward=True)
        yield from self._gradients(prefix, description)
        yield from self._bridge(number, pack, clean, noise, -result.output.velocity.detach())

    def _flow(self, pack: PackedSequence, clean: Tensor, noise: Tensor, bridge: BridgeConfig | None) -> FlowResult:
        self.model.zero_grad(set_to_none=True)
        return flow_matching(self.model, pack, clean, noise, bridge=bridge)

    def _loss(
        self, name: str, results: list[tuple[PackedSequence, FlowResult]], theirs: float, *, backward: bool = False
    ) -> Comparison:
        total = torch.zeros(())
        for pack, result in results:
            weights = pack.target_weights
            assert weights is not None
            total = total + (result.squared_error.mean(-1) * weights).sum()
        loss = total / max(1.0, sum(pack.target_weight for pack, _ in results))
        if backward:
            loss.backward()
        return close(name, loss[None], torch.tensor([theirs]))

    @torch.no_grad()
    def _keys(self, prefix: str, pack: PackedSequence, embedded: ByExpert, context: int) -> Comparison:
        """Layer 0's keys of the context; their channels are in another order here (`pair_axes`)."""
        kept: list[Tensor] = []
        plan_of = _KeepingKeys(dense_mask(pack), kept)
        decoder = self.model.language_model.model
        layer: Any = decoder.layers[0]
        layer(*embedded, Routing(pack), decoder._rotary(pack.axis_positions), plan_of)
        size = kept[0].shape[-1]
        axes = [torch.arange(size // 4), size // 4 + torch.arange(size // 8), 3 * size // 8 + torch.arange(size // 8)]
        order = torch.cat([part for axis in axes for part in (axis, axis + size // 2)])
        theirs = self.tensors[f"{prefix}.prefix.key.0"]
        return close(f"{prefix}.prefix.key.0", kept[0][:context][..., order], theirs)

    def _gradients(self, prefix: str, description: dict[str, Any]) -> Iterator[Comparison]:
        expected: dict[str, float] = description["grad_norms"]
        ours = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in self.model.named_parameters()}
        unknown = sorted({*expected, *description["no_grad"]} - ours.keys())
        if unknown:
            raise UserError(f"expected.json: gradient norms of parameters that the model lacks: {unknown[0]}")
        errors = {n: abs(ours[n] - norm) / max(norm, 1e-12) for n, norm in expected.items()}
        worst = max(errors, key=lambda n: errors[n])
        yield Comparison(f"{prefix}.grad_norms ({len(expected)}; {worst})", errors[worst], LOOSE)
        reached = [n for n in description["no_grad"] if ours[n] != 0]
        yield Comparison(f"{prefix}.no_grad ({len(description['no_grad'])})", float(len(reached)), 0)

    def _bridge(
        self, number: int, pack: PackedSequence, clean: Tensor, noise: Tensor, unmasked: Tensor
    ) -> Iterator[Comparison]:
        prefix, tensors, expected = f"sample{number}.bridge", self.tensors, self.samples[number]["bridge"]
        names = ("source_layer", "first_masked_layer", "last_masked_layer", "threshold")
        bridge = BridgeConfig(**{name: expected[name] for name in names})
        with _Recorded(self.model) as recorded, torch.no_grad():
            result = self._flow(pack, clean, noise, bridge)
        state = result.output.bridge
        assert state is not None
        context = len(tensors[f"{prefix}.similarity"])
        yield close(f"{prefix}.similarity", state.similarity[:context], tensors[f"{prefix}.similarity"])
        yield exact(f"{prefix}.blocked", state.blocked[:context], tensors[f"{prefix}.blocked"])
        yield exact(f"{prefix}.num_blocked", [int(state.blocked.sum())], [expected["num_blocked"]])
        yield exact(f"{prefix}.num_references", [len(pack.vit_index)], [expected["num_references"]])
        for layer in range(len(recorded.layers)):
            key = f"{prefix}.target.layer.{layer}"
            if key in tensors:
                yield close(key, recorded.layers[layer].generation, tensors[key])
        velocity = -result.output.velocity
        yield close(f"{prefix}.v_pred", velocity, tensors[f"{prefix}.v_pred"])
        yield self._loss(f"{prefix}.loss", [(pack, result)], expected["loss"])
        moved = (velocity - unmasked).norm() / unmasked.norm()
        yield close(f"{prefix}.velocity_moved", moved[None], torch.tensor([expected["velocity_moved"]]), LOOSE)

    def _pack(self, tensors: TrackedTensors) -> Iterator[Comparison]:
        """All samples as one training pack; the text behind a target changes nothing and is not computed here."""
        numbers = [*range(len(self.samples))]
        whole = self.pack(numbers, closed=True)
        length = len(whole)
        for name, ours in (("ids", self.ids_of(whole)), ("position", whole.position_ids)):
            yield exact(f"pack.{name}", ours, tensors[f"pack.{name}"][:length])
        yield exact("pack.is_target", whole.target_tokens, tensors["pack.is_target"][:length])
        # Behind the samples there may be filler, a sample of its own.
        allowed = tensors["pack.allowed"]
        yield exact("pack.allowed", dense_mask(whole), allowed[:length, :length])
        across = allowed[:length, length:].sum() + allowed[length:, :length].sum()
        yield Comparison("pack.allowed to filler", float(across), 0)
        yield self._lengths(whole, tensors["pack.lengths"], len(tensors["pack.ids"]) - length)
        clean, noise = (torch.cat(parts) for parts in zip(*map(self._noised, numbers), strict=True))
        pack = self.pack(numbers)
        with torch.no_grad():
            result = self._flow(pack, clean, noise, None)
        yield self._loss("pack.loss", [(pack, result)], tensors["pack.loss"].item())

    def _lengths(self, pack: PackedSequence, theirs: Tensor, filler: int) -> Comparison:
        """Lengths of the samples (and of filler), where they start and stop, or what the tokens of all are."""
        starts = [splits[0].start for splits in pack.by_sample] + [len(pack)]
        samples = [stop - start for start, stop in itertools.pairwise(starts)]
        targets = len(pack.target_index)
        closing = sum(splits[-1].length for splits in pack.by_sample)
        forms = (samples, [*samples, filler], starts, [len(pack) - targets - closing, targets, closing])
        ours = next((form for form in forms if form == theirs.flatten().tolist()), samples)
        return exact("pack.lengths", ours, theirs.flatten())

    # ------------------------------------------------------------------ sampling
    def _inference(self, name: str, run: dict[str, Any]) -> Iterator[Comparison]:
        number, tensors, side = run["sample"], self.tensors, self.model.config.latent_patch_size
        prefix = f"infer.{name}"
        config = _settings(run)
        description = self.samples[number]
        height, width = description["target_size_hw"]
        references = tuple((i.vit, i.vit) for i in self.images(number))
        ids = tuple(self.tokenizer.encode(description["prompt"]))
        prompt = Prompt(references, ids, (height, width))  # type: ignore[arg-type] # both are there
        start = latents_to_tokens(tensors[f"infer.sample{number}.initial_noise"], side)
        scale = self.model.noise_scales([len(start)], sampling=True)
        steps: list[tuple[float, Tensor]] = []

        def record(i: int, t: float, velocity: Tensor, latents: Tensor) -> None:
            steps.append((t, latents))

        with _Passes() as passes:
            (result,) = sample(self.model, self.format, [prompt], config, [start / scale], record)
        times = torch.tensor([1 - t for t, _ in steps] + [1.0])
        yield close(f"{prefix}.timesteps", times, tensors[f"{prefix}.timesteps"])
        grouped: dict[float, int] = {}
        for t, _ in run["passes"]:
            grouped[round(t, 5)] = grouped.get(round(t, 5), 0) + 1
        yield exact(f"{prefix}.passes", [len(x) for x in passes.velocities], list(grouped.values()))
        if f"{prefix}.velocity_raw_first" in tensors:
            first = -torch.stack(passes.velocities[0])
            theirs = tensors[f"{prefix}.velocity_raw_first"]
            yield close(f"{prefix}.velocity_raw_first", first.view(theirs.shape), theirs)
        grid = result.grid

        def pixels(tokens: Tensor) -> Tensor:
            return rearrange(tokens, "(h w) (p q c) -> c (h p) (w q)", h=grid[0], p=side, c=3).cpu()

        if f"{prefix}.images" in tensors:
            images = torch.stack([pixels(x) for _, x in steps])
            yield close(f"{prefix}.images", images, tensors[f"{prefix}.images"], LOOSE)
        if f"{prefix}.image" in tensors:
            yield close(f"{prefix}.image", pixels(result.tokens), tensors[f"{prefix}.image"], LOOSE)


def _settings(run: dict[str, Any]) -> SamplingConfig:
    low, high = next((value for key, value in run.items() if "interval" in key), (0.0, 1.0))
    return SamplingConfig(
        num_inference_steps=run["num_steps"],
        timestep_shift=run["timestep_shift"],
        guidance_scale=run["cfg_scale"],
        image_guidance_scale=run["img_cfg_scale"],
        guidance_interval=(1 - high, 1 - low),
        guidance_rescale=next((value for key, value in run.items() if "norm" in key), "none"),
    )


def _rows(pack: PackedSequence) -> int:
    (target,) = pack.splits_of(SplitKind.TARGET)
    assert target.grid is not None
    return target.grid[0]


class _KeepingKeys:
    """An attention plan that attends by a mask and keeps the keys."""

    def __init__(self, mask: Tensor, kept: list[Tensor]) -> None:
        self.mask, self.kept = mask, kept

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self.kept.append(k)
        return torch.zeros_like(q)


class _Passes:
    """Records the velocities of the contexts in each step, before guidance."""

    def __init__(self) -> None:
        self.velocities: list[list[Tensor]] = []

    def __enter__(self) -> _Passes:
        self._original = original = sampler.Targets.velocity

        def velocity(targets: sampler.Targets, latents: Tensor, t: float) -> list[Tensor]:
            found = original(targets, latents, t)
            self.velocities.append(found)
            return found

        sampler.Targets.velocity = velocity  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        sampler.Targets.velocity = self._original  # type: ignore[method-assign]
