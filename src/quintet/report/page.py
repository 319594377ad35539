"""A page about a run, in one file that needs no other: what was run, what it reached, what it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from quintet.config.describe import KeyInfo, Section, run_file
from quintet.config.keypath import is_mapping
from quintet.config.secrets import hidden
from quintet.files import write_text
from quintet.report.compare import setting, shown
from quintet.report.facts import RunFacts, about_asking, read_facts
from quintet.report.plots import COLOURS, LOSS_TITLE, Curve, curve, loss_curves, svg
from quintet.report.samples import music_samples, text_samples
from quintet.tokenize import load_tokenizer
from quintet.train.sizes import parameter_count, training_flops

_MOST_CURVES = len(COLOURS)
_LEFT_OUT = ("name", "runs_dir")


@dataclass(frozen=True)
class Table:
    """Rows under ``heads``; the first cell of each row names it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(folder: Path, file: Path | None = None, *, sound: bool = False) -> Path:
    """Write the page about the run in ``folder`` to ``file``, ``report.html`` in the folder when None, and return it.

    With ``sound`` the last samples of music can be heard, at 5 MB a minute. Raises UserError when there is no run, or
    where matplotlib is missing.
    """
    file = file or folder / "report.html"
    write_text(file, report_page(read_facts(folder), sound=sound))
    return file


