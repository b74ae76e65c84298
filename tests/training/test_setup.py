"""What is refused when a run is put together: what only the dataset tells."""

import dataclasses
import pickle

import numpy as np
import pytest

from common.mistakes import Mistake
from data_pipeline.manifest import Manifest, ShardInfo, ShardTable, SourceCounts, earlier_name
from data_pipeline.opening import read_dataset
from data_pipeline.reading.corpus import Corpus, Source
from data_pipeline.reading.mix import Mix, MixedSource, Since, Stage
from data_pipeline.shards import ShardWriter
from tests.training.runs import tiny_config, write_dataset
from training.config import RunConfig
from training.distributed import World
from training.events import EventLog
from training.mesh import Mesh
from training.setup import _as_it_began, identify, prepare
from training.state.identity import RunState, Saved, check_identity
from training.state.together import on_main


def refusal(config: RunConfig, folder) -> str:
    """What is said instead of training."""
    with (
        pytest.raises(ValueError) as refused,
        prepare(config, folder, World.alone(), EventLog(folder, 0)),
    ):
        pass
    return str(refused.value)


def test_a_row_of_targets_longer_than_the_learned_positions_is_refused_before_the_first_step(real_dataset, tmp_path):
    model = {"shape": "encdec", "positions": "learned", "max_positions": 64}
    objective = {"name": "span_corruption", "noise_density": 0.8, "mean_span_length": 8}
    config = tiny_config(real_dataset, model=model, objective=objective, training={"sequence_length": 64})
    message = refusal(config, tmp_path)
    assert message.startswith("model.max_positions: 64 learned positions are fewer than the ")
    assert message.endswith("raise it or set training.target_length to 64")


def test_held_out_documents_without_a_target_are_refused_before_the_first_step(tmp_path):
    splits = {}
    for split, document, count in (("train", [1, 10, 11, 12, 2], 300), ("validation", [1, 10, 2], 3)):
        with ShardWriter(tmp_path / f"{split}-00000", 20) as shard:
            shard.add(np.array(document * count), np.full(count, len(document)))
        info = {"name": f"{split}-00000", "num_documents": count, "num_tokens": shard.num_tokens}
        splits[split] = [ShardInfo(**info, checksums=shard.checksums, source_bytes=count)]
    facts = {"tokenizer_fingerprint": "few", "vocab_size": 20, "dtype": "uint16", "bos_id": 1, "eos_id": 2}
    sentinels = {"num_sentinels": 5, "first_sentinel_id": 3}
    Manifest(**facts, **sentinels, config_fingerprint="few", splits=splits).save(tmp_path)
    message = refusal(tiny_config(tmp_path, objective={"name": "span_corruption"}), tmp_path / "run")
    assert message.startswith("evaluation.num_samples: the 1 held-out samples hold no target of span_corruption")


class Relay:
    """The host plane of two ranks that are asked one after the other, rank 0 first."""

    def __init__(self, rank: int, sent: list):
        self.rank, self.sent = rank, sent

    def from_main(self, value):
        """Rank 0's value, through a pickle as between hosts."""
        if self.rank == 0:
            self.sent.append(pickle.dumps(value))
        return pickle.loads(self.sent[-1])


def ranks():
    """Worlds of two ranks that talk to each other."""
    sent: list = []
    alone = World.alone()
    return [dataclasses.replace(alone, mesh=Mesh.of(rank, 2), plane=Relay(rank, sent)) for rank in range(2)]


