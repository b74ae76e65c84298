"""What people see: brackets and blanks of names are shown, and pasted, as they are."""

import shlex
import sys
from pathlib import Path

import pytest
import yaml

from launcher import cli, evaluate
from launcher.console import StageProgress, command
from tests.launcher.test_config import MINIMAL
from training.scoring import ChoiceResult

NAME = "a [red]b[x]"


def test_names_with_brackets_are_no_markup(tmp_path, capsys, monkeypatch):
    with StageProgress("title") as progress:
        progress.note(f"loading {NAME}")
        progress._printed -= 2 * progress.LINE_INTERVAL_SECONDS
        progress.update(1, 2, title=NAME)
    evaluate.show(evaluate.Results(Path("x"), "x", None, {NAME: ChoiceResult(1, 0.5, 0.5, 0.5)}, {}))
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "config.yaml").write_text(yaml.safe_dump(MINIMAL))
    monkeypatch.setattr(sys, "argv", ["shardline", "checkpoint", "upgrade", str(tmp_path / NAME)])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.count(NAME) == 4


def test_a_command_to_paste_is_quoted():
    assert shlex.split(command("convert", "my run", "--out", "x")) == ["shardline", "convert", "my run", "--out", "x"]
