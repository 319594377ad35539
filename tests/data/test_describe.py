"""The report of `quintet data` on stores."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import MakeConfig, write_jsonl
from typer.testing import CliRunner

from quintet.cli import app
from quintet.config.schema import RunConfig
from quintet.data import describe
from quintet.data.describe import Bin, draw, log_bins, report_run, report_store
from quintet.data.prepare import prepare
from quintet.errors import UserError

LENGTHS = [3, 7, 7, 15, 15, 15, 15, 40, 40, 60]  # bytes of the documents; one token more with the end


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path) -> RunConfig:
    texts = [chr(97 + number) * length for number, length in enumerate(LENGTHS)] + ["", "j" * 60, "no"]
    write_jsonl(tmp_path / "rows.jsonl", ({"text": text} for text in texts))
    cleaning = {"min_characters": 3, "deduplicate": {"kind": "exact"}}
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "label": "rows"}
    return make_config(source, cleaning=cleaning, validation=0.25)


def test_nothing_is_tokenised_to_describe_it(config: RunConfig) -> None:
    with pytest.raises(UserError, match="run quintet prepare first"):
        report_run(config, 0)
    assert not list(Path(config.data.cache_dir).rglob("shard-*"))


def test_the_figures_of_a_store(config: RunConfig) -> None:
    prepare(config)
    (report,) = report_run(config, 0)
    assert (report.label, report.documents, report.measured) == ("rows", 10, 10)
    assert report.tokens == sum(LENGTHS) + 10
    assert report.bytes == sum(LENGTHS) + 60
    assert report.tokens_per_byte == (sum(LENGTHS) + 60 + 11) / (sum(LENGTHS) + 60)
    assert report.dropped == {"min_characters": 1, "empty": 1, "duplicate": 1}
    assert report.histogram == (Bin(4, 7, 1), Bin(8, 15, 2), Bin(16, 31, 4), Bin(32, 63, 3))
    assert report.percentiles["0"] == 4
    assert report.percentiles["50"] == 16
    assert report.percentiles["100"] == 61
    assert report.held_out == pytest.approx(0.25, abs=0.01)


def test_the_seed_chooses_other_documents_and_never_a_dropped_one(config: RunConfig) -> None:
    prepare(config)
    shown = [report_run(config, seed)[0].samples for seed in range(20)]
    assert all(len(set(samples)) == 3 for samples in shown)
    assert len(set(shown)) > 10
    assert report_run(config, 3)[0].samples == shown[3]
    assert not any(sample.startswith("document 10:") for samples in shown for sample in samples)
    assert "document 0: 'aaa'" in {sample for samples in shown for sample in samples}


def test_a_store_by_itself_is_in_no_run(config: RunConfig) -> None:
    (store,) = prepare(config).stores
    alone, (of_run,) = report_store(store.folder, 0), report_run(config, 0)
    assert (alone.held_out, alone.waste) == (None, None)
    assert (alone.histogram, alone.samples, alone.label) == (of_run.histogram, of_run.samples, "rows")


def test_what_packing_wastes_is_told(config: RunConfig) -> None:
    packing = {"kind": "document"}
    packed = RunConfig.model_validate(
        {**config.model_dump(), "data": {**config.data.model_dump(), "packing": packing, "sequence_length": 100}}
    )
    prepared = prepare(packed)
    (report,) = report_run(packed, 0)
    train = prepared.train.source_samples[0]
    assert report.waste == pytest.approx(1 - train.tokens / (train.count * 101))
    assert 0 < report.waste < 1


def test_of_very_many_documents_some_evenly_chosen_ones_are_measured(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(config)
    monkeypatch.setattr(describe, "_MEASURED", 5)
    (report,) = report_run(config, 0)
    assert report.measured == 5
    assert sum(one.documents for one in report.histogram) == 5
    assert any("of 5 evenly chosen ones" in line for line in report.lines())


@given(st.lists(st.integers(1, 1 << 40), min_size=1))
def test_every_length_is_in_its_bin(lengths: list[int]) -> None:
    bins = log_bins(np.array(lengths))
    assert [one.documents for one in bins] == [sum(one.first <= n <= one.last for n in lengths) for one in bins]
    assert sum(one.documents for one in bins) == len(lengths)
    assert bins[0].documents
    assert bins[-1].documents
    assert all(one.last + 1 == following.first for one, following in pairwise(bins))


def test_bars_are_as_long_as_the_shares() -> None:
    lines = list(draw((Bin(8, 15, 10), Bin(16, 31, 0), Bin(32, 63, 5), Bin(64, 127, 10_000))))
    assert [line.count("█") for line in lines] == [0, 0, 0, 40]
    assert ["▏" in line for line in lines] == [True, False, True, False]
    assert lines[3].endswith("10,000 (99.9%)")
    assert len({line.index("–") for line in lines}) == 1


def test_the_command_prints_the_same_as_text_and_as_json(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config.model_dump_json())
    runner = CliRunner()
    prepare(config)
    found = json.loads(runner.invoke(app, ["data", str(tmp_path / "run.yaml"), "--json", "--samples", "2"]).stdout)
    assert found[0]["tokens"] == sum(LENGTHS) + 10
    assert len(found[0]["samples"]) == 2
    said = runner.invoke(app, ["data", found[0]["folder"], "--samples", "2"]).stdout
    assert f"{sum(LENGTHS) + 10} tokens" in said
    assert "dropped: 1 of 13 documents (duplicate)" in said
    assert all(sample in said for sample in found[0]["samples"])


def test_music_is_shown_as_notes(make_config: MakeConfig, tmp_path: Path) -> None:
    from quintet.piano.midi import write_midi
    from quintet.piano.notes import notes

    pitch, start = np.array([60, 21, 108, 61] * 30), np.arange(120) / 2
    write_midi(notes(pitch, np.full(120, 64), start, start + 0.25), tmp_path / "Bach.mid")
    source = {"kind": "midi", "path": str(tmp_path / "Bach.mid"), "dataset": "maestro"}
    config = make_config(source, packing={"kind": "pieces"}, tokenizer={"kind": "exponential_time"}, validation=0)
    (store,) = prepare(config).stores
    # Names and numbers of keys as in the MIDI Tuning Standard's table: 60 is the middle C.
    shown = "document 0: <MAESTRO> <BACH> C4 0.00–0.25s v64, A0 0.50–0.75s v64, C8 1.00–1.25s v64, C#4 1.50–1.75s v64, "
    for report in (report_run(config, 0)[0], report_store(store.folder, 0)):
        (sample,) = report.samples
        assert sample.startswith(shown)
        assert sample.endswith(" v64 …")


def test_ids_as_many_as_numbers_of_notes_are_shown_as_ids(make_config: MakeConfig, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(65000, 65100, dtype=np.uint16))
    config = make_config(
        {"kind": "npy", "path": str(tmp_path / "ids.npy")}, tokenizer={"kind": "ids", "vocab_size": 65536}, validation=0
    )
    prepare(config)
    assert "65000 65001 65002" in report_run(config, 0)[0].samples[0]
