"""Plots of the curves of runs: a picture that compares several, and drawings for the report of one."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintet.errors import UserError, printable
from quintet.libraries import require
from quintet.report.facts import RunFacts, Series

COLOURS = ("#2f7fc1", "#d9731a", "#2e9e6b", "#b4509c", "#8a7a1f", "#6f6fd0", "#c0504d", "#4a9aa5")
"""Colours that are distinct on white and on black."""
_INK = "#010203"  # replaced in an SVG by the colour of the text around it
LOSS_TITLE = "loss (nats a token)"
_POINTS = 400  # of a curve: more than can be seen


@dataclass(frozen=True)
class Curve:
    """A line of a plot; it has a point at each record if ``marked``, and is pale if ``faint``."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    marked: bool = False
    faint: bool = False


def training_curves(run: RunFacts, colour: str, label: str = "training") -> list[Curve]:
    """Return the training loss over tokens: as recorded, faint, and smoothed."""
    series, tokens = run.series("train/loss"), run.config.batch.tokens
    if not series.values.size:
        return []
    raw = series.smoothed(len(series.values) // (4 * _POINTS))
    smooth = series.smoothed(max(1, len(series.values) // 60))
    return [
        Curve("", raw.steps * tokens, raw.values, colour, faint=True),
        Curve(label, smooth.steps * tokens, smooth.values, colour),
    ]


def loss_curves(run: RunFacts) -> list[Curve]:
    """Return the training loss and, if it was measured, the validation loss over tokens."""
    losses = training_curves(run, COLOURS[0])
    validation = run.series("validation/loss")
    if validation.values.size:
        losses.append(curve(run, validation, "validation", COLOURS[1], marked=True))
    return losses


def curve(run: RunFacts, series: Series, label: str, colour: str, marked: bool = False) -> Curve:
    """Return the curve of a metric over tokens."""
    thinned = series if marked else series.smoothed(len(series.values) // _POINTS)
    return Curve(label, thinned.steps * run.config.batch.tokens, thinned.values, colour, marked=marked)


def svg(title: str, curves: Sequence[Curve]) -> str:
    """Return an SVG for a page, in the page's own text colour; see `draw`."""
    figure = draw([(title, curves)], (5.2, 2.7), ink=_INK)
    stream = io.StringIO()
    matplotlib: Any = require("matplotlib", "report", "a drawing")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # The page sets the size.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1).strip()


def compared(runs: Sequence[RunFacts]) -> bytes:
    """Return a PNG of the losses of ``runs`` over tokens. Raises UserError if none was recorded."""
    names = _names(runs)
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(runs))]
    styled = list(zip(runs, names, colours, strict=True))
    train = [line for run, name, colour in styled for line in training_curves(run, colour, name)]
    plots = [("training loss (nats a token)", train)]
    for metric, title in (("loss", "validation loss (nats a token)"), ("bits_per_byte", "validation, bits per byte")):
        curves = [
            curve(run, run.series(f"validation/{metric}"), name, colour, marked=True) for run, name, colour in styled
        ]
        plots.append((title, [line for line in curves if line.x.size]))
    plots = [(title, curves) for title, curves in plots if curves]
    if not plots:
        raise UserError("compare: none of the runs has recorded a loss yet; there is nothing to draw")
    figure = draw(plots, (5.2 * len(plots), 3.6), ink="#222222")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def draw(plots: Sequence[tuple[str, Sequence[Curve]]], size: tuple[float, float], ink: str) -> Any:
    """Return a matplotlib Figure of ``size`` inches with a plot for each title and its curves, side by side.

    Raises UserError if matplotlib is missing.
    """
    matplotlib = require("matplotlib", "report", "a plot")
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {"font.size": 9, "svg.fonttype": "none", **dict.fromkeys(inked, ink)}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        for index, (title, curves) in enumerate(plots):
            _plot(figure.add_subplot(1, len(plots), index + 1), title, curves)
    return figure


def _plot(axes: Any, title: str, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import EngFormatter

    for line in curves:
        width, alpha = (0.8, 0.35) if line.faint else (1.6, 1.0)
        points = {"marker": "o", "markersize": 3} if line.marked else {}
        # Matplotlib hides a label that begins with an underscore.
        shown = printable(line.label)
        label = f" {shown}" if shown.startswith("_") else shown or None
        axes.plot(line.x, line.y, color=line.colour, label=label, linewidth=width, alpha=alpha, **points)
    _zoom(axes, curves)
    axes.set_title(printable(title), fontsize=9.5, loc="left", parse_math=False)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", linewidth=0.4, alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    if sum(bool(line.label) for line in curves) > 1:
        for text in axes.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)  # a dollar sign in a name starts no formula


def _zoom(axes: Any, curves: Sequence[Curve]) -> None:
    """Limit the axis to most of the records, so that a few high ones do not flatten the curves."""
    values = np.concatenate([line.y for line in curves])
    values = values[np.isfinite(values)]
    if values.size < 20:
        return
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))


def _names(runs: Sequence[RunFacts]) -> list[str]:
    """Return the names of the runs, or their folders if two names are the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
