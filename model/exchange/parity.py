"""Does a Hugging Face folder do what our model does? Asked of transformers itself, before anyone else can.

    the folder, loaded by its Auto class  \
                                           the same documents -> logits and greedy tokens in fp32, compared
    our model, its weights from a function /

Neither is ever whole in memory: ours reads a matrix when it is used, theirs a layer (on_demand.py). And does the
tokenizer give sentencepiece's ids?
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import torch

from model.config import ModelConfig
from model.exchange.hf_configs import Architecture, architecture
from model.exchange.hf_names import one_from_hf, weight_table
from model.exchange.tensor_files import TensorReader
from model.kernels.attention import AttentionPattern
from model.kernels.on_demand import Read, layers_and_owners, owners, read_on_demand
from model.network.transformer import EncoderInput, Transformer

LOGIT_TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit (or of 1, if that is smaller)."""
NUM_CHECKED = 32
"""Tokens of the longer of the compared texts, and tokens generated after each of them."""
SMALL_BYTES, NUM_OF_LARGE = 4 * 2**30, 4
"""Of weights larger than this only so many tokens are generated: each of them reads all weights again."""

AWKWARD_TEXTS = (
    "  leading blanks",
    "trailing  ",
    "\ttab\n\nnew\r\nlines\n",
    "a NUL \0 inside",
    "\N{GRINNING FACE} \N{MAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3000wide blank",
    "e\u0301 combined, \u200b zero width, \ufeff mark",
    "<s> and </s>, <pad> and <extra_id_0>, [R], <0x41>",
    "\u2581 the word mark itself",
    "x" * 300,
    "",
)
"""Strings on which conversions of tokenizers went wrong before."""


