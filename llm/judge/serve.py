"""A judge model of one's own: a folder of weights behind vLLM's own server, on this machine.

One server a study at a time; it ends with the process that started it, however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from llm.errors import InputError
from llm.judge.endpoint import EndpointError
from llm.runtime import Runtime

PREFIX = "local:"  # of a judge's name: "local:FOLDER"
FILES = (".json", ".jinja", ".model", ".safetensors", ".txt")  # what decides a model's answers
START_LIMIT = 1800.0  # seconds until a large model must be loaded
POLL = 0.5
SHOWN = 5  # last lines of the log of a server that failed


def folder_of(model: str) -> Path | None:
    """The folder that "local:FOLDER" names; None for a model of an endpoint."""
    return Path(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else None


def check_folder(folder: Path) -> None:
    """Raise InputError unless the folder holds a model that vLLM's chat server can serve."""
    if not folder.is_dir():
        raise InputError(f"local judge {folder}: is no folder")
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InputError(f"local judge {folder}: holds no config.json with *.safetensors")
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"local judge {folder}: holds no tokenizer.json")
    if not (folder / "chat_template.jinja").is_file() and not _template(folder):
        raise InputError(f"local judge {folder}: has no chat template: not a model that answers")


def _template(folder: Path) -> bool:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def folder_name(folder: Path) -> str:
    """ "local-" and 12 digits of the sha256 of the model's files: what its answers are kept under.

    The folder's place does not matter, its content does.
    """
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix in FILES)
    whole = hashlib.sha256()
    for file in files:
        stat = file.stat()
        whole.update(f"{file.name} {_digest(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return f"local-{whole.hexdigest()[:12]}"


@lru_cache(maxsize=1024)
def _digest(file: Path, size: int, changed: int) -> str:
    """sha256 (hex) of a file; size and time of change only say when to read it again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def command(folder: Path, name: str, port: int, runtime: Runtime) -> list[str]:
    """vLLM's server, sampling by temperature alone (no defaults of the model's own)."""
    python = runtime.vllm_python or sys.executable
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder.resolve())),
        *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)),
        *("--tensor-parallel-size", str(runtime.tensor_parallel)),
        *("--generation-config", "vllm", "--seed", "0"),
    ]


Command = Callable[[Path, str, int, Runtime], list[str]]


@contextmanager
def serving(folder: Path, runtime: Runtime, logs: Path, build: Command = command) -> Iterator[str]:
    """The base URL of a server of the folder's model, ended on leaving.

    logs: a folder for the server's log and the lock. Waits while another process of the study
    serves. Raises EndpointError with the log's end if the server does not start.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / ".local.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        port, name = _free_port(), folder_name(folder)
        log = logs / f"{name}.log"
        watch = [sys.executable, str(Path(__file__).with_name("watch.py"))]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                watch + build(folder, name, port, runtime),
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            _await_health(process, port, folder, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_health(process: subprocess.Popen, port: int, folder: Path, log: Path) -> None:
    """Return when the server answers; EndpointError when it ended or took too long."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    limit = time.monotonic() + START_LIMIT
    while process.poll() is None and time.monotonic() < limit:
        try:
            with direct.open(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    why = "did not start in time" if process.poll() is None else "ended"
    said = " | ".join(line.strip() for line in lines[-SHOWN:])
    raise EndpointError(f"local judge {folder}: vLLM's server {why}: {said} (log: {log})")
