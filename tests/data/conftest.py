"""A format that belongs to no model, and a synthetic data set whose samples differ in size."""

import pytest
from data_helpers import make_sample

from scone_pl.data.packing import PackingConfig
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.model.sequence import SequenceFormat


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def sequence_format(tokenizer):
    return SequenceFormat(
        special=tokenizer.special,
        latent_stride=8,
        latent_positions_per_side=8,
        vit_patch_size=8,
        vit_positions_per_side=8,
    )


@pytest.fixture(scope="session")
def packing():
    limits = ResizeLimits(max_size=48, min_size=16)
    return PackingConfig(token_budget=150, vae_resize=limits, vit_resize=limits, lookahead=8)


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "synthetic"
    write_shards((make_sample(i) for i in range(60)), folder, samples_per_shard=13, progress=False)
    return folder
