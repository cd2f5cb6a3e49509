"""Checkpoints by hub id, with huggingface_hub's real client against a hub on loopback."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import COMMIT, Hub, serving
from running import ROOT
from tiny_checkpoints import tiny_model, write_folder

from scone_pl.__main__ import main
from scone_pl.checkpoints import hub as hub_module
from scone_pl.checkpoints.formats import base_format
from scone_pl.checkpoints.hub import HubId, hub_id, local_folder, needed_files, readable_headers
from scone_pl.checkpoints.model import from_pretrained, read_config, save_pretrained
from scone_pl.errors import UserError
from scone_pl.model.bases import BASES, PRESETS
from scone_pl.model.initialize import random_model
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.training.start import check_start

ID = "someone/Tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture(scope="module")
def server() -> Hub:
    with serving(Hub()) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with one checkpoint beside files that are not needed, and an empty cache."""
    fresh = Hub()
    fresh.url = server.url
    server.__dict__.update(fresh.__dict__)
    server.add(ID, weights)
    server.repositories[ID] |= {"README.md": b"about", "pytorch_model.bin": bytes(1000)}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    hub_module._cached.cache_clear()
    return server


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_checkpoint_by_its_id(hub: Hub) -> None:
    for name in (ID, f"{ID}@v1", f"{ID}@{COMMIT}"):
        assert from_pretrained(name).vae2llm.weight.equal(tiny_model().vae2llm.weight)
    assert not [name for name in ("README.md", "pytorch_model.bin") if name in hub.served]
    before = len(hub.requests)
    from_pretrained(ID)
    assert len(hub.requests) == before, "once a process"


def test_ids_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/model").mkdir(parents=True)
    assert hub_id("a/b@main") == HubId("a/b", "main")
    assert hub_id("Ryann829/SconeEval") == HubId("Ryann829/SconeEval", dataset=True)
    for path in (
        "weights/Scone",
        "runs/x",
        "mine/model",
        "mine/other",
        "./a/b",
        "/a/b",
        "a",
        "a/b/c",
        "",
        "a/../b",
        "a/b c",
    ):
        assert hub_id(path) is None, path
    assert hub_id(Path("a/b")) is None


def test_of_several_weight_files_the_preferred_ones() -> None:
    bagel = base_format(BASES["bagel"])
    common = ["llm_config.json", "vit_config.json", "ae.safetensors", "README.md"]
    parts = ["ema.safetensors.index.json", "ema-00001-of-00002.safetensors", "ema-00002-of-00002.safetensors"]
    for stored, needed in (
        (["ema.safetensors", "model.safetensors"], ["ema.safetensors"]),
        ([*parts, "model.safetensors"], parts),
        (["model.safetensors"], ["model.safetensors"]),
    ):
        assert needed_files(HubId("a/b"), [*common, *stored], bagel) == [*common[:3], *needed]
    for missing in common[:3]:
        with pytest.raises(UserError, match=f"it has no {missing}"):
            needed_files(HubId("a/b"), [name for name in [*common, "ema.safetensors"] if name != missing], bagel)
    with pytest.raises(UserError, match=r"it has no ema\.safetensors"):
        needed_files(HubId("a/b"), common, bagel)


