import errno
import json
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common.mistakes import Mistake
from launcher.generate import generate
from model.config import ModelConfig
from model.exchange import convert, parity
from model.exchange.importing import import_hf
from model.kernels.attention import AttentionPattern
from tests.model.exchange.exports import BASE, VOCAB, export, randomised
from tests.model.packs import positions_of

CASES = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "head_dim_of_its_own": {"head_dim": 12, "rope_theta": 500000.0, "norm_eps": 1e-6},
    "one_kv_head": {"num_kv_heads": 1, "tie_embeddings": True, "head_dim": 14},
    "geglu": {"activation": "geglu"},
    "biases": {"bias": True},
    "stretched_evenly": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "stretched_as_llama_3": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_positions": 16}},
    "biased_queries": {"qkv_bias": True, "tie_embeddings": True, "head_dim": 12},
    "unbiased_queries": {"bias": True, "qkv_bias": False},
    "heads_that_do_not_divide": {"num_heads": 5, "num_kv_heads": 1, "head_dim": 10},
    "qwen3": {"qk_norm": True, "head_dim": 14, "num_kv_heads": 1},
    "mistral": {"sliding_window": 8, "head_dim": 12},
    "qwen3_slides": {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"], "qk_norm": True},
    "smollm3_biases": {"sliding_window": 8, "bias": True},
    "smollm3": {
        "no_rope_layer_interval": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
SMALL = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SEED_OSS = ("biased_queries", "unbiased_queries", "heads_that_do_not_divide")
CLASSES = {"qwen3": "Qwen3ForCausalLM", "qwen3_slides": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM"}
CLASSES |= dict.fromkeys(("smollm3_biases", "smollm3"), "SmolLM3ForCausalLM")
CLASSES |= {**dict.fromkeys(SEED_OSS, "SeedOssForCausalLM")}


@pytest.fixture
def model():
    return randomised(ModelConfig(**BASE))


@pytest.mark.parametrize("case", CASES)
def test_transformers_gives_our_logits_document_by_document_and_our_greedy_tokens(case, tmp_path, tokenizer_model):
    config = ModelConfig(**BASE | CASES[case])
    model = randomised(config)
    folder = export(model, tmp_path / "out", tokenizer_model)
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert type(theirs).__name__ == CLASSES.get(case, "LlamaForCausalLM") and theirs.dtype == torch.float32
    lengths = [17, 40, 1, 23]
    tokens = torch.randint(VOCAB, (sum(lengths),), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        packed = model(tokens, positions_of(lengths), AttentionPattern.causal(lengths))
        for document, ours in zip(tokens.split(lengths), packed.split(lengths), strict=True):
            torch.testing.assert_close(ours, theirs(document[None]).logits[0], atol=1e-5, rtol=0)
        text = tokens[:9]
        generated = theirs.generate(
            text[None], do_sample=False, max_new_tokens=50, min_new_tokens=50, eos_token_id=None
        )
        for _ in range(50):
            logits = model(text, torch.arange(len(text)), AttentionPattern.causal([len(text)]))
            text = torch.cat((text, logits[-1:].argmax(-1)))
    assert torch.equal(generated[0], text)


def test_what_predicts_further_tokens_stays_behind(tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**BASE, multi_token_depths=2))
    folder = export(model, tmp_path / "out", tokenizer_model)
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("multi_token.1.block.") for name in model.state_dict())
    assert not any(name.startswith("multi_token") or ".layers.2." in name for name in weights)
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert torch.equal(theirs.model.norm.weight, model.norm.weight)


def test_a_model_that_wants_to_end_at_once_can_be_exported(model, tmp_path, tokenizer_model):
    """Its likeliest token after the prompt of the check is the end token, which transformers' generate may bar."""
    num_tokens = min(parity.NUM_CHECKED, 128 // 2)
    prompt = torch.randint(VOCAB, (2, num_tokens), generator=torch.Generator().manual_seed(0))[0]
    with torch.no_grad():
        logits = model(prompt, torch.arange(num_tokens), AttentionPattern.causal([num_tokens]))[-1]
        model.head.weight[2] = 2 * model.head.weight[logits.argmax()]
        ending = model(prompt, torch.arange(num_tokens), AttentionPattern.causal([num_tokens]))[-1]
    assert ending.argmax() == 2
    export(model, tmp_path / "out", tokenizer_model)


def test_tokenizer_gives_sentencepieces_ids_behind_the_opening_token(model, tmp_path, tokenizer_model):
    folder = export(model, tmp_path / "out", tokenizer_model)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    for text in (*parity.AWKWARD_TEXTS, "  \t\n", "a\0b\0", "\n\n\n", "\U0001f600" * 20, "def f(x):\n    return x\n"):
        expected = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == expected
        assert theirs(text).input_ids == [1, *expected]
        assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == ours.decode(expected)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 3)
    assert len(theirs) == ours.vocab_size()
    assert theirs.convert_tokens_to_ids("<extra_id_3>") == ours.piece_to_id("<extra_id_3>")


def test_large_models_are_split_into_indexed_files(tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**BASE | {"tie_embeddings": True}))
    folder = export(model, tmp_path / "out", tokenizer_model, file_bytes=30_000, state=iter(model.state_dict().items()))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 2 and set(index["weight_map"].values()) == set(files)
    assert all(re.fullmatch(rf"model-\d{{5}}-of-{len(files):05}\.safetensors", file) for file in files)
    stored = {name: weight for file in files for name, weight in load_file(folder / file).items()}
    assert sum(w.nbytes for w in stored.values()) == index["metadata"]["total_size"]
    assert "lm_head.weight" not in stored
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert torch.equal(theirs.lm_head.weight, model.embedding.weight)


def test_weights_can_be_stored_in_bf16(model, tmp_path, tokenizer_model):
    folder = export(model, tmp_path / "out", tokenizer_model, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.model.norm.weight, model.norm.weight.bfloat16())


def test_an_earlier_export_is_replaced_and_nothing_else_is_left(tmp_path, tokenizer_model):
    out = tmp_path / "out"
    export(randomised(ModelConfig(**BASE), 0), out, tokenizer_model, file_bytes=30_000)
    second = randomised(ModelConfig(**BASE), 1)
    export(second, out, tokenizer_model)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [file.name for file in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], second.head.weight)


