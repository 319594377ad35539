"""The report of a run: one self-contained HTML page with its settings, curves, figures and samples."""

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
from quintet.report.facts import RunFacts, is_circumstance, read_facts
from quintet.report.plots import COLOURS, LOSS_TITLE, Curve, curve, loss_curves, svg
from quintet.report.samples import music_samples, text_samples
from quintet.tokenize import load_tokenizer
from quintet.train.sizes import parameter_count, training_flops

_MOST_CURVES = len(COLOURS)
_HIDDEN_SETTINGS = ("name", "runs_dir")


@dataclass(frozen=True)
class Table:
    """Rows under ``heads``; the first cell of each row names it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(folder: Path, file: Path | None = None, *, sound: bool = False) -> Path:
    """Write the report of the run in ``folder`` to ``file`` (None: ``report.html`` in the folder), and return its path.

    With ``sound`` the last samples of music can be played, at 5 MB a minute. Raises UserError if there is no run, or if
    matplotlib is missing.
    """
    file = file or folder / "report.html"
    write_text(file, report_page(read_facts(folder), sound=sound))
    return file


def report_page(run: RunFacts, *, sound: bool = False) -> str:
    """Return the page as HTML, a pure function of the run folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("quintet.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run_file = (run.folder / "run.yaml").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        run=run,
        state=_state(run),
        tiles=_tiles(run),
        drawings=[(title, svg(title, curves)) for title, curves in _plots(run)],
        tables=[table for table in (_labels(run), _texts(run), _benchmarks(run)) if table.rows],
        texts=text_samples(run.folder / "samples"),
        music=music_samples(run.folder / "samples", sound=sound),
        settings=_settings(run),
        versions=_versions(run_file),
        run_file=run_file,
    )


def _state(run: RunFacts) -> str:
    """Return a line on the progress of the run."""
    steps = run.config.train.steps
    line = f"step {run.step:,}" + (f" of {steps:,}" if steps else "")
    file = run.folder / "metrics.jsonl"
    if file.exists():
        line += f" · {datetime.fromtimestamp(file.stat().st_mtime):%Y-%m-%d %H:%M}"
    return f"{line} · {run.folder}"


def _tiles(run: RunFacts) -> list[tuple[str, str, str]]:
    """Return name, value and a remark for the most important figures."""
    tiles: list[tuple[str, str, str]] = []
    least = run.series("validation/loss").least
    best = f"nats a token; best {shown(least[0])} at step {least[1]:,}" if least else ""
    for name, title, remark in (
        ("validation/loss", "validation loss", best),
        ("validation/bits_per_byte", "bits per byte", "of held-out text"),
        ("train/loss", "training loss", "nats a token, of the last step"),
    ):
        value = run.series(name).last
        if value is not None:
            tiles.append((title, shown(value), remark))
    vocab_size = _vocabulary(run)
    if vocab_size is not None:
        parameters = parameter_count(run.config, vocab_size).total
        tiles.append(("parameters", _short(parameters), "in all"))
    tiles.append(("trained on", _short(run.tokens), f"tokens, {run.config.batch.tokens:,} a step"))
    if run.tokens_per_second is not None:
        peak = run.series("speed/mfu").last or run.series("speed/share_of_peak").last  # the name in older runs
        share = f", {peak:.0%} of the device's peak" if peak is not None else ""
        if peak is not None and vocab_size is not None and (note := training_flops(run.config, vocab_size).note):
            share += f" ({note})"
        tiles.append(("speed", _short(run.tokens_per_second), f"tokens a second{share}"))
    return tiles


def _vocabulary(run: RunFacts) -> int | None:
    """Return the number of ids of the tokenizer; None if it was not saved."""
    if not (run.folder / "tokenizer").is_dir():
        return None
    return load_tokenizer(run.folder / "tokenizer").vocab_size


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _plots(run: RunFacts) -> list[tuple[str, list[Curve]]]:
    """Return titles and curves of all metrics that were recorded more than once."""
    plots = [(LOSS_TITLE, loss_curves(run))]
    for title, name, marked in (
        ("validation, bits per byte", "validation/bits_per_byte", True),
        ("learning rate", "train/lr", False),
        ("gradient norm", "train/grad_norm", False),
        ("tokens per second", "speed/tokens_per_second", False),
    ):
        plots.append((title, [curve(run, run.series(name), "", COLOURS[0], marked)]))
    for title, prefix, suffix in (
        ("validation loss by label", "validation/", "/loss"),
        ("bits per byte by topic", "text/", "/bits_per_byte"),
        ("accuracy of benchmarks", "benchmark/", "/acc"),
    ):
        names = [name for name in run.names if name.startswith(prefix) and name.endswith(suffix)]
        names = [name for name in names if name.count("/") > 1 and len(run.series(name).values) > 1][:_MOST_CURVES]
        labels = [name.removeprefix(prefix).removesuffix(suffix) for name in names]
        curves = zip(names, labels, COLOURS, strict=False)
        plots.append((title, [curve(run, run.series(name), *style, marked=True) for name, *style in curves]))
    return [(title, curves) for title, curves in plots if any(line.x.size > 1 for line in curves)]


