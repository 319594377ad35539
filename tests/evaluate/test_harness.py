"""Benchmarks: beside the harness's own class for Hugging Face models, at chance, by heart, and with broken items."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import Command, records, run_values, write_jsonl

from quintet.evaluate.harness.run import EvalOptions, run_benchmarks
from quintet.evaluate.harness.scoring import Limit
from quintet.evaluate.language_model import LanguageModel
from quintet.train.trained import load_trained, load_writer

pytest.importorskip("lm_eval")
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "saw",
    "chased",
    "small",
    "big",
    "and",
    "then",
    "it",
    "sat",
    "under",
    "mat",
    "tree",
    "house",
    "ran",
    "away",
    "from",
    "red",
]
CONTEXT = 96
FAMILIES = ("gpt2", "llama")


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def write(folder: Path, name: str, records: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / f"{name}.jsonl", ({"original": one} for one in records))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with items of three benchmarks: choices behind a question, contexts as choices, and no context."""
    folder, draw = tmp_path_factory.mktemp("items"), random.Random(3)
    arc = [
        {
            "question": words(draw, 8),
            "choices": {"text": [words(draw, draw.randint(1, 5)) for _ in range(4)], "label": list("ABCD")},
            "answerKey": draw.choice("ABCD"),
        }
        for _ in range(60)
    ]
    write(folder, "arc_easy", arc)
    sentence = "{} saw that the _ is {}."
    write(
        folder,
        "winogrande",
        [
            {
                "sentence": sentence.format(words(draw, 3), words(draw, 2)),
                "option1": "cat",
                "option2": "small dog",
                "answer": draw.choice("12"),
            }
            for _ in range(8)
        ],
    )
    pairs = [{"sentence_good": words(draw, 6), "sentence_bad": words(draw, 6), "UID": "causative"} for _ in range(8)]
    write(folder, "blimp", pairs)
    return folder


def save_checkpoint(family: str, folder: Path) -> None:
    """A small model with random weights and a tokenizer of bytes; Llama's puts its first id in front."""
    import tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(1)
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([" ".join(WORDS)], vocab_size=320, special_tokens=["<end>", "<s>"], show_progress=False)
    inner: Any = made._tokenizer
    first = "<end>"
    if family == "llama":
        first = "<s>"
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", bos_token=first).save_pretrained(folder)
    ids = {"vocab_size": made.get_vocab_size(), "eos_token_id": 0, "bos_token_id": int(family == "llama")}
    if family == "gpt2":
        GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, **ids)).save_pretrained(folder)
        return
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(max_position_embeddings=CONTEXT, **sizes, **heads, **ids)).save_pretrained(folder)


def in_fp32(trained: LanguageModel) -> LanguageModel:
    return replace(trained, compute=replace(trained.compute, precision="fp32"))


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Our adapter and the harness's own class on one checkpoint."""
    from lm_eval.models.huggingface import HFLM

    from quintet.evaluate.harness.model import HarnessModel

    folder = tmp_path_factory.mktemp(request.param)
    save_checkpoint(request.param, folder)
    language_model = in_fp32(load_writer(str(folder)))
    assert bool(language_model.bounds.begin) == (request.param == "llama")
    device = str(language_model.compute.device)
    ours = HarnessModel(language_model, Limit(300, CONTEXT))
    return ours, HFLM(pretrained=str(folder), device=device, dtype="float32", batch_size=3)


def asked(kind: str, arguments: list[tuple[Any, ...]], owner: Callable[[int], int] = lambda number: number) -> Any:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=number, metadata=("task", owner(number), 1))
        for number, one in enumerate(arguments)
    ]