def test_download(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", ID, "--to", "weights/Tiny", "--dry_run"]) == 0
    listed = capsys.readouterr().out
    assert WEIGHTS in listed
    assert "README.md" not in listed
    assert f"free in {Path('weights/Tiny')}" in listed
    assert not (tmp_path / "weights").exists()
    assert main(["download", ID, "--to", "weights/Tiny"]) == 0
    assert capsys.readouterr().out.strip().endswith("weights/Tiny")
    assert from_pretrained("weights/Tiny").vae2llm.weight.equal(tiny_model().vae2llm.weight)
    served = dict(hub.served)
    assert main(["download", ID, "--to", "weights/Tiny"]) == 0
    assert "0.00 MB to download" in capsys.readouterr().out
    assert hub.served == served


def test_a_second_base_has_other_files(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, config = tmp_path / "made", PRESETS["mini_neo"]()
    save_pretrained(random_model(config, 0), folder)
    hub.add("someone/Second", folder)
    hub.repositories["someone/Second"] |= {"README.md": b"about", "LICENSE": b"free"}
    assert main(["download", "someone/Second", "--to", "weights/Second"]) == 0
    assert {f.name for f in Path("weights/Second").glob("[!.]*")} == {"LICENSE", "config.json", WEIGHTS}
    assert from_pretrained("weights/Second").config == config
    assert read_config("someone/Second") == config
    assert hub_module.cached_folder(HubId("someone/Second")) is not None
    hub.repositories["someone/Other"] = {"config.json": b'{"model_type": "llama"}', WEIGHTS: bytes(1000)}
    assert main(["download", "someone/Other"]) == 2
    assert "someone/Other: no checkpoint that is read here, it has no llm_config.json" in one_line(capsys)


def test_a_data_set_is_downloaded_whole(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["datasets/me/set"] = {"data.jsonl": b"{}", "images/a.png": b"a"}
    hub.repositories["datasets/Ryann829/SconeEval"] = {"data.jsonl": b"[]"}
    assert main(["download", "me/set", "--dataset", "--to", "set"]) == 0
    assert (tmp_path / "set/images/a.png").read_bytes() == b"a"
    assert main(["download", "Ryann829/SconeEval", "--to", "eval"]) == 0
    assert (tmp_path / "eval/data.jsonl").read_bytes() == b"[]"
    with pytest.raises(UserError, match="is a data set"):
        local_folder("Ryann829/SconeEval")


def test_a_broken_connection_is_resumed(hub: Hub) -> None:
    hub.broken_after[WEIGHTS] = 5000
    assert from_pretrained(ID).vae2llm.weight.equal(tiny_model().vae2llm.weight)
    assert hub.served[WEIGHTS] == len(hub.repositories[ID][WEIGHTS]), "not from the start again"


def test_an_interrupted_command_is_resumed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_module, "RESUMED_FROM", 1000)
    hub.broken_after[WEIGHTS] = 5000
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", interrupted)
        assert main(["download", ID, "--to", "weights/Tiny"]) not in (0, 2)
    with pytest.raises(UserError, match="not a checkpoint folder"):
        from_pretrained("weights/Tiny")
    assert main(["download", ID, "--to", "weights/Tiny"]) == 0
    assert hub.served[WEIGHTS] == len(hub.repositories[ID][WEIGHTS])
    assert from_pretrained("weights/Tiny").vae2llm.weight.equal(tiny_model().vae2llm.weight)
    assert not list(Path("weights/Tiny").glob("*.partial"))
    Path("other").mkdir()
    Path(f"other/{WEIGHTS}.partial").write_bytes(b"of another file")
    assert main(["download", ID, "--to", "other"]) == 2
    assert "was damaged on the way" in one_line(capsys)
    assert main(["download", ID, "--to", "other"]) == 0


def test_what_the_hub_refuses_is_one_line(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    def says(*parts: str, name: str = ID) -> None:
        assert main(["download", name]) == 2
        line = one_line(capsys)
        assert all(part in line for part in parts), line

    says("has no such model, or it is private; check the id", name="nobody/nothing")
    says("has no revision v9", name=f"{ID}@v9")
    says("not an id of the hub", name="a b")
    says("not an id of the hub", name="weights/Scone")
    hub.gated.add(ID)
    says("is gated; accept its conditions at", "HF_TOKEN")
    hub.gated.clear()
    hub.hidden.add(WEIGHTS)
    says("a file that it lists is not there")
    del hub.repositories[ID]["vit_config.json"]
    says("it has no vit_config.json; is the id right?")


def test_no_room_is_said_before_the_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert main(["download", ID, "--to", "weights/Tiny"]) == 2
    line = one_line(capsys)
    assert "to download, but weights/Tiny has 0.00 MB free; make room, or choose another --to" in line
    assert not hub.served


def test_offline_and_unreachable(hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def forget() -> None:
        hub_module._cached.cache_clear()

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=f"not in the cache .* python -m scone_pl download {ID}"):
            local_folder(ID)
    expected = local_folder(ID)
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert local_folder(ID) == expected
    forget()
    hub.down = True
    with caplog.at_level("WARNING", "scone_pl"):
        assert local_folder(ID) == expected
    assert "what is cached is used" in caplog.text
    with pytest.raises(UserError, match="answers 503; run the same command again"):
        local_folder("other/Tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1 cannot be reached"):
        local_folder("another/Tiny")
    (expected / WEIGHTS).unlink()
    forget()
    with pytest.raises(UserError, match="cannot be reached"):
        local_folder(ID)


def test_a_dry_run_reads_headers_only(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    with readable_headers(ID) as folder:
        assert read_config(folder) == tiny_model().config
    assert hub.served[WEIGHTS] < len(hub.repositories[ID][WEIGHTS])
    assert main(["generate", "--checkpoint", ID, "--instruction", "x", "--dry_run"]) == 0
    assert "peak" in capsys.readouterr().out


def test_push_to_hub(hub: Hub, weights: Path, tmp_path: Path) -> None:
    pipeline = SconePipeline.from_pretrained(ID)
    assert pipeline.push_to_hub("me/New", token="hf_x", commit_message="first").startswith(hub.url)
    assert ("POST", "/api/repos/create") in hub.requests
    assert hub.uploaded[WEIGHTS] == (weights / WEIGHTS).read_bytes()
    hub.repositories["me/New"] = hub.uploaded
    assert from_pretrained("me/New").vae2llm.weight.equal(tiny_model().vae2llm.weight)


@pytest.mark.slow
def test_fit_takes_an_id(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "experiments/mini/stage2.yaml")
    args = ["--config", recipe, "--model.init_args.init_from", ID, "--chain", "null", "--output_dir", "runs/x"]
    assert main(["fit", *args, "--model.init_args.bridge.last_masked_layer", "9"]) == 2
    assert WEIGHTS in hub.served
    assert "layer" in one_line(capsys)


def test_a_stage_starts_from_an_id(hub: Hub) -> None:
    assert check_start(ID) == local_folder(ID)


def test_a_missing_folder_names_the_command(hub: Hub) -> None:
    with pytest.raises(UserError, match="download Ryann829/Scone --to weights/Scone"):
        from_pretrained("weights/Scone")
    with pytest.raises(UserError, match="download ByteDance-Seed/BAGEL-7B-MoT --to weights/BAGEL-7B-MoT"):
        from_pretrained("weights/BAGEL-7B-MoT")
