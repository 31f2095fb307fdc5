"""``podroute config``: what needs a file and no running agent."""

from __future__ import annotations

import json

import click

from config.load import check_file
from config.model import DEFAULT_PATH
from config.show import dump_yaml, effective

_FILE = click.argument("file", type=click.Path(), default=DEFAULT_PATH)


@click.group(name="config")
def config_commands() -> None:
    """Check and show a node's configuration file."""


@config_commands.command()
@_FILE
@click.pass_context
def check(context: click.Context, file: str) -> None:
    """Say everything that is wrong with FILE; exit status 1 if anything is."""
    report = check_file(file)
    for problem in report.problems:
        click.echo(problem.render(file))
    if report.problems:
        context.exit(1)
    for warning in report.warnings:
        click.echo(f"{file}:{warning.path}: warning: {warning.text}")
    click.echo(f"{file}: ok")


@config_commands.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="JSON instead of YAML.")
@click.pass_context
def show(context: click.Context, file: str, as_json: bool) -> None:
    """Print the configuration of FILE as it holds: defaults filled in, secrets left out."""
    report = check_file(file)
    if report.config is None:
        for problem in report.problems:
            click.echo(problem.render(file), err=True)
        context.exit(1)
    data = effective(report.config)
    click.echo(json.dumps(data, indent=2) if as_json else dump_yaml(data), nl=as_json)
