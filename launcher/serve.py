"""`shardline serve`: a converted folder behind OpenAI's interface, until a signal comes.

engine chosen -> socket -> model loaded -> one line that says where, and what to try -> SIGINT, SIGTERM -> exit 0
"""

import json
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from common.mistakes import Mistake, cut
from launcher.console import say

ENGINES = ("auto", "transformers", "vllm")


def serve(
    folder: Path,
    *,
    host: str,
    port: int,
    engine: str,
    name: str | None,
    chat: bool,
    batch_size: int,
    vllm_python: str | None,
) -> None:
    """Serves a folder until SIGINT or SIGTERM ends it. Nothing of the folder is run but, with `chat`, its template.

    Raises ValueError when the folder cannot be served, the address is taken, or a library is missing.
    """
    if engine not in ENGINES:
        raise Mistake(f"--engine {cut(engine)}: no such engine; allowed: {', '.join(ENGINES)}")
    if not (folder / "config.json").exists():
        raise Mistake(f"{folder}: no config.json in it; name a folder that 'shardline convert' wrote")
    _end_by_signals()
    from launcher.serving import vllm

    name = name or folder.resolve().name
    if chat and engine == "vllm":
        raise Mistake("--chat: vLLM is given no template of the folder; take --engine transformers, or leave it out")
    if python := vllm.chosen("transformers" if chat else engine, folder, vllm_python):
        sys.exit(vllm.run(folder, python, host, port, name))
    require_extra()
    from launcher.serving.chat import template_of
    from launcher.serving.loaded import load
    from launcher.serving.running import open_socket, serving
    from model.exchange.in_transformers import quiet_transformers

    if chat:
        template_of(folder)
    with open_socket(host, port) as opened:
        loaded = load(folder)
        running = serving(loaded, opened, name, chat=chat, batch_size=batch_size)
        with quiet_transformers(), running as address:
            say(f"serving {folder} ({loaded.architecture.name}) at {address}, to be ended by Ctrl-C; try")
            gap = loaded.tokenizer.mask_token if loaded.kind == "encoder" else ""
            say(f"  {to_try(address, loaded.kind, f'import {gap}')}")
            sys.stdout.flush()
            threading.Event().wait()


def _end_by_signals() -> None:
    """SIGINT and SIGTERM end the command at once, with exit code 0, whatever it is at."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def require_extra() -> None:
    """Mistake when what serves over HTTP is not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise Mistake(f"serve: {error.name} is not installed; run: pip install 'shardline[serve]'") from None


def to_try(address: str, kind: str, text: str) -> str:
    """A command that asks the server something."""
    path, body = question(kind, text)
    return shlex.join(["curl", f"{address}{path}", "--json", json.dumps(body)])


def question(kind: str, text: str) -> tuple[str, dict[str, object]]:
    """Path and body of a request that a model of a kind answers; an encoder's text has a gap in it."""
    if kind == "encoder":
        return "/v1/fill-mask", {"input": text}
    return "/v1/completions", {"prompt": text, "max_tokens": 32}