def test_a_folder_that_is_not_ours_is_not_touched(model, tmp_path, tokenizer_model):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="out: it exists and is no folder shardline exported"):
        export(model, out, tokenizer_model)
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").unlink()
    assert export(model, out, tokenizer_model) == out


def test_missing_and_misshapen_input_is_refused_and_leaves_nothing(model, tmp_path, tokenizer_model):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"nowhere\.model: no such tokenizer"):
        export(model, out, tmp_path / "nowhere.model")
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"norm\.weight: the weight is missing"):
        export(model, out, tokenizer_model, state={k: v for k, v in state.items() if k != "norm.weight"})
    with pytest.raises(ValueError, match=r"head\.weight: the weight is \[599, 48\]"):
        export(model, out, tokenizer_model, state=state | {"head.weight": state["head.weight"][1:]})
    with pytest.raises(ValueError, match=r"extra: the model has no such weight"):
        export(model, out, tokenizer_model, state=state | {"extra": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def spoil_config(key, value):
    def spoil(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return spoil


def swap_norms(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    names = ("model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight")
    weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_config("rms_norm_eps", 0.1),
        spoil_config("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
        spoil_config("hidden_act", "gelu"),
        swap_norms,
    ],
)
def test_a_folder_that_does_not_do_what_the_model_does_never_gets_its_name(
    spoil, model, tmp_path, tokenizer_model, monkeypatch
):
    def check_spoiled(folder, *args):
        spoil(folder)
        parity.check_export(folder, *args)

    monkeypatch.setattr(convert, "check_export", check_spoiled)
    with pytest.raises(RuntimeError, match=r"differ from ours|is not the one that was exported"):
        export(model, tmp_path / "out", tokenizer_model)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_gives_other_ids_never_gets_out(model, tmp_path, tokenizer_model, monkeypatch):
    original = convert._write_converted

    def with_prefix_space(folder, *args):
        original(folder, *args)
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["pre_tokenizer"]["prepend_scheme"] = "always"
        file.write_text(json.dumps(tokenizer))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_prefix_space": True}))

    monkeypatch.setattr(convert, "_write_converted", with_prefix_space)
    with pytest.raises(Mistake, match=r"no exact form in Hugging Face's format: it decodes .*--without-tokenizer"):
        export(model, tmp_path / "out", tokenizer_model)
    assert list(tmp_path.iterdir()) == []


def sentencepiece_model(folder, **changes):
    """A model of 400 pieces as others train them."""
    how = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "bos_id": 1, "eos_id": 2}
    how |= {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "unk_id": 0, "pad_id": 3}
    lines = [f"def f{i}(x): return x + {i} * other[{i % 7}]" for i in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "other"),
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        **how | changes,
    )
    return folder / "other.model"


OTHERS = {
    "a blank before each text": {"add_dummy_prefix": True},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "add_dummy_prefix": True},
    "runs of blanks as symbols": {"user_defined_symbols": ["return", "  "]},
    "blanks behind words": {"treat_whitespace_as_suffix": True, "add_dummy_prefix": True},
}


