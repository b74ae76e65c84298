"""The main job on this machine: text every machine has, to a model that writes.

standard library -> documents.jsonl -> tokenizer -> shards -> training -> Hugging Face folder -> text -> an answer over
HTTP -> report.html

Every stage reuses what an earlier start has finished, so the same command goes on where it stopped.
"""

import json
import os
import shlex
import shutil
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape

from common.files import written_aside
from common.mistakes import Mistake, cut
from launcher import serve, stages, views
from launcher.config import load_config
from launcher.console import StageProgress, console, duration, number, say
from launcher.local import train_locally
from launcher.report import write_report
from launcher.run_folder import RunFolder
from training.config import RunConfig

CONFIG_FILE = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
PROMPTS = ("def __init__(self, ", '"""Return the ', "import ")
NEW_TOKENS = 60
SHAPES = {
    "causal": [],
    "prefix": ["name=quickstart-prefix", "model.shape=prefix", "objective.name=prefix_lm"],
    "encoder": ["name=quickstart-encoder", "model.shape=encoder", "objective.name=masked_lm"],
    "encdec": [
        *("name=quickstart-encdec", "model.shape=encdec", "objective.name=span_corruption"),
        *("model.num_layers=2", "model.num_encoder_layers=2"),
    ],
}
"""What each shape changes in the config; tokenizer and dataset serve all of them."""
GAPS = {"encoder": "<mask>", "encdec": "<extra_id_0>"}
"""What marks the place that a model is asked for, where that is not the end."""


def quickstart(overrides: Sequence[str], shape: str = "causal") -> None:
    """Runs all stages with progress and ends with a summary of what lies where."""
    if shape not in SHAPES:
        raise Mistake(f"--shape {cut(shape)}: no such shape; allowed: {', '.join(SHAPES)}")
    serve.require_extra()
    started = time.monotonic()
    config = load_config(CONFIG_FILE, [*_for_this_machine(), *SHAPES[shape], *overrides])
    documents = Path(config.data.sources[0].path)
    out = config.run_dir / "hf"

    _stage(1, "Collect text", lambda: _collect(documents))
    _stage(2, "Train the tokenizer", lambda: _train_tokenizer(config))
    _stage(3, "Build the dataset", lambda: _build_data(config))
    _stage(4, f"Train on {config.training.num_processes} ranks", lambda: views.training(train_locally(config)))
    _stage(5, "Convert for serving", lambda: _convert(config, out))
    samples: list[str] = []
    _stage(6, "Generate from the converted folder", lambda: _generate(out, config.model.shape, samples))
    _stage(7, "Serve it, and ask over HTTP", lambda: _serve(out, config.model.shape))
    report = write_report(config, "\n\n".join(samples))
    _summary(config, out, report, time.monotonic() - started)


def _for_this_machine() -> list[str]:
    """The config's two ranks need a GPU each, where there are GPUs."""
    import torch

    return ["training.num_processes=1"] if torch.cuda.device_count() == 1 else []


def _stage(index: int, title: str, work: Callable[[], str]) -> None:
    console.print(f"[bold]\\[{index}/7] {title}[/]")
    started = time.monotonic()
    outcome = work()
    console.print(f"  {escape(outcome)} [dim]({duration(time.monotonic() - started)})[/]", soft_wrap=True)


def _collect(documents: Path) -> str:
    """Writes the standard library's modules as documents, one JSON line each."""
    library = Path(sysconfig.get_paths()["stdlib"])
    if documents.exists():
        return f"reused {documents}"
    documents.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with written_aside(documents) as out:
        for path in sorted(library.rglob("*.py")):
            name = path.relative_to(library)
            if SKIPPED_FOLDERS.isdisjoint(name.parts):
                text = path.read_text(encoding="utf-8", errors="replace")
                out.write(json.dumps({"text": text, "source": str(name)}).encode() + b"\n")
                count, size = count + 1, size + len(text)
    return f"{count} modules of the standard library, {size / 1e6:.1f} MB of code and documentation"


def _train_tokenizer(config: RunConfig) -> str:
    with StageProgress("looking at the sources") as progress:
        return views.tokenizer(stages.train_tokenizer(config, progress))


def _build_data(config: RunConfig) -> str:
    with StageProgress("starting Ray") as progress:
        return views.data(stages.build_data(config, progress))


def _convert(config: RunConfig, out: Path) -> str:
    with StageProgress("converting") as progress:
        made = stages.convert(config.run_dir, out, progress)
    for line in views.passed_over(made.checkpoint):
        say(f"  {line}")
    return views.conversion(made)


def _generate(folder: Path, shape: str, samples: list[str]) -> str:
    from launcher.generate import generate

    prompts = [prompt + GAPS.get(shape, "") for prompt in PROMPTS]
    samples += generate(folder, prompts, max_new_tokens=NEW_TOKENS, temperature=0.7, seed=0)
    for sample in samples:
        console.print("\n".join(f"  | {line}" for line in sample.splitlines()), markup=False)
    return f"{len(samples)} samples by transformers"


def _serve(folder: Path, shape: str) -> str:
    """Starts the server that `shardline serve` starts, asks it once, and ends it."""
    from launcher.serving.loaded import load
    from launcher.serving.running import open_socket, serving
    from model.exchange.in_transformers import quiet_transformers

    loaded = load(folder)
    path, body = serve.question(loaded.kind, f"import {GAPS.get(shape, '')}")
    with quiet_transformers(), open_socket("127.0.0.1", 0) as opened, serving(loaded, opened, folder.name) as address:
        request = urllib.request.Request(
            address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
    say(f"  POST {address}{path} {json.dumps(body)}")
    text = (answer.get("choices") or answer["data"])[0]["text"]
    say("\n".join(f"  | {line}" for line in text.splitlines()))
    return f"answered by {loaded.architecture.name}"


def _summary(config: RunConfig, out: Path, report: Path, seconds: float) -> None:
    run = RunFolder.read(config.run_dir)
    tokens = f", {number(float(run.last['tokens_consumed']))} tokens" if run.last.get("tokens_consumed") else ""
    rows = [
        ("dataset", config.data.path),
        ("tokenizer", config.tokenizer.path),
        ("run", f"{config.run_dir}: {run.step} steps{tokens}"),
        ("checkpoints", str(config.run_dir / "checkpoints")),
        *([("held-out loss", views.held_out_loss(run.evaluation))] if run.evaluation else []),
        ("servable model", str(out)),
        ("report", str(report)),
    ]
    console.print(f"\n[bold green]Done in {duration(seconds)}.[/]")
    for name, value in rows:
        say(f"  {name:15} {value}")
    shardline = _own_command()
    console.print("\nNext:")
    for words in (
        ("generate", out, "--prompt", f"class {GAPS.get(config.model.shape, '')}"),
        ("serve", out),
        ("data", "inspect", config.data.path, "--tokenizer", config.tokenizer.path),
        ("train", config.run_dir / "config.yaml", "--set", "name=longer", "--set", "training.steps=2000"),
    ):
        say(f"  {shardline} {shlex.join(map(str, words))}")


def _own_command() -> str:
    """How to call this command again: by its name where the shell finds it, else by its path."""
    here, found = Path(sys.argv[0]).absolute(), shutil.which("shardline")
    if found and Path(found).absolute() == here:
        return "shardline"
    return os.path.relpath(here) if here.name == "shardline" else f"{sys.executable} -m launcher.cli"
