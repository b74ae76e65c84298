"""Does a Hugging Face folder do what our model does? Asked of transformers itself, before anyone else can.

    the folder, in transformers           \
                                           the same documents -> logits and greedy tokens in fp32, compared
    our model, its weights from a function /

Neither is ever whole in memory: ours reads a matrix when it is used, theirs a layer (on_demand.py). And does the
tokenizer give sentencepiece's ids?
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import torch

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.architectures import SHIPPED, Architecture
from model.exchange.families.family import Family
from model.exchange.hf_configs import auto_map
from model.exchange.hf_names import one_from_hf
from model.exchange.in_transformers import Documents, run_theirs
from model.exchange.json_objects import quoted, read_object
from model.exchange.their_configs import from_hf_config
from model.exchange.their_folder import HfFolder, load_tokenizer
from model.kernels.attention import AttentionPattern
from model.kernels.on_demand import Read, owners, read_on_demand
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


class OtherIds(Exception):
    """A tokenizer does not give the ids or the texts that sentencepiece gives; the message says for what."""


def check_tokenizer(
    path: Path, tokenizer_model: Path, sample_texts: Sequence[str] = (), *, ends_with_eos: bool = False
) -> None:
    """Compares the folder's tokenizer with sentencepiece's, on awkward strings too; OtherIds if they differ.

    ends_with_eos: whether plain calls are to put the end token behind.
    """
    folder = HfFolder.read(path)
    with folder.clean_view() as view:
        theirs = load_tokenizer(folder, view)
    ours = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    end = [ours.eos_id()] if ends_with_eos else []
    for text in (*AWKWARD_TEXTS, *_texts_of_pieces(ours), *sample_texts):
        expected = ours.encode(text)
        plain = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        opened = theirs.encode(text, split_special_tokens=True)
        if plain != expected or opened != [ours.bos_id(), *expected, *end]:
            raise OtherIds(f"it gives {opened[:20]} for {text[:40]!r}, sentencepiece {expected[:20]}")
        if theirs.decode(plain) != ours.decode(expected):
            raise OtherIds(f"it decodes {text[:40]!r} to {theirs.decode(plain)[:40]!r}")


class HandedOn(NamedTuple):
    """A tokenizer of others, written as the files it has."""

    files: Mapping[str, bytes]
    """What to write, by name."""
    encode: Callable[[str], Sequence[int]]
    """Gives the ids of a text."""
    special: Collection[str]
    """Names of its special pieces: what those are in a text, the original may see otherwise."""


def check_handed_on(path: Path, tokenizer: HandedOn, sample_texts: Sequence[str] = ()) -> None:
    """Compares the folder's tokenizer in transformers with that of the training; OtherIds if they differ."""
    folder = HfFolder.read(path)
    with folder.clean_view() as view:
        theirs = load_tokenizer(folder, view)
    for text in (*AWKWARD_TEXTS, *sample_texts):
        if any(name in text for name in tokenizer.special):
            continue
        ours = list(tokenizer.encode(text))
        if (found := theirs.encode(text, add_special_tokens=False, split_special_tokens=True)) != ours:
            raise OtherIds(f"transformers gives {found[:20]} for {text[:40]!r}, the tokenizer itself {ours[:20]}")


def _texts_of_pieces(ours: sentencepiece.SentencePieceProcessor) -> Iterator[str]:
    """Every piece of text once between letters, so that symbols that are cut out first, say, are among them."""
    pieces = [
        ours.id_to_piece(index).replace("\u2581", " ")
        for index in range(ours.vocab_size())
        if not (ours.is_control(index) or ours.is_unknown(index) or ours.is_byte(index))
    ]
    for start in range(0, len(pieces), 200):
        yield "x".join(("", *pieces[start : start + 200], ""))


def check_export(
    path: Path,
    family: Family,
    config: ModelConfig,
    vocab_size: int,
    max_positions: int,
    start_id: int,
    digests: Mapping[str, str],
) -> None:
    """Compares weights, logits and greedy tokens of the folder with ours, in fp32; RuntimeError if they differ.

    It is written as `family`; digests are those of the weights handed over, by their name; start_id opens the decoder
    of an encoder-decoder. Needs memory for one layer, whatever the size of the model.
    """
    folder, found = HfFolder.read(path), family.architecture
    if folder.config.architecture != found or not _has_code(path, found):
        raise RuntimeError(f"{path}: it is not the {found.name} that was exported")
    try:
        again = from_hf_config(folder.config).config
    except Mistake as error:
        raise RuntimeError(f"{path}: its config is not the one that was exported ({error})") from error
    if _kinds(again) != _kinds(config):
        raise RuntimeError(f"{path}: its layers are not of the kinds that were exported")
    files = folder.files
    if odd := set(files.places) ^ set(digests):
        raise RuntimeError(f"{path}: weight {min(odd)} is not the one that was exported")
    for name, digest in digests.items():
        if files.digest(name) != digest:
            raise RuntimeError(f"{path}: weight {name} on disk is not the one that was exported")
    table = family.table(config, vocab_size)

    def read(name: str) -> torch.Tensor:
        return one_from_hf(files.read, table, name)

    ours = Ours(config, vocab_size, read)
    compare(folder, ours, max_positions, start_id, "nothing was exported", RuntimeError)


