"""`python -m scone_pl app`: a page in the browser that shows the bridge at work."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import ipaddress
import os
import socket
import tempfile
import threading
from pathlib import Path

from scone_pl.cli.project import recipes_folder
from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.ranges import check_whole

MINI_WEIGHTS = "mini/bridge_weights"
"""In the recipes folder."""


def app(
    checkpoint: str | None = None,
    previews: Path | None = None,
    examples: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    dtype: str | None = None,
) -> int:
    """Serve a page that shows which reference tokens the bridge hides, layer by layer, and what that changes.

    Without --checkpoint it uses the weights of the mini-world that are part of scone_pl.

    Args:
        checkpoint: Checkpoint folder or id on the Hugging Face hub: BAGEL's, Scone's, or one that training here wrote.
        previews: Also show the previews of this training run (its output_dir, or that of a chain), step by step.
        examples: Data set whose first samples are offered as examples: shard set, JSONL file, folder of them or
            parquet; by default scenes of the mini-world, if the checkpoint is one of it.
        host: Address to listen on; by default only this machine reaches the page.
        port: Port to listen on.
        device: cpu, cuda, cuda:1, ...; auto = a GPU if there is one.
        dtype: Dtype of the weights: bfloat16, float32 or float16; by default bfloat16 on a GPU, else float32.
    """
    check_whole("--port", port, minimum=1, maximum=65535)
    _check_address(host, port)
    if previews is not None:
        from scone_pl.app.previews import find_previews

        find_previews(previews)
    importlib.import_module("gradio")  # before the weights are read
    from scone_pl.app.page import build_page, launch
    from scone_pl.app.settings import open_model, page_settings

    with tempfile.TemporaryDirectory(prefix="scone_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/uploads"
        pipeline = open_model(checkpoint or recipes_folder() / MINI_WEIGHTS, device, dtype)
        settings = page_settings(pipeline, examples, Path(folder))
        page = build_page(pipeline, dataclasses.replace(settings, previews=previews))
        print(f"{launch(page, host, port)}   (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        page.close(verbose=False)
    return 0


def _check_address(host: str, port: int) -> None:
    """Raises `UserError` if nothing can listen there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: in use on {host}; choose another") from None
        raise UserError(f"--host {host} --port {port}: nothing can listen there ({error.strerror or error})") from None
    if not ipaddress.ip_address(address[0]).is_loopback:
        warn(f"--host {host}: everybody who reaches this machine can use the page; it has no password")
