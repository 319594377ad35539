"""Jinja templates of conversations and rows, rendered in a separate process with limits on time, memory and output.

A template is a program, and may come with a tokenizer or run file of somebody else: Jinja's sandbox keeps it from
files, and the process limits its time and memory. One process serves all templates and ends with its parent. Requests
are pickled, so that a row keeps its dates and decimals; answers are JSON, which cannot run code.
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

_MOST_SECONDS = 10  # of CPU time for one text; the template of a real model takes about 0.0001
_MOST_CHARACTERS = 32 << 20  # of one text
_MOST_BYTES = 2 << 30  # of memory

Form = Literal["chat", "row"]
"""The two Jinja environments: that of `apply_chat_template`, and that of rows, which keeps all white space, has no
clock and outputs only texts."""


class TemplateError(UserError):
    """An invalid template, or one that cannot render a text; ``undefined`` if it uses a value that does not exist."""

    def __init__(self, message: str, *, undefined: bool = False) -> None:
        super().__init__(message)
        self.undefined = undefined


def render_chat(template: str, values: Mapping[str, Any], clock: Callable[[], datetime]) -> str:
    """Return the text that ``template`` renders from ``values``; ``clock`` gives the time for a template that uses it.

    Raises TemplateError if the template is invalid, rejects the values, or exceeds the limits of time, memory or
    output.
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
    """Return the text that ``template`` renders from each of ``rows``, pickled mappings of names to values, or its
    error. Raises TemplateError if the template is invalid."""
    return _process(os.getpid()).ask("row", template, rows)[1]


def names_in(template: str) -> tuple[str, ...]:
    """Return the sorted names that a row must have for ``template``. Raises TemplateError if it is invalid."""
    return _process(os.getpid()).ask("row", template, [])[0]


@cache
def _process(owner: int) -> _Renderer:
    """Return the renderer of the process ``owner``; a forked process must not share that of its parent."""
    return _Renderer()


class _Renderer:
    """A process that renders templates; it is started for the first one, and again after one that broke a limit."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()
        atexit.register(self._end)

    def ask(
        self, form: Form, template: str, texts: Sequence[bytes], time: Mapping[str, str] | None = None
    ) -> tuple[tuple[str, ...], list[str | TemplateError]]:
        """Return the names in ``template``, and its text or error for each of the pickled values ``texts``.

        Raises TemplateError if the template is invalid.
        """
        request = {"form": form, "template": template, **(time or {})}
        request |= {"seconds": _MOST_SECONDS, "characters": _MOST_CHARACTERS}
        rendered: list[str | TemplateError] = []
        at_once = len(texts)
        with self._one_at_a_time:
            while True:
                part = texts[len(rendered) :][:at_once]
                answer = self._exchange({**request, "texts": part})
                if isinstance(answer, TemplateError):  # the process has ended
                    if not part:
                        raise answer
                    if len(part) == 1:
                        rendered.append(answer)
                    at_once = len(texts) if len(part) == 1 else 1  # one by one up to the text that ended it
                elif "error" in answer:
                    raise _error(answer)
                else:
                    rendered += [text if isinstance(text, str) else _error(text) for text in answer["texts"]]
                if len(rendered) == len(texts):
                    return tuple(answer["names"]) if isinstance(answer, dict) else (), rendered

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any] | TemplateError:
        """Return the answer to ``request``, or the reason why the process ended."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with contextlib.suppress(OSError):  # if the process has ended, there is no answer
                pickle.dump(request, child.stdin)
                child.stdin.flush()
            answer = child.stdout.readline()
        except BaseException:  # an unread answer must not be taken for the next one
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


def _error(answer: Mapping[str, Any]) -> TemplateError:
    return TemplateError(answer["error"], undefined=answer["undefined"])


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each of ``requests`` with a line, until there are no more."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits, and a lower one may be set
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with contextlib.suppress(EOFError):
        while True:
            request = pickle.load(requests)
            answer = _limited(request, partial(_names, request))
            if "error" not in answer:
                answer["texts"] = [_limited(request, partial(_render, request, text)) for text in request["texts"]]
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


def _stop_after(seconds: float) -> None:
    """End this process after ``seconds`` of CPU time; 0 cancels that. This works even while Python handles no signals,
    as in a power of huge numbers."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
    else:
        faulthandler.cancel_dump_traceback_later()


def _limited(request: Mapping[str, Any], work: Callable[[], Any]) -> Any:
    """Return the result of ``work``, or its error."""
    _stop_after(request["seconds"])
    try:
        return work()
    except MemoryError:
        return {"error": f"takes more than {_MOST_BYTES >> 30} GB of memory to write one text", "undefined": False}
    except Exception as error:  # a template is a program, and may raise anything
        return _failure(error, typed=request["form"] == "chat")
    finally:
        _stop_after(0)


@cache
def _compiled(form: Form, source: str) -> tuple[Any, list[str]]:
    """Return the compiled template ``source``, and the names that a row must have for it."""
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
        """The tag by which templates mark the model's answers; its content is rendered as it is."""

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
    """Return an environment in which a template renders the same text in each call."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment: Any = ImmutableSandboxedEnvironment(
        keep_trailing_newline=True, undefined=StrictUndefined, finalize=_only_text
    )
    environment.globals = {name: environment.globals[name] for name in ("range", "namespace")}
    del environment.filters["random"], environment.filters["tojson"]  # the latter escapes text for web pages
    return environment


def _only_text(value: Any) -> Any:
    """Return ``value``, which a template outputs. Raises TypeError if it is neither a text nor undefined."""
    from jinja2 import Undefined

    if isinstance(value, str | Undefined):
        return value
    raise TypeError(f"writes a value of type {type(value).__name__}, which is no text (`| string` makes it one)")


def _names(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"names": _compiled(request["form"], request["template"])[1]}


def _render(request: Mapping[str, Any], values: bytes) -> str:
    """Return the text for the pickled ``values``. Raises UserError if it is too long, and any error of the template."""

    def now(form: str) -> str:
        if "no_clock" in request:
            raise UserError(request["no_clock"])
        return datetime.fromisoformat(request["now"]).strftime(form)

    program, _ = _compiled(request["form"], request["template"])
    clock = {"strftime_now": now} if request["form"] == "chat" else {}
    pieces: list[str] = []
    length = 0
    for piece in program.generate({**clock, **pickle.loads(values)}):
        length += len(piece)
        if length > request["characters"]:
            raise UserError(f"writes more than {request['characters']:,} characters as one text")
        pieces.append(piece)
    return "".join(pieces)


def _failure(error: Exception, *, typed: bool) -> dict[str, Any]:
    """Return the message of ``error``; if ``typed``, with its class if it is one of Python's."""
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
    """Return JSON for a model; Jinja's own filter escapes it for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
