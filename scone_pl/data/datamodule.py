"""The LightningDataModule: loaders for every stage of a run, and the stream position in checkpoints."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, replace
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import IterableDataset

from scone_pl.data.agreement import Agreement
from scone_pl.data.jsonl import JsonlPrompts
from scone_pl.data.loading import PackLoader
from scone_pl.data.packing import PackingConfig
from scone_pl.data.prompts import Request, is_prompt_file, read_requests
from scone_pl.data.sources import Mixture, Source
from scone_pl.data.storage import StorageConfig
from scone_pl.data.stream import Batch, Cursor, FixedPacks, PackMaker, PackStream, SingleSamples
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.windows import WindowedLoader
from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.model.sequence import SequenceFormat
from scone_pl.ranges import check_number, check_whole

Number = TypeVar("Number", int, float)

_MIN_SAMPLES = 1000
_MAX_SKIP_MESSAGES = 20
_MAX_WORKERS = 1024


class PackedDataModule(pl.LightningDataModule):
    """Packed sequences from shards, with exact resumption.

    The callback `DataProgress` calls `consumed(batch)` after each training batch; checkpoints then hold the stream
    position (see `Cursor`), a fingerprint of the data, and the numbers of samples seen and skipped by all ranks.
    """

    def __init__(
        self,
        train: list[Source] | None = None,
        val: list[Source] | None = None,
        test: list[Source] | None = None,
        predict: list[Source] | None = None,
        packing: PackingConfig | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_packs: int = 8,
        max_skipped_fraction: float = 0.01,
        shuffle_window: int | None = None,
        storage: StorageConfig = StorageConfig(),  # noqa: B008 (immutable)
        latents: bool = False,
    ) -> None:
        """Data sets and how to read them.

        Args:
            train: data sets to train on, mixed and shuffled once per epoch.
            val: data sets to validate on.
            test: data sets to test on.
            predict: data sets to generate from, one sample per batch; or JSON files of prompts (`data/prompts.py`).
            packing: how samples become sequences; the defaults are the release's.
            num_workers: worker processes per rank that decode and pack; 0 = in the training process.
            seed: determines order, dropouts and noise levels.
            val_packs: packs per rank in a validation run (fewer if the data set has fewer).
            max_skipped_fraction: fraction of unusable samples above which training stops. Until 1000 samples are seen
                it is a fraction of 1000 (at 0.01 the eleventh skipped sample stops a new run).
            shuffle_window: number of shards among which samples are shuffled; null = the whole set. For remote sets
                that do not fit into the cache.
            storage: how data sets at a URL are fetched and cached.
            latents: train on the latents that `python -m scone_pl latents` left beside the data sets, instead of
                encoding their images in every step.
        """
        super().__init__()
        check_whole("data.num_workers", num_workers, maximum=_MAX_WORKERS)
        check_whole("data.seed", seed)
        check_whole("data.val_packs", val_packs, minimum=1)
        check_number("data.max_skipped_fraction", max_skipped_fraction, minimum=0, maximum=1)
        if shuffle_window is not None:
            check_whole("data.shuffle_window", shuffle_window, minimum=1)
        for source in [*(train or []), *(val or []), *(test or []), *(predict or [])]:
            source.check()
        self.sources = {"train": train or [], "val": val or [], "test": test or [], "predict": predict or []}
        self.packing = packing or PackingConfig()
        self.num_workers = num_workers
        self.seed = seed
        self.val_packs = val_packs
        self.max_skipped_fraction = max_skipped_fraction
        self.skipped: Counter[str] = Counter()
        """Training samples skipped by all ranks so far, per reason."""
        self.seen = 0
        """Training samples read by all ranks so far, skipped ones included."""
        self.shuffle_window = shuffle_window
        self.storage = storage
        self.latents = latents
        self.overfit_packs = 0
        """`trainer.overfit_batches`: training repeats the first this many packs of each rank; 0 = disabled."""
        self._agreement = Agreement()
        self._num_skip_messages = 0
        self._cursor = Cursor()
        self._loaded_fingerprint: str | None = None
        self._loaded_packing: dict[str, Any] = {}
        self._connected: tuple[SequenceFormat, Tokenizer] | None = None
        self._autoencoder = ""
        self._mixtures: dict[str, Mixture] = {}
        self._requests: list[Request] = []

    # ------------------------------------------------------------------ set-up
    def connect(self, sequence_format: SequenceFormat, tokenizer: Tokenizer, autoencoder: str = "") -> None:
        """Sets the model's sequence format and tokenizer; without this call the trainer's module provides them.

        Args:
            sequence_format: the model's.
            tokenizer: the model's.
            autoencoder: `checkpoints.model.autoencoder_identity`, for `latents`.
        """
        self._connected, self._autoencoder = (sequence_format, tokenizer), autoencoder
        self._mixtures.clear()

    @property
    def _model(self) -> tuple[SequenceFormat, Tokenizer]:
        if self._connected is None:
            raise RuntimeError("call setup() or connect(sequence_format, tokenizer) first")
        return self._connected

    def setup(self, stage: str | None = None) -> None:
        """Opens and checks the data sets that `stage` needs.

        Raises:
            UserError: see `Mixture`.
        """
        if self._connected is None:
            module: Any = self.trainer.lightning_module if self.trainer else None
            if module is None:
                raise RuntimeError("call connect(sequence_format, tokenizer) when there is no trainer")
            self._connected = module.sequence_format, module.tokenizer
            self._autoencoder = module.autoencoder_identity if self.latents else ""
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        for split in needed.get(stage or "", tuple(self.sources)):
            if split == "predict" and self._jsonl_files():
                self._requests = read_requests(self._jsonl_files())
                self._report_image_sizes()
            elif self.sources[split]:
                self.mixture(split)
            elif stage is not None and split != "val":
                raise UserError(f"data.{split} lists no data set; give at least one folder of shards")

    def _jsonl_files(self) -> list[str]:
        """The prediction sources if they are files of prompts, else none."""
        paths = [source.path for source in self.sources["predict"]]
        files = [path for path in paths if is_prompt_file(path)]
        if files and len(files) < len(paths):
            raise UserError("data.predict: give either JSON files of prompts or folders of shards, not both")
        return files

    def _report_image_sizes(self) -> None:
        """Prompts in JSON files are generated at the release's inference sizes, whatever training uses."""
        default = PackingConfig()
        names = ("vae_resize", "vit_resize", "vit_source", "pixels")
        unused = [name for name in names if getattr(self.packing, name) != getattr(default, name)]
        if unused:
            warn(f"data.packing: {', '.join(unused)} has no effect on JSON prompts, which use the release's sizes")

    def mixture(self, split: str) -> Mixture:
        """The opened data sets of `train`, `val`, `test` or `predict`."""
        if split not in self._mixtures:
            packing = self.packing if split == "train" else self.packing.without_dropout()
            if split == "predict":  # one sample per batch: no budget applies
                packing = replace(packing, token_budget=sys.maxsize)
            window = self.shuffle_window if split == "train" else None
            mixture = Mixture(self.sources[split], *self._model, packing, self.storage, window)
            if self.latents and split == "train":
                mixture.use_latents(self._model[0], self._autoencoder)
            self._mixtures[split] = mixture
            if message := mixture.over_budget_message():
                warn(f"data.{split}: {message}")
        return self._mixtures[split]

    # ------------------------------------------------------------------ loaders
    def train_dataloader(self) -> WindowedLoader:
        self._check_resumed()
        mixture = self.mixture("train")
        mixture.check_cache(self._consumer()[1] * max(1, self.num_workers))
        rank_zero_info(f"data.train: {mixture.summary()}")
        loader = self._loader(PackStream(self._maker("train"), self._cursor, *self._consumer(), self.overfit_packs))
        return WindowedLoader(loader, self.trainer.accumulate_grad_batches if self.trainer else 1)

    def val_dataloader(self) -> PackLoader | list[PackLoader]:
        return self._fixed("val", self.val_packs) if self.sources["val"] else []

    def test_dataloader(self) -> PackLoader:
        return self._fixed("test", None)

    def predict_dataloader(self) -> PackLoader:
        if self._requests:
            prompts = JsonlPrompts(self._requests, *self._model, *self._consumer(), self.packing.exif_orientation)
            return self._loader(prompts)
        return self._loader(SingleSamples(self._maker("predict"), None, *self._consumer()))

    def _fixed(self, split: str, packs: int | None) -> PackLoader:
        return self._loader(FixedPacks(self._maker(split), packs, *self._consumer()))

    def _maker(self, split: str) -> PackMaker:
        mixture = self.mixture(split)
        return PackMaker(
            mixture,
            *self._model,
            mixture.packing,
            self.seed,
            split,
            keep_samples=split != "train",
        )

    def _consumer(self) -> tuple[int, int]:
        """(rank, number of ranks) among those that need different data."""
        strategy = self.trainer.strategy if self.trainer else None
        kwargs = getattr(strategy, "distributed_sampler_kwargs", None) or {"rank": 0, "num_replicas": 1}
        return kwargs["rank"], kwargs["num_replicas"]

    def _loader(self, dataset: IterableDataset[Batch]) -> PackLoader:
        return PackLoader(dataset, self._model[0], self.num_workers)

    # ------------------------------------------------------------------ progress
    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Exchanges the batch's counts with the other ranks; returns it with the sums over ranks.

        Raises:
            UserError: on every rank, if the data worker of any rank failed.
        """
        if not isinstance(batch, Batch):
            return batch
        failed, seen, skipped, targets, labels = self._agreement.sums(
            batch.failure is not None,
            batch.seen,
            sum(batch.skipped.values()),
            batch.step_targets,
            batch.step_labels,
        )
        if failed:
            raise UserError(next(filter(None, self._agreement.gather(batch.failure))))
        batch = replace(
            batch,
            seen=self._per_replica(seen),
            step_targets=self._per_replica(targets),
            step_labels=self._per_replica(labels),
        )
        if not skipped:
            return batch
        gathered = self._agreement.gather((batch.skipped, batch.skip_messages))
        total: Counter[str] = Counter()
        for counts, _ in gathered:
            total.update(counts)
        self._log_skipped([line for _, lines in gathered for line in lines])
        total = Counter({reason: self._per_replica(count) for reason, count in total.items()})
        if self.trainer is not None and self.trainer.predicting:
            self.skipped.update(total)
        return replace(batch, skipped=dict(total))

    def _per_replica(self, count: Number) -> Number:
        """A sum over processes as a sum over those with different data (tensor-parallel ranks share theirs)."""
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        total = count * self._consumer()[1]
        return total // ranks if isinstance(total, int) else total / ranks

    def _log_skipped(self, lines: list[str]) -> None:
        for line in lines[: _MAX_SKIP_MESSAGES - self._num_skip_messages]:
            self._num_skip_messages += 1
            warn(f"data: left out: {line}")
            if self._num_skip_messages == _MAX_SKIP_MESSAGES:
                warn("data: further samples that are left out are only counted (data/skipped in TensorBoard)")

    def consumed(self, batch: Batch) -> None:
        """Records that a training batch was consumed; call it once per batch, before any checkpoint is written.

        Raises:
            UserError: more samples were skipped than `max_skipped_fraction` allows; on every rank at the same step.
        """
        rank, world_size = self._consumer()
        position = batch.position
        self._cursor.consumed = position.number - rank + world_size
        self._cursor.epoch, self._cursor.epoch_start = position.epoch, position.number - position.pack
        self.skipped.update(batch.skipped)
        self.seen += batch.seen
        self._check_skipped()

    def _check_skipped(self) -> None:
        # One broken sample among the first ten is no reason to stop: the fraction is of at least 1000 samples.
        if self.skipped.total() > self.max_skipped_fraction * max(self.seen, _MIN_SAMPLES):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
            raise UserError(
                f"{self.skipped.total()} of {self.seen} training samples could not be used ({reasons}), more than "
                f"data.max_skipped_fraction {self.max_skipped_fraction} of {max(self.seen, _MIN_SAMPLES)}; run `shards "
                "verify` on the data or raise the limit"
            )

    def state_dict(self) -> dict[str, Any]:
        fingerprint = self._fingerprint() if self._mixtures.get("train") else None
        return {
            **asdict(self._cursor),
            "fingerprint": fingerprint,
            "packing": asdict(self.packing),
            "seen": self.seen,
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._cursor.consumed = state_dict["consumed"]
        self._cursor.epoch = state_dict["epoch"]
        self._cursor.epoch_start = state_dict["epoch_start"]
        self._loaded_fingerprint = state_dict["fingerprint"]
        self._loaded_packing = state_dict.get("packing", {})  # missing in old snapshots
        self.seen = state_dict["seen"]
        self.skipped = Counter(state_dict["skipped"])

    def _fingerprint(self) -> str:
        """Hash of everything that determines the sequence of training packs."""
        first = f" first {self.overfit_packs}" if self.overfit_packs else ""
        return self.mixture("train").fingerprint(self.seed) + first

    def _check_resumed(self) -> None:
        """Starts a new epoch, with a warning, if data, token budget or seed differ from those of the checkpoint.

        Other changes of `packing`, such as a dropout, keep the position and are logged.
        """
        loaded, self._loaded_fingerprint = self._loaded_fingerprint, None
        if loaded is None:
            return
        if loaded == self._fingerprint():
            packing = asdict(self.packing)
            for name in [name for name in self._loaded_packing if self._loaded_packing[name] != packing.get(name)]:
                warn(
                    f"data.packing.{name}: was {self._loaded_packing[name]} in the checkpoint and is now "
                    f"{packing.get(name)}; samples are prepared differently from here on"
                )
            rank_zero_info(f"data.train: resuming at pack {self._cursor.consumed} (epoch {self._cursor.epoch})")
            return
        self._cursor.epoch += 1
        self._cursor.epoch_start = self._cursor.consumed
        warn(
            "data.train: data sets, packing or seed differ from those of the checkpoint, so its stream position is "
            f"discarded; starting epoch {self._cursor.epoch} of the new data"
        )
