"""What the pages show can be typed: configurations are right, commands and options exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from agent.cli import cli
from config.load import check_text

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text() for page in PAGES}
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(podroute [a-z][^`\n]*)`")
_LINE = re.compile(r"^ *(?:n1 |sudo )?(?:\.venv/bin/)?(podroute [a-z].*)$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
_NODE = {"name": "n1", "as": 65001, "routerId": "10.1.1.11", "labels": {"rack": "r1"}, "addresses": ["10.1.1.11"]}
_NOT_HERE = ("cannot be read (No such file or directory)", "which is no file")
"""What is said of files that an operator puts there."""


@pytest.mark.parametrize(("page", "text"), [(page, text) for page in TEXTS for text in _YAML.findall(TEXTS[page])])
def test_configurations_are_right(page: str, text: str) -> None:
    given = yaml.safe_load(text)
    if "scrape_configs" in given:
        return  # Prometheus' own
    if "export" in given:
        given = {"peers": {"tor": {"address": "10.1.1.1", "as": 65011, "import": "accept", **given}}}
    whole = {"apiVersion": "podroute/v1", "node": _NODE, **given}
    found = [problem.render(page) for problem in check_text(yaml.safe_dump(whole, sort_keys=False), page).problems]
    assert [line for line in found if not any(words in line for words in _NOT_HERE)] == []


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_options_exist(page: str) -> None:
    indented = [line for line in TEXTS[page].splitlines() if line.startswith("    ")]
    lines = [line for block in [*_FENCED.findall(TEXTS[page]), *indented] for line in _LINE.findall(block)]
    assert [line for line in lines + _SPAN.findall(TEXTS[page]) if not known(line)] == []


def known(line: str) -> bool:
    """Tell whether a command line names commands and options that there are; arguments may be anything."""
    words = [word.strip("[]{}") for word in shlex.split(line, comments=True)[1:]]
    command: click.Command = cli
    while words and isinstance(command, click.Group):
        context = click.Context(command)
        found = command.get_command(context, words[0].split("|")[0])
        if found is None:
            return command is not cli and words[0].startswith("-")
        command, words = found, words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    behind = words.index("--") if "--" in words else len(words)
    asked = [word.partition("=")[0] for word in words[:behind] if word.startswith("-") and len(word) > 1]
    return all(option in options | {"--help", "-h"} for option in asked)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{path}#{anchor}"
