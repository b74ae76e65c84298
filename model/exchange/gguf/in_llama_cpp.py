"""Runs a GGUF file in llama.cpp; a program of its own, so that what aborts there ends nobody else.

    python -P in_llama_cpp.py < request.json     needs no more than numpy and llama-cpp-python

request  {file, out, shape, has_head, start_id, num_new, documents: [{inputs: [id], outputs: [id]}],
          texts: [[text, special]]}
out      a .npz: logits_0 [L + M, V] (of an encoder-decoder [M, V], without a head final states), generated_0 [num_new],
         ..., ids_0, ...

Nothing is told to llama.cpp that the file does not say: a prefix is read both ways, and what follows one token at a
time, because of its keys. Keys, values and scores are float32 and flash attention is off, or numbers were rounded.
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np

F32 = 0
"""The type of GGML."""
DISABLED, NO_POOLING, ERROR = 0, 0, 4
"""Of llama_flash_attn_type, llama_pooling_type and ggml_log_level."""


class Engine:
    """A model and a context of it."""

    def __init__(self, file: str, num_tokens: int, has_head: bool):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), params)
        if not self.model:
            raise SystemExit(f"{file}: llama.cpp cannot load it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        how = llama_cpp.llama_context_default_params()
        how.n_ctx = how.n_batch = how.n_ubatch = num_tokens
        how.type_k = how.type_v = F32
        how.flash_attn_type = DISABLED
        if not has_head:
            how.embeddings, how.pooling_type = True, NO_POOLING
        how.n_threads = how.n_threads_batch = 2
        self.context = llama_cpp.llama_init_from_model(self.model, how)
        if not self.context:
            raise SystemExit(f"{file}: llama.cpp makes no context of it")
        self.row_of = llama_cpp.llama_get_logits_ith if has_head else llama_cpp.llama_get_embeddings_ith
        self.row_size = self.vocab_size if has_head else llama_cpp.llama_model_n_embd(self.model)
        self.batch = llama_cpp.llama_batch_init(num_tokens, 0, 1)
        self.position = 0

    def forget(self) -> None:
        """Begins a new document."""
        memory = llama_cpp.llama_get_memory(self.context)
        if memory:
            llama_cpp.llama_memory_clear(memory, True)
        self.position = 0

    def encode(self, tokens: list[int]) -> None:
        """Has the encoder of an encoder-decoder read a text."""
        self._fill(tokens, 0)
        if llama_cpp.llama_encode(self.context, self.batch):
            raise SystemExit("llama_encode failed")

    def decode(self, tokens: list[int]) -> np.ndarray:
        """Logits float32 [len(tokens), V] of tokens that follow those before, or states [len(tokens), M]."""
        self._fill(tokens, self.position)
        if llama_cpp.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")
        self.position += len(tokens)
        rows = (self.row_of(self.context, row) for row in range(len(tokens)))
        return np.stack([np.ctypeslib.as_array(row, (self.row_size,)).copy() for row in rows])

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of a text, in which names of special tokens mean those or not."""
        data = text.encode()
        room = len(data) + 16
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, room, False, special)
        if count < 0:
            raise SystemExit(f"llama_tokenize gives {-count} tokens for {len(data)} bytes")
        return list(ids[:count])

    def _fill(self, tokens: list[int], position: int) -> None:
        self.batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            self.batch.token[row], self.batch.pos[row] = token, position + row
            self.batch.n_seq_id[row], self.batch.seq_id[row][0], self.batch.logits[row] = 1, 0, True


def logits_of(engine: Engine, shape: str, inputs: list[int], outputs: list[int]) -> np.ndarray:
    """Logits of a document, float32 [L + M, V], of an encoder-decoder [M, V]."""
    engine.forget()
    if shape == "encdec":
        engine.encode(inputs)
        return engine.decode(outputs)
    if shape == "causal":
        return engine.decode(inputs + outputs)
    return np.concatenate([engine.decode(inputs), *(engine.decode([token]) for token in outputs)])


def greedy(engine: Engine, shape: str, inputs: list[int], count: int, start_id: int) -> np.ndarray:
    """The likeliest tokens after the inputs, int64 [count]."""
    last, found = logits_of(engine, shape, inputs, [start_id] if shape == "encdec" else [])[-1], []
    for _ in range(count):
        found.append(int(last.argmax()))
        last = engine.decode(found[-1:])[-1]
    return np.array(found, np.int64)


def main() -> None:
    """Answers the request of the standard input."""
    keep_quiet = llama_cpp.llama_log_callback(_log)
    llama_cpp.llama_log_set(keep_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    request = json.load(sys.stdin)
    shape, num_new, documents = request["shape"], request["num_new"], request["documents"]
    longest = max(len(each["inputs"]) + len(each["outputs"]) for each in documents)
    engine = Engine(request["file"], longest + num_new + 1, request["has_head"])
    found: dict[str, np.ndarray] = {}
    for number, each in enumerate(documents):
        found[f"logits_{number}"] = logits_of(engine, shape, each["inputs"], each["outputs"])
        if num_new:
            found[f"generated_{number}"] = greedy(engine, shape, each["inputs"], num_new, request["start_id"])
    for number, (text, special) in enumerate(request["texts"]):
        found[f"ids_{number}"] = np.array(engine.tokenize(text, special), np.int64)
    np.savez(request["out"], allow_pickle=False, **found)


def _log(level: int, text: bytes, _: object) -> None:
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    main()
