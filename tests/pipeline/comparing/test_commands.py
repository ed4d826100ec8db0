"""The commands runs, compare and confused: their words reach the functions, and folders are those where they were typed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline import commands
from pipeline.commands import compare as compare_command
from pipeline.commands import confused as confused_command
from pipeline.commands import runs as runs_command
from pipeline.comparing import comparison, confused, listing


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (runs_command.command, listing.runs),
        (compare_command.command, comparison.compare),
        (confused_command.command, confused.confused),
    ],
)
def test_a_command_has_the_options_of_its_function(command: click.Command, function: Any) -> None:
    given = {each.name for each in command.params if each.expose_value}
    assert given == set(inspect.signature(function).parameters)


def test_folders_and_files_are_those_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(commands, "_typed_in", [tmp_path])
    got: dict[str, Any] = {}
    monkeypatch.setattr(comparison, "compare", lambda **options: got.update(options))
    done = CliRunner().invoke(compare_command.command, ["other", "here", "HEAD~1", "--html", "page.html"])
    assert done.exit_code == 0, done.output
    assert [*got["names"]] == [str(tmp_path / "other"), "here", "HEAD~1"]
    assert got["html"] == tmp_path / "page.html"
    assert CliRunner().invoke(compare_command.command, []).exit_code == 2
    assert CliRunner().invoke(runs_command.command, ["--last", "0"]).exit_code == 2
