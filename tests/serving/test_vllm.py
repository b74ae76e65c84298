"""Exported folders in vLLM's server over HTTP: greedy tokens and embeddings are ours."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from common.ports import free_port
from launcher.serving.filling import embed
from launcher.serving.loaded import load
from launcher.serving.vllm import only_with
from model.config import ModelConfig
from model.exchange.families import family_of
from tests.model.exchange.exports import export, greedy, randomised, tokens
from tests.model.exchange.families import CASES
from tests.serving.engines import engine

pytestmark = pytest.mark.serving
LENGTHS = (5, 9, 17, 23, 31, 40)
NUM_NEW = 64
NUM_AT_ONCE = 96
MOST_SECONDS = 1500
"""Until a server is given up; it takes minutes to start on a slow machine."""
SIZES = {"num_layers": 2, "d_model": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "d_ff": 96}


@pytest.fixture(scope="module")
def python():
    found = engine("VLLM_PYTHON")
    if found is None:
        pytest.skip("VLLM_PYTHON is not set")
    return found


def wide(name):
    """A case as wide as vLLM's kernels ask for."""
    keys = CASES[name] | {"d_model": 128, "num_heads": 4, "head_dim": 32, "d_ff": 512}
    scaled = {key: 128 ** (0.5 if key == "embedding_scale" else -0.5) for key in ("embedding_scale", "logit_scale")}
    return ModelConfig(**keys | {key: value for key, value in scaled.items() if key in keys})


DECODERS = {name: wide(name) for name in CASES if "CausalLM" in name or "GPT2" in name}
DECODERS = {name: config for name, config in DECODERS.items() if family_of(config).architecture.shipped is None}
SERVED = [name for name, config in DECODERS.items() if only_with(family_of(config).architecture, config) is None]


@pytest.mark.parametrize("name", [*SERVED, "PrefixLlamaForCausalLM"])
def test_greedy_tokens_are_ours(name, python, tmp_path, tokenizer_model):
    model = randomised(wide(name))
    folder = export(model, tmp_path / "out", tokenizer_model)
    with server(python, folder, tmp_path / "server.log") as url:
        for prompt in tokens(*LENGTHS):
            assert torch.equal(completed(url, folder, prompt), greedy(model, prompt, NUM_NEW))


ENCDEC = {
    "rotary": {"num_encoder_layers": 3, "qk_norm": True, "qkv_bias": True},
    "BART": CASES["BartForConditionalGeneration, untied"]
    | {"num_kv_heads": 4, "d_model": 128, "embedding_scale": 128**0.5, "num_layers": 2},
}


@pytest.mark.parametrize("kind", ENCDEC)
def test_an_encoder_reads_the_prompt_whatever_else_is_asked_and_set_aside(kind, python, tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**SIZES | {"shape": "encdec", "init_std": 0.15} | ENCDEC[kind]))
    folder = export(model, tmp_path / "out", tokenizer_model)
    room_for_few = ("--block-size", "32", "--num-gpu-blocks-override", "72")
    with server(python, folder, tmp_path / "server.log", *room_for_few) as url:
        for prompt in tokens(*LENGTHS):
            assert torch.equal(completed(url, folder, prompt), greedy(model, prompt, NUM_NEW))
        prompts = tokens(*[9, 40] * 12)
        wanted = [greedy(model, prompt, NUM_NEW) for prompt in prompts]
        with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
            found = list(pool.map(lambda prompt: completed(url, folder, prompt), prompts * 4))
        assert all(map(torch.equal, found, wanted * 4))
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as metrics:
            assert float(re.search(r"^vllm:num_preemptions_total.* (\S+)$", metrics.read().decode(), re.M)[1]) > 0
        longest = {"prompt": [5] * 128, "max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True}
        usage = ask(f"{url}/v1/completions", {"model": str(folder)} | longest)["usage"]
        assert usage["completion_tokens"] == NUM_NEW, "the prompt takes no room from the answer"
        echoed = {"prompt": "import ", "max_tokens": 1, "echo": True}
        assert ask(f"{url}/v1/completions", {"model": str(folder)} | echoed)["choices"][0]["text"].startswith("import ")


ENCODERS = ["EuroBertForMaskedLM", "ModernBertForMaskedLM", "BertForMaskedLM", "RobertaForMaskedLM"]


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_of_shardline_serve_are_ours(name, python, tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**CASES[name] | {"num_heads": 4, "d_model": 128, "d_ff": 96}))
    folder = export(model, tmp_path / "out", tokenizer_model)
    texts = [text.tolist() for text in tokens(*LENGTHS)]
    ours = load(folder)
    assert ours.architecture.name == name
    with shardline_server(python, folder, tmp_path / "server.log") as url:
        for several in [*([text] for text in texts), texts, [[5] * 128]]:
            found = ask(f"{url}/v1/embeddings", {"model": "out", "input": several})["data"]
            vectors = torch.tensor([each["embedding"] for each in found])
            assert torch.allclose(vectors, embed(ours, several), rtol=0, atol=1e-5)
        normed = ask(f"{url}/v1/embeddings", {"model": "out", "input": texts[0], "use_activation": True})["data"]
        assert torch.tensor(normed[0]["embedding"]).norm().item() == pytest.approx(1, abs=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(f"{url}/v1/embeddings", {"model": "out", "input": [[5] * 129]})


def completed(url, folder, prompt):
    """Its greedy tokens after a prompt."""
    wanted = {"max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answer = ask(f"{url}/v1/completions", {"model": str(folder), "prompt": prompt.tolist()} | wanted)
    return torch.tensor(answer["choices"][0]["token_ids"])


def server(python, folder, log, *words):
    """vLLM's own server of a folder; its address."""
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
    return running([*command, "--dtype", "float32", "--enforce-eager", "--max-model-len", "128", *words], log)


def shardline_server(python, folder, log):
    """The same by `shardline serve`, which finds the words itself."""
    command = [sys.executable, "-m", "launcher.cli", "serve", str(folder), "--engine", "vllm"]
    return running([*command, "--vllm-python", python], log)


@contextlib.contextmanager
def running(command, log):
    port = free_port()
    here = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=output, env=os.environ | here)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + MOST_SECONDS
        while not answers(f"{url}/health"):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def answers(url):
    with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=10) as found:
        return found.status == 200
    return False


def ask(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as found:
        return json.load(found)