def check_tokenizer(
    folder: Path,
    tokenizer_model: Path,
    sample_texts: Sequence[str] = (),
    *,
    ends_with_eos: bool = False,
    has_code: bool = False,
) -> None:
    """Compares the folder's tokenizer with sentencepiece's, on awkward strings too; RuntimeError if they differ.

    ends_with_eos: whether plain calls are to put the end token behind; has_code: whether the folder's config needs
    the modeling file beside it.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=has_code)
    ours = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    end = [ours.eos_id()] if ends_with_eos else []
    for text in (*AWKWARD_TEXTS, *sample_texts):
        expected = ours.encode(text)
        plain = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        opened = theirs.encode(text, split_special_tokens=True)
        if plain != expected or opened != [ours.bos_id(), *expected, *end]:
            raise RuntimeError(
                f"{folder}: the exported tokenizer gives {opened[:20]} for {text[:40]!r}, not {expected[:20]}"
            )
        if theirs.decode(plain) != ours.decode(expected):
            raise RuntimeError(
                f"{folder}: the exported tokenizer decodes {text[:40]!r} to {theirs.decode(plain)[:40]!r}"
            )


def check_export(
    folder: Path, config: ModelConfig, vocab_size: int, max_positions: int, start_id: int, digests: Mapping[str, str]
) -> None:
    """Compares weights, logits and greedy tokens of the folder with ours, in fp32; RuntimeError if they differ.

    digests are those of the weights handed over, by their name; start_id opens the decoder of an encoder-decoder.
    Needs memory for one layer, whatever the size of the model.
    """
    files = TensorReader(folder)
    if odd := set(files.places) ^ set(digests):
        raise RuntimeError(f"{folder}: weight {min(odd)} is not the one that was exported")
    for name, digest in digests.items():
        if files.digest(name) != digest:
            raise RuntimeError(f"{folder}: weight {name} on disk is not the one that was exported")
    table = weight_table(config, vocab_size)

    def read(name: str) -> torch.Tensor:
        return one_from_hf(files.read, table, name)

    ours = Ours(config, vocab_size, read)
    compare(folder, architecture(config), ours, max_positions, start_id, "nothing was exported")


class Ours(NamedTuple):
    """A model of ours that is not in memory."""

    config: ModelConfig
    vocab_size: int
    read: Read
    """Gives its weights by name."""

    def make(self) -> Transformer:
        """The model, which reads each weight when it is used."""
        how = {"attention_backend": "sdpa", "compile": False, "activation_checkpointing": False}
        with torch.device("meta"):
            model = Transformer(self.config.model_copy(update=how), self.vocab_size)
        read_on_demand(model, owners(model), self.read)
        return model


def compare(folder: Path, found: Architecture, ours: Ours, max_positions: int, start_id: int, consequence: str) -> None:
    """Compares logits and greedy tokens of a folder of class `found` with those of ours.

    Two documents of unequal lengths, padded, go through theirs at once. RuntimeError if they differ, ending in
    `consequence`.
    """
    files = TensorReader(folder)
    shape = ours.config.shape
    documents = _documents(shape, ours.vocab_size, max_positions, start_id)
    num_new = max(0, min(NUM_CHECKED, max_positions - max(map(len, documents.inputs))))
    if files.num_bytes > SMALL_BYTES:
        num_new = min(num_new, NUM_OF_LARGE)
    try:
        logits, generated = _run_theirs(folder, found, files, documents, num_new, start_id)
    except Exception as error:  # whatever their code raises says that the folder is not right
        raise RuntimeError(f"{folder}: transformers cannot run it ({error}); {consequence}") from error
    model = ours.make()
    for index, theirs in enumerate(logits):
        mine = run_ours(model, documents.inputs[index], documents.outputs[index])
        _compare(folder, mine, theirs, "logits", consequence)
    for index, tokens in enumerate(generated):
        outputs = tokens if shape != "encdec" else torch.cat((torch.tensor([start_id]), tokens))
        mine = run_ours(model, documents.inputs[index], outputs)[-1 - len(tokens) : -1]
        chosen = mine.gather(1, tokens[:, None])[:, 0]
        _compare(folder, mine.amax(1), chosen, "generated tokens", consequence)


class Documents(NamedTuple):
    """What both models read."""

    inputs: list[torch.Tensor]
    """int64 [L] each: beginning of a text, prefix, masked text, or what an encoder reads."""
    outputs: list[torch.Tensor]
    """int64 [M] each: what follows; in an encoder-decoder it begins with the start token."""


def _documents(shape: str, vocab_size: int, max_positions: int, start_id: int) -> Documents:
    generator = torch.Generator().manual_seed(0)
    longest = max(min(NUM_CHECKED, max_positions // 2), 1)
    lengths = (longest, max(longest * 2 // 3, 1))
    inputs = [torch.randint(vocab_size, (n,), generator=generator) for n in lengths]
    if shape == "encoder":
        return Documents(inputs, [tokens[:0] for tokens in inputs])
    outputs = [torch.randint(vocab_size, (n // 2,), generator=generator) for n in lengths]
    if shape == "encdec":
        outputs = [torch.cat((torch.tensor([start_id]), tokens)) for tokens in outputs]
    return Documents(inputs, outputs)


def run_ours(model: Transformer, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Logits of our model for one document: of inputs and outputs [L + M, V], in an encoder-decoder of outputs [M, V].

    inputs int64 [L], outputs int64 [M], laid out as the model's shape wants them.
    """
    shape, num_inputs = model.config.shape, len(inputs)
    with torch.no_grad():
        if shape == "encdec":
            beside = EncoderInput(
                inputs, torch.arange(num_inputs), _pattern(num_inputs, num_inputs), _cross(len(outputs), num_inputs)
            )
            return model(outputs, torch.arange(len(outputs)), _pattern(len(outputs), 0), encoder=beside)
        tokens = torch.cat((inputs, outputs))
        prefix = 0 if shape == "causal" else num_inputs
        return model(tokens, torch.arange(len(tokens)), _pattern(len(tokens), prefix))


def _pattern(length: int, prefix: int) -> AttentionPattern:
    return AttentionPattern.packed(torch.tensor([0, length]), torch.tensor([prefix]))


def _cross(num_queries: int, num_keys: int) -> AttentionPattern:
    return AttentionPattern.cross(torch.tensor([0, num_queries]), torch.tensor([0, num_keys]))


def _compare(folder: Path, ours: torch.Tensor, theirs: torch.Tensor, what: str, consequence: str) -> None:
    if not ours.numel():
        return
    difference = (ours - theirs).abs().max().item()
    if not difference <= LOGIT_TOLERANCE * max(1.0, ours.abs().max().item()):
        raise RuntimeError(f"{folder}: the model's {what} differ from ours by {difference:.3g}; {consequence}")


