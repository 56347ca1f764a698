"""Options of a command out of its dataclass, a YAML file and the command line, the last one winning.

Fields of nested option groups are named without their group, on the command line (`--temperature`) as in the file
(`temperature: 0.6`); so names are unique within a command.
"""

import argparse
import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
import yaml

Options = TypeVar("Options")
NAMING = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
"""How flags are named after fields."""


class ConfigError(ValueError):
    """A configuration file that cannot be used."""


@dataclass(frozen=True)
class Invocation(Generic[Options]):
    """A command's options, and what every command takes besides."""

    options: Annotated[Options, tyro.conf.arg(name="")]
    config: Path | None = None
    """YAML file of options by their names here, with underscores; flags given on the command line win over it."""
    json: bool = False
    """Print one JSON object as the last line of standard output; everything for people goes to standard error."""


def parse_invocation(kind: type[Any], command: str, args: Sequence[str]) -> Invocation[Any]:
    """Parse a command's arguments. Raises `ConfigError`; wrong flags and `--help` end as tyro ends them."""
    path = _config_path(args)
    values = {} if path is None else read_config(path)
    base = _override(_blank(kind), values, kind, path)
    parsed = tyro.cli(
        Invocation[kind],  # type: ignore[valid-type]
        prog=f"navtoken {command}",
        description=kind.__doc__,
        default=Invocation(_without_lists(base)),
        args=list(args),
        config=NAMING,
    )
    return replace(parsed, options=_with_lists(parsed.options, base))


def defaults(kind: type[Any]) -> Invocation[Any]:
    """What a command takes where nothing is said; `tyro.MISSING` stands where something must be."""
    return Invocation(_blank(kind))


def argument_parser(kind: type[Any], command: str) -> argparse.ArgumentParser:
    """The flags of `parse_invocation` with their help; an action's `dest` is the path of its field in `defaults`."""
    with warnings.catch_warnings():
        # Deprecated without a successor: what tyro keeps of its parser besides has no public name at all.
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(
            Invocation[kind],  # type: ignore[valid-type]
            prog=f"navtoken {command}",
            description=kind.__doc__,
            default=Invocation(_without_lists(_blank(kind))),
            config=NAMING,
        )
    # Its annotation names tyro's copy of argparse; the class is of both.
    return cast(argparse.ArgumentParser, parser)


def read_config(path: Path) -> dict[str, Any]:
    """The file's mapping. Raises `ConfigError` where it is none, or names something twice."""
    try:
        read = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}; check the path after --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not YAML: {' '.join(str(error).split())}") from error
    if read is None:
        return {}
    if not isinstance(read, dict) or not all(isinstance(key, str) for key in read):
        raise ConfigError(f"'{path}' is no mapping; write one 'name: value' per line")
    return read


def field_names(kind: type[Any]) -> list[str]:
    """Names of all options of a command, those of nested groups included."""
    hints = get_type_hints(kind)
    return [
        name
        for each in fields(kind)
        for name in (field_names(hints[each.name]) if is_dataclass(hints[each.name]) else [each.name])
    ]


class _Loader(yaml.SafeLoader):
    """Refuses a name given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"'{name}' is given twice")
        return super().construct_mapping(node, deep)


def _config_path(args: Sequence[str]) -> Path | None:
    """What follows `--config`; the other arguments need the file's values as their defaults."""
    for index, arg in enumerate(args):
        if arg == "--config" and index + 1 < len(args):
            return Path(args[index + 1])
        if arg.startswith("--config="):
            return Path(arg.removeprefix("--config="))
    return None


def _blank(kind: type[Any]) -> Any:
    """The dataclass with its defaults; fields without one are for the command line to give."""
    required = [
        each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING
    ]
    return kind(**dict.fromkeys(required, tyro.MISSING))


def _override(options: Any, values: Mapping[str, Any], kind: type[Any], path: Path | None) -> Any:
    """`options` with the file's values in. Raises `ConfigError` naming unknown keys and the known ones."""
    known = field_names(kind)
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(f"'{path}': unknown key '{unknown[0]}'; known are {', '.join(known)}")

    def fill(group: Any) -> Any:
        hints = get_type_hints(type(group))
        changes = {}
        for each in fields(group):
            if is_dataclass(hints[each.name]):
                changes[each.name] = fill(getattr(group, each.name))
            elif each.name in values:
                changes[each.name] = _converted(values[each.name], hints[each.name], f"'{path}', {each.name}")
        return replace(group, **changes)

    return fill(options)


def _converted(value: Any, hint: Any, where: str) -> Any:
    """A YAML value as the field's type. Raises `ConfigError` naming the file, the field and what fits."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _converted(value, get_args(hint)[0], where)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None else _first_that_fits(value, kinds, where)
    if origin is tuple:
        items, hints = value if isinstance(value, list) else [value], get_args(hint)
        if hints[-1] is Ellipsis:
            return tuple(_converted(item, hints[0], where) for item in items)
        if len(items) != len(hints):
            raise ConfigError(f"{where}: {value!r} does not fit; give {len(hints)} values")
        return tuple(_converted(item, each, where) for item, each in zip(items, hints, strict=True))
    if origin is Literal and value in get_args(hint):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    # YAML 1.1 reads 1e-3 as text.
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if hint in (int, bool) and type(value) is hint:
        return value
    wanted = f"one of {', '.join(map(str, get_args(hint)))}" if origin is Literal else hint.__name__
    raise ConfigError(f"{where}: {value!r} does not fit; give {wanted}")


def _first_that_fits(value: Any, kinds: list[Any], where: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return _converted(value, kind, where)
        except ConfigError:
            continue
    return _converted(value, kinds[-1], where)


def _without_lists(options: Any) -> Any:
    """Repeatable options emptied: flags are appended to what is there, and they must replace it."""
    return _map_fields(options, lambda value, _: () if isinstance(value, tuple) else value, options)


def _with_lists(parsed: Any, base: Any) -> Any:
    return _map_fields(parsed, lambda value, before: before if value == () else value, base)


def _map_fields(options: Any, change: Any, beside: Any) -> Any:
    changes = {}
    for each in fields(options):
        value, other = getattr(options, each.name), getattr(beside, each.name)
        changes[each.name] = (
            _map_fields(value, change, other) if is_dataclass(value) else change(value, other)
        )
    return replace(options, **changes)
