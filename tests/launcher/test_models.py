"""Presets of published models: their sizes against papers and peers, the list, and their use in a run's config."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import transformers
import yaml

import configs
from launcher import cli, models
from launcher.config import json_schema, load_config, to_yaml
from model.config import ModelConfig
from model.flops import num_parameters
from model.kernels.attention import AttentionPattern
from model.network.transformer import EncoderInput, Transformer

ALL = models.names()
RUN = {
    "name": "tiny",
    "tokenizer": {"path": "tok"},
    "data": {"path": "data", "sources": [{"path": "a.jsonl"}]},
    "training": {"steps": 10, "sequence_length": 32, "global_batch_size": 4},
}


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in models.listing()}


@pytest.fixture
def run_config(tmp_path):
    """Reads a run whose `model:` section is the one given."""

    def load(section, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**RUN, "model": section}))
        return load_config(path, overrides)

    return load


@pytest.fixture
def shardline(monkeypatch, capsys):
    """Runs the command: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shardline", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_every_family_is_there_in_all_its_sizes():
    families: dict[str, set[str]] = {}
    for name in ALL:
        family, _, size = name.rpartition("-")
        families.setdefault(family, set()).add(size)
    t5 = {"small", "base", "large", "xl", "xxl"}
    assert families == {
        "gpt3": {"small", "medium", "large", "xl", "2.7b", "6.7b", "13b", "175b"},
        "llama": {"7b", "13b", "33b", "65b"},
        "llama2": {"7b", "13b", "70b"},
        "llama3.1": {"8b", "70b", "405b"},
        "opt": {"175b"},
        "bloom": {"176b"},
        "palm": {"540b"},
        "u-palm": {"540b"},
        "gopher": {"280b"},
        "chinchilla": {"70b"},
        "bloomberggpt": {"50b"},
        "glm": {"130b"},
        "chatglm": {"6b"},
        "unilm": {"large"},
        "t5-v1.1": t5,
        "flan-t5": t5,
        "bart": {"large"},
        "bert": {"base", "large"},
        "roberta": {"large"},
        "gpt-j": {"6b"},
        "modernbert": {"base", "large"},
        "mistral": {"7b"},
        "qwen3": {"0.6b", "8b"},
        "smollm2": {"135m"},
        "smollm3": {"3b"},
        "seed-oss": {"36b"},
        "olmo2": {"7b"},
        "phi": {"2"},
        "phi-3": {"mini"},
        "phi-4": {"mini"},
        "gemma": {"2b"},
        "gemma2": {"2b", "27b"},
        "gemma3": {"1b"},
        "gpt-neox": {"20b"},
        "pythia": {"1b"},
        "command-r": {"35b"},
        "eurobert": {"210m"},
        "umt5": {"small"},
    }


@pytest.mark.parametrize("name", ALL)
def test_the_formula_counts_what_the_network_holds(name, rows):
    config = models.load(name).model
    assert num_parameters(config, config.vocab_size or 0) == rows[name].parameters


@pytest.mark.parametrize("name", ALL)
def test_sizes_are_within_one_percent_of_the_published_or_a_number_says_why_not(name, rows):
    row = rows[name]
    assert row.difference == row.parameters / row.published_parameters - 1
    assert abs(row.difference) <= 0.01 or re.search(r"\d(M|B|,\d{3}) ?", row.note), row


EXACTLY = ["bloom-176b", "bloomberggpt-50b", "llama2-70b", "llama3.1-405b", "t5-v1.1-xxl", "mistral-7b", "qwen3-8b"]
EXACTLY += ["qwen3-0.6b", "smollm2-135m", "smollm3-3b", "seed-oss-36b", "olmo2-7b", "phi-2", "phi-3-mini", "phi-4-mini"]
EXACTLY += ["gemma-2b", "gemma2-2b", "gemma2-27b", "gemma3-1b", "gpt-neox-20b", "pythia-1b"]


@pytest.mark.parametrize("name", EXACTLY)
def test_sizes_published_to_the_last_parameter_are_met_to_the_last_parameter(name, rows):
    assert rows[name].parameters == rows[name].published_parameters


