"""The model card of an exported folder, README.md: what the run's own files say of a checkpoint, and nothing else.

    config, identity of the checkpoint, manifest, metrics.jsonl, evaluations.jsonl -> facts -> README.md.j2

Text that a user chose (names of runs, sources, tasks) is escaped: none of it is read as Markdown, HTML or YAML.
"""

import json
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from common.json_lines import NUMBER, Form, Record, examine
from common.mistakes import Mistake, shown
from data_pipeline.manifest import FILE_NAME, Manifest, dropped_of
from launcher.evaluate import EVALUATIONS
from launcher.pages import template
from launcher.run_folder import metrics_of
from launcher.serving.vllm import only_with
from model.config import ModelConfig
from model.exchange.architectures import CAUSAL, MASKED, SEQ2SEQ, Architecture
from model.flops import num_parameters
from training.config import RunConfig
from training.state.identity import EXECUTION_KEYS, Saved

MOST_ROWS = 10
"""Rows of a table of losses."""
EVALUATED = Form({"step": int, "time": NUMBER, "task": str, "samples": int, "num_fewshot": int, "metrics": dict})
LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}")
"""How the Hub writes identifiers of licences: apache-2.0, mit, other."""
PIPELINES = {CAUSAL: "text-generation", MASKED: "fill-mask", SEQ2SEQ: "text2text-generation"}
"""The Hub's name of what a class of models is for."""
TOLD = {"shape", "num_layers", "num_encoder_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim"}
TOLD |= {"activation", "norm", "positions", "vocab_size", "tie_embeddings", "init_std"}
"""Keys of a model that the card tells in words of its own; others stand there by name where somebody set them."""
Row = tuple[str, str]


class Plain(str):
    """Text that stands in the card as it is."""


class Checkpoint(NamedTuple):
    """What is exported, and of which run."""

    run_dir: Path
    config: RunConfig
    saved: Saved
    """What the checkpoint says of itself."""
    model: ModelConfig
    """The model as it was trained."""


def render(
    made: Checkpoint, found: Architecture, license_name: str | None = None, plain_tokenizer: str | None = None
) -> str:
    """The card of a checkpoint that is exported as a class. ValueError where the licence is not written as the Hub's.

    plain_tokenizer: the file that holds the tokenizer where it has no form of Hugging Face's.
    It says the same as long as the run's files say the same of this step.
    """
    if license_name is not None and not LICENSE.fullmatch(license_name):
        raise Mistake(
            f"--license: {shown(license_name)} is no identifier of the Hub's; write apache-2.0, mit, other ..."
        )
    lines = [line for line in metrics_of(made.run_dir) if line["step"] <= made.saved.state.step]
    manifest = _manifest(made.config)
    return template("README.md.j2", finalize=_escaped).render(
        front=Plain(_front_matter(made, found, license_name)),
        name=made.config.name,
        step=f"{made.saved.state.step:,}",
        version=version("shardline"),
        license_name=license_name,
        model_rows=_model_rows(made, found),
        data_rows=_data_rows(manifest) if manifest else [],
        dropped_rows=_dropped_rows(manifest) if manifest else [],
        source_rows=_source_rows(manifest, lines, made.saved.state.tokens_consumed) if manifest else [],
        training_rows=_training_rows(made, lines),
        losses=_losses([line for line in lines if line.get("loss") is not None]),
        held_out=_held_out([line for line in lines if "evaluation" in line]),
        evaluations=[row for record in evaluations_of(made) for row in _evaluation_rows(record)],
        loading=Plain(_loading(found, plain_tokenizer is None)),
        plain_tokenizer=plain_tokenizer,
        prompt=Plain("class <mask>:" if found.fills_masks else "import "),
        vllm_serves=found.auto == CAUSAL and not found.shipped and only_with(found, made.model) is None,
        is_shipped=found.shipped is not None,
        is_prefix=made.model.shape == "prefix",
    )


def evaluations_of(made: Checkpoint) -> list[Record]:
    """The last evaluation of each task at the checkpoint's step."""
    step = made.saved.state.step
    lines = [line for line in examine(made.run_dir / EVALUATIONS, EVALUATED).records if line["step"] == step]
    return list({line["task"]: line for line in lines}.values())


def _escaped(value: Any) -> str:
    """A value as Markdown that shows it letter by letter, on one line."""
    if isinstance(value, Plain):
        return str(value)
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$])", r"\\\1", line)


def _manifest(config: RunConfig) -> Manifest | None:
    return Manifest.load(config.data.path) if (Path(config.data.path) / FILE_NAME).exists() else None


def _front_matter(made: Checkpoint, found: Architecture, license_name: str | None) -> str:
    facts: dict[str, Any] = {"license": license_name} if license_name is not None else {}
    if languages := _languages(made.config):
        facts["language"] = languages
    facts |= {"library_name": "transformers", "pipeline_tag": PIPELINES[found.auto]}
    return yaml.safe_dump(facts | {"tags": ["shardline", made.model.shape]}, sort_keys=False)


def _languages(config: RunConfig) -> list[str]:
    """Languages that the data was filtered for, if it was."""
    kept = [getattr(each, "keep", []) for each in config.data.filters if getattr(each, "name", "") == "language"]
    return sorted(set().union(*kept)) if kept else []


