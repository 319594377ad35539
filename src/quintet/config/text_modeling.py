"""How well a model reads text, byte by byte and topic by topic: what is read."""

from __future__ import annotations

from quintet.config.section import ConfigSection, key


class TextModelingConfig(ConfigSection):
    """Bits per byte, byte perplexity, accuracy and calibration on held-out text, by topic; see
    docs/guide/text-modeling.md."""

    path: str | None = key(
        None,
        "file or folder of .txt and .jsonl files, each file a topic; null: what the run holds out, by its labels",
        min_length=1,
    )
    text_field: str = key("text", "field of a line of .jsonl that holds its text", min_length=1)
    topic_field: str | None = key(
        None, "field of a line of .jsonl that names its topic; the file's name when not given", min_length=1
    )
    separator: str | None = key(
        None, "what stands between two documents of a .txt file; when not given a file is one document", min_length=1
    )
    max_bytes: int = key(200_000, "of each topic, from its beginning", unit="bytes", ge=1)
    stride: int | None = key(
        None,
        "tokens that a window adds to those before it, in a document longer than the context; half the context when "
        "not given",
        unit="tokens",
        ge=1,
    )