def _kinds(config: ModelConfig) -> tuple[int | None, list[tuple[bool, bool]]]:
    """The window and which layers have it or positions: texts that are compared may be too short to show that."""
    return config.sliding_window, [(config.slides(i), config.rotates(i)) for i in range(config.num_layers)]


def _has_code(path: Path, found: Architecture) -> bool:
    """Whether other people's tools find in a folder the modeling file that its class needs, as it is here."""
    if found.shipped is None:
        return True
    named = read_object(path / "config.json").get("auto_map")
    return named == auto_map(found) and (path / found.shipped).read_bytes() == (SHIPPED / found.shipped).read_bytes()


class Ours(NamedTuple):
    """A model of ours that is not in memory."""

    config: ModelConfig
    vocab_size: int
    read: Read
    """Gives its weights by name."""

    def make(self) -> Transformer:
        """The model, which reads each weight when it is used."""
        with torch.device("meta"):
            model = Transformer(self.config.run_plainly(attention_backend="sdpa"), self.vocab_size)
        read_on_demand(model, owners(model), self.read)
        return model


def compare(
    folder: HfFolder, ours: Ours, max_positions: int, start_id: int, consequence: str, fault: type[Exception]
) -> None:
    """Compares logits and greedy tokens of a folder in transformers with those of ours.

    Two documents of unequal lengths, padded, go through theirs at once. RuntimeError if they differ, `fault` if
    transformers cannot run the folder, both ending in `consequence`; ValueError if the logits are no numbers.
    """
    shape = ours.config.shape
    documents = documents_for(shape, ours.vocab_size, max_positions, start_id)
    padding = getattr(folder.config.object, "pad_token_id", None)
    documents = Documents(*([_without(padding, tokens) for tokens in group] for group in documents))
    num_new = num_generated(documents, max_positions, folder.files.num_bytes)
    try:
        logits, generated = run_theirs(folder, documents, num_new, start_id)
    except Exception as error:  # whatever their code raises says that the folder is not right
        raise fault(f"{folder.path}: transformers cannot run it ({quoted(str(error))}); {consequence}") from error
    if not all(theirs.isfinite().all() for theirs in logits):
        raise Mistake(f"{folder.path}: its weights give logits that are not finite; {consequence}")
    model = ours.make()
    for index, theirs in enumerate(logits):
        mine = run_ours(model, documents.inputs[index], documents.outputs[index])
        _compare(folder.path, mine, theirs, "logits", consequence)
    for index, tokens in enumerate(generated):
        likeliest, chosen = choices(model, documents.inputs[index], tokens, start_id)
        _compare(folder.path, likeliest, chosen, "generated tokens", consequence)


def num_generated(documents: Documents, max_positions: int, num_bytes: int) -> int:
    """Tokens to generate after each of the documents, by a model of so many bytes."""
    num_new = max(0, min(NUM_CHECKED, max_positions - max(map(len, documents.inputs))))
    return num_new if num_bytes <= SMALL_BYTES else min(num_new, NUM_OF_LARGE)


def choices(
    model: Transformer, inputs: torch.Tensor, tokens: torch.Tensor, start_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Our largest logit at each place of tokens int64 [M] that somebody took after inputs, and that of theirs."""
    outputs = tokens if model.config.shape != "encdec" else torch.cat((torch.tensor([start_id]), tokens))
    mine = run_ours(model, inputs, outputs)[-1 - len(tokens) : -1]
    return mine.amax(1), mine.gather(1, tokens[:, None])[:, 0]


def documents_for(shape: str, vocab_size: int, max_positions: int, start_id: int) -> Documents:
    """Two of unequal lengths, of random tokens; start_id opens the decoder of an encoder-decoder."""
    generator = torch.Generator().manual_seed(0)
    longest = max(min(NUM_CHECKED, max_positions // 2), 1)
    begin = torch.tensor([start_id] if shape == "encdec" else [], dtype=torch.long)
    documents = Documents([], [])
    for length in (longest, max(longest * 2 // 3, 1)):
        tokens = torch.randint(vocab_size, (length + length // 2,), generator=generator)
        documents.inputs.append(tokens[:length])
        documents.outputs.append(tokens[:0] if shape == "encoder" else torch.cat((begin, tokens[length:])))
    return documents


def _without(padding: int | None, tokens: torch.Tensor) -> torch.Tensor:
    """The same with another token in place of padding, by which RoBERTa counts positions."""
    return tokens if padding is None else torch.where(tokens == padding, max(padding - 1, 0), tokens)


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


def states_of(model: Transformer, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Final states [L + M, M] for one document of a model with one stack, in place of `run_ours`'s logits."""
    tokens = torch.cat((inputs, outputs))
    prefix = 0 if model.config.shape == "causal" else len(inputs)
    with torch.no_grad():
        embedded = model.embedding.complete(model.embedding(tokens))
        return model.transform(embedded, torch.arange(len(tokens)), _pattern(len(tokens), prefix))


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
