"""One OpenAI-compatible endpoint: a question in, an answer out, or a clear error; never a guess."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from difflib import get_close_matches
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from llm.errors import InputError
from llm.judge.pace import PATIENCE, Pace, backoff, retry_after
from llm.judge.store import Answer, Question
from llm.runtime import Runtime

OPENAI = "https://api.openai.com/v1"
LOCAL = ("localhost", "127.0.0.1", "::1")  # hosts that need no key
NO_KEY = "none"
AGAIN = (408, 409, 425, 429)  # and 500 up: tried again
# Endpoints that will not answer this very question, whoever asks: no verdict, counted, not retried.
REFUSALS = ("content_filter", "content_policy_violation", "context_length_exceeded")
SAYS_REFUSAL = ("maximum context length", "content management policy")
SHOWN = 300  # characters of a foreign message
NEAREST = 5  # models that are named where the one asked for is not listed
CHECK = Question("", 0.0, 16, "Answer with one word: is water wet?")  # some take no fewer tokens


class EndpointError(RuntimeError):
    """The judge cannot be had: one line, without the key."""


class StoppedError(Exception):
    """Another thread's question has failed; this one was not asked."""


def read_key(runtime: Runtime) -> str:
    """The API key from the environment. Raises InputError where there is none and one is needed."""
    key = os.environ.get(runtime.key_name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{runtime.key_name} in the environment holds what no header may hold")
    if key:
        return key
    if on_this_machine(runtime):
        return NO_KEY
    raise InputError(f"the judge needs an API key: the environment has no {runtime.key_name}")


def address(runtime: Runtime) -> str:
    """The endpoint's base URL: --base-url, else OPENAI_BASE_URL of the environment, else OpenAI."""
    if runtime.base_url is not None:
        return runtime.base_url
    return os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI


def on_this_machine(runtime: Runtime) -> bool:
    """Whether the endpoint's address is this very machine."""
    return urlsplit(address(runtime)).hostname in LOCAL


def check_address(runtime: Runtime) -> None:
    """Raise InputError for what is no address, or one that holds a password or a query.

    A query may be a key, and addresses stand in messages: neither is ever repeated.
    """
    url = address(runtime)
    where = "OPENAI_BASE_URL in the environment" if runtime.base_url is None else "--base-url"
    what = f"the judge's address ({where})"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("ascii")
        host.encode("idna")  # checks the lengths of its parts
    except ValueError:  # brackets, a port or a host name that no network has
        raise InputError(f"{what} is no http or https address") from None
    if "@" in url or parts.query or parts.fragment:
        secret = "user or password" if "@" in url else "query"
        raise InputError(
            f"{what} holds a {secret}: put the key into the environment as {runtime.key_name}"
        )
    if parts.scheme not in ("http", "https") or not host or len(host.split()) > 1:
        raise InputError(f"{what} {url!r} is no http or https address")


class Endpoint:
    """Asks one question at a time, with bounded tries; threads may share it."""

    def __init__(self, runtime: Runtime, pace: Pace, *, served: str, asker: str) -> None:
        """served: the model's name at the endpoint; asker: who is noted as having asked."""
        import openai  # slow to import

        check_address(runtime)
        self._key = read_key(runtime)
        self.runtime, self.pace, self.served, self.asker = runtime, pace, served, asker
        self.stop = Event()  # set: no further request
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=address(runtime),
            timeout=runtime.timeout,
            max_retries=0,  # tries are counted here
            http_client=_direct() if on_this_machine(runtime) else None,
        )

    def __repr__(self) -> str:
        return f"Endpoint({self.served!r} at {self.place})"

    @property
    def place(self) -> str:
        """Where it is asked, for messages."""
        return str(self._client.base_url)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def reach(self) -> None:
        """Raise InputError if the endpoint is not there, refuses the key or has no such model.

        Asks for its list of models, which costs nothing. Where the model is not on it (an alias, a
        deployment, no list), asks one real question of a few tokens: its answer is not kept, and
        stands in no bill of ours. A failure that may pass by itself (429, 5xx) is no error.
        """
        names: list[str] = []
        try:
            names = self._listed()
            if self.served in names:
                return
            if not getattr(self._request(CHECK), "choices", None):
                raise InputError(self._line("is no OpenAI-compatible endpoint: not a completion"))
        except _FaultError as fault:
            if fault.again or fault.refused:
                return
            near = self._cut(", ".join(get_close_matches(self.served, names, NEAREST, 0.0)))
            lists = f"; of the {len(names)} models that it lists the nearest: {near}"
            raise InputError(
                self._line(f"refuses a question: {fault}{lists if names else ''}")
            ) from None

    def _listed(self) -> list[str]:
        """The models that the endpoint lists, [] if it has no list. Raises InputError, _FaultError.

        Not by `models.list()`: what is no list is a raw AttributeError there.
        """
        api = self._openai
        try:
            reply = self._client.get("/models", cast_to=object)
        except (api.AuthenticationError, api.PermissionDeniedError) as error:
            raise InputError(self._line(f"refuses the key: {self._said(error)}")) from None
        except api.APIConnectionError as error:
            raise InputError(self._line(f"does not answer: {self._said(error)}")) from None
        except api.APIStatusError as error:
            fault = self._status(error)
            if fault.again:
                raise fault from None
            return []
        except ValueError as error:  # JSON that ends early
            reply = error
        if not isinstance(reply, dict | list):
            raise InputError(self._line(f"is no OpenAI-compatible endpoint: {self._cut(reply)}"))
        rows: Any = reply.get("data") if isinstance(reply, dict) else reply  # some send it bare
        if not isinstance(rows, list):
            return []
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]

    def ask(self, question: Question) -> Answer:
        """The answer, after at most `retries` further tries. Raises EndpointError, StoppedError."""
        for attempt in range(self.runtime.retries + 1):
            self.pace.wait(self.stop)
            if self.stop.is_set():
                raise StoppedError
            try:
                return self._answer(question, self._request(question))
            except _FaultError as fault:
                if fault.refused:
                    return self._refusal(question, fault)
                if not fault.again or attempt == self.runtime.retries:
                    tries = "" if attempt == 0 else f", after {attempt + 1} tries"
                    raise self._end(f"{fault}{tries}") from None
                self._rest(question.key, attempt, fault)
        raise AssertionError  # the loop returns or raises

    def _end(self, message: str) -> EndpointError:
        """The error that ends this question and all that still wait."""
        self.stop.set()
        return EndpointError(self._line(message))

    def _rest(self, key: str, attempt: int, fault: _FaultError) -> None:
        if fault.wait is not None and fault.wait > PATIENCE:
            raise self._end(f"{fault}; asks to wait {fault.wait:.0f} s") from None
        if fault.wait is not None:
            self.pace.pause(fault.wait)
        self.stop.wait(max(backoff(key, attempt), fault.wait or 0.0))

    def _request(self, question: Question) -> Any:
        """One request. Raises _FaultError."""
        api = self._openai
        try:
            return self._client.chat.completions.create(
                model=self.served,
                messages=[{"role": "user", "content": question.prompt}],
                temperature=question.temperature,
                max_tokens=question.max_tokens,
            )
        except api.APIStatusError as error:
            raise self._status(error) from None
        except api.APITimeoutError:
            raise _FaultError(f"no answer within {self.runtime.timeout:g} s") from None
        except api.APIConnectionError as error:
            raise _FaultError(f"connection failed: {self._said(error)}") from None
        except (ValueError, api.APIError) as error:  # JSON that ends early among them
            raise _FaultError(f"not a whole JSON answer: {self._said(error)}") from None

    def _status(self, error: Any) -> _FaultError:
        status, said = error.status_code, self._said(error)
        lower = said.lower()
        refused = status in (400, 413, 422) and (
            error.code in REFUSALS or any(words in lower for words in SAYS_REFUSAL)
        )
        # A used-up budget comes as a 429 as well: waiting does not fill it.
        again = (status in AGAIN or status >= 500) and error.code != "insufficient_quota"
        wait = retry_after(error.response.headers)
        return _FaultError(said, again=again, refused=refused, wait=wait)

    def _answer(self, question: Question, reply: Any) -> Answer:
        """The first choice's text. Raises _FaultError for what is no completion."""
        try:
            choice, usage = reply.choices[0], reply.usage
            text, finish = choice.message.content, choice.finish_reason
            counted = () if usage is None else (usage.prompt_tokens, usage.completion_tokens)
            tokens = tuple(int(count) for count in counted) or (None, None)
        except (AttributeError, TypeError, IndexError, ValueError):
            raise _FaultError(f"not a chat completion: {self._cut(reply)}") from None
        if not (text is None or isinstance(text, str)):
            raise _FaultError(f"not a text: {self._cut(text)}")
        model = self._clean(str(reply.model or self.served))
        return self._made(question, self._clean(text or ""), model, tokens, finish)

    def _refusal(self, question: Question, fault: _FaultError) -> Answer:
        return self._made(question, "", self.served, (0, 0), None, refused=str(fault))

    def _made(
        self,
        question: Question,
        text: str,
        model: str,
        tokens: tuple[int | None, ...],
        finish: str | None,
        refused: str | None = None,
    ) -> Answer:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return Answer(
            question.key, text, model, tokens[0], tokens[1], finish, date, self.asker, refused
        )

    def _line(self, message: str) -> str:
        return f"judge {self.served} at {self.place}: {message}"

    def _said(self, error: Exception) -> str:
        """What an error says, in one line."""
        cause = error.__cause__ if str(error) == "Connection error." else None
        return self._cut(cause or error)

    def _cut(self, value: object) -> str:
        text = " ".join(self._clean(str(value)).split())
        return text if len(text) <= SHOWN else text[:SHOWN] + "..."

    def _clean(self, text: str) -> str:
        """The text without the key, should the endpoint have sent it back."""
        return text if self._key == NO_KEY else text.replace(self._key, "***")


def _direct() -> Any:
    """A client that takes no proxy on its way to this very machine."""
    from openai import DefaultHttpx2Client

    return DefaultHttpx2Client(trust_env=False)


class _FaultError(Exception):
    """One try that failed."""

    def __init__(
        self,
        message: str,
        *,
        again: bool = True,
        refused: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(message)
        self.again, self.refused, self.wait = again, refused, wait
