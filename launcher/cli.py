"""The command `shardline`: every stage of the way from text to a servable model."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from common.mistakes import Mistake
from launcher import cluster_cli, model_cli
from launcher.checkpoint_cli import checkpoint_app
from launcher.console import Commands, StageProgress, aside, command, console, mistakes_as_sentences, number, say
from launcher.options import AsJson, ConfigFile, Overrides

app = typer.Typer(
    cls=Commands,
    help="Distributed pretraining of language models: from raw text to a servable model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Tokenizers.", no_args_is_help=True)
data_app = typer.Typer(help="Datasets: build, look inside, verify.", no_args_is_help=True)
model_app = typer.Typer(help="Presets: published models by name.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(model_app, name="model")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")

MARKS = {"good": "[green]ok[/]", "optional": "[yellow]--[/]", "bad": "[red]no[/]"}


def main() -> None:
    """Runs the command line."""
    logging.captureWarnings(True)
    with mistakes_as_sentences():
        app()


@app.command()
def quickstart(
    overrides: Overrides = None,
    shape: Annotated[str, typer.Option(help="Shape of the model: causal, prefix, encoder or encdec.")] = "causal",
) -> None:
    """Runs the main job on this machine, small: text, tokenizer, shards, training, conversion, an answer over HTTP.

    Example: [bold]shardline quickstart --shape encdec[/]
    """
    from launcher.quickstart import quickstart as run

    run(overrides or [], shape)


@tokenizer_app.command("train")
def tokenizer_train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Trains the tokenizer of a config on its sources.

    Example: [bold]shardline tokenizer train configs/quickstart.yaml[/]
    """
    from launcher import stages, views
    from launcher.config import load_config

    loaded = load_config(config, overrides or [])
    with StageProgress("looking at the sources") as progress:
        made = stages.train_tokenizer(loaded, progress)
    say(views.tokenizer(made))


@data_app.command("build")
def data_build(
    config: ConfigFile,
    overrides: Overrides = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Only show what the filters do to so many documents of all sources; writes nothing."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, with --sample.")] = False,
) -> None:
    """Builds the dataset of a config with Ray Data: documents to shards; goes on after a kill.

    Example: [bold]shardline data build configs/quickstart.yaml --set data.num_cpus=2[/]
    """
    from launcher import stages, views
    from launcher.config import load_config

    loaded = load_config(config, overrides or [])
    if as_json and sample is None:
        raise Mistake("--json: goes with --sample 1000; the counts of a build are in its manifest.json")
    if sample is not None:
        from launcher import sample as samples

        with aside(as_json), StageProgress("taking a sample") as progress:
            progress.note("running the filters on a sample of the documents")
            report = samples.take(loaded, sample)
        if as_json:
            typer.echo(samples.as_json(report))
        else:
            samples.show(report, loaded)
        return
    with StageProgress("starting Ray") as progress:
        built = stages.build_data(loaded, progress)
    say(views.data(built))


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder; without it no samples are shown.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Config of a run: its shape, objective, lengths and tokenizer, and no others.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to show samples of.")] = "train",
    samples: Annotated[int, typer.Option(min=0, help="How many samples to show.")] = 2,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a sample, without --config.")] = 2048,
    as_json: AsJson = False,
) -> None:
    """Shows what is in a dataset: counts, and samples decoded as the model will see them, with document borders.

    Example: [bold]shardline data inspect data/quickstart/dataset --config configs/quickstart.yaml[/]
    """
    from launcher import inspection

    facts = inspection.look(folder, tokenizer, config, split, samples, sequence_length)
    if as_json:
        typer.echo(inspection.as_json(facts))
    else:
        inspection.show(facts)


@data_app.command("report")
def data_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder; without it no languages are told.")] = None,
    config: Annotated[Path | None, typer.Option(help="Config of a run: its tokenizer, and its mix.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; report.html in DIR if not given.")] = None,
) -> None:
    """Writes a page about a dataset: sources, lengths, languages, what was dropped and why, near copies, the mix.

    Example: [bold]shardline data report data/quickstart/dataset --config configs/quickstart.yaml[/]
    """
    from launcher.config import load_config
    from launcher.data_report import write_data_report

    page = write_data_report(folder, tokenizer, load_config(config) if config else None, out)
    say(f"{page}: written; open it in a browser")