def _model_rows(made: Checkpoint, found: Architecture) -> list[Row]:
    model, vocab_size = made.model, made.saved.identity.model["vocab_size"]
    depth = f"{model.encoder_layers} + {model.num_layers}" if model.encoder_layers else f"{model.num_layers}"
    switches = model.model_dump(mode="json", exclude_defaults=True, exclude=TOLD | EXECUTION_KEYS)
    rows = [
        ("class", found.name),
        ("shape", model.shape),
        ("parameters", f"{num_parameters(model, vocab_size):,}"),
        ("layers", depth),
        ("width", f"{model.d_model}, inner {model.d_ff}"),
        ("heads", f"{model.num_heads} of queries, {model.kv_heads} of keys and values, {model.head_size} wide"),
        ("blocks", f"{model.activation}, {model.norm}, positions {model.positions}"),
        ("vocabulary", f"{vocab_size:,}, embeddings {'tied' if model.tie_embeddings else 'untied'}"),
    ]
    return rows + [(key, json.dumps(value)) for key, value in switches.items()]


def _data_rows(manifest: Manifest) -> list[Row]:
    rows = [
        (split, f"{manifest.num_documents(split):,} documents, {manifest.num_tokens(split):,} tokens")
        for split in manifest.splits
    ]
    counts = {key: manifest.counts[key] for key in ("documents_read", "documents_kept") if key in manifest.counts}
    rows += [(key.replace("_", " "), f"{count:,}") for key, count in counts.items()]
    return [*rows, ("fingerprint", manifest.fingerprint)]


def _dropped_rows(manifest: Manifest) -> list[Row]:
    return [(reason, f"{count:,}") for reason, count in dropped_of(manifest.counts).items() if count]


def _source_rows(manifest: Manifest, lines: Sequence[Record], consumed: int) -> list[tuple[str, str, str, str]]:
    """Name, documents kept and dropped, and tokens that were drawn, where a mix counts them or there is no other."""
    sole = {source.name: {"tokens": consumed} for source in manifest.sources if len(manifest.sources) == 1}
    drawn: Record = next((line["sources"] for line in reversed(lines) if "sources" in line), sole)
    return [
        (
            source.name,
            f"{source.counts.get('documents_kept', 0):,}",
            f"{sum(dropped_of(source.counts).values()):,}",
            f"{drawn[source.name]['tokens']:,}" if isinstance(drawn.get(source.name), dict) else "",
        )
        for source in manifest.sources
        if source.counts
    ]


def _training_rows(made: Checkpoint, lines: Sequence[Record]) -> list[Row]:
    config, order = made.config, made.saved.identity.order
    training, state = config.training, made.saved.state
    rows = [
        ("objective", str(order["objective"]["name"])),
        ("steps", f"{state.step:,} of {training.steps:,}"),
        ("tokens trained on", f"{state.tokens_consumed:,}"),
        ("samples", f"{state.samples_consumed:,} of up to {order['sequence_length']:,} tokens"),
        ("samples of a step", f"{training.global_batch_size:,}"),
        ("first weights", _first_weights(config)),
        (
            "optimizer",
            f"{made.saved.identity.optimizer}, learning rate {config.optimizer.lr:g}, {config.schedule.name}",
        ),
        ("arithmetic", made.saved.identity.precision),
    ]
    skipped = sum(line.get("skipped") or 0 for line in lines)
    return rows + ([("steps passed over", f"{skipped:,}")] if skipped else [])


def _first_weights(config: RunConfig) -> str:
    """What a run began with: a seed, or an import by the name of its folder and its class."""
    folder = config.training.initial_weights
    if folder is None:
        return f"drawn from seed {config.seed}"
    facts: dict[str, Any] = {}
    if (file := Path(folder) / "model.yaml").is_file():
        facts = yaml.safe_load(file.read_bytes()) or {}
    source = Path(str(facts.get("imported_from", folder))).name
    made_into = f", made into shape {facts['adapted']['to']}" if "adapted" in facts else ""
    return f"imported from {source}" + (f", {facts['class']}" if "class" in facts else "") + made_into


def _losses(lines: Sequence[Record]) -> list[tuple[str, ...]]:
    return [
        (f"{line['step']:,}", f"{tokens:,}" if (tokens := line.get("tokens_consumed")) else "", f"{line['loss']:.4f}")
        for line in _thinned(lines)
    ]


def _held_out(lines: Sequence[Record]) -> list[tuple[str, ...]]:
    return [
        (f"{line['step']:,}", *(f"{line['evaluation'][key]:.4f}" for key in ("loss", "unigram_entropy")))
        for line in _thinned(lines)
    ]


def _thinned(lines: Sequence[Record]) -> list[Record]:
    """At most `MOST_ROWS` of them, evenly, the first and the last among them."""
    last, rows = len(lines) - 1, min(len(lines), MOST_ROWS)
    return [lines[round(index * last / max(rows - 1, 1))] for index in range(rows)]


def _evaluation_rows(record: Record) -> Iterable[tuple[str, ...]]:
    for metric, value in record["metrics"].items():
        if "_stderr" in metric or not isinstance(value, NUMBER):
            continue
        name, _, rest = metric.partition(",")
        error = record["metrics"].get(f"{name}_stderr{',' if rest else ''}{rest}")
        spread = f" ± {error:.4f}" if isinstance(error, NUMBER) else ""
        shots, samples = str(record["num_fewshot"]), f"{record['samples']:,}"
        yield record["task"], shots, samples, metric, f"{value:.4f}{spread}"


def _loading(found: Architecture, with_tokenizer: bool) -> str:
    """Lines of Python that load the folder."""
    trust = ", trust_remote_code=True" if found.shipped else ""
    model = f'model = {found.auto}.from_pretrained("DIR"{trust})'
    if not with_tokenizer:
        return f"from transformers import {found.auto}\n\n{model}"
    return (
        f"from transformers import {found.auto}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("DIR")\n{model}'
    )