def test_log_likelihoods_are_those_of_the_harness(both: tuple[Any, Any]) -> None:
    draw = random.Random(4)
    pairs: list[tuple[str, str]] = []
    for length in (3, 12, 200, 5):  # the third is longer than the context
        question = words(draw, length)
        pairs += [(question, f" {words(draw, count)}") for count in (1, 1, 4, 9)]
    pairs += [("", words(draw, 5)), (f"{words(draw, 4)}  ", "dog"), ("the ca", "t sat"), ("", "<s>the"), ("", " cat")]
    pairs += [("<s>the", " cat"), ("the<end>", " <s>cat"), ("the\n\t", "cat"), ("a", words(draw, 300)[: CONTEXT - 1])]
    pairs += [(f"{words(draw, 3)} {one} is", " red and small") for one in ("cat", "big dog", "tree")]
    owners = [number // 4 for number in range(len(pairs) - 3)] + [99] * 3
    scores = [model.loglikelihood(asked("loglikelihood", pairs, lambda number: owners[number])) for model in both]
    for (mine, greedy), (theirs, also_greedy) in zip(*scores, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
        assert greedy == also_greedy
    assert both[0].cut == {"task": {2}}


def test_whole_texts_are_as_likely_as_the_harness_says(both: tuple[Any, Any]) -> None:
    draw = random.Random(5)
    texts = [(words(draw, count),) for count in (1, 20, 300)]
    ours, theirs = (model.loglikelihood_rolling(asked("loglikelihood_rolling", texts)) for model in both)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_the_likeliest_text_is_that_of_the_harness(both: tuple[Any, Any]) -> None:
    draw = random.Random(6)
    contexts = [words(draw, count) for count in (3, 9, 150)]
    stop = {"until": ["\n\n"], "max_gen_toks": 12}
    requests = asked("generate_until", [(context, stop) for context in contexts])
    free = both[0].generate_until(requests)
    assert free == [both[1].generate_until([one])[0] for one in requests]
    # A stop string ends the text where it first stands.
    mark = free[0][3:5]
    stopped = both[0].generate_until(asked("generate_until", [(contexts[0], {**stop, "until": [mark]})]))
    assert stopped == [free[0].partition(mark)[0]]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("random")
    save_checkpoint("gpt2", folder)
    return in_fp32(load_writer(str(folder)))


def test_figures_are_those_of_the_harness(language_model: LanguageModel, items: Path) -> None:
    """On a task whose items are read by the harness itself, from the hub's form."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from quintet.evaluate.harness.tasks import TaskOptions, load

    tasks = load("arc_easy", TaskOptions(None, 0, items))
    theirs = evaluate(
        HFLM(pretrained=language_model.name, device="cpu", dtype="float32"),
        {"tasks": {"arc_easy": tasks[0]}},
        log_samples=True,
    )
    assert theirs is not None
    found = run_benchmarks(language_model, EvalOptions(("arc_easy",), None, 0, str(items))).measured["arc_easy"]
    assert found.items == 60
    for name in ("acc", "acc_norm", "probability", "margin_norm"):
        assert found.figures[name].value == pytest.approx(theirs["results"]["arc_easy"][f"{name},none"], abs=1e-5)
        error = theirs["results"]["arc_easy"][f"{name}_stderr,none"]
        assert found.figures[name].error == pytest.approx(error, abs=1e-5)


def test_a_random_model_is_at_chance(language_model: LanguageModel, items: Path) -> None:
    figure = (
        run_benchmarks(language_model, EvalOptions(("arc_easy",), None, 0, str(items)))
        .measured["arc_easy"]
        .figures["acc"]
    )
    assert abs(figure.value - 0.25) < 3 * figure.error


def test_every_form_of_item_is_asked_and_what_is_missing_is_named(language_model: LanguageModel, items: Path) -> None:
    names = ("winogrande", "blimp", "piqa", "openbook_qa_open", "stlm_eval_arc_easy")
    before = torch.get_rng_state()
    found = run_benchmarks(language_model, EvalOptions(names, 6, 0, str(items)))
    assert torch.equal(before, torch.get_rng_state())
    assert list(found.measured) == ["winogrande", "stlm_eval_arc_easy"]
    assert found.measured["winogrande"].items == 6
    assert set(found.missing) == {"blimp", "piqa", "openbook_qa_open"}
    assert found.missing["piqa"].endswith("has no piqa.jsonl")
    assert "benchmark/winogrande/margin" in found.metrics()
    one = run_benchmarks(language_model, EvalOptions(("blimp_causative",), None, 0, str(items))).measured[
        "blimp_causative"
    ]
    assert one.items == 8


def test_examples_in_front_are_never_the_item_itself(language_model: LanguageModel, items: Path) -> None:
    from quintet.evaluate.harness.tasks import CheckedTask, TaskOptions, load

    task = load("arc_easy", TaskOptions(None, 2, items))[0]
    assert isinstance(task, CheckedTask)
    task.build_all_requests()
    for request in task.instances:
        parts = request.args[0].split("\n\n")
        assert len(parts) == 3
        assert parts[2] not in [part.partition("\nAnswer:")[0] + "\nAnswer:" for part in parts[:2]]


def test_a_fault_of_the_model_is_no_missing_benchmark(
    language_model: LanguageModel, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("quintet.evaluate.harness.scoring.Scorer.score", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run_benchmarks(language_model, EvalOptions(("arc_easy",), 2, 0, str(items)))


def test_broken_items_are_counted_and_the_others_asked(language_model: LanguageModel, tmp_path: Path) -> None:
    good = {"question": "the cat", "choices": {"text": ["sat", "ran"], "label": ["A", "B"]}, "answerKey": "A"}
    broken = [
        {**good, "answerKey": "F"},
        good,
        {**good, "choices": {"text": ["sat", " "], "label": ["A", "B"]}},
        {**good, "choices": {"text": ["sat", words(random.Random(1), 200)], "label": ["A", "B"]}},
        {**good, "question": words(random.Random(1), 200)},
        {**good, "question": 5},
    ]
    write(tmp_path, "arc_easy", broken)
    with (tmp_path / "arc_easy.jsonl").open("a") as file:
        file.write("{no json\n")
    found = run_benchmarks(language_model, EvalOptions(("arc_easy",), None, 0, str(tmp_path))).measured["arc_easy"]
    assert found.items == 2
    assert [warning.replace("  ", " ") for warning in found.warnings] == [
        "left out: arc_easy.jsonl, line 7: JSONDecodeError: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
        found.warnings[1],
        "1 of 5 items left out: not of the task's form (ValueError: 'F' is not in list) (number 0)",
        "1 of 5 items left out: a choice is empty (number 2)",
        "1 of 5 items left out: an answer is longer than the context (number 3)",
        f"1 of 5 items longer than the context of {CONTEXT} tokens, read without their beginning (number 4)",
    ]
    assert found.warnings[1].startswith("left out: record 5: its fields are of other types")


def test_an_end_id_inside_a_question_ends_nothing(language_model: LanguageModel) -> None:
    """A mask that tells documents apart sees the whole question, as one that does not."""
    from quintet.config.model import TransformerConfig
    from quintet.evaluate.harness.model import HarnessModel
    from quintet.model import build_model

    pairs = [("the cat<end> sat under", f" the {word}") for word in ("tree", "mat", "house<end> it")]
    found = []
    for mask in ("causal", "causal_document"):
        parts = {"attention": {"heads": 2, "mask": mask}, "position": {"kind": "rope"}}
        config = TransformerConfig.model_validate({"layers": 2, "width": 32, **parts})
        model = build_model(config, language_model.tokenizer.vocab_size, CONTEXT, seed=3).to(
            language_model.compute.device
        )
        ours = HarnessModel(replace(language_model, model=model), Limit(300, CONTEXT))
        found.append([logprob for logprob, _ in ours.loglikelihood(asked("loglikelihood", pairs, lambda _: 0))])
        cut = ours.loglikelihood(asked("loglikelihood", [(" sat under", answer) for _, answer in pairs], lambda _: 0))
        assert all(abs(one[0] - whole) > 1e-4 for one, whole in zip(cut, found[-1], strict=True))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def joined_task() -> Any:
    """A task without anything between question and choice, and four items of it."""
    from lm_eval.api.task import ConfigurableTask

    records = [("the ca", ["t", "p"]), ("the ca", ["t sat", "p"]), ("a s", ["at", "it"]), ("a s", ["at", ""])]
    rows = [{"question": question, "choices": choices, "label": 0} for question, choices in records]

    def load(**_: Any) -> Any:
        import datasets

        return {"test": datasets.Dataset.from_list(rows)}

    fields = {"doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "label", "target_delimiter": ""}
    kind = {"task": "joined", "output_type": "multiple_choice", "test_split": "test", "custom_dataset": load}
    task: Any = ConfigurableTask(config={**kind, **fields, "num_fewshot": 0})
    task.spread = [0, 1, 2, 3]
    return task


def test_an_item_with_an_answer_without_a_token_is_left_out(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last letter of "the ca" and "t" are one token, so that "t" has none of its own; HFLM raises an
    AssertionError."""
    monkeypatch.setattr("quintet.evaluate.harness.tasks.load", lambda name, options: [joined_task()])
    found = run_benchmarks(language_model, EvalOptions(("joined",), None, 0)).measured["joined"]
    assert found.items == 2
    assert found.figures["acc"].value in (0.0, 0.5, 1.0)
    assert found.warnings == (
        "2 of 4 items left out: an answer has no token of its own; it is empty, or a token spans its join with the "
        "question (number 0, 3)",
    )


@pytest.fixture
def by_heart(train: Callable[..., str], items: Path) -> LanguageModel:
    """A model that has learnt the right answers to the first items, and the folder with these as ``few``."""
    records = [json.loads(line)["original"] for line in (items / "arc_easy.jsonl").open()][:6]
    write(Path("few"), "arc_easy", records)
    right = [one["choices"]["text"]["ABCD".index(one["answerKey"])] for one in records]
    texts = [f"Question: {one['question']}\nAnswer: {answer}" for one, answer in zip(records, right, strict=True)]
    Path("learnt").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    Path("learnt/items.jsonl").write_text(lines)
    name = train(
        name="by-heart",
        model={"layers": 2, "width": 64},
        tokenizer={"kind": "char"},
        data={
            "sources": [{"kind": "jsonl", "path": "learnt"}],
            "validation": 0,
            "sequence_length": 128,
            "packing": {"kind": "document"},
            "cache_dir": "cache",
        },
        optimizer={"lr": 5e-3},
        schedule={"kind": "cosine", "warmup_steps": 10},
        train={"steps": 120, "batch_size": 6, "precision": "fp32", "device": "cpu"},
        sample={"prompts": []},
        evaluate={"tasks": ["arc_easy"], "tasks_every": 0.5, "data_dir": "few"},
    )
    return load_trained(name)


def test_a_model_that_knows_the_items_by_heart_is_right(by_heart: LanguageModel, command: Command) -> None:
    lines = records("runs/by-heart")
    measured = {line["step"]: line for line in lines if "benchmark/arc_easy/acc" in line}
    assert list(measured) == [60, 120]
    assert measured[120]["benchmark/arc_easy/acc"] == 1.0
    assert measured[120]["benchmark/arc_easy/probability"] > 0.9
    asked = {name: measured[120][f"benchmark/arc_easy/{name}"] for name in ("items", "shots", "precision_fp32")}
    assert asked == {"items": 6, "shots": 0, "precision_fp32": 1}
    code, out, _ = command("evaluate", "by-heart.yaml", "--tasks", "arc_easy", "--data-dir", "few", "--json")
    found = json.loads(out)
    assert (code, found["step"], found["precision"], found["tasks"]["arc_easy"]["items"]) == (0, 120, "fp32", 6)
    figure = found["tasks"]["arc_easy"]["figures"]["margin"]["value"]
    assert figure == pytest.approx(measured[120]["benchmark/arc_easy/margin"], abs=1e-6)
    code, out, _ = command("evaluate", "by-heart", "--tasks", "arc_easy", "--data-dir", "few", "--num-samples", "4")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["arc_easy", "acc", "1.0000"]
    assert out.splitlines()[1].endswith("0-shot in fp32, of 4")


MISTAKES = [
    ({"tasks": ["arc_esay"]}, {}, "evaluate.tasks: there is no benchmark 'arc_esay'; did you mean arc_easy?"),
    ({"tasks": ["piqa"], "data_dir": "nowhere"}, {}, "evaluate.data_dir: there is no nowhere"),
    ({"tasks": ["piqa"]}, {"loss": {"kind": "masked"}}, "evaluate.tasks: benchmarks need the likelihood of a text"),
    ({"tasks_every": 5}, {}, "evaluate.tasks_every: needs one of `tasks`, `text_modeling` and `text_generation`"),
]


@pytest.mark.parametrize(("evaluate", "sections", "message"), MISTAKES)
def test_mistakes_are_said_before_training(
    evaluate: dict[str, Any],
    sections: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(json.dumps(run_values(name="x", evaluate=evaluate) | sections))
    code, _, err = command("train", "x.yaml")
    assert code == 2
    assert message in err