@pytest.mark.parametrize(
    ("num_layers", "num_heads", "head_dim", "d_model", "published"),
    [
        (8, 16, 32, 512, "44M"),
        (12, 12, 64, 768, "117M"),
        (12, 12, 128, 1536, "417M"),
        (24, 16, 128, 2048, "1.4B"),
        (32, 32, 128, 4096, "7.1B"),
        (80, 128, 128, 16384, "280B"),
    ],
)
def test_what_gopher_departs_by_explains_the_sizes_of_its_whole_family(
    num_layers, num_heads, head_dim, d_model, published
):
    """Table 1 of arXiv 2112.11446: one matrix a layer for relative positions makes every published size."""
    sizes = {"num_layers": num_layers, "num_heads": num_heads, "head_dim": head_dim, "d_model": d_model}
    config = ModelConfig.model_validate(models.keys("gopher-280b") | sizes | {"d_ff": 4 * d_model})
    relative = num_layers * d_model * num_heads * head_dim
    total = num_parameters(config, config.vocab_size or 0) + relative
    scale, digits = (1e9, len(published) - 3 if "." in published else 0) if published[-1] == "B" else (1e6, 0)
    assert round(total / scale, digits) == float(published[:-1])


def hugging_face(config: ModelConfig, family: str) -> int:
    """Parameters of the peer's class for a family, in the sizes of `config`."""
    heads, layers, width = config.num_heads, config.num_layers, config.d_model
    vocab_size = config.vocab_size or 0
    common: dict[str, Any] = {"vocab_size": vocab_size, "hidden_size": width, "num_hidden_layers": layers}
    common |= {"num_attention_heads": heads, "intermediate_size": config.d_ff}
    hf = transformers
    peers = {
        "gpt3": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=vocab_size, n_positions=2048, n_embd=width, n_layer=layers, n_head=heads)
        ),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**common, num_key_value_heads=config.kv_heads)),
        "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**common, ffn_dim=config.d_ff, word_embed_proj_dim=width)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=width, n_layer=layers, n_head=heads)),
        "t5": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=width, d_kv=64, d_ff=config.d_ff, num_layers=layers, num_heads=heads,
                feed_forward_proj="gated-gelu",
            )
        ),
        "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig()),
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**common)),
        "roberta": lambda: hf.RobertaForMaskedLM(
            hf.RobertaConfig(**common, max_position_embeddings=514, type_vocab_size=1)
        ),
        "gpt-j": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**common)),
        "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(**common)),
    }  # fmt: skip
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in peers[family]().parameters())


EQUAL = ("gpt3", "llama", "bloom", "opt", "bart", "bert", "roberta", "gpt-j", "modernbert")


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith(EQUAL) and not n.startswith("bloomberg")])
def test_sizes_equal_hugging_faces(name, rows):
    family = next(family for family in EQUAL if name.startswith(family))
    assert rows[name].parameters == hugging_face(models.load(name).model, family)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("t5-v1.1-xl", lambda m: -m.vocab_size * m.d_model),  # transformers 5 ties what version 1.1 does not
        ("flan-t5-small", lambda m: -m.vocab_size * m.d_model),
    ],
)
def test_sizes_differ_from_hugging_faces_by_the_parts_that_are_named(name, more, rows):
    config = models.load(name).model
    family = "t5" if "t5" in name else name.split("-")[0]
    assert hugging_face(config, family) - rows[name].parameters == more(config)


def tiny(name: str) -> ModelConfig:
    """The blocks of a preset in a size that computes at once."""
    preset = models.load(name).model
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 4, "head_dim": 8, "d_ff": 48, "vocab_size": 50}
    optional = {"num_encoder_layers": 1, "num_kv_heads": min(preset.kv_heads, 2), "max_positions": 16}
    optional |= {"sliding_window": 4, "layer_types": list(dict.fromkeys(preset.layer_types or []))}
    optional |= {"no_rope_layer_interval": 2}
    sizes |= {key: value for key, value in optional.items() if getattr(preset, key) is not None}
    sizes["rope_fraction"] = round(4 * preset.rope_fraction) / 4  # an even number of dims of 8
    return ModelConfig.model_validate(models.keys(name) | sizes)


@pytest.mark.parametrize("name", ALL)
def test_the_blocks_of_a_preset_train_every_weight(name):
    config = tiny(name)
    model = Transformer(config, 50)
    lengths = [7, 5]
    tokens = torch.arange(12) % 50
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, 7, 12], dtype=torch.int32)
    prefixes = {"prefix": [3, 2], "encoder": lengths}.get(config.shape, [0, 0])
    pattern = AttentionPattern.packed(cu_seqlens, torch.tensor(prefixes, dtype=torch.int32))
    encoder = None
    if config.shape == "encdec":
        full = AttentionPattern.packed(cu_seqlens, torch.tensor(lengths, dtype=torch.int32))
        encoder = EncoderInput(tokens, positions, full, AttentionPattern.cross(cu_seqlens, cu_seqlens))
    output = model(tokens, positions, pattern, labels=tokens, encoder=encoder)
    output.loss_sum.backward()
    assert torch.isfinite(output.loss_sum)
    untouched = [key for key, weight in model.named_parameters() if weight.grad is None]
    assert untouched == []


