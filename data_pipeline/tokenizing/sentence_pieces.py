"""Sentencepiece models: those trained here (BPE, byte fallback, text left as it is) and those of others.

Others may be unigram models, normalise the text, or put a blank before it (Llama, Mistral, T5, mT5); sentencepiece
itself encodes them, each text as a whole, unless the fast encoder is found to give the same ids.
"""

import functools
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
import sentencepiece

from common.mistakes import Mistake, cut
from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizing import sentence_piece_json
from data_pipeline.tokenizing.hugging_face import named_files, special_token
from data_pipeline.tokenizing.model_file import ModelFacts
from data_pipeline.tokenizing.words import Edges, edges_of_bytes, edges_of_text

LONG_TEXT = 1 << 20
"""Characters above which a text is encoded in pieces, so that memory does not grow with the longest document."""


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model."""

    reference = "sentencepiece"

    def __init__(self, model_path: Path, settings: TokenizerConfig):
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.Load(str(model_path))
            self._model.id_to_piece(list(range(self._model.get_piece_size())))
        except (RuntimeError, OSError, UnicodeDecodeError) as error:  # the last of pieces that are no UTF-8
            raise Mistake(
                f"{model_path}: not a sentencepiece model ({cut(str(error)) or type(error).__name__}); "
                "delete it and run 'shardline tokenizer train CONFIG'"
            ) from None
        model = self._model
        self.facts = ModelFacts.of(model.serialized_model_proto())
        size = model.get_piece_size()
        special = {model.id_to_piece(i): i for i in range(size) if model.is_control(i) or model.is_unknown(i)}
        ids = {"bos": model.bos_id(), "eos": model.eos_id(), "pad": model.pad_id(), "unk": model.unk_id()}
        roles = {name: model.id_to_piece(index) for name, index in ids.items() if index >= 0}
        super().__init__(model_path, settings, size, special, roles)

    def scored_pieces(self) -> list[tuple[str, float, int]]:
        """Each of its own pieces, with its score and its kind by `ModelFacts.kinds`."""
        model, kinds = self._model, ModelFacts.kinds(self._model.serialized_model_proto())
        return [(model.id_to_piece(index), model.get_score(index), kind) for index, kind in enumerate(kinds)]

    def _content(self) -> Iterator[bytes]:
        for index in range(self.own_size):
            piece, score = self._model.id_to_piece(index), self._model.get_score(index)
            yield f"{piece}\0{score!r}\0{self._kind(index)}\0".encode()
        if self.facts.peculiarity:
            yield repr((self.facts, self.facts.drops_blanks, self.facts.charsmap)).encode()

    def _kind(self, index: int) -> str:
        model = self._model
        kinds = {"control": model.is_control, "byte": model.is_byte, "unk": model.is_unknown, "unused": model.is_unused}
        return next((name for name, test in kinds.items() if test(index)), "normal")

    def _edges(self, index: int) -> Edges:
        is_byte = self._model.is_byte(index)
        return edges_of_bytes(self._bytes(index)) if is_byte else edges_of_text(self._model.id_to_piece(index))

    def _bytes(self, index: int) -> bytes:
        piece: str = self._model.id_to_piece(index)
        return bytes([int(piece[3:5], 16)]) if self._model.is_byte(index) else piece.replace("\u2581", " ").encode()

    def _definition(self) -> str:
        return sentence_piece_json.for_fast_encoder(self._model, self.facts)

    def _text(self, ids: list[int]) -> str:
        text: str = self._model.decode(ids)
        return text

    def _reference(self, text: str) -> np.ndarray:
        if len(text) <= LONG_TEXT:
            ids: np.ndarray = self._model.EncodeAsNumpy(text)
            return ids
        return np.concatenate([self._model.EncodeAsNumpy(piece) for piece in self._pieces(text)])

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._fast is None:
            return self._references(texts)
        return [np.concatenate([self._fast.encode(piece) for piece in self._pieces(text)]) for text in texts]

    def hugging_face_files(self) -> dict[str, bytes] | None:
        """None for the kind that is trained here, with symbols or without; else a tokenizer.json made of the model."""
        if self.facts.only_has_symbols and not self.added:
            return None
        try:
            tree = sentence_piece_json.definition(self._model, self.facts)
        except ValueError as error:
            raise Mistake(f"{self.model_path}: has no form in Hugging Face's format ({error})") from None
        special = sorted(self._special.items(), key=itemgetter(1))
        tree["added_tokens"] = [special_token(piece, index) for piece, index in special]
        if self.bos_id != self.eos_id:
            tree["post_processor"] = sentence_piece_json.begins_with(self._names[self.bos_id], self.bos_id)
        ids = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        ids |= {role: self._roles[role] for role in ("mask", "cls", "sep")}
        return named_files(tree, {role: self._names[index] for role, index in ids.items() if index >= 0})

    @functools.cached_property
    def _pairs(self) -> set[str]:
        """Every pair of neighbouring characters inside any piece."""
        pieces = (self._model.id_to_piece(index) for index in range(self.own_size))
        return {piece[at : at + 2] for piece in pieces for at in range(len(piece) - 1)}

    def _pieces(self, text: str) -> Iterator[str]:
        """Cuts a long text where no piece of the vocabulary can lie across, so that the ids stay the same.

        A merge makes a piece of the vocabulary, hence none ever joins two characters that no piece has side by side.
        """
        start = 0
        while len(text) - start > LONG_TEXT and not self.facts.peculiarity:
            end = self._next_cut(text, start + LONG_TEXT)
            yield text[start:end]
            start = end
        if start < len(text) or not text:
            yield text[start:] if start else text

    def _next_cut(self, text: str, position: int) -> int:
        for at in range(position, len(text)):
            if text[at - 1 : at + 1].replace(" ", "\u2581") not in self._pairs:
                return at
        return len(text)
