"""Questions to models: asked once, stored as they are answered, parsed as the judge's are."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from PIL import Image

from scone_pl.construct.items import ImageRef
from scone_pl.construct.pools import Images
from scone_pl.construct.store import Answers
from scone_pl.data.decoding import decode_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import write_bytes
from scone_pl.ranges import check_number, check_whole
from scone_pl.vlm.client import CallFailedError, JudgeClient, StopJudgingError
from scone_pl.vlm.costs import Usage, price_of
from scone_pl.vlm.endpoint import MAX_CALLS, EndpointConfig
from scone_pl.vlm.images import QUALITY, jpeg_url, reference_size
from scone_pl.vlm.parsing import UnusableAnswerError
from scone_pl.vlm.store import Answer
from scone_pl.vlm.templates import TemplateFolders

FOLDER = Path(__file__).parent / "prompts"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(EndpointConfig):
    """An OpenAI-compatible server and its model."""

    role: ClassVar[str] = "model"
    option: ClassVar[str] = "models.NAME"

    max_answers: int = 3
    """Maximum answers to one question, if none can be parsed."""
    image_pixels: int = 1024**2
    """Images with more pixels are scaled down."""
    seconds: float = 4.0
    """Expected time of an answer, for `plan`."""
    dollars_per_image: float = 0.0
    """Price of an edited image, for `plan` and `status`."""
    prices: str | None = None
    """YAML file of prices of tokens; null = the package's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("max_answers", self.max_answers, minimum=1, maximum=MAX_CALLS)
        check_whole("image_pixels", self.image_pixels, minimum=256)
        check_number("seconds", self.seconds, above=0)
        check_number("dollars_per_image", self.dollars_per_image, minimum=0)


class NoAnswerError(Exception):
    """A question got no usable answer; it is asked again in the next run."""


class BudgetError(Exception):
    """A step has used up its budget."""


@dataclass(frozen=True)
class Budget:
    """What a step may spend in a run."""

    calls: int | None = None
    """Requests, failed ones included."""
    dollars: float | None = None
    """By the prices of the models; those without a price count as free."""

    def __post_init__(self) -> None:
        if self.calls is not None:
            check_whole("budget.calls", self.calls)
        if self.dollars is not None:
            check_number("budget.dollars", self.dollars, minimum=0)


@dataclass
class Meter:
    """What a step has spent in this run."""

    budget: Budget = field(default_factory=Budget)
    calls: int = 0
    dollars: float = 0.0

    def spend(self) -> None:
        """Counts a call.

        Raises:
            BudgetError: the budget does not allow it.
        """
        limit = self.budget
        spent = limit.dollars is not None and self.dollars >= limit.dollars
        if spent or (limit.calls is not None and self.calls >= limit.calls):
            raise BudgetError
        self.calls += 1

    def pay(self, dollars: float) -> None:
        """Counts the price of an answer."""
        self.dollars += dollars


