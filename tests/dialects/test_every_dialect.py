"""Every dialect: its keys are the document's, its mistakes are found, and files are translated both ways."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.conftest import changes, each_changes, keys_with_tests
from tests.helpers import REPOSITORY

from quintet.config.describe import KeyInfo
from quintet.config.describe import walk as walk_schema
from quintet.config.dialects import NAMES, detect, dialect_named
from quintet.config.dialects.back import translate_back
from quintet.config.dialects.dialect import pattern
from quintet.config.dialects.file import SchemaFile
from quintet.config.dialects.recognise import recognised
from quintet.config.dialects.types import duration, one_of, switch
from quintet.config.dump import differences, dump_run_config
from quintet.config.keypath import KeyPath, path_of, walk
from quintet.config.load import load_run_config
from quintet.config.provenance import Origin
from quintet.config.read import YamlDocument
from quintet.config.reference import dialect_page
from quintet.config.section import ConfigSection, Value
from quintet.config.section import key as declared
from quintet.errors import UserError

SEEDS = {
    "phyagi": "phyagi.rst",
    "vectorlm": "vectorlm.md",
    "stlm": "stlm.md",
    "tmrc": "tmrc.rst",
    "piano": "piano-gpt.md",
}


NAMES_OF_KEYS = st.sampled_from(
    sorted({step for name in NAMES for key in dialect_named(name).keys for step in pattern(key.path)})
)


def documented(name: str, text: str) -> set[str]:
    """Return the keys that a document names: the full path of a key in YAML, else its own name."""
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    blocks += [
        re.sub("^    ", "", block, flags=re.MULTILINE)
        for block in re.findall(r"code-block:: yaml\n\n((?:    .*\n|\n)+)", text)
    ]
    found = {".".join(map(str, path)) for block in blocks for path in leaves(yaml.safe_load(block))}
    bullets = re.findall(r"^\s*[-*] (?:`{1,2}|\*\*)([a-z_0-9]+)(?:`{1,2}|\*\*)(?::|\*\*:|`:)", text, re.MULTILINE)
    headings = re.findall(r"^#+ .*`([a-z_0-9]+)`", text, re.MULTILINE)
    named = {*bullets, *headings} - {path.rpartition(".")[2] for path in found}
    return found | (named - NOT_KEYS.get(name, set()))


# Words that the documents format like keys: values of keys, and files.
NOT_KEYS = {
    "stlm": {
        "generic", "hf_core", "todo", "o200k_base", "cl100k_base", "p50k_base", "llama_32k", "opt_50k", "mistral_32k",
        "bpe",
        "standard", "learned", "sincos", "rope", "none", "xavier", "kaiming", "silu_ffn", "causal", "bidirectional",
        "rms_norm", "layer_norm", "cosine", "cross_entropy", "next_token_mlm", "winogrande", "hellaswag", "arc_easy",
        "mmlu", "blimp", "truthful_qa", "piqa", "race_middle", "race_high", "boolq", "openbook_qa_closed",
        "openbook_qa_open", "copa", "commonsense_qa", "stlm_eval_arc_easy", "stlm_eval_hellaswag",
        "stlm_eval_truthful_qa", "stlm_eval_winogrande",
    },
}  # fmt: skip


def leaves(value: Any) -> Iterator[KeyPath]:
    """Yield the paths of single values, of whole lists and of sections that are passed on."""
    for path, inner in walk(value):
        if path and not isinstance(inner, dict) and not any(isinstance(step, int) for step in path):
            yield path


def names(key: KeyInfo) -> set[str]:
    """Return the names that a document may have for ``key``."""
    ways = {path.replace("[]", "") for path in (key.path, *key.aliases)}
    sections = {part for way in ways for part in way.split(".")}
    return ways | sections


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_the_document_is_in_the_table(name: str, shared: Path) -> None:
    text = (shared / "seeds" / SEEDS[name]).read_text(encoding="utf-8")
    found = documented(name, text)
    known = set().union(*(names(key) for key in dialect_named(name).keys if key.role.documented))
    assert len(found) > 20
    assert sorted(found - known) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_key_said_to_be_documented_is(name: str, shared: Path) -> None:
    text = (shared / "seeds" / SEEDS[name]).read_text(encoding="utf-8")
    words = set(re.findall(r"[A-Za-z_0-9]+", text))
    claimed = [key.path for key in dialect_named(name).keys if key.role.documented]
    known = {  # a document may name only the section of a nested key
        key.path: {path.rpartition(".")[2] for path in (key.path, *key.aliases)} | set(key.path.split(".")[2:])
        for key in dialect_named(name).keys
    }
    assert [path for path in claimed if not known[path] & words] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_native_keys_that_keys_name_exist(name: str) -> None:
    every = {known.path.replace("[]", "") for known in walk_schema()}
    sections = {known.split(".")[0] for known in every}

    def exists(path: str) -> bool:
        steps = re.sub(r"\[\d*\]", "", path)
        around = (known == steps or known.startswith(f"{steps}.") or steps.startswith(f"{known}.") for known in every)
        return any(around) and steps.split(".")[0] in sections

    named = [(key.path, path) for key in dialect_named(name).keys for path in key.role.native]
    assert [(key, path) for key, path in named if not exists(path)] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_default_is_one_of_the_values_of_its_key(name: str) -> None:
    dialect = dialect_named(name)
    given = {key.path: key.default for key in dialect.keys if not key.required and key.default is not None}
    problems = {path: SchemaFile(dialect, document(path, value)).problems for path, value in given.items()}
    wrong = [(path, problem) for path, found in problems.items() for problem in found]
    assert [str(problem) for path, problem in wrong if problem.key == path.replace("[]", "[0]")] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_is_refused_with_the_right_one(name: str) -> None:
    dialect, wrong = dialect_named(name), []
    for key in dialect.keys:
        section, _, last = key.path.rpartition(".")
        path = f"{section}.{misspelt(last)}".removeprefix(".")
        if dialect.find(tuple(path.replace("[]", ".0").split("."))) is not None:
            continue  # a key, too
        problems = [str(problem) for problem in SchemaFile(dialect, document(path)).problems]
        found = [problem for problem in problems if "unknown key" in problem]
        if len(found) != 1 or f"did you mean {last!r}?" not in found[0]:
            wrong.append((path, found))
    assert wrong == []


def misspelt(name: str) -> str:
    """Return ``name`` with two letters swapped, or with the last one doubled if all are equal."""
    for place in range(len(name) // 2, len(name) - 1):
        if name[place] != name[place + 1]:
            return f"{name[:place]}{name[place + 1]}{name[place]}{name[place + 2 :]}"
    return name + name[-1]


def document(path: str, value: Any = "x") -> YamlDocument:
    """Return a file with one key."""
    values: Any = value
    for step in reversed(path.replace("[]", ".[]").split(".")):
        values = [values] if step == "[]" else {step: values}
    return YamlDocument(values, {inner: Origin("their.yaml", 1) for inner, _ in walk(values)})


@pytest.mark.parametrize("name", NAMES)
def test_an_unsupported_key_is_refused_with_the_reason_unless_its_value_asks_for_nothing(name: str) -> None:
    dialect = dialect_named(name)
    for key in (key for key in dialect.keys if key.role.unsupported):
        nothing = key.role.noop_values
        for value in (*nothing, 3, "x", ["x"]):
            problems = SchemaFile(dialect, document(key.path, value)).problems
            refused = any(problem.message.startswith(key.role.unsupported) for problem in problems)
            assert refused == (value not in nothing), (key.path, value, problems)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_keys_is_current(name: str) -> None:
    """Otherwise run `make docs`."""
    assert (REPOSITORY / f"docs/dialects/{name}-keys.md").read_text(encoding="utf-8") == dialect_page(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_works_has_a_behaviour_test(name: str) -> None:
    assert keys_with_tests(name) == {key.path for key in dialect_named(name).keys if works(key)}


@changes("model.n_layer", "dataset[].weight")
def test_the_test_of_a_key_is_found_by_it(request: pytest.FixtureRequest) -> None:
    assert {"model.n_layer", "dataset[].weight"} <= set(request.node.keywords)  # what `pytest -k` looks among
    with pytest.raises(ValueError, match=r"twice: model\.n_layer, model\.n_layer"):
        changes("model.n_layer", "model.n_layer")
    with pytest.raises(ValueError, match=r"twice: model\.n_head, model\.n_head"):
        each_changes("value", ("model.n_head", 1), ("model.n_head", 2))


@each_changes("value", ("model.n_head", 1), ("dataset[].label", 2))
def test_the_case_of_a_key_is_found_by_it(key: str, value: int, request: pytest.FixtureRequest) -> None:
    assert key in request.node.name
    assert value == {"model.n_head": 1, "dataset[].label": 2}[key]


def works(key: KeyInfo) -> bool:
    """Return True if a key changes something."""
    return not (key.role.unsupported or key.role.no_effect)


@pytest.mark.parametrize("name", NAMES)
def test_its_judgement_calls_are_written_down(name: str) -> None:
    text = (REPOSITORY / f"docs/dialects/{name}.md").read_text(encoding="utf-8")
    assert f"{name}-keys.md" in text
    assert "| matter |" in text.lower()


def test_native_run_files_are_no_dialect() -> None:
    native = list((REPOSITORY / "examples").glob("*.yaml"))
    assert native
    for path in native:
        assert detect(yaml.safe_load(path.read_text(encoding="utf-8"))) is None


def test_a_native_run_file_is_read_without_the_tables_of_the_dialects() -> None:
    code = (
        "import sys; from pathlib import Path; from quintet.config.load import load_run_config\n"
        "load_run_config([Path('examples/quickstart.yaml')])\n"
        f"sys.exit(any(f'quintet.config.dialects.{{name}}' in sys.modules for name in {NAMES}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@given(
    st.dictionaries(
        NAMES_OF_KEYS,
        st.recursive(
            st.sampled_from([None, 1, "init"]), lambda inner: st.lists(inner) | st.dictionaries(NAMES_OF_KEYS, inner)
        ),
    )
)
def test_a_file_is_of_the_one_dialect_whose_keys_it_has(values: dict[str, Any]) -> None:
    names = recognised(values)
    assert set(names) <= set(NAMES)
    if len(names) > 1:
        with pytest.raises(UserError, match=r"keys of .* and .*; choose one with --dialect"):
            detect(values)
    else:
        assert [dialect.name for dialect in [detect(values)] if dialect] == names


def examples() -> list[Any]:
    return [
        pytest.param(name, path, id=f"{name}-{path.stem}")
        for name in NAMES
        for path in sorted((REPOSITORY / "examples" / name).glob("*.yaml"))
    ]


@pytest.fixture
def roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point the variables that the examples name to folders of the test."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "out"))


@pytest.mark.usefixtures("roots")
@pytest.mark.parametrize(("name", "path"), examples())
def test_an_example_is_recognised_and_its_translation_is_the_same_run(name: str, path: Path, tmp_path: Path) -> None:
    loaded = load_run_config([path])
    assert loaded.dialect is dialect_named(name)
    native = tmp_path / "native.yaml"
    native.write_text(dump_run_config(loaded.config), encoding="utf-8")
    assert load_run_config([native]).config == loaded.config


@pytest.mark.usefixtures("roots")
@pytest.mark.parametrize(("name", "path"), examples())
def test_an_example_translated_there_and_back_loses_nothing(name: str, path: Path) -> None:
    assert translate_back(dialect_named(name), load_run_config([path]).config).lost == ()


@pytest.mark.parametrize(
    ("file", "override", "changed"),
    [
        ("phyagi/mixformer", "model.architecture.mixer.bias=false", 2),
        ("phyagi/mixformer", "model.architecture.mixer.out_bias=false", 1),
        ("phyagi/mixformer", "dataset_collator.ignore_index=7", 5),
        ("phyagi/mixformer", "output_root=elsewhere", 1),
        ("phyagi/mixformer", "training_args.ds_config.gradient_clipping=0.5", 1),
        ("phyagi/huggingface", "training_args.do_eval=false", 1),
        ("phyagi/lightning", "training_args.do_eval=false", 1),
        ("phyagi/lightning", "training_args.trainer.limit_val_batches=3", 2),
        ("vectorlm/config", "dataset.ignore_index=-5 dataset_preprocess.ignore_index=-5", 2),
        ("vectorlm/lora", "dataset_preprocess.data_field=body", 1),
        ("vectorlm/lora", "dataset_preprocess.pre_pend=Read", 1),
        ("vectorlm/lora", "dataset_preprocess.seperator='###'", 2),
        ("vectorlm/lora", "dataset_preprocess.split=test", 1),
        ("stlm/base", "trainer.warmup_iters=4", 2),
        ("stlm/base", "trainer.lr_decay_iters=17", 1),
        ("tmrc/gpt", "training.save_model=false", 2),
        ("piano/document", "eval_splits=[full_val,liszt,chopin,mozart]", 2),
        ("piano/document", "dataset.pause_detection_threshold=9", 5),
        ("piano/document", "dataset.base_dataset_name=data/others", 4),
    ],
)
@pytest.mark.usefixtures("roots")
def test_every_value_that_a_key_changes_names_it(file: str, override: str, changed: int) -> None:
    path, key = REPOSITORY / "examples" / f"{file}.yaml", override.partition("=")[0]
    before, after = load_run_config([path]), load_run_config([path], override.split())
    found = [path_of(one) for one, _, new in differences(before.config, after.config)]
    assert len(found) == changed, found
    for one in found:
        assert key in (after.provenance[one].key or "").split(", "), one


@pytest.mark.parametrize("name", NAMES)
def test_a_native_run_file_is_written_as_far_as_a_dialect_can_say_it(name: str) -> None:
    config = load_run_config([REPOSITORY / "examples/quickstart.yaml"]).config
    written = translate_back(dialect_named(name), config)
    values = yaml.safe_load(written.text)
    assert detect(values) is dialect_named(name)
    lost = "\n".join(written.lost)
    assert "data.sources[0].kind: python_stdlib" in lost or "by hand" in lost or "quintet" in values
    assert "model.kind: transformer" in lost if name == "vectorlm" else "model.layers" not in lost
    assert "optimizer.lr" not in lost


class OtherOptimizer(ConfigSection):
    """An optimizer of a kind that no dialect knows."""

    kind: Literal["other"] = declared("other", "optimizer of no library")
    lr: float = declared(0.25, "learning rate")


@pytest.mark.usefixtures("roots")
@pytest.mark.parametrize(("name", "path"), examples())
def test_an_optimizer_of_a_new_kind_is_lost_and_needs_no_change_in_a_dialect(name: str, path: Path) -> None:
    config = load_run_config([path]).config.model_copy(update={"optimizer": OtherOptimizer()})
    lost = translate_back(dialect_named(name), config).lost
    assert any(line.startswith("optimizer.kind: other") for line in lost)
    assert [line for line in lost if not line.startswith("optimizer.")] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_bounds_in_the_words_of_a_key_are_those_of_the_native_key(name: str) -> None:
    native: dict[str, str] = {}
    for known in walk_schema():
        native.setdefault(known.path.replace("[]", ""), " ".join(known.constraints))
    for key in dialect_named(name).keys:
        bounds = native.get(re.sub(r"\[\d*\]", "", key.role.to), "")
        lowest, highest = (
            any(word in key.accepts for word in ends) for ends in (("from 0", "least 0"), ("to 1", "most 1"))
        )
        assert not (lowest and "above 0" in bounds), key.path
        assert not (highest and "below 1" in bounds), key.path


STEPS = "whole number of steps, or fraction of all"
# A reader of values, what it accepts in words, and what is read: a value, or what the refusal says.
READ: list[tuple[Value, str, list[tuple[Any, Any]]]] = [
    (
        duration(),
        STEPS,
        [(1, 1), (1.0, 1.0), (0.2, 0.2), (7, 7), (7.0, 7), (0, "at least 1 step"), (0.0, "above 0"), (7.5, "whole")],
    ),
    (duration(), STEPS, [(-0.5, "above 0"), (True, "must be"), ("x", "must be")]),
    (duration(0), STEPS, [(0, "must be"), (2, 2)]),
    (duration(3), STEPS, [(2, "must be at least 3 step"), (3, 3), (0.1, 0.1)]),
    (
        one_of("one", "two"),
        "one or two",
        [("one", "one"), ("One", "one of one, two; did you mean 'one'?"), (1, "of")],
    ),
    (one_of("One", any_case=True), "One", [("oNE", "One"), (1, "must be one of One")]),
    (one_of(by={"yes": 1, "no": 0}), "yes or no", [("yes", 1), ("no", 0), (1, "must be one of yes, no")]),
]


@pytest.mark.parametrize(("kind", "words", "cases"), READ, ids=[words for _, words, _ in READ])
def test_a_value_is_read_as_its_words_say(kind: Value, words: str, cases: list[tuple[Any, Any]]) -> None:
    assert kind.words == words
    for given_, expected in cases:
        if isinstance(expected, str) and expected.lower() != str(given_).lower():
            with pytest.raises(ValueError, match=re.escape(expected)):
                kind.read(given_)
        else:
            found = kind.read(given_)
            assert (type(found), found) == (type(expected), expected), given_


def test_a_word_is_written_for_the_value_that_it_stands_for() -> None:
    kind = one_of(by={"off": False, "none": 0, "all": 1})
    assert [kind.write(value) for value in (False, 0, 1)] == ["off", "none", "all"]
    with pytest.raises(ValueError, match="is none of False, 0, 1"):
        kind.write(True)


def test_a_switch_is_read_and_written_as_its_values() -> None:
    kind = switch("head", "none")
    assert [kind.read(value) for value in (True, False)] == ["head", "none"]
    assert [kind.write(value) for value in ("head", "none")] == [True, False]
    for wrong in (1, "true", None):
        with pytest.raises(ValueError, match="must be true or false"):
            kind.read(wrong)
    with pytest.raises(ValueError, match="is neither 'head' nor 'none'"):
        kind.write("projection")
