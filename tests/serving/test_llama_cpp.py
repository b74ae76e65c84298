"""GGUF files in llama.cpp itself: logits, greedy tokens and token ids are ours."""

import pytest
import torch

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizing.sentence_pieces import SentencePieceTokenizer
from launcher.gguf import texts_of
from model.exchange.gguf.architectures import gguf_architecture
from model.exchange.gguf.as_llama_cpp import round_as_llama_cpp, rounds
from model.exchange.gguf.check import check_in_llama_cpp, run_in_llama_cpp, tolerance
from model.exchange.gguf.file import TYPES
from model.exchange.in_transformers import Documents
from model.exchange.parity import run_ours, states_of
from tests.model.exchange.exports import START, VOCAB, greedy, tokens
from tests.model.exchange.gguf_files import CASES, gguf_model, write
from tests.serving.engines import engine

pytestmark = pytest.mark.serving
LENGTHS = (5, 9, 17, 23, 31, 40)
NUM_NEW = 64
EXACT = 5e-5
"""Share of the largest logit, where nothing is rounded."""


@pytest.fixture(scope="module")
def python():
    found = engine("LLAMA_CPP_PYTHON")
    if found is None:
        pytest.skip("LLAMA_CPP_PYTHON is not set")
    return found


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_logits_are_ours(case, python, tmp_path, tokenizer_model):
    model, file = gguf_model(case), tmp_path / "model.gguf"
    write(model, file, tokenizer_model)
    shape = model.config.shape
    prompts = tokens(*LENGTHS)
    outputs = torch.tensor({"encoder": [], "encdec": [START, 7, 8]}.get(shape, [7, 8]), dtype=torch.long)
    documents = Documents(prompts, [outputs] * len(prompts))
    num_new = 0 if shape == "encoder" else NUM_NEW
    has_head = gguf_architecture(model.config).has_head
    found = run_in_llama_cpp(file, shape, documents, num_new, START, [], python, has_head)
    run, plain = run_ours if has_head else states_of, gguf_model(case)
    round_as_llama_cpp(model, "f32")  # GELU's table, where the model has one
    for number, prompt in enumerate(prompts):
        ours = run(model, prompt, outputs)
        allowed = (
            tolerance(ours, run(plain, prompt, outputs)) if rounds(model.config, "f32") else EXACT * ours.abs().max()
        )
        theirs = torch.from_numpy(found[f"logits_{number}"])
        torch.testing.assert_close(theirs, ours, atol=float(allowed), rtol=0)
        if num_new:
            assert torch.equal(torch.from_numpy(found[f"generated_{number}"]), greedy(model, prompt, num_new))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", ["causal", "prefix", "encoder", "t5", "t5_geglu", "gpt2", "olmo2", "bert"])
def test_the_check_before_publishing_lets_every_type_pass(case, kind, python, tmp_path, tokenizer_model):
    model, file = gguf_model(case, d_model=96, head_dim=16, num_heads=6), tmp_path / "model.gguf"
    write(model, file, tokenizer_model, matrix_type=kind)
    _check(model, file, kind, tokenizer_model, python)


@pytest.mark.parametrize("kind", TYPES)
def test_the_check_finds_a_wrong_key_whatever_the_rounding(kind, python, tmp_path, tokenizer_model):
    model, file = gguf_model("causal", d_model=96, head_dim=16), tmp_path / "model.gguf"
    write(model, file, tokenizer_model, matrix_type=kind)
    other = model.config.model_copy(update={"rope_theta": 20000.0})
    with pytest.raises(RuntimeError, match="differ from ours"):
        check_in_llama_cpp(file, other, VOCAB, 128, START, kind, None, python)


def _check(model, file, kind, tokenizer_model, python):
    tokenizer = SentencePieceTokenizer(tokenizer_model, TokenizerConfig(path=str(tokenizer_model)))
    texts = texts_of(tokenizer, ["def f(x):\n\treturn [x] * 3  # twice\n"])
    check_in_llama_cpp(file, model.config, VOCAB, 128, START, kind, texts, python)