def report_page(run: RunFacts, *, sound: bool = False) -> str:
    """The page as HTML; a pure function of what the run folder holds."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("quintet.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = (run.folder / "run.yaml").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        run=run,
        state=_state(run),
        tiles=_tiles(run),
        drawings=[(title, svg(title, curves)) for title, curves in _plots(run)],
        tables=[table for table in (_labels(run), _texts(run), _benchmarks(run)) if table.rows],
        texts=text_samples(run.folder / "samples"),
        music=music_samples(run.folder / "samples", sound=sound),
        settings=_settings(run),
        versions=_versions(written),
        run_file=written,
    )


def _state(run: RunFacts) -> str:
    """How far the run is, in a line."""
    steps = run.config.train.steps
    line = f"step {run.step:,}" + (f" of {steps:,}" if steps else "")
    file = run.folder / "metrics.jsonl"
    if file.exists():
        line += f" · {datetime.fromtimestamp(file.stat().st_mtime):%Y-%m-%d %H:%M}"
    return f"{line} · {run.folder}"


def _tiles(run: RunFacts) -> list[tuple[str, str, str]]:
    """Name, value and a remark of each of the few figures that matter most."""
    found: list[tuple[str, str, str]] = []
    least = run.series("validation/loss").least
    best = f"nats a token; best {shown(least[0])} at step {least[1]:,}" if least else ""
    for name, title, remark in (
        ("validation/loss", "validation loss", best),
        ("validation/bits_per_byte", "bits per byte", "of held-out text"),
        ("train/loss", "training loss", "nats a token, of the last step"),
    ):
        value = run.series(name).last
        if value is not None:
            found.append((title, shown(value), remark))
    vocab_size = _vocabulary(run)
    if vocab_size is not None:
        parameters = parameter_count(run.config, vocab_size).total
        found.append(("parameters", _short(parameters), "in all"))
    found.append(("trained on", _short(run.tokens), f"tokens, {run.config.batch.tokens:,} a step"))
    if run.tokens_per_second is not None:
        peak = run.series("speed/mfu").last or run.series("speed/share_of_peak").last  # the name in older runs
        share = f", {peak:.0%} of the device's peak" if peak is not None else ""
        if peak is not None and vocab_size is not None and (note := training_flops(run.config, vocab_size).note):
            share += f" ({note})"
        found.append(("speed", _short(run.tokens_per_second), f"tokens a second{share}"))
    return found


def _vocabulary(run: RunFacts) -> int | None:
    """How many ids the tokenizer has; None where it was not kept."""
    if not (run.folder / "tokenizer").is_dir():
        return None
    return load_tokenizer(run.folder / "tokenizer").vocab_size


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _plots(run: RunFacts) -> list[tuple[str, list[Curve]]]:
    """Titles and curves of all that was recorded more than once."""
    plots = [(LOSS_TITLE, loss_curves(run))]
    for title, name, marked in (
        ("validation, bits per byte", "validation/bits_per_byte", True),
        ("learning rate", "train/lr", False),
        ("gradient norm", "train/grad_norm", False),
        ("tokens per second", "speed/tokens_per_second", False),
    ):
        plots.append((title, [curve(run, run.series(name), "", COLOURS[0], marked)]))
    for title, begin, end in (
        ("validation loss by label", "validation/", "/loss"),
        ("bits per byte by topic", "text/", "/bits_per_byte"),
        ("accuracy of benchmarks", "benchmark/", "/acc"),
    ):
        names = [name for name in run.names if name.startswith(begin) and name.endswith(end) and name.count("/") > 1]
        several = [name for name in names if len(run.series(name).values) > 1][:_MOST_CURVES]
        plots.append((title, [_named(run, name, begin, end, index) for index, name in enumerate(several)]))
    return [(title, curves) for title, curves in plots if any(one.x.size > 1 for one in curves)]


def _named(run: RunFacts, name: str, begin: str, end: str, index: int) -> Curve:
    label = name.removeprefix(begin).removesuffix(end)
    return curve(run, run.series(name), label, COLOURS[index], marked=True)


def _labels(run: RunFacts) -> Table:
    return _table(run, "Validation", "label", "validation/", ("loss", "perplexity", "bits_per_byte"))


def _texts(run: RunFacts) -> Table:
    figures = ("bits_per_byte", "byte_perplexity", "accuracy", "byte_accuracy", "calibration_error", "brier")
    return _table(run, "Text modelling", "topic", "text/", figures)


def _benchmarks(run: RunFacts) -> Table:
    """The figures, and beside them the examples and the items that they were asked with and the precision."""
    names = [name.removeprefix("benchmark/") for name in run.names if name.startswith("benchmark/")]
    last = dict.fromkeys(name.rpartition("/")[2] for name in names)
    table = _table(run, "Benchmarks", "task", "benchmark/", [one for one in last if not about_asking(one)])
    rows = [[*row, *_asked(run, f"benchmark/{row[0]}/")] for row in table.rows]
    if "shots" not in last:  # older runs have not recorded it
        return table
    return Table(table.title, (*table.heads, "shots", "items", "precision"), rows)


def _asked(run: RunFacts, row: str) -> list[str]:
    counts = [run.series(f"{row}{name}").last for name in ("shots", "items")]
    precisions = [name.removeprefix(f"{row}precision_") for name in run.names if name.startswith(f"{row}precision_")]
    return [*("" if count is None else f"{count:,.0f}" for count in counts), ", ".join(precisions)]


def _table(run: RunFacts, title: str, head: str, group: str, figures: Sequence[str]) -> Table:
    """The last values of the metrics ``group``/<row>/<figure>, with their standard errors; those of ``group``/<figure>
    are the row "all"."""
    names = [name.removeprefix(group) for name in run.names if name.startswith(group)]
    rows = list(dict.fromkeys(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in figures))
    if not any(rows):
        return Table(title, (), ())
    cells: list[list[str]] = []
    for row in sorted(rows, key=lambda row: (row == "", names.index(next(n for n in names if n.startswith(row))))):
        prefix = f"{group}{row}/" if row else group
        whole = "all" if "all" not in rows else "all of them"
        cells.append([row or whole, *(_value(run, prefix + figure) for figure in figures)])
    return Table(title, (head, *(figure.replace("_", " ") for figure in figures)), cells)


def _value(run: RunFacts, name: str) -> str:
    value, error = run.series(name).last, run.series(f"{name}_stderr").last
    return shown(value) + ("" if error is None else f" ± {shown(error)}")


def _settings(run: RunFacts) -> list[tuple[str, str]]:
    """The keys of the run file that are not what they are when left out."""
    chosen = _chosen(hidden(run.config), run_file())
    return [(key, setting(value)) for key, value in chosen if key not in _LEFT_OUT]


def _chosen(values: dict[str, Any], section: Section) -> Iterator[tuple[str, Any]]:
    for key in section.keys:
        value = values[key.name]
        inner = None if key.repeated else key.section(value)
        if inner is not None and is_mapping(value):
            kind = value.get("kind")
            if kind is not None and kind != key.default_kind:
                yield f"{key.path}.kind", kind
            yield from ((path, one) for path, one in _chosen(value, inner) if path != f"{key.path}.kind")
        elif key.required or value != key.default:
            yield key.path.removesuffix("[]"), [_short_form(one, key) for one in value] if key.repeated else value


def _short_form(value: Any, key: KeyInfo) -> Any:
    """An element of a list of sections, without what may be left out."""
    inner = key.section(value)
    if inner is None:
        return value
    defaults = {one.name: one.default for one in inner.keys if not one.required}
    return {name: one for name, one in value.items() if name == "kind" or name not in defaults or one != defaults[name]}


def _versions(run_file: str) -> list[tuple[str, str]]:
    """Versions and the state of the code, from the comments at the top of the run file."""
    lines: list[tuple[str, str]] = []
    for line in run_file.splitlines():
        if not line.startswith("#"):
            break
        name, colon, value = line.removeprefix("#").strip().partition(": ")
        if colon:
            lines.append((name, value))
    return lines
