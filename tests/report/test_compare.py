"""`quintet compare`: what differs between runs, and by how much."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import Command

from quintet.errors import UserError
from quintet.report.compare import Row, _row, figure_rows, setting_rows
from quintet.report.facts import Series, read_facts
from quintet.report.paired import BLOCK, CompareOptions, blocks, compare_models
from quintet.train.trained import load_trained, own_data


def test_the_table_has_what_differs_and_what_was_recorded(two: tuple[str, str]) -> None:
    facts = [read_facts(Path("runs") / name) for name in two]
    assert {row.name: row.values for row in setting_rows(facts)} == {"optimizer.lr": (1e-9, 1e-2)}
    rows = {row.name: row for row in figure_rows(facts)}
    for index, name in enumerate(two):
        lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        losses = [(line["validation/loss"], line["step"]) for line in lines if "validation/loss" in line]
        assert rows["steps"].values[index] == 6
        assert rows["tokens"].values[index] == 6 * 4 * 32
        assert rows["final validation loss"].values[index] == losses[-1][0]
        assert (rows["best validation loss"].values[index], rows["… at step"].values[index]) == min(losses)
        speeds = [line["speed/tokens_per_second"] for line in lines if "speed/tokens_per_second" in line]
        assert rows["tokens per second"].values[index] == pytest.approx(np.median(speeds))
    assert rows["final validation loss"].better == 1


def test_a_figure_stands_beside_its_standard_error(two: tuple[str, str]) -> None:
    for name, accuracy in zip(two, (0.25, 0.5), strict=True):
        with Path(f"runs/{name}/metrics.jsonl").open("a") as file:
            row = {"step": 6, "benchmark/copa/acc": accuracy, "benchmark/copa/acc_stderr": 0.0625}
            file.write(json.dumps(row | ({} if name == two[0] else {"benchmark/copa/f1": 0.125})) + "\n")
    rows = {row.name: row for row in figure_rows([read_facts(Path("runs") / name) for name in two])}
    assert "benchmark/copa/acc_stderr" not in rows
    assert rows["benchmark/copa/acc"] == Row("benchmark/copa/acc", (0.25, 0.5), 1, (0.0625, 0.0625))
    assert rows["benchmark/copa/acc"].cells() == ["0.2500 ± 0.0625", "0.5000 ± 0.0625"]
    assert rows["benchmark/copa/f1"].cells() == ["", "0.1250"]


def test_equal_samples_are_compared_token_by_token(two: tuple[str, str]) -> None:
    """The losses of each sample from plain logits, and the interval from a bootstrap written out."""
    found = compare_models(two, CompareOptions(resamples=500, samples=7))
    assert (found.unit, found.what) == ("nats a token", "the same 7 held-out samples")
    sums = []
    for name in two:
        run = load_trained(name)
        prepared = own_data(run, CompareOptions().reporter)
        assert prepared.validation is not None
        (batch,) = prepared.validation.batches(99, 7)
        with torch.no_grad():
            logits = run.model(torch.from_numpy(batch.inputs)).flatten(0, 1).double()
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets).flatten(), reduction="none")
        sums.append(losses.view(batch.targets.shape).sum(1).numpy())
    assert found.values == pytest.approx([one.sum() / (7 * 32) for one in sums], abs=1e-3)  # the runs may be in bf16
    random = np.random.default_rng(0)
    drawn = random.integers(7, size=(500, 7))
    differences = (sums[1] - sums[0])[drawn].mean(1) / 32
    assert found.intervals[0].low == pytest.approx(np.quantile(differences, 0.025), abs=2e-3)
    assert found.intervals[0].high == pytest.approx(np.quantile(differences, 0.975), abs=2e-3)
    assert found.intervals[0].certain


def test_runs_with_other_tokens_are_compared_by_the_documents_that_both_hold_out(train: Callable[..., str]) -> None:
    Path("many").mkdir()
    for index in range(40):
        Path(f"many/{index}.txt").write_text(f"document {index}: " + "ab ba " * (20 + index % 7))
    data = {"sources": [{"kind": "text", "path": "many"}], "validation": 0.4, "sequence_length": 32, "cache_dir": "c"}
    names = [
        train(name=kind, model={}, data=data, tokenizer=tokenizer)
        for kind, tokenizer in (("bytes", {"kind": "byte"}), ("words", {"kind": "bpe", "vocab_size": 300}))
    ]
    found = compare_models(names, CompareOptions(resamples=200))
    assert found.unit == "bits per byte"
    count = int(found.what.split()[0])
    assert 5 <= count <= 16
    # Models that have learnt nothing yet: log2 of the vocabulary for a token, so 8 bits for a byte and less for BPE.
    assert found.values[0] == pytest.approx(math.log2(257), abs=0.4)
    assert found.values[1] < 6
    assert found.intervals[0].samples == count


def test_texts_may_be_named_and_long_ones_are_drawn_in_blocks(two: tuple[str, str]) -> None:
    Path("long.txt").write_text("é" * 3000)
    found = compare_models(two, CompareOptions(text=Path("long.txt"), max_bytes=5000, resamples=100))
    assert found.what == "1 document (5,000 bytes) in long.txt"
    assert found.intervals[0].samples == math.ceil(5000 / BLOCK)
    Path("short.txt").write_text("short")
    with pytest.raises(UserError, match="are one sample, which gives no interval"):
        compare_models(two, CompareOptions(text=Path("short.txt")))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 900)), min_size=1, max_size=40), st.data())
def test_blocks_are_those_of_the_text_whatever_its_tokens(tokens: list[tuple[float, int]], data: st.DataObject) -> None:
    """The sums are those of the tokens, and a token cut in two with its loss changes nothing."""
    losses, lengths = (np.array(one, float) for one in zip(*tokens, strict=True))
    size = int(lengths.sum())
    if not size:
        return
    bits, sizes = blocks(losses, lengths, size)
    assert bits.sum() == pytest.approx(losses.sum())
    assert sizes.sum() == size
    assert (sizes[:-1] == BLOCK).all()
    cut = data.draw(st.integers(0, len(tokens) - 1))
    if lengths[cut] >= 2:
        share = 1 / lengths[cut]
        finer = np.concatenate([losses[:cut], [losses[cut] * share, losses[cut] * (1 - share)], losses[cut + 1 :]])
        parts = np.concatenate([lengths[:cut], [1, lengths[cut] - 1], lengths[cut + 1 :]])
        assert blocks(finer, parts, size)[0] == pytest.approx(bits)


def test_the_command_prints_a_table_json_and_a_picture(two: tuple[str, str], command: Command) -> None:
    code, out, error = command("compare", *two, "--samples", "5", "-o", "losses.png")
    assert code == 0, error
    assert "optimizer.lr" in out
    assert "nats a token on the same 5 held-out samples" in out
    assert "better; 100.0% of the resamples agree" in out
    from PIL import Image

    picture = np.asarray(Image.open(io.BytesIO(Path("losses.png").read_bytes())).convert("RGB")).reshape(-1, 3)
    for colour in ((0x2F, 0x7F, 0xC1), (0xD9, 0x73, 0x1A)):  # a line for each run
        assert (picture == colour).all(1).sum() > 200
    code, out, _ = command("compare", *two, "--recorded", "--json")
    assert code == 0
    values: dict[str, Any] = json.loads(out)
    assert values["settings"]["optimizer.lr"] == [1e-9, 1e-2]
    assert values["paired"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slow",), "needs two runs or more"),
        (("slow", "none"), "none: no run there"),
        (("slow", "fast", "-o", "a.pdf"), "is drawn as PNG"),
        (("slow", "fast", "-o", "no/a.png"), "its folder does not exist"),
        (("slow", "fast", "--recorded", "--samples", "3"), "ignores --text and --samples"),
        (("slow", "fast", "--text", "nowhere"), "nowhere does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    two: tuple[str, str], command: Command, arguments: tuple[str, ...], message: str
) -> None:
    code, _, error = command("compare", *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_series_finds_its_least_and_its_mean() -> None:
    values = np.array([5.0, np.nan, 2.0, np.inf, 3.0, 7.0, 1.5])
    series = Series(np.arange(7), values)
    assert series.least == (1.5, 6)
    assert series.smoothed(1) is series
    halves = Series(np.arange(7), np.arange(7.0)).smoothed(3)
    assert halves.values.tolist() == [1.0, 4.0]
    assert halves.steps.tolist() == [2, 5]


def test_a_record_that_is_not_finite_is_left_out_of_a_smoothed_curve_and_is_never_the_better_one() -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf, np.nan, np.nan, 7.0, 9.0])
    smooth = Series(np.arange(8), values).smoothed(2)
    np.testing.assert_array_equal(smooth.values, [1.0, 3.0, np.nan, 8.0])
    assert Series(np.arange(2), np.array([np.nan, np.nan])).least is None
    assert _row("speed", [math.inf, 2.0, 3.0], highest=True).better == 2
    assert _row("loss", [math.nan, 2.0, None]).better is None
