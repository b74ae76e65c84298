"""What vLLM would be given; a script stands in for a Python that has it, and notes what it is called with."""

import ast
import json
import shutil
import stat
from pathlib import Path

import pytest
import torch

from common.mistakes import Mistake
from launcher.serving import vllm
from model.config import ModelConfig
from model.exchange import vllm as plugin
from model.exchange.families import BY_TYPE
from model.exchange.their_folder import HfFolder
from model.exchange.vllm import TAUGHT
from tests.model.exchange.exports import BASE, export, randomised
from tests.model.exchange.families import CASES

TIED, UNTIED = (ModelConfig(**BASE | {"tie_embeddings": ties}) for ties in (True, False))
SCRIPT = """#!/bin/sh
if [ "$1" = -c ]; then echo '[true, {plugins}]'; exit; fi
echo "$@" > {out}/words; ls -A "$4" > {out}/files; cat "$4/config.json" > {out}/config.json
"""


@pytest.fixture
def python(tmp_path):
    def make(plugins="[]") -> str:
        script = tmp_path / "python"
        script.write_text(SCRIPT.format(plugins=plugins, out=tmp_path))
        script.chmod(stat.S_IRWXU)
        return str(script)

    return make


def test_a_causal_folder_is_given_to_it_without_code_pickles_and_templates(folders, tmp_path, python):
    folder = shutil.copytree(folders("causal"), tmp_path / "theirs")
    for name in ("evil.py", "pytorch_model.bin", "chat_template.jinja"):
        (folder / name).write_text("evil")
    assert vllm.chosen("auto", folder, python()) == python()
    assert vllm.run(folder, python(), "127.0.0.1", 81, "name") == 1, "nobody told it to end"
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert words[4:8] == ["--served-model-name", "name", "--load-format", "safetensors"]
    assert words[8:] == ["--host", "127.0.0.1", "--port", "81", "--dtype", "float32"]
    assert not {"evil.py", "pytorch_model.bin", "chat_template.jinja"} & set((tmp_path / "files").read_text().split())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert not Path(words[3]).exists(), "the view is gone"


@pytest.mark.parametrize("shape", ["prefix", "encdec"])
def test_what_our_plugin_brings_goes_to_it_only_where_that_is(shape, folders, python):
    assert vllm.chosen("auto", folders(shape), python()) is None
    with pytest.raises(Mistake, match=r"has no class for .* as it was trained; install shardline there"):
        vllm.chosen("vllm", folders(shape), python())
    for engine in ("vllm", "auto"):
        assert vllm.chosen(engine, folders(shape), python('["shardline"]'))


def test_an_encoder_goes_to_it_for_embeddings_when_it_is_asked_for(folders, tmp_path, python):
    assert vllm.chosen("auto", folders("encoder"), python()) is None, "its gaps are filled here alone"
    assert vllm.chosen("vllm", folders("encoder"), python())
    assert vllm.run(folders("encoder"), python(), "127.0.0.1", 81, "name") == 1
    words = (tmp_path / "words").read_text().split(maxsplit=16)
    assert words[12:16] == ["--dtype", "float32", "--runner", "pooling"]
    assert words[16].strip() == '--pooler-config {"pooling_type": "MEAN", "use_activation": false} --max-model-len 128'


def test_bert_is_given_as_the_class_of_our_plugin_and_roberta_with_the_rows_that_it_reads(tmp_path, tokenizer):
    for name, model_type, rows in (("BertForMaskedLM", "bert", 128), ("RobertaForMaskedLM", "roberta", 132)):
        model = randomised(ModelConfig(**CASES[name]), vocab_size=tokenizer.vocab_size)
        theirs = HfFolder.read(export(model, tmp_path / name, tokenizer.model_path))
        assert theirs.config.architecture.model_type == model_type
        assert theirs.config.object.max_position_embeddings == rows
        assert vllm.settings(theirs)["--max-model-len"] == "128"
    bert, roberta = (BY_TYPE[each].architecture for each in ("bert", "roberta"))
    without, found = vllm.Found(True), vllm.Found(True, ["shardline"])
    assert "has no class for BertForMaskedLM" in vllm.obstacle(bert, TIED, without, "python")
    assert vllm.obstacle(bert, TIED, found, "python") is vllm.obstacle(roberta, TIED, without, "python") is None


