"""The items of benchmarks: reading them from files instead of the hub, and choosing those for tiny models.

A file has JSON lines with the upstream record of each item as `original`.

STLM's document names `stlm_eval_…` benchmarks for tiny models, and nothing public says what is in them. Here an item
belongs to one if

- question and longest choice have at most ``WORDS`` words together,
- no word of question and choices has more than ``LETTERS`` letters, because short words are common ones (Zipf, The
  Psycho-Biology of Language, 1935),
- at most ``HARD`` of the words are hard, which are those of three syllables or more in Gunning's fog index (The
  Technique of Clear Writing, 1952).

The rule needs no list of words and gives the same items on every machine.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quintet.config.names import is_path, local_path
from quintet.errors import NotHere, UserError, one_line
from quintet.libraries import require

Record = dict[str, Any]

WORDS = 40
LETTERS = 9
HARD = 0.1  # share of the words

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"[^aeiouy](?:e|es|ed)$")
_SPOKEN = re.compile(r"(?:[^aeiouy]les?|[td]ed|(?:[csxz]|[cs]h)es|ges)$")


class NotReachable(Exception):
    """A benchmark or task that cannot be measured, and the reason."""


@dataclass(frozen=True)
class _ItemFile:
    """A ``file`` with the items of a dataset.

    ``convert`` brings a record into the form of the hub. ``field`` is the field of a record that names its part of the
    dataset, None if the file has one part. ``needs`` is a field that at least one record must have.
    """

    file: str
    convert: Callable[[Record], Record] = dict
    field: str | None = None
    by_article: bool = False
    needs: str | None = None


@dataclass
class LocalItems:
    """Records in the form of the hub, examples for prompts if ``shots_file`` exists, and a line for each problem."""

    records: list[Record]
    shots_file: str = ""
    shots: list[Record] = field(default_factory=list[Record])
    problems: list[str] = field(default_factory=list[str])


def local_items(folder: Path, task: str, dataset: str, part: str | None, split: str | None = None) -> LocalItems:
    """Read from ``folder`` the items that ``task`` takes from ``part`` of the hub's ``dataset``, and the examples that
    it takes from ``split``.

    The table below names the file of a dataset; for others it is ``<task>.jsonl``, with records in the form of the hub.
    The file of examples has ``_<split>`` after its name. Raises NotReachable if there is no such file, or no item of
    this part in it.
    """
    entry = _item_file(dataset, part) or _ItemFile(f"{task}.jsonl")
    file = folder / entry.file
    if not file.is_file():
        raise NotReachable(f"{folder} has no {entry.file}")
    items = LocalItems([], f"{file.stem}_{split or 'examples'}.jsonl")
    _read(file, entry, part, items.records, items.problems)
    if split is not None and (folder / items.shots_file).is_file():
        _read(folder / items.shots_file, entry, part, items.shots, items.problems)
    if entry.by_article:
        items.records, items.shots = by_article(items.records), by_article(items.shots)
    if entry.needs and not any(entry.needs in record for record in items.records):
        raise NotReachable(f"the items in {file} have no {entry.needs}, which the task asks with")
    if not items.records:
        reason = f" ({some_of(items.problems)})" if items.problems else ""
        raise NotReachable(f"{file} has no items{f' of {part}' if entry.field else ''}{reason}")
    return items


def check_data_dir(folder: str, key: str) -> None:
    """Raise UserError, which begins with ``key``, if ``folder`` has no files of items; NotHere if it does not exist."""
    if not is_path(folder):
        raise NotHere(f"{key}: there is no {folder}")
    if not any(local_path(folder).glob("*.jsonl")):
        raise UserError(
            f"{key}: {folder} has no .jsonl file; name a folder with a file for each benchmark, or leave it "
            "out to load from the Hugging Face hub"
        )


def _item_file(dataset: str, part: str | None) -> _ItemFile | None:
    return _ITEM_FILES.get(f"{dataset}:{part}".lower()) or _ITEM_FILES.get(dataset.lower())


def _read(file: Path, entry: _ItemFile, part: str | None, records: list[Record], problems: list[str]) -> None:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)["original"]
                json.dumps(record, ensure_ascii=False).encode("utf-8")  # fails for half of a surrogate pair
                if entry.field is None or record[entry.field] == part:
                    records.append(entry.convert(record))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(f"{file.name}, line {number}: {type(error).__name__}: {error}")


def some_of(problems: list[str]) -> str:
    """Return the first of ``problems``, and how many more there are."""
    return f"left out: {problems[0]}" + (f", and {len(problems) - 1} more" if len(problems) > 1 else "")


def as_dataset(records: Iterable[Record], problems: list[str]) -> Any:
    """Return ``records`` as a ``datasets.Dataset``. A record whose fields have other types than most is dropped and
    named in ``problems``."""
    datasets, pyarrow = (require(name, "eval", "a benchmark") for name in ("datasets", "pyarrow"))
    records = list(records)
    try:
        return datasets.Dataset.from_list(records)
    except (pyarrow.ArrowException, TypeError, ValueError):
        types = [str({name: type(value).__name__ for name, value in record.items()}) for record in records]
        usual = records[types.index(Counter(types).most_common(1)[0][0])]
        kept: list[Record] = []
        for number, record in enumerate(records):
            try:
                datasets.Dataset.from_list([usual, record])
                kept.append(record)
            except (pyarrow.ArrowException, TypeError, ValueError) as error:
                problems.append(f"record {number}: its fields are of other types ({one_line(error, lines=1)})")
        return datasets.Dataset.from_list(kept)


def by_article(rows: Iterable[Record]) -> list[Record]:
    """Return the articles of RACE from ``rows``, which have one question each. The ``problems`` of an article are all
    its questions with options and answers, as a Python literal."""
    articles: dict[str, list[Record]] = {}
    for row in rows:
        problem = {name: row[name] for name in ("question", "answer", "options")}
        articles.setdefault(row["article"], []).append(problem)
    return [{"article": article, "problems": repr(problems)} for article, problems in articles.items()]


def _answer_as_number(record: Record) -> Record:
    answer = record["answer"]
    return {**record, "answer": "ABCD".index(answer) if isinstance(answer, str) and answer else answer}


def _answer_as_label(record: Record) -> Record:
    answer = record["answer"]
    return {
        "question": record["question"],
        "passage": record["passage"],
        "label": None if answer is None else int(answer),
    }


def _targets_as_lists(record: Record) -> Record:
    targets = {
        name: {"choices": list(record[name]), "labels": list(record[name].values())}
        for name in ("mc1_targets", "mc2_targets")
    }
    return {"question": record["question"], **targets}


def _answers_of_table(record: Record) -> Record:
    row = {name.lstrip("\ufeff"): value for name, value in record["csv"].items()}
    lists = {
        name: [answer.strip() for answer in row[column].split(";") if answer.strip()]
        for name, column in (("correct_answers", "Correct Answers"), ("incorrect_answers", "Incorrect Answers"))
    }
    return {"question": row["Question"], "best_answer": row["Best Answer"], **lists}


def _one_question(record: Record) -> Record:
    return {name: record[name] for name in ("article", "question", "options", "answer")}


_BLIMP = _ItemFile("blimp.jsonl", field="UID")
_BOOLQ = _ItemFile("boolq.jsonl", _answer_as_label)
_MMLU = _ItemFile("mmlu.jsonl", _answer_as_number, "subject")
_OPENBOOK = _ItemFile("openbookqa.jsonl")
_SOCIAL = _ItemFile("social_iqa.jsonl")
_ITEM_FILES = {
    "rowan/hellaswag": _ItemFile("hellaswag.jsonl"),
    "allenai/winogrande": _ItemFile("winogrande.jsonl"),
    "allenai/ai2_arc:arc-easy": _ItemFile("arc_easy.jsonl"),
    "allenai/ai2_arc:arc-challenge": _ItemFile("arc_challenge.jsonl"),
    "cais/mmlu": _MMLU,
    "hails/mmlu_no_train": _MMLU,
    "nyu-mll/blimp": _BLIMP,
    "blimp": _BLIMP,
    "truthfulqa/truthful_qa:multiple_choice": _ItemFile("truthful_qa.jsonl", _targets_as_lists),
    "truthfulqa/truthful_qa:generation": _ItemFile("truthful_qa.jsonl", _answers_of_table),
    "baber/piqa": _ItemFile("piqa.jsonl"),
    "eleutherai/race:high": _ItemFile("race_high.jsonl", _one_question, by_article=True),
    "ehovy/race:high": _ItemFile("race_high.jsonl", _one_question),
    "ehovy/race:middle": _ItemFile("race_middle.jsonl", _one_question),
    "aps/super_glue:boolq": _BOOLQ,
    "google/boolq": _ItemFile("boolq.jsonl"),
    "aps/super_glue:copa": _ItemFile("copa.jsonl"),
    "allenai/openbookqa:additional": _ItemFile("openbookqa.jsonl", needs="fact1"),
    "allenai/openbookqa": _OPENBOOK,
    "openbookqa": _OPENBOOK,
    "tau/commonsense_qa": _ItemFile("commonsense_qa.jsonl"),
    "lighteval/siqa": _SOCIAL,
    "allenai/social_i_qa": _SOCIAL,
    "allenai/sciq": _ItemFile("sciq.jsonl"),
}
"""The files by the lower-case name of the dataset on the hub, with its configuration if that has a file of its own.
Some datasets have several names, in different releases of the harness."""


def words(text: str) -> list[str]:
    """Return the runs of letters and digits in ``text``, which may have apostrophes inside."""
    return _WORD.findall(text)


def syllables(word: str) -> int:
    """Count the groups of vowels in ``word``, with y a vowel and without a silent -e, -es or -ed; at least 1."""
    plain = word.lower()
    silent = bool(_SILENT.search(plain)) and not _SPOKEN.search(plain)
    return max(1, len(_VOWELS.findall(plain)) - silent)


def is_short_and_plain(question: str, choices: Sequence[str]) -> bool:
    """Return True if an item meets the rule at the top of this file."""
    asked, answers = words(question), [words(choice) for choice in choices]
    if len(asked) + max(map(len, answers), default=0) > WORDS:
        return False
    every = [*asked, *(word for answer in answers for word in answer)]
    hard = sum(syllables(word) >= 3 for word in every)
    return all(len(word) <= LETTERS for word in every) and hard <= HARD * len(every)
