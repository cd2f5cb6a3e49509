"""Comparison with BAGEL's and Scone's published implementation (tests/golden/parity)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.packing import PackingConfig, PreparedSample, prepare_sample
from scone_pl.data.sample import Sample
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.attention import dense_mask
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig, SconeConfig
from scone_pl.model.network import NetworkOutput
from scone_pl.model.sequence import PackedSequence, SpecialTokens, SplitKind
from scone_pl.model.vae import as_float
from scone_pl.parity.comparison import TOLERANCE, Comparison, TrackedTensors, close, exact, png
from scone_pl.sampling.checks import as_device
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.prompts import prompts_of
from scone_pl.sampling.sampler import decode_latents, sample, to_uint8
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.training.losses import flow_matching


class _FixedIds:
    """A stand-in for a tokenizer that returns given ids."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def encode(self, text: str) -> list[int]:
        return self.ids


class ParityCase:
    """A parity folder, opened, with its model."""

    def __init__(self, folder: Path, *, attention: str, device: str) -> None:
        """Raises `UserError` if the folder is not a parity folder."""
        self.device = as_device(device)
        for name in ("expected.json", "expected.safetensors"):
            if not (folder / name).exists():
                raise UserError(f"{folder}: not a parity folder, {name} is missing")
        self.expected: dict[str, Any] = read_json(folder / "expected.json", dict)
        self.tensors = TrackedTensors.of(folder / "expected.safetensors")
        self.config = self.expected["config"]
        self.model = from_pretrained(folder, device=device)
        self._check_sizes()
        self.model.attention = attention
        self.model.requires_grad_(True)
        self.model.autoencoder.requires_grad_(False)
        special = self.expected["special_tokens"]
        self.sequence_format = self.model.config.sequence_format(
            SpecialTokens(
                special["bos_token_id"], special["eos_token_id"], special["start_of_image"], special["end_of_image"]
            )
        )
        bridge = self.expected["bridge"]
        self.bridge = BridgeConfig(
            source_layer=bridge["source_layer"],
            first_masked_layer=bridge["first_masked_layer"],
            last_masked_layer=min(bridge["last_masked_layer"], self.model.config.decoder.num_layers - 1),
            threshold=bridge["threshold"],
        )

    def _check_sizes(self) -> None:
        config = self.model.config
        assert isinstance(config, SconeConfig)
        ours = {
            "latent_patch_size": config.latent_patch_size,
            "max_latent_size": config.latent_positions_per_side,
            "vit_max_num_patch_per_side": config.vit_positions_per_side,
            "connector_act": "gelu_pytorch_tanh",
        }
        for key, value in ours.items():
            stated = self.config["scone"].get(key, value)
            if stated != value:
                raise UserError(f"expected.json: config.scone.{key} is {stated!r:.80}, but {value!r} in the checkpoint")
        if not isinstance(self.expected["samples"], list) or not self.expected["samples"]:
            raise UserError("expected.json: samples must be a list of at least one sample")

    @property
    def references(self) -> int:
        """Reference images of all samples."""
        return len(self.pack().splits_of(SplitKind.VAE))

    # ------------------------------------------------------------------ inputs, with the code of `data`
    def prepare(self, number: int, vit_source: Literal["original", "vae_resized"]) -> PreparedSample:
        """Sample `number` decoded and transformed as training (or sampling) does it."""
        description = self.expected["samples"][number]
        encoded = [png(self.tensors[f"sample{number}.image{i}"]) for i in range(description["num_refs"] + 1)]
        packing = PackingConfig(
            # The instruction is dropped in training only.
            instruction_dropout=1.0 if description["drop_text"] and vit_source == "original" else 0.0,
            vae_resize=self._limits("vae_transform"),
            vit_resize=self._limits("vit_transform"),
            vit_source=vit_source,
        )
        full = Sample(key=f"sample{number}", references=tuple(encoded[:-1]), instruction="given", target=encoded[-1])
        tokenizer: Any = _FixedIds(description["text_ids"])
        return prepare_sample(full, self.sequence_format, tokenizer, packing, np.random.default_rng(0))

    def _limits(self, name: str) -> ResizeLimits:
        limits = self.config[name]
        return ResizeLimits(max_size=limits["max_image_size"], min_size=limits["min_image_size"])

    def pack(self) -> PackedSequence:
        """All samples in one sequence, with the expected timesteps."""
        times = iter(self.tensors["pack.packed_timesteps"].split(self._latent_lengths()))
        builder = SequenceBuilder(self.sequence_format)
        for number, description in enumerate(self.expected["samples"]):
            split_timesteps = list(islice(times, description["num_refs"] + 1))
            prepared = self.prepare(number, "original")
            dataclasses.replace(prepared, timestep_logits=[split_timesteps[-1][0].item()]).append_to(builder)
        return builder.build().to(self.device)

    def _latent_lengths(self) -> list[int]:
        return [rows * columns for rows, columns in self.expected["pack"]["patchified_vae_latent_shapes"]]

    # ------------------------------------------------------------------ comparisons
    def compare(self) -> Iterator[Comparison]:
        """All comparisons, in the order of computation."""
        pack = self.pack()
        yield from self._packing(pack)
        yield from self._autoencoder(pack)
        clean = self.model.encode_images(pack)
        yield from self._training("plain", pack, clean, None)
        yield from self._training("bridge", pack, clean, self.bridge)
        if "infer" in self.expected:
            yield from self._inference()
        for name in sorted(self.tensors.keys() - self.tensors.read):
            yield Comparison(f"{name}: not compared", math.inf, 0)

    def _packing(self, pack: PackedSequence) -> Iterator[Comparison]:
        expected, tensors = self.expected["pack"], self.tensors
        yield exact("pack.sequence_length", [len(pack)], [expected["sequence_length"]])
        lengths = [sum(s.length for s in splits) for splits in pack.by_sample]
        yield exact("pack.sample_lens", lengths, expected["sample_lens"])
        grids = [s.grid for s in pack.latent_splits]
        yield exact("pack.patchified_vae_latent_shapes", grids, expected["patchified_vae_latent_shapes"])
        yield exact("pack.patchified_vit_token_shapes", list(pack.vit_grids), expected["patchified_vit_token_shapes"])
        lengths = [rows * columns for rows, columns in pack.vit_grids]
        integers = {
            "packed_text_ids": pack.text_ids,
            "packed_text_indexes": pack.text_index,
            "packed_instruc_indexes": pack.instruction_index,
            "packed_position_ids": pack.position_ids,
            "packed_vit_token_indexes": pack.vit_index,
            "packed_vit_position_ids": pack.vit_positions,
            "vit_token_seqlens": torch.tensor(lengths),
            "packed_vae_token_indexes": pack.latent_index,
            "packed_latent_position_ids": pack.latent_positions,
            "mse_loss_indexes": pack.target_index,
        }
        for name, ours in integers.items():
            yield exact(f"pack.{name}", ours, tensors[f"pack.{name}"])
        yield close("pack.packed_vit_tokens", as_float(pack.vit_patches), tensors["pack.packed_vit_tokens"])
        times = pack.expand_latent_splits(pack.timestep_logits)
        yield close("pack.packed_timesteps", times, tensors["pack.packed_timesteps"])
        allowed, start = dense_mask(pack), 0
        for number, splits in enumerate(pack.by_sample):
            stop = splits[-1].stop
            block = allowed[start:stop, start:stop]
            yield exact(f"pack.attention_allowed.{number}", block, tensors[f"pack.attention_allowed.{number}"])
            start = stop

    @torch.no_grad()
    def _autoencoder(self, pack: PackedSequence) -> Iterator[Comparison]:
        encoded = self.model.autoencoder.encode_each(pack.images)
        for i, (image, latent) in enumerate(zip(pack.images, encoded, strict=True)):
            yield close(f"vae.input.{i}", as_float(image), self.tensors[f"vae.input.{i}"])
            yield close(f"vae.latent_mean.{i}", latent, self.tensors[f"vae.latent_mean.{i}"])
            decoded = self.model.autoencoder.decode(self.tensors[f"vae.latent_mean.{i}"][None].to(self.device))
            yield close(f"vae.decoded.{i}", decoded[0], self.tensors[f"vae.decoded.{i}"])

    def _training(
        self, name: str, pack: PackedSequence, clean: Tensor, bridge: BridgeConfig | None
    ) -> Iterator[Comparison]:
        prefix = f"train.{name}"
        noise = self.tensors["train.noise"].to(self.device)
        if noise.shape != clean.shape:
            raise UserError(
                f"expected.safetensors: train.noise has shape {list(noise.shape)}, but the samples have "
                f"{list(clean.shape)} latent tokens and values"
            )
        shift = self.config["scone"].get("timestep_shift", 1.0)
        self.model.zero_grad(set_to_none=True)
        result = flow_matching(self.model, pack, clean, noise, bridge=bridge, timestep_shift=shift)
        hidden = in_sequence_order(result.output, pack)
        yield close(f"{prefix}.last_hidden_state", hidden, self.tensors[f"{prefix}.last_hidden_state"])
        yield close(f"{prefix}.squared_error", result.squared_error, self.tensors[f"{prefix}.squared_error"])
        loss = result.squared_error.mean()
        yield close(f"{prefix}.loss", loss[None], self.tensors[f"{prefix}.loss"])
        state = result.output.bridge
        if state is not None:
            yield close("bridge.similarity", state.similarity, self.tensors["bridge.similarity"])
            yield exact("bridge.blocked", state.blocked, self.tensors["bridge.blocked"])
        loss.backward()
        yield from self._gradients(prefix)

    def _gradients(self, prefix: str) -> Iterator[Comparison]:
        expected: dict[str, float] = self.expected[f"{prefix}.grad_norms"]
        ours = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in self.model.named_parameters()}
        unknown = sorted(expected.keys() - ours.keys())
        if unknown:
            raise UserError(
                f"expected.json: gradient norms of parameters that the model lacks: {', '.join(unknown[:3])}"
            )
        # A norm far below the others is rounding noise of cancelling sums, so its error is relative to their scale.
        floor = 1e-3 * max(expected.values())
        errors = {n: abs(ours[n] - norm) / max(norm, floor) for n, norm in expected.items()}
        errors |= {n: math.inf for n, norm in expected.items() if (norm == 0) != (ours[n] == 0)}
        worst = max(errors, key=lambda n: errors[n])
        yield Comparison(f"{prefix}.grad_norms ({len(expected)})", errors[worst], TOLERANCE)

    def _inference(self) -> Iterator[Comparison]:
        infer = self.expected["infer"]
        prompt = self._prompt(infer["sample"], tuple(infer["image_shape"]))
        noise = self.tensors["infer.initial_noise"]
        for name, run in infer["runs"].items():
            config = SamplingConfig(
                num_inference_steps=run["num_timesteps"] - 1,
                timestep_shift=run["timestep_shift"],
                guidance_scale=run["cfg_text_scale"],
                image_guidance_scale=run["cfg_img_scale"],
                guidance_interval=tuple(run.get("cfg_interval", (0.0, 1.0))),
                guidance_rescale=run.get("cfg_renorm_type", "global"),
                guidance_rescale_min=run.get("cfg_renorm_min", 0.0),
            )
            steps: list[tuple[float, Tensor]] = []

            def record(i: int, t: float, v: Tensor, x: Tensor, steps: list[tuple[float, Tensor]] = steps) -> None:
                steps.append((t, v))

            latents = sample(self.model, self.sequence_format, [prompt], config, [noise], record)[0]
            expected = {k: self.tensors[f"infer.{name}.{k}"] for k in ("timesteps", "velocity_first", "velocity_last")}
            yield close(f"infer.{name}.timesteps", torch.tensor([t for t, _ in steps]), expected["timesteps"])
            yield close(f"infer.{name}.velocity_first", steps[0][1], expected["velocity_first"])
            yield close(f"infer.{name}.velocity_last", steps[-1][1], expected["velocity_last"])
            yield close(f"infer.{name}.final_latent", latents.tokens, self.tensors[f"infer.{name}.final_latent"])
            image = to_uint8(decode_latents(self.model, latents)).int()
            levels = (image - self.tensors[f"infer.{name}.image"].int()).abs().max()
            yield Comparison(f"infer.{name}.image", float(levels), 1)

    def _prompt(self, number: int, size: tuple[int, int]) -> Prompt:
        builder = SequenceBuilder(self.sequence_format)
        self.prepare(number, "vae_resized").append_to(builder)
        return dataclasses.replace(prompts_of(builder.build())[0], size=size)


def in_sequence_order(output: NetworkOutput, pack: PackedSequence) -> Tensor:
    """(L, D): both experts' final states."""
    return torch.cat(output.hidden).index_select(0, pack.merge_index)
