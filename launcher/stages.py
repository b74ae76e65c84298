"""The stages of the main job; each says what came of it as a value (views.py puts it in words).

tokenizer -> dataset -> training (local.py) -> Hugging Face folder; or a Hugging Face folder -> weights to start from
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import naming
from common.mistakes import Mistake
from launcher.console import StageProgress, number
from launcher.run_folder import existing
from training.config import RunConfig

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer
    from launcher.model_card import Checkpoint
    from model.exchange.convert import ExportSpec
    from model.exchange.parity import HandedOn

NUM_SAMPLE_TEXTS, SAMPLE_TOKENS = 50, 512
EXPORTED_AS = {"special_tokens_in_text": None, "with_tokenizer": True, "license": None}
"""How a run is exported unless something else is asked for."""
CONTINUES = ("next_token", "prefix_lm")
"""Objectives whose inputs are the beginning of a text and no more; those of others have special tokens in them."""


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that is there now."""

    path: Path
    vocab_size: int
    training_bytes: int
    """Text it was trained on; 0 when it was there already."""
    reused: bool


@dataclasses.dataclass(frozen=True)
class BuiltData:
    """A dataset that is there now."""

    path: Path
    num_documents: int
    num_train_tokens: int
    num_validation_tokens: int
    dropped: dict[str, int]
    """Documents left out, by reason."""
    reused: bool
    warnings: tuple[str, ...] = ()
    """What to look at before training on it."""


@dataclasses.dataclass(frozen=True)
class NewestCheckpoint:
    """The newest sound checkpoint of a run."""

    folder: Path
    damaged: dict[str, list[str]]
    """Newer ones that were passed over, by name, and why."""
    unlisted: tuple[str, ...] = ()
    """Files in its folder that are none of its own."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """A Hugging Face folder that has been checked against our own model."""

    out: Path
    checkpoint: NewestCheckpoint
    num_texts: int
    """Held-out texts that token ids were compared on; 0 where the dataset is not there any more."""
    data: Path
    reused: bool
    plain_tokenizer: str | None = None
    """Name of the sentencepiece model in it, where it has no tokenizer of Hugging Face's."""
    depths_left_out: int = 0
    """Further depths of multi-token prediction, which no class has a place for."""


@dataclasses.dataclass(frozen=True)
class ImportedTokenizer:
    """What `data build` can do with the tokenizer that came with imported weights."""

    folder: Path
    obstacle: str | None = None
    """Why it does not take it."""
    lacks: tuple[str, ...] = ()
    """Special pieces it does not have, which objectives that hide tokens need."""


@dataclasses.dataclass(frozen=True)
class ImportedWeights:
    """Weights that a run can start from."""

    out: Path
    architecture: str
    """Their class in transformers."""
    model_file: Path
    """The model section of a config that fits them."""
    tokenizer: ImportedTokenizer
    adapted_to: str | None = None
    """Shape that a causal model was made into."""
    copied: dict[str, str] = dataclasses.field(default_factory=dict)
    """What was copied where for it."""
    has_new_head: bool = False
    """Whether theirs had no head, so that one was drawn."""


def train_tokenizer(config: RunConfig, progress: StageProgress) -> TrainedTokenizer:
    """Trains the tokenizer, or finds it trained."""
    from data_pipeline.tokenizer import train_tokenizer as run

    with naming(Path(config.tokenizer.path)):
        report = run(config.tokenizer, config.data.sources, progress.note)
    return TrainedTokenizer(Path(config.tokenizer.path), report.vocab_size, report.training_bytes, report.reused)


def build_data(config: RunConfig, progress: StageProgress) -> BuiltData:
    """Builds the dataset with Ray, or finds it built.

    Raises ValueError when the run's objective needs a special piece that the tokenizer lacks.
    """
    from data_pipeline.building.build import BuildProgress, build_dataset

    if config.objective.name != "next_token":
        _check_pieces(config)

    def show(state: BuildProgress) -> None:
        detail = f"{number(state.documents)} documents  {number(state.tokens)} tokens"
        progress.update(state.done, state.total, detail, title=state.stage)

    with naming(Path(config.data.path)):
        report = build_dataset(config.data, config.tokenizer, show)
    manifest = report.manifest
    return BuiltData(
        path=Path(config.data.path),
        num_documents=sum(manifest.num_documents(split) for split in manifest.splits),
        num_train_tokens=manifest.num_tokens("train"),
        num_validation_tokens=manifest.num_tokens("validation"),
        dropped={} if report.reused else {name: count for name, count in report.dropped.items() if count},
        reused=report.reused,
        warnings=tuple(report.warnings),
    )


