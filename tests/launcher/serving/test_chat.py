"""Chats by a folder's template, which is a program of somebody else's."""

import json
import shutil
from types import SimpleNamespace

import openai
import pytest

from common.mistakes import Mistake
from launcher.generate import generate
from launcher.serving import chat
from launcher.serving.loaded import load
from launcher.serving.running import open_socket, serving

TEMPLATE = """{%- set ns = namespace(n=0) %}{{ bos_token }}{% for message in messages %}
  {%- if message['role'] not in ['user', 'system', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}
[{{ message.role | upper }}] {{ message.content | trim }} {{ message | tojson }}
{% generation %}{% set ns.n = ns.n + 1 %}{% endgeneration %}{% if ns.n > 9 %}{% break %}{% endif %}
{% endfor %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"""
CHATS = [
    [{"role": "user", "content": " hello <b> "}],
    [{"role": "system", "content": "be \u4f60"}, {"role": "user", "content": "x"}],
]


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders("causal"), tmp_path / "chatty")


def test_prompts_are_those_that_transformers_makes(folder):
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load(folder).tokenizer
    assert tokenizer.chat_template is None, "transformers does not see it"
    expected = [
        tokenizer.apply_chat_template(each, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)
        for each in CHATS
    ]
    assert chat.rendered(folder, tokenizer, CHATS) == expected
    (answer,) = generate(folder, ["hello"], chat=True, max_new_tokens=3, temperature=0)
    assert answer and "hello" not in answer


def test_chats_are_answered_over_http_streamed_or_not(folder):
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (expected,) = generate(folder, ["hello"], chat=True, max_new_tokens=8, temperature=0)
    with serving(load(folder), open_socket("127.0.0.1", 0), "chatty", chat=True) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
        for content in ("hello", parts):
            how = {"model": "chatty", "temperature": 0, "messages": [{"role": "user", "content": content}]}
            made = client.chat.completions.create(max_tokens=8, **how)
            assert (made.choices[0].message.role, made.choices[0].message.content) == ("assistant", expected)
        chunks = list(client.chat.completions.create(max_completion_tokens=8, stream=True, **how))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == made.choices[0].finish_reason
        with pytest.raises(openai.BadRequestError, match="no such role"):
            client.chat.completions.create(model="chatty", messages=[{"role": "nobody", "content": "x"}])


def test_a_template_may_stand_in_the_settings_of_the_tokenizer_with_others_beside_it(folder):
    file = folder / "tokenizer_config.json"
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    assert chat.template_of(folder) == "yes"


def test_without_a_template_there_is_no_chat(folder):
    with pytest.raises(Mistake, match=r"it has no chat template .* leave out --chat"):
        chat.template_of(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ cycler.__init__.__globals__.os.system('touch PWNED') }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception.__globals__['sys'].exit(0) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('not for you') }}", "not for you"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "come to an end"),
        ("{{ 'x' * 8000000 }}", "it writes more than"),
        ("{{ 'x' * 8000000000 }}", "MemoryError"),
    ],
)
def test_hostile_templates_run_nothing_and_end_in_a_sentence(folder, template, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat, "SECONDS", 1)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(Mistake, match=rf"its chat template .*{said}"):
        chat.rendered(folder, SimpleNamespace(special_tokens_map={"bos_token": "<s>"}), CHATS)
    assert not (tmp_path / "PWNED").exists()
