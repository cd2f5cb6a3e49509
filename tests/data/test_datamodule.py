import dataclasses
import warnings
from collections import Counter

import lightning.pytorch as pl
import pytest
import torch
from data_helpers import make_sample
from lightning.pytorch.callbacks import ModelCheckpoint

from scone_pl.data.datamodule import PackedDataModule
from scone_pl.data.packing import PackingConfig
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import Source
from scone_pl.errors import UserError


class Recorder(pl.LightningModule):
    """Trains nothing, notes what it is given."""

    def __init__(self, sequence_format, tokenizer):
        super().__init__()
        self.sequence_format, self.tokenizer = sequence_format, tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.log_ = []
        self.validated = []
        self.predicted = []

    def training_step(self, batch, batch_idx):
        self.log_.append((batch.position.number, batch.sequence.keys, batch.sequence.timestep_logits.tolist()))
        self.trainer.datamodule.consumed(batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append((batch.sequence.keys, batch.sequence.timestep_logits.tolist()))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch.samples[0].key

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def build(shard_folder, packing, sequence_format, tokenizer, tmp_path):
    def build(max_steps=-1, folder=shard_folder, module_class=Recorder, callbacks=(), trainer=None, **options):
        source = [Source(str(folder))]
        options = {"packing": packing, "val": source, "val_packs": 2, **options}
        data = PackedDataModule(train=source, seed=5, **options)
        trainer = pl.Trainer(
            max_steps=max_steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
            num_sanity_val_steps=0,
            limit_val_batches=0,
            **(trainer or {}),
        )
        return trainer, module_class(sequence_format, tokenizer), data

    return build


def keys_of(log):
    return [key for _, keys, _ in log for key in keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_exact_resume(build, tmp_path, workers):
    straight_trainer, straight, data = build(24, num_workers=workers)
    straight_trainer.fit(straight, data)
    assert len(data.mixture("train").plan(data.seed, 0)) < 24  # the run crosses into another epoch
    log, checkpoint = [], None
    for stop, resumed_workers in ((7, workers), (11, 2 - workers), (24, workers)):
        trainer, module, data = build(stop, num_workers=resumed_workers)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
        checkpoint = tmp_path / f"{stop}.ckpt"
        trainer.save_checkpoint(checkpoint)
        log += module.log_
    missing = Counter(keys_of(straight.log_)) - Counter(keys_of(log))
    doubled = Counter(keys_of(log)) - Counter(keys_of(straight.log_))
    assert not missing, "missing samples"
    assert not doubled, "doubled samples"
    assert log == straight.log_, "another order or other noise levels"


def test_checkpoint_callback_sees_consumed_packs(build, tmp_path):
    save = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    trainer, module, data = build(10, callbacks=[save], trainer={"accumulate_grad_batches": 2})
    trainer.fit(module, data)
    state = torch.load(tmp_path / "step=6.ckpt", weights_only=True)["PackedDataModule"]
    assert state["consumed"] == 12
    assert state["seen"] == sum(len(keys) for _, keys, _ in module.log_[:12])


def test_a_trainer_epoch_does_not_rewind_the_stream(build):
    trainer, module, data = build(12, trainer={"limit_train_batches": 4, "max_epochs": -1}, num_workers=2)
    trainer.fit(module, data)
    assert [number for number, _, _ in module.log_] == list(range(12))


def test_no_warning_on_resume(build, tmp_path):
    trainer, module, data = build(2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer, module, data = build(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*checkpoint directory.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer.fit(module, data, ckpt_path=tmp_path / "a.ckpt", weights_only=False)


def test_resume_on_another_number_of_ranks(build, monkeypatch):
    """Ranks are played one after the other; each holds its own data module, as in a real run."""

    def run(ranks, steps, state):
        modules = []
        for rank in range(ranks):
            _, module, data = build()
            monkeypatch.setattr(data, "_consumer", lambda rank=rank: (rank, ranks))
            data.connect(module.sequence_format, module.tokenizer)
            data.setup("fit")
            if state:
                data.load_state_dict(state)
            seen = []
            for _, batch in zip(range(steps), data.train_dataloader(), strict=False):
                seen.append((batch.position.number, batch.sequence.keys))
                data.consumed(batch)
            modules.append((seen, data.state_dict()))
        states = [state for _, state in modules]
        assert len({state["consumed"] for state in states}) == 1
        return sorted(item for seen, _ in modules for item in seen), states[-1]

    first, state = run(2, 7, None)
    second, state = run(3, 4, state)
    third, _ = run(1, 6, state)
    straight, _ = run(1, 32, None)
    assert first + second + third == straight


def test_changed_data_is_said_and_starts_an_epoch(build, tmp_path, packing, caplog):
    trainer, module, data = build(5)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer, module, data = build(8)
    data.packing = dataclasses.replace(packing, token_budget=140)
    trainer.fit(module, data, ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    assert "its stream position is discarded" in caplog.text
    assert module.log_[0][0] == 5
    assert data.state_dict()["epoch"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"exif_orientation": "ignore"},
        {"instruction_dropout": 0.37},
        {"vae_dropout": 0.25},
        {"vit_dropout": 0.25},
        {"pixels": "fast"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_of_what_samples_become_is_logged_and_keeps_the_position(change, build, tmp_path, packing, caplog):
    trainer, module, data = build(5)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer, module, data = build(8)
    data.packing = dataclasses.replace(packing, **change)
    ((name, value),) = change.items()
    trainer.fit(module, data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    line = f"data.packing.{name}: was {getattr(packing, name)} in the checkpoint and is now {value};"
    assert line in caplog.text
    assert "void" not in caplog.text
    assert [number for number, _, _ in module.log_] == [5, 6, 7]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PackingConfig)])
def test_every_packing_setting_is_compared_on_resume(field, build, packing, caplog):
    """Through the fingerprint or by itself: none can change unnoticed."""
    _, module, data = build()
    data.connect(module.sequence_format, module.tokenizer)
    data.mixture("train")
    state = data.state_dict()
    before = getattr(packing, field)
    others = {"vit_source": "vae_resized", "pixels": "fast", "exif_orientation": "ignore"}
    smaller = ("vae_resize", "vit_resize")
    if field in smaller:
        value = dataclasses.replace(before, min_size=before.min_size // 2)
    else:
        value = others.get(field) or (before / 2 + 0.1 if isinstance(before, float) else 2 * before)
    assert value != before
    _, module, data = build(packing=dataclasses.replace(packing, **{field: value}))
    data.connect(module.sequence_format, module.tokenizer)
    data.load_state_dict(state)
    data._check_resumed()
    assert ("discarded" in caplog.text) != (f"data.packing.{field}: was" in caplog.text)


def test_overfitting_repeats_each_rank_s_first_packs_and_goes_on_repeating(build, tmp_path):
    def position(number):
        return number % 2

    trainer, module, data = build(5)
    data.overfit_packs = 2
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    first = [keys for _, keys, _ in module.log_]
    assert first == [first[position(i)] for i in range(5)]
    assert first[0] != first[1]
    trainer, module, data = build(8, num_workers=2)
    data.overfit_packs = 2
    trainer.fit(module, data, ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    assert [keys for _, keys, _ in module.log_] == [first[position(i)] for i in range(5, 8)]


def broken_copy(shard_folder, folder, count):
    write_shards(ShardSet(shard_folder), folder, progress=False)
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"XDAT", count))
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_samples_stop_the_run(build, shard_folder, tmp_path, workers):
    trainer, module, data = build(150, folder=broken_copy(shard_folder, tmp_path / "s", 8), num_workers=workers)
    with pytest.raises(UserError, match=r"training samples could not be used \(\d+ unreadable image"):
        trainer.fit(module, data)
    assert data.skipped.total() == 11  # 1 % of 1000 samples, and one more


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_line(build, shard_folder, tmp_path, workers):
    trainer, module, data = build(50, folder=broken_copy(shard_folder, tmp_path / "s", -1), num_workers=workers)
    with pytest.raises(UserError, match="no readable sample") as error:
        trainer.fit(module, data)
    assert "\n" not in str(error.value)
    assert not module.log_


def test_a_few_broken_samples_are_counted(build, shard_folder, tmp_path):
    folder = broken_copy(shard_folder, tmp_path / "s", 1)
    trainer, module, data = build(30, folder=folder, max_skipped_fraction=0.05)
    trainer.fit(module, data)
    assert sum(data.skipped.values()) >= 1
    assert data.seen == len(keys_of(module.log_)) + sum(data.skipped.values())


def test_validation_and_prediction(build, shard_folder):
    source = [Source(str(shard_folder))]
    trainer, module, data = build(test=source, predict=source)
    trainer.limit_val_batches = 1.0
    for _ in range(2):
        trainer.validate(module, data, verbose=False)
    assert len(module.validated) == 4
    assert module.validated[:2] == module.validated[2:]
    module.validated.clear()
    trainer.test(module, data, verbose=False)
    assert sorted(key for keys, _ in module.validated for key in keys) == [make_sample(i).key for i in range(60)]
    assert trainer.predict(module, data) == [make_sample(i).key for i in range(60)]


def test_no_validation_set_is_fine(build):
    trainer, module, data = build(2, val=None)
    trainer.limit_val_batches = 1.0
    trainer.fit(module, data)
    assert len(module.log_) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": None}, "data.train lists no data set"),
        ({"train": [Source("/nowhere")]}, "/nowhere: no such folder"),
        ({"val": [Source("/nowhere")]}, "/nowhere: no such folder"),
        ({"num_workers": -1}, "num_workers"),
        ({"max_skipped_fraction": 2}, "max_skipped_fraction is 2"),
    ],
)
def test_wrong_settings_end_before_the_first_step(sequence_format, tokenizer, packing, shard_folder, options, message):
    def prepare():
        data = PackedDataModule(**{"train": [Source(str(shard_folder))], "packing": packing, **options})
        data.connect(sequence_format, tokenizer)
        data.setup("fit")

    with pytest.raises(UserError, match=message) as error:
        prepare()
    assert "\n" not in str(error.value)


def test_from_yaml(tmp_path, shard_folder):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PackedDataModule, "data")
    (tmp_path / "c.yaml").write_text(
        f"data:\n  train: [{{path: {shard_folder}, weight: 0.5}}]\n  packing:\n    token_budget: 99\n"
        "    vae_resize: {max_size: 64, min_size: 16}\n"
    )
    parser.add_argument("--config", action="config")
    data = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "c.yaml")])).data
    assert data.sources["train"] == [Source(str(shard_folder), 0.5)]
    assert (data.packing.token_budget, data.packing.vae_resize.max_size) == (99, 64)
    assert data.packing.vit_resize.max_size == 518
