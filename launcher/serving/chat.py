"""Chats as the prompts that a model was trained on, by the template that lies in its folder.

    messages + chat_template.jinja -> a process of its own -> text

A template is a program of somebody else's. It runs only where a chat is asked for, in jinja2's immutable sandbox, which
gives it no attribute that leads out of its values, and in a process of its own with little time and memory, since the
sandbox does not keep it from loops without end.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.mistakes import Mistake, cut

MOST_TEMPLATE, MOST_RENDERED = 2**18, 2**22
"""Letters of a template, and of what it makes of all chats together."""
SECONDS, BYTES = 5, 2**30
"""Time of a processor and memory that the process may take."""
PATIENCE = 120
"""Seconds that it may take in all, on a machine with much else to do."""
Message = dict[str, str]


def template_of(folder: Path) -> str:
    """The chat template of a folder. Mistake when it has none that is used here."""
    from model.exchange.json_objects import read_object

    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        if file.stat().st_size > 4 * MOST_TEMPLATE:
            raise Mistake(f"{file}: it is larger than any chat template; take the one it was published with")
        found: Any = file.read_text(encoding="utf-8", errors="replace")
    else:
        found = read_object(settings).get("chat_template") if settings.is_file() else None
        if isinstance(found, list):
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
    if not isinstance(found, str):
        raise Mistake(
            f"{folder}: it has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), so "
            "it was not made for chats; leave out --chat"
        )
    if len(found) > MOST_TEMPLATE:
        raise Mistake(f"{folder}: its chat template has {len(found)} letters, more than {MOST_TEMPLATE}")
    return found


def rendered(folder: Path, tokenizer: Any, chats: Sequence[Sequence[Message]]) -> list[str]:
    """A prompt for each chat, which ends where the model is to speak. Mistake when the template gives none."""
    tokens = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    task = {"template": template_of(folder), "chats": list(map(list, chats)), "tokens": tokens, "seconds": SECONDS}
    command = [sys.executable, "-P", "-c", "from launcher.serving.chat import main; main()"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = subprocess.run(
            command, input=json.dumps(task).encode(), env=environment, capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode < 0:
        raise Mistake(f"{folder}: its chat template does not come to an end within {SECONDS} s; nothing was written")
    if done.returncode:
        reason = cut(done.stderr.decode(errors="replace").strip(), 200)
        raise Mistake(f"{folder}: its chat template does not work ({reason})")
    return json.loads(done.stdout)


def main() -> None:
    """The process: a task in JSON from standard input, prompts in JSON to standard output."""
    import resource

    task = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_CPU, (task["seconds"], task["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        prompts = render(task["template"], task["chats"], task["tokens"])
    except Exception as error:  # a template raises what it pleases
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(json.dumps(prompts))


def render(template: str, chats: Sequence[Sequence[Message]], tokens: dict[str, str]) -> list[str]:
    """What a template makes of chats, with the names that transformers gives to templates."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_blocks()]
    )
    sandbox.filters["tojson"] = _tojson
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    made, prompts = sandbox.from_string(template), []
    for chat in chats:
        parts, size = [], 0
        for part in made.generate(messages=chat, add_generation_prompt=True, **tokens):
            size += len(part)
            if size > MOST_RENDERED:
                raise ValueError(f"it writes more than {MOST_RENDERED} letters")
            parts.append(part)
        prompts.append("".join(parts))
    return prompts


def _generation_blocks() -> Any:
    """Lets a template mark the model's part of a chat, which means nothing for a prompt."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **how)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _now(form: str) -> str:
    import datetime

    return datetime.datetime.now().strftime(form)
