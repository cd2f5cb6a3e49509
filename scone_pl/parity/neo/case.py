"""Comparison with the published code of SenseNova-U1 and U1.5 (tests/golden/neo).

Both experts run jointly here, as in training; the published numbers come from one after the other through a cache, and
sampling is compared with this project's cached sampling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from scone_pl.errors import UserError
from scone_pl.model.attention import dense_mask
from scone_pl.model.config import BridgeConfig
from scone_pl.model.experts import ByExpert, Routing
from scone_pl.model.layout import ReferenceImages
from scone_pl.model.neo.network import IMAGENET_MEAN, IMAGENET_STD
from scone_pl.model.sequence import PackedSequence, SplitKind
from scone_pl.model.vae import as_float, latents_to_tokens
from scone_pl.parity.comparison import Comparison, TrackedTensors, exact
from scone_pl.parity.neo.inputs import ParityInputs
from scone_pl.parity.neo.recording import KeepingKeys, Passes, Recorded
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


class ParityCase(ParityInputs):
    """The comparisons of a folder."""

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
        with Recorded(model) as recorded:
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
        plan_of = KeepingKeys(dense_mask(pack), kept)
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
        with Recorded(self.model) as recorded, torch.no_grad():
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
        """All samples as one training pack; the text after a target changes nothing and is not computed here."""
        numbers = [*range(len(self.samples))]
        whole = self.pack(numbers, closed=True)
        length = len(whole)
        for name, ours in (("ids", self.ids_of(whole)), ("position", whole.position_ids)):
            yield exact(f"pack.{name}", ours, tensors[f"pack.{name}"][:length])
        yield exact("pack.is_target", whole.target_tokens, tensors["pack.is_target"][:length])
        # After the samples there may be filler, a sample of its own.
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

        with Passes() as passes:
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