def _labels(run: RunFacts) -> Table:
    return _table(run, "Validation", "label", "validation/", ("loss", "perplexity", "bits_per_byte"))


def _texts(run: RunFacts) -> Table:
    figures = ("bits_per_byte", "byte_perplexity", "accuracy", "byte_accuracy", "calibration_error", "brier")
    return _table(run, "Text modelling", "topic", "text/", figures)


def _benchmarks(run: RunFacts) -> Table:
    """Return the figures, with the examples and items of each task and the precision."""
    metrics = dict.fromkeys(name.rpartition("/")[2] for name in run.names if name.startswith("benchmark/"))
    table = _table(run, "Benchmarks", "task", "benchmark/", [name for name in metrics if not is_circumstance(name)])
    rows = [[*row, *_circumstances(run, f"benchmark/{row[0]}/")] for row in table.rows]
    if "shots" not in metrics:  # older runs did not record it
        return table
    return Table(table.title, (*table.heads, "shots", "items", "precision"), rows)


def _circumstances(run: RunFacts, row: str) -> list[str]:
    counts = [run.series(f"{row}{name}").last for name in ("shots", "items")]
    precisions = [name.removeprefix(f"{row}precision_") for name in run.names if name.startswith(f"{row}precision_")]
    return [*("" if count is None else f"{count:,.0f}" for count in counts), ", ".join(precisions)]


def _table(run: RunFacts, title: str, head: str, group: str, figures: Sequence[str]) -> Table:
    """Return the last values of the metrics ``group``/<row>/<figure>, with their standard errors. The metrics
    ``group``/<figure> are the row "all"."""
    names = [name.removeprefix(group) for name in run.names if name.startswith(group)]
    rows = list(dict.fromkeys(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in figures))
    if not any(rows):
        return Table(title, (), ())
    pooled = "all" if "all" not in rows else "all of them"
    cells: list[list[str]] = []
    for row in sorted(rows, key=lambda row: (row == "", names.index(next(n for n in names if n.startswith(row))))):
        prefix = f"{group}{row}/" if row else group
        cells.append([row or pooled, *(_value(run, prefix + figure) for figure in figures)])
    return Table(title, (head, *(figure.replace("_", " ") for figure in figures)), cells)


def _value(run: RunFacts, name: str) -> str:
    value, error = run.series(name).last, run.series(f"{name}_stderr").last
    return shown(value) + ("" if error is None else f" ± {shown(error)}")


def _settings(run: RunFacts) -> list[tuple[str, str]]:
    """Return the keys of the run file that differ from their defaults, with their values."""
    settings = _not_default(hidden(run.config), run_file())
    return [(key, setting(value)) for key, value in settings if key not in _HIDDEN_SETTINGS]


def _not_default(values: dict[str, Any], section: Section) -> Iterator[tuple[str, Any]]:
    for key in section.keys:
        value = values[key.name]
        inner = None if key.repeated else key.section(value)
        if inner is not None and is_mapping(value):
            kind = value.get("kind")
            if kind is not None and kind != key.default_kind:
                yield f"{key.path}.kind", kind
            yield from ((path, own) for path, own in _not_default(value, inner) if path != f"{key.path}.kind")
        elif key.required or value != key.default:
            yield key.path.removesuffix("[]"), [_short_form(item, key) for item in value] if key.repeated else value


def _short_form(value: Any, key: KeyInfo) -> Any:
    """Return an element of a list of sections without the keys that have their default."""
    inner = key.section(value)
    if inner is None:
        return value
    defaults = {inner_key.name: inner_key.default for inner_key in inner.keys if not inner_key.required}
    return {name: own for name, own in value.items() if name == "kind" or name not in defaults or own != defaults[name]}


def _versions(run_file: str) -> list[tuple[str, str]]:
    """Return versions and the state of the code, from the comments at the top of the run file."""
    lines: list[tuple[str, str]] = []
    for line in run_file.splitlines():
        if not line.startswith("#"):
            break
        name, colon, value = line.removeprefix("#").strip().partition(": ")
        if colon:
            lines.append((name, value))
    return lines
