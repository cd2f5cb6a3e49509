"""TensorBoard logging that does not end a run: if the disk is full, curves are lost, and training continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from scone_pl.messages import warn
from scone_pl.sampling.visualize import Pixels
from scone_pl.training.lightning_internals import silent_experiment


class Curves(TensorBoardLogger):
    """Writes curves until the disk refuses them; warns once, and then ignores what is logged."""

    lost = False

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer; one that writes nothing on other ranks, and once curves are lost."""
        if not self.lost:
            try:
                return super().experiment
            except OSError as error:
                self._lose(error)
        return silent_experiment()

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().log_hyperparams, *args, **kwargs)

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().log_graph, *args, **kwargs)

    def add_image(self, *args: Any, **kwargs: Any) -> None:
        """As the writer's own."""
        self._try(lambda: self.experiment.add_image(*args, **kwargs))

    def add_histogram(self, *args: Any, **kwargs: Any) -> None:
        """As the writer's own."""
        self._try(lambda: self.experiment.add_histogram(*args, **kwargs))

    def save(self) -> None:
        self._try(super().save)

    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)

    def _try(self, act: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self.lost:
            return
        try:
            act(*args, **kwargs)
        except OSError as error:
            self._lose(error)
        except ValueError as error:  # Lightning's, around whatever the writer raised
            if not isinstance(error.__cause__, OSError):
                raise
            self._lose(error.__cause__)

    def _lose(self, error: OSError) -> None:
        self.lost = True
        # Its thread has ended with this error, and would raise it at every call.
        self._experiment = None
        warn(f"{self.log_dir}: no more curves ({error.strerror or error}); training continues without them")


def log_image(loggers: Iterable[Any], name: str, image: Pixels, step: int) -> None:
    """Logs an image (H, W, 3) uint8 to each logger that shows images: TensorBoard's, and W&B's `log_image`."""
    for logger in loggers:
        if isinstance(logger, Curves):
            logger.add_image(name, image, step, dataformats="HWC")
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step, dataformats="HWC")
        elif callable(getattr(logger, "log_image", None)):
            logger.log_image(key=name, images=[image], step=step)


QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def log_histogram(loggers: Iterable[Any], name: str, values: Tensor, step: int) -> None:
    """Logs a distribution (N,): TensorBoard and W&B as a histogram, any other logger as `QUANTILES`, `name/q50`."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            (logger if isinstance(logger, Curves) else logger.experiment).add_histogram(name, values, step)
        elif isinstance(logger, WandbLogger):
            import wandb

            logger.log_metrics({name: wandb.Histogram(values.numpy())}, step)
        else:
            found = values.quantile(torch.tensor(QUANTILES)).tolist()
            logger.log_metrics({f"{name}/q{q * 100:02.0f}": x for q, x in zip(QUANTILES, found, strict=True)}, step)


def keep_training(loggers: Iterable[Any]) -> None:
    """Makes `Curves` of the TensorBoard loggers among `loggers`, as a recipe may name them."""
    for logger in loggers:
        if type(logger) is TensorBoardLogger:
            logger.__class__ = Curves
