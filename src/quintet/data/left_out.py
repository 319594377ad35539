"""What preparation left out, and settings that matched nothing, as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quintet.config.documents import TokenField
from quintet.config.sources import BinSource, NpySource, TextSource
from quintet.data.batch import TrainData, ValidationData
from quintet.data.manifest import Manifest
from quintet.data.sources.files import passed_over_lines
from quintet.data.sources.source_index import SourceIndex, label_of

_PASSED_OVER = ("midi_", "notes_", "padding_")  # reasons that count parts of documents and of files


def preparation_lines(listing: SourceIndex, manifest: Manifest) -> list[str]:
    """What the store of ``listing`` does not have of the source, and which of its settings found nothing."""
    label = label_of(listing.source)
    found = [
        *dropped_lines(manifest.dropped, manifest.documents - manifest.unused.documents),
        *left_out_files(manifest.left_out, manifest.left_out_files),
        *_matched_nothing(listing, manifest),
    ]
    return [f"{label}: {line}" for line in found] + list(passed_over_lines(label, listing.passed))


def dropped_lines(dropped: Mapping[str, int], kept: int) -> Iterator[str]:
    """A line for each reason in ``dropped``, beside ``kept`` documents."""
    documents = {reason: count for reason, count in dropped.items() if not reason.startswith(_PASSED_OVER)}
    total = kept + sum(documents.values())
    for reason, count in sorted(dropped.items()):
        whole = f"dropped: {count:,} of {total:,} documents ({reason})"
        yield whole if reason in documents else f"passed over: {count:,} ({reason})"


def left_out_files(count: int, first: tuple[str, ...]) -> Iterator[str]:
    """How many files cannot be read, with the names of the first."""
    if count:
        names = ", ".join(first[:3]) + (", …" if count > 3 else "")
        yield f"left out: {count:,} files that cannot be read ({names})"


def packing_lines(data: TrainData | ValidationData | None, prefix: str) -> Iterator[str]:
    """What packing leaves out of each source of ``data``."""
    for label, samples in zip(data.labels, data.streams, strict=True) if data is not None else ():
        yield from (f"{prefix}{label}: {line}" for line in samples.left_out.lines())


def _matched_nothing(listing: SourceIndex, manifest: Manifest) -> Iterator[str]:
    source, matched, documents = listing.source, manifest.matched, manifest.documents
    document = getattr(source, "document", None)
    if isinstance(source, TextSource) and source.separator is not None and not matched.get("separator"):
        yield f"`separator` {source.separator!r} stands nowhere in {len(listing.files):,} files: each is one document"
    if isinstance(source, NpySource | BinSource) and document == "end_id" and not matched.get("end_id"):
        yield "`document: end_id`: the end id stands nowhere: each file is one document"
    if isinstance(document, TokenField) and {"labels", "ignore_index"} & document.model_fields_set:
        labelled = matched.get("labels", 0)
        if labelled < documents:
            yield (
                f"`document.labels`: {documents - labelled:,} of {documents:,} documents have no {document.labels!r}: "
                "all of their tokens have a loss"
            )
        elif documents and not matched.get("ignored"):
            yield f"`document.ignore_index`: no label is {document.ignore_index}: all tokens have a loss"
    if matched.get("unlearnt"):
        yield f"{matched['unlearnt']:,} of {documents:,} documents have no token with a loss"
