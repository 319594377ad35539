"""Overrides on the command line: what they set, add and delete, and what they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.config.test_load import MINIMAL, Write
from tests.config.test_load import load as load  # a fixture
from tests.config.test_load import problems as problems  # a fixture
from tests.config.test_load import write as write  # a fixture

from quintet.config.load import Loaded, load_run_config
from quintet.errors import UserError


def test_overrides_set_values_elements_and_whole_sections(load: Callable[..., Loaded]) -> None:
    text = "data: {sources: [{kind: text, path: a}, {kind: text, path: b}]}\ntrain: {steps: 100}\n"
    text += "schedule: {min_lr: 1e-4}\n"
    loaded = load(
        text,
        "data.sources[0].path=x=y",
        "data.sources.1.path=[c, d]",
        "schedule={kind: wsd, decay_fraction: 1e-1}",
        "train.clip_norm=null",
        "train.compile=true",
        "model.attention.heads=2",
        "seed=1",
        "seed=2",
    )
    config = loaded.config
    assert [source.path for source in config.data.sources] == ["x=y", ("c", "d")]
    assert (config.schedule.kind, config.schedule.decay_fraction) == ("wsd", 0.1)
    assert (config.train.clip_norm, config.train.compile, config.model.heads, config.seed) == (None, True, 2, 2)
    assert loaded.origins["data.sources[0].path"] == loaded.origins["schedule.kind"] == "command line"
    assert loaded.origins["model.attention.heads"] == "command line"
    assert "schedule.min_lr" not in loaded.origins


def test_an_override_means_what_the_same_keys_mean_in_a_last_file(load: Callable[..., Loaded], write: Write) -> None:
    text = MINIMAL + "schedule: {kind: wsd, decay_fraction: 0.2, warmup_steps: 3}\n"
    for value in ("{warmup_steps: 5}", "{kind: wsd, warmup_steps: 5}", "{kind: linear, warmup_steps: 5}"):
        last = load_run_config([write(text, "first.yaml"), write(f"schedule: {value}\n", "last.yaml")])
        assert load(text, f"schedule={value}").config.schedule == last.config.schedule


def test_overrides_add_and_delete(load: Callable[..., Loaded], problems: Callable[..., tuple[str, ...]]) -> None:
    text = MINIMAL + "schedule: {kind: wsd, decay_fraction: 0.2, warmup_steps: 3}\n"
    config = load(text, "~schedule", "+schedule.min_lr=1e-4", "++seed=3", "~train.steps=100", "train.tokens=999").config
    assert (config.schedule.kind, config.schedule.min_lr, config.seed) == ("cosine", 1e-4, 3)
    assert (config.train.steps, config.train.tokens) == (None, 999)
    assert problems(text, "+schedule.warmup_steps=4", "~schedule.warmup_steps=4", "~seed", "~data.sources[0]") == (
        "command line: data.sources[0]: is an element of a list; set the list as a whole: data.sources=[…]",
        "command line: schedule.warmup_steps: is there already, and + adds; write schedule.warmup_steps=… to change it",
        "command line: schedule.warmup_steps: is to be deleted where it is 4, and is 3",
        "command line: seed: is to be deleted, and is not there",
    )


def test_an_override_loses_nothing_after_a_number_sign(
    load: Callable[..., Loaded], problems: Callable[..., tuple[str, ...]]
) -> None:
    assert load(MINIMAL, "name=exp #2").config.name == "exp #2"
    assert load(MINIMAL, "name='exp #2'").config.name == "exp #2"
    assert load(MINIMAL, "name=c#").config.name == "c#"
    assert "starts a comment" in problems(MINIMAL, "sample.prompts=[a, b] # c")[0]
    assert "'5 #x'" in problems(MINIMAL, "train.steps=5 #x")[0]


def test_sections_and_lists_do_not_merge(write: Write) -> None:
    first, last = write(MINIMAL, "first.yaml"), write("data:\n  sources: {kind: text}\n", "last.yaml")
    with pytest.raises(UserError, match=r"last\.yaml:2: data\.sources: is a list in one place and a section"):
        load_run_config([first, last])


def test_overrides_that_lead_nowhere_are_all_reported(problems: Callable[..., tuple[str, ...]]) -> None:
    found = problems(
        MINIMAL + "optimizer: ${model}\n",
        "train.clip_norm",
        "=3",
        "a..b=3",
        "data.sources.path=3",
        "data.sources[4]=3",
        "seed[0]=3",
        "runs_dir=[",
        "runs_dir={a: 1, a: 2}",
        "extends=x.yaml",
        "optimizer.lr=1",
    )
    assert found == (
        "command line: '=3' is no override; write key.path=value, for instance train.steps=100",
        "command line: 'a..b=3' is no override; write key.path=value, for instance train.steps=100",
        "command line: 'train.clip_norm' is no override; write key.path=value, for instance train.steps=100",
        "command line: data.sources.path: data.sources is a list; say which element: data.sources[0].path",
        "command line: data.sources[4]: data.sources has 1 elements, counted from 0",
        "command line: extends: belongs in a file; on the command line name several files, of which later ones win",
        "command line: optimizer.lr: optimizer is '${model}'; set it as a whole",
        "command line: runs_dir: '[' is no YAML value (expected the node content, but found '<stream "
        "end>'); quote what YAML "
        "reads as syntax",
        "command line: runs_dir: '{a: 1, a: 2}' is no YAML value (found duplicate key a); quote what "
        "YAML reads as syntax",
        "command line: seed[0]: seed is no list here; set the list as a whole: seed=[…]",
    )
