"""Puts a run together from its config: identity, model, engine, checkpoint, data, evaluation, trainer."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common.mistakes import Mistake
from data_pipeline.config import MixConfig, ObjectiveConfig
from data_pipeline.manifest import Manifest, comparable
from data_pipeline.opening import earlier_dataset, open_dataset
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.budget import SampleLengths
from data_pipeline.reading.corpus import Corpus, apart, drew_whole
from data_pipeline.reading.loader import Loader, evaluation_batches
from data_pipeline.reading.mix import as_json
from model.config import ModelConfig
from model.exchange.importing import MODEL_FILE, imported_config
from model.exchange.tensor_files import TensorReader
from model.network.context_ranks import ContextRanks
from model.network.layers import BLOCK, first_values
from model.network.tensor_ranks import TensorRanks
from model.network.transformer import Transformer
from training import mixing
from training.config import RunConfig
from training.context import HeadExchange
from training.deepspeed_config import accumulation_steps, check_deepspeed_keys
from training.distributed import World
from training.engine import Engine
from training.evaluation import Evaluator, Evaluators
from training.events import EventLog
from training.first_weights import Fill, fill_from
from training.hardware import peak_flops
from training.jumps import Jump, is_given_up, jumped, settle
from training.local.folder import LocalFolder
from training.local.promoting import promote
from training.loop import Trainer
from training.mesh import sharing
from training.parts.part import Run
from training.phases import Phase
from training.probe import Probe
from training.state.choosing import Checkpoint, Choice, NothingSound, choose
from training.state.folder import (
    LATEST,
    checkpoints_dir,
    latest_checkpoint,
    mark_damaged,
    step_of,
    unmark_damaged,
    went_back,
)
from training.state.identity import CUT, EXECUTION_KEYS, RunIdentity, RunState, Saved, check_identity, read_saved
from training.state.loading import load
from training.state.together import on_main
from training.step import LossModel

LOG = logging.getLogger("training.setup")


def vocabulary_size(config: RunConfig, manifest: Manifest) -> int:
    """Rows of the embedding. ValueError when the dataset holds ids beyond them, or ranks cannot share them evenly."""
    model, ranks = config.model, config.parallel.tensor
    if model.vocab_size is not None and model.vocab_size < manifest.vocab_size:
        raise Mistake(
            f"model.vocab_size: {model.vocab_size} is less than the tokenizer's {manifest.vocab_size} ids; "
            "leave it empty or raise it"
        )
    size = model.vocab_size or manifest.vocab_size
    if size % ranks:
        raise Mistake(
            f"model.vocab_size: {size} rows cannot be shared evenly by parallel.tensor {ranks} ranks; set it to "
            f"{-(-size // ranks) * ranks}, the rows beyond the tokenizer's ids are never used"
        )
    return size


def identify(config: RunConfig, manifest: Manifest, world_size: int) -> RunIdentity:
    """What the run's checkpoints belong to."""
    model = config.model.model_dump(mode="json", exclude=EXECUTION_KEYS)
    return RunIdentity(
        world_size=world_size,
        zero_stage=config.training.zero_stage,
        precision=config.training.precision,
        data=manifest.fingerprints,
        tokenizer=manifest.tokenizer_fingerprint,
        order={
            "seed": config.seed,
            "sequence_length": config.training.sequence_length,
            "target_length": config.training.target_length,
            "objective": config.objective.model_dump(mode="json"),
            "packing": config.data.packing,
        },
        model=model | {"vocab_size": vocabulary_size(config, manifest)},
        tensor=config.parallel.tensor,
        context=config.parallel.context,
        optimizer=config.optimizer.name,
    )


def build_engine(config: RunConfig, vocab_size: int, world: World, *, resuming: bool = False) -> Engine:
    """Model and engine of a run, with the weights it starts from: imported ones, else drawn from the seed.

    A run that resumes gets its weights from the checkpoint: none are made or read, `Engine.load` must follow.
    """
    with torch.device("meta"):
        model = Transformer(config.model, vocab_size, config.seed, tensor_ranks(config, world), context_ranks(world))
    fill = None if resuming else _first_weights(model, config.training.initial_weights)
    engine = Engine(LossModel(model, config.training.z_loss, config.training.further_weight), config, world)
    if fill is not None:
        engine.put_weights(fill)
    return engine


def tensor_ranks(config: RunConfig, world: World) -> TensorRanks | None:
    """The ranks that share layers with this one; None where layers are whole."""
    if world.mesh.tensor.size == 1:
        return None
    from training.megatron import MegatronRanks  # seconds, for those who want it

    return MegatronRanks(world.mesh.tensor, config.parallel.cuts_rows)


def context_ranks(world: World) -> ContextRanks | None:
    """The ranks that share rows with this one; None where rows are whole."""
    return HeadExchange(world.mesh.context) if world.mesh.context.size > 1 else None