def _check_pieces(config: RunConfig) -> None:
    """ValueError when a special piece that the objective needs is missing, as training would say after the build."""
    from data_pipeline.manifest import Manifest
    from data_pipeline.reading.grid import objective_for
    from data_pipeline.tokenizer import Tokenizer
    from data_pipeline.vocabulary import Vocabulary

    record = Tokenizer.load(config.tokenizer, fast_encoder="off").record()
    nothing_yet = Manifest(**record, config_fingerprint="", splits={})
    objective_for(config.objective, config.model.shape, Vocabulary.of(nothing_yet))


def convert(
    run_dir: Path,
    out: Path,
    progress: StageProgress,
    *,
    special_tokens_in_text: bool | None = None,
    with_tokenizer: bool = True,
    license_name: str | None = None,
) -> Converted:
    """Writes the newest sound checkpoint of a run as a Hugging Face folder that has been checked against our own model.

    special_tokens_in_text: whether names such as </s> in a text are to mean the special tokens in plain calls of the
    folder's tokenizer; None means that they do where the objective hides tokens. Without a tokenizer the sentencepiece
    model lies in the folder as it is. The licence stands in the folder's model card.
    Raises ValueError when the run has no checkpoint, or when the tokenizer is not the one it was trained with.
    """
    from common.files import checksum
    from launcher import model_card
    from model.exchange.convert import export_hf, exported_from, plain_name
    from model.exchange.hf_configs import architecture
    from training.state.folder import reading
    from training.state.loading import stream_weights
    from training.state.sums import CHECKSUMS

    _, config = existing(run_dir)
    asked: dict[str, object] = {"special_tokens_in_text": special_tokens_in_text, "with_tokenizer": with_tokenizer}
    asked |= {"license": license_name}
    chosen = "".join(f" {key}={value}" for key, value in asked.items() if value != EXPORTED_AS[key])
    with reading(run_dir):
        newest = newest_checkpoint(run_dir)
        tokenizer = tokenizer_of(config, newest.folder)
        plain = None if with_tokenizer else plain_name(tokenizer.model_path)
        made_of = checkpoint_of(run_dir, config, newest.folder)
        evaluated = "".join(f" {line['task']}={line['time']}" for line in model_card.evaluations_of(made_of))
        source, data = checksum(newest.folder / CHECKSUMS) + chosen + evaluated, Path(config.data.path)
        if exported_from(out) == source:
            return Converted(out, newest, 0, data, True, plain)
        texts = held_out_texts(config, tokenizer) if with_tokenizer else []
        spec = export_spec(made_of, tokenizer, texts, source, special_tokens_in_text)
        spec = spec._replace(card=model_card.render(made_of, architecture(spec.config), license_name, plain))
        form = {"handed_on": _handed_on(tokenizer)} if with_tokenizer else {"as_it_is": True}
        spec = spec._replace(tokenizer=spec.tokenizer._replace(**form))
        progress.note(f"converting {newest.folder.name} and comparing it with ours in transformers")
        with naming(out):
            export_hf(stream_weights(newest.folder), spec, out)
    return Converted(out, newest, len(texts), data, False, plain, config.model.multi_token_depths)


def newest_checkpoint(run_dir: Path) -> NewestCheckpoint:
    """The newest sound checkpoint of a run. Raises ValueError when there is none."""
    from training.distributed import World
    from training.state.choosing import choose

    choice = choose(run_dir, World.alone())
    if choice.checkpoint is None:
        raise Mistake(f"{run_dir}: it has no checkpoint yet; train it with 'shardline train CONFIG'")
    return NewestCheckpoint(choice.checkpoint.folder, choice.damaged, choice.checkpoint.unlisted)


def tokenizer_of(config: RunConfig, folder: Path) -> "Tokenizer":
    """The tokenizer of a run. Raises ValueError when it is not the one that a checkpoint was trained with."""
    from data_pipeline.tokenizer import Tokenizer
    from training.state.identity import read_saved

    remedy = "put it back, or say in the run's config.yaml where it is now"
    if not Path(config.tokenizer.path).exists():
        raise Mistake(f"tokenizer.path: {config.tokenizer.path}, which {folder} was trained with, is gone; {remedy}")
    tokenizer = Tokenizer.load(config.tokenizer, fast_encoder="off")
    if tokenizer.fingerprint != read_saved(folder).identity.tokenizer:
        raise Mistake(
            f"tokenizer.path: {config.tokenizer.path} is not the tokenizer {folder} was trained with; {remedy}"
        )
    return tokenizer


