"""Commands for what comes of a run: convert, import, generate, serve, evaluate."""

import json
from pathlib import Path
from typing import Annotated

import typer

from common.mistakes import Mistake, cut
from launcher.console import StageProgress, aside, console, say
from launcher.options import AsJson, RunFolder


def add_to(app: typer.Typer) -> None:
    """Gives the command line these commands."""
    app.command()(convert)
    app.command("import")(import_weights)
    for each in (generate, serve, evaluate):
        app.command()(each)


def convert(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write, or file of GGUF.")],
    to: Annotated[str, typer.Option(help="Target format: hf, a folder of Hugging Face's, or gguf, a file.")] = "hf",
    dtype: Annotated[
        str | None, typer.Option(help="How gguf stores matrices: f32, f16, bf16 or q8_0; unless said, f32.")
    ] = None,
    special_tokens_in_text: Annotated[
        bool | None,
        typer.Option(
            "--special-tokens-in-text/--no-special-tokens-in-text",
            help="Whether </s> or <mask> in a text mean the special tokens to the folder's tokenizer; unless said, "
            "they do where the objective hides tokens.",
        ),
    ] = None,
    with_tokenizer: Annotated[
        bool,
        typer.Option(
            "--with-tokenizer/--without-tokenizer",
            help="Without: the sentencepiece model as it is, where it has no exact form in Hugging Face's format; in "
            "gguf none.",
        ),
    ] = True,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence for the model card, as the Hub writes it: apache-2.0.")
    ] = None,
) -> None:
    """Writes the newest checkpoint as a servable Hugging Face folder or GGUF file, checked before it is published.

    Example: [bold]shardline convert runs/quickstart --to hf --out served/quickstart[/]
    """
    from launcher import stages, views

    if to == "gguf":
        if license_name is not None:
            raise Mistake("--license: it is for the model card of a folder, and a GGUF file has none; leave it out")
        _convert_to_gguf(run, out, dtype or "f32", special_tokens_in_text, with_tokenizer)
        return
    if to != "hf":
        raise Mistake(f"--to {cut(to)}: not a format that can be written; allowed: hf, gguf")
    if dtype is not None:
        raise Mistake(f"--dtype {cut(dtype)}: a folder of Hugging Face's is written as f32; leave it out")
    with StageProgress("converting") as progress:
        made = stages.convert(
            run,
            out,
            progress,
            special_tokens_in_text=special_tokens_in_text,
            with_tokenizer=with_tokenizer,
            license_name=license_name,
        )
    for line in views.passed_over(made.checkpoint):
        say(f"  {line}")
    say(views.conversion(made))


def _convert_to_gguf(
    run: Path, out: Path, dtype: str, special_tokens_in_text: bool | None, with_tokenizer: bool
) -> None:
    from launcher import views
    from launcher.gguf import convert_to_gguf

    if special_tokens_in_text is not None:
        raise Mistake(
            "--special-tokens-in-text: each call of llama.cpp says that itself (parse_special); leave it out with gguf"
        )
    with StageProgress("converting") as progress:
        made = convert_to_gguf(run, out, dtype, progress, with_tokenizer=with_tokenizer)
    for line in (*views.passed_over(made.checkpoint), *made.notes):
        say(f"  {line}")
    say(views.gguf_conversion(made))


def import_weights(
    folder: Annotated[Path, typer.Argument(metavar="HF_FOLDER", help="Model in Hugging Face's format.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    shape: Annotated[
        str | None,
        typer.Option("--as", metavar="SHAPE", help="Make a causal model into one of shape prefix, encoder or encdec."),
    ] = None,
) -> None:
    """Writes the weights of a Hugging Face folder so that a run can start from them, checked against transformers.

    Example: [bold]shardline import downloads/some-llama --out imported/some-llama[/]
    """
    from launcher import stages, views

    with StageProgress("importing") as progress:
        made = stages.import_weights(folder, out, progress, adapt_to=shape)
    say(views.imported(made))


def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Converted Hugging Face folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue, or to fill; may be given several times.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help='Prompts, one a line; in a .jsonl file {"prompt": ...}; - reads them in.'),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the folder's chat template, which runs in a sandbox.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, in tokens.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many likeliest tokens; 0 from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest that have this probability together.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes tokens that are there unlikelier.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling, of each prompt.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Continues texts with a converted model; an encoder fills each <mask>, an encoder-decoder answers.

    Example: [bold]shardline generate runs/quickstart/hf --prompt 'import '[/]
    """
    from launcher import generate as generation

    asked = [*(prompt or []), *(generation.prompts_of(prompts) if prompts is not None else [])]
    if not asked:
        raise Mistake("generate: there is no prompt; give --prompt TEXT or --prompts FILE")
    texts = generation.generate(
        folder,
        asked,
        chat=chat,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps([{"prompt": p, "text": t} for p, t in zip(asked, texts, strict=True)], indent=2))
    else:
        console.print("\n\n".join(texts), markup=False, soft_wrap=True)


def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Converted Hugging Face folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    engine: Annotated[str, typer.Option(help="auto, transformers or vllm; auto is vllm where it serves it.")] = "auto",
    name: Annotated[str | None, typer.Option(help="What clients call the model; the folder's name if empty.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer chats, by the folder's chat template, which runs in a sandbox.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts written at once, by transformers.")] = 8,
    vllm_python: Annotated[str | None, typer.Option(help="Python whose environment has vLLM; ours if empty.")] = None,
) -> None:
    """Serves a converted model by OpenAI's interface: completions, embeddings, gaps; Ctrl-C ends it.

    Example: [bold]shardline serve runs/quickstart/hf --port 8000[/]
    """
    from launcher.serve import serve as run

    how = {"host": host, "port": port, "engine": engine, "name": name, "chat": chat, "batch_size": batch_size}
    run(folder, **how, vllm_python=vllm_python)  # type: ignore[arg-type]


def evaluate(
    where: Annotated[Path, typer.Argument(metavar="RUN_OR_DIR", help="Run folder, or an exported one.")],
    task: Annotated[
        list[Path] | None,
        typer.Option(help="Questions, a jsonl file of query, choices and gold; may be given several times."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME_OR_YAML[,..]", help="Tasks of lm-eval, by name or as files of your own.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Tasks that are part of shardline: small.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Solved examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about so many documents of each task alone.")] = None,
    length: Annotated[
        int | None, typer.Option(min=2, max=2**24, help="Tokens read at once, in place of the model's own number.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Asks a model questions and tasks in the form its shape and objective know: a prefix model with the context as its
    prefix, an encoder-decoder with the context in its encoder, an encoder one mask after another.

    Example: [bold]shardline evaluate runs/quickstart --suite small[/]
    """
    from launcher import evaluate as evaluation

    chosen = [*filter(None, (tasks or "").split(",")), *(evaluation.suite(suite) if suite else [])]
    with aside(as_json):
        results = evaluation.evaluate(where, task or [], chosen, num_fewshot=num_fewshot, limit=limit, length=length)
    if as_json:
        typer.echo(json.dumps(evaluation.as_values(results), indent=2))
    else:
        evaluation.show(results)
    evaluation.record(results, limit=limit)
