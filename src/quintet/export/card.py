"""The model card of an exported run: what it is, what it learnt from, and how well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import yaml

import quintet
from quintet.config.load import dump_run_config
from quintet.config.schema import RunConfig
from quintet.model import Model
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import TextBounds


class ExportableRun(Protocol):
    """The members of a trained run that are exported; `quintet.train.trained.TrainedRun` has them."""

    @property
    def model(self) -> Model: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def bounds(self) -> TextBounds: ...
    @property
    def sampling(self) -> Mapping[str, Any]: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def objective(self) -> Any: ...
    @property
    def progress(self) -> Any: ...


def model_card(run: ExportableRun, architecture: str, parameters: int, notes: list[str]) -> str:
    """Markdown with the front matter that the hub reads."""
    front = {"library_name": "transformers", "tags": ["quintet"], "pipeline_tag": _task(run)}
    rows = {
        "class": architecture,
        "parameters": f"{parameters:,}",
        "context": f"{run.model.context_length:,} tokens",
        "vocabulary": f"{run.tokenizer.vocab_size:,} ids",
        "steps": f"{run.progress.step:,}",
        "tokens seen": f"{run.progress.tokens:,}",
        **_results(run),
        "trained with": f"Quintet {quintet.__version__}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    sources = "\n".join(
        f"- `{_short(source.model_dump(mode='json', exclude_defaults=True))}`" for source in run.config.data.sources
    )
    remarks = "".join(f"\n> {note}\n" for note in notes)
    code = ", trust_remote_code=True" if architecture.startswith("Quintet") else ""
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {run.config.name}

| | |
|---|---|
{table}
{remarks}
## Data

{sources}

## Use

```python
from transformers import {_auto(run)}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER"{code})
model = {_auto(run)}.from_pretrained("FOLDER"{code})
```

## Run file

```yaml
{dump_run_config(run.config).strip()}
```
"""


def _results(run: ExportableRun) -> dict[str, str]:
    loss = run.progress.validation_loss
    if loss is None:
        return {}
    return {"validation loss": f"{loss:.4f} nats a token", "perplexity": f"{math.exp(loss):.2f}"}


def _task(run: ExportableRun) -> str:
    return "fill-mask" if run.config.loss.kind == "masked" else "text-generation"


def _auto(run: ExportableRun) -> str:
    return "AutoModelForMaskedLM" if run.config.loss.kind == "masked" else "AutoModelForCausalLM"


def _short(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=1_000_000).strip()
