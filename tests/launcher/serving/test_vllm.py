"""What vLLM would be given; a script stands in for a Python that has it, and notes what it is called with."""

import json
import shutil
import stat
from pathlib import Path

import pytest

from common.mistakes import Mistake
from launcher.serving import vllm
from model.exchange.families import BY_TYPE

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
    assert vllm.run(folder, python(), "127.0.0.1", 81, "name") == 0
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert words[4:8] == ["--served-model-name", "name", "--load-format", "safetensors"]
    assert words[8:] == ["--host", "127.0.0.1", "--port", "81"]
    assert not {"evil.py", "pytorch_model.bin", "chat_template.jinja"} & set((tmp_path / "files").read_text().split())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert not Path(words[3]).exists(), "the view is gone"


def test_a_prefix_model_goes_to_it_only_where_our_plugin_is(folders, python):
    assert vllm.chosen("auto", folders("prefix"), python()) is None
    with pytest.raises(Mistake, match="knows no PrefixLlamaForCausalLM, and would serve another class causally"):
        vllm.chosen("vllm", folders("prefix"), python())
    assert vllm.chosen("vllm", folders("prefix"), python('["shardline"]'))


def test_what_it_does_not_serve_is_served_by_transformers_or_refused(folders, python):
    for shape in ("encoder", "t5"):
        assert vllm.chosen("auto", folders(shape), python()) is None
        with pytest.raises(Mistake, match=r"--engine vllm: vLLM serves no .* or take --engine transformers"):
            vllm.chosen("vllm", folders(shape), python())


def test_a_class_that_our_plugin_does_not_teach_is_not_given_to_it(python):
    other, found = BY_TYPE["prefix_decoder"].architecture, vllm.find(python('["shardline"]'))
    assert "serves no PrefixDecoderForCausalLM" in vllm.obstacle(other, found, "python")
    assert vllm.obstacle(BY_TYPE["prefix_llama"].architecture, found, "python") is None


def test_a_python_without_it_is_named(folders):
    with pytest.raises(Mistake, match="has no vLLM; install it into an environment of its own"):
        vllm.chosen("vllm", folders("causal"), None)
    with pytest.raises(Mistake, match="--vllm-python: /no/python is no Python that can be asked"):
        vllm.chosen("auto", folders("causal"), "/no/python")
    assert vllm.chosen("transformers", folders("causal"), "/no/python") is None
