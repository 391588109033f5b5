"""The README against the code: what it names exists, and every command is named."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from app.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAUNCHER_ONLY = {"test"}
LAUNCHER_FLAGS = {"--repair"}


def commands() -> dict[str, argparse.ArgumentParser]:
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the parser has no commands")


def flags() -> set[str]:
    parsers = [build_parser(), *commands().values()]
    return {o for p in parsers for a in p._actions for o in a.option_strings if o[:2] == "--"}


def test_every_flag_in_the_readme_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named - LAUNCHER_FLAGS <= flags()


def test_every_command_is_in_the_readme_and_back() -> None:
    table = README.split("| command | does |")[1].split("\n\n")[0]
    named = {w.split()[0] for w in re.findall(r"`([a-z-]+)[^`]*`", table)}
    assert named - LAUNCHER_ONLY == set(commands())


def test_the_two_commands_are_the_launcher_and_the_test() -> None:
    assert "python launch.py          #" in README
    assert "python launch.py test     #" in README
    assert "python3 launch.py test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_file_the_readme_links_to_is_here() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_requirement_is_pinned_and_gives_a_reason() -> None:
    for name in ("requirements.txt", "tests/requirements.txt"):
        reason = ""
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                reason = line
            elif line.strip():
                assert re.match(r"^[\w-]+==[\w.]+(; .+)?$", line), line
                assert len(reason) > 12, f"{line} has no reason"
            else:
                reason = ""
