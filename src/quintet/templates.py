"""Jinja templates of conversations and rows, run in a process of their own with bounds on time, memory and output.

A template comes with a tokenizer or a run file that somebody else made, and it is a program: the sandbox of Jinja keeps
it from files, and the process from taking all time and memory. One process serves all templates, and ends with the one
that asks. What goes to it is pickled, so that a row keeps its dates and decimals; what comes back is JSON, which can do
nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from typing import IO, Any, Literal

from quintet.errors import UserError, one_line

_MOST_SECONDS = 10  # of the processor for one text; a template of a real model takes about 0.0001
_MOST_CHARACTERS = 32 << 20  # of one text
_MOST_BYTES = 2 << 30  # of memory

Form = Literal["chat", "row"]
"""The two settings of Jinja: that of `apply_chat_template`, and that of a row, which keeps all white space, knows no
clock and writes texts alone."""


class TemplateError(UserError):
    """A template that is none, or that cannot write one text; ``undefined`` where it asks for a value that is not
    there."""

    def __init__(self, message: str, *, undefined: bool = False) -> None:
        super().__init__(message)
        self.undefined = undefined


def render_chat(template: str, values: Mapping[str, Any], clock: Callable[[], datetime]) -> str:
    """The text that ``template`` writes with ``values``; ``clock`` tells the time that it asks for.

    Raises TemplateError when the template is wrong, refuses the values, or takes too long, too much memory or writes
    too much.
    """
    try:
        time = {"now": clock().isoformat()}
    except UserError as error:
        time = {"no_clock": str(error)}
    _, (text,) = _process(os.getpid()).ask("chat", template, [pickle.dumps(values)], time)
    if isinstance(text, TemplateError):
        raise text
    return text


def render_rows(template: str, rows: Sequence[bytes]) -> list[str | TemplateError]:
    """The text that ``template`` writes with each of the ``rows``, pickled mappings of names to values, or why it
    writes none. Raises TemplateError when the template is none."""
    return _process(os.getpid()).ask("row", template, rows)[1]


def names_in(template: str) -> tuple[str, ...]:
    """The names that a row must have for ``template``, in order. Raises TemplateError when it is none."""
    return _process(os.getpid()).ask("row", template, [])[0]


@cache
def _process(owner: int) -> _Process:
    """The process for the templates of the process ``owner``: one that is forked must not share its parent's."""
    return _Process()


class _Process:
    """A process that renders templates, started at the first one, and again after one that broke a bound."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()
        atexit.register(self._end)

    def ask(
        self, form: Form, template: str, texts: Sequence[bytes], time: Mapping[str, str] | None = None
    ) -> tuple[tuple[str, ...], list[str | TemplateError]]:
        """The names in ``template``, and what it writes with each of the pickled values ``texts`` or why not.

        Raises TemplateError when the template is none.
        """
        asked = {"form": form, "template": template, **(time or {})}
        asked |= {"seconds": _MOST_SECONDS, "characters": _MOST_CHARACTERS}
        written: list[str | TemplateError] = []
        at_once = len(texts)
        with self._one_at_a_time:
            while True:
                part = texts[len(written) :][:at_once]
                found = self._exchange({**asked, "texts": part})
                if isinstance(found, TemplateError):  # the process has ended
                    if not part:
                        raise found
                    if len(part) == 1:
                        written.append(found)
                    at_once = len(texts) if len(part) == 1 else 1  # one by one up to the text that ended it
                elif "error" in found:
                    raise _error(found)
                else:
                    written += [text if isinstance(text, str) else _error(text) for text in found["texts"]]
                if len(written) == len(texts):
                    return tuple(found["names"]) if isinstance(found, dict) else (), written

    def _exchange(self, asked: Mapping[str, Any]) -> dict[str, Any] | TemplateError:
        """The answer to what is ``asked``, or the reason why the process ended."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with contextlib.suppress(OSError):  # the process has ended, and says so by no answer
                pickle.dump(asked, child.stdin)
                child.stdin.flush()
            answer = child.stdout.readline()
        except BaseException:  # an answer that is not read must not be taken for the next one
            child.kill()
            self._end()
            raise
        return json.loads(answer) if answer.endswith(b"\n") else TemplateError(self._why_ended(child))

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
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
            return f"takes more than {_MOST_SECONDS} s to write one text"
        return f"the process that ran it ended with code {code}"

    def _end(self) -> None:
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # a process that has ended already
                    pipe.close()
            self._child.wait()
        self._child = None