def test_rank_0_alone_reads_the_manifest(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data")
    looks = []

    def look():
        looks.append(folder)
        return read_dataset(folder)

    first, second = (on_main(world, look) for world in ranks())
    assert second == first and second.fingerprints == first.fingerprints
    assert looks == [folder]


def test_what_rank_0_finds_wrong_with_the_dataset_is_said_by_every_rank(tmp_path):
    config = tiny_config(write_dataset(tmp_path / "data"))
    (tmp_path / "data" / "manifest.json").unlink()
    said = []
    for world in ranks():
        with (
            pytest.raises(Mistake, match=r"manifest\.json") as refused,
            prepare(config, tmp_path / "run", world, EventLog(tmp_path, world.rank)),
        ):
            pass
        said.append(str(refused.value))
    assert said[0] == said[1]


def changed(manifest: Manifest, **update) -> Manifest:
    return manifest.model_copy(update=update)


def test_a_checkpoint_tells_when_ids_or_held_out_documents_are_others(tmp_path):
    config = tiny_config(write_dataset(tmp_path / "data"))
    manifest = Manifest.load(tmp_path / "data")
    then = identify(config, manifest, 1)
    only_train = {"train": manifest.splits["train"]}
    swapped = {**manifest.splits, "validation": manifest.splits["train"]}
    for other, where in (
        (changed(manifest, bos_id=9), "training"),
        (changed(manifest, special_ids={"mask": 4}), "training"),
        (changed(manifest, splits=only_train), "evaluation"),
        (changed(manifest, splits={**manifest.splits, "validation": manifest.splits["validation"][:0]}), "evaluation"),
        (changed(manifest, splits=swapped), "evaluation"),
    ):
        with pytest.raises(Mistake, match=rf"the checkpoint was made with data\.{where} "):
            check_identity(then, identify(config, other, 1), tmp_path)
    as_before = dataclasses.replace(then, data=manifest.fingerprints["tokens"])
    check_identity(as_before, then, tmp_path)


@pytest.fixture
def grown(tmp_path):
    """Folder of a dataset, what was in it before a source was added, and what is in it now."""
    folder = write_dataset(tmp_path / "data")
    before = changed(Manifest.load(folder), sources=[SourceCounts(name="web")])
    (added,) = Manifest.load(write_dataset(tmp_path / "more", seed=1)).splits["train"]
    sums = {name.replace("00000", "00001"): digest for name, digest in added.checksums.items()}
    shards = [
        *before.splits["train"],
        added.model_copy(update={"name": "train-00001", "checksums": sums, "source": 1}),
    ]
    splits = {**before.splits, "train": ShardTable.of(shards)}
    return folder, before, changed(before, splits=splits, sources=[*before.sources, SourceCounts(name="books")])


def went_on(folder, config, now, state, identity):
    """The corpus that a run goes on with, and what its checkpoints belong to, when `now` is in its dataset."""
    return _as_it_began(Corpus(str(folder), now, config.data.mix, {}), config, 1, Saved(state, identity))


def test_a_run_goes_on_with_the_dataset_as_it_was_before_sources_were_added(grown, tmp_path):
    folder, before, after = grown
    config = tiny_config(folder)
    then, now = identify(config, before, 1), identify(config, after, 1)
    assert went_on(folder, config, before, RunState(), then) == (Corpus(str(folder), before, None, {}), then)
    assert went_on(folder, config, after, RunState(), then) == (Corpus(str(folder), after, None, {}), now)
    with pytest.raises(Mistake, match=r"the checkpoint was made with data\.tokens "):
        check_identity(then, now, tmp_path)
    before.save(folder, earlier_name(before.fingerprints["tokens"]))
    for saved in (then, dataclasses.replace(then, data=before.fingerprints["tokens"])):
        corpus, identity = went_on(folder, config, after, RunState(), saved)
        assert (corpus.manifest, corpus.grown) == (before, None)
        check_identity(saved, identity, tmp_path)
    assert went_on(folder, config, after, RunState(), now)[0].manifest == after


def mixed(folder, *names):
    """A run that mixes these sources."""
    tree = tiny_config(folder).model_dump()
    sources = [{"name": name, "weight": 1} for name in names]
    return RunConfig.model_validate({**tree, "data": {**tree["data"], "mix": {"sources": sources}}})


def test_a_run_that_mixes_sources_takes_in_those_that_were_added(grown, tmp_path):
    folder, before, after = grown
    before.save(folder, earlier_name(before.fingerprints["tokens"]))
    config = mixed(folder, "web")
    then = identify(config, before, 1)
    (web,) = Corpus(str(folder), before, config.data.mix, {}).drawn
    history = (Since(0, Mix((MixedSource("web", web.content, web.dataset, 100),), (Stage(0, (1.0,)),))),)
    corpus, identity = went_on(folder, mixed(folder, "web", "books"), after, RunState(mix=history), then)
    check_identity(then, identity, tmp_path)
    assert [source.name for source in corpus.drawn] == ["web", "books"]
    assert corpus.drawn[0].content == web.content and corpus.manifest == before
    whole = Source("", folder, after)
    history = (Since(0, Mix((MixedSource("all", whole.content, whole.dataset, 100),), (Stage(0, (1.0,)),))),)
    later = changed(after, sources=[*after.sources, SourceCounts(name="news")])
    after.save(folder, earlier_name(after.fingerprints["tokens"]))
    shards = [*after.splits["train"], next(iter(before.splits["validation"])).model_copy(update={"source": 2})]
    later = changed(later, splits={"train": ShardTable.of(shards)})
    corpus, _ = went_on(folder, mixed(folder, "web"), later, RunState(mix=history), identify(config, after, 1))
    assert corpus.grown is None and corpus.manifest == after
