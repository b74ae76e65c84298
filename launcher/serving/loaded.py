"""A converted folder in memory, with its tokenizer; nothing of the folder has run.

folder -> read and checked (their_folder.py), compared with what it was trained as (as_trained.py)
       -> clean view -> transformers' class or ours, by the type alone -> `Loaded`
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from common.mistakes import Mistake, refuse_halves
from model.exchange.architectures import CAUSAL, MASKED, SEQ2SEQ, Architecture
from model.exchange.families import BY_TYPE
from model.exchange.in_transformers import padded, quiet_transformers
from model.exchange.json_objects import quoted
from model.exchange.their_folder import HfFolder, correspondence, load_model, load_tokenizer

Kind = Literal["decoder", "encdec", "encoder"]
KINDS: dict[str, Kind] = {
    CAUSAL: "decoder",
    SEQ2SEQ: "encdec",
    MASKED: "encoder",
}


class Loaded(NamedTuple):
    """A model and its tokenizer, for any number of threads to read texts and for one to run the model."""

    path: Path
    architecture: Architecture
    tokenizer: Any
    model: Any
    tokenizing: Any
    """Held by who uses the tokenizer: it keeps settings of a call while it works."""

    @property
    def kind(self) -> Kind:
        """What it does with a text: go on from it, answer it, or fill its gaps."""
        return KINDS[self.architecture.auto]

    @property
    def longest(self) -> int | None:
        """Most tokens of a text, prompt included, in an encoder-decoder of either side; None where nothing says."""
        return BY_TYPE[self.architecture.model_type].longest(self.model.config)

    @property
    def pad_id(self) -> int:
        """What fills shorter rows."""
        return self.tokenizer.pad_token_id or 0

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        ids = self.model.generation_config.eos_token_id if self.model.can_generate() else None
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def encode(self, text: str, *, as_it_is: bool = False) -> list[int]:
        """Tokens of a prompt, opened as in training. `as_it_is`: a rendered chat, which has its special tokens in it.

        Mistake when there are none, or more than the model reads, or it is no text in UTF-8.
        """
        refuse_halves(text, "prompt")
        how: dict[str, Any] = {}
        if as_it_is or self.kind == "encoder":
            how = {"split_special_tokens": False, "add_special_tokens": not as_it_is}
        with self.tokenizing:
            ids = self.tokenizer(text, **how).input_ids
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        self.check(ids)
        return ids

    def batch(self, rows: Sequence[Sequence[int]], *, left: bool) -> dict[str, torch.Tensor]:
        """Rows as the model takes them: input_ids and attention_mask int64 [B, L] on its device."""
        ids, mask = padded(rows, left, self.pad_id)
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    def check(self, ids: Sequence[int]) -> None:
        """Mistake when these are no prompt that the model can read."""
        if not ids:
            raise Mistake("prompt: it has no tokens; write something into it")
        if wrong := next((index for index in ids if not 0 <= index < self.model.config.vocab_size), None):
            raise Mistake(f"prompt: {wrong} is no token of a vocabulary of {self.model.config.vocab_size}")
        most = None if self.longest is None else self.longest - (self.kind == "decoder")
        if most is not None and len(ids) > most:
            raise Mistake(
                f"prompt: it has {len(ids)} tokens, and the longest text of this model has {self.longest}; shorten it"
            )

    def decode(self, ids: list[int]) -> str:
        """The text of tokens; an encoder-decoder's keeps its sentinels, which say what goes where."""
        with self.tokenizing:
            if self.kind != "encdec":
                return str(self.tokenizer.decode(ids, skip_special_tokens=True))
            ends = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
            return str(self.tokenizer.decode([index for index in ids if index not in ends]))


def load(folder: Path) -> Loaded:
    """Loads a folder, onto a GPU as it is stored where there is one, else in fp32. Nothing of the folder is run.

    Raises ValueError when it holds no model of the classes that are written or read here, or says that it was trained
    as something else than what its files would be served as.
    """
    if not (folder / "config.json").exists():
        raise Mistake(
            f"{folder}: no config.json in it; name a folder written by 'shardline convert RUN --to hf --out DIR'"
        )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    on_gpu = torch.cuda.is_available()
    with quiet_transformers():
        theirs = HfFolder.read(folder)
        correspondence(theirs)
        with theirs.clean_view() as view:
            tokenizer = load_tokenizer(theirs, view)
            try:
                model = load_model(theirs, view, "auto" if on_gpu else torch.float32)
            except Exception as error:  # transformers raises what it pleases of files that it does not take
                raise Mistake(f"{folder}: transformers cannot load it ({quoted(str(error))})") from error
    return Loaded(
        folder, theirs.config.architecture, tokenizer, model.to("cuda" if on_gpu else "cpu"), threading.Lock()
    )
