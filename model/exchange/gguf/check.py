"""Does a GGUF file do what our model does? Asked of the gguf package's reader, and of llama.cpp where it is installed.

    the file, through the reader -> names, shapes, types and every byte of what was handed over
    the file, in llama.cpp       \
                                   the same documents -> logits, greedy tokens and token ids, compared
    our model, its weights from the file as the reader gives them /

Ours reads the same rounded weights and rounds on the way as llama.cpp does (as_llama_cpp.py). Where no number lies so
close to the middle of two steps that the two part, logits are equal to float32's precision; where one does, all that
follows is rounded otherwise, so they may be as far from each other as rounding takes ours from where it was.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from common.mistakes import Mistake, cut
from model.config import ModelConfig
from model.exchange.families.layout import WeightTable
from model.exchange.gguf.architectures import gguf_architecture
from model.exchange.gguf.as_llama_cpp import round_as_llama_cpp, rounds
from model.exchange.gguf.file import GgufFile, is_matrix
from model.exchange.gguf.metadata import SHAPE
from model.exchange.gguf.tensors import derived_tensors, tensor_table
from model.exchange.hf_names import one_from_hf, part_shapes
from model.exchange.in_transformers import Documents
from model.exchange.parity import (
    AWKWARD_TEXTS,
    LOGIT_TOLERANCE,
    Ours,
    choices,
    documents_for,
    num_generated,
    run_ours,
    states_of,
)

TIMES_ROUNDING = 2.0
"""How far logits may be from ours, beside `LOGIT_TOLERANCE`, in multiples of what rounding does to ours."""
PROGRAM = Path(__file__).with_name("in_llama_cpp.py")
MOST_SECONDS = 3600
"""Until llama.cpp is given up."""


class Texts(NamedTuple):
    """What token ids are compared on."""

    encode: Callable[[str], Sequence[int]]
    """Ids of a text in the training, none of them special."""
    specials: Mapping[str, int]
    """Special tokens by name, which stand before and behind texts."""
    samples: Sequence[str] = ()
    """Texts beside some awkward strings."""


def check_file(file: Path, config: ModelConfig, vocab_size: int, matrix_type: str, digests: Mapping[str, str]) -> None:
    """Compares a file with what was to be written, as the gguf package reads it; RuntimeError if they differ.

    digests are those of the tensors handed over, by their name.
    """
    found = GgufFile(file)
    named = (found.keys.get("general.architecture"), found.keys.get(SHAPE))
    if named != (gguf_architecture(config).name, config.shape):
        raise RuntimeError(f"{file}: it is {named}, not the {gguf_architecture(config).name} that was exported")
    shapes = part_shapes(tensor_table(config, vocab_size))
    shapes |= {name: tuple(tensor.shape) for name, tensor in derived_tensors(config).items()}
    expected = {name: (shape, matrix_type if is_matrix(name, shape) else "f32") for name, shape in shapes.items()}
    if {name: (place.shape, place.type) for name, place in found.places.items()} != expected:
        raise RuntimeError(f"{file}: its tensors are not those that were exported")
    for name in expected:
        if found.digest(name) != digests[name]:
            raise RuntimeError(f"{file}: tensor {name} on disk is not the one that was exported")


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed beside us."""
    return importlib.util.find_spec("llama_cpp") is not None


