"""Asks the judge all questions without a stored answer, and stores each answer immediately."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.calls import Call, Judgement
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.progress import Progress
from scone_pl.vlm.client import CallFailedError, JudgeClient, StopJudgingError
from scone_pl.vlm.costs import Usage, price_of
from scone_pl.vlm.parsing import UnusableAnswerError
from scone_pl.vlm.store import Answer, AnswerStore


@dataclass(frozen=True)
class Verdict:
    """Outcome of one question according to the store."""

    value: Any
    """None if there is no usable answer."""
    failure: str | None = None
    """The reason in that case."""
    answer: Answer | None = None
    """The answer that `value` was parsed from."""


def verdict_on(call: Call, store: AnswerStore) -> Verdict:
    """The verdict of the first usable answer to a question."""
    failure = None
    for answer in store.of(call.ask):
        if answer.text is None:
            failure = answer.failure or "failed"
            continue
        try:
            return Verdict(call.question.read(answer.text), None, answer)
        except UnusableAnswerError as error:
            failure = f"answer not usable: {error}"
    return Verdict(None, failure or "not asked yet")


def missing_calls(
    judgements: Sequence[Judgement], store: AnswerStore, *, retry_failed: bool = True
) -> Iterator[tuple[Call, int]]:
    """Open questions, without duplicates, each with the number of unusable answers in an interrupted attempt."""
    seen: set[str] = set()
    for judgement in judgements:
        for call in judgement.calls:
            if call.ask in seen:
                continue
            seen.add(call.ask)
            if verdict_on(call, store).value is not None:
                continue
            answers = store.of(call.ask)
            if any(answer.text is None for answer in answers) and not retry_failed:
                continue
            yield call, _unusable_since_last_failure(answers)


def _unusable_since_last_failure(answers: Sequence[Answer]) -> int:
    count = 0
    for answer in answers:
        count = 0 if answer.text is None else count + 1
    return count


class Judge:
    """One run of the judge."""

    def __init__(self, config: JudgeConfig, store: AnswerStore, *, progress: bool = True) -> None:
        self.config, self.store = config, store
        self.usage = Usage(price_of(config.model, config.prices))
        self.failures: Counter[str] = Counter()
        """Reason -> number of failures in this run."""
        self._progress = progress
        self._consecutive_failures = 0

    def run(self, judgements: Sequence[Judgement]) -> None:
        """Asks all open questions; needs neither key nor service if there are none.

        Raises:
            UserError: the service rejects every request, or too many consecutive questions failed; answers so far are
                stored, and the same call resumes.
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
            return f"{self.failures.total()} failed, {client.retries} requests retried, {self.usage}"

        with Progress("judging", len(calls), unit="calls", status=status, show=self._progress) as progress:
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
        """Asks one question until there is a usable answer or it has failed."""
        try:
            content = await asyncio.to_thread(call.content)
        except UserError as error:  # an image that cannot be decoded is no failure of the judge
            self._store_failure(call, str(error))
            return
        try:
            reason = ""
            for _ in range(unusable, max(self.config.max_answers, unusable + 1)):
                reply = await client.ask(content, call.parameters)
                self.usage.add(reply.usage)
                self.store.add(
                    self._answer(
                        call,
                        text=reply.text,
                        answered_by=reply.answered_by,
                        finish_reason=reply.finish_reason,
                        usage=reply.usage,
                    )
                )
                try:
                    call.question.read(reply.text)
                except UnusableAnswerError as error:
                    reason = str(error) + (" (cut off)" if reply.finish_reason == "length" else "")
                else:
                    self._consecutive_failures = 0
                    return
            self._fail(call, f"{self.config.max_answers} answers, none usable: {reason}")
        except CallFailedError as error:
            self._fail(call, str(error))

    def _store_failure(self, call: Call, reason: str) -> None:
        self.store.add(self._answer(call, failure=reason))
        self.failures[reason] += 1

    def _fail(self, call: Call, reason: str) -> None:
        """Stores a failure of the judge; too many consecutive ones stop the run."""
        self._store_failure(call, reason)
        self._consecutive_failures += 1
        if self._consecutive_failures >= self.config.stop_after:
            raise StopJudgingError(
                f"{self._consecutive_failures} consecutive calls failed, the last with: {reason}; check the judge at "
                f"{self.config.url} and run the same command to resume"
            )

    def _answer(self, call: Call, **content: object) -> Answer:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Answer(ask=call.ask, date=date, model=self.config.model, about=call.about, **content)  # type: ignore[arg-type]  # content is checked on reading
