"""Resolution of the interpolations ``${…}`` of a run file, by OmegaConf."""

import copy
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, UnsupportedInterpolationType

from quintet.config.describe import with_defaults
from quintet.config.keypath import ABSENT, KeyPath, is_list, is_mapping, lookup, parse, show, walk
from quintet.config.provenance import Problem, RunFileError, origin_of, shown
from quintet.config.read import YamlDocument
from quintet.errors import UserError, one_line

_REFERENCE = re.compile(r"\$\{\s*(?:oc\.select:\s*)?(\.*)\[?([^\s.:,\[\]{}$]+)\]?\s*(?=[.},\[])")
"""A reference to a key, with groups for its points and its first name: ``${name}``, ``${..name.inner}``,
``${oc.select:name,0}``."""
_REFERENCE_TO = re.compile(r"\$\{\s*(?:oc\.select:\s*)?(\.*)([^\s:,{}$]+)\s*(?=[},])")
"""A reference to a key, with groups for its points and all of its names."""
_RAISED = re.compile(r"^(?:Value|Overflow)Error raised while resolving interpolation: ")
_COPIES_OF = re.compile(r"\$\{\s*for:.*?,\s*(\d{1,9}|\$\{[^{}]*\})\s*,", re.DOTALL)
_MOST_COPIES, _MOST_GROWTH = 10_000, 10_000_000
_OF_A_VALUE, _OF_A_NAME = 100, 1000  # characters that cost as much as a value, and as looking up a name, in OmegaConf
_MOST_DIGITS = 100  # so that arithmetic with several numbers stays within floats
_TOO_LARGE = 10**_MOST_DIGITS
_LONGEST_CHAIN = 50  # values that name one another; OmegaConf recurses, and fails at about 80


def resolve(
    document: YamlDocument,
    defaults: Callable[[dict[str, Any]], dict[str, Any]] = with_defaults,
    keep_unset: bool = False,
) -> dict[str, Any]:
    """Return the values of ``document`` with all interpolations resolved.

    Interpolations may refer to defaults, which ``defaults`` adds: the schema's, or a dialect's. With ``keep_unset`` an
    interpolation of an environment variable that is not set stays as it is, because only training needs a run's
    secrets. Raises RunFileError with all interpolations that name nothing, all values ``???``, and all numbers with too
    many digits.
    """
    values = copy.deepcopy(document.values)
    texts = [(path, text) for path, text in walk(document.values) if isinstance(text, str)]
    interpolations = [(path, text) for path, text in texts if "${" in text]
    background = OmegaConf.create(defaults(document.values)) if interpolations else None
    problems: list[Problem] = []
    growth = Growth(document.values)
    for path, _ in interpolations:
        try:
            growth.check(path)
        except UserError as error:  # values that name this one are too large as well
            raise RunFileError([Problem(origin_of(path, document.provenance), show(path), str(error))]) from None
    for path, text in interpolations:
        try:
            _put(values, path, _resolved(background, path))
        except (OmegaConfBaseException, RecursionError) as error:
            if keep_unset and "Environment variable" in str(error):
                continue
            problems.append(Problem(origin_of(path, document.provenance), show(path), unresolved(text, error)))
    for path, value in walk(values):
        if isinstance(value, int) and abs(value) >= _TOO_LARGE:
            origin = origin_of(path, document.provenance)
            problems.append(
                Problem(origin, show(path), f"has more than {_MOST_DIGITS} digits, which no number can have")
            )
    for path, text in texts:
        if text == "???" and not isinstance(path[-1], int):
            origin = origin_of(path, document.provenance)
            problems.append(Problem(origin, show(path), "is ???, which stands for a value that must be given; give it"))
    if problems:
        raise RunFileError(problems)
    return values


def variables_of(document: YamlDocument) -> frozenset[str]:
    """Return the names at the top of ``document`` to which its interpolations refer."""
    variables: set[str] = set()
    for path, text in walk(document.values):
        for points, name in _REFERENCE.findall(text) if isinstance(text, str) else ():
            if len(points) in (0, len(path)):  # relative references have one point per section that they leave
                variables.add(name)
    return frozenset(variables)


