import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.gguf.architectures import gguf_architecture
from model.exchange.gguf.check import weights_in
from model.exchange.gguf.convert import gguf_exported_from
from model.exchange.gguf.file import GgufFile
from model.exchange.gguf.metadata import how_to_serve
from model.exchange.gguf.tensors import left_behind, tensor_table
from model.exchange.gguf.vocabulary import BYTE, CONTROL, Vocabulary
from model.exchange.parity import run_ours
from tests.memory import peak_memory
from tests.model.exchange.exports import BASE, VOCAB, tokens
from tests.model.exchange.gguf_files import (
    CASES,
    COHERE,
    GEMMA3,
    LAYER_NORM,
    LEARNED,
    LINEAR,
    LLAMA3,
    OUTPUT_NORMS,
    SLIDING,
    gguf_model,
    write,
)

OLDER = {"granite_swa": "granite"}
"""What the package does not know yet, and what that is made from."""
STEPS = {"f16": 2**-10, "bf16": 2**-7}
"""Largest rounding of a type, as a share of the number."""


def weights_that_count(model):
    """Ours by name, without the head of a tied model and what has no place in a file."""
    tied = ("head.weight",) if model.config.tie_embeddings else ()
    left = (*tied, *left_behind(model.config))
    return {name: weight for name, weight in model.state_dict().items() if not name.startswith(left)}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_in_the_file_under_a_name_of_its_architecture(case, tmp_path, tokenizer_model):
    model = gguf_model(case)
    write(model, tmp_path / "model.gguf", tokenizer_model)
    found = GgufFile(tmp_path / "model.gguf")
    name = found.keys["general.architecture"]
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == OLDER.get(name, name))
    added = [gguf.MODEL_TENSOR.ATTN_SINKS, gguf.MODEL_TENSOR.ROPE_FREQS] if name in OLDER else []
    known = {gguf.TENSOR_NAMES[tensor] for tensor in (*gguf.MODEL_TENSORS[kind], *added)}
    for name in found.places:
        parts = name.rpartition(".")[0].split(".")
        assert ".".join("{bid}" if part.isdigit() else part for part in parts) in known, name
    read = weights_in(tmp_path / "model.gguf", tensor_table(model.config, VOCAB))
    unread = model.config.position_offset
    for name, weight in weights_that_count(model).items():
        if name == "position_embedding.weight":
            weight = torch.cat((torch.zeros(unread, model.config.d_model), weight[unread:]))
        torch.testing.assert_close(read(name), weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", ["causal", "tied", "qwen3"])
def test_transformers_reads_our_logits_out_of_it(case, tmp_path, tokenizer_model):
    """Its own reader of GGUF, which gives every Qwen3 heads of 128 and leaves biases out."""
    model = gguf_model(case, **({"head_dim": 128, "num_heads": 2} if case == "qwen3" else {}))
    write(model, tmp_path / "model.gguf", tokenizer_model)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", local_files_only=True)
    (text,) = tokens(40)
    with torch.no_grad():
        ours = run_ours(model, text, text[:0])
        torch.testing.assert_close(theirs(text[None]).logits[0], ours, atol=1e-5, rtol=0)


def test_keys_say_how_large_the_model_is_and_how_it_reads_its_prompt(tmp_path, tokenizer_model):
    wanted = {
        "causal": {"llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 8, "general.file_type": 0},
        "biases": {"general.architecture": "llama"},
        "biased_queries": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        "prefix": {"llama.attention.causal": False, "shardline.shape": "prefix", "llama.attention.key_length": 12},
        "encoder": {"general.architecture": "llada", "llada.attention.causal": False},
        "t5": {
            "t5.block_count": 3,
            "t5.decoder_block_count": 2,
            "t5.attention.head_count_kv": 6,
            "t5.attention.relative_buckets_count": 32,
            "t5.decoder_start_token_id": 1,
        },
        "gemma3": {
            "gemma3.attention.sliding_window": 8,
            "gemma3.attention.sliding_window_pattern": [True, False],
            "gemma3.rope.freq_base_swa": 500.0,
            "gemma3.final_logit_softcapping": 5.0,
        },
        "windows": {
            "granite_swa.attention.sliding_window": 8,
            "granite_swa.attention.sliding_window_pattern": [True, False, True],
            "granite_swa.attention.rope_pattern": [True, True, False],
        },
        "gptneox_two_norms": {"gptneox.use_parallel_residual": True, "gptneox.rope.dimension_count": 2},
        "gpt2": {"gpt2.context_length": 110, "gpt2.attention.head_count_kv": 2},
        "bert": {"bert.attention.causal": False, "tokenizer.ggml.token_type_count": 2},
    }
    for case, keys in wanted.items():
        file = tmp_path / f"{case}.gguf"
        write(gguf_model(case), file, tokenizer_model)
        found = GgufFile(file).keys
        assert {key: found[key] for key in keys} == keys
        assert gguf_exported_from(file) == "x"
        plain = found["shardline.shape"] == "causal" and case != "windows"
        assert (how_to_serve(gguf_model(case).config) is None) == plain
    assert "llama.attention.causal" not in GgufFile(tmp_path / "causal.gguf").keys


def test_the_tokenizer_has_a_token_for_every_row_of_the_model(tmp_path, tokenizer_model):
    model = gguf_model("causal")
    write(model, tmp_path / "model.gguf", tokenizer_model)
    keys = GgufFile(tmp_path / "model.gguf").keys
    names, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(names) == len(kinds) == len(keys["tokenizer.ggml.scores"]) == VOCAB
    assert keys["tokenizer.ggml.model"] == "llama" and not keys["tokenizer.ggml.add_space_prefix"]
    assert kinds[names.index("<extra_id_3>")] == kinds[names.index("[S]")] == CONTROL
    assert kinds[names.index("<0x41>")] == BYTE
    ids = {role: keys[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "padding", "unknown", "mask")}
    assert ids == {"bos": 1, "eos": 2, "padding": 3, "unknown": 0, "mask": names.index("<mask>")}


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_smaller_types_are_within_their_step(kind, tmp_path, tokenizer_model):
    model = gguf_model("causal", d_model=64, head_dim=16)
    write(model, tmp_path / "model.gguf", tokenizer_model, matrix_type=kind)
    found = GgufFile(tmp_path / "model.gguf")
    assert {place.type for name, place in found.places.items() if len(place.shape) == 2} == {kind}
    assert {place.type for name, place in found.places.items() if len(place.shape) == 1} == {"f32"}
    read = weights_in(tmp_path / "model.gguf", tensor_table(model.config, VOCAB))
    for name, weight in model.state_dict().items():
        if weight.dim() == 1:
            assert torch.equal(read(name), weight)
        elif kind == "q8_0":  # the largest of each 32 numbers is 127 steps, the step itself a float16
            largest = weight.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True)
            assert ((read(name) - weight).unflatten(1, (-1, 32)).abs() <= largest * (0.501 / 127 + 2**-11)).all()
        else:
            assert ((read(name) - weight).abs() <= STEPS[kind] * weight.abs() + 1e-7).all()


def test_rows_that_do_not_fill_blocks_and_numbers_that_do_not_fit_are_refused(tmp_path, tokenizer_model):
    model, out = gguf_model("causal"), tmp_path / "model.gguf"
    with pytest.raises(Mistake, match="have 48 numbers and q8_0 stores them in blocks of 32"):
        write(model, out, tokenizer_model, matrix_type="q8_0")
    with torch.no_grad():
        model.head.weight[3, 3] = 1e5
    with pytest.raises(Mistake, match=r"output\.weight: .* beyond 65504"):
        write(model, out, tokenizer_model, matrix_type="f16")
    with pytest.raises(Mistake, match="not a type"):
        write(model, out, tokenizer_model, matrix_type="q4_0")
    assert not list(tmp_path.iterdir())


GPT2 = LAYER_NORM | LEARNED
REFUSED = {
    "positions": ({"positions": "learned", "max_positions": 64}, "positions: learned has no place in .* llama"),
    "norm": ({"norm": "layernorm"}, "norm: layernorm"),
    "activation": ({"activation": "geglu"}, "activation: geglu .* it has swiglu"),
    "exact_gelu": (GPT2 | {"activation": "gelu"}, "activation: gelu has no place in .* gpt2.* it has gelu_tanh"),
    "window": ({"sliding_window": 8, "shape": "encoder"}, "sliding_window: 8 .* it has null"),
    "window_and_norms": ({"sliding_window": 8, "qk_norm": True}, "sliding_window: 8 has no place in .* qwen3"),
    "prefix_window": (
        GEMMA3 | SLIDING | {"shape": "prefix"},
        "sliding_window: 8 has no place in .* gemma3, which shape prefix .* in causal models alone",
    ),
    "stretched_window": (
        OUTPUT_NORMS | SLIDING | {"rope_scaling": LINEAR},
        "rope_scaling: linear .* olmo2.* sliding_rope",
    ),
    "other_base": (
        OUTPUT_NORMS | SLIDING | {"sliding_rope_theta": 9.0},
        "sliding_rope_theta: 9.0 .* rope_theta, 10000.0",
    ),
    "rotates_elsewhere": (
        COHERE | SLIDING,
        "no_rope_layer_interval: null .* cohere2.* positions where they slide, and no others have",
    ),
    "parallel": ({"parallel_block": True}, "parallel_block: true"),
    "own_heads": ({"rope_fraction": 0.5, "head_dim": 12}, "rope_fraction: 0.5 .* it has 1.0"),
    "no_rope": ({"no_rope_layer_interval": 2, "qk_norm": True}, "no_rope_layer_interval: 2 has no place in .* qwen3"),
    "gate": ({"attention_gate": True}, "attention_gate: true"),
    "untied": (COHERE | {"tie_embeddings": False}, "tie_embeddings: false has no place in .* command-r.* it has true"),
    "deep": (COHERE | {"num_layers": 64}, "num_layers: 64 has no place in .* command-r.* fewer than 64"),
    "one_cap": (CASES["gemma2"] | {"logit_softcap": None}, "logit_softcap: null .* gemma2.* it has one in any case"),
    "other_half_slides": (CASES["gemma2"] | {"layer_types": SLIDING["layer_types"][::-1]}, "layer_types: .* gemma2"),
    "one_of_gemma2": (CASES["gemma2"] | {"num_layers": 46}, "attention_scale: null .* gemma2.* it has 0.35355"),
    "one_of_gemma3": (GEMMA3 | {"num_layers": 62}, "num_layers: 62 has no place in .* gemma3"),
    "one_of_exaone4": (OUTPUT_NORMS | {"qk_norm": True, "num_layers": 64}, "num_layers: 64 has no place in .* exaone4"),
    "qwen_bias": ({"qk_norm": True, "bias": True}, "bias: true has no place in .* qwen3"),
    "encoder_bias": ({"shape": "encoder", "bias": True}, "bias: true has no place in .* llada"),
    "encoder_llama3": ({"shape": "encoder", "rope_scaling": LLAMA3}, "rope_scaling: llama3 .* it has linear or null"),
    "encoder_gelu": (CASES["bert"] | {"activation": "gelu"}, "activation: gelu has no place in .* bert"),
    "encdec_rope": ({"shape": "encdec"}, "positions: rope has no place in .* t5"),
    "t5_silu": ({"shape": "encdec", "positions": "t5_bias"}, "activation: swiglu .* it has relu or geglu"),
    "t5_distance": (CASES["t5"] | {"t5_max_distance": 64}, "t5_max_distance: 64 .* it has 128"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_by_its_key(case):
    keys, text = REFUSED[case]
    with pytest.raises(Mistake, match=f"model.{text}"):
        gguf_architecture(ModelConfig(**BASE | keys))


def test_a_key_that_nobody_gave_a_place_is_refused():
    class WithMore(ModelConfig):
        from_tomorrow: float | None = None

    for case in CASES:
        assert gguf_architecture(WithMore(**BASE | CASES[case])) is gguf_architecture(gguf_model(case).config)
        with pytest.raises(Mistake, match=r"model\.from_tomorrow: 30.0 has no place"):
            gguf_architecture(WithMore(**BASE | CASES[case], from_tomorrow=30.0))


def test_nothing_is_left_behind_or_replaced_where_it_fails(tmp_path, tokenizer_model):
    model, out = gguf_model("causal"), tmp_path / "model.gguf"
    write(model, out, tokenizer_model)
    before = out.read_bytes()
    state = model.state_dict()
    del state["blocks.1.attention.qkv.weight"]
    with pytest.raises(Mistake, match=r"blocks\.1\.attention\.qkv\.weight: the weight is missing"):
        write(model, out, tokenizer_model, state=state)
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]
    write(model, out, tokenizer_model, state=iter(reversed(model.state_dict().items())))
    assert out.read_bytes() == before, "in another order"
    out.write_bytes(b"GGUF, or so it says")
    with pytest.raises(Mistake, match="no file shardline exported"):
        write(model, out, tokenizer_model)


def test_a_file_with_other_bytes_than_were_written_is_not_published(tmp_path, tokenizer_model, monkeypatch):
    import model.exchange.gguf.convert as module

    written = module._write_weights

    def damaged(writer, state, spec):
        digests = written(writer, state, spec)
        place = writer._places["blk.1.ffn_up.weight"]
        with writer._file.open("r+b") as file:
            file.seek(place.offset + 5)
            file.write(b"\x55")
        return digests

    monkeypatch.setattr(module, "_write_weights", damaged)
    with pytest.raises(RuntimeError, match=r"blk\.1\.ffn_up\.weight on disk is not the one"):
        write(gguf_model("causal"), tmp_path / "model.gguf", tokenizer_model)
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_one_tensor(tmp_path, tokenizer_model):
    """Thirty-two layers of 8 MB each go through in less than 64 MB."""
    config = ModelConfig(num_layers=32, d_model=512, num_heads=8, d_ff=512, head_dim=64, tie_embeddings=True)
    shapes = _our_shapes(config)

    def weights():
        for name, shape in shapes.items():
            yield name, torch.full(shape, 0.01)

    class Small:
        vocab_size = VOCAB

    Small.config = config
    vocabulary = Vocabulary("none")
    write(Small, tmp_path / "warm.gguf", tokenizer_model, state=weights(), vocabulary=vocabulary, texts=None)
    with peak_memory() as peak:
        write(Small, tmp_path / "model.gguf", tokenizer_model, state=weights(), vocabulary=vocabulary, texts=None)
    size = (tmp_path / "model.gguf").stat().st_size
    assert size > 200 * 2**20 and peak.growth < 64 * 2**20, (size, peak.growth)


def _our_shapes(config):
    """Shapes of our weights by name."""
    from model.network.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(config, VOCAB)
    return {name: tuple(weight.shape) for name, weight in weights_that_count(model).items()}
