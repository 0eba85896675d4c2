"""The command reference, made by walking the command line's application."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from website.tables import cell

INTRODUCTION = """# Commands

`distkg COMMAND --help` prints the same text in a terminal. Exit codes are listed under
[Signals and exit codes](../operations.md#signals-and-exit-codes). The scripts in `jobs/` take the arguments of the
commands of the same names.
"""


def command_tree(application: typer.Typer) -> Any:
    """Return the click command of a typer application."""
    return typer.main.get_command(application)


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (full name, command) of every command that does something, in the order of the help."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, child in inner.items():
        if not child.hidden:
            yield from walk(child, f"{path} {name}")


def option_names(command: Any) -> set[str]:
    """Return every spelling of every option of a command, ``--help`` included."""
    spelled = (name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts])
    return {"--help", *(name for name in spelled if name.startswith("-"))}


def commands_page(application: typer.Typer) -> str:
    """Return the reference of all commands, as Markdown."""
    tree = command_tree(application)
    lines = [INTRODUCTION, "## Options of every command", "", *_parameters(tree), ""]
    for name, command in walk(tree, "distkg"):
        lines += [f"## {name}", "", "```text", _usage(name, command), "```", "", _prose(command.help), ""]
        lines += [*_parameters(command), ""]
        if example := re.sub(r"^Example:\s*", "", command.epilog or ""):
            lines += ["Example:", "", "```text", example, "```", ""]
    return "\n".join(lines)


def _usage(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    return " ".join([name, *(piece.strip("{}") for piece in command.collect_usage_pieces(context))])


def _parameters(command: Any) -> list[str]:
    context = command.context_class(command)
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        rows.append(f"| {_spelling(parameter, context)} | {_default(parameter)} | {cell(parameter.help or '')} |")
    return ["| Argument or option | Default | Meaning |", "|---|---|---|", *rows] if rows else []


def _spelling(parameter: Any, context: Any) -> str:
    # Older versions of typer have click's make_metavar, newer ones their own display_type.
    typed = getattr(parameter, "display_type", None) or parameter.make_metavar
    metavar = parameter.metavar or typed(context)
    if parameter.param_type_name == "argument":
        return f"`{metavar}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    choices = metavar.strip("<[]>").split("|")
    return f"{names} {' or '.join(f'`{choice}`' for choice in choices)}" if len(choices) > 1 else f"{names} `{metavar}`"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if default is None or default == "" or default == () or callable(default) or parameter.param_type_name != "option":
        return ""
    if isinstance(default, bool):
        return "" if not parameter.secondary_opts and not default else f"`{str(default).lower()}`"
    return f"`{getattr(default, 'value', default)}`"


def _prose(text: str | None) -> str:
    return re.sub(r"\n\s*\n", "\n\n", re.sub(r"[ \t]*\n[ \t]*", "\n", text or "")).replace("\f", "").strip()