class Model:
    """A model during a run."""

    def __init__(
        self, name: str, config: ModelConfig, images: Images, store: Answers, prompts: TemplateFolders
    ) -> None:
        self.name, self.config, self.images, self.store, self.prompts = name, config, images, store, prompts
        self.usage = Usage(price_of(config.model, config.prices))
        self.meter = Meter()
        """Of the present step; shared with other models."""
        self.failures: Counter[str] = Counter()
        self._slots: asyncio.Semaphore | None = None
        self._client: JudgeClient | None = None
        self._consecutive_failures = 0

    async def open(self) -> None:
        """Opens the connection when the first question is asked."""
        if self._client is None:
            client = JudgeClient(self.config)
            await client.__aenter__()
            self._client = client

    def _limit(self) -> asyncio.Semaphore:
        """Limits concurrent requests; of the running event loop, as each step has its own."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.config.concurrency)
        return self._slots

    async def close(self) -> None:
        """Closes the connection."""
        self._slots = None
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
        self._client = None

    @property
    def retries(self) -> int:
        """Requests that were repeated."""
        return self._client.retries if self._client else 0

    async def ask(
        self,
        prompt: str,
        read: Callable[[str | None], T],
        images: Sequence[ImageRef] = (),
        about: str = "",
        asking: int = 1,
        **fields: str,
    ) -> T:
        """A parsed answer, stored or new.

        Args:
            prompt: name of the template.
            read: parser of answers, which raises `UnusableAnswerError`.
            images: shown behind the text, in order, each under its number.
            about: key of the sample, for readers of the store.
            asking: number of the asking of the same question, from 1.
            fields: of the template.

        Raises:
            NoAnswerError: no usable answer.
            BrokenSampleError: an image cannot be decoded.
            StopJudgingError, BudgetError: no question can be answered any more.
        """
        template = self.prompts[prompt]
        text = template.fill(**fields)
        seen = {
            "model": self.config.model,
            "parameters": self.config.parameters,
            "prompt": template.identity,
            "text": text,
            "images": [[self.config.image_pixels, ref.sha256] for ref in images],
            "asking": asking,
        }
        ask = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:32]
        unusable = 0
        for answer in self.store.answers(ask):
            if answer.text is None:
                unusable = 0
                continue
            try:
                return read(answer.text)
            except UnusableAnswerError:
                unusable += 1
        content = await asyncio.to_thread(self._content, text, images)
        note = {"prompt": template.identity, "key": about, "asking": asking, "model": self.name}
        reason = "no answer"
        for _ in range(unusable, max(self.config.max_answers, unusable + 1)):
            try:
                async with self._limit():  # the time that a request waits for its turn is no part of its timeout
                    client = await self._spend()
                    reply = await client.ask(content)
            except CallFailedError as error:
                self._fail(ask, note, str(error))
            self.usage.add(reply.usage)
            self.meter.pay(self.usage.price.of(reply.usage) if self.usage.price else 0.0)
            self._add(
                ask,
                note,
                text=reply.text,
                answered_by=reply.answered_by,
                finish_reason=reply.finish_reason,
                usage=reply.usage,
            )
            try:
                value = read(reply.text)
            except UnusableAnswerError as error:
                reason = str(error) + (" (cut off)" if reply.finish_reason == "length" else "")
            else:
                self._consecutive_failures = 0
                return value
        self._fail(ask, note, f"{self.config.max_answers} answers, none usable: {reason}")

    async def edit(self, instruction: str, images: Sequence[ImageRef], about: str = "") -> ImageRef:
        """An image that the model has made of `images`, stored or new; exceptions as of `ask`."""
        seen = [self.config.model, self.config.parameters, instruction, [ref.sha256 for ref in images]]
        ask = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:32]
        for answer in self.store.answers(ask):
            if answer.text is not None and self.images.blob(answer.text).is_file():
                return ImageRef(sha256=answer.text)
        content = [await asyncio.to_thread(self._png, ref) for ref in images]
        note = {"prompt": "edit", "key": about, "model": self.name}
        try:
            async with self._limit():
                client = await self._spend()
                data = await client.edit(content, instruction)
            await asyncio.to_thread(decode_rgb, data)
        except (CallFailedError, BrokenSampleError) as error:
            self._fail(ask, note, str(error))
        digest = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread(write_bytes, data, self.images.blob(digest))
        self.usage.dollars += self.config.dollars_per_image
        self.meter.pay(self.config.dollars_per_image)
        self._add(ask, note, text=digest)
        self._consecutive_failures = 0
        return ImageRef(sha256=digest)

    async def _spend(self) -> JudgeClient:
        self.meter.spend()
        await self.open()
        if self._client is None:
            raise AssertionError
        return self._client

    def _content(self, text: str, images: Sequence[ImageRef]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        for number, ref in enumerate(images, 1):
            image = decode_rgb(self.images.read(ref))
            if image.width * image.height > self.config.image_pixels:
                factor = (self.config.image_pixels / (image.width * image.height)) ** 0.5
                size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
                image = image.resize(reference_size(*size), Image.Resampling.BICUBIC)
            content.append({"type": "text", "text": f"Image {number}:"})
            content.append({"type": "image_url", "image_url": {"url": jpeg_url(image, QUALITY)}})
        return content

    def _png(self, ref: ImageRef) -> bytes:
        encoded = io.BytesIO()
        decode_rgb(self.images.read(ref)).save(encoded, "PNG")
        return encoded.getvalue()

    def _fail(self, ask: str, note: dict[str, Any], reason: str) -> NoReturn:
        self._add(ask, note, failure=reason)
        self.failures[reason] += 1
        self._consecutive_failures += 1
        if self._consecutive_failures >= self.config.stop_after:
            raise StopJudgingError(
                f"{self._consecutive_failures} consecutive calls of model {self.name} failed, the last with: {reason}; "
                f"check {self.config.base_url} and run the same command to resume"
            )
        raise NoAnswerError(reason)

    def _add(self, ask: str, note: dict[str, Any], **content: Any) -> None:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.store.add_answer(Answer(ask=ask, date=date, model=self.config.model, about=note, **content))


def check_key(config: ModelConfig, name: str) -> None:
    """Raises a `UserError` if the model's key is missing or has odd characters."""
    try:
        config.key()
    except UserError as error:
        raise UserError(str(error).replace("models.NAME", f"models.{name}")) from None
