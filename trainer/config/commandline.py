"""Convert a typed command line to what Hydra reads, or refuse it in one line with what to type instead.

Hydra's grammar gives a meaning to commas, brackets, braces, quotes and `=`, and a shell cuts at spaces. A
value that the grammar cannot read is quoted here where its meaning is plain; the rest is refused in words
instead of the parser's.
"""

import argparse
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_origin

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException

from peakpoint.base import given, registry
from peakpoint.base.errors import UserError
from peakpoint.base.text import closest, nearest
from peakpoint.trainer.config.choices import LISTS, choices, groups, leaves
from peakpoint.trainer.config.explain import meant
from peakpoint.trainer.config.hydra_overrides import RENAMED, quote, renamed, split, unquote
from peakpoint.trainer.reports.run_record import RUN

COMPLETION = {"-sc", "--shell-completion"}
MULTIRUN = {"-m", "--multirun"}
SEVERAL = (*(key.replace(".", "/") for key in LISTS.values()), "plugins")
"""What takes a list."""
MADE = {"hydra.run.dir", "hydra.sweep.dir"}
"""What Hydra makes, and takes `~` for a name."""
PLACES = {"data.root", "checkpoint.mirror.url", *MADE}
FOLDERS = {*MADE, "hydra.sweep.subdir"}
TEXT = {*FOLDERS, "hydra.job.name"}


def read(argv: list[str]) -> list[str]:
    """Return the arguments with the options first, and with quotes where Hydra needs them.

    `argv` is without the program's name. Raises UserError, which says in one line what to type.
    """
    if COMPLETION & set(argv):
        return argv
    flags, words = _options(argv)
    sweep = bool(MULTIRUN & set(flags)) or "hydra.mode=MULTIRUN" in words
    if not sweep and (
        named := [word for word in words if word.startswith("sweep=") and word != "sweep=null"]
    ):
        raise UserError(f"{_type(named[-1])} trains several runs: type {_type('-m', named[-1])}")
    return [*flags, *overrides(words, sweep=sweep)]


def overrides(words: list[str], *, sweep: bool = False) -> list[str]:
    """Return overrides as Hydra's parser takes them; `sweep` allows several values. Raises UserError."""
    _refuse_spaces(words)
    return [_override(word, sweep) for word in words]


def _type(*words: str) -> str:
    """Return what to type, as a shell takes it."""
    return " ".join(map(shlex.quote, words))


# --- Options: what begins with a dash.


