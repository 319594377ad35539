"""`quintet show-batch`: the exact text of the batch of a step, and its tokens that count in the loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from quintet.cli.inputs import Inputs, echo, fail, in_words, load
from quintet.errors import printable
from quintet.files import to_json

if TYPE_CHECKING:
    from rich.text import Text

    from quintet.data.batch import Batch
    from quintet.tokenize import Tokenizer

_DOCUMENTS = ("cyan", "magenta", "green", "yellow")  # in turn, so that neighbours differ
_NO_LOSS = "dim"
_LEGEND = "bright: predicted · dim: only read · one colour per document · ⏎ line end · ∎ document end"


def show_batch(
    inputs: Inputs,
    step: Annotated[int, typer.Option(min=1, help="step of the run")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="samples to show at most")] = 4,
    validation: Annotated[bool, typer.Option("--validation", help="show the first validation batch instead")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print ids, targets and documents as JSON")] = False,
) -> None:
    """Show what the model reads at a step: text, ends of documents, padding, and which tokens count in the loss.

    A token is bright if it is predicted, from the tokens before it.
    """
    config = load(inputs)
    from rich.console import Console
    from rich.text import Text

    from quintet.data.prepare import prepare
    from quintet.track.console import Reporter
    from quintet.train.loss import build_objective

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True), in_words)
    try:
        prepared = prepare(config, progress=reporter.preparing)
    finally:
        reporter.close()
    objective = build_objective(config, prepared.tokenizer)
    if validation:
        if prepared.validation is None:
            fail("--validation: nothing is held out; set data.validation or data.validation_sources")
        batches = prepared.validation.batches(config.batch.micro_batch_size, config.evaluate.samples)
        whole, purpose, labels = next(iter(batches)), ("validation", 0), prepared.validation.labels
    else:
        index = config.data.batch_index(step - 1)
        whole, purpose, labels = prepared.train.batch(index), ("train", index), prepared.train.labels
    # Documents are shown even if the model does not distinguish them.
    batch = replace(objective.prepare(whole, *purpose), documents=whole.documents)
    if as_json:
        echo(to_json(_arrays(batch, labels, rows), ascii=False), exact=True)
        return
    console = Console(highlight=False)
    what = "validation" if validation else f"step {step}"
    console.print(f"{what}: {len(batch.inputs)} samples, {batch.valid:,} of {batch.targets.size:,} tokens predicted")
    for row in range(min(rows, len(batch.inputs))):
        heading = Text.assemble("\n", (f"sample {row}", "bold"), f" of {printable(labels[int(batch.sources[row])])}")
        console.print(heading)
        console.print(painted(batch, row, prepared.tokenizer))
    console.print(f"\n{_LEGEND}", style="italic")


def painted(batch: Batch, row: int, tokenizer: Tokenizer) -> Text:
    """Return sample ``row`` of ``batch`` as coloured text: its inputs, and the last target."""
    from rich.text import Text

    from quintet.config.documents import IGNORED
    from quintet.data.batch import PADDING

    assert batch.documents is not None
    numbers = batch.documents[row]
    size = int((numbers != PADDING).sum())
    ids: list[int] = batch.inputs[row, :size].tolist()
    documents: list[int] = numbers[:size].tolist()
    predicted: list[bool] = [False, *(batch.targets[row, :size] != IGNORED).tolist()]
    if predicted[-1]:  # the last token is only a target
        ids, documents = [*ids, int(batch.targets[row, size - 1])], [*documents, documents[-1]]
    text = Text()
    for (document, loss_mask), group in groupby(range(len(ids)), lambda index: (documents[index], predicted[index])):
        style = _DOCUMENTS[document % len(_DOCUMENTS)] + ("" if loss_mask else f" {_NO_LOSS}")
        text.append(_written([ids[index] for index in group], tokenizer), style=style)
    if size < len(numbers):
        text.append(f" + {len(numbers) - size} of padding", style="italic dim")
    return text


def _written(ids: list[int], tokenizer: Tokenizer) -> str:
    """Return the text of ``ids`` with line ends and special ids marked."""
    parts: list[str] = []
    for special, group in groupby(ids, lambda token: token >= tokenizer.vocab_size or not tokenizer.pieces.of(token)):
        if special:
            parts += ["∎\n" if token == tokenizer.end_id else f"⟨{token}⟩" for token in group]
        else:
            # A group may begin in the middle of a text, whose first space `decode` may drop.
            written = b"".join(map(tokenizer.pieces.of, group)).decode("utf-8", errors="replace")
            parts.append(printable(written.replace("\n", "⏎\n"), lines=True))
    return "".join(parts)


def _arrays(batch: Batch, labels: tuple[str, ...], rows: int) -> dict[str, object]:
    assert batch.documents is not None
    return {
        "inputs": batch.inputs[:rows].tolist(),
        "targets": batch.targets[:rows].tolist(),
        "documents": batch.documents[:rows].tolist(),
        "sources": [labels[source] for source in batch.sources[:rows].tolist()],
    }