@pytest.mark.parametrize("case", OTHERS)
def test_weights_can_leave_whatever_the_tokenizer_is(case, tmp_path):
    """Refused before a weight is read, and what to do about it is said; then the weights are there without it."""
    model = randomised(ModelConfig(**BASE), vocab_size=420)
    tokenizer = sentencepiece_model(tmp_path, **OTHERS[case])
    read = []

    def weights():
        for name, weight in model.state_dict().items():
            read.append(name)
            yield name, weight

    with pytest.raises(Mistake, match=r"no exact form in Hugging Face's format: .*--without-tokenizer") as refusal:
        export(model, tmp_path / "out", tokenizer, state=weights())
    assert read == [] and "\n" not in str(refusal.value) and not (tmp_path / "out").exists()
    folder = export(model, tmp_path / "out", tokenizer, state=weights(), as_it_is=True)
    assert (folder / "sentencepiece.model").read_bytes() == tokenizer.read_bytes()
    assert not (folder / "tokenizer.json").exists() and not (folder / "tokenizer.model").exists()
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert torch.equal(theirs.lm_head.weight, model.head.weight)
    with pytest.raises(Mistake, match="it holds no tokenizer in a form of Hugging Face's"):
        generate(folder, ["x"], max_new_tokens=1, temperature=0, seed=0)


def test_symbols_that_a_tokenizer_cuts_out_first_are_cut_out_by_the_exported_one(tmp_path):
    tokenizer = sentencepiece_model(tmp_path, user_defined_symbols=["<|im|>", "return"])
    folder = export(randomised(ModelConfig(**BASE), vocab_size=420), tmp_path / "out", tokenizer)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    for text in ("a<|im|>b", " return<|im|> returns", "def f1(x):   return  x", "<|im|>"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_a_tokenizer_without_padding_pads_with_its_end_and_gets_no_new_piece(tmp_path):
    tokenizer = sentencepiece_model(tmp_path, pad_id=-1)
    folder = export(randomised(ModelConfig(**BASE), vocab_size=420), tmp_path / "out", tokenizer, pad_id=2)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert theirs.pad_token_id == theirs.eos_token_id == 2
    assert len(theirs) == sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).vocab_size()


@pytest.mark.parametrize("reads_specials", [True, False])
def test_names_of_special_tokens_in_a_text_mean_them_on_choice(reads_specials, model, tmp_path, tokenizer_model):
    folder = export(model, tmp_path / "out", tokenizer_model, reads_specials=reads_specials)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = theirs("ab" + theirs.eos_token).input_ids
    assert (ids[-1] == 2) == reads_specials and (2 in ids) == reads_specials
    for chosen in (True, False):
        assert (2 in theirs("ab" + theirs.eos_token, split_special_tokens=not chosen).input_ids) == chosen


def test_a_disk_without_room_is_told_before_anything_is_written(model, tmp_path, tokenizer_model, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path / "theirs")
    for use in (
        lambda: export(model, tmp_path / "out", tokenizer_model),
        lambda: import_hf(tmp_path / "theirs", tmp_path / "ours"),
    ):
        with pytest.raises(Mistake, match=r"ou\w+: no room for it on its disk: 0\.03\d+ GB are needed and 5e-06 GB"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_disk_that_fills_up_leaves_nothing_and_the_earlier_export(model, tmp_path, tokenizer_model, monkeypatch):
    out = export(model, tmp_path / "out", tokenizer_model)
    before = (out / "model.safetensors").read_bytes()
    real, left = os.pwrite, [5]

    def pwrite(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(Mistake, match=r"out: no room for it on its disk: \S+ GB are needed and \S+ GB are free"):
        export(randomised(ModelConfig(**BASE), 1), out, tokenizer_model)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").read_bytes() == before
