"""Encoder-decoders and encoders in transformers: T5, our modeling file, EuroBERT; what has no place is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from model.config import ModelConfig
from model.exchange import convert, parity
from model.exchange.parity import run_ours
from tests.model.exchange.exports import BASE, EXACTLY, START, export, greedy, padded, randomised, tokens

T5 = BASE | {"shape": "encdec", "positions": "t5_bias", "t5_max_distance": 24, "head_dim": 10}
ROPE = BASE | {"shape": "encdec", "num_encoder_layers": 3}
ENCODER = BASE | {"shape": "encoder"}
TWO_STACKS = {
    "t5 grouped heads": T5,
    "t5 tied geglu": T5 | {"tie_embeddings": True, "activation": "geglu", "num_kv_heads": None},
    "t5 deeper decoder relu": T5 | {"num_layers": 3, "num_encoder_layers": 1, "activation": "relu", "norm_eps": 1e-6},
    "t5 deeper encoder gelu": T5 | {"num_layers": 1, "num_encoder_layers": 3, "activation": "gelu", "num_kv_heads": 1},
    "t5 eight buckets": T5 | {"t5_num_buckets": 8, "activation": "gelu_tanh"},
    "rope deeper encoder": ROPE,
    "rope deeper decoder tied": ROPE | {"num_layers": 3, "num_encoder_layers": 1, "tie_embeddings": True},
    "rope with all it has": ROPE
    | {"bias": True, "qk_norm": True, "activation": "gelu_tanh", "rope_scaling": {"kind": "linear", "factor": 4.0}},
    "rope geglu": ROPE | {"qkv_bias": True, "activation": "geglu", "head_dim": 12, "num_kv_heads": 1},
}

pytestmark = pytest.mark.usefixtures("shipped_code")


def load(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, trust_remote_code=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory, tokenizer_model, shipped_code):
    """Our rotary encoder-decoder and transformers' of the folder made from it."""
    ours = randomised(ModelConfig(**ROPE | {"num_layers": 3, "num_encoder_layers": 1}))
    return ours, load(export(ours, tmp_path_factory.mktemp("encdec") / "out", tokenizer_model))


@pytest.mark.parametrize("case", TWO_STACKS)
def test_both_streams_give_our_logits_and_our_greedy_tokens(case, tmp_path, tokenizer_model):
    ours = randomised(ModelConfig(**TWO_STACKS[case]))
    theirs = load(export(ours, tmp_path / "out", tokenizer_model))
    texts, answers = tokens(31, 12), tokens(40, 9, seed=6)
    outputs = [torch.cat((torch.tensor([START]), answer)) for answer in answers]
    decoder = {f"decoder_{key}": value for key, value in padded(outputs, left=False).items()}
    with torch.no_grad():
        logits = theirs(**padded(texts, left=False), **decoder).logits
    for row, text, output in zip(logits, texts, outputs, strict=True):
        torch.testing.assert_close(row[: len(output)], run_ours(ours, text, output), atol=1e-5, rtol=0)
    assert theirs.config.decoder_start_token_id == START
    generated = theirs.generate(**padded(texts, left=False), **EXACTLY)[:, 1:]
    assert torch.equal(generated, torch.stack([greedy(ours, text, 50) for text in texts]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "kind", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=["dynamic", "static", "none"]
)
def test_our_modeling_file_generates_with_every_cache_and_padding(served, kind, side):
    ours, theirs = served
    texts = tokens(4, 19, 1)
    generated = theirs.generate(**padded(texts, left=side == "left"), **EXACTLY, **kind)[:, 1:]
    assert torch.equal(generated, torch.stack([greedy(ours, text, 50) for text in texts]))


def test_our_modeling_file_generates_with_beams(served):
    _, theirs = served
    batch = padded(tokens(4, 19), left=False)
    beams = [theirs.generate(**batch, **EXACTLY, num_beams=4, use_cache=cache) for cache in (True, False)]
    assert torch.equal(beams[0], beams[1])
    assert not torch.equal(beams[0], theirs.generate(**batch, **EXACTLY))


def test_our_modeling_file_goes_on_with_a_decoder_that_has_begun(served):
    ours, theirs = served
    text, begun = tokens(9, 6)
    start = torch.cat((torch.tensor([START]), begun))
    generated = theirs.generate(text[None], decoder_input_ids=start[None], **EXACTLY)[0]
    logits = run_ours(ours, text, generated)
    assert torch.equal(logits[len(start) - 1 : -1].argmax(1), generated[len(start) :])


def test_our_modeling_file_takes_labels_and_is_saved_and_loaded_again(served, tmp_path):
    ours, theirs = served
    text, answer = tokens(9, 6)
    with torch.no_grad():
        loss = theirs(text[None], labels=answer[None]).loss
        logits = run_ours(ours, text, torch.cat((torch.tensor([START]), answer[:-1])))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, answer), atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True, "head_dim": 12}, {"num_kv_heads": 1, "activation": "geglu"}]
)
def test_an_encoder_gives_our_logits_in_a_padded_batch(changes, tmp_path, tokenizer_model):
    ours = randomised(ModelConfig(**ENCODER | changes))
    folder = export(ours, tmp_path / "out", tokenizer_model, ends_with_eos=True)
    theirs = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    assert type(theirs).__name__ == "EuroBertForMaskedLM"
    texts = tokens(30, 11, 1)
    with torch.no_grad():
        logits = theirs(**padded(texts, left=False)).logits
    for row, text in zip(logits, texts, strict=True):
        torch.testing.assert_close(row[: len(text)], run_ours(ours, text, text[:0]), atol=1e-5, rtol=0)


