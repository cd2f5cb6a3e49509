"""Token counts of samples, and the settings that they depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scone_pl.data.index import IndexEntry
from scone_pl.data.packing import PackingConfig, sample_length
from scone_pl.data.shards import ShardSet
from scone_pl.data.tokenizer import Tokenizer, byte_tokenizer
from scone_pl.errors import UserError
from scone_pl.model.sequence import SequenceFormat


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of samples before dropout, from their index entries."""

    sequence_format: SequenceFormat
    tokenizer: Tokenizer
    packing: PackingConfig

    @classmethod
    def published(cls, tokenizer: Tokenizer | None = None) -> TokenCounter:
        """At the training settings of the published 7B model; without a tokenizer every byte counts as a token."""
        tokenizer = tokenizer or byte_tokenizer()
        sequence_format = SequenceFormat(
            special=tokenizer.special,
            latent_stride=16,
            latent_positions_per_side=64,
            vit_patch_size=14,
            vit_positions_per_side=70,
        )
        return cls(sequence_format, tokenizer, PackingConfig())

    def __call__(self, entry: IndexEntry) -> int:
        """Number of tokens of one sample."""
        return sample_length(entry, self.sequence_format, self.tokenizer, self.packing)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a count depends on besides the sample, as JSON."""
        plain = self.tokenizer.fingerprint == byte_tokenizer().fingerprint
        return {
            "vae_resize": {**asdict(self.packing.vae_resize), "stride": self.sequence_format.latent_stride},
            "vit_resize": {**asdict(self.packing.vit_resize), "stride": self.sequence_format.vit_patch_size},
            "vit_source": self.packing.vit_source,
            "targets_per_sample": self.packing.targets_per_sample,
            "tokenizer": "bytes" if plain else self.tokenizer.fingerprint,
        }

    def agrees_with(self, shards: ShardSet) -> bool:
        """Whether a data set has stored counts, for these settings."""
        return shards.manifest.tokens is not None and shards.manifest.tokens.settings == self.settings

    def count_all(self, shards: ShardSet) -> np.ndarray:
        """(samples,) int64: tokens of every sample.

        Raises:
            UserError: a count stored for these settings is wrong; see also `ShardSet.entries`.
        """
        stored, counts = self.agrees_with(shards), np.zeros(len(shards), dtype=np.int64)
        for i, entry in enumerate(shards.entries()):
            counts[i] = self(entry)
            if stored and entry.tokens not in (None, counts[i]):
                raise UserError(
                    f"{shards.index.name}: line {i + 1} ({entry.key}) says {entry.tokens} tokens, but it has "
                    f"{counts[i]}; convert the data set again"
                )
        return counts
