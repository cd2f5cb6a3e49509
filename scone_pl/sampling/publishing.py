"""Writing a pipeline's weights: `save_pretrained`, `push_to_hub`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scone_pl.checkpoints.hub_errors import endpoint, one_line
from scone_pl.checkpoints.model import save_pretrained
from scone_pl.checkpoints.training_record import read_record
from scone_pl.errors import UserError
from scone_pl.files import appearing
from scone_pl.model.adapted import AdaptedLinear
from scone_pl.model.quantized import quantized_weights

if TYPE_CHECKING:
    from scone_pl.data.tokenizer import Tokenizer
    from scone_pl.model.network import Network


class Publishing:
    """The part of a pipeline that writes its weights."""

    model: Network
    tokenizer: Tokenizer
    source: Path | None

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, safe_serialization: bool = True) -> None:
        """Writes weights, configs, tokenizer and training provenance as a checkpoint folder.

        Args:
            save_directory: replaced atomically if it exists.
            safe_serialization: True; weights are always written as safetensors.

        Raises:
            UserError: the folder is the one that the weights came from, or another format is asked for.
        """
        if not safe_serialization:
            raise UserError("safe_serialization=False: weights are written as safetensors only; leave it out")
        if any(isinstance(module, AdaptedLinear) and module.is_unfused for module in self.model.modules()):
            raise UserError(
                "adapters are loaded, but not fused; fuse_lora() to write them too, or unload_lora_weights()"
            )
        if any(True for _ in quantized_weights(self.model)):
            raise UserError("the weights are quantised, which the published layout has no place for; load them without")
        folder = Path(save_directory)
        if self.source is not None and folder.resolve() == self.source.resolve():
            raise UserError(f"{folder}: is the folder that the weights come from; choose another one")
        training: dict[str, Any] = {} if self.source is None else read_record(self.source)
        with appearing(folder) as whole:
            save_pretrained(self.model, whole, assets_from=self.source, training=training or None)
            if not (whole / "tokenizer.json").is_file():
                self.tokenizer.save(whole)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload weights",
        create_pr: bool = False,
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub; needs room for a copy on disk.

        Args:
            repo_id: OWNER/NAME, created if it does not exist.
            private: visibility of a new repository; None = the owner's default.
            token: None = HF_TOKEN or the login of huggingface_hub.
            commit_message: of the commit.
            create_pr: as a pull request.

        Returns:
            The address of the commit.

        Raises:
            UserError: no login, or the hub refuses or cannot be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), token=token)
        with tempfile.TemporaryDirectory() as temporary, one_line(repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
            self.save_pretrained(Path(temporary) / "weights")
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=Path(temporary) / "weights",
                commit_message=commit_message,
                create_pr=create_pr,
            )
        return str(commit.commit_url)
