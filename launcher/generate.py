"""A look at what a converted model writes, through `transformers` and nothing of ours.

decoders            prompt -> the prompt and how it goes on
encoder-decoders    prompt -> what the decoder says of it, sentinels and all
encoders            prompt with <mask> in it -> the prompt with the likeliest piece in place of each
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.json_lines import parse_json
from common.mistakes import Mistake, shown

BATCH_SIZE = 8
"""Prompts that are written for at once."""


def generate(
    folder: Path, prompts: Sequence[str], *, chat: bool = False, batch_size: int = BATCH_SIZE, **sampling: Any
) -> list[str]:
    """One text for each prompt, in batches; `sampling` are keys of `launcher.serving.sampling.Sampling`.

    What is written for a prompt does not depend on the others. chat: prompts are what a user says to a model, put into
    the folder's chat template. Nothing of the folder is run but, with `chat`, that template, in a sandbox.
    Raises ValueError when the folder holds no model of the classes that are written here, or when a prompt for an
    encoder has no mask in it.
    """
    from launcher.serving.loaded import load
    from launcher.serving.sampling import Sampling
    from model.exchange.in_transformers import quiet_transformers

    settings = Sampling.of(_option, **sampling)
    loaded = load(folder)
    if chat:
        from launcher.serving.chat import rendered

        prompts = rendered(folder, loaded.tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts])
    with quiet_transformers():
        speak = _fill if loaded.kind == "encoder" else _write
        texts: list[str] = []
        for start in range(0, len(prompts), batch_size):
            texts += speak(loaded, prompts[start : start + batch_size], settings, chat)
    return texts


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def _write(loaded: Any, prompts: Sequence[str], settings: Any, chat: bool) -> list[str]:
    from launcher.serving.writing import Row, write

    rows = [Row.of(loaded, loaded.encode(prompt, as_it_is=chat), settings) for prompt in prompts]
    write(loaded, rows)
    if chat or loaded.kind == "encdec":
        return [row.text.text for row in rows]
    return [prompt + row.text.text for prompt, row in zip(prompts, rows, strict=True)]


def _fill(loaded: Any, prompts: Sequence[str], settings: Any, chat: bool) -> list[str]:
    """There are as many tokens as masks, so max_new_tokens limits nothing."""
    from launcher.serving.filling import fill, gaps_of

    if chat:
        raise Mistake(f"--chat: {loaded.path} holds an encoder, which fills gaps and does not answer; leave it out")
    return [
        filled.text for filled in fill(loaded, [gaps_of(loaded, prompt, "--prompt") for prompt in prompts], settings)
    ]


def prompts_of(file: str) -> list[str]:
    """Prompts of a file, `-` for standard input: one a line, or in a .jsonl file objects with a `prompt`.

    Mistake when a line of JSON has none, or there are none at all.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Mistake(f"--prompts: {file} is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    lines = [line for line in text.split("\n") if line.strip()]
    prompts = list(_of_json(file, lines)) if file.endswith(".jsonl") else [line.removesuffix("\r") for line in lines]
    if not prompts:
        raise Mistake(f"--prompts: {file} holds no prompts; write one a line")
    return prompts


def _of_json(file: str, lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line.encode())
        except ValueError:
            record = None
        prompt = record.get("prompt") if isinstance(record, dict) else record
        if not isinstance(prompt, str):
            raise Mistake(f'--prompts: {file}, line {number}: {shown(line)} is no {{"prompt": "..."}}')
        yield prompt