def checkpoint_of(run_dir: Path, config: RunConfig, folder: Path) -> "Checkpoint":
    """What a checkpoint in `folder` is made of, by its own account."""
    from launcher.model_card import Checkpoint
    from model.config import ModelConfig
    from training.state.identity import read_saved

    saved = read_saved(folder)  # the run's config may have changed since
    return Checkpoint(run_dir, config, saved, ModelConfig(**{**config.model.model_dump(), **saved.identity.model}))


def export_spec(
    made_of: "Checkpoint", tokenizer: "Tokenizer", texts: list[str], source: str, reads_specials: bool | None
) -> "ExportSpec":
    """What it is exported as, with texts to compare token ids on; no form of the tokenizer's is made."""
    from model.exchange.convert import ExportSpec, TokenizerSpec

    identity = made_of.saved.identity
    order = identity.order
    asked = [part["name"] for part in order["objective"].get("parts") or [order["objective"]]]
    hides = any(name not in CONTINUES for name in asked)
    return ExportSpec(
        made_of.model,
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
        objective=order["objective"],
    )


def _handed_on(tokenizer: "Tokenizer") -> "HandedOn | None":
    """What to write of a tokenizer of others; None for one that is converted."""
    from model.exchange.parity import HandedOn

    files = tokenizer.hugging_face_files()
    return None if files is None else HandedOn(files, lambda text: tokenizer.encode(text).tolist(), tokenizer.names)


def import_weights(folder: Path, out: Path, progress: StageProgress, *, adapt_to: str | None = None) -> ImportedWeights:
    """Writes the weights of a Hugging Face folder by our names, checked against transformers, for a run to start from.

    `adapt_to` is the shape that a causal model is made into. Raises ValueError when the model has no place in ours.
    """
    from data_pipeline.tokenizing.finding import files_to_take_along
    from model.exchange.adapting import shape_named
    from model.exchange.importing import MODEL_FILE, adaptation_of, import_hf, new_head_of

    shape = None if adapt_to is None else shape_named(adapt_to)
    progress.note(f"importing {folder} and comparing it with transformers")
    with naming(out):
        found = import_hf(folder, out, shape=shape, tokenizer_files=files_to_take_along(folder))
    tokenizer = examine_tokenizer(folder, out / "tokenizer", found.vocab_size)
    facts = (out / MODEL_FILE, tokenizer, shape, adaptation_of(out), bool(new_head_of(out)))
    return ImportedWeights(out, found.architecture.name, *facts)


def examine_tokenizer(source: Path, folder: Path, vocab_size: int) -> ImportedTokenizer:
    """What can be done with the tokenizer that was copied from `source` to `folder`, if there was one."""
    from data_pipeline.tokenizer import Tokenizer

    if not folder.is_dir():
        return ImportedTokenizer(folder, f"{source} has none in a form that is read (tokenizer.json, tokenizer.model)")
    try:
        tokenizer = Tokenizer.load(folder, fast_encoder="off")
    except Mistake as error:
        return ImportedTokenizer(folder, str(error))
    if (size := tokenizer.vocab_size) > vocab_size:
        return ImportedTokenizer(folder, f"it has {size} pieces and the model's vocab_size is {vocab_size}")
    lacks = [f"<{name}>" for name in ("mask", "cls", "sep") if name not in tokenizer.special_ids]
    return ImportedTokenizer(folder, lacks=(*lacks, *([] if tokenizer.sentinel_ids else ["<extra_id_0>"])))


def held_out_texts(config: RunConfig, tokenizer: "Tokenizer") -> list[str]:
    """Some of the corpus's own text for the comparison of token ids; none where the dataset has been moved away."""
    from data_pipeline.manifest import FILE_NAME, Manifest
    from data_pipeline.reading.dataset import TokenDataset

    if not (Path(config.data.path) / FILE_NAME).exists():
        return []
    manifest = Manifest.load(config.data.path)
    split = TokenDataset(config.data.path, manifest, "validation", SAMPLE_TOKENS, keep_tail=True)
    chosen = range(0, len(split), max(1, len(split) // NUM_SAMPLE_TEXTS))
    return [tokenizer.decode(piece) for index in chosen for piece in split.sample(index)]