def check_in_llama_cpp(
    file: Path,
    config: ModelConfig,
    vocab_size: int,
    max_positions: int,
    start_id: int,
    matrix_type: str,
    texts: Texts | None,
    python: str = sys.executable,
) -> None:
    """Compares logits, greedy tokens and token ids of a file in llama.cpp with ours; RuntimeError if they differ.

    start_id opens the decoder of an encoder-decoder; python is an interpreter that has llama-cpp-python.
    """
    documents = documents_for(config.shape, vocab_size, max_positions, start_id)
    has_head = gguf_architecture(config).has_head
    num_new = 0 if config.shape == "encoder" else num_generated(documents, max_positions, file.stat().st_size)
    asked = _asked(texts) if texts is not None else {}
    found = run_in_llama_cpp(file, config.shape, documents, num_new, start_id, list(asked), python, has_head)
    for number, ((text, _), ids) in enumerate(asked.items()):
        if (theirs := found[f"ids_{number}"].tolist()) != ids:
            raise Mistake(
                f"{file}: llama.cpp gives the ids {theirs[:20]} for {text[:40]!r}, the tokenizer of the training "
                f"{ids[:20]}; nothing was exported. With --without-tokenizer the weights are"
            )
    ours = Ours(config, vocab_size, weights_in(file, tensor_table(config, vocab_size)))
    model, plain = round_as_llama_cpp(ours.make(), matrix_type), ours.make()
    run, what = (run_ours, "logits") if has_head else (states_of, "final states")
    for number, (inputs, outputs) in enumerate(zip(*documents, strict=True)):
        mine = run(model, inputs, outputs)
        allowed = tolerance(mine, run(plain, inputs, outputs) if rounds(config, matrix_type) else mine)
        _compare(file, what, mine, torch.from_numpy(found[f"logits_{number}"]), allowed)
        if num_new:
            tokens = torch.from_numpy(found[f"generated_{number}"])
            _compare(file, "generated tokens", *choices(model, inputs, tokens, start_id), allowed)


def tolerance(rounded: torch.Tensor, plain: torch.Tensor) -> float:
    """Largest difference of numbers from ours, which are these with roundings and those without."""
    by_rounding = (rounded - plain).abs().max().item()
    return LOGIT_TOLERANCE * max(1.0, rounded.abs().max().item()) + TIMES_ROUNDING * by_rounding


def run_in_llama_cpp(
    file: Path,
    shape: str,
    documents: Documents,
    num_new: int,
    start_id: int,
    texts: Sequence[tuple[str, bool]],
    python: str,
    has_head: bool = True,
) -> dict[str, np.ndarray]:
    """What `in_llama_cpp.py` gives, final states for logits where there is no head.

    RuntimeError when llama.cpp cannot run the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npz"
        request: dict[str, Any] = {"file": str(file), "out": str(out), "shape": shape, "start_id": start_id}
        pairs = zip(*documents, strict=True)
        request["documents"] = [{"inputs": each.tolist(), "outputs": rest.tolist()} for each, rest in pairs]
        request |= {"num_new": num_new, "texts": texts, "has_head": has_head}
        ran = subprocess.run(
            [python, "-P", PROGRAM],
            input=json.dumps(request),
            text=True,
            capture_output=True,
            timeout=MOST_SECONDS,
        )
        if ran.returncode:
            raise RuntimeError(f"{file}: llama.cpp cannot run it ({cut(ran.stderr.strip()[-400:], 400)})")
        with np.load(out) as arrays:
            return dict(arrays)


def weights_in(file: Path, table: WeightTable) -> Callable[[str], torch.Tensor]:
    """A function that gives our weights by name, float32, as they are in a file."""
    opened = GgufFile(file)
    return lambda name: one_from_hf(opened.read, table, name)


def _asked(texts: Texts) -> dict[tuple[str, bool], list[int]]:
    """Texts to llama.cpp, whether names of special tokens mean those in it, and the ids they are to get."""
    asked = {(text, False): list(texts.encode(text)) for text in (*AWKWARD_TEXTS, *texts.samples)}
    between = "def f(x):\n    return  x"
    for name, index in texts.specials.items():
        asked[(f"{name}{between}{name}", True)] = [index, *texts.encode(between), index]
    return asked


def _compare(file: Path, what: str, ours: torch.Tensor, theirs: torch.Tensor, allowed: float) -> None:
    if not theirs.isfinite().all():
        raise Mistake(f"{file}: its weights give numbers that are not finite; nothing was exported")
    difference = (ours - theirs).abs().max().item()
    if not difference <= allowed:
        raise RuntimeError(
            f"{file}: llama.cpp's {what} differ from ours by {difference:.3g}, rounding allows {allowed:.3g}; nothing "
            "was exported"
        )