def _options(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the command line: the options of Hydra with their values, and the rest."""
    parser: Any = get_args_parser()
    known: dict[str, argparse.Action] = parser._option_string_actions
    flags: list[str] = []
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        full = [o for o in known if o.startswith(name)] if name.startswith("--") and name != "--" else []
        action = known.get(name) or (known[full[0]] if len(full) == 1 else None)
        if action is None:
            _refuse_option(word, rest, [o for o in known if o.startswith("--")])
        flags.append(word)
        if action.nargs == 0 or equals:
            continue
        takes = bool(rest) and not rest[0].startswith("-")
        if action.nargs == "?" and not (takes and rest[0] in (action.choices or ())):
            continue
        value = rest.pop(0) if takes else ""
        among = list(action.choices or ())
        if not value or (among and value not in among):
            fault = f"{_type(word, value)} is not a choice" if value else f"{word} has no value"
            raise UserError(f"{fault}; there are: {', '.join(among)}." if among else f"{fault}: add one.")
        flags.append(value)
    return flags, words


def _refuse_option(word: str, rest: list[str], options: list[str]) -> NoReturn:
    name, _, value = word.partition("=")
    close = closest(f"--{name.lstrip('-')}", options, 0.75)
    key = name.lstrip("-").replace("-", "_")
    if not close and key and (found := meant(key, _roots())):
        given = value or (rest[0] if rest and "=" not in rest[0] and not rest[0].startswith("-") else "")
        typed = _type(word, *[given] * (given != value))
        instead = _type(f"{found}={given or 'VALUE'}")
        raise UserError(f"{typed}: values are set without dashes: type {instead}")
    also = f": did you mean {close}?" if close else "; python train.py --hydra-help lists all."
    raise UserError(f"{word} is not an option{also}")


# --- Overrides: key=value.


def _roots() -> set[str]:
    """Return what a key may begin with; `hydra` apart."""
    fields = {key for key in leaves() if "." not in key}
    return fields | {group.split("/")[0] for group in groups()} | {"local"}


def _refuse_spaces(words: list[str]) -> None:
    """Raise UserError where a shell has cut an override at a space."""
    for place, word in enumerate(words):
        joined = word
        for following in words[place + 1 :]:
            open_list = joined.count("[") > joined.count("]") or joined.count("{") > joined.count("}")
            cut = joined.endswith((",", "=")) or following.startswith((",", "=")) or open_list
            named = joined in leaves() or joined in groups()
            if not (cut or named) or (not open_list and "=" in following[1:]):
                break
            between = "=" if named and not cut else ","
            joined += following if cut and not _ends_item(joined, following) else between + following
        if joined != word:
            raise UserError(f"the shell cuts at spaces; without them: {_type(joined)}")


def _ends_item(joined: str, following: str) -> bool:
    """Return whether an item of a list ends here and another begins, with nothing but a space between."""
    return joined[-1] not in ",=[{:" and following[0] not in ",=]}:"


def _override(word: str, sweep: bool) -> str:
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~").partition("@")[0]
    if not bare or (not equals and not key.startswith("~")):
        _refuse_word(word)
    if key != key.strip() or value != value.strip():
        instead = _type(f"{key.strip()}={value.strip()}")
        raise UserError(f"{_type(word)} has spaces around its value: type {instead}")
    if equals and (new := renamed(f"{bare}={value}")):
        raise UserError(f"{bare} is set as {_with_choice(new)}")
    root = re.split(r"[./]", bare)[0]
    if not key.startswith("+") and root != "hydra" and root not in _roots():
        found = meant(re.split(r"[./]", bare)[-1], _roots())
        if found in SEVERAL and value not in choices(found):
            switch = renamed(f"{bare}=true")  # of earlier versions
            value = switch.partition("=")[2] if switch else f"[{','.join(choices(found))}]"
        instead = f": did you mean {_type(f'{found}={value}')}?" if found else nearest("", _roots())
        raise UserError(f"{bare} is not a key of this configuration{instead}")
    if value.startswith("="):
        instead = _type(f"{key}={value.lstrip('=')}")
        raise UserError(f"{_type(word)}: one = is enough: type {instead}")
    group = bare.replace(".", "/")
    if "." in bare and group in groups() and not value.startswith("{") and not key.startswith("~"):
        raise UserError(f"{bare} is chosen with a slash: type {_type(f'{group}={value}')}")
    known = leaves()
    named = bare in groups() or bare in PLACES or (bare in known and not _is_text(bare))
    if bare in groups() and value == "null" and bare not in (*known, *SEVERAL):
        raise UserError(f"{key}=null is not a choice: leave it out, or type ~{bare}")
    if equals and not value and (named or bare == "resume"):
        among = f"; there are: {', '.join(choices(bare))}." if bare in groups() else f": type {bare}=VALUE"
        raise UserError(f"{key}= has no value{among}")
    if is_dataclass(kind := known.get(bare)) and bare not in groups() and value[:1] not in ("{", "["):
        below = " ".join(f"{bare}.{field.name}=VALUE" for field in fields(kind))
        raise UserError(f"{bare} is no value by itself: type {below}")
    if key.startswith("~"):
        _refuse_removal(word, bare, root)
    if value.endswith(","):
        raise UserError(f"{_type(word)} ends with a comma: type {_type(word.rstrip(','))}")
    parsed, quoted = _parsed(word, key, value, text=_is_text(bare))
    if bare in FOLDERS and (parsed.value() in (None, "???") or isinstance(parsed.value(), list | dict)):
        raise UserError(f"{_type(word)} is not the name of a folder: type {bare}=FOLDER")
    if equals:
        _refuse_value(word, bare, parsed.value())
    if bare in MADE and unquote(value).startswith("~"):
        return f"{key}={quote(str(given.path(unquote(value))))}"
    if parsed.is_sweep_override() and bare == "resume":
        return f"{key}={quote(value)}"
    if parsed.is_sweep_override() and not sweep:
        _refuse_several(key, bare, value)
    return quoted


def _refuse_removal(word: str, bare: str, root: str) -> None:
    """Raise UserError for `~` before what cannot be done without."""
    known = leaves()
    if (group := bare.replace(".", "/")) in SEVERAL:
        raise UserError(f"{word} would remove a list that is needed: type {_type(f'{group}=[]')}")
    if bare in groups() and bare in known:
        among = ", ".join(choices(bare))
        raise UserError(f"{word} would remove a choice that is needed: type {bare}=NAME; there are: {among}.")
    if root == "hydra":
        raise UserError(f"{word} would remove what Hydra needs: leave it out, or set it as {bare}=VALUE")
    if bare in known:
        now = RENAMED.get(bare, bare)
        raise UserError(f"{word} would remove a value that is needed: type {now}=VALUE to set it.")


def _with_choice(override: str) -> str:
    """Return the end of a message that names another override, and the choices where it has none of them."""
    key, value = split(override)
    if key in groups() and not value.startswith("[") and value not in choices(str(key)):
        return f"{key}{nearest(value, choices(str(key)), f'{key}=')}"
    return f"{key}: type {_type(override)}"


def _refuse_value(word: str, bare: str, value: Any) -> None:
    """Raise UserError for a choice without a name, and for one value where a list or keys are expected."""
    listed = bare in SEVERAL or get_origin(leaves().get(bare)) is list
    scalar = value is None or isinstance(value, str | int | float)
    if listed and (value is None or (scalar and bare not in groups() and "${" not in str(value))):
        instead = _type(f"{bare}=[{'' if value is None else value}]")
        raise UserError(f"{_type(word)} needs brackets: type {instead}")
    if bare in SEVERAL and isinstance(value, dict) and not any(value.values()):
        instead = _type(f"{bare}=[{','.join(map(str, value))}]")
        raise UserError(f"{_type(word)} sets nothing: type {instead}")
    if bare in groups() or bare in SEVERAL:
        jobs = value.list if isinstance(value, ChoiceSweep) else [value]
        names = [name for each in jobs for name in (each if isinstance(each, list) else [each])]
        if not all(isinstance(name, str | QuotedString | dict | Sweep) and name for name in names):
            among = nearest("", choices(bare)) if bare in groups() else ": leave it out, or name a module."
            raise UserError(f"{_type(word)} is not a choice{among}")
    node, _, name = bare.rpartition(".")
    kind = next((kind for kind, key in LISTS.items() if key == node), "")
    if kind and name in registry.table(kind) and scalar:
        chosen = _type(f"{node.replace('.', '/')}=[NAME]")
        raise UserError(
            f"{_type(word)} cannot be: leave it out with ~{bare}, or choose with {chosen} what is to be used."
        )


def _is_text(key: str) -> bool:
    return key in TEXT or leaves().get(key) in (str, str | None)


def _parsed(word: str, key: str, value: str, *, text: bool) -> tuple[Override, str]:
    """Return an override parsed, and as it is parsed: quoted when that is what it takes. Raises UserError."""
    parser = OverridesParser.create()
    as_text = f"{key}={quote(unquote(value))}"
    attempts = [word, as_text] if text or not re.search(r"""[,'"()\[\]{}]""", value) else [word]
    for attempt in attempts:
        try:
            return parser.parse_override(attempt), attempt
        except HydraException:
            continue
    lists = "a list is written as [a,b], and text as it is" if value[:1] in ("[", "{") else "text as it is"
    raise UserError(f"{_type(word)} cannot be read: {lists} as {_type(as_text)}")


def _refuse_several(key: str, bare: str, value: str) -> NoReturn:
    word = f"{key}={value}"
    if bare in SEVERAL:
        raise UserError(f"{word} needs brackets: type {_type(f'{key}=[{value}]')}")
    also = ""
    if _is_text(bare):
        also = f", or {_type(f'{key}={quote(value)}')} for the text as it is"
    elif leaves().get(bare) in (float, float | None) and re.fullmatch(r"\d+,\d+", value):
        also = f", or {key}={value.replace(',', '.')} for a number with a fraction"
    raise UserError(f"{_type(word)} has several values: type -m {_type(word)} to train with each{also}.")


def _refuse_word(word: str) -> NoReturn:
    """Raise UserError for what has no `=`."""
    key, colon, value = word.partition(":")
    folder, _, option = word.rpartition("/")
    owners = [group for group in groups() if word in choices(group)]
    if (Path(word) / RUN).is_file() or word.endswith(".pt"):
        remedy = f"did you mean {_type(f'resume={word}')}?"
    elif owners:
        remedy = f"did you mean {_type(f'{owners[0]}={word}')}?"
    elif colon and meant(key, _roots()):
        remedy = f"type {_type(f'{meant(key, _roots())}={value}')}"
    elif folder in groups():
        remedy = f"did you mean {_type(f'{folder}={option}')}?"
    elif word in groups():
        remedy = f"it needs a value: {word}=NAME{nearest('', choices(word))}"
    elif word in _roots() or word in leaves():
        remedy = f"it needs a value: type {word}=VALUE"
    else:
        remedy = (
            "values are set as key=value, such as epochs=10; several values are separated by commas alone."
        )
    raise UserError(f"{_type(word)} sets nothing: {remedy}")
