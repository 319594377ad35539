"""What a task is asked with, and what a figure of several tasks is over, beside the harness's own tasks."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.helpers import Command, write_jsonl

pytest.importorskip("lm_eval")
from lm_eval.api.task import ConfigurableTask

from quintet.evaluate.harness.items import NotReachable
from quintet.evaluate.harness.model import HarnessModel
from quintet.evaluate.harness.names import harness_folder
from quintet.evaluate.harness.run import Benchmark, Benchmarks, EvalOptions, Figure, run_benchmarks
from quintet.evaluate.harness.scoring import Limit
from quintet.evaluate.harness.tasks import CheckedTask, TaskOptions, _python_task, load
from quintet.evaluate.language_model import LanguageModel
from quintet.train.trained import load_writer


def write(folder: Path, **files: list[dict[str, Any]]) -> str:
    """A folder with files of items."""
    folder.mkdir(exist_ok=True)
    for name, records in files.items():
        write_jsonl(folder / f"{name}.jsonl", ({"original": one} for one in records))
    return str(folder)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A small GPT-2 with random weights and a tokenizer of bytes, in fp32 as a foreign checkpoint is measured."""
    import tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["the cat sat"], vocab_size=280, special_tokens=["<end>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<end>").save_pretrained(folder)
    sizes: dict[str, Any] = {
        "n_positions": 256,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    GPT2LMHeadModel(GPT2Config(vocab_size=made.get_vocab_size(), **sizes)).save_pretrained(folder)
    return load_writer(str(folder), precision=None)


def lines(count: int, begin: str) -> list[dict[str, Any]]:
    return [{"text": f"{begin} the cat {number} sat on mat{number}"} for number in range(count)]


def _sentence(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(["the", "cat", "sat", "on", "mats", "dogs", "ran"], k=count))


GARBLED = (
    "byte_shuffle",
    "word_shuffle",
    "ngram_shuffle_3",
    "ngram_shuffle_5",
    "ngram_shuffle_7",
    "ngram_shuffle_12",
    "random_byte_deletion",
    "random_word_deletion",
    "random_byte_insertion",
    "random_word_insertion",
    "random_byte_substitution",
    "random_word_substitution",
    "parse_tree_shuffle",
)


def _sum_of_choice(model: Any, tokenizer: Any, context: str, choice: str) -> float:
    """The log-likelihood of ``choice`` after ``context``, a token at a time, by transformers alone."""
    ids = tokenizer(f"{context} {choice}")["input_ids"]
    known = len(tokenizer(context)["input_ids"])
    total = 0.0
    for at in range(known, len(ids)):
        logits = model(torch.tensor([ids[:at]])).logits[0, -1]
        total += (logits[ids[at]] - torch.logsumexp(logits, 0)).item()
    return total


def test_the_own_benchmarks_ask_what_stlm_asks(language_model: LanguageModel, tmp_path: Path) -> None:
    """STLM's prog: the true continuation of a story among thirteen garbled ones; its ewok: the sentence that fits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    draw = random.Random(8)
    stories = [
        {"first_n_words": _sentence(draw, 6), "actual_continuation": _sentence(draw, 5)}
        | {name: _sentence(draw, draw.randint(3, 6)) for name in GARBLED}
        for _ in range(12)
    ]
    sizes = {"Context1": 5, "Context2": 5, "Target1": 4, "Target2": 3}
    facts = [{name: _sentence(draw, size) for name, size in sizes.items()} for _ in range(20)]
    folder = write(tmp_path / "items", tinystories_progress=stories, ewok=facts)
    asked = {
        "tinystories_progress": [
            (one["first_n_words"], [one[name] for name in ("actual_continuation", *GARBLED)]) for one in stories
        ],
        "ewok": [(one["Context1"], [one["Target1"], one["Target2"]]) for one in facts],
    }
    found = run_benchmarks(language_model, EvalOptions(tuple(asked), None, 0, folder))
    model = AutoModelForCausalLM.from_pretrained(language_model.name).eval()
    tokenizer = AutoTokenizer.from_pretrained(language_model.name)
    for name, items in asked.items():
        right, normed, sure = 0, 0, 0.0
        with torch.no_grad():
            for context, choices in items:
                sums = [_sum_of_choice(model, tokenizer, context, choice) for choice in choices]
                each = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
                right += sums.index(max(sums)) == 0
                normed += each.index(max(each)) == 0
                sure += torch.softmax(torch.tensor(sums, dtype=torch.float64), 0)[0].item()
        figures = found.measured[name].figures
        assert found.measured[name].items == len(items)
        assert figures["acc"].value == right / len(items)
        assert figures["acc_norm"].value == normed / len(items)
        assert figures["probability"].value == pytest.approx(sure / len(items), rel=1e-3)


def test_a_group_has_the_perplexity_of_all_its_items(language_model: LanguageModel, tmp_path: Path) -> None:
    """By its formula, exp of the mean cost of an item; under that name an item itself has a log-likelihood."""
    parts = {"lambada_openai": lines(5, "so"), "lambada_standard": lines(3, "but then")}
    folder = write(tmp_path / "items", **parts)
    found = run_benchmarks(language_model, EvalOptions(("lambada", *parts), None, None, folder)).measured
    model = HarnessModel(language_model, Limit(2000, 256))
    costs = {name: [-one[0] for one in model.loglikelihood(_last_words(records))] for name, records in parts.items()}
    for name, own in costs.items():
        assert found[name].figures["perplexity"].value == pytest.approx(math.exp(np.mean(own)), rel=1e-4)
    every = [cost for own in costs.values() for cost in own]
    figure = found["lambada"].figures["perplexity"]
    assert figure.value == pytest.approx(math.exp(np.mean(every)), rel=1e-4)
    assert (figure.items, figure.shots, found["lambada"].parts) == (8, 0, 2)


def _last_words(records: list[dict[str, Any]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    pairs = [tuple(one["text"].rsplit(" ", 1)) for one in records]
    return [
        Instance("loglikelihood", {}, (context, f" {word}"), number, metadata=("task", number, 1))
        for number, (context, word) in enumerate(pairs)
    ]


def test_figures_that_only_some_tasks_of_a_group_have_are_shown_by_task(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    pairs = [{"sentence1": f"the {n}", "sentence2": f"cat {n}", "label": n % 2, "idx": n} for n in range(6)]
    single = [{"sentence": f"the cat {n}", "label": n % 3 == 0, "idx": n} for n in range(5)]
    folder = write(tmp_path / "items", mrpc=pairs, cola=[{**one, "label": int(one["label"])} for one in single])
    found = run_benchmarks(language_model, EvalOptions(("glue", "mrpc", "cola"), None, None, folder)).measured
    together = found["glue"].figures
    assert {"mrpc/acc", "mrpc/f1", "cola/mcc"} <= set(together)
    assert not {"acc", "f1", "mcc"} & set(together)
    for name in ("mrpc", "cola"):
        for figure, value in found[name].figures.items():
            named = f"{name}/{figure}" if f"{name}/{figure}" in together else figure
            assert together[named].items == (value.items if named != figure else 11)
            if named != figure:
                assert together[named].value == pytest.approx(value.value, nan_ok=True)


def test_examples_are_those_of_the_task_also_with_items_from_files(tmp_path: Path) -> None:
    questions = [{"question": f"What is {n} and 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(4)]
    folder = Path(write(tmp_path / "items", gsm8k_cot=questions))
    text = (harness_folder() / "gsm8k/gsm8k-cot.yaml").read_text().replace("!function", "")
    own = yaml.safe_load(text)
    for shots, expected in ((None, own["num_fewshot"]), (2, 2), (0, 0)):
        prompts = _prompts(_task("gsm8k_cot", TaskOptions(None, shots, folder)))
        examples = "".join(
            f"Q: {one['question']}\nA: {one['target']}\n\n" for one in own["fewshot_config"]["samples"][:expected]
        )
        assert prompts == [f"{examples}Q: {one['question']}\nA:" for one in questions]


def _task(name: str, options: TaskOptions) -> CheckedTask:
    (task,) = load(name, options)
    assert isinstance(task, CheckedTask), task
    return task


def _prompts(task: Any) -> list[str]:
    task.build_all_requests()
    return list(dict.fromkeys(one.args[0] for one in task.instances))


CONFIG = {
    "task": "made",
    "output_type": "multiple_choice",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "Q{{number}}",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": 0,
    "num_fewshot": 3,
}


def _made(**splits: int) -> Callable[..., Any]:
    import datasets

    def rows(**_: Any) -> Any:
        return {
            name: datasets.Dataset.from_list([{"number": f"{name}{n}"} for n in range(count)])
            for name, count in splits.items()
        }

    return rows


@pytest.mark.parametrize(
    "changes",
    [{}, {"training_split": None}, {"fewshot_split": "test"}, {"fewshot_config": {"sampler": "first_n"}}],
    ids=["of the training split", "of the items", "of the items but the one asked", "the first"],
)
def test_examples_are_the_harness_s_and_do_not_depend_on_how_many_items_are_asked(changes: dict[str, Any]) -> None:
    config = {**CONFIG, **changes, "custom_dataset": _made(train=20, test=9)}
    theirs = ConfigurableTask(config=dict(config))
    theirs.set_fewshot_seed(seed=1234)
    expected = _prompts(theirs)
    for samples in (None, 3, 1):
        task = CheckedTask(dict(config), TaskOptions(samples, None, None), samples, short=False)
        task.set_fewshot_seed(seed=1234)
        first, again = _prompts(task), _prompts(task)
        assert first == again == [expected[number] for number in task.numbers]


def arc(count: int, begin: str = "q") -> list[dict[str, Any]]:
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    return [{"question": f"{begin}{n}", "choices": choices, "answerKey": "AB"[n % 2]} for n in range(count)]


def test_examples_from_a_file_of_their_split(tmp_path: Path) -> None:
    folder = Path(write(tmp_path / "items", arc_easy=arc(9), arc_easy_train=arc(5, "shown")))
    task = _task("arc_easy", TaskOptions(2, 3, folder))
    assert all(prompt.count("shown") == 3 and prompt.count("Question: q") == 1 for prompt in _prompts(task))
    assert task.notes == []
    (folder / "arc_easy_train.jsonl").unlink()
    task = _task("arc_easy", TaskOptions(2, 3, folder))
    assert all(prompt.count("Question: q") == 4 for prompt in _prompts(task))
    assert task.notes == ["the examples are other items of its file, for there is no arc_easy_train.jsonl"]


REFUSED = [
    ("arc_easy", 9, "it asks for 9 examples in front of an item and has 8"),
    ("wikitext", 2, "it measures whole texts and takes no examples; leave their number out"),
]


@pytest.mark.parametrize(("name", "shots", "reason"), REFUSED)
def test_examples_that_a_task_cannot_take_are_refused(
    language_model: LanguageModel, tmp_path: Path, name: str, shots: int, reason: str
) -> None:
    folder = write(tmp_path / "items", arc_easy=arc(9), wikitext=[{"page": "the cat sat"}])
    assert run_benchmarks(language_model, EvalOptions((name,), None, shots, folder)).missing == {name: reason}
    assert run_benchmarks(language_model, EvalOptions((name,), None, None, folder)).missing == {}


def test_a_task_with_fewer_other_items_than_it_asks_for_takes_those(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    folder = write(tmp_path / "items", gsm8k=[{"question": f"{n} and 1?", "answer": f"#### {n + 1}"} for n in range(3)])
    found = run_benchmarks(language_model, EvalOptions(("gsm8k",), None, None, folder)).measured["gsm8k"]
    assert {figure.shots for figure in found.figures.values()} == {2}
    assert found.warnings[0] == "asked after 2 examples, not after its own 5, for its file has no more items"


def test_a_task_in_python_keeps_its_own_examples() -> None:
    task = ConfigurableTask(config={**CONFIG, "custom_dataset": _made(train=20, test=9)})
    assert _python_task(task, None, 3).spread == [0, 3, 6]
    assert _python_task(task, 3, None).spread == list(range(9))
    with pytest.raises(NotReachable, match="it is written in Python and has 3 examples of its own"):
        _python_task(task, 5, None)


def test_a_task_that_asks_without_examples_by_its_own_rule_says_so(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    item = {"question": "Is it?", "mc1_targets": {"yes": 1, "no": 0}, "mc2_targets": {"yes": 1, "no": 0}}
    folder = write(tmp_path / "items", truthful_qa=[item, item])
    found = run_benchmarks(language_model, EvalOptions(("truthfulqa_mc1",), None, 5, folder)).measured["truthfulqa_mc1"]
    assert {figure.shots for figure in found.figures.values()} == {0}
    assert found.warnings[0] == "asked without examples, not after 5, for its own rule is num_fewshot: 0"


def test_every_figure_names_its_items_its_examples_and_its_precision() -> None:
    figures = {"acc": Figure(0.5, math.nan, 12, 5), "mrpc/f1": Figure(math.inf, 0.1, 6, 5)}
    found = Benchmarks("bf16", {"glue": Benchmark(figures, 18, 2)}, {})
    assert [line.split("  ")[-1].strip() for line in found.lines()] == ["5-shot in bf16, of 12", "5-shot in bf16, of 6"]
    shown = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert shown["tasks"]["glue"]["figures"] == {
        "acc": {"value": 0.5, "stderr": None, "items": 12, "shots": 5, "precision": "bf16"},
        "mrpc/f1": {"value": None, "stderr": 0.1, "items": 6, "shots": 5, "precision": "bf16"},
    }
    metrics = found.metrics()
    assert (metrics["benchmark/glue/items"], metrics["benchmark/glue/mrpc/items"]) == (12, 6)
    assert metrics["benchmark/glue/mrpc/shots"] == 5
    assert metrics["benchmark/glue/mrpc/precision_bf16"] == 1


def test_a_foreign_checkpoint_is_measured_in_fp32(
    language_model: LanguageModel, tmp_path: Path, command: Command
) -> None:
    folder = write(tmp_path / "items", arc_easy=arc(6))
    (tmp_path / "text.txt").write_text("the cat sat")
    for options, expected in (((), "fp32"), (("--precision", "bf16"), "bf16")):
        code, out, _ = command(
            "evaluate", language_model.name, "--tasks", "arc_easy", "--data-dir", folder, "--json", *options
        )
        assert (code, json.loads(out)["precision"]) == (0, expected)
        code, out, _ = command(
            "evaluate", language_model.name, "--text", str(tmp_path / "text.txt"), "--json", *options
        )
        assert (code, json.loads(out)["precision"]) == (0, expected)
    code, _, err = command("evaluate", language_model.name, "--text", str(tmp_path / "text.txt"), "--precision", "fp16")
    assert code == 2
    assert "--precision: fp16 is hundreds of times slower" in err


def test_a_broken_first_record_leaves_the_others(language_model: LanguageModel, tmp_path: Path) -> None:
    folder = Path(write(tmp_path / "items", lambada_openai=[{"text": 5}, *lines(3, "so")]))
    found = run_benchmarks(language_model, EvalOptions(("lambada_openai",), None, None, str(folder))).measured[
        "lambada_openai"
    ]
    assert found.items == 3
    assert found.warnings[0].startswith("left out: record 0: its fields are of other types (")
    half = Path(write(tmp_path / "half", lambada_openai=[{"text": "\ud83d"}, *lines(3, "so \U0001f600")]))
    found = run_benchmarks(language_model, EvalOptions(("lambada_openai",), None, None, str(half))).measured[
        "lambada_openai"
    ]
    assert found.items == 3
    assert found.warnings[0].startswith("left out: lambada_openai.jsonl, line 1: UnicodeEncodeError")
    (folder / "lambada_openai.jsonl").write_text("no json\n[]\n")
    reason = run_benchmarks(language_model, EvalOptions(("lambada_openai",), None, None, str(folder))).missing[
        "lambada_openai"
    ]
    assert "has no items (left out: lambada_openai.jsonl, line 1: JSONDecodeError" in reason
    assert reason.endswith("and 1 more)")


def test_choices_that_a_task_shuffles_are_in_the_same_order_each_time(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    import random

    wrong = [{f"Incorrect Answer {n}": f"cat {n} of {item}" for n in (1, 2, 3)} for item in range(8)]
    items = [
        {**one, "Question": f"who sat on {number}?", "Correct Answer": f"the cat {number}"}
        for number, one in enumerate(wrong)
    ]
    folder = write(tmp_path / "items", gpqa_main_zeroshot=items, arc_easy=arc(6))
    found = []
    for seed, names in ((1, ("gpqa_main_zeroshot",)), (2, ("arc_easy", "gpqa_main_zeroshot"))):
        random.seed(seed)
        after = random.Random(seed).random()
        figures = (
            run_benchmarks(language_model, EvalOptions(names, None, None, folder))
            .measured["gpqa_main_zeroshot"]
            .figures
        )
        found.append({name: figure.value for name, figure in figures.items()})
        assert random.random() == after  # left as it was
    assert found[0] == found[1]


def test_nothing_measured_is_a_mistake(language_model: LanguageModel, tmp_path: Path, command: Command) -> None:
    folder = write(tmp_path / "items", arc_easy=arc(6))
    for option in ((), ("--json",)):
        code, out, err = command(
            "evaluate", language_model.name, "--tasks", "piqa,boolq", "--data-dir", folder, *option
        )
        assert code == 2
        assert err.startswith("error: --tasks: nothing of piqa, boolq could be measured")
        assert "there is no piqa" in out or "piqa.jsonl" in out
        code, *_ = command("evaluate", language_model.name, "--tasks", "piqa,arc_easy", "--data-dir", folder, *option)
        assert code == 0
