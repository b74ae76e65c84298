"""The stages of the main job, each run with progress and summed up in one line for people."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.mistakes import Mistake
from launcher.config import load_config
from launcher.console import StageProgress, console, number
from training.config import RunConfig

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer
    from model.exchange.convert import ExportSpec

NUM_SAMPLE_TEXTS, SAMPLE_TOKENS = 50, 512
EXPORTED_AS = {"special_tokens_in_text": None, "with_tokenizer": True}
"""How a run is exported unless something else is asked for."""
CONTINUES = ("next_token", "prefix_lm")
"""Objectives whose inputs are the beginning of a text and no more; those of others have special tokens in them."""


def train_tokenizer(config: RunConfig) -> str:
    """Trains the tokenizer, or finds it trained."""
    from data_pipeline.tokenizer import train_tokenizer as run

    with StageProgress("looking at the sources") as progress:
        report = run(config.tokenizer, config.data.sources, progress.note)
    if report.reused:
        return f"reused {config.tokenizer.path}, {report.vocab_size:,} pieces"
    return f"{report.vocab_size:,} pieces from {report.training_bytes / 1e6:.1f} MB of text in {config.tokenizer.path}"


def build_data(config: RunConfig) -> str:
    """Builds the dataset with Ray, or finds it built."""
    from data_pipeline.building.build import BuildProgress, build_dataset

    with StageProgress("starting Ray") as progress:

        def show(state: BuildProgress) -> None:
            detail = f"{number(state.documents)} documents  {number(state.tokens)} tokens"
            progress.update(state.done, state.total, detail, title=state.stage)

        report = build_dataset(config.data, config.tokenizer, show)
    splits = report.manifest.splits
    tokens = {name: sum(shard.num_tokens for shard in shards) for name, shards in splits.items()}
    documents = sum(shard.num_documents for shards in splits.values() for shard in shards)
    kept = f"{documents:,} documents, {tokens['train']:,} training and {tokens['validation']:,} held-out tokens"
    if report.reused:
        return f"reused {config.data.path}: {kept}"
    dropped = [f"{count:,} {name.replace('_', ' ')}" for name, count in report.dropped.items() if count]
    return f"{kept} in {config.data.path}" + (f"; dropped: {', '.join(dropped)}" if dropped else "")


def held_out_loss(evaluation: dict[str, Any]) -> str:
    """The loss of an evaluation, and how it stands to the best loss without context."""
    gain = evaluation["unigram_entropy"] - evaluation["loss"]
    side = "below" if gain >= 0 else "above"
    return f"{evaluation['loss']:.3f} nats, {abs(gain):.2f} {side} the unigram entropy of the same tokens"


def train(config: RunConfig, *, fresh: bool = False) -> str:
    """Trains to the last step, going on from the newest checkpoint when there is one."""
    from launcher.local import train_locally

    result = train_locally(config, fresh=fresh)
    last, evaluation = result.last, result.evaluation
    if result.already_finished:
        return f"reused {result.run_dir}: it had reached step {config.training.steps} already"
    held_out = f", held-out loss {held_out_loss(evaluation)}" if evaluation else ""
    return f"step {last['step']}: loss {last['loss']:.3f}{held_out}, {number(float(last['tokens_consumed']))} tokens"


def convert(
    run_dir: Path, out: Path, *, special_tokens_in_text: bool | None = None, with_tokenizer: bool = True
) -> str:
    """Writes the newest sound checkpoint of a run as a Hugging Face folder that has been checked against our own model.

    special_tokens_in_text: whether names such as </s> in a text are to mean the special tokens in plain calls of the
    folder's tokenizer; None means that they do where the objective hides tokens. Without a tokenizer the sentencepiece
    model lies in the folder as it is.
    Raises ValueError when the run has no checkpoint, or when the tokenizer is not the one it was trained with.
    """
    from common.files import checksum
    from model.exchange.convert import PLAIN_TOKENIZER, export_hf, exported_from
    from training.state.folder import reading
    from training.state.loading import stream_weights
    from training.state.sums import CHECKSUMS

    config = load_run(run_dir)
    asked = {"special_tokens_in_text": special_tokens_in_text, "with_tokenizer": with_tokenizer}
    chosen = "".join(f" {key}={value}" for key, value in asked.items() if value != EXPORTED_AS[key])
    with reading(run_dir):
        folder = newest_checkpoint(run_dir)
        tokenizer = tokenizer_of(config, folder)
        source = checksum(folder / CHECKSUMS) + chosen
        if exported_from(out) == source:
            return f"reused {out}, made from {folder.name}"
        texts = _held_out_texts(config, tokenizer) if with_tokenizer else []
        spec = _export_spec(config, folder, tokenizer, texts, source, special_tokens_in_text)
        if not with_tokenizer:
            spec = spec._replace(tokenizer=spec.tokenizer._replace(as_it_is=True))
        with StageProgress("converting") as progress:
            progress.note(f"converting {folder.name} and comparing it with ours in transformers")
            export_hf(stream_weights(folder), spec, out)
    equal = f"{folder.name} in {out}: logits and greedy tokens equal ours in transformers"
    if not with_tokenizer:
        return f"{equal}; no tokenizer of Hugging Face's is in it, {PLAIN_TOKENIZER} gives the ids of the training"
    on = f"on {len(texts)} held-out texts" if texts else f"on awkward strings only, as {config.data.path} is not there"
    return f"{equal}, token ids {on}"


def newest_checkpoint(run_dir: Path) -> Path:
    """Folder of the newest sound checkpoint of a run; says which damaged ones were passed over.

    Raises ValueError when there is none.
    """
    from training.distributed import World
    from training.state.choosing import choose

    choice = choose(run_dir, World.alone())
    for name, faults in choice.damaged.items():
        console.print(f"  checkpoint {name} is damaged and was passed over: {'; '.join(faults)}", soft_wrap=True)
    if choice.checkpoint is None:
        raise Mistake(f"{run_dir}: it has no checkpoint yet; train it with 'shardline train CONFIG'")
    for name in choice.checkpoint.unlisted:
        console.print(f"  {choice.checkpoint.folder / name} is none of the checkpoint's files and is not read")
    return choice.checkpoint.folder


def tokenizer_of(config: RunConfig, folder: Path) -> "Tokenizer":
    """The tokenizer of a run. Raises ValueError when it is not the one that a checkpoint was trained with."""
    from data_pipeline.tokenizer import Tokenizer
    from training.state.identity import read_saved

    tokenizer = Tokenizer.load(config.tokenizer.path, fast_encoder="off")
    if tokenizer.fingerprint != read_saved(folder).identity.tokenizer:
        raise Mistake(
            f"tokenizer.path: {config.tokenizer.path} is not the tokenizer {folder} was trained with; "
            "put that one back or set tokenizer.path in the run's config.yaml"
        )
    return tokenizer


def _export_spec(
    config: RunConfig,
    folder: Path,
    tokenizer: "Tokenizer",
    texts: list[str],
    source: str,
    reads_specials: bool | None,
) -> "ExportSpec":
    from model.config import ModelConfig
    from model.exchange.convert import ExportSpec, TokenizerSpec
    from training.state.identity import read_saved

    identity = read_saved(folder).identity
    order = identity.order
    asked = [part["name"] for part in order["objective"].get("parts") or [order["objective"]]]
    hides = any(name not in CONTINUES for name in asked)
    return ExportSpec(
        ModelConfig(**{**config.model.model_dump(), **identity.model}),  # the run's config may have changed since
        identity.model["vocab_size"],
        max_positions=max(order["sequence_length"], order.get("target_length") or 0),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id if tokenizer.pad_id >= 0 else tokenizer.eos_id,
        tokenizer=TokenizerSpec(
            tokenizer.model_path,
            ends_with_eos=all(name not in (*CONTINUES, "sentence_pairs") for name in asked),
            reads_specials=hides if reads_specials is None else reads_specials,
            sample_texts=texts,
        ),
        source=source,
    )


def import_weights(folder: Path, out: Path) -> str:
    """Writes the weights of a Hugging Face folder by our names, checked against transformers, for a run to start from.

    Raises ValueError when the model has no place in ours.
    """
    from model.exchange.importing import MODEL_FILE, import_hf

    with StageProgress("importing") as progress:
        progress.note(f"importing {folder} and comparing it with transformers")
        found = import_hf(folder, out)
    return (
        f"{found.architecture.name} in {out}: logits and greedy tokens equal those of transformers\n"
        f"to start from it: training.initial_weights: {out}, with the model section of {out / MODEL_FILE}\n"
        f"{use_of_tokenizer(folder, out / 'tokenizer', found.vocab_size)}"
    )


def use_of_tokenizer(source: Path, folder: Path, vocab_size: int) -> str:
    """Whether `data build` takes the tokenizer that came with imported weights, and what is missing if not."""
    from data_pipeline.tokenizer import Tokenizer

    if not folder.is_dir():
        found = "a tokenizer.json only" if (source / "tokenizer.json").is_file() else "none"
        return f"its tokenizer cannot be used: {source} has {found}; data build takes sentencepiece models"
    try:
        tokenizer = Tokenizer.load(folder, fast_encoder="off")
    except Mistake as error:
        return f"its tokenizer cannot be used by data build: {error}"
    if tokenizer.vocab_size > vocab_size:
        return (
            f"its tokenizer cannot be used by data build: it has {tokenizer.vocab_size} pieces, the model's vocab_size "
            f"is {vocab_size}"
        )
    return f"its tokenizer: tokenizer.path: {folder}, for data build; {_gaps_of(tokenizer)}"


def _gaps_of(tokenizer: "Tokenizer") -> str:
    """What a tokenizer lacks of those that are trained here."""
    lacks = [f"<{name}>" for name in ("mask", "cls", "sep") if name not in tokenizer.special_ids]
    if not tokenizer.sentinel_ids:
        lacks.append("<extra_id_0>")
    if not lacks:
        return "it has the special tokens of every objective"
    return f"it has no {', '.join(lacks)}, so next_token and prefix_lm are the objectives for it"


def _held_out_texts(config: RunConfig, tokenizer: "Tokenizer") -> list[str]:
    """Some of the corpus's own text for the comparison of token ids; none where the dataset has been moved away."""
    from data_pipeline.manifest import FILE_NAME, Manifest
    from data_pipeline.reading.dataset import TokenDataset

    if not (Path(config.data.path) / FILE_NAME).exists():
        return []
    manifest = Manifest.load(config.data.path)
    split = TokenDataset(config.data.path, manifest, "validation", SAMPLE_TOKENS, keep_tail=True)
    chosen = range(0, len(split), max(1, len(split) // NUM_SAMPLE_TEXTS))
    return [tokenizer.decode(piece) for index in chosen for piece in split.sample(index)]


def load_run(run_dir: Path) -> RunConfig:
    """The resolved config of a run folder."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise Mistake(f"{run_dir}: no config.yaml in it, so it is not a run; name a folder such as runs/quickstart")
    return load_config(path)
