"""A real server over HTTP, asked by OpenAI's own client, for a model of each shape."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from common.mistakes import Mistake
from launcher.generate import generate
from launcher.serve import to_try
from launcher.serving.api import MOST_BYTES
from launcher.serving.loaded import load
from launcher.serving.running import open_socket, serving
from launcher.serving.sampling import Sampling
from launcher.serving.worker import Busy, Ending, Worker
from launcher.serving.writing import Row

GREEDY = {"temperature": 0, "max_tokens": 10}


@pytest.fixture(scope="module")
def servers(folders):
    """(address, what is served) of a server for each shape, started when it is asked for, once."""
    made = {}
    with contextlib.ExitStack() as stack:

        def server(shape):
            if shape not in made:
                loaded = load(folders(shape))
                made[shape] = stack.enter_context(serving(loaded, open_socket("127.0.0.1", 0), shape)), loaded
            return made[shape]

        yield server


@pytest.fixture(scope="module")
def clients(servers):
    return lambda shape: openai.OpenAI(base_url=f"{servers(shape)[0]}/v1", api_key="none", max_retries=0)


def post(address, path, body):
    """(status, answer) of a request made by hand."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("shape", ["causal", "prefix", "t5", "encdec"])
def test_completions_are_what_generate_writes_streamed_or_not(shape, clients, folders):
    prompts = ["import os", "def f(x):"]
    client = clients(shape)
    made = client.completions.create(model=shape, prompt=prompts, **GREEDY)
    texts = [choice.text for choice in made.choices]
    written = generate(folders(shape), prompts, max_new_tokens=10, temperature=0)
    starts = prompts if shape in ("causal", "prefix") else ["", ""]
    assert [start + text for start, text in zip(starts, texts, strict=True)] == written
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens

    pieces = {0: [], 1: []}
    usage = {"stream_options": {"include_usage": True}}
    for chunk in client.completions.create(model=shape, prompt=prompts, stream=True, **usage, **GREEDY):
        for choice in chunk.choices:
            pieces[choice.index].append(choice.text)
    assert ["".join(pieces[index]) for index in (0, 1)] == texts
    assert chunk.usage == made.usage and max(map(len, pieces.values())) > 1


def test_samples_follow_their_seeds_whoever_else_asks(clients):
    client = clients("causal")

    def ask(seed):
        made = client.completions.create(model="causal", prompt="x = ", n=2, seed=seed, temperature=1.5, top_p=0.9)
        return [choice.text for choice in made.choices]

    alone = [ask(seed) for seed in range(4)]
    assert alone[0][1] == alone[1][0] and len({texts[0] for texts in alone}) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone


def test_stop_strings_echo_and_probabilities(clients, servers):
    client, (_, loaded) = clients("causal"), servers("causal")
    plain = client.completions.create(model="causal", prompt="import", **GREEDY).choices[0]
    assert plain.finish_reason == "length"
    stop = plain.text[3:5]
    cut = client.completions.create(model="causal", prompt="import", stop=stop, **GREEDY).choices[0]
    assert (cut.text, cut.finish_reason) == (plain.text[: plain.text.index(stop)], "stop")

    ids = loaded.encode("import os")
    told = client.completions.create(model="causal", prompt=ids, echo=True, logprobs=2, temperature=0, max_tokens=1)
    expected = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = told.choices[0].logprobs
    assert told.choices[0].text.startswith("import os") and len(found.tokens) == len(ids) + 1
    assert found.token_logprobs[0] is None
    assert found.text_offset[:2] == [0, 0], "what opens a prompt is no letter of its text"
    assert found.text_offset[-1] < len(told.choices[0].text)
    for place, index in enumerate(ids[1:]):
        assert found.token_logprobs[place + 1] == pytest.approx(expected[place, index].item(), abs=1e-4)
    assert found.token_logprobs[-1] == pytest.approx(max(found.top_logprobs[-1].values()), abs=1e-6)
    assert [len(top) >= 2 for top in found.top_logprobs[1:]] == [True] * len(ids)


def test_an_encoder_gives_vectors_and_fills_gaps(clients, servers, folders):
    (address, loaded), client = servers("encoder"), clients("encoder")
    texts = ["import os", "def f(x): return x"]
    by_default = client.embeddings.create(model="encoder", input=texts)
    as_floats = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    for text, one, other in zip(texts, by_default.data, as_floats.data, strict=True):
        ids = torch.tensor([loaded.encode(text)])
        expected = loaded.model.model(ids).last_hidden_state[0].mean(0).tolist()
        assert one.embedding == pytest.approx(expected, abs=1e-5)
        assert other.embedding == pytest.approx(expected, abs=1e-5)
    assert by_default.usage.total_tokens == sum(len(loaded.encode(text)) for text in texts)

    status, answer = post(address, "/v1/fill-mask", {"input": ["x = <mask><mask>"], "top_k": 3})
    (filled,) = answer["data"]
    assert status == 200 and [len(gap) for gap in filled["gaps"]] == [3, 3]
    assert filled["text"] == generate(folders("encoder"), ["x = <mask><mask>"], temperature=0)[0]
    assert filled["text"] == "x = " + "".join(gap[0]["text"] for gap in filled["gaps"])


def test_what_is_served_is_listed(clients, servers):
    assert [model.id for model in clients("causal").models.list()] == ["causal"]
    assert clients("causal").models.retrieve("causal").owned_by == "shardline"
    with urllib.request.urlopen(f"{servers('causal')[0]}/health") as answer:
        assert json.load(answer) == {"status": "ok", "model": "causal", "shape": "decoder"}
    assert to_try("http://x:1", "decoder", "x").startswith("curl http://x:1/v1/completions --json '{")


