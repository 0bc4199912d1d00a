"""Reading a configuration: YAML file and command line -> a checked `Config`, or one line that says what is wrong.

jsonargparse checks the types; the rules against what would change a run unseen are here.
"""

import argparse
import difflib
import functools
import os
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dim.checkpoint import replacing, to_be_written
from dim.config import Config, UserError, built, check, flat, leaves, needed_for

ELSEWHERE = (
    "run.",
    "device",
    "data.root",
    "data.download",
    "data.memory",
    "data.workers",
)  # where a run happens and what it writes, not what it is


def read(argv: list[str], default: Path, flags: dict[str, str] | None = None) -> tuple[Config, argparse.Namespace]:
    """The checked configuration of a command line, `--config FILE` first, `--group.key value` over it.

    default: the file read where no --config is given. flags: names and help of switches beside the configuration.
    Raises UserError, one line, for whatever is unknown, given twice, ill-typed, out of range or contradictory.
    """
    chosen, asked = words_of(argv, default, flags)
    given, axes = settings_of(chosen.config)
    if left := [axis for axis in axes if axis not in asked]:
        raise UserError(
            f"{chosen.config} is a grid over {', '.join(left)}: one run of it needs a value for each, as --{left[0]} .."
        )
    config = built(flat(Config()) | {key: typed(key, value) for key, value in (given | asked).items()})
    check(config)
    for key in asked:  # a file may hold settings that a word on the command line switched off
        if setting := needed_for(key, config):
            raise UserError(f"--{key} would have no effect: it needs {setting}")
    return config, chosen


def open_axes(argv: list[str], default: Path, flags: dict[str, str] | None = None) -> dict[str, list]:
    """The axes of a grid that a command line leaves open: {key: its values}, {} for one run. The arguments of `read`."""
    chosen, asked = words_of(argv, default, flags)
    return {key: values for key, values in settings_of(chosen.config)[1].items() if key not in asked}


def words_of(argv: list[str], default: Path, flags: dict[str, str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """A command line as its switches, `config` among them, and the keys that it sets."""
    switches = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=Path(sys.argv[0]).name)
    switches.add_argument(
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help=f"YAML file with any of the keys below; its values replace the defaults given there (default: {default.name})",
    )
    for name, help in (flags or {}).items():
        switches.add_argument(f"--{name}", action="store_true", help=help)
    if {"-h", "--help"} & set(argv):
        print(switches.format_help(), help_of_keys(), sep="\n")
        raise SystemExit(0)
    switches.error = refuse  # type: ignore
    chosen, rest = switches.parse_known_args(argv)
    return chosen, command_line(rest)


def settings_of(path: Path) -> tuple[dict[str, Any], dict[str, list]]:
    """A configuration file as its keys, and the axes of its grid: `grid: {key: [value, ..], ..}`, {} where it has none."""
    content = read_yaml(path)
    axes = content.pop("grid", {})
    if not isinstance(axes, dict):
        raise UserError(f"{path}: grid is a group of keys with lists of values, not {axes!r}")
    given, found = nested_keys(content, str(path)), nested_keys(axes, f"{path}: grid")
    for key, values in found.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid: {key} is {values!r}: it must be a list of values")
        if len({str(value) for value in values}) < len(values):
            raise UserError(f"{path}: grid: {key} has a value twice")
        if key in given:
            raise UserError(f"{path}: {key} has a value and stands in the grid too")
        if key.startswith("run."):
            raise UserError(f"{path}: grid: {key} tells no runs apart")
    return given, found


def refuse(message: str) -> None:
    """What argparse calls with its complaint."""
    raise UserError(one_line(message))


@functools.cache
def schema() -> Any:
    """The schema as a jsonargparse parser, one argument for each key: it checks types."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog="configuration", exit_on_error=False, add_help=False)
    for key, (kind, _) in leaves().items():
        parser.add_argument(f"--{key}", type=kind)
    return parser


def help_of_keys() -> str:
    """A line for each key: its help, what a value may be, its default."""
    initial = flat(Config())
    lines = []
    for key, (kind, f) in leaves().items():
        default = list(initial[key]) if isinstance(initial[key], tuple) else initial[key]
        lines.append(f"  --{key:<28} {f.metadata['help']}\n{'':<33}{possible(kind)}; default {default!r}")
    return "configuration, as --key value here or as nested keys in the file:\n" + "\n".join(lines)


def typed(key: str, value: Any) -> Any:
    """The value as the type of its key, or UserError that says what is possible."""
    import jsonargparse

    kind = leaves()[key][0]
    choices = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
    if value is False and "off" in choices:
        value = "off"  # YAML reads the word off as false
    try:
        if value is not None:
            return schema().parse_object({key: value}, defaults=False)[key]
    except jsonargparse.ArgumentError:
        pass
    raise UserError(one_line(f"{key} is {value!r}: it must be {possible(kind)}{nearest(str(value), choices)}"))


def possible(kind: Any) -> str:
    """A type in words: what a value of it may be."""
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if get_origin(kind) is tuple:
        return "[number, number]"
    if get_args(kind):
        return " or ".join(possible(part) for part in get_args(kind))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


def command_line(words: list[str]) -> dict[str, Any]:
    """["--train.lr", "1e-3", "--seed=1"] -> {"train.lr": 0.001, "seed": 1}, values read as in a YAML file."""
    found: dict[str, Any] = {}
    words = list(words)
    while words:
        word, has_value, text = words.pop(0).partition("=")
        if not word.startswith("--"):
            raise UserError(f"{word!r} is not an option: options read --group.key value")
        key = known(word[2:], "the command line")
        if not has_value:
            if not words or words[0].startswith("--"):
                raise UserError(f"{word} needs a value: {possible(leaves()[key][0])}")
            text = words.pop(0)
        if key in found:
            raise UserError(f"{word} is given twice")
        found[key] = text if leaves()[key][0] is str else parse_yaml(text, word)
    return found


def read_yaml(path: Path) -> dict:
    """A YAML file of at most 1 MB as a mapping, {} for an empty one. UserError otherwise, one line."""
    try:
        if path.stat().st_size > 1_000_000:
            raise UserError(f"{path} has more than 1 MB: that is no configuration")
        content = parse_yaml(path.read_text(), str(path))
    except FileNotFoundError:
        near = [str(p) for p in sorted(Path("configs").rglob("*.yaml"))]
        raise UserError(f"no such file: {path}{nearest(str(path), near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{path} must hold `key: value` lines, not {type(content).__name__}")
    return content or {}


def parse_yaml(text: str, where: str) -> Any:
    """YAML without what would change a configuration unseen: tags, aliases, a key twice, numbers with a leading 0."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
                what = "aliases" if isinstance(event, yaml.AliasEvent) else "tags"
                raise UserError(f"{where}, line {event.start_mark.line + 1}: {what} are not allowed")
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise UserError(f"{where}, line {node.start_mark.line + 1}: the key {twice!r} stands there twice")
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node):
            if re.fullmatch(r"[-+]?0\d+", node.value):
                raise UserError(f"{where}: {node.value} would be read as octal; write it without the leading 0")
            return super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "problem", None) or error
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(one_line(f"{where}{line}: not YAML of a configuration: {reason}")) from None


