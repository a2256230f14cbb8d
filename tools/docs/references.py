"""The configuration and command references, made from the code they describe."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from unisolo import config
from unisolo.cli import app

__all__ = [
    "command_reference",
    "commands",
    "configuration_reference",
    "field_docstrings",
    "sections",
]

LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >="}


def configuration_reference() -> str:
    """Markdown: one table per section of `unisolo.config.Config`, in the order of the file."""
    parts = []
    for prefix, section in sections(config.Config):
        parts.append(f"## {prefix or 'Top level'}\n\n{inspect.getdoc(section)}\n")
        notes = field_docstrings(section)
        rows = [
            (
                f"`{prefix}.{name}`" if prefix else f"`{name}`",
                f"`{_type(field)}`",
                f"`{_default(field)}`",
                " ".join(notes.get(name, "").split()),
            )
            for name, field in section.model_fields.items()
            if not _is_section(field.annotation)
        ]
        parts.append(_table(("key", "type", "default", "meaning"), rows))
    return "\n".join(parts)


def sections(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section with its dotted key, outer ones first."""
    yield prefix, section
    for name, field in section.model_fields.items():
        inner = field.annotation
        if _is_section(inner):
            yield from sections(inner, f"{prefix}.{name}" if prefix else name)  # type: ignore[arg-type]


def field_docstrings(section: type[BaseModel]) -> dict[str, str]:
    """The string under each field of a class, by the field's name; pydantic does not keep it."""
    (body,) = ast.parse(inspect.getsource(section)).body
    found = {}
    statements = body.body  # type: ignore[attr-defined]
    for field, note in pairwise(statements):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(note, ast.Expr)
            and isinstance(note.value, ast.Constant)
        ):
            found[field.target.id] = str(note.value.value)
    return found


def command_reference() -> str:
    """Markdown: one section per command of the `unisolo` program, from its signature."""
    parts = []
    for name, command in commands():
        function: Any = command.callback
        arguments, options = [], []
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            kind, info = _annotated(hints[parameter.name])
            (arguments if isinstance(info, ArgumentInfo) else options).append(
                _row(parameter, kind, info)
            )
        words = " ".join([name, *(row[0].strip("`") for row in arguments)])
        prose = inspect.getdoc(command.callback) or ""
        parts.append(f"## {name}\n\n```text\nunisolo {words} [OPTIONS]\n```\n")
        parts.append(f"{_escaped(prose).strip()}\n")
        if lines := _examples(command):
            parts.append(f"```text\n{lines}\n```\n")
        parts.append(_table(("argument", "value", "default", "meaning"), [*arguments, *options]))
    return "\n".join(parts)


def commands(group: typer.Typer = app, prefix: str = "") -> list[tuple[str, CommandInfo]]:
    """Words and typer's note of every command, by name; those of groups too."""
    found = []
    for command in group.registered_commands:
        if command.callback is not None and not command.hidden:
            name = command.name or command.callback.__name__.replace("_", "-")
            found.append((prefix + name, command))
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            found += commands(inner.typer_instance, f"{prefix}{inner.name} ")
    return sorted(found, key=lambda pair: pair[0])


def _examples(command: CommandInfo) -> str:
    """The command lines that end its help page, without rich's escapes."""
    lines = str(command.epilog or "").replace("\\[", "[").splitlines()
    return "\n".join(line.strip() for line in lines if line.strip().startswith("unisolo "))


def _annotated(hint: Any) -> tuple[Any, ArgumentInfo | OptionInfo]:
    """Type and typer's note of a parameter; every command states both."""
    kind, *notes = get_args(hint)
    (info,) = (note for note in notes if isinstance(note, (ArgumentInfo, OptionInfo)))
    return kind, info


def _row(
    parameter: inspect.Parameter, kind: Any, info: ArgumentInfo | OptionInfo
) -> tuple[str, str, str, str]:
    default = parameter.default
    name = parameter.name.upper()
    required = default is inspect.Parameter.empty
    kinds = [part for part in get_args(kind) or (kind,) if part is not type(None)]
    is_flag = kinds == [bool]
    if isinstance(info, ArgumentInfo):
        shown = info.metavar or (name if required else f"[{name}]")
    else:
        dashed = parameter.name.replace("_", "-")
        both = f"--{dashed}, --no-{dashed}" if is_flag else f"--{dashed}"
        # Inside Annotated the first flag stands where typer once had the default.
        flags = [flag for flag in (info.default, *(info.param_decls or ())) if type(flag) is str]
        shown = ", ".join(flags) or both
    if is_flag:
        value = ""
    elif isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        value = "`" + " | ".join(str(choice.value) for choice in kinds[0]) + "`"
    else:
        many = get_args(kinds[0]) if get_origin(kinds[0]) is list else kinds
        value = f"`{_type_name(many[0])}`"
    if required:
        default = "required"
    elif default in (None, False, ""):
        default = ""
    else:
        default = "on" if default is True else f"`{getattr(default, 'value', default)}`"
    return f"`{shown}`", value, default, _escaped(info.help or "")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(field: FieldInfo) -> str:
    limits = []
    for item in field.metadata:
        for attribute, sign in LIMITS.items():
            if getattr(item, attribute, None) is not None:
                limits.append(f"{sign} {getattr(item, attribute)}")
    return " ".join([_type_name(field.annotation), *([", ".join(limits)] if limits else [])])


def _type_name(annotation: Any) -> str:
    """A type as a reader of YAML sees it."""
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is not None and hasattr(annotation, "__metadata__"):
        return _type_name(get_args(annotation)[0])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if str(origin) == "typing.Literal":
        return " | ".join(str(argument) for argument in arguments)
    if origin in (tuple, list):
        inner = ["..." if argument is ... else _type_name(argument) for argument in arguments]
        return f"[{', '.join(inner)}]"
    if origin is dict:
        return "{" + ": ".join(_type_name(argument) for argument in arguments) + "}"
    if origin is not None:  # a union
        return " | ".join(_type_name(argument) for argument in arguments)
    return {"str": "text", "Path": "path", "bool": "true | false"}.get(
        annotation.__name__, annotation.__name__
    )


def _default(field: FieldInfo) -> str:
    """The default as YAML has it."""
    value = field.get_default(call_default_factory=True)
    value = list(value) if isinstance(value, tuple) else value
    plain = str(value) if hasattr(value, "parts") else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in lines) + "\n"


def _cell(text: str) -> str:
    """A bar ends a cell, but not inside backticks, where an escape would be shown."""
    parts = text.replace("\n", " ").split("`")
    return "`".join(p if n % 2 else p.replace("|", "\\|") for n, p in enumerate(parts))


def _escaped(text: str) -> str:
    """Signs such as those of *.png and <split> stand for themselves."""
    return re.sub(r"([*_<])", r"\\\1", text)