def test_a_run_takes_the_keys_of_a_preset_and_its_own_win(run_config):
    config = run_config({"preset": "llama2-70b", "num_layers": 2, "vocab_size": None})
    assert config.model == models.load("llama2-70b").model.model_copy(update={"num_layers": 2, "vocab_size": None})


def test_a_resolved_config_holds_plain_values_and_no_preset(run_config, tmp_path):
    config = run_config({"preset": "llama3.1-8b"})
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert "preset" not in resolved.read_text()
    assert load_config(resolved) == config


def test_a_preset_and_its_nested_keys_can_be_set_on_the_command_line(run_config):
    section = {"num_layers": 1}
    config = run_config(section, "model.preset=llama3.1-8b", "model.rope_scaling.factor=16")
    scaling = models.load("llama3.1-8b").model.rope_scaling
    assert scaling is not None
    assert config.model.rope_scaling == scaling.model_copy(update={"factor": 16})
    assert (config.model.num_layers, config.model.d_model) == (1, 4096)


@pytest.mark.parametrize(
    ("preset", "nearest"), [("lama-7b", "llama-7b"), ("GPT3-Small", "gpt3-small"), ("flan_t5_xl", "flan-t5-xl")]
)
def test_an_unknown_preset_is_refused_with_the_nearest_name(run_config, preset, nearest):
    with pytest.raises(
        ValueError, match=rf"run\.yaml: model\.preset: .*'{preset}'.*did you mean '{nearest}'"
    ) as caught:
        run_config({"preset": preset})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", [7, None, ["llama-7b"]])
def test_a_preset_that_is_no_name_is_refused_in_one_sentence(run_config, preset):
    with pytest.raises(ValueError, match=r"model\.preset: no model preset is called") as caught:
        run_config({"preset": preset})
    assert "\n" not in str(caught.value)


def test_a_mistyped_key_beside_a_preset_and_a_mistyped_preset_key_are_named(run_config):
    with pytest.raises(ValueError, match=r"model\.num_layer: unknown key; did you mean 'num_layers'"):
        run_config({"preset": "llama-7b", "num_layer": 2})
    with pytest.raises(ValueError, match=r"model\.presets: unknown key; did you mean 'preset'"):
        run_config({"presets": "llama-7b"})


def test_the_schema_takes_a_preset_in_place_of_sizes_and_knows_its_names():
    schema = json_schema()
    jsonschema.validate({**RUN, "model": {"preset": "bert-base"}}, schema)
    jsonschema.validate({**RUN, "model": {"num_layers": 1, "d_model": 8, "num_heads": 1, "d_ff": 8}}, schema)
    for section in ({"preset": "bert-bas"}, {"num_layers": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**RUN, "model": section}, schema)


def test_the_list_stands_in_80_columns_with_every_name_whole(shardline, rows):
    code, printed, _ = shardline("model", "list")
    assert code == 0
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines} >= set(ALL)
    numbered = set(re.findall(r"(\[\d+\]) *$", printed, re.MULTILINE))
    assert numbered and numbered == set(re.findall(r"^(\[\d+\]) ", printed, re.MULTILINE))


def test_the_list_as_json_holds_source_and_note_of_each(shardline):
    code, printed, _ = shardline("model", "list", "--json")
    listed = {row["name"]: row for row in json.loads(printed)}
    assert code == 0
    assert sorted(listed) == ALL
    assert listed["t5-v1.1-base"]["num_encoder_layers"] == 12
    assert all("arXiv" in row["source"] or "Model card" in row["source"] for row in listed.values())


def test_what_show_prints_is_a_model_section_of_its_own(shardline):
    code, printed, _ = shardline("model", "show", "llama3.1-70b")
    assert code == 0
    assert "# llama3.1-70b: 70,553,706,496 parameters" in printed
    assert ModelConfig.model_validate(yaml.safe_load(printed)["model"]) == models.load("llama3.1-70b").model


def test_show_refuses_an_unknown_name_in_one_sentence(shardline):
    code, _, printed = shardline("model", "show", "llama4-7b")
    assert code == 2
    assert printed.startswith("error: no model preset is called 'llama4-7b'; did you mean 'llama")
    assert printed.count("\n") == 1


def test_the_table_in_the_docs_is_the_one_the_command_prints(shardline):
    root = Path(configs.__file__).parent.parent
    _, printed, _ = shardline("model", "list", "--markdown")
    assert printed in (root / "docs" / "models.md").read_text(encoding="utf-8")