BAD = {
    "no prompt": ("causal", "/v1/completions", {}, 400, "prompt: it is missing"),
    "an empty list": ("causal", "/v1/completions", {"prompt": []}, 400, "prompt: it is empty"),
    "an unknown key": ("causal", "/v1/completions", {"prompt": "x", "beams": 2}, 400, "beams: no such key"),
    "a wrong type": ("causal", "/v1/completions", {"prompt": "x", "n": "2"}, 400, "n: '2' was found; input"),
    "out of bounds": ("causal", "/v1/completions", {"prompt": "x", "top_p": 2}, 400, "top_p: 2.0 was found"),
    "below 0": ("causal", "/v1/completions", {"prompt": "x", "max_tokens": -1}, 400, "max_tokens: -1 was found"),
    "too long": ("causal", "/v1/completions", {"prompt": "x " * 400}, 400, "prompt: it has"),
    "half a character": ("causal", "/v1/completions", {"prompt": "\ud800"}, 400, "prompt: it holds half a character"),
    "no token": ("causal", "/v1/completions", {"prompt": [10**9]}, 400, "prompt: 1000000000 is no token"),
    "not done": ("causal", "/v1/completions", {"prompt": "x", "suffix": "y"}, 400, "suffix: 'y' was found"),
    "echo of a prefix": ("prefix", "/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1}, 400, "echo: with"),
    "another model": ("causal", "/v1/completions", {"prompt": "x", "model": "y"}, 404, "model: 'y' is not served"),
    "gaps of a decoder": ("causal", "/v1/fill-mask", {"input": "<mask>"}, 400, "causal is a decoder, which goes on"),
    "vectors of a decoder": ("causal", "/v1/embeddings", {"input": "x"}, 400, "ask /v1/completions"),
    "text of an encoder": ("encoder", "/v1/completions", {"prompt": "x"}, 400, "ask /v1/fill-mask or /v1/embeddings"),
    "no gap": ("encoder", "/v1/fill-mask", {"input": "x"}, 400, "input: 'x' has no <mask>"),
    "chat": ("causal", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, 400, "without --chat"),
    "no JSON": ("causal", "/v1/completions", b"{", 400, "the body is no JSON"),
    "too deep": ("causal", "/v1/completions", b'{"prompt": ' + b"[" * 10**5, 400, "its JSON is nested too deeply"),
    "too many digits": (
        "causal",
        "/v1/completions",
        b'{"n": ' + b"1" * 5000 + b"}",
        400,
        "a number of too many digits",
    ),
    "no text": ("causal", "/v1/completions", b'{"prompt": "\xff"}', 400, "it is no UTF-8"),
    "no body": ("causal", "/v1/completions", b"", 400, "body: it is missing"),
    "only to be read": ("causal", "/health", b"", 405, "POST /health is not answered here"),
    "no such path": ("causal", "/v1/other", {}, 404, "/v1/other is not answered here"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_openais_error_object_with_a_sentence(case, servers):
    shape, path, body, status, said = BAD[case]
    found, answer = post(servers(shape)[0], path, body)
    assert found == status and set(answer["error"]) == {"message", "type", "param", "code"}
    assert said in answer["error"]["message"]
    key, colon, _ = said.partition(":")
    if colon:
        assert answer["error"]["param"] == key


def test_a_body_larger_than_any_prompt_is_not_read(servers):
    host, port = servers("causal")[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {MOST_BYTES + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 400 " in connection.recv(100)


def test_more_than_may_wait_is_refused_and_the_end_of_the_server_ends_what_runs(servers):
    _, loaded = servers("causal")
    rows = [Row.of(loaded, [5], Sampling(max_new_tokens=100, temperature=0)) for _ in range(4)]
    begun = threading.Event()
    rows[0].tell = lambda row: begun.set()
    worker = Worker(loaded, most_rows=1, most_waiting=2)
    with worker:
        worker.write(rows[:1])
        begun.wait()
        worker.write(rows[1:3])
        with pytest.raises(Busy, match="2 requests wait already"):
            worker.write(rows[3:])
        with pytest.raises(Mistake, match="these are 4 texts, and at most 2 wait here"):
            worker.write(rows)
    assert all(isinstance(row.error, Ending) for row in rows[:3]) and not rows[1].taken


def test_a_port_that_is_taken_is_refused_in_a_sentence():
    with open_socket("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(
            Mistake, match=rf"--port: 127.0.0.1:{port} cannot be listened on \(Address already in use\)"
        ):
            open_socket("127.0.0.1", port)
    with pytest.raises(Mistake, match=r"--host: no\.such\.host\.invalid is no address of this machine"):
        open_socket("no.such.host.invalid", 0)


def test_the_command_says_where_it_serves_and_ends_at_once_on_a_signal(folders):
    command = [sys.executable, "-m", "launcher.cli", "serve", str(folders("causal")), "--port", "0", "--name", "tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as child:
        said, tried = child.stdout.readline(), child.stdout.readline()
        address = said.split(" at ")[1].split(",")[0]
        assert tried.strip() == to_try(address, "decoder", "import ")
        status, answer = post(address, "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 2})
        assert status == 200 and answer["usage"]["completion_tokens"] == 2
        asked = {"model": "tiny", "prompt": "x", "max_tokens": 100, "n": 8}
        with ThreadPoolExecutor(1) as pool:
            cut_off = pool.submit(post, address, "/v1/completions", asked)
            time.sleep(0.3)
            child.send_signal(signal.SIGTERM)
            out, err = child.communicate(timeout=60)
            status, answer = cut_off.result()
        assert status == 503 and answer["error"]["message"].startswith("the server was ended before the answer was")
        assert (child.returncode, out, err) == (0, "", "")
