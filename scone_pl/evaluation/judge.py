"""Asks the judge everything that the store does not hold yet; what it says goes into the store at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from scone_pl.errors import UserError
from scone_pl.evaluation.calls import Call, Judgement
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.progress import Progress
from scone_pl.vlm.client import CallFailedError, JudgeClient, StopJudgingError
from scone_pl.vlm.costs import Usage, price_of
from scone_pl.vlm.parsing import Score, UnusableAnswerError
from scone_pl.vlm.store import Answer, AnswerStore


@dataclass(frozen=True)
class Verdict:
    """What the store says about one question."""

    value: Score | int | None
    """None if there is no usable answer."""
    failure: str | None = None
    """Then why."""
    answer: Answer | None = None
    """The answer that counts."""


def verdict_on(call: Call, store: AnswerStore) -> Verdict:
    """The first usable answer to a question."""
    failure = None
    for answer in store.of(call.ask):
        if answer.text is None:
            failure = answer.failure or "failed"
            continue
        try:
            return Verdict(call.read(answer.text), None, answer)
        except UnusableAnswerError as error:
            failure = f"answer not usable: {error}"
    return Verdict(None, failure or "not asked yet")


def missing_calls(
    judgements: Sequence[Judgement], store: AnswerStore, *, retry_failed: bool = True
) -> Iterator[tuple[Call, int]]:
    """Questions to ask, each once, and how many unusable answers they have had in a try that was cut short."""
    met: set[str] = set()
    for judgement in judgements:
        for call in judgement.calls:
            if call.ask in met:
                continue
            met.add(call.ask)
            if verdict_on(call, store).value is not None:
                continue
            past = store.of(call.ask)
            if any(answer.text is None for answer in past) and not retry_failed:
                continue
            yield call, _unusable_since_failure(past)


def _unusable_since_failure(past: Sequence[Answer]) -> int:
    count = 0
    for answer in past:
        count = 0 if answer.text is None else count + 1
    return count


class Judge:
    """One run of asking."""

    def __init__(self, config: JudgeConfig, store: AnswerStore, *, progress: bool = True) -> None:
        self.config, self.store = config, store
        self.usage = Usage(price_of(config.model, config.prices))
        self.failures: Counter[str] = Counter()
        """Of this run, by reason."""
        self._show = progress
        self._failed_in_a_row = 0

    def run(self, judgements: Sequence[Judgement]) -> None:
        """Asks what is missing; needs neither key nor service if nothing is.

        Raises:
            UserError: the service refuses every question, or too many failed one after the other; what was answered
                until then is kept, and the same call goes on.
        """
        calls = list(missing_calls(judgements, self.store, retry_failed=self.config.retry_failed))
        if calls:
            try:
                asyncio.run(self._ask_all(calls))
            except StopJudgingError as error:
                raise UserError(str(error)) from None

    async def _ask_all(self, calls: Sequence[tuple[Call, int]]) -> None:
        queue = iter(calls)
        client = JudgeClient(self.config)

        def status() -> str:
            return f"{self.failures.total()} failed, {client.repeated} tries repeated, {self.usage}"

        with Progress("judging", len(calls), unit="calls", status=status, show=self._show) as progress:
            async with client:

                async def worker() -> None:
                    for call, unusable in queue:
                        await self._ask(client, call, unusable)
                        progress.advance()

                workers = [asyncio.create_task(worker()) for _ in range(min(self.config.concurrency, len(calls)))]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for task in workers:
                        task.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    async def _ask(self, client: JudgeClient, call: Call, unusable: int) -> None:
        """One question until it has a usable answer, or has failed."""
        try:
            content = await asyncio.to_thread(call.content)
        except UserError as error:  # a picture that can not be decoded, which says nothing about the judge
            self._note_failure(call, str(error))
            return
        try:
            reason = ""
            for _ in range(unusable, max(self.config.max_answers, unusable + 1)):
                reply = await client.ask(content)
                self.usage.add(reply.usage)
                self.store.add(
                    self._line(
                        call,
                        text=reply.text,
                        answered_by=reply.answered_by,
                        finish_reason=reply.finish_reason,
                        usage=reply.usage,
                    )
                )
                try:
                    call.read(reply.text)
                except UnusableAnswerError as error:
                    reason = str(error) + (" (cut off)" if reply.finish_reason == "length" else "")
                else:
                    self._failed_in_a_row = 0
                    return
            self._fail(call, f"{self.config.max_answers} answers, none usable: {reason}")
        except CallFailedError as error:
            self._fail(call, str(error))

    def _note_failure(self, call: Call, reason: str) -> None:
        self.store.add(self._line(call, failure=reason))
        self.failures[reason] += 1

    def _fail(self, call: Call, reason: str) -> None:
        """Notes a failure of the judge; too many in a row stop the run."""
        self._note_failure(call, reason)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.config.stop_after:
            raise StopJudgingError(
                f"{self._failed_in_a_row} calls failed one after the other, the last one with: {reason}; is the judge "
                f"at {self.config.url} well? The same command goes on"
            )

    def _line(self, call: Call, **content: object) -> Answer:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Answer(ask=call.ask, date=date, model=self.config.model, about=call.about, **content)  # type: ignore[arg-type]