@pytest.mark.parametrize(("model_type", "ties"), [("cohere", True), ("gemma2", True), ("bloom", True), ("gptj", False)])
def test_heads_that_a_class_of_vllms_has_no_place_for_are_refused(model_type, ties):
    architecture, found = BY_TYPE[model_type].architecture, vllm.Found(True)
    known, other = (TIED, UNTIED) if ties else (UNTIED, TIED)
    assert vllm.obstacle(architecture, known, found, "python") is None
    said = f"knows {architecture.name} only with tie_word_embeddings {str(ties).lower()}"
    assert said in vllm.obstacle(architecture, other, found, "python")


def test_gates_that_a_class_of_vllms_does_not_compute_are_served_by_transformers_or_refused(
    tmp_path, tokenizer, python
):
    keys = CASES["CohereForCausalLM, one key head"] | {"activation": "geglu"}
    model = randomised(ModelConfig(**keys), vocab_size=tokenizer.vocab_size)
    folder = export(model, tmp_path / "out", tokenizer.model_path)
    assert vllm.chosen("auto", folder, python()) is None
    with pytest.raises(Mistake, match="--engine vllm: vLLM knows CohereForCausalLM only with hidden_act silu"):
        vllm.chosen("vllm", folder, python())
    gemma = vllm.only_with(BY_TYPE["gemma"].architecture, model.config)
    assert gemma is None and vllm.only_with(BY_TYPE["llama"].architecture, model.config) == "hidden_act silu"


@pytest.mark.parametrize("num_layers", [2, 28])
def test_layers_some_of_which_slide_are_not_given_to_a_class_that_lets_all_or_none(num_layers):
    keys = CASES["Qwen3ForCausalLM"] | {"num_layers": num_layers, "sliding_window": 8}
    some = ModelConfig(**keys | {"layer_types": ["sliding_attention", "full_attention"]})
    qwen3, found = BY_TYPE["qwen3"].architecture, vllm.Found(True)
    assert "Qwen3ForCausalLM only with layers that slide all or none" in vllm.obstacle(qwen3, some, found, "python")
    assert vllm.obstacle(qwen3, ModelConfig(**keys), found, "python") is None
    assert vllm.obstacle(BY_TYPE["smollm3"].architecture, some, found, "python") is None


def test_weights_of_sixteen_bits_are_served_as_they_are(tmp_path, tokenizer):
    model = randomised(ModelConfig(**BASE), vocab_size=tokenizer.vocab_size).bfloat16()
    folder = export(model, tmp_path / "out", tokenizer.model_path, dtype=torch.bfloat16)
    assert vllm.settings(HfFolder.read(folder)) == {}


def test_what_it_does_not_serve_is_served_by_transformers_or_refused(folders, python):
    for known in (python(), python('["shardline"]')):
        assert vllm.chosen("auto", folders("t5"), known) is None
        with pytest.raises(Mistake, match=r"--engine vllm: vLLM serves no T5.* or take --engine transformers"):
            vllm.chosen("vllm", folders("t5"), known)


def test_a_class_that_our_plugin_does_not_bring_is_not_given_to_it():
    found = vllm.Found(True, ["shardline"])
    found_out = vllm.obstacle(BY_TYPE["prefix_decoder"].architecture, TIED, found, "x")
    assert "serves no PrefixDecoderForCausalLM" in found_out
    assert all(vllm.obstacle(BY_TYPE[each].architecture, TIED, found, "x") is None for each in TAUGHT)


def test_each_class_of_the_plugin_is_in_the_module_of_its_type():
    for model_type, name in TAUGHT.items():
        module = ast.parse(Path(plugin.__file__).with_name(f"{model_type}.py").read_text())
        assert name in {each.name for each in module.body if isinstance(each, ast.ClassDef)}


def test_a_python_without_it_is_named(folders):
    with pytest.raises(Mistake, match="has no vLLM; install it into an environment of its own"):
        vllm.chosen("vllm", folders("causal"), None)
    with pytest.raises(Mistake, match="--vllm-python: /no/python is no Python that can be asked"):
        vllm.chosen("auto", folders("causal"), "/no/python")
    assert vllm.chosen("transformers", folders("causal"), "/no/python") is None