@data_app.command("verify")
def data_verify(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.")]) -> None:
    """Reads every byte of a dataset and compares it with its checksums.

    Example: [bold]shardline data verify data/quickstart/dataset[/]
    """
    from data_pipeline.reading.inspect import verify_dataset

    with StageProgress("verifying bytes") as progress:
        size = verify_dataset(folder, progress.update)
    say(f"{folder}: {number(float(size))} bytes read, every block as it was written")


@app.command()
def train(
    config: ConfigFile,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks on this machine, in place of the config's.")] = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse to go on with a run that exists.")] = False,
) -> None:
    """Trains on this machine, going on from the newest checkpoint when the run exists.

    Example: [bold]shardline train configs/quickstart.yaml --nproc 2 --set training.steps=100[/]
    """
    from launcher import views
    from launcher.config import load_to_start
    from launcher.local import train_locally

    changes = [*(overrides or []), *([f"training.num_processes={nproc}"] if nproc is not None else [])]
    result = train_locally(load_to_start(config, changes), fresh=fresh)
    say(views.training(result))
    say(f"run folder: {result.run_dir}; next: {command('convert', result.run_dir, '--to', 'hf', '--out', 'DIR')}")


model_cli.add_to(app)


@app.command()
def plan(
    config: ConfigFile,
    gpu: Annotated[str, typer.Option(help="GPU of the catalogue, configs/machines.yaml.")],
    nodes: Annotated[int, typer.Option(min=1, max=100_000, help="Nodes of it.")] = 1,
    gpus: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="GPUs in all, instead of whole nodes.")] = None,
    overrides: Overrides = None,
    document_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a document on average; without it documents fill their rows.")
    ] = None,
    efficiency: Annotated[float, typer.Option(help="Share of the peak that matrix products reach.")] = 0.43,
    search: Annotated[bool, typer.Option("--search", help="Show the layouts that fit, the fastest first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Says what a run will take before it is started: memory of a GPU, time of a step, days, and what would fit.

    Example: [bold]shardline plan run.yaml --gpu h100-80gb --nodes 64 --search[/]
    """
    from launcher import plan as plans

    how = {"gpu": gpu, "nodes": nodes, "gpus": gpus, "document_length": document_length, "efficiency": efficiency}
    ours, better = plans.make(config, overrides or [], searching=search or as_json, **how)  # type: ignore[arg-type]
    if as_json:
        typer.echo(plans.as_json(ours, better))
    else:
        plans.show(ours, better, all_layouts=search)


@app.command()
def verify(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of the run.")] = None,
    overrides: Overrides = None,
    grid: Annotated[bool, typer.Option("--grid", help="All ways to train instead of that of a config.")] = False,
    ranks: Annotated[int | None, typer.Option(min=1, max=64, help="How many ranks; as the config if empty.")] = None,
    as_json: AsJson = False,
) -> None:
    """Proves that ranks of this machine train as a plain loop does: a config's way of training, at a small size.

    Compares losses, gradient norms, both moments and the weights of every parameter; exit code 1 when one differs by
    more than rounding explains.

    Example: [bold]shardline verify books.yaml --set training.zero_stage=3[/]
    """
    from launcher import verify as verification

    cases = verification.cases_of(config, overrides or [], grid=grid)
    num_ranks = ranks or verification.default_ranks(None if grid else next(iter(cases(1).values())))
    with aside(as_json):
        verdicts = verification.verify(cases(num_ranks), num_ranks)
    if as_json:
        typer.echo(
            json.dumps([dataclasses.asdict(verdict) | {"holds": verdict.holds} for verdict in verdicts], indent=2)
        )
    else:
        verification.show(verdicts)
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(1)


@model_app.command("shapes")
def model_shapes() -> None:
    """Prints which objective means what for which shape of model, as a table in Markdown.

    Example: [bold]shardline model shapes[/]
    """
    from data_pipeline.reading.grid import markdown_table

    typer.echo(markdown_table(), nl=False)


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prints a config with every default filled in, after checking it.

    Example: [bold]shardline config show configs/quickstart.yaml --set training.zero_stage=3[/]
    """
    from launcher.config import load_config, to_yaml

    loaded = load_config(config, overrides or [])
    typer.echo(loaded.model_dump_json(indent=2) if as_json else to_yaml(loaded), nl=as_json)


@config_app.command("schema")
def config_schema() -> None:
    """Prints the JSON schema of configs: every key with its meaning; editors complete and check with it.

    Example: [bold]shardline config schema > shardline.schema.json[/]
    """
    from launcher.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@model_app.command("list")
def model_list(
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/models.md.")] = False,
) -> None:
    """Lists the presets, our number of parameters beside the published one; `model: {preset: NAME}` uses one.

    Example: [bold]shardline model list[/]
    """
    from launcher import models

    rows = models.listing()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif as_markdown:
        typer.echo(models.as_markdown(rows), nl=False)
    else:
        models.show(rows)


@model_app.command("show")
def model_show(name: Annotated[str, typer.Argument(metavar="NAME", help="Preset, as llama-7b.")]) -> None:
    """Prints a preset as the `model:` section of a config, with its source and how it differs from the published model.

    Example: [bold]shardline model show llama2-70b[/]
    """
    from launcher import models

    typer.echo(models.describe(models.load(name)), nl=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Says whether this machine is fit to train, and what to do where it is not; exit code 1 when it is not.

    Example: [bold]shardline doctor[/]
    """
    from launcher.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        table = Table(box=None, show_header=False)
        for finding in findings:
            table.add_row(MARKS[finding.state], *map(escape, (finding.what, finding.found, finding.advice)))
        console.print(table)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


cluster_cli.add_to(app)

if __name__ == "__main__":
    main()
