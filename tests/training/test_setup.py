"""What is refused when a run is put together: what only the dataset tells."""

import numpy as np
import pytest

from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shards import ShardWriter
from tests.training.runs import tiny_config
from training.config import RunConfig
from training.distributed import World
from training.events import EventLog
from training.setup import prepare


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
