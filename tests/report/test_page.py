"""`quintet report`: a page in one file."""

from __future__ import annotations

import base64
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.helpers import Command, records, run_values, write_corpus

from quintet.report.facts import read_facts
from quintet.report.page import report_page, write_report
from quintet.track.jsonl import JsonlTracker


class Page(HTMLParser):
    """Tags with their attributes, and whether they are balanced."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def addresses(page: Page) -> list[str]:
    found = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    return [one for one in found if one]


def test_the_page_says_what_was_run_and_what_it_reached(run: Path, command: Command) -> None:
    code, out, error = command("report", str(run))
    assert code == 0, error
    assert f"{run}/report.html" in out
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    lines = records(run)
    last = {name: value for line in lines for name, value in line.items()}
    for name in ("validation/loss", "validation/bits_per_byte", "train/loss", "text/words/bits_per_byte"):
        assert f"{last[name]:.4f}" in text, name
    assert "data.sequence_length" in text
    assert "model.norm" not in text.split("every value")[0]  # what is a default stands in the whole file only
    assert (run / "run.yaml").read_text() in html.unescape(text)
    shown = [html.unescape(one) for one in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]
    for step in (2, 4, 6):
        written = (run / f"samples/step-{step:06d}.txt").read_text().split("--- sample ")
        assert [one[2:].removesuffix("\n") in shown for one in written[1:]] == [True, True]
    assert "<cat>" not in text


def test_the_page_needs_no_other_file_and_has_a_drawing_for_each_curve(run: Path) -> None:
    page = Page(report_page(read_facts(run)))
    assert [one for one in addresses(page) if not one.startswith(("data:", "#"))] == []
    titles = [attributes["aria-label"] for tag, attributes in page.tags if tag == "figure"]
    for title in ("loss (nats a token)", "validation, bits per byte", "learning rate", "gradient norm"):
        assert title in titles
    assert sum(tag == "svg" for tag, _ in page.tags) == len(titles)


def test_the_page_is_a_function_of_the_folder(run: Path) -> None:
    assert report_page(read_facts(run)) == report_page(read_facts(run))


def test_a_run_that_has_recorded_nothing_has_a_page_too(run: Path) -> None:
    for name in ("metrics.jsonl", "samples", "tokenizer"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = write_report(run).read_text()
    assert Page(text).open == []
    assert "step 0 of 6" in text


def test_benchmarks_have_a_table_with_their_standard_errors(run: Path) -> None:
    tracker = JsonlTracker(run, 6)
    tracker.log(6, {"benchmark/copa/acc": 0.625, "benchmark/copa/acc_stderr": 0.0123, "benchmark/piqa/acc": 0.5})
    tracker.close()
    text = report_page(read_facts(run))
    rows = re.findall(r"<tr><td>(\w+)</td><td>([^<]*)</td></tr>", text.split("Benchmarks")[1])
    assert rows == [("copa", "0.6250 ± 0.0123"), ("piqa", "0.5000")]


def test_benchmarks_stand_beside_how_they_were_asked(run: Path) -> None:
    tracker = JsonlTracker(run, 6)
    asked = {"items": 1200, "shots": 5, "precision_bf16": 1}
    tracker.log(6, {"benchmark/glue/mrpc/f1": 0.5, **{f"benchmark/glue/mrpc/{name}": n for name, n in asked.items()}})
    tracker.close()
    text = report_page(read_facts(run)).split("Benchmarks")[1]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", text)[:5] == ["task", "f1", "shots", "items", "precision"]
    assert re.findall(r"<td>([^<]*)</td>", text)[:5] == ["glue/mrpc", "0.5000", "5", "1,200", "bf16"]


def test_music_is_seen_heard_and_downloaded(run: Path) -> None:
    pytest.importorskip("symusic")
    from quintet.piano.midi import midi_bytes
    from quintet.piano.notes import notes
    from quintet.piano.rendering import piano_roll

    start = np.arange(6) * 0.2
    piece = notes(60 + np.arange(6), np.full(6, 64), start, start + 0.15)
    files = {".mid": midi_bytes(piece), ".png": piano_roll(piece)}
    tracker = JsonlTracker(run, 6)
    for step in range(1, 11):
        tracker.files(step, "sample 0", files)
    for task in ("top_line_masking-x1", "high_notes_masking-x5"):
        tracker.files(10, task, files)
    tracker.close()
    text = report_page(read_facts(run), sound=True)
    page = Page(text)
    assert page.open == []
    assert "top_line_masking-x1" in text
    assert "6 of 10 steps are shown" in text
    links = [attributes for tag, attributes in page.tags if tag == "a"]
    named = {"step-000010-top_line_masking-x1.mid", "step-000010.mid", "step-000001.mid"}
    assert {one["download"] for one in links} >= named
    for one in links:
        assert decoded(one["href"], "audio/midi") == files[".mid"]
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 6 + 1 + 1
    assert all(decoded(one["src"], "image/png") == files[".png"] for one in pictures)
    sounds = [attributes for tag, attributes in page.tags if tag == "audio"]
    assert len(sounds) == 3  # the last of each
    assert all(decoded(one["src"], "audio/wav").startswith(b"RIFF") for one in sounds)


def decoded(address: str | None, kind: str) -> bytes:
    assert address is not None
    head, _, body = address.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(body)


def test_training_ends_with_the_page(train: Callable[..., str]) -> None:
    name = train("--report", model={}, sample={"prompts": []})
    assert Page(Path(f"runs/{name}/report.html").read_text()).open == []


def test_operations_counted_from_matrices_are_called_so_wherever_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("nonzero")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quintet.model.hf.count._traced", refuse)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes["num_key_value_heads"] = 2
    values = run_values(
        name="run",
        data={"validation": 0.2, "sequence_length": 17},
        model={"kind": "huggingface", "name_or_path": "llama", "pretrained": False, "config": sizes},
        train={"batch_size": 2},
    )
    write_corpus(Path("corpus"), "a cat sat on a mat\n" * 20)
    Path("run.yaml").write_text(yaml.safe_dump(values))
    note = "counted from the matrices of LlamaForCausalLM, attention left out: what it does depends on numbers"
    code, out, error = command("plan", "run.yaml")
    assert code == 0, error
    assert note in out
    code, out, error = command("train", "run.yaml", "--report")
    assert code == 0, error
    assert f"share of peak: {note}" in out
    assert f"of the device's peak ({note}" in html.unescape(Path("runs/run/report.html").read_text())


def test_a_page_that_fails_is_a_line_and_not_the_end(
    train: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(folder: Path) -> Path:
        raise ValueError("no font")

    monkeypatch.setattr("quintet.report.page.write_report", fail)
    name = train("--report", model={}, sample={"prompts": []})  # its exit code is 0
    assert f"no report: no font; quintet report runs/{name}" in capfd.readouterr().out


def test_where_it_cannot_be_written_is_refused(run: Path, command: Command) -> None:
    assert command("report", "nowhere")[0] == 2
    code, _, error = command("report", str(run), "-o", "no/page.html")
    assert code == 2
    assert "no/page.html: its folder does not exist" in error


def test_what_a_run_has_reached_is_told_without_pytorch(two: tuple[str, str], tmp_path: Path) -> None:
    """The page, the figures side by side and `quintet.Run` are read from the folder, in a second less."""
    page = tmp_path / "page.html"
    program = f"""
