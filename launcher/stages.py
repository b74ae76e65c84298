"""The stages of the main job, each run with progress and summed up in one line for people."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.mistakes import Mistake
from launcher.config import load_config
from launcher.console import StageProgress, console, number
from training.config import RunConfig

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer

NUM_SAMPLE_TEXTS, SAMPLE_TOKENS = 50, 512
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


def convert(run_dir: Path, out: Path) -> str:
    """Writes the newest sound checkpoint of a run as a Hugging Face folder that has been checked against our own model.

    Raises ValueError when the run has no checkpoint, or when the tokenizer is not the one it was trained with.
    """
    from common.files import checksum
    from model.exchange.convert import exported_from
    from training import checkpoint

    config = load_run(run_dir)
    folder = newest_checkpoint(run_dir)
    identity = checkpoint.read_state(folder)["identity"]
    tokenizer = tokenizer_of(config, folder)
    source = checksum(folder / checkpoint.CHECKSUMS)
    if exported_from(out) == source:
        return f"reused {out}, made from {folder.name}"
    texts = _held_out_texts(config, tokenizer)
    with StageProgress("converting") as progress:
        progress.note(f"converting {folder.name} and comparing it with ours in transformers")
        _export(config, folder, identity, tokenizer, out, texts, source)
    on = f"on {len(texts)} held-out texts" if texts else f"on awkward strings only, as {config.data.path} is not there"
    return f"{folder.name} in {out}: logits and greedy tokens equal ours in transformers, token ids {on}"


def newest_checkpoint(run_dir: Path) -> Path:
    """Folder of the newest sound checkpoint of a run; says which damaged ones were passed over.

    Raises ValueError when there is none.
    """
    from training import checkpoint
    from training.distributed import World

    choice = checkpoint.choose(run_dir, World.alone())
    for name, faults in choice.damaged.items():
        console.print(f"  checkpoint {name} is damaged and was passed over: {'; '.join(faults)}", soft_wrap=True)
    if choice.folder is None:
        raise Mistake(f"{run_dir}: it has no checkpoint yet; train it with 'shardline train CONFIG'")
    return choice.folder


def tokenizer_of(config: RunConfig, folder: Path) -> "Tokenizer":
    """The tokenizer of a run. Raises ValueError when it is not the one that a checkpoint was trained with."""
    from data_pipeline.tokenizer import Tokenizer
    from training import checkpoint

    tokenizer = Tokenizer.load(config.tokenizer.path, fast_encoder="off")
    if tokenizer.fingerprint != checkpoint.read_state(folder)["identity"]["tokenizer"]:
        raise Mistake(
            f"tokenizer.path: {config.tokenizer.path} is not the tokenizer {folder} was trained with; "
            "put that one back or set tokenizer.path in the run's config.yaml"
        )
    return tokenizer


def _export(
    config: RunConfig,
    folder: Path,
    identity: dict[str, Any],
    tokenizer: "Tokenizer",
    out: Path,
    texts: list[str],
    source: str,
) -> None:
    from model.config import ModelConfig
    from model.exchange.convert import export_hf
    from training import checkpoint

    order = identity["order"]
    asked = [part["name"] for part in order["objective"].get("parts") or [order["objective"]]]
    export_hf(
        checkpoint.stream_model_state(folder),
        ModelConfig(**{**config.model.model_dump(), **identity["model"]}),  # the run's config may have changed since
        identity["model"]["vocab_size"],
        out,
        max_positions=max(order["sequence_length"], order.get("target_length") or 0),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id if tokenizer.pad_id >= 0 else tokenizer.eos_id,
        tokenizer_model=tokenizer.model_path,
        ends_with_eos=all(name not in (*CONTINUES, "sentence_pairs") for name in asked),
        reads_specials=any(name not in CONTINUES for name in asked),
        sample_texts=texts,
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
    tokenizer = f"; its tokenizer is in {out / 'tokenizer'}" if (out / "tokenizer").is_dir() else ""
    return (
        f"{found.architecture.name} in {out}: logits and greedy tokens equal those of transformers{tokenizer}\n"
        f"to start from it: training.initial_weights: {out}, with the model section of {out / MODEL_FILE}"
    )


def _held_out_texts(config: RunConfig, tokenizer: "Tokenizer") -> list[str]:
    """Some of the corpus's own text for the comparison of token ids; none where the dataset has been moved away."""
    from data_pipeline.manifest import FILE_NAME
    from data_pipeline.reading.dataset import TokenDataset

    if not (Path(config.data.path) / FILE_NAME).exists():
        return []
    split = TokenDataset(config.data.path, "validation", SAMPLE_TOKENS, keep_tail=True)
    chosen = range(0, len(split), max(1, len(split) // NUM_SAMPLE_TEXTS))
    return [tokenizer.decode(piece) for index in chosen for piece in split.sample(index)]


def load_run(run_dir: Path) -> RunConfig:
    """The resolved config of a run folder."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise Mistake(f"{run_dir}: no config.yaml in it, so it is not a run; name a folder such as runs/quickstart")
    return load_config(path)
