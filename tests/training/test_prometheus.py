"""What Prometheus reads."""

import math
import re

from training.prometheus import FIGURES, exposition, write

COMMENT = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)")
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{run="((?:[^"\\\n]|\\["\\n])*)"\} (\S+)')


def parsed(text: str) -> dict[str, tuple[str, str, float]]:
    """Type, run and value by name, by the grammar of the text format."""
    found, kinds = {}, {}
    for line in text.splitlines():
        if comment := COMMENT.fullmatch(line):
            if comment[1] == "TYPE":
                assert comment[3] in ("counter", "gauge")
                kinds[comment[2]] = comment[3]
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        found[sample[1]] = kinds[sample[1]], sample[2], float(sample[3])
    assert text.endswith("\n")
    return found


def test_figures_are_written_as_the_format_wants_them_and_others_left_out():
    line = {"step": 7, "loss": 2.5, "mfu": None, "lr": 1e-5, "grad_norm": math.inf, "memory_gb": math.nan, "other": 3}
    found = parsed(exposition(line, 'a "run" of\nmine\\'))
    assert found["shardline_step"] == ("counter", 'a \\"run\\" of\\nmine\\\\', 7)
    assert found["shardline_loss"][2] == 2.5 and found["shardline_lr"][2] == 1e-5
    assert math.isinf(found["shardline_grad_norm"][2]) and math.isnan(found["shardline_memory_gb"][2])
    assert "shardline_mfu" not in found and "shardline_other" not in found


def test_the_file_is_replaced_whole(tmp_path):
    for step in (1, 2):
        write(tmp_path, dict.fromkeys(FIGURES, step), "run")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]
    found = parsed((tmp_path / "metrics.prom").read_text())
    assert len(found) == len(FIGURES) and {value for _, _, value in found.values()} == {2}
