"""Export of a run's model and tokenizer to a folder that transformers loads, with a model card."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor

from quintet.config.load import dump_run_config
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.files import new_folder
from quintet.model import Model, Transformer
from quintet.model.hf.weights import export_weights
from quintet.system import __version__
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import NO_END
from quintet.tokenize.bounds import TextBounds
from quintet.tokenize.transformers_folder import write_for_transformers


class ExportableRun(Protocol):
    """The members of a trained run that an export reads; `quintet.train.trained.TrainedRun` has them."""

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
    """Return the model card: Markdown with the front matter that the hub reads."""
    front = {"library_name": "transformers", "tags": ["quintet"], "pipeline_tag": _task(run)}
    rows = {
        "class": architecture,
        "parameters": f"{parameters:,}",
        "context": f"{run.model.context_length:,} tokens",
        "vocabulary": f"{run.tokenizer.vocab_size:,} ids",
        "steps": f"{run.progress.step:,}",
        "tokens seen": f"{run.progress.tokens:,}",
        **_results(run),
        "trained with": f"Quintet {__version__}",
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


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OWN_CLASSES = {"AutoModelForCausalLM": "QuintetForCausalLM", "AutoModelForMaskedLM": "QuintetForMaskedLM"}
_LARGEST_FILE = "5GB"  # the default of transformers


@dataclass(frozen=True)
class Exported:
    """An exported model: the class that loads it, its number of parameters, and lines that the user has to know."""

    architecture: str
    parameters: int
    notes: list[str]


def export_huggingface(run: ExportableRun, folder: Path, dtype: str = "fp32") -> Exported:
    """Write model, tokenizer, generation settings and model card of ``run`` into ``folder``, weights as ``dtype``.

    ``AutoModelForCausalLM`` and ``AutoTokenizer`` load it without Quintet if one of the library's classes computes the
    same function; otherwise Quintet's own class is written beside the weights. The folder appears when it is complete.
    Raises UserError if it is not empty, for byte-level parts, or without `transformers`.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new or an empty folder")
    if isinstance(run.model, Transformer) and run.model.config.byte_parts:
        raise UserError(
            f"{folder}: cannot be written: a byte-level embedding or head spells ids with their bytes, which a "
            "checkpoint of Hugging Face's form has no place for; use the run folder itself"
        )
    with new_folder(folder) as temporary:
        return _write(run, temporary, dtype)


def _write(run: ExportableRun, folder: Path, dtype: str) -> Exported:
    notes = write_for_transformers(run.tokenizer, folder, run.model.context_length, run.bounds.begin)
    end_id = None if run.tokenizer.end_id == NO_END else run.tokenizer.end_id
    # The id after which a text without a prompt is generated.
    begin_id = run.bounds.before[0] if run.bounds.before else None
    special = {"bos_token_id": begin_id, "eos_token_id": end_id, "pad_token_id": None}
    if isinstance(run.model, Transformer):
        exported = export_weights(run.model, special)
        if isinstance(exported, list):
            config, tensors = _own_class(run, special, folder)
            notes.append(
                f"no class of transformers computes this architecture, so that Quintet's own is named in it: loading "
                f"it needs `pip install quintet` and trust_remote_code=True ({'; '.join(exported)})"
            )
        else:
            config, tensors = exported.config, exported.tensors
        config.dtype = _DTYPES[dtype]
        _save_tensors(tensors, folder, _DTYPES[dtype])
        config.save_pretrained(folder)
        architecture, parameters = config.architectures[0], sum(tensor.numel() for tensor in tensors.values())
    else:
        model = run.model.merged().to(_DTYPES[dtype])
        model.save_pretrained(folder, max_shard_size=_LARGEST_FILE)
        architecture, parameters = type(model).__name__, model.num_parameters()
    _write_json(folder / "generation_config.json", _generation(run, special, architecture))
    (folder / "README.md").write_text(model_card(run, architecture, parameters, notes), encoding="utf-8")
    return Exported(architecture, parameters, notes)


def _own_class(run: ExportableRun, special: dict[str, int | None], folder: Path) -> tuple[Any, dict[str, Tensor]]:
    from quintet.export import modeling_quintet

    assert isinstance(run.model, Transformer)
    masked = run.config.loss.kind == "masked"
    auto = "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"
    name = OWN_CLASSES[auto]
    config = modeling_quintet.QuintetConfig(
        model=run.model.config.model_dump(mode="json"),
        vocab_size=run.model.rows,
        predicted_ids=run.model.vocab_size,
        max_position_embeddings=run.model.context_length,
        mask_token_id=run.objective.mask_id if masked else None,
        tie_word_embeddings=run.model.config.tie_embeddings,
        **special,
    )
    config.architectures = [name]
    module = Path(modeling_quintet.__file__)
    config.auto_map = {"AutoConfig": f"{module.stem}.QuintetConfig", auto: f"{module.stem}.{name}"}
    shutil.copyfile(module, folder / module.name)
    return config, {f"transformer.{name}": value for name, value in run.model.state_dict().items()}


def _save_tensors(tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    from huggingface_hub import save_torch_state_dict

    # Copies, because of tensors that share memory only one would be written.
    copies = {name: tensor.detach().to("cpu", dtype, copy=True) for name, tensor in tensors.items()}
    save_torch_state_dict(copies, folder, max_shard_size=_LARGEST_FILE)


def _generation(run: ExportableRun, special: dict[str, int | None], architecture: str) -> dict[str, Any]:
    """Return the generation settings: those of the checkpoint that the model was trained from, if any, with our ids."""
    ends = sorted(run.bounds.stop_ids)
    settings = dict(run.sampling) or {"do_sample": True}
    settings |= special | {"eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    if run.bounds.stops:
        settings["stop_strings"] = list(run.bounds.stops)
    return settings | {"use_cache": architecture not in OWN_CLASSES.values()}


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
