"""vLLM in place of our own loop, for folders of classes that it serves.

vLLM brings a torch and a transformers of its own, so it mostly lives in an environment of its own: `python` is one that
has it. It is given a clean view of the folder, as everything here: none of its code, no pickles, no template.
Decoders and encoder-decoders complete prompts there as here; encoders make embeddings there and fill no gaps.
"""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.architectures import SEQ2SEQ, Architecture
from model.exchange.families.places import as_yaml
from model.exchange.their_folder import HfFolder, correspondence
from model.exchange.vllm import TAUGHT

PLUGIN = "shardline"
"""Name of our plugin among vLLM's."""
NAMES = {**TAUGHT, "modernbert": "ModernBertModel"}
"""Classes that do there what a folder's own does, where they are called otherwise, by the type in config.json."""
TIED = {"bloom": True, "cohere": True, "gemma2": True, "gptj": False}
"""Types whose class there knows only heads that are the embedding, or only those that are not: of the others one would
be served with another head, with or without a word."""
SILU_ALONE = {"llama", "qwen2", "qwen3", "mistral", "phi3", "prefix_llama", "cohere"}
"""Types whose class there puts SiLU on a gate, whatever a folder says: Cohere's without a word, the others refuse."""
WINDOWS_ALIKE = {"qwen2", "qwen3"}
"""Types whose class there has windows in all layers or in none. It refuses others, but for models of 28 layers (the
default of max_window_layers), whose windows it leaves out without a word."""
POOLER = {"pooling_type": "MEAN", "use_activation": False}
"""What `filling.embed` does: the mean of all states, as long as it is; vLLM's own is the first state at length 1."""
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


def obstacle(architecture: Architecture, model: ModelConfig, found: Found, python: str) -> str | None:
    """Why vLLM does not serve a model of a class; None when it does."""
    if not found.there:
        return f"{python} has no vLLM; install it into an environment of its own and name that by --vllm-python"
    is_foreign = architecture.shipped is not None or architecture.auto == SEQ2SEQ
    if is_foreign and architecture.model_type not in TAUGHT:
        return f"vLLM serves no {architecture.name} in the shape it was trained in"
    if architecture.model_type in TAUGHT and PLUGIN not in found.plugins:
        return (
            f"vLLM of {python} has no class for {architecture.name} as it was trained; install shardline there, "
            "whose plugin brings one"
        )
    if (wanted := only_with(architecture, model)) is not None:
        return f"vLLM knows {architecture.name} only with {wanted}"
    return None


def only_with(architecture: Architecture, model: ModelConfig) -> str | None:
    """The one thing that vLLM's class knows where this model has another; None when it knows what this one has."""
    if (ties := TIED.get(architecture.model_type, model.tie_embeddings)) != model.tie_embeddings:
        return f"tie_word_embeddings {as_yaml(ties)}"
    if architecture.model_type in SILU_ALONE and model.activation != "swiglu":
        return "hidden_act silu"
    if architecture.model_type in WINDOWS_ALIKE and model.num_sliding(model.num_layers) not in (0, model.num_layers):
        return "layers that slide all or none"
    size, turned = model.head_size, model.rotary_dim
    if architecture.model_type == "gptj" and int(size * (turned / size)) != turned:
        return f"another rotary_dim than {turned}, which it rounds down"
    return None


def settings(theirs: HfFolder) -> dict[str, str]:
    """Options that have vLLM compute what our own loop does, by name. ValueError as from `correspondence`."""
    imported, _ = correspondence(theirs)
    options = {}
    if any(place.dtype == torch.float32 for place in theirs.files.places.values()):
        options["--dtype"] = "float32"  # else it would round them to 16 bits
    if theirs.config.architecture.fills_masks:
        options |= {"--runner": "pooling", "--pooler-config": json.dumps(POOLER)}
        if imported.max_positions:
            options["--max-model-len"] = str(imported.max_positions)  # its own count has RoBERTa's unread rows in it
    return options


def run(folder: Path, python: str, host: str, port: int, name: str) -> int:
    """Serves a folder by vLLM until a signal comes; returns 0 when it was told to end, else another number.

    vLLM itself ends with 0 when its engine is dead.
    """
    theirs = HfFolder.read(folder)
    options, architecture = settings(theirs), theirs.config.architecture
    with theirs.clean_view() as view:
        config = view / "config.json"
        keys = json.loads(config.read_text(encoding="utf-8"))
        keys["architectures"] = [NAMES.get(architecture.model_type, architecture.name)]
        config.write_text(json.dumps(keys), encoding="utf-8")
        words = ["--model", view, "--served-model-name", name, "--load-format", "safetensors"]
        words += ["--host", host, "--port", port, *itertools.chain(*options.items())]
        command = [python, "-m", "vllm.entrypoints.openai.api_server", *words]
        child = subprocess.Popen(list(map(str, command)))
        try:
            return child.wait() or 1
        except (KeyboardInterrupt, SystemExit):
            child.send_signal(signal.SIGTERM)
            child.wait()
            return 0


def chosen(engine: str, folder: Path, python: str | None) -> str | None:
    """The Python whose vLLM serves a folder; None for our own loop. Mistake when vLLM is asked for and cannot.

    `auto` keeps encoders, whose gaps only our own loop fills.
    """
    if engine == "transformers":
        return None
    asked, theirs = python or sys.executable, HfFolder.read(folder)
    architecture, found = theirs.config.architecture, find(asked)
    if engine == "auto" and (architecture.fills_masks or not found.there):
        return None
    imported, _ = correspondence(theirs)  # reads weights: not where there is no vLLM to give them to
    why_not = obstacle(architecture, imported.config, found, asked)
    if why_not and engine == "vllm":
        raise Mistake(f"--engine vllm: {why_not}; or take --engine transformers")
    return None if why_not else asked
