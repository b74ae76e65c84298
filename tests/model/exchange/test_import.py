"""Somebody's folders as weights of ours: the same logits and tokens, and refusals of what has no place."""

import json

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange import their_folder
from model.exchange.families import BY_TYPE
from model.exchange.importing import import_hf, imported_config, load_imported, new_head_of
from model.exchange.in_transformers import cache_for
from model.exchange.parity import run_ours
from model.network.transformer import Transformer
from tests.memory import peak_memory
from tests.model.exchange.exports import BASE, EXACTLY, VOCAB, export, greedy, load_ours, padded, randomised, tokens

SIZE = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.15}
T5_SIZE = {"vocab_size": VOCAB, "d_model": 48, "d_kv": 10, "d_ff": 64, "num_heads": 6, "dropout_rate": 0.0}
T5_SIZE |= {"decoder_start_token_id": 0, "initializer_factor": 1.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 5e5}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
SMOLLM3 = {"use_sliding_window": True, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
SMOLLM3 |= {"no_rope_layers": [1, 1], "attention_bias": True, "mlp_bias": True, "pad_token_id": 3}
GEMMA2 = {"head_dim": 10, "sliding_window": 6, "final_logit_softcapping": None, "initializer_range": 0.1}
BART = {"d_model": 48, "encoder_layers": 1, "decoder_layers": 2, "scale_embedding": True}
BART |= {"decoder_start_token_id": 0, "forced_eos_token_id": None}
BART |= {
    f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in {"ffn_dim": 40, "attention_heads": 6}.items()
}
MODERN = SIZE | {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 5}
BIASED_MODERN = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "local_attention": 7}
BIASED_MODERN |= {"mlp_bias": True, "norm_bias": True, "classifier_bias": True, "decoder_bias": False}
BIASED_MODERN |= {"hidden_activation": "silu", "classifier_activation": "silu"}
BIASED_MODERN["rope_parameters"] = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
}
THEIRS = {
    "llama": ("Llama", SIZE),
    "llama tied": ("Llama", SIZE | {"tie_word_embeddings": True, "head_dim": 14, "rms_norm_eps": 1e-6}),
    "llama 3 with biases": ("Llama", SIZE | {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama, biases of attention": ("Llama", SIZE | {"attention_bias": True}),
    "llama, biases of the rest": ("Llama", SIZE | {"mlp_bias": True}),
    "qwen2": ("Qwen2", SIZE | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", SIZE | {"head_dim": 20, "num_attention_heads": 5, "num_key_value_heads": 1}),
    "mistral": ("Mistral", SIZE | {"sliding_window": 7, "head_dim": 12}),
    "mistral without a window": ("Mistral", SIZE | {"sliding_window": None}),
    "qwen3, the later layers slide": ("Qwen3", SIZE | QWEN_WINDOW | {"head_dim": 8}),
    "smollm3, the first layer slides": ("SmolLM3", SIZE | SMOLLM3),
    "smollm3 of four layers": (
        "SmolLM3",
        SIZE | {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "pad_token_id": 3},
    ),
    "seed_oss": ("SeedOss", SIZE | {"head_dim": 8, "residual_dropout": 0.0}),
    "eurobert": ("EuroBert", SIZE | {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 4}),
    "eurobert, biases of attention": ("EuroBert", SIZE | {"pad_token_id": 3, "attention_bias": True}),
    "t5 v1.1": ("T5", T5_SIZE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5 deeper decoder": ("T5", T5_SIZE | {"num_layers": 1, "num_decoder_layers": 3, "tie_word_embeddings": False}),
    "t5 deeper encoder": ("T5", T5_SIZE | {"num_layers": 3, "num_decoder_layers": 1, "tie_word_embeddings": False}),
    "t5 of the first kind": ("T5", T5_SIZE | {"num_layers": 2}),
    "mt5": ("MT5", T5_SIZE | {"num_layers": 1, "tie_word_embeddings": False}),
    "umt5": ("UMT5", T5_SIZE | {"num_layers": 2}),
    "umt5 deeper encoder": ("UMT5", T5_SIZE | {"num_layers": 3, "num_decoder_layers": 1, "feed_forward_proj": "relu"}),
    "gpt2 without a head": ("GPT2", SIZE | {"activation_function": "gelu_new"}),
    "opt": ("OPT", SIZE | {"ffn_dim": 40}),
    "bloom": ("Bloom", SIZE),
    "gpt_neox": ("GPTNeoX", SIZE | {"hidden_act": "gelu_new"}),
    "gpt_neox, parts in turn": (
        "GPTNeoX",
        SIZE | {"use_parallel_residual": False, "rotary_pct": 0.5, "hidden_act": "gelu_fast"},
    ),
    "phi": ("Phi", SIZE),
    "phi3": ("Phi3", SIZE | {"partial_rotary_factor": 0.5, "pad_token_id": 3}),
    "cohere": ("Cohere", SIZE | {"num_key_value_heads": 1}),
    "arcee": ("Arcee", SIZE | {"hidden_act": "relu"}),
    "olmo2": ("Olmo2", SIZE | {"rms_norm_eps": 1e-6}),
    "gemma": ("Gemma", SIZE | {"head_dim": 10}),
    "gemma2": ("Gemma2", SIZE | GEMMA2 | {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 7}),
    "gemma2 without caps": ("Gemma2", SIZE | GEMMA2 | {"attn_logit_softcapping": None, "query_pre_attn_scalar": 10}),
    "gemma3, every third sees all": (
        "Gemma3Text",
        SIZE
        | {"head_dim": 10, "query_pre_attn_scalar": 13, "sliding_window": 6, "sliding_window_pattern": 3}
        | {"num_hidden_layers": 3, "final_logit_softcapping": 3.0},
    ),
    "gptj": ("GPTJ", SIZE | {"rotary_dim": 6, "activation_function": "relu"}),
    "gptj, tied": ("GPTJ", SIZE | {"rotary_dim": 2, "n_inner": 40, "tie_word_embeddings": True}),
    "bert": ("Bert", SIZE),
    "modernbert": ("ModernBert", MODERN | {"local_attention": 12}),
    "modernbert, odd windows and biases": ("ModernBert", MODERN | BIASED_MODERN),
    "modernbert, all layers slide": (
        "ModernBert",
        MODERN
        | {
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention"] * 2,
            "local_attention": 6,
            "tie_word_embeddings": False,
        },
    ),
    "roberta": ("Roberta", SIZE | {"layer_norm_eps": 1e-5}),
    "bart": ("Bart", SIZE | BART),
}
ENDINGS = {"EuroBert": "ForMaskedLM", "T5": "ForConditionalGeneration", "MT5": "ForConditionalGeneration"}
ENDINGS |= {
    "UMT5": "ForConditionalGeneration",
    "ModernBert": "ForMaskedLM",
    "GPT2": "LMHeadModel",
    "Bert": "ForMaskedLM",
    "Roberta": "ForMaskedLM",
    "Bart": "ForConditionalGeneration",
}


pytestmark = pytest.mark.usefixtures("shipped_code")


def save_theirs(case, folder, dtype=torch.float32):
    """A small model of transformers' own with random weights; its T5's have heads of their own where theirs have."""
    name, keys = THEIRS[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{"num_layers": 2} | keys if name == "T5" else keys)
    model = getattr(transformers, name.removesuffix("Text") + ENDINGS.get(name, "ForCausalLM"))(config)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.uniform_(0.5, 1.5)
    model.to(dtype).save_pretrained(folder)
    if case == "gpt2 without a head":
        model.transformer.save_pretrained(folder)
    if keys.get("tie_word_embeddings") is False and name in ("T5", "MT5"):
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        facts = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(facts | {"tie_word_embeddings": False}))
    return folder


def load_theirs(folder, auto=None):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = auto or getattr(transformers, BY_TYPE[kind].architecture.auto)
    return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=True, dtype=torch.float32).eval()


@pytest.mark.parametrize("case", THEIRS)
def test_logits_and_greedy_tokens_are_theirs(case, tmp_path):
    folder = save_theirs(case, tmp_path / "theirs")
    import_hf(folder, tmp_path / "ours")
    ours, theirs = load_ours(tmp_path / "ours"), load_theirs(folder)
    text, answer = tokens(20, 13)
    shape, start = ours.config.shape, torch.tensor([0])
    with torch.no_grad():
        if shape == "encdec":
            outputs = torch.cat((start, answer))
            logits = theirs(text[None], decoder_input_ids=outputs[None]).logits[0]
            kept = cache_for(theirs)
        else:
            outputs, kept = (text[:0] if shape == "encoder" else answer), {}
            logits = theirs(torch.cat((text, outputs))[None]).logits[0]
        torch.testing.assert_close(run_ours(ours, text, outputs), logits, atol=1e-5, rtol=1e-5)
        if shape == "encoder":
            return
        generated = theirs.generate(**padded([text], left=True), **EXACTLY, **kept)[0, -50:]
        for count in (0, 1, 25, 49):
            outputs = torch.cat((start[: shape == "encdec"], generated[:count]))
            assert run_ours(ours, text, outputs)[-1].argmax() == generated[count]


@pytest.mark.parametrize("case", ["bert", "roberta", "eurobert", "modernbert"])
def test_an_encoder_without_a_head_gets_a_new_one(case, tmp_path):
    folder = save_theirs(case, tmp_path / "theirs")
    whole = load_theirs(folder)
    whole.base_model.save_pretrained(folder)
    if case == "bert":  # as old files have it
        counted = {"embeddings.position_ids": torch.arange(8)[None]}
        save_file(load_file(folder / "model.safetensors") | counted, folder / "model.safetensors", {"format": "pt"})
    theirs = load_theirs(folder, transformers.AutoModel)
    (text,) = tokens(20)
    with torch.no_grad():
        torch.testing.assert_close(theirs(text[None])[0], whole.base_model(text[None])[0])
    import_hf(folder, tmp_path / "ours")
    drawn = new_head_of(tmp_path / "ours")
    assert drawn and not {name.split(".")[0] for name in drawn} - {"cls", "lm_head", "head", "decoder"}
    ours, states = load_ours(tmp_path / "ours"), []
    (ours.head_transform or ours.head).register_forward_pre_hook(lambda _, given: states.append(given[0]))
    run_ours(ours, text, text[:0])
    with torch.no_grad():
        torch.testing.assert_close(states[0].view(20, -1), theirs(text[None])[0][0], atol=1e-5, rtol=1e-5)
    import_hf(folder, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_t5s_head_is_scaled_into_one_of_its_own_where_it_was_tied(tmp_path):
    import_hf(save_theirs("t5 of the first kind", tmp_path / "theirs"), tmp_path / "ours")
    weights = dict(load_imported(tmp_path / "ours"))
    torch.testing.assert_close(weights["head.weight"], weights["embedding.weight"] * 48**-0.5)


def test_umt5s_head_is_not_scaled_where_its_config_says_so(tmp_path):
    """Its authors' are so, with heads of their own; transformers 5 scales them all the same, version 4 does not."""
    folder = save_theirs("umt5", tmp_path / "theirs")
    weights, facts = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    weights["lm_head.weight"] = 0.1 * torch.randn(weights["shared.weight"].shape, generator=torch.manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(facts | {"tie_word_embeddings": False}))
    import_hf(folder, tmp_path / "ours")
    text, answer = tokens(20, 13)
    outputs = torch.cat((torch.tensor([0]), answer))
    with torch.no_grad():
        scaled = load_theirs(folder)(text[None], decoder_input_ids=outputs[None]).logits[0]
    torch.testing.assert_close(
        run_ours(load_ours(tmp_path / "ours"), text, outputs), scaled * 48**0.5, atol=1e-5, rtol=1e-5
    )


EXPORTED = {
    "causal tied": {"tie_embeddings": True, "rope_scaling": {"kind": "linear", "factor": 2.0}},
    "causal with biased queries": {"qkv_bias": True},
    "qwen3, every second slides": {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
    | {"num_layers": 4, "qk_norm": True},
    "smollm3": {"no_rope_layer_interval": 2, "num_layers": 4, "sliding_window": 8, "bias": True},
    "prefix": {"shape": "prefix", "bias": True, "activation": "geglu"},
    "encoder": {"shape": "encoder", "tie_embeddings": True},
    "t5": {"shape": "encdec", "positions": "t5_bias", "num_encoder_layers": 1, "head_dim": 16, "num_kv_heads": 6},
    "t5 tied": {"shape": "encdec", "positions": "t5_bias", "tie_embeddings": True, "head_dim": 4, "num_kv_heads": 6},
    "encdec": {"shape": "encdec", "num_encoder_layers": 3, "qk_norm": True, "activation": "relu", "qkv_bias": True},
}


@pytest.mark.parametrize("case", EXPORTED)
def test_what_was_exported_comes_back_bit_for_bit(case, tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**BASE | EXPORTED[case]))
    folder = export(model, tmp_path / "hf", tokenizer_model)
    import_hf(folder, tmp_path / "ours", tokenizer_files=[folder / "tokenizer.model"])
    config, vocab_size = imported_config(tmp_path / "ours")
    again = load_ours(tmp_path / "ours")
    assert vocab_size == VOCAB and config.shape == model.config.shape
    kept = ("tie_embeddings", "sliding_window", "layer_types", "no_rope_layer_interval")
    assert {key: getattr(config, key) for key in kept} == {key: getattr(model.config, key) for key in kept}
    theirs = dict(model.named_parameters())
    assert all(torch.equal(weight, theirs[name]) for name, weight in again.named_parameters())
    assert (tmp_path / "ours" / "tokenizer" / "tokenizer.model").read_bytes() == tokenizer_model.read_bytes()
    (text,) = tokens(8)
    if config.shape != "encoder":
        assert torch.equal(greedy(again, text, 5), greedy(model, text, 5))


def test_key_heads_that_were_repeated_for_t5_come_back_as_many(tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**BASE | {"shape": "encdec", "positions": "t5_bias"}))
    import_hf(export(model, tmp_path / "hf", tokenizer_model), tmp_path / "ours")
    assert imported_config(tmp_path / "ours")[0].kv_heads == 6
    again, (text, answer) = load_ours(tmp_path / "ours"), tokens(12, 9)
    torch.testing.assert_close(run_ours(again, text, answer), run_ours(model, text, answer), atol=1e-5, rtol=0)


def test_half_precision_is_imported_as_it_is(tmp_path):
    folder = save_theirs("llama", tmp_path / "theirs", torch.bfloat16)
    import_hf(folder, tmp_path / "ours", file_bytes=40_000)
    weights = dict(load_imported(tmp_path / "ours"))
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert all(weight.dtype == torch.float32 and torch.equal(weight, weight.bfloat16()) for weight in weights.values())


def test_the_model_section_of_a_run_is_written_beside_the_weights(tmp_path):
    import_hf(save_theirs("llama tied", tmp_path / "theirs"), tmp_path / "ours")
    facts = yaml.safe_load((tmp_path / "ours" / "model.yaml").read_text())
    assert facts["class"] == "LlamaForCausalLM"
    assert ModelConfig(**facts["model"]) == imported_config(tmp_path / "ours")[0]
    assert facts["model"]["vocab_size"] == VOCAB and facts["model"]["head_dim"] == 14


REFUSED = {
    "type": (
        {"model_type": "mamba"},
        r"config\.json: model_type mamba is none that is read here; allowed are qwen3, mistral, llama",
    ),
    "activation": ({"hidden_act": "relu"}, r"hidden_act relu has no place here; allowed are silu"),
    "rope": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
        r"rope_type yarn has no place here; allowed are default, linear and llama3",
    ),
    "a window": ({"use_sliding_window": True, "sliding_window": 4}, r"use_sliding_window true has no place here"),
    "layers of many kinds": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "chunked_attention"]},
        r"only full_attention and sliding_attention has",
    ),
    "no window for layers that slide": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
        r"layer_types has sliding_attention, but use_sliding_window is false and sliding_window null",
    ),
    "layers without positions": (
        {"model_type": "smollm3", "no_rope_layers": [0, 1], "pad_token_id": 3},
        r"no_rope_layers has no place here unless it is every second, third",
    ),
    "quantized": ({"quantization_config": {"bits": 4}}, r"the weights are quantized"),
    "depth": ({"num_hidden_layers": 3}, r"the weight model\.layers\.2\..* is missing"),
    "width": (
        {"intermediate_size": 65},
        r"gate_proj\.weight is \[64, 48\], and \[65, 48\] by its config\.json",
    ),
    "more": ({"num_hidden_layers": 1}, r"the weight model\.layers\.1\..* has no place here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_and_leaves_nothing(case, tmp_path):
    folder = save_theirs("llama", tmp_path / "theirs")
    changes, message = REFUSED[case]
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | changes))
    with pytest.raises(ValueError, match=message) as refusal:
        import_hf(folder, tmp_path / "ours")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in it"):
        import_hf(tmp_path, tmp_path / "ours")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"no model\.safetensors in it"):
        import_hf(tmp_path, tmp_path / "ours")
    with pytest.raises(ValueError, match=r"no model\.yaml in it; make it with 'shardline import"):
        list(load_imported(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "model: 5", "model: {num_layers: x}", "model: [", "model: {num_layers: 1}", "[1]"]
)
def test_an_imported_folder_whose_model_file_was_damaged_says_so(text, tmp_path):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(
        Mistake, match=r"model\.yaml: it holds no model section .*; import the weights again"
    ) as refusal:
        imported_config(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_is_not_ours_is_not_touched(tmp_path):
    folder = save_theirs("llama", tmp_path / "theirs")
    with pytest.raises(ValueError, match="it exists and is no folder shardline imported into"):
        import_hf(folder, folder)


def test_an_import_that_gives_other_logits_never_gets_its_name(tmp_path, monkeypatch):
    folder = save_theirs("llama", tmp_path / "theirs")
    original = their_folder.from_hf_config

    def with_another_base(config):
        found = original(config)
        return found._replace(config=found.config.model_copy(update={"rope_theta": 500.0}))

    monkeypatch.setattr(their_folder, "from_hf_config", with_another_base)
    with pytest.raises(RuntimeError, match=r"logits differ from ours by .*; nothing was imported"):
        import_hf(folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


MEBIBYTE = 2**20
LARGE = ModelConfig(num_layers=40, d_model=256, num_heads=4, num_kv_heads=2, d_ff=768, tie_embeddings=True)


def lazily(model):
    """Weights of a model on the meta device, each made when it is asked for."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        yield name, torch.randn(weight.shape, generator=generator) * 0.1 + (weight.dim() == 1)


@pytest.mark.parametrize("shape", ["causal", "prefix", "encdec"])
def test_memory_grows_neither_in_export_nor_in_import_with_the_model(shape, tmp_path, tokenizer_model):
    config = LARGE.model_copy(update={"shape": shape, "num_encoder_layers": 2 if shape == "encdec" else None})
    small = config.model_copy(update={"num_layers": 2})
    how = {"max_positions": 8, "file_bytes": 16 * MEBIBYTE}
    export(Transformer(small, VOCAB), tmp_path / "warm", tokenizer_model, **how)
    with torch.device("meta"):
        model = Transformer(config, VOCAB)
    with peak_memory() as peak:
        export(model, tmp_path / "hf", tokenizer_model, state=lazily(model), **how)
    weights = sum(file.stat().st_size for file in (tmp_path / "hf").glob("*.safetensors"))
    assert weights > 100 * MEBIBYTE
    assert peak.growth < weights / 4, f"{peak.growth / MEBIBYTE:.0f} MiB for {weights / MEBIBYTE:.0f} MiB of weights"
    with peak_memory() as peak:
        import_hf(tmp_path / "hf", tmp_path / "ours", file_bytes=16 * MEBIBYTE)
    assert peak.growth < weights / 4, f"{peak.growth / MEBIBYTE:.0f} MiB for {weights / MEBIBYTE:.0f} MiB of weights"
