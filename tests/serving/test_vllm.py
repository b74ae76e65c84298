"""Exported folders in vLLM's server over HTTP: greedy tokens are ours."""

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request

import pytest
import torch

from common.ports import free_port
from model.config import ModelConfig
from tests.model.exchange.exports import export, greedy, randomised, tokens
from tests.serving.engines import engine

pytestmark = pytest.mark.serving
LENGTHS = (5, 9, 17, 23, 31, 40)
NUM_NEW = 64
MOST_SECONDS = 1500
"""Until a server is given up; it takes minutes to start on a slow machine."""
SIZES = {"num_layers": 2, "d_model": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "d_ff": 96}


@pytest.fixture(scope="module")
def python():
    found = engine("VLLM_PYTHON")
    if found is None:
        pytest.skip("VLLM_PYTHON is not set")
    return found


@pytest.mark.parametrize("shape", ["causal", "prefix"])
def test_greedy_tokens_are_ours(shape, python, tmp_path, tokenizer_model):
    model = randomised(ModelConfig(**SIZES, shape=shape, init_std=0.15))
    folder = export(model, tmp_path / "out", tokenizer_model)
    with server(python, folder, tmp_path / "server.log") as url:
        for prompt in tokens(*LENGTHS):
            wanted = {"max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            answer = ask(f"{url}/v1/completions", {"model": str(folder), "prompt": prompt.tolist()} | wanted)
            assert torch.equal(torch.tensor(answer["choices"][0]["token_ids"]), greedy(model, prompt, NUM_NEW))


@contextlib.contextmanager
def server(python, folder, log):
    """vLLM's own server of a folder; its address."""
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "128"]
    here = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | here)
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
