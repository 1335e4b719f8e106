"""A model that judges text: every question looked up first, asked at most once, and kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from llm.config import JudgeConfig
from llm.judge import serve, texts
from llm.judge.cost import dollars
from llm.judge.endpoint import Endpoint, EndpointError, StoppedError
from llm.judge.pace import Pace
from llm.judge.store import Answer, Question, Store
from llm.judge.texts import Comparison, Preference, Verdict
from llm.runtime import Runtime

RECHECK = 0.2  # seconds until a question that another process is asking is looked up again
Report = Callable[[float], None]


def quiet(fraction: float) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Bill:
    """Distinct questions of a stage and what they cost; dollars None where tokens are not counted.

    asked: by this stage, in this run or one that was cut short; reused: by another stage.
    models: how many models answered (an alias may have moved in the middle of a study).
    """

    asked: int
    reused: int
    refused: int
    tokens_in: int | None
    tokens_out: int | None
    dollars: float | None
    models: int


def judge_name(config: JudgeConfig) -> str:
    """What answers are kept under: the endpoint's model, or a local model's content."""
    folder = serve.folder_of(config.model or "")
    return str(config.model) if folder is None else serve.folder_name(folder)


class ModelJudge:
    """A TextJudge: every question is looked up first, asked at most once, and kept.

    Nothing is opened on the network until a question is new. Close it, or use it in `with`.
    """

    def __init__(
        self,
        config: JudgeConfig,
        runtime: Runtime,
        folder: Path,
        *,
        two_word: bool = False,
        asker: str = "",
    ) -> None:
        """folder: of the store; asker: who is noted as having asked."""
        self.config, self.runtime, self.folder = config, runtime, folder
        self.two_word, self.asker = two_word, asker
        self.name = judge_name(config)
        self._stack = ExitStack()
        self._store = Store(folder, self.name)
        self._stack.callback(self._store.close)
        self._endpoint: Endpoint | None = None
        self._used: dict[str, Answer] = {}
        self._close = weakref.finalize(self, self._stack.close)

    def __enter__(self) -> ModelJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files and connections; a local server ends."""
        self._close()

    # --- what is asked ----------------------------------------------------------------------------

    def prefer(self, rows: Sequence[Comparison], report: Report = quiet) -> list[Preference]:
        """One preference a row. Raises EndpointError; what was answered till then is kept."""
        asked = [() if texts.same(row) else self._orders(row) for row in rows]
        questions = [
            {order: self._compare(row, order) for order in orders}
            for row, orders in zip(rows, asked, strict=True)
        ]
        answers = self._ask([q for each in questions for q in each.values()], report)
        return [
            texts.preference(
                row, [self._verdict(order, answers[q.key]) for order, q in each.items()]
            )
            if each
            else Preference(0.5, 0.5)
            for row, each in zip(rows, questions, strict=True)
        ]

    def two_words(
        self, posts: Sequence[str], n: int, report: Report = quiet
    ) -> list[list[str | None]]:
        """n independent two-word summaries a post; None for an answer that is none."""
        config, draws = self.config, range(n)
        questions = [
            Question(self.name, config.generation_temperature, config.max_tokens, prompt, draw)
            for prompt in map(texts.generation, posts)
            for draw in draws
        ]
        answers = self._ask(questions, report)
        made = [texts.parse_two_words(answers[question.key].answer) for question in questions]
        return [made[i * n : (i + 1) * n] for i in range(len(posts))]

    def bill(self) -> Bill:
        """Everything that this judge was asked so far."""
        mine = [answer for answer in self._used.values() if answer.asker == self.asker]
        tokens_in = _total(answer.tokens_in for answer in mine)
        tokens_out = _total(answer.tokens_out for answer in mine)
        return Bill(
            asked=len(mine),
            reused=len(self._used) - len(mine),
            refused=sum(answer.refused is not None for answer in self._used.values()),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            dollars=self._dollars(tokens_in, tokens_out),
            models=len({each.model for each in self._used.values() if each.refused is None}),
        )

    def _dollars(self, tokens_in: int | None, tokens_out: int | None) -> float | None:
        if serve.folder_of(self.config.model or "") is not None:
            return 0.0  # a server of one's own
        if tokens_in is None or tokens_out is None:
            return None
        return dollars(tokens_in, tokens_out, self.runtime)

    def _orders(self, row: Comparison) -> tuple[str, ...]:
        return ("ab", "ba") if self.config.both_orders else (texts.coin(row),)

    def _compare(self, row: Comparison, order: str) -> Question:
        prompt = texts.question(row, order, two_word=self.two_word)
        return Question(self.name, self.config.temperature, self.config.max_tokens, prompt)

    def _verdict(self, order: str, answer: Answer) -> Verdict:
        return Verdict(
            order=order,
            letter=texts.parse_verdict(answer.answer),
            key=answer.key,
            answer=answer.answer,
            model=answer.model,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
            date=answer.date,
            asked=answer.asker == self.asker,
        )

    # --- how it is asked --------------------------------------------------------------------------

    def _ask(self, questions: Sequence[Question], report: Report) -> dict[str, Answer]:
        distinct = {question.key: question for question in questions}
        known = self._store.find(distinct)
        missing = [question for key, question in distinct.items() if key not in known]
        if missing:
            report(len(known) / len(distinct))
            self._fetch(missing, len(distinct), report)
            known = self._store.find(distinct)
        self._used |= known
        return known

    def _fetch(self, missing: Sequence[Question], total: int, report: Report) -> None:
        """Ask all at once, as many as may be; the first failure stops those that still wait."""
        endpoint = self._connect()
        failed: Exception | None = None
        pool = ThreadPoolExecutor(min(self.runtime.concurrency, len(missing)))
        try:
            futures = [pool.submit(self._one, endpoint, question) for question in missing]
            for done, future in enumerate(as_completed(futures), start=total - len(missing) + 1):
                problem = _problem(future)
                if problem is None:
                    report(done / total)
                elif failed is None and not isinstance(problem, StoppedError):
                    failed = problem
                    endpoint.stop.set()
                    for other in futures:
                        other.cancel()
        finally:
            endpoint.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        endpoint.stop.clear()
        if failed is not None:
            there = total - len(missing) + sum(_problem(f) is None for f in futures)
            message = f"{failed} ({there} of {total} answers are kept; run again for the rest)"
            raise EndpointError(message) from (None if type(failed) is EndpointError else failed)

    def _one(self, endpoint: Endpoint, question: Question) -> None:
        """Ask, unless the answer appears while another process holds the question."""
        while not endpoint.stop.is_set():
            with self._store.claim(question.key) as mine:
                if self._store.find([question.key]):
                    return
                if mine:
                    self._store.append(endpoint.ask(question))
                    return
            endpoint.stop.wait(RECHECK)
        raise StoppedError

    def _connect(self) -> Endpoint:
        if self._endpoint is None:
            runtime = self.runtime
            folder = serve.folder_of(self.config.model or "")
            if folder is not None:
                url = self._stack.enter_context(serve.serving(folder, runtime, self.folder))
                runtime = replace(runtime, base_url=url, requests_per_minute=None)
            pace = Pace(self.folder / f".{self._store.path.stem}.pace", runtime.requests_per_minute)
            self._stack.callback(pace.close)
            self._endpoint = Endpoint(runtime, pace, served=self.name, asker=self.asker)
            self._stack.callback(self._endpoint.close)
        return self._endpoint


def _problem(future: Future[None]) -> Exception | None:
    """What went wrong, None where the answer is there."""
    if future.cancelled():
        return StoppedError()
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum; None if one is unknown."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None