def test_an_encoders_tokenizer_knows_the_mask_and_ends_as_in_training(tmp_path, tokenizer_model):
    how = {"ends_with_eos": True, "reads_specials": True}
    folder = export(randomised(ModelConfig(**ENCODER)), tmp_path / "out", tokenizer_model, **how)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("def <mask>(x):").input_ids
    assert ids[0] == 1 and ids[-1] == 2 and ids.count(tokenizer.mask_token_id) == 1
    assert tokenizer.convert_ids_to_tokens(tokenizer.mask_token_id) == "<mask>"


REFUSED = {
    "norm": ({"norm": "layernorm"}, r"model\.norm: layernorm has no place in Hugging Face's LlamaForCausalLM"),
    "positions": ({"positions": "alibi"}, r"model\.positions: alibi has no place .* it has rope"),
    "activation": (
        {"shape": "encoder", "activation": "relu"},
        r"model\.activation: relu has no place .* it has swiglu or geglu",
    ),
    "parallel": ({"parallel_block": True}, r"model\.parallel_block: true has no place"),
    "gate": ({"attention_gate": True}, r"model\.attention_gate: true has no place in Hugging Face's LlamaForCausalLM"),
    "embedding norm": ({"embedding_norm": True}, r"model\.embedding_norm: true has no place"),
    "norms elsewhere": ({"norm_placement": "output"}, r"model\.norm_placement: output has no place .*; it has pre"),
    "norm over heads": ({"qk_norm": "all_heads"}, r"model\.qk_norm: all_heads has no place .*; it has true"),
    "cap": (T5 | {"logit_softcap": 30.0}, r"model\.logit_softcap: 30\.0 has no place .*; it has null"),
    "rotated part": ({"shape": "encoder", "rope_fraction": 0.5}, r"model\.rope_fraction: 0\.5 has no place"),
    "qkv bias": ({"shape": "encoder", "qkv_bias": True}, r"model\.attention_output_bias: false has no place"),
    "qwen3 bias": (
        {"bias": True, "qk_norm": True},
        r"model\.bias: true has no place in Hugging Face's Qwen3ForCausalLM",
    ),
    "odd width": (
        {"shape": "encoder", "d_model": 40, "head_dim": 8},
        r"model\.num_heads: 6 has no place .* it asks for a divisor of d_model 40 whatever head_dim is",
    ),
    "prefix": (
        {"shape": "prefix", "sliding_window": 8},
        r"model\.sliding_window: 8 has no place .*PrefixLlamaForCausalLM",
    ),
    "encoder": ({"shape": "encoder", "bias": True}, r"model\.bias: true has no place .*EuroBertForMaskedLM"),
    "t5": (T5 | {"bias": True}, r"model\.bias: true has no place in Hugging Face's T5ForConditionalGeneration"),
    "layers without rope": (
        {"qk_norm": True, "no_rope_layer_interval": 2},
        r"model\.no_rope_layer_interval: 2 has no place in Hugging Face's Qwen3ForCausalLM, .*; it has null",
    ),
    "window": (
        {"shape": "encoder", "sliding_window": 8},
        r"model\.sliding_window: 8 has no place in .*EuroBertForMaskedLM, .* shape encoder is written as; it has null",
    ),
    "learned": (ROPE | {"positions": "learned", "max_positions": 64}, r"model\.positions: learned has no place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_in_hugging_faces_class_is_refused_before_anything_is_written(
    case, tmp_path, tokenizer_model
):
    changes, message = REFUSED[case]
    model = randomised(ModelConfig(**BASE | changes))
    with pytest.raises(ValueError, match=message) as refusal:
        export(model, tmp_path / "below" / "out", tokenizer_model)
    assert "\n" not in str(refusal.value) and list(tmp_path.iterdir()) == []


def spoil_config(**changes):
    def spoil(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def spoil_code(old, new):
    def spoil(folder):
        file = folder / "encdec_rope.py"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return spoil


def tie_the_head(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["shared.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


SPOILT = {
    "t5 scale": (T5, spoil_config(tie_word_embeddings=True)),
    "t5 gate": (T5, spoil_config(feed_forward_proj="gated-gelu")),
    "t5 buckets": (T5, spoil_config(relative_attention_max_distance=128)),
    "t5 head": (T5, tie_the_head),
    "t5 depth": (T5, spoil_config(num_decoder_layers=1)),
    "cross rope": (ROPE, spoil_code("if rope is not None:", "if rope is None:")),
    "no cross": (
        ROPE,
        spoil_code("if self.has_cross:\n            x", "if self.has_cross and cache is None:\n            x"),
    ),
    "cache": (ROPE, spoil_code("+ past", "+ 0 * past")),
    "encoder eps": (ENCODER, spoil_config(rms_norm_eps=0.1)),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_folder_never_gets_its_name(case, tmp_path, tokenizer_model, monkeypatch):
    config, spoil = SPOILT[case]

    def check_spoilt(folder, *args):
        spoil(folder)
        parity.check_export(folder, *args)

    monkeypatch.setattr(convert, "check_export", check_spoilt)
    with pytest.raises(RuntimeError, match=r"differ from ours|transformers cannot run it|that (was|were) exported"):
        export(randomised(ModelConfig(**config)), tmp_path / "out", tokenizer_model)
    assert list(tmp_path.iterdir()) == []