def _error(found: Mapping[str, Any]) -> TemplateError:
    return TemplateError(found["error"], undefined=found["undefined"])


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each of ``questions`` with a line, until there are no more."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such bounds, and a lower one may hold
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with contextlib.suppress(EOFError):
        while True:
            asked = pickle.load(questions)
            found = _bounded(asked, partial(_names, asked))
            if "error" not in found:
                found["texts"] = [_bounded(asked, partial(_written, asked, text)) for text in asked["texts"]]
            answers.write(json.dumps(found).encode() + b"\n")
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


def _bounded(asked: Mapping[str, Any], what: Callable[[], Any]) -> Any:
    """What comes of ``what``, or why nothing does."""
    _stop_after(asked["seconds"])
    try:
        return what()
    except MemoryError:
        return {"error": f"takes more than {_MOST_BYTES >> 30} GB of memory to write one text", "undefined": False}
    except Exception as error:  # a template is a program of its own, and fails in all the ways of one
        return _failure(error, typed=asked["form"] == "chat")
    finally:
        _stop_after(0)


@cache
def _compiled(form: Form, source: str) -> tuple[Any, list[str]]:
    """The program that ``source`` is in this ``form``, and the names that a row must have for it."""
    if form == "chat":
        return _chat_environment().from_string(source), []
    from jinja2 import meta

    environment = _row_environment()
    program = environment.from_string(source)
    names = meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
    return program, sorted(names)


def _chat_environment() -> Any:
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

    environment: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


def _row_environment() -> Any:
    """Nothing that a template can ask for in it changes from one call to the next."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment: Any = ImmutableSandboxedEnvironment(
        keep_trailing_newline=True, undefined=StrictUndefined, finalize=_only_text
    )
    environment.globals = {name: environment.globals[name] for name in ("range", "namespace")}
    del environment.filters["random"], environment.filters["tojson"]  # the latter writes for a web page
    return environment


def _only_text(value: Any) -> Any:
    """``value``, which a template writes. Raises TypeError for what is no text and none that is missing."""
    from jinja2 import Undefined

    if isinstance(value, str | Undefined):
        return value
    raise TypeError(f"writes a value of type {type(value).__name__}, which is no text (`| string` makes it one)")


def _names(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"names": _compiled(asked["form"], asked["template"])[1]}


def _written(asked: Mapping[str, Any], text: bytes) -> str:
    """The text of the pickled values ``text``. Raises UserError when it is too long, and what the template raises."""

    def now(form: str) -> str:
        if "no_clock" in asked:
            raise UserError(asked["no_clock"])
        return datetime.fromisoformat(asked["now"]).strftime(form)

    program, _ = _compiled(asked["form"], asked["template"])
    clock = {"strftime_now": now} if asked["form"] == "chat" else {}
    pieces: list[str] = []
    length = 0
    for piece in program.generate({**clock, **pickle.loads(text)}):
        length += len(piece)
        if length > asked["characters"]:
            raise UserError(f"writes more than {asked['characters']:,} characters as one text")
        pieces.append(piece)
    return "".join(pieces)


def _failure(error: Exception, *, typed: bool) -> dict[str, Any]:
    """The reason for ``error``, with its class where that is one of Python's and ``typed``."""
    import jinja2

    undefined = isinstance(error, jinja2.UndefinedError)
    if isinstance(error, jinja2.TemplateSyntaxError):
        return {"error": f"line {error.lineno} is no Jinja: {error.message}", "undefined": undefined}
    typed = typed and not isinstance(error, jinja2.TemplateError | UserError)
    return {"error": one_line(error, typed=typed), "undefined": undefined}


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
