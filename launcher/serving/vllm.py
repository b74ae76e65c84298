"""vLLM in place of our own loop, for folders of classes that it serves.

vLLM brings a torch and a transformers of its own, so it mostly lives in an environment of its own: `python` is one that
has it. It is given a clean view of the folder, as everything here: none of its code, no pickles, no template.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.mistakes import Mistake
from model.exchange.architectures import CAUSAL, Architecture
from model.exchange.their_folder import HfFolder, correspondence
from model.exchange.vllm import TAUGHT

PLUGIN = "shardline"
"""Name of our plugin among vLLM's, which teaches it prefix models."""
_ASK = """
import importlib.metadata, importlib.util, json
there = importlib.util.find_spec("vllm") is not None
plugins = [each.name for each in importlib.metadata.entry_points(group="vllm.general_plugins")] if there else []
print(json.dumps([there, plugins]))
"""


class Found(NamedTuple):
    """What a Python has of vLLM."""

    there: bool
    plugins: Sequence[str] = ()


def find(python: str) -> Found:
    """Looks for vLLM in a Python's environment. Mistake when there is no such Python."""
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True, timeout=120)
        return Found(*json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Mistake(f"--vllm-python: {python} is no Python that can be asked ({error})") from None


def obstacle(architecture: Architecture, found: Found, python: str) -> str | None:
    """Why vLLM does not serve a class; None when it does."""
    if not found.there:
        return f"{python} has no vLLM; install it into an environment of its own and name that by --vllm-python"
    if architecture.auto != CAUSAL or (architecture.shipped and architecture.model_type not in TAUGHT):
        return f"vLLM serves no {architecture.name} in the shape it was trained in"
    if architecture.shipped and PLUGIN not in found.plugins:
        return (
            f"vLLM of {python} knows no {architecture.name}, and would serve another class causally; install "
            "shardline there, whose plugin teaches it"
        )
    return None


def run(folder: Path, python: str, host: str, port: int, name: str) -> int:
    """Serves a folder by vLLM until a signal comes; returns its exit code, 0 when it was told to end."""
    theirs = HfFolder.read(folder)
    correspondence(theirs)
    with theirs.clean_view() as view:
        config = view / "config.json"
        keys = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(keys | {"architectures": [theirs.config.architecture.name]}), encoding="utf-8")
        words = ["--model", view, "--served-model-name", name, "--load-format", "safetensors"]
        command = [python, "-m", "vllm.entrypoints.openai.api_server", *words, "--host", host, "--port", port]
        child = subprocess.Popen(list(map(str, command)))
        try:
            return child.wait()
        except (KeyboardInterrupt, SystemExit):
            child.send_signal(signal.SIGTERM)
            child.wait()
            return 0


def chosen(engine: str, folder: Path, python: str | None) -> str | None:
    """The Python whose vLLM serves a folder; None for our own loop. Mistake when vLLM is asked for and cannot."""
    if engine == "transformers":
        return None
    asked = python or sys.executable
    why_not = obstacle(HfFolder.read(folder).config.architecture, find(asked), asked)
    if why_not and engine == "vllm":
        raise Mistake(f"--engine vllm: {why_not}; or take --engine transformers")
    return None if why_not else asked
