"""Names, lists and tokens of the tasks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from tests.piano.test_tasks import ALL, OLDER_TASKS, PERCENTAGE_TASKS

from quintet.errors import UserError
from quintet.piano.tasks import DEFAULT_TASKS, KINDS, SPECIAL_NAMES, Task, task_named, tasks_from

# ---- names

UPSTREAM = [
    ("top_line_masking-x2", Task("top_line_masking", "n_repetitions", 2)),
    ("top_line", Task("top_line_masking", "n_repetitions", 1)),
    ("parametric_top_line_masking-x3", Task("top_line_masking", "n_repetitions", 3)),
    ({"class": "TopLineMasking", "params": {"n_repetitions": 2}}, Task("top_line_masking", "n_repetitions", 2)),
    ({"class": "ParametricStrideMasking", "params": {"stride": 5}}, Task("stride_notes_masking", "stride", 5)),
    ({"class": "HighNotesMasking"}, Task("high_notes_masking", "n_notes", 5)),
    ({"class": "HighNotesMasking", "params": {"mask_percentage": 5}}, Task("high_notes_masking", "mask_percentage", 5)),
    ("high_notes_masking-x5%", Task("high_notes_masking", "mask_percentage", 5)),
    ("random_masking-x20", Task("random_masking", "mask_percentage", 20)),
    ("random_masking-x20%", Task("random_masking", "mask_percentage", 20)),
    ("chords", Task("chord_masking", "n_notes_threshold", 3)),
    ("stride-x3", Task("stride_notes_masking", "stride", 3)),
    ("above_low_quartile", Task("above_low_quartile_prediction")),
    ("loud", Task("loud_prediction")),
    ({"class": "AboveMedianPrediction", "params": {}}, Task("above_median_prediction")),
    ("middle_quartile_prediction", Task("middle_quartiles_prediction")),
    ("performance", Task("performance_task")),
    ("comprehensive", Task("comprehensive_denoising")),
]


@pytest.mark.parametrize(("written", "task"), UPSTREAM)
def test_spellings_of_upstream_are_read(written: str | dict, task: Task) -> None:
    assert tasks_from([written]) == (task,)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_a_name_names_its_task(task: Task) -> None:
    assert task_named(task.name) == task == pickle.loads(pickle.dumps(task))


def test_ranges_are_lists_of_parameters_and_doubles_count_once() -> None:
    ranged = {"class": "StrideMasking", "param_range": [{"stride": 2}, {"stride": 5}, {"stride": 2}]}
    assert [task.name for task in tasks_from([ranged, "stride-x5"])] == [
        "stride_notes_masking-x2",
        "stride_notes_masking-x5",
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("top_lin_masking-x2", r"tasks\[0\]: no task is called 'top_lin_masking'; did you mean 'top_line_masking'\?"),
        ({"class": "TopLineMaskin"}, r"did you mean 'TopLineMasking'\?"),
        ({"class": "LowNoteMasking"}, r"did you mean 'LowNotesMasking'\?"),
        ("qqq", r"there are top_line_masking, bottom_line_masking"),
        ("", r"no task is called ''"),
        ("loud_prediction-x3", r"loud_prediction has no parameter"),
        ("stride-x0", r"stride of stride_notes_masking is a whole number from 1 on, not 0"),
        ("high_notes-x101%", r"from 1 to 100, not 101"),
        ("top_line-x5%", r"top_line_masking has n_repetitions; not mask_percentage"),
        ({"class": "HighNotesMasking", "params": {"n_notes": 5, "mask_percentage": 5}}, r"one of them; not n_notes"),
        ({"class": "HighNotesMasking", "params": {"n_notes": 2.5}}, r"a whole number from 1 on, not 2\.5"),
        ({"class": "HighNotesMasking", "params": {"n_notes": True}}, r"not True"),
        ({"class": "StrideMasking", "params": {"strides": 2}}, r"tasks\[0\]\.params: .* has stride; not strides"),
        ({"class": "StrideMasking", "param_range": {"stride": 2}}, r"a list of parameters"),
        ({"class": "StrideMasking", "params": {"stride": 2}, "param_range": [{"stride": 2}]}, r"exclude one another"),
        ({"clas": "StrideMasking"}, r"has the keys class and params"),
        (7, r"has the keys class and params"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(entry: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        tasks_from([entry])  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(refused.value)


def test_counts_and_percentages_of_one_kind_are_refused_where_their_tokens_are_the_same() -> None:
    assert len(tasks_from(["high_notes-x5", "high_notes-x10%", "low_notes-x10"])) == 3
    with pytest.raises(UserError, match="high_notes_masking-x5 and high_notes_masking-x5% have the same tokens"):
        tasks_from(["high_notes-x5", "high_notes-x5%"])


# ---- lists and tokens


def test_the_lists_are_those_of_upstream() -> None:
    first = ["top_line_masking-x1", "top_line_masking-x2", "top_line_masking-x3", "high_notes_masking-x5"]
    first += ["high_notes_masking-x10", "high_notes_masking-x20", "high_notes_masking-x30", "short_notes_masking-x10"]
    first += [
        "short_notes_masking-x20",
        "stride_notes_masking-x2",
        "stride_notes_masking-x5",
        "stride_notes_masking-x20",
    ]
    assert [task.name for task in DEFAULT_TASKS] == first
    percentages = [{"mask_percentage": share} for share in range(5, 105, 5)]
    classes = ["LowNotes", "HighNotes", "ShortNotes", "LongNotes", "Random", "LinearRandom", "BandRandom"]
    later = [
        {"class": "BottomLineMasking", "param_range": [{"n_repetitions": lines} for lines in (1, 2, 5)]},
        {"class": "TopLineMasking", "param_range": [{"n_repetitions": lines} for lines in (1, 2, 3)]},
        *({"class": f"{name}Masking", "param_range": percentages} for name in classes),
    ]
    assert tasks_from(later) == PERCENTAGE_TASKS
    assert len(PERCENTAGE_TASKS) == 146
    assert len(OLDER_TASKS) == 23


def test_a_prefix_is_the_token_of_the_task_and_of_its_parameter() -> None:
    assert task_named("top_line-x2").tokens == ("<PARAMETRIC_TOP_LINE>", "<PARAMETER_2>")
    assert task_named("high_notes-x20%").tokens == ("<PARAMETRIC_HIGH_NOTES>", "<PARAMETER_20>")
    assert task_named("chords-x3").tokens == ("<CHORD_MASK>",)
    assert task_named("random-x20").tokens == ("<RANDOM_MASK>",)
    assert task_named("soft_prediction").tokens == ("<LOUD>", "<SOFT>")
    assert len({KINDS[kind].tokens for kind in KINDS}) == len(KINDS)


def test_special_names_are_in_the_order_of_piano_gpt() -> None:
    """Data sets and composers as piano-gpt numbers them, then words by the alphabet, parameters by their numbers."""
    ids = {token: 217 + place for place, token in enumerate(SPECIAL_NAMES)}
    assert (ids["<MAESTRO>"], ids["<PIANO_FOR_AI>"], ids["<SCRIABIN>"], ids["<BACH>"]) == (217, 226, 227, 241)
    words = SPECIAL_NAMES[25 : SPECIAL_NAMES.index("<PARAMETER_1>")]
    assert list(words) == sorted(words)
    assert SPECIAL_NAMES[-130:-2] == tuple(f"<PARAMETER_{value}>" for value in range(1, 129))
    assert SPECIAL_NAMES[-2:] == ("<GENAI>", "<EOGENAI>")


def test_every_task_has_its_tokens_among_the_special_names() -> None:
    assert len(SPECIAL_NAMES) == len(set(SPECIAL_NAMES))
    assert {token for task in ALL for token in task.tokens} <= set(SPECIAL_NAMES)


def test_the_order_of_special_names_does_not_follow_the_seed_of_hashes() -> None:
    code = "from quintet.piano.tasks import SPECIAL_NAMES; print(SPECIAL_NAMES)"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
