"""What the benchmarks are put together from: ids, batches, the share of a process, figures, the rule of short items."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.errors import UserError
from quintet.evaluate.harness.items import is_short_and_plain, syllables
from quintet.evaluate.harness.names import check_tasks
from quintet.evaluate.harness.run import Benchmark, Benchmarks, Figure, count_of
from quintet.evaluate.harness.scoring import Limit, confidence, plan_batches
from quintet.evaluate.harness.texts import Encoder, Text
from quintet.evaluate.likelihood import deal
from quintet.tokenize.bounds import text_bounds
from quintet.tokenize.simple import ByteTokenizer

TEXTS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 12), st.integers(0, 3)),
    max_size=30,
)


@given(TEXTS, st.integers(1, 60), st.one_of(st.none(), st.integers(1, 6)))
def test_a_plan_reads_every_text_once_within_the_limit(made: list, tokens: int, rows: int | None) -> None:
    texts = [Text(tuple(ids), min(scored, len(ids) - 1)) for ids, scored, _ in made]
    owners = [owner for _, _, owner in made]
    limit = Limit(tokens, 12, rows)
    found = plan_batches(texts, owners, limit)
    every = [index for batch in (*found.whole, *found.split) for group in batch for index in group.texts]
    assert sorted(every) == list(range(len(texts)))
    for split, batches in ((False, found.whole), (True, found.split)):
        for batch in batches:
            count = sum(len(group.texts) if split else 1 for group in batch)
            width = max(group.shared for group in batch) + max(group.rest for group in batch)
            assert count == 1 or (count * width <= tokens and count <= (rows or count))
            for group in batch:
                assert len({owners[index] for index in group.texts}) == 1
                inputs = [texts[index].inputs for index in group.texts]
                assert len({one[: group.shared] for one in inputs}) == 1
                assert max(map(len, inputs)) == group.shared + group.rest


def test_what_the_choices_share_is_read_once() -> None:
    question = (1, 2, 3, 4, 5, 6, 7, 8)
    texts = [Text((*question, end, end), 2) for end in (10, 11, 12)]
    found = plan_batches(texts, ["one"] * 3, Limit(1000, 16))
    assert (found.whole, len(found.split)) == ([], 1)
    assert [(group.shared, group.rest) for group in found.split[0]] == [(8, 1)]
    single = plan_batches([Text((*question, end), 1) for end in (10, 11)], ["one"] * 2, Limit(1000, 16))
    assert [group.texts for group in single.whole[0]] == [(0, 1)]
    apart = plan_batches(texts, ["one"] * 3, Limit(1000, 16), alone=lambda text: True)
    assert (len(apart.whole[0]), apart.split) == (3, [])


@given(st.integers(0, 40), st.integers(1, 8))
def test_each_batch_counts_once_and_all_processes_read_equally_many(batches: int, world_size: int) -> None:
    shares = [deal(batches, rank, world_size) for rank in range(world_size)]
    assert sorted(index for share in shares for index, counts in share if counts) == list(range(batches))
    assert {len(share) for share in shares} == {math.ceil(batches / world_size)}
    for share in shares:
        assert all(0 <= index < batches for index, _ in share)


@pytest.mark.parametrize(
    ("context", "continuation", "ids", "scored"),
    [
        ("ab", "cd", "abcd", 2),
        ("ab ", "cd", "ab cd", 3),  # the space belongs to what follows
        ("  ", "cd", "<  cd", 4),
        ("", "cd", "<cd", 2),
        ("abcdefgh", "ij", "bcdefghij", 2),  # one more than the context of 8, for the last is not read
    ],
)
def test_a_pair_becomes_the_ids_that_the_harness_says(context: str, continuation: str, ids: str, scored: int) -> None:
    tokenizer = ByteTokenizer()
    encoder = Encoder(tokenizer, 8, text_bounds(tokenizer))
    found = encoder.pairs([(context, continuation)])[0]
    expected = [tokenizer.end_id if one == "<" else tokenizer.encode(one)[0] for one in ids]
    assert (list(found.ids), found.scored) == (expected, scored)
    assert found.cut == (1 if len(context) == 8 else 0)


@given(st.text("abc", max_size=40), st.integers(1, 9))
def test_rolling_windows_are_those_of_the_harness(text: str, room: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    tokenizer = ByteTokenizer()
    windows = Encoder(tokenizer, room, text_bounds(tokenizer)).rolling(text)
    theirs = map(
        utils.make_disjoint_window,
        utils.get_rolling_token_windows(tokenizer.encode(text), tokenizer.end_id, room, 1),
    )
    assert [(one.ids, one.scored) for one in windows] == [((*before, *after), len(after)) for before, after in theirs]


def test_confidence_is_its_formula() -> None:
    logprobs, lengths = [-4.0, -6.0, -5.0], [4, 12, 1]
    found = confidence(logprobs, lengths, [1])
    for suffix, scores in (("", np.array(logprobs)), ("_norm", np.array(logprobs) / lengths)):
        chances = np.exp(scores) / np.exp(scores).sum()
        assert found[f"probability{suffix}"] == pytest.approx(chances[1])
        assert found[f"margin{suffix}"] == pytest.approx(chances[1] - max(chances[0], chances[2]))
    assert found["acc_norm"] == 1.0
    assert confidence(logprobs, lengths, [0, 2])["acc_norm"] == 0.0
    assert confidence([-5000.0, -5001.0], [1, 1], [0])["probability"] == pytest.approx(1 / (1 + math.exp(-1)))


def test_confidence_of_equal_and_of_all_right_choices() -> None:
    even = confidence([-3.0, -3.0, -3.0], [0, 0, 0], [0, 2])  # an empty choice counts as one character
    assert even["probability"] == even["probability_norm"] == pytest.approx(2 / 3)
    assert even["margin"] == even["margin_norm"] == pytest.approx(0)
    sure = confidence([-1.0, -2.0], [1, 1], [0, 1])
    assert (sure["probability"], sure["acc_norm"]) == (pytest.approx(1), 1.0)
    assert sure["margin"] == pytest.approx(1 / (1 + math.exp(-1)))


def test_figures_are_shown_to_people_trackers_and_programs() -> None:
    measured = {
        "arc": Benchmark({"acc": Figure(0.25, 0.05, 80, 0), "acc_norm": Figure(0.5, math.nan, 70, 0)}, 80),
        "several": Benchmark({"one/acc": Figure(math.nan, math.inf, 1200, 5)}, 1200, 2, ("3 items are left out",)),
    }
    found = Benchmarks("bf16", measured, {"gone": "no such file"})
    assert found.metrics() == pytest.approx(
        {
            "benchmark/arc/acc": 0.25,
            "benchmark/arc/acc_stderr": 0.05,
            "benchmark/arc/acc_norm": 0.5,
            "benchmark/arc/items": 80,
            "benchmark/arc/shots": 0,
            "benchmark/arc/precision_bf16": 1,
            "benchmark/several/one/acc": math.nan,
            "benchmark/several/one/acc_stderr": math.inf,
            "benchmark/several/one/items": 1200,
            "benchmark/several/one/shots": 5,
            "benchmark/several/one/precision_bf16": 1,
        },
        nan_ok=True,
    )
    assert found.lines() == [
        "  arc      acc       0.2500 ± 0.0500  0-shot in bf16, of 80",
        "  arc      acc_norm  0.5000           0-shot in bf16, of 70",
        "  several  one/acc      nan ± inf     5-shot in bf16, of 1,200",
        "several: 3 items are left out",
        "gone: not measured: no such file",
    ]
    shown = found.figures()
    assert (shown["precision"], shown["not_measured"]) == ("bf16", {"gone": "no such file"})
    assert {name: (one["items"], one["parts"], one["warnings"]) for name, one in shown["tasks"].items()} == {
        "arc": (80, 1, []),
        "several": (1200, 2, ["3 items are left out"]),
    }
    arc, several = shown["tasks"]["arc"]["figures"], shown["tasks"]["several"]["figures"]
    assert arc["acc"] == {"value": 0.25, "stderr": 0.05, "items": 80, "shots": 0, "precision": "bf16"}
    assert (arc["acc_norm"]["stderr"], several["one/acc"]["value"], several["one/acc"]["stderr"]) == (None, None, None)
    assert Benchmarks("fp32").lines() == []


def test_a_few_of_the_items_that_are_left_out_are_named() -> None:
    assert count_of("are cut", [3, 9], 2000) == "2 of 2,000 items are cut (number 3, 9)"
    assert count_of("are cut", range(5), 5) == "5 of 5 items are cut (number 0, 1, 2, 3, 4)"
    assert count_of("are cut", range(1, 1501), 3000) == "1,500 of 3,000 items are cut (number 1, 2, 3, 4, 5, …)"


def test_syllables_of_words() -> None:
    counts = {"cat": 1, "water": 2, "jumped": 1, "wanted": 2, "likes": 1, "roses": 2, "table": 2, "animal": 3, "the": 1}
    assert {word: syllables(word) for word in counts} == counts


def test_short_items_are_short_and_plain() -> None:
    assert is_short_and_plain("Where do fish live?", ["in water", "in the air"])
    assert not is_short_and_plain("Where do fish live?", ["in water", "in photosynthesis"])  # more than nine letters
    assert not is_short_and_plain("Is an animal alive?", ["yes", "no"])  # one hard word in six
    assert is_short_and_plain("word " * 36, ["a b c d", "e"])
    assert not is_short_and_plain("word " * 37, ["a b c d", "e"])


def test_a_misspelt_benchmark_is_named_with_the_nearest() -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError) as found:
        check_tasks(("arc_easy", "helaswag", "arc_easy"), "evaluate.tasks")
    assert list(found.value.problems) == [
        "evaluate.tasks: arc_easy is listed twice; remove one",
        "evaluate.tasks: there is no benchmark 'helaswag'; did you mean hellaswag?",
    ]


def test_a_missing_harness_is_said_with_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'quintet\[eval\]'"):
        check_tasks(("arc_easy",), "evaluate.tasks")


def test_every_name_of_the_stlm_document_is_known() -> None:
    from quintet.config.dialects.stlm.values import TASKS
    from quintet.evaluate.harness.names import KNOWN

    assert set(TASKS.values()) <= KNOWN
    files = {file.stem for file in Path(__file__).parents[2].glob("src/quintet/evaluate/harness/task_files/*.yaml")}
    assert files == {"race_middle", "openbook_qa_open", "ewok", "tinystories_progress"}
