"""A trained model as one GGUF file, for llama.cpp and what is built on it.

    architecture (architectures.py), keys (metadata.py), tokenizer (vocabulary.py)
    our weights, one at a time -> renamed, split and laid out (tensors.py) -> into their places (file.py)
    all -> checked by the gguf package's reader, in llama.cpp where it is installed (check.py) -> renamed into place

What has no place is refused by its key before anything is written. Memory is that of one layer, whatever the size of
the model; llama.cpp itself maps the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.files import refuse_without_room, written_aside
from common.mistakes import Mistake
from model.exchange.convert import ExportSpec, State, write_weights
from model.exchange.gguf.architectures import gguf_architecture
from model.exchange.gguf.check import Texts, check_file, check_in_llama_cpp, has_llama_cpp
from model.exchange.gguf.file import TYPES, GgufFile, GgufWriter, tensor_bytes
from model.exchange.gguf.metadata import SHAPE, SOURCE, add_model, add_vocabulary
from model.exchange.gguf.tensors import derived_tensors, left_behind, tensor_table
from model.exchange.gguf.vocabulary import UNKNOWN, Vocabulary
from model.exchange.hf_names import part_shapes

INSTALL = "pip install 'shardline[gguf]'"


class GgufSpec(NamedTuple):
    """What is written beside the weights, and how they are stored."""

    export: ExportSpec
    """The model, its special ids and what it comes from; `tokenizer` and `dtype` of it are not looked at."""
    vocabulary: Vocabulary
    texts: Texts | None = None
    """What token ids are compared on in llama.cpp, unless the vocabulary is `none`."""
    matrix_type: str = "f32"
    """One of `file.TYPES`."""
    ends_with_eos: bool = False
    """Whether the end token is put behind a text, as inputs had it in training."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors."""
        derived = {name: tuple(tensor.shape) for name, tensor in derived_tensors(self.export.config).items()}
        return derived | part_shapes(tensor_table(self.export.config, self.export.vocab_size))


def export_gguf(state: State, spec: GgufSpec, out: Path) -> str:
    """Writes the file `out`, checks it and says by what it was checked.

    state holds our weights by name, taken one by one; the head of a tied model may be in it or not, further depths
    (`multi_token_depths`) stay behind. Replaces an earlier file of ours.
    Raises ValueError when `out` is something else or there is no room for it, when the model or its tokenizer has no
    place in GGUF, when a weight is missing, unknown or misshapen; RuntimeError when the file does not give our logits
    and tokens. Nothing is left behind then.
    """
    require_gguf()
    export, found = spec.export, gguf_architecture(spec.export.config)
    if spec.matrix_type not in TYPES:
        raise Mistake(f"--dtype {spec.matrix_type}: not a type that GGUF is written in; allowed: {', '.join(TYPES)}")
    num_bytes = sum(tensor_bytes(name, shape, spec.matrix_type) for name, shape in spec.shapes.items())
    _refuse_foreign(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    refuse_without_room(out, num_bytes)
    with written_aside(out) as file:
        aside = Path(file.name)
        writer = GgufWriter(aside, _metadata(spec, found.name), spec.shapes, spec.matrix_type)
        digests = _write_weights(writer, state, spec)
        check_file(aside, export.config, export.vocab_size, spec.matrix_type, digests)
        if not has_llama_cpp():
            return "gguf's reader alone, as llama-cpp-python is not installed here"
        ids = (export.vocab_size, export.max_positions, export.bos_id)
        check_in_llama_cpp(aside, export.config, *ids, spec.matrix_type, spec.texts)
    return "llama.cpp"


def require_gguf() -> None:
    """ValueError unless the gguf package is installed."""
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError:
        raise Mistake(f"--to gguf: the package gguf is not installed; {INSTALL}") from None


def gguf_exported_from(out: Path) -> str | None:
    """The `source` that a file was exported from; None when it is no GGUF file of ours."""
    if not out.is_file():
        return None
    try:
        source = GgufFile(out).keys.get(SOURCE)
    except Mistake:  # it is no GGUF file: none of ours
        return None
    return source if isinstance(source, str) else None


def _refuse_foreign(out: Path) -> None:
    if out.is_dir():
        raise Mistake(f"{out}: it is a folder; give the name of a file, as {out / 'model.gguf'}")
    if out.exists() and out.stat().st_size and gguf_exported_from(out) is None:
        raise Mistake(f"{out}: it exists and is no file shardline exported; choose another name or remove it")


def _metadata(spec: GgufSpec, architecture: str) -> Any:
    """The gguf package's writer, with all keys and no tensors."""
    import gguf

    export, writer = spec.export, gguf.GGUFWriter(None, architecture)
    add_model(writer, export.config, export.vocab_size, export.max_positions, spec.matrix_type)
    if export.config.shape == "encdec":
        writer.add_decoder_start_token_id(export.bos_id)
    vocabulary = spec.vocabulary.padded(export.vocab_size)
    add_vocabulary(writer, vocabulary, _special_ids(export, vocabulary), ends_with_eos=spec.ends_with_eos)
    writer.add_string(SHAPE, export.config.shape)
    writer.add_string(SOURCE, export.source or "weights")
    return writer


def _special_ids(export: ExportSpec, vocabulary: Vocabulary) -> Mapping[str, int]:
    ids = {"bos": export.bos_id, "eos": export.eos_id, "pad": export.pad_id}
    if "<mask>" in vocabulary.tokens:
        ids["mask"] = list(vocabulary.tokens).index("<mask>")
    unknown = [index for index, kind in enumerate(vocabulary.types) if kind == UNKNOWN]
    return ids | ({"unk": unknown[0]} if unknown else {})


def _write_weights(writer: GgufWriter, state: State, spec: GgufSpec) -> dict[str, str]:
    """Writes the weights as they come; returns the digest of each tensor."""
    config, table = spec.export.config, tensor_table(spec.export.config, spec.export.vocab_size)
    digests = {name: writer.write(name, tensor) for name, tensor in derived_tensors(config).items()}
    return digests | write_weights(writer.write, state, config, table, left_behind(config))
