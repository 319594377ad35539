"""Jinja templates of conversations, run in a process of their own with bounds on time, memory and output.

A template comes with a tokenizer that somebody else made, and it is a program: the sandbox of Jinja keeps it from
files, and the process from taking all time and memory. One process serves all templates, and ends with the one that
asks.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import IO, Any

from quintet.errors import UserError

_MOST_SECONDS = 10  # of the processor for one text; a template of a real model takes about 0.0001
_MOST_CHARACTERS = 32 << 20  # of one text
_MOST_BYTES = 2 << 30  # of memory


def render(template: str, values: Mapping[str, Any], clock: Callable[[], datetime]) -> str:
    """The text that ``template`` writes with ``values``, which are of JSON; ``clock`` tells the time that it asks for.

    Raises UserError when the template is wrong, refuses the values, or takes too long, too much memory or writes too
    much.
    """
    return _process(os.getpid()).render(template, values, clock)


@cache
def _process(owner: int) -> _Process:
    """The process for the templates of the process ``owner``: one that is forked must not share its parent's."""
    return _Process()


class _Process:
    """A process that renders templates, started at the first one, and again after one that broke a bound."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._known: dict[str, int] = {}
        self._one_at_a_time = threading.Lock()
        atexit.register(self._end)

    def render(self, template: str, values: Mapping[str, Any], clock: Callable[[], datetime]) -> str:
        """See `render` of the module."""
        with self._one_at_a_time:
            child = self._started()
            asked: dict[str, Any] = {"values": values, "seconds": _MOST_SECONDS, "characters": _MOST_CHARACTERS}
            if template not in self._known:
                asked["source"] = template
            asked["template"] = self._known.setdefault(template, len(self._known))
            try:
                asked["now"] = clock().isoformat()
            except UserError as error:
                asked["no_clock"] = str(error)
            try:
                answer = _exchange(child, asked)
            except OSError:  # the process ended while it was asked
                answer = b""
            if not answer:
                raise UserError(self._why_ended(child))
        found = json.loads(answer)
        if "error" in found:
            raise UserError(found["error"])
        return found["text"]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._known = {}
            self._child = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"},
            )
        return self._child

    def _why_ended(self, child: subprocess.Popen[bytes]) -> str:
        code = child.wait()
        if code == -getattr(signal, "SIGPROF", 0) or (not hasattr(signal, "SIGPROF") and code == 1):
            return f"takes more than {_MOST_SECONDS} s to write one text; use one that ends"
        return f"the process that ran it ended with code {code}"

    def _end(self) -> None:
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # a process that has ended already
                    pipe.close()
            self._child.wait()
        self._child = None


def _exchange(child: subprocess.Popen[bytes], asked: Mapping[str, Any]) -> bytes:
    """The answer of ``child`` to what is ``asked``, a line each; nothing where it has ended."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(asked).encode() + b"\n")
    child.stdin.flush()
    return child.stdout.readline()


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each line of ``questions``, until there are no more."""
    compiled: dict[int, Any] = {}
    sources: dict[int, str] = {}
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such bounds, and a lower one may hold
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    for line in questions:
        asked = json.loads(line)
        if "source" in asked:
            sources[asked["template"]] = asked["source"]
        number = asked["template"]
        _stop_after(asked["seconds"])
        try:
            if number not in compiled:
                compiled[number] = _compiled(sources[number])
            answer = {"text": _written(compiled[number], asked)}
        except MemoryError:
            answer = {"error": f"takes more than {_MOST_BYTES >> 30} GB of memory to write one text"}
        except Exception as error:  # a template is a program of its own, and fails in all the ways of one
            answer = {"error": _reason(error)}
        _stop_after(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _stop_after(seconds: float) -> None:
    """End this process after ``seconds`` of the processor; 0 takes that back. It ends also where Python's own handlers
    of signals would wait, as within the power of a huge number."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
    else:
        faulthandler.cancel_dump_traceback_later()


def _compiled(source: str) -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag with which templates mark what the model writes; here its content is just written."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    class Sandbox(ImmutableSandboxedEnvironment):
        """The sandbox, with types for the tables that Jinja leaves without."""

        filters: dict[str, Callable[..., Any]]
        globals: dict[str, Any]

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    del environment.filters["random"], environment.globals["lipsum"]
    return environment.from_string(source)


def _written(template: Any, asked: Mapping[str, Any]) -> str:
    def now(form: str) -> str:
        if "no_clock" in asked:
            raise UserError(asked["no_clock"])
        return datetime.fromisoformat(asked["now"]).strftime(form)

    pieces: list[str] = []
    length = 0
    for piece in template.generate(strftime_now=now, **asked["values"]):
        length += len(piece)
        if length > asked["characters"]:
            raise UserError(f"writes more than {asked['characters']:,} characters as one text; use one that ends")
        pieces.append(piece)
    return "".join(pieces)


def _reason(error: Exception) -> str:
    import jinja2

    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    text = " ".join(str(error).split())
    return text if isinstance(error, jinja2.TemplateError | UserError) else f"{type(error).__name__}: {text}"


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON for a model to read, while Jinja's own filter writes it for a web page."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
