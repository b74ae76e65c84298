"""Runs on whole documents train in every shape, and go on after a stop as if there had been none."""

from tests.training.runs import save_config, steps_of, tiny_config, torchrun

OBJECTIVES = {"causal": "next_token", "prefix": "ul2", "encoder": "masked_lm", "encdec": "prefix_lm"}
EXACT = ("step", "loss", "grad_norm", "samples_consumed", "tokens_consumed", "documents_cut", "padding")


def config_of(dataset, shape: str, steps: int):
    config = tiny_config(
        dataset,
        model={"shape": shape},
        objective={"name": OBJECTIVES[shape]},
        schedule={"name": "constant"},
        training={"steps": steps, "sequence_length": 64},
        evaluation={"interval_steps": 3, "num_samples": 8},
        checkpoint={"interval_steps": 3},
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"packing": "best_fit"})})


def test_every_shape_trains_on_whole_documents_and_resumes_to_the_last_bit(real_dataset, tmp_path):
    straight = [save_config(config_of(real_dataset, shape, 6), tmp_path / shape) for shape in OBJECTIVES]
    stopped = save_config(config_of(real_dataset, "encdec", 3), tmp_path / "stopped")
    for folders in ([*straight, stopped], [save_config(config_of(real_dataset, "encdec", 6), stopped)]):
        done = torchrun(1, "-m", "tests.training.grid_ranks", *map(str, folders))
        assert done.returncode == 0, done.stderr[:6000]
    for folder in straight:
        losses = [line["loss"] for line in steps_of(folder)]
        assert len(losses) == 6 and losses[-1] < losses[0], folder.name
    lines = [[[line[name] for name in EXACT] for line in steps_of(folder)] for folder in (straight[-1], stopped)]
    assert lines[0] == lines[1]