def _first_weights(model: Transformer, initial_weights: str | None) -> Fill:
    """Where the weights of a new run come from, by the model's own names."""
    drawn = first_values(model)
    if not initial_weights:
        return fill_from(lambda name, start, stop: drawn[name].blocks(start, stop))
    files = _initial_files(model, Path(initial_weights))

    def read(name: str, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        # rows of the embedding for pieces that the imported model did not have are drawn
        known = min(math.prod(files.places[name].shape), stop)
        for begin in range(start, known, BLOCK):
            yield begin, files.read_part(name, begin, min(begin + BLOCK, known))
        if stop > known:
            yield from drawn[name].blocks(max(start, known), stop)

    return fill_from(read)


def _initial_files(model: Transformer, folder: Path) -> TensorReader:
    """Imported weights of this very model, or of one with fewer rows of embedding. ValueError when of another."""
    found, vocab_size = imported_config(folder)
    theirs, ours = _spelled_out(found), _spelled_out(model.config)
    differing = [key for key in ours if ours[key] != theirs[key]]
    if differing:
        key = differing[0]
        raise Mistake(
            f"training.initial_weights: model.{key} is {ours[key]} here and {theirs[key]} in {folder}; "
            f"copy the model section of {folder / MODEL_FILE}"
        )
    if vocab_size > model.vocab_size:
        raise Mistake(
            f"training.initial_weights: {folder} has {vocab_size} rows of embedding and this run {model.vocab_size}; "
            f"use the tokenizer it was imported with, and set model.vocab_size to {vocab_size} or more"
        )
    return TensorReader(folder)


def _spelled_out(config: ModelConfig) -> dict[str, Any]:
    """Keys that decide a network, with what empty ones stand for."""
    resolved = {
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_size,
        "num_encoder_layers": config.encoder_layers,
        "qkv_bias": config.has_qkv_bias,
        "attention_output_bias": config.has_attention_output_bias,
    }
    return config.model_dump(exclude=EXECUTION_KEYS | {"init_std"}) | resolved


@contextlib.contextmanager
def prepare(config: RunConfig, folder: Path, world: World, events: EventLog) -> Iterator[tuple[Trainer, Loader]]:
    """Trainer and loader of a run, standing where its newest sound checkpoint left off."""
    accumulation_steps(config, world.mesh.data.size)
    world.watch.beat(Phase.DATA)
    data = on_main(world, lambda: mixing.read(config))
    manifest = data.manifest
    run = Run(
        config=config,
        folder=folder,
        world=world,
        identity=identify(config, manifest, world.size),
        vocab_size=vocabulary_size(config, manifest),
        events=events,
        local=LocalFolder.opened(config.checkpoint, folder, world),
    )
    jumps = on_main(world, lambda: settle(folder, world.attempt))
    choice = _chosen(run, jumps)
    if choice.checkpoint is not None:
        found = choice.checkpoint
        began = Saved(found.state, found.identity)
        data, identity = on_main(world, lambda: _as_it_began(data, config, world.size, began))
        run = dataclasses.replace(run, identity=identity)
        check_identity(found.identity, identity, found.folder)
        _refuse_past(config, choice.checkpoint.folder)
    evaluators = _evaluators(run, data)
    world.watch.beat(Phase.LOAD)
    engine = build_engine(config, run.vocab_size, world, resuming=choice.checkpoint is not None)
    state = jumped(_resume(run, engine, choice), jumps)
    probe = _probe(run, data, engine)
    if probe is not None and choice.folder is not None:
        probe.check(state.probe, str(choice.folder))
    loader = _loader(run, data, state)
    try:
        run, state = _mixed(run, loader, state)
        yield Trainer(run, engine, evaluators, state, peak_flops(config.training, world.device), probe), loader
    finally:
        loader.close()
        engine.leave_disk()


def _as_it_began(data: Corpus, config: RunConfig, world_size: int, then: Saved) -> tuple[Corpus, RunIdentity]:
    """The datasets that a run goes on with, and what its checkpoints belong to, where sources may have been added.

    One that draws from its dataset as a whole goes on with the dataset as it was: samples would be others else. One
    that mixes sources knows each of them again, and so takes new ones in.
    """
    now = identify(config, data.manifest, world_size)
    old, new = comparable(then.identity.data, now.data)
    if "tokens" not in old or old["tokens"] == new["tokens"]:
        return data, now
    earlier = earlier_dataset(config.data.path, old["tokens"])
    if earlier is None:
        return data, now
    before = identify(config, earlier, world_size)
    if config.data.mix and then.state.mix and not drew_whole(then.state.mix, earlier):
        return dataclasses.replace(data, manifest=earlier, grown=data.manifest), before
    LOG.info(f"sources were added to {data.folder} since the run began; it goes on with the dataset as it was then")
    return dataclasses.replace(data, manifest=earlier), before


def _chosen(run: Run, jumps: Sequence[Jump]) -> Choice:
    """The checkpoint to go on from, once the nodes' own disks were asked whether they hold a newer one."""
    folder, world = run.folder, run.world
    if run.local is None or on_main(world, lambda: went_back(folder)):
        return choose(folder, world)
    shared: Choice | NothingSound
    try:
        shared = choose(folder, world)
    except NothingSound as error:
        shared = error
    newest = step_of(shared.folder) if isinstance(shared, Choice) and shared.folder else -1
    promoted = promote(
        run.local, folder, world, newest, lambda state: is_given_up(state.step, state.guards.jumps, jumps)
    )
    if promoted is None:
        if isinstance(shared, NothingSound):
            raise shared
        return shared
    step, seconds = promoted
    run.events.write("promoted", step=step, instead_of=max(newest, 0), seconds=seconds)
    if world.is_main:
        LOG.info(f"the nodes' own disks hold a checkpoint of step {step}, which is newer than the shared ones")
    return choose(folder, world)


def check(config: RunConfig, world_size: int) -> None:
    """Raises ValueError for what the ranks would refuse before their first step; makes no model and needs no peers."""
    check_deepspeed_keys(config, world_size)
    data = mixing.read(config, open_dataset)
    manifest, state = data.manifest, RunState()
    identity = identify(config, manifest, world_size)
    newest = latest_checkpoint(config.run_dir)
    if newest is not None:
        saved = read_saved(newest)
        data, identity = _as_it_began(data, config, world_size, saved)
        check_identity(saved.identity, identity, newest)
        _refuse_past(config, newest)
        state = saved.state
    world = World.alone()  # sees all samples, talks to nobody
    silent = EventLog(config.run_dir, rank=1)
    run = Run(config, config.run_dir, world, identity, vocabulary_size(config, manifest), silent)
    _evaluators(run, data)
    with _loader(run, data, state) as loader:
        _mixed(run, loader, state)


def _refuse_past(config: RunConfig, folder: Path) -> None:
    """ValueError when a checkpoint lies beyond the run's last step."""
    step, steps = step_of(folder), config.training.steps
    if step > steps:
        raise Mistake(
            f"training.steps: {steps}, but the run stands at step {step} already ({folder}); "
            f"set it to more than {step} to go on, or choose another name to train anew"
        )


def _resume(run: Run, engine: Engine, choice: Choice) -> RunState:
    for name, faults in choice.damaged.items():
        words = f"checkpoint {name} is damaged and was passed over: {'; '.join(faults)}"
        run.events.write("damaged", checkpoint=name, faults=faults, reason=words)
        if run.world.is_main:
            LOG.warning(words)
    on_main(run.world, lambda: _mark_damaged(run.folder, choice))
    found = choice.checkpoint
    if found is None:
        return RunState()
    if found.unlisted:
        words = f"{found.folder}: not files of this checkpoint, and not read: {', '.join(found.unlisted)}"
        run.events.write("unlisted", checkpoint=found.folder.name, files=found.unlisted, reason=words)
        if run.world.is_main:
            LOG.warning(words)
    on_main(run.world, lambda: unmark_damaged(found.folder))
    _note_resharding(run, found)
    state = load(engine, found)
    run.events.write("resume", step=state.step, checkpoint=found.folder.name)
    return state


def _mark_damaged(folder: Path, choice: Choice) -> None:
    for name, faults in choice.damaged.items():
        if name != LATEST:
            mark_damaged(checkpoints_dir(folder) / name, faults)


def _note_resharding(run: Run, found: Checkpoint) -> None:
    then, now = ({key: getattr(of, key) for key in CUT} for of in (found.identity, run.identity))
    if then == now:
        return
    run.events.write("resharded", checkpoint=found.folder.name, **{"from": then, "to": now})
    if run.world.is_main:
        ways = [_cut_in_words(**cut) for cut in (then, now)]
        LOG.info(f"checkpoint {found.folder.name}: written by {ways[0]}, resharded for {ways[1]}")


def _cut_in_words(world_size: int, zero_stage: int, tensor: int, context: int) -> str:
    return f"{world_size} rank(s) at ZeRO {zero_stage}{sharing(tensor=tensor, context=context)}"


def _evaluators(run: Run, data: Corpus) -> Evaluators:
    config = run.config
    if not data.has_held_out:
        run.events.write("no evaluation", reason="the dataset has no held-out documents")
        return Evaluators()
    parts = [ObjectiveConfig(**part.model_dump(exclude={"weight", "sources"})) for part in config.objective.parts or ()]
    objectives = [config.objective, *parts, *config.evaluation.objectives]
    reading = _reading(run, data, data.mix)
    by_objective = {
        name: _evaluator(run, dataclasses.replace(reading, objective=objective))
        for name, objective in _named(objectives)
    }
    wanted = config.evaluation.by_source
    by_source = apart(data.drawn) if wanted or (wanted is None and config.data.mix is not None) else []
    if none := [source.name for source in by_source if not source.has_held_out]:
        run.events.write("no evaluation", sources=none, reason="these sources have no held-out documents")
    return Evaluators(
        by_objective,
        {
            source.name: _evaluator(run, dataclasses.replace(reading, sources=(source,)))
            for source in by_source
            if source.has_held_out
        },
    )


def _evaluator(run: Run, reading: Reading) -> Evaluator:
    config, objective = run.config, reading.objective
    batches = evaluation_batches(reading, num_samples=config.evaluation.num_samples)
    _check_rows(config, objective, batches.lengths)
    evaluator = Evaluator(batches, run.vocab_size, run.world)
    if not evaluator.num_targets:
        raise Mistake(
            f"evaluation.num_samples: the {batches.num_samples} held-out samples hold no target of {objective.name}; "
            "raise it or data.validation_fraction"
        )
    return evaluator


def _reading(run: Run, data: Corpus, mix: MixConfig | None) -> Reading:
    """What training and evaluation batches of this rank have in common."""
    config, world = run.config, run.world
    return Reading(
        config.data.path,
        data.manifest,
        config.objective,
        config.model.shape,
        config.training.sequence_length,
        config.training.micro_batch_size,
        config.seed,
        rank=world.mesh.data.rank,
        world_size=world.mesh.data.size,
        target_length=config.training.target_length,
        sources=data.sources(mix),
        packing=config.data.packing,
    )


def _check_rows(config: RunConfig, objective: ObjectiveConfig, lengths: SampleLengths) -> None:
    """ValueError when rows, as long as the objective makes them, have more tokens than learned positions, or when ranks
    cannot cut them evenly.
    """
    model, parts = config.model, config.parallel.row_parts
    rows = {"sequence_length": lengths.row, "target_length": lengths.target_row}
    for name, length in rows.items():
        if config.training.micro_batch_size * length % parts:
            other = ", or parallel.sequence_parallel to false" if config.parallel.cuts_rows else ""
            raise Mistake(
                f"training.{name}: {config.training.micro_batch_size} samples of {length} tokens cannot be cut evenly "
                f"in {parts} parts ({config.parallel.sharing_in_words}); set it to {-(-length // parts) * parts}{other}"
            )
    if model.max_positions is not None and model.max_positions < lengths.target_row:
        raise Mistake(
            f"model.max_positions: {model.max_positions} learned positions are fewer than the {lengths.target_row} "
            f"tokens of the decoder's row that {objective.name} makes of a full encoder; raise it or set "
            f"training.target_length to {model.max_positions}"
        )


def _named(objectives: Sequence[ObjectiveConfig]) -> Iterator[tuple[str, ObjectiveConfig]]:
    """Each with a name of its own: the second of a name is called name-2; one that was there before is left out."""
    seen: list[ObjectiveConfig] = []
    for objective in objectives:
        if objective not in seen:
            seen.append(objective)
            count = sum(each.name == objective.name for each in seen)
            yield (objective.name if count == 1 else f"{objective.name}-{count}"), objective


def _probe(run: Run, data: Corpus, engine: Engine) -> Probe | None:
    """Of the first batch of the run, or that its mix would begin with, where the config asks for it."""
    if not run.config.guards.reload_check:
        return None
    with _loader(run, data, RunState()) as loader:
        return Probe(run, engine, next(loader)[0], as_json(loader.mix.history) if loader.mix else None)


def _mixed(run: Run, loader: Loader, state: RunState) -> tuple[Run, RunState]:
    """Run and state with what the loader made of the mix."""
    if loader.mix is None:
        return run, state
    mixing.check_lasts(run.config, state, loader.mix)
    if words := mixing.change_in_words(state.mix, loader.mix.history):
        run.events.write("mix changed", step=state.step, reason=words)
        if run.world.is_main:
            LOG.warning(words)
    counts = mixing.SourceCounts(loader.mix, loader.lengths.window)
    return dataclasses.replace(run, sources=counts), dataclasses.replace(state, mix=loader.mix.history)


def _loader(run: Run, data: Corpus, state: RunState) -> Loader:
    config = run.config
    how = mixing.mixing_of(config, state)
    loader = Loader(
        _reading(run, data, how.config if how else None),
        global_batch_size=config.training.global_batch_size,
        samples_consumed=state.samples_consumed,
        prefetch=config.training.prefetch,
        pin=run.world.device.type == "cuda",
        mixing=how,
    )
    _check_rows(config, config.objective, loader.lengths)
    return loader
