"""A local OpenAI-compatible server that misbehaves on purpose, and counts what it is asked.

As a script: `python misbehaving.py PORT` answers honestly until it is killed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW = 6.0  # seconds; a test's client waits less
KEY = "sk-secret-of-the-tests-0123456789"


def longer(prompt: str) -> str:
    """An honest judge: the longer summary; equal ones by their first difference."""
    a, rest = prompt.split("\n### Summary A:\n")[1].split("\n\n### Summary B:\n")
    b = rest.split("\n\n### Instructions:\n")[0]
    letter = "A" if (len(a), a) >= (len(b), b) else "B"
    return f"Comparison: one of them says more.\nPreferred: {letter}"


def listed(names: list[str]) -> Any:
    """The answer to GET /models."""
    return {"object": "list", "data": [{"id": name} for name in names]}


class Server:
    """In `with`: `url` is its address, `prompts` what it was asked, `faults` what it does first.

    faults: one word a request, taken in turn; then every request is answered by `answer`.
    always: a fault that never ends. answer_limit: requests beyond so many answers are left waiting.
    """

    def __init__(self, answer: Callable[[str], str] = longer, port: int = 0) -> None:
        self.answer, self.always = answer, ""
        self.faults: deque[str] = deque()
        self.prompts: list[str] = []  # every request's, in order
        self.bodies: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()  # prompts that got a whole answer
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.answer_limit: int | None = None
        self.model = "gpt-4o-2024-08-06"
        self.models: list[str] | None = ["gpt-4o"]  # that it lists; None: 404, it has no list
        self.usage = True
        self.echo = ""  # said in every error
        self.busiest = 0  # most requests at once
        self._now = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.http = _Http(("127.0.0.1", port), _Handler)
        self.http.owner = self
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()

    def begin(self, body: dict[str, Any], key: str) -> tuple[str, bool]:
        """Note a request; (its fault, whether it may be answered now)."""
        with self._lock:
            prompt = body["messages"][-1]["content"]
            self.prompts.append(prompt)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.keys.add(key)
            self._now += 1
            self.busiest = max(self.busiest, self._now)
            fault = self.faults.popleft() if self.faults else self.always
            if fault:
                return fault, True
            free = self.answer_limit is None or sum(self.answered.values()) < self.answer_limit
            self.answered[prompt] += free
            return "", free

    def done(self) -> None:
        with self._lock:
            self._now -= 1

    def wait_for_end(self) -> None:
        self._end.wait(60)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    owner: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in these tests: no noise."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go out in two writes
    server: _Http

    def log_message(self, *_: Any) -> None:
        """No noise."""

    def do_GET(self) -> None:
        owner = self.server.owner
        if owner.always.isdigit():
            self._send(int(owner.always), _error(owner, "no"))
        elif owner.always == "html":
            self._send(200, "<html>Welcome</html>", kind="text/html")
        elif owner.always == "truncated":
            self._send(200, '{"object": "li')
        elif not self.path.endswith("/models"):
            self._send(200, {})
        elif owner.models is None:
            self._send(404, _error(owner, "no such page"))
        else:
            self._send(200, listed(owner.models))

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault, free = owner.begin(body, self.headers.get("Authorization", ""))
        try:
            if not free:
                owner.wait_for_end()
                self.close_connection = True
            elif fault:
                self._misbehave(owner, fault, body)
            else:
                self._send(200, self._completion(owner, body))
        finally:
            owner.done()

    def _completion(self, owner: Server, body: dict[str, Any]) -> dict[str, Any]:
        text = owner.answer(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": text}
        made = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": owner.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        if owner.usage:
            made["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return made

    def _misbehave(self, owner: Server, fault: str, body: dict[str, Any]) -> None:
        if fault.startswith("wait "):  # "wait 0.2": 429 with Retry-After
            self._send(429, _error(owner, "slow down"), {"Retry-After": fault.split()[1]})
        elif fault == "slow":
            time.sleep(SLOW)
            self._send(200, self._completion(owner, body))
        elif fault == "truncated":  # JSON that ends early, with a length that says so
            whole = json.dumps(self._completion(owner, body))
            self._send(200, whole[: len(whole) // 2])
        elif fault == "cut":  # the connection ends before the promised length
            whole = json.dumps(self._completion(owner, body)).encode()
            self._head(200, len(whole), "application/json", {})
            self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
        elif fault == "drop":
            self.close_connection = True
        elif fault == "html":
            self._send(200, "<html>Gateway</html>", kind="text/html")
        elif fault == "no choices":
            self._send(200, {"error": {"message": "overloaded"}})
        elif fault == "filtered":
            self._send(400, _error(owner, "filtered", code="content_filter"))
        elif fault == "quota":
            self._send(429, _error(owner, "no money", code="insufficient_quota"))
        else:
            self._send(int(fault), _error(owner, "no"))

    def _send(
        self,
        status: int,
        value: Any,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
    ) -> None:
        content = (value if isinstance(value, str) else json.dumps(value)).encode()
        self._head(status, len(content), kind, headers or {})
        self.wfile.write(content)

    def _head(self, status: int, length: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _error(owner: Server, message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": f"{message} {owner.echo}".strip(), "code": code, "type": "x"}}


if __name__ == "__main__":
    with Server(port=int(sys.argv[1])) as server:
        while True:
            time.sleep(3600)
