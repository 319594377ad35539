"""Loading of run files: extended files, interpolation, and the origin of each value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quintet.config.keypath import ABSENT, lookup, parse, path_of, show, walk
from quintet.config.load import Loaded, load_run_config
from quintet.errors import UserError

Write = Callable[..., Path]

MINIMAL = "data: {sources: [{kind: python_stdlib}]}\ntrain: {steps: 100}\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str, name: str = "run.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return _write


@pytest.fixture
def load(write: Write) -> Callable[..., Loaded]:
    return lambda text, *overrides: load_run_config([write(text)], overrides)


@pytest.fixture
def problems(load: Callable[..., Loaded]) -> Callable[..., tuple[str, ...]]:
    """Return the problems of a run file, with files named without their folder."""

    def _problems(text: str, *overrides: str) -> tuple[str, ...]:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        return tuple(
            problem[problem.find("run.yaml") :] if "/" in problem else problem for problem in caught.value.problems
        )

    return _problems


def test_the_name_is_the_files_name_unless_it_is_given(write: Write, load: Callable[..., Loaded]) -> None:
    assert load_run_config([write(MINIMAL, "first.yaml"), write("seed: 1", "second.yaml")]).config.name == "second"
    assert load(MINIMAL + "name: own\n").config.name == "own"
    assert load(MINIMAL, "name=other").config.name == "other"


def test_numbers_are_read_as_people_write_them(load: Callable[..., Loaded]) -> None:
    config = load(MINIMAL + "optimizer: {lr: 1e-3, eps: 1E-8}\n", "data.validation=1e3", "train.batch_size=1_6").config
    assert (config.optimizer.lr, config.optimizer.eps, config.data.validation) == (0.001, 1e-8, 1000)
    assert config.train.batch_size == 16


def test_later_files_win_sections_merge_and_lists_are_replaced(write: Write) -> None:
    a = write(
        "data: {sources: [{kind: text, path: x}, {kind: text, path: y}], shuffle: false}\ntrain: {steps: 5}", "a.yaml"
    )
    b = write("data: {sources: [{kind: python_stdlib}]}\noptimizer: {lr: 2}", "b.yaml")
    loaded = load_run_config([a, b])
    assert [source.kind for source in loaded.config.data.sources] == ["python_stdlib"]
    assert loaded.config.data.shuffle is False
    assert loaded.origins["data.shuffle"] == f"{a}:1"
    assert loaded.origins["data.sources[0].kind"] == f"{b}:1"
    assert loaded.origins["optimizer.lr"] == f"{b}:2"
    assert "data.sources[1].path" not in loaded.origins


def test_a_section_that_changes_its_kind_is_replaced(write: Write) -> None:
    base = write(MINIMAL + "schedule: {min_lr: 1e-4, warmup_steps: 7}\n", "base.yaml")
    same = load_run_config([base, write("schedule: {kind: cosine, decay_steps: 9}", "same.yaml")]).config.schedule
    assert (same.kind, same.warmup_steps, same.decay_steps) == ("cosine", 7, 9)
    other = load_run_config([base, write("schedule: {kind: constant}", "other.yaml")]).config.schedule
    assert (other.kind, other.warmup_steps) == ("constant", 0)


def test_extends_is_relative_to_its_file_and_recursive(write: Write) -> None:
    write(MINIMAL + "seed: 1\nruns_dir: top\n", "base/top.yaml")
    write("extends: top.yaml\nseed: 2\nevaluate: {every: 7}\n", "base/middle.yaml")
    write("evaluate: {samples: 9}", "more.yaml")
    last = write("extends: [base/middle.yaml, more.yaml]\ntrain: {batch_size: 4}\n", "last.yaml")
    loaded = load_run_config([last])
    assert (loaded.config.seed, loaded.config.runs_dir, loaded.config.name) == (2, "top", "last")
    assert (loaded.config.evaluate.every, loaded.config.evaluate.samples) == (7, 9)
    assert (loaded.config.train.steps, loaded.config.train.batch_size) == (100, 4)
    assert "extends" not in loaded.raw
    assert loaded.origins["seed"].endswith("middle.yaml:2")


def test_a_file_may_be_extended_twice_but_not_by_itself(write: Write) -> None:
    write(MINIMAL, "base.yaml")
    write("extends: base.yaml\nseed: 2", "a.yaml")
    write("extends: base.yaml\nruns_dir: x", "b.yaml")
    assert load_run_config([write("extends: [a.yaml, b.yaml]", "both.yaml")]).config.seed == 2
    write("extends: two.yaml", "one.yaml")
    two = write("seed: 3\nextends: one.yaml", "two.yaml")
    with pytest.raises(UserError, match=r"one\.yaml:1: extends: .*two\.yaml extends itself"):
        load_run_config([two])


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("nowhere.yaml", r"run\.yaml:1: extends .*nowhere\.yaml: no such file"),
        ("3", r"run\.yaml:1: extends: must be the name of a file"),
        ("[a, [b]]", r"run\.yaml:1: extends: must be the name of a file"),
        ("${oc.env:NOT_SET_ANYWHERE}", r"run\.yaml:1: extends: .*NOT_SET_ANYWHERE"),
    ],
)
def test_what_cannot_be_extended_is_reported_at_its_line(
    load: Callable[..., Loaded], extends: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(f"extends: {extends}\n" + MINIMAL)


def test_interpolation_finds_given_values_defaults_and_the_environment(
    load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUINTET_TEST_BATCH", "8")
    monkeypatch.delenv("QUINTET_TEST_ROOT", raising=False)
    loaded = load(
        "data: {sources: [{kind: text, path: '${oc.env:QUINTET_TEST_ROOT,here}/x', label: '${name}'}]}\n"
        "train: {steps: 100, batch_size: '${oc.env:QUINTET_TEST_BATCH}'}\n"
        "schedule: {warmup_steps: '${train.steps}', min_lr: '${optimizer.lr}'}\n"
        "evaluate: {every: '${checkpoint.every}'}\n"
        "sample: {prompts: ['\\${literal}'], every: '${.max_tokens}'}\n"
    )
    config = loaded.config
    assert config.data.sources[0].path == "here/x"
    assert config.data.sources[0].label == "run"
    assert config.train.batch_size == 8
    assert config.schedule.warmup_steps == 100
    assert config.schedule.min_lr == config.optimizer.lr == 1e-3
    assert config.evaluate.every == 500
    assert config.sample.prompts == ("${literal}",)
    assert config.sample.every == 128
    assert "optimizer" not in loaded.raw


@pytest.mark.parametrize("tag", ["int", "float", "bool", "timestamp", "map", "set", "binary", "seq", "omap", "pairs"])
def test_a_value_that_does_not_fit_its_tag_is_one_line(problems: Callable[..., tuple[str, ...]], tag: str) -> None:
    (line,) = problems(f"seed: 1\nname: !!{tag} x\n")
    assert line.startswith("run.yaml:2: ")
    (line,) = problems(MINIMAL, f"name=!!{tag} x")
    assert line.startswith(f"command line: name: '!!{tag} x' ")


def test_interpolation_follows_the_merged_result(write: Write) -> None:
    base = write(MINIMAL + "schedule: {warmup_steps: '${train.steps}'}\n", "base.yaml")
    assert load_run_config([base], ["train.steps=7"]).config.schedule.warmup_steps == 7


def test_interpolations_that_fail_are_all_reported(problems: Callable[..., tuple[str, ...]]) -> None:
    found = problems(
        MINIMAL + "schedule:\n  warmup_steps: ${train.step}\nruns_dir: ${oc.env:NOT_SET_ANYWHERE}\nseed: ${seed}\n"
        "evaluate: {every: '${nosuch:3}'}\n",
        "sample.max_tokens=${oops.here}",
    )
    assert found == (
        "run.yaml:4: schedule.warmup_steps: ${train.step}: 'train.step' is no key here",
        "run.yaml:5: runs_dir: ${oc.env:NOT_SET_ANYWHERE}: the environment variable 'NOT_SET_ANYWHERE' "
        "is not set; set it, "
        "or give a default: ${oc.env:NAME,default}",
        "run.yaml:6: seed: ${seed}: refers to itself",
        "run.yaml:7: evaluate.every: ${nosuch:3}: unknown function; the functions are oc.env, oc.select, oc.decode, "
        "oc.create, add, sub, mul, div, fdiv, for, now",
        "command line: sample.max_tokens: ${oops.here}: 'oops.here' is no key here",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\n", "run.yaml:2: expected ',' or ']', but got '<stream end>'"),
        ("train:\n\tsteps: 1", "run.yaml:2: YAML is indented with spaces, not with tabs"),
        ("seed: 1\ndata: 3\nseed: 2", "run.yaml:3: seed: is given twice, first in line 1; keep one"),
        ("model:\n  width: 1\n  width: 2", "run.yaml:3: model.width: is given twice, first in line 2; keep one"),
        ("", "run.yaml: the file is empty; a run file needs at least data and train"),
        ("# nothing\n", "run.yaml: the file is empty; a run file needs at least data and train"),
        ("\n- a", "run.yaml:2: a run file is a mapping of keys to values, this one is a list"),
        ("hello", "run.yaml:1: a run file is a mapping of keys to values, this one is a single value"),
        ("!!set {a}", "run.yaml:1: a run file is a mapping of keys to values, this one is tagged set"),
        ("a: 1\n---\nb: 2", "run.yaml:2: but found another document"),
        (
            "seed: !!python/object:os.system 3",
            "run.yaml:1: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("seed: *nowhere", "run.yaml:1: found undefined alias 'nowhere'"),
        ("seed: &a [*a]", "run.yaml:1: seed[0]: the anchor contains itself"),
        (
            "seed: 1\nevaluate:\n  1: 2",
            "run.yaml:3: evaluate: keys are names, and '1' is not one in YAML; quote it, or remove the braces",
        ),
        (
            "seed: 1\nruns_dir: {{x}}",
            "run.yaml:2: runs_dir: keys are names, and a mapping or list is not one in YAML; quote it, "
            "or remove the braces",
        ),
        (
            "seed: 1\nruns_dir: '${oops'",
            "run.yaml:2: runs_dir: '${oops' is not a whole ${…}; write \\${ for the characters themselves",
        ),
        (
            "model: {width: ${oops}}",
            "run.yaml:1: expected ',' or '}', but got '{'; between { } an interpolation stands in quotes: \"${…}\"",
        ),
        ("seed: 1\nruns_dir: \x07", "run.yaml:2: character #x0007 is not allowed in YAML"),
        ("runs_dir: ???", "run.yaml:1: runs_dir: is ???, which stands for a value that must be given; give it"),
    ],
)
def test_broken_yaml_is_reported_at_its_line(problems: Callable[..., tuple[str, ...]], text: str, problem: str) -> None:
    assert problems(text) == (problem,)


# Without characters that PyYAML refuses, and without interpolations.
JSON_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$"))


@given(st.lists(JSON_TEXT, min_size=1))
@example(["😀", "a\\ud83d\\ude00", "\\😀", '"😀\\"', "𝕏é😀"])
def test_a_run_file_that_json_wrote_has_its_texts(texts: list[str]) -> None:
    values = {"data": {"sources": [{"kind": "python_stdlib"}]}, "train": {"steps": 1}, "sample": {"prompts": texts}}
    with TemporaryDirectory() as folder:
        for escaped in (True, False):
            file = Path(folder) / "run.yaml"
            file.write_text(json.dumps(values, ensure_ascii=escaped, indent=escaped or None), encoding="utf-8")
            assert list(load_run_config([file]).config.sample.prompts) == texts
        overrides = [f"sample.prompts={json.dumps(texts)}", f"sample.prompts.0={json.dumps(texts[0] + '😀')}"]
        assert list(load_run_config([file], overrides).config.sample.prompts) == [texts[0] + "😀", *texts[1:]]


def test_escapes_are_joined_where_yaml_reads_escapes(load: Callable[..., Loaded]) -> None:
    escapes = "\\ud83d\\ude00"
    found = load(f"# {escapes}\n{MINIMAL}sample: {{prompts: ['{escapes}', {escapes}, \"{escapes}\"]}}\n").config.sample
    assert list(found.prompts) == [escapes, escapes, "😀"]


HALF = "half of a character without its other half; write the whole one"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name: "a\\ud83d"\n', f"run.yaml:3: name: character 1 is \\ud83d, {HALF}"),
        ('name: "\\ude00\\ud83d"\n', f"run.yaml:3: name: character 0 is \\ude00, {HALF}"),
        ('name: "\\\\ud83d\\ude00"\n', f"run.yaml:3: name: character 6 is \\ude00, {HALF}"),
        ('sample:\n  prompts: [a, "\\ud83d"]\n', f"run.yaml:4: sample.prompts[1]: character 0 is \\ud83d, {HALF}"),
        ('sample: {"\\ud83d": 1}\n', f"run.yaml:3: sample: a key: character 0 is \\ud83d, {HALF}"),
    ],
)
def test_half_a_character_is_refused_at_its_key(
    problems: Callable[..., tuple[str, ...]], text: str, problem: str
) -> None:
    assert problems(MINIMAL + text) == (problem,)


def test_half_a_character_is_refused_wherever_it_comes_from(
    problems: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python decodes a byte that is not UTF-8 to half a character.
    for value, half in (('"\\ud83d"', "ud83d"), ("\udcff", "udcff"), ('"\\ude00\\ud83d"', "ude00")):
        assert problems(MINIMAL, f"name={value}") == (f"command line: name: character 0 is \\{half}, {HALF}",)
    monkeypatch.setenv("NAME", "a\udcff")
    assert problems(MINIMAL + "name: ${oc.env:NAME}\n") == (f"run.yaml:3: name: character 1 is \\udcff, {HALF}",)


def test_files_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("runs_dir: caf\xe9".encode("latin-1"))
    for name, message in [("no.yaml", "no such file"), (".", "is a folder"), ("latin.yaml", "is not UTF-8 text")]:
        with pytest.raises(UserError, match=message):
            load_run_config([tmp_path / name])


def test_anchors_merge_keys_and_a_byte_order_mark_are_read(load: Callable[..., Loaded]) -> None:
    text = (
        "\ufeffdata: {sources: [{kind: python_stdlib}]}\ntrain: &t\n  steps: 3\n"
        "sample: {max_tokens: 3, <<: {top_k: 2, max_tokens: 9}}\n"
    )
    loaded = load(text)
    assert (loaded.config.sample.max_tokens, loaded.config.sample.top_k) == (3, 2)
    assert loaded.origins["sample.top_k"].endswith("run.yaml:4")


def test_every_given_value_has_an_origin_that_holds_it(load: Callable[..., Loaded], tmp_path: Path) -> None:
    text = MINIMAL + "\n\nmodel:\n  # a comment\n  width: 64\n\n  attention:\n    heads: 1\n"
    loaded = load(text)
    lines = text.splitlines()
    for key, value in {"model.width": 64, "model.attention.heads": 1, "train.steps": 100}.items():
        file, _, line = loaded.origins[key].rpartition(":")
        assert Path(file) == tmp_path / "run.yaml"
        assert key.rpartition(".")[2] in lines[int(line) - 1]
        assert str(value) in lines[int(line) - 1]


STEP = st.text("ab_1", min_size=1).filter(lambda text: not text.isdecimal())


@given(st.lists(STEP | st.integers(0, 30), max_size=5), STEP)
def test_a_path_that_is_shown_is_read_as_itself(steps: list[str | int], first: str) -> None:
    path = (first, *steps)
    assert parse(show(path)) == parse(f" {show(path)} ") == path_of(show(path)) == path
    assert parse(show(path).replace("[", ".").replace("]", "")) == path  # an index may also be between points


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a[0", "[0]", "a]", "a b.[0]."])
def test_a_text_that_is_not_a_path_parses_as_none(text: str) -> None:
    assert parse(text) is None


def test_what_is_at_a_path_and_what_is_not() -> None:
    values = {"a": [{"b": None}, 5], "0": 7}
    found = dict(walk(values))
    assert found == {
        (): values,
        ("a",): values["a"],
        ("a", 0): {"b": None},
        ("a", 0, "b"): None,
        ("a", 1): 5,
        ("0",): 7,
    }
    assert all(lookup(values, path) is value for path, value in found.items())
    for path in (("a", 2), ("a", "b"), ("a", 0, "c"), ("a", 1, "b"), ("c",), ("a", 0, "b", "c"), (0,)):
        assert lookup(values, path) is ABSENT


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("['${nope}.yaml']", "extends: ['${nope}.yaml']: 'nope' is no key here"),
        ("${extends}", "extends: ${extends}: refers to itself"),
        ("~nobody-at-all/x.yaml", "extends: '~nobody-at-all/x.yaml': ~nobody-at-all stands for the folder of a user"),
        (f"'{'x' * 300}'", "extends: 'xxx"),
    ],
)
def test_what_extends_cannot_name_is_reported_with_its_line(tmp_path: Path, names: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"name: a\nextends: {names}\n")
    assert only_problem(file).startswith(f"{file}:2: {message}")


def only_problem(file: Path) -> str:
    """Return the only problem of ``file``."""
    with pytest.raises(UserError) as raised:
        load_run_config([file])
    (problem,) = raised.value.problems
    return problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr:\n    3e-3: 1", "optimizer.lr: keys are names, and '3e-3' is not one in YAML"),
        ("lr:\n    3e-3: 3e-3", "optimizer.lr: keys are names, and '3e-3' is not one in YAML"),
        ("lr: {3e-3: 1}", "optimizer.lr: keys are names, and '3e-3' is not one in YAML"),
        (f"lr: {'9' * 101}", "optimizer.lr: has more than 100 digits"),
        ("lr: '${mul:1" + "0" * 60 + ",1" + "0" * 60 + "}'", "optimizer.lr: has more than 100 digits"),
        (f"lr: '{'9' * 400}'", "optimizer.lr: must be "),
    ],
)
def test_a_number_with_too_many_digits_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{sources: [{{kind: python_stdlib}}]}}\ntrain: {{steps: 1}}\noptimizer:\n  {text}\n")
    problem = only_problem(file)
    assert message in problem
    assert re.match(rf"{file}:[45]: ", problem)