class Growth:
    """The sizes to which the interpolations of ``values`` expand: a few lines, each of which names the line before
    several times, can expand to more than fits in memory."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._sizes: dict[KeyPath, int] = {}
        self._chains: dict[KeyPath, int] = {}
        self._total = 0

    def check(self, path: KeyPath) -> None:
        """Raise UserError if the value at ``path``, together with those checked before, expands to too much, or depends
        on too long a chain of values."""
        self._total += self._size(path)
        if self._total > _MOST_GROWTH:
            raise UserError("what it stands for is too large; name fewer values, or name them fewer times")

    def _size(self, path: KeyPath) -> int:
        """Return the characters to which the value at ``path`` expands, plus the costs of values and names."""
        if path in self._sizes:
            return self._sizes[path]
        self._sizes[path], self._chains[path] = 0, 0  # it may refer to itself, which `resolve` reports
        value, size = lookup(self._values, path), _OF_A_VALUE
        if is_mapping(value) or is_list(value):
            steps: Iterable[Any] = value if is_mapping(value) else range(len(value))
            inside = [(*path, step) for step in steps]
            size += sum(map(self._size, inside))
        else:
            inside = list(references(self._values, value, path)) if isinstance(value, str) else []
            size += len(str(value)) + sum(_OF_A_NAME + self._size(one) for one in inside)
            for count in _COPIES_OF.findall(value) if isinstance(value, str) else ():
                size *= min(int(count) if count.isdigit() else _MOST_COPIES, _MOST_COPIES)
        self._sizes[path], self._chains[path] = size, 1 + max((self._chains[one] for one in inside), default=0)
        if self._chains[path] > _LONGEST_CHAIN:
            raise UserError(f"leads through more than {_LONGEST_CHAIN} other values; name what is meant itself")
        return size


def references(values: Mapping[str, Any], text: str, path: KeyPath) -> Iterator[KeyPath]:
    """Yield the paths of the values in ``values`` that the interpolations of ``text`` at ``path`` name."""
    for points, name in _REFERENCE_TO.findall(text):
        around = path[: len(path) - len(points)] if points else ()
        target = (*around, *(parse(name) or ()))
        if lookup(values, target) is not ABSENT:
            yield target


def _copies(pattern: Mapping[Any, Any] | str, count: int, mark: str) -> list[Any]:
    """Return ``count`` copies of a text or section, with ``mark`` in its texts replaced by 0, 1, 2 …

    >>> _copies("part-#", 2, "#")
    ['part-0', 'part-1']
    """

    if count > _MOST_COPIES:
        raise ValueError(f"{count:,} copies are more than {_MOST_COPIES:,}")

    def numbered(value: Any, index: int) -> Any:
        return value.replace(mark, str(index)) if isinstance(value, str) else value

    if isinstance(pattern, Mapping):
        return [{str(name): numbered(value, index) for name, value in pattern.items()} for index in range(count)]
    return [numbered(pattern, index) for index in range(count)]


def _of_numbers(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return ``function`` of two numbers, with a check of its arguments: Python would multiply texts as well."""

    def of_numbers(a: Any, b: Any) -> Any:
        for value in (a, b):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"it takes numbers, found {shown(value)}")
        return function(a, b)

    return of_numbers


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": _of_numbers(operator.sub),
    "mul": _of_numbers(operator.mul),
    "div": _of_numbers(lambda a, b: a / b),
    "fdiv": _of_numbers(lambda a, b: a // b),
    "for": _copies,
    "now": _now,
}
"""Resolvers of ``${name:…}`` besides OmegaConf's: PhyAGI's arithmetic and copies, and Hydra's time."""

for _name, _function in FUNCTIONS.items():
    OmegaConf.register_new_resolver(_name, _function, replace=True)


def _resolved(background: Any, path: KeyPath) -> Any:
    for step in path[:-1]:
        background = background[step]
    value = background[path[-1]]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _put(values: Any, path: KeyPath, value: Any) -> None:
    for step in path[:-1]:
        values = values[step]
    values[path[-1]] = value


def unresolved(text: str, error: Exception) -> str:
    """Return the message on ``error``, which resolving the interpolations of ``text`` raised."""
    if isinstance(error, InterpolationKeyError):
        reason = one_line(error, lines=1).removeprefix("Interpolation key ")
        return f"{text}: {reason.replace(' not found', ' is no key here')}"
    if isinstance(error, UnsupportedInterpolationType):
        known = ", ".join(("oc.env", "oc.select", "oc.decode", "oc.create", *FUNCTIONS))
        return f"{text}: unknown function; the functions are {known}"
    reason = one_line(error, lines=1)
    if "Environment variable" in reason:
        variable = reason.partition("Environment variable ")[2].partition(" ")[0]
        mend = "set it, or give a default: ${oc.env:NAME,default}"
        return f"{text}: the environment variable {variable} is not set; {mend}"
    if isinstance(error, RecursionError) or "Recursive" in reason:
        return f"{text}: refers to itself"
    return f"{text}: {_RAISED.sub('', reason)}"