def load_theirs(folder: Path, found: Architecture) -> Any:
    """A folder's model as its users load it, in its stored dtype. RuntimeError when its weights are not the class's."""
    import transformers

    model, facts = getattr(transformers, found.auto).from_pretrained(
        folder,
        local_files_only=True,
        dtype="auto",
        trust_remote_code=found.shipped is not None,
        output_loading_info=True,
    )
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if facts[fault]:
            raise RuntimeError(f"{folder}: {fault.replace('_', ' ')} in {found.name}: {sorted(map(str, facts[fault]))}")
    if type(model).__name__ != found.name:
        raise RuntimeError(f"{folder}: transformers loads it as {type(model).__name__}, not as {found.name}")
    return model.eval()


def _run_theirs(
    folder: Path, found: Architecture, files: TensorReader, documents: Documents, num_new: int, start_id: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of each document as `run_ours` gives them, and num_new greedy tokens after its inputs."""
    model = load_theirs(folder, found)
    stored = {
        id(weight): name for name, weight in model.named_parameters(remove_duplicate=False) if name in files.places
    }
    by_name = {name: stored.get(id(weight), name) for name, weight in model.named_parameters()}
    read_on_demand(model, layers_and_owners(model), lambda name: files.read(by_name[name]))
    with torch.no_grad():
        logits = _their_logits(model, found, documents)
        if not num_new or found.auto == "AutoModelForMaskedLM":
            return logits, []
        return logits, generate_theirs(model, found, documents.inputs, num_new, start_id)


def _their_logits(model: Any, found: Architecture, documents: Documents) -> list[torch.Tensor]:
    if found.auto == "AutoModelForSeq2SeqLM":
        ids, mask = _padded(documents.inputs, left=False)
        decoder_ids, decoder_mask = _padded(documents.outputs, left=False)
        keys = {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}
        logits = model(input_ids=ids, attention_mask=mask, **keys).logits
        return [row[: len(tokens)] for row, tokens in zip(logits, documents.outputs, strict=True)]
    texts = [torch.cat(parts) for parts in zip(*documents, strict=True)]
    ids, mask = _padded(texts, left=False)
    keys = {"prefix_lengths": torch.tensor([len(x) for x in documents.inputs])} if found.shipped else {}
    logits = model(input_ids=ids, attention_mask=mask, **keys).logits
    return [row[: len(tokens)] for row, tokens in zip(logits, texts, strict=True)]


def generate_theirs(
    model: Any, found: Architecture, inputs: Sequence[torch.Tensor], num_new: int, start_id: int
) -> list[torch.Tensor]:
    """num_new greedy tokens int64 [num_new] after each of `inputs` int64 [L], which go in as one padded batch."""
    ids, mask = _padded(inputs, left=True)
    # Without an end token, or generate would bar it until the last token: ours may well prefer it.
    keys: dict[str, Any] = {"max_new_tokens": num_new, "min_new_tokens": num_new, "eos_token_id": None}
    if found.auto == "AutoModelForSeq2SeqLM":
        keys |= {"decoder_start_token_id": start_id} | cache_for(model)
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, **keys)
    return list(out[:, -num_new:])


def cache_for(model: Any) -> dict[str, Any]:
    """Keys for generate() of an encoder-decoder: a cache, where transformers would size one by the encoder's depth.

    That is so for T5 unless its config has a `decoder_layers`, as those we write have (transformers 5.23).
    """
    from transformers import DynamicCache, EncoderDecoderCache

    if model.config.model_type != "t5" or hasattr(model.config, "decoder_layers"):
        return {}
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def _padded(rows: Sequence[torch.Tensor], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [B, L] and its mask."""
    longest = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, place], mask[row, place] = tokens, 1
    return ids, mask


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers off the terminal meanwhile, and its copies of modeling files out of the home folder."""
    from transformers import dynamic_module_utils
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    home = dynamic_module_utils.HF_MODULES_CACHE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:
            dynamic_module_utils.HF_MODULES_CACHE = folder
            yield
    finally:
        dynamic_module_utils.HF_MODULES_CACHE = home
        _forget_modules(folder)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _forget_modules(folder: str) -> None:
    """Takes modules out of Python whose files were in a folder that is gone, or later imports would get them."""
    if folder in sys.path:
        sys.path.remove(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]