import sys, quintet
from quintet.cli import main
for arguments in (["runs"], ["compare", "slow", "fast", "--recorded"], ["report", "page", "-o", {str(page)!r}]):
    try: main(arguments)
    except SystemExit as left: assert left.code == 0, arguments
run = quintet.Run("fast")
assert run.progress.step == run.step == run.checkpoints[-1], run
sys.exit("torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert page.is_file()
    assert "final training loss" in found.stdout


# ---- in a browser


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 380)])
def test_the_page_can_be_read_by_day_and_night_on_a_telephone_too(
    run: Path, browser: Any, scheme: str, width: int
) -> None:
    """Text and drawings stand out from their ground (4.5 to 1, WCAG 2.2), nothing is wider than the page, and nothing
    is asked of another machine."""
    write_report(run)
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(f"file://{(run / 'report.html').absolute()}")
    assert asked == [f"file://{(run / 'report.html').absolute()}"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    for place in ("h1", ".soft", "svg text", "td"):
        words = tab.locator(place).first
        ink = words.evaluate(f"one => getComputedStyle(one).{'fill' if 'svg' in place else 'color'}")
        assert contrast(ink, ground) >= 4.5, (place, ink, ground)
    figure = tab.locator("figure svg").first.bounding_box()
    assert figure["width"] > 0.8 * min(width - 80, 440)
    assert figure["height"] > 100
    tab.close()


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2 between two colours written as rgb(r, g, b)."""

    def luminance(colour: str) -> float:
        parts = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