def nested_keys(content: dict, where: str, prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}; UserError at a key that the schema lacks."""
    groups = {key.rsplit(".", i)[0] for key in leaves() for i in range(1, key.count(".") + 1)}
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in groups:
            if not isinstance(value, dict):
                raise UserError(f"{where}: {name} is a group of keys, not {value!r}")
            found |= nested_keys(value, where, f"{name}.")
        else:
            found[known(name, where)] = value
    return found


def known(key: str, where: str) -> str:
    """The key itself, or UserError with the nearest one."""
    if key not in leaves():
        raise UserError(f"unknown key {key!r} in {where}{nearest(key, list(leaves()))}")
    return key


def nearest(word: str, words: list[str]) -> str:
    """'; did you mean ...?' where one of the words is near, or ends as the word does, else ''."""
    lower = {option.lower(): option for option in words}
    near = sorted((option for option in words if option.split(".")[-1] == word), key=len)
    distance = {found: edits(word.lower(), found) for found in lower}
    near += [lower[found] for found in sorted(distance, key=lambda found: distance[found]) if distance[found] <= 2]
    near += [lower[found] for found in difflib.get_close_matches(word.lower(), lower, 1)]
    return f"; did you mean {near[0]}?" if near else ""


def edits(a: str, b: str) -> int:
    """How many letters must be put in, left out, replaced or exchanged with the next to make b of a, each letter
    once (the optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, before, row = before, row, [i + 1]
        for j, y in enumerate(b):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (x != y)))
            if i and j and x == b[j - 1] and a[i - 1] == y:
                row[-1] = min(row[-1], last[j - 1] + 1)
    return row[-1]


def one_line(message: str, width: int = 180) -> str:
    """A library's message on one line of at most `width` characters."""
    text = " ".join(message.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def dump(config: Config) -> str:
    """The configuration as YAML that `read` reads back to the same."""
    import yaml

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return yaml.safe_dump(plain(config), sort_keys=False)


def saved(folder: Path) -> Config:
    """The configuration of the run in a folder; UserError where there is none."""
    path = folder / "config.yaml"
    if not os.path.exists(path):  # Path.exists raises where a name is too long
        raise UserError(f"{one_line(str(folder), 100)} is not the folder of a run: it has no config.yaml")
    return read(["--config", str(path)], path)[0]


def check_folder(config: Config, folder: Path) -> None:
    """UserError where a folder holds another run, or cannot be one."""
    try:
        there = (folder / "config.yaml").exists()
    except OSError as error:
        raise UserError(f"run.dir {one_line(str(folder), 100)} cannot be read: {error.strerror}") from None
    changed = differences(saved(folder), config) if there else []
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(changed[:3])}{more}): "
            "give another --run.dir, or delete it"
        )


def prepare(config: Config, folder: Path) -> None:
    """Make the run folder with its resolved configuration; UserError where it holds another run."""
    check_folder(config, folder)
    with to_be_written(f"run.dir {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "config.yaml") as file:
            file.write(dump(config).encode())


def differences(old: Config, new: Config) -> list[str]:
    """The keys in which two runs differ as 'key: old -> new'; where they are kept and run does not count."""
    a, b = flat(old), flat(new)
    return [f"{key}: {a[key]} -> {b[key]}" for key in a if a[key] != b[key] and not key.startswith(ELSEWHERE)]
