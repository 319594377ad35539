"""Rules for PhyAGI's data, its run folder and its trackers, and the choice of the rules for its trainer."""

from typing import Any

from quintet.config.dialects.dialect import Dialect
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.phyagi.back import back, writes
from quintet.config.dialects.phyagi.schema import Dataset, File
from quintet.config.dialects.phyagi.translate_model import model_rules
from quintet.config.dialects.phyagi.translate_nesting import applies, normalize, owner_of, trainer_of
from quintet.config.dialects.phyagi.translate_training import deepspeed_rules, huggingface_rules, lightning_rules
from quintet.config.dialects.phyagi.values import ARGS, ARGUMENTS, DS, PRETRAINED
from quintet.config.keypath import show
from quintet.config.names import local_path


def _rules(theirs: File, native: NativeBuilder) -> None:
    _data(theirs, native)
    model_rules(theirs, native)
    _folder(theirs, native)
    _trackers(theirs, native)
    _training(theirs, native)


def _data(theirs: File, native: NativeBuilder) -> None:
    """Set sources, tokenizer, order, and which targets count in the loss."""
    if not theirs.dataset:
        native.refuse("dataset", "is missing: name at least one dataset with cache_dir or train_file")
        return
    if theirs.dataset_provider == "chat":
        native.refuse("dataset_provider", "chat is for reinforcement learning, which Quintet does not do; use lm")
    for key, value in (("dataset_concat", theirs.dataset_concat), ("eval_dataset_concat", theirs.eval_dataset_concat)):
        if value == "random_chat":
            native.refuse(key, "random_chat is for dataset_provider: chat; use random")
    if theirs.dataset_collator.cls == "chat":
        native.refuse("dataset_collator.cls", "chat is for dataset_provider: chat; use lm")
    _sources(theirs, native)
    _samples(theirs, native)
    _tokenizer(theirs, native)
    _loss(theirs, native)


def _sources(theirs: File, native: NativeBuilder) -> None:
    """Set the training source of each dataset, and its validation source if it has one."""
    validations = 0
    for index, entry in enumerate(theirs.dataset):
        at, split = f"dataset[{index}]", entry.validation_split
        label = str(index) if entry.label is None else entry.label
        path, key = _train_file(native, entry, index)
        if path:
            source = f"data.sources[{index}]"
            _npy(theirs, native, source, path, key)
            native.set(f"{source}.label", label, f"{at}.label")
            repeat = entry.weight * theirs.dataset_global_weight
            if repeat != 1:
                native.set(f"{source}.repeat", repeat, f"{at}.weight", "dataset_global_weight")
            if split:
                native.set(f"{source}.start", split, f"{at}.validation_split")
        if split:
            key = f"{at}.validation_split"
            _check_split(native, entry, index)
        else:
            path, key = _validation_file(native, entry, index)
        if not path:
            continue
        source = f"data.validation_sources[{validations}]"
        _npy(theirs, native, source, path, key)
        if theirs.eval_dataset_concat is None:
            native.set(f"{source}.label", label, f"{at}.label")
        else:
            native.set(f"{source}.label", "0", "eval_dataset_concat")
        if split:
            native.set(f"{source}.stop", split, key)
        validations += 1
    if not validations:
        native.set("data.validation", 0)
    native.set("data.deduplicate_validation", False)


def _train_file(native: NativeBuilder, entry: Dataset, index: int) -> tuple[str, str]:
    """Return the file that dataset ``index`` trains on and the key that names it; refuse a dataset that names no file,
    for which both are empty, or two."""
    files = {"cache_dir": entry.cache_dir, "train_file": entry.train_file, "dataset_path": entry.dataset_path}
    named = [(name, local_path(value)) for name, value in files.items() if value is not None]
    if not named:
        native.refuse(f"dataset[{index}]", "names no data; give cache_dir or train_file")
        return "", ""
    name, path = named[0]
    if len(named) > 1:
        message = f"cannot be given together with {name}, which also names the training data; keep one"
        native.refuse(f"dataset[{index}].{named[1][0]}", message)
    is_folder = name == "cache_dir" and path.suffix != ".npy"
    return str(path / "train.npy" if is_folder else path), f"dataset[{index}].{name}"


def _validation_file(native: NativeBuilder, entry: Dataset, index: int) -> tuple[str, str]:
    """Return the file that dataset ``index`` is validated on and the key that names it; both are empty if there is
    none."""
    key, folder = f"dataset[{index}].validation_file", entry.cache_dir
    if entry.validation_file is not None:
        if folder is not None:
            native.refuse(key, "cannot be given together with cache_dir, which names its folder; keep one")
        return str(local_path(entry.validation_file)), key
    path = local_path(folder) / "validation.npy" if folder is not None else None
    return (str(path), f"dataset[{index}].cache_dir") if path is not None and path.is_file() else ("", "")


def _check_split(native: NativeBuilder, entry: Dataset, index: int) -> None:
    split = entry.validation_split
    if isinstance(split, int) and split < entry.seq_len:
        message = f"{split} tokens hold no sample of seq_len {entry.seq_len}; give more, or a fraction such as 0.1"
        native.refuse(f"dataset[{index}].validation_split", message)
    if entry.validation_file is not None:
        native.say(f"dataset[{index}].validation_file: is not read, because validation_split is given")


def _npy(theirs: File, native: NativeBuilder, source: str, path: str, key: str) -> None:
    """Set ``source`` to the tokens of the file ``path``, which ``key`` names."""
    native.set(f"{source}.kind", "npy", key)
    native.set(f"{source}.path", path, key)
    if theirs.dataset_collator.ignore_index != -100:
        native.set(f"{source}.ignore_index", theirs.dataset_collator.ignore_index, "dataset_collator.ignore_index")
    if theirs.model.cross_sample_token_id is not None:
        native.set(f"{source}.document", "end_id", "model.cross_sample_token_id")


def _samples(theirs: File, native: NativeBuilder) -> None:
    """Set the length of the samples, their packing and their order."""
    first = theirs.dataset[0]
    for name in ("seq_len", "shift_labels"):
        for index, entry in enumerate(theirs.dataset):
            value, expected = getattr(entry, name), getattr(first, name)
            if value != expected:
                message = f"is {value!r}, and that of dataset[0] is {expected!r}; make them equal"
                native.refuse(f"dataset[{index}].{name}", message)
    native.set("data.sequence_length", first.seq_len, "dataset[0].seq_len")
    if not first.shift_labels and not theirs.model.architecture.loss.shift_labels:
        native.refuse(
            "model.architecture.loss.shift_labels",
            "false has each token predict itself, unless dataset[0].shift_labels is true; set one of the two",
        )
    native.set("data.packing.kind", "stream", "dataset_provider")
    native.set("data.packing.predict_next", first.shift_labels, "dataset[0].shift_labels")
    sequential = theirs.dataset_concat == "sequential"
    native.set("data.mixing", "sequential" if sequential else "random", "dataset_concat")
    if theirs.dataset_provider == "stream_lm" and (sequential or len(theirs.dataset) == 1):
        native.set("data.shuffle", False, "dataset_provider")


def _tokenizer(theirs: File, native: NativeBuilder) -> None:
    """Set the tokenizer that is named, the one beside the data, or no text and only ids."""
    end_id = theirs.model.cross_sample_token_id
    files = {f"dataset[{index}].tokenizer_file": entry.tokenizer_file for index, entry in enumerate(theirs.dataset)}
    named = [(file, key) for key, file in files.items() if file is not None]
    for file, key in named[1:]:
        if file != named[0][0]:
            native.refuse(key, f"is not the {named[0][0]!r} of {named[0][1]}; a run has one tokenizer")
    found = [(local_path(file), key) for file, key in named]
    for index, entry in enumerate(theirs.dataset):
        beside = local_path(entry.cache_dir) / "tokenizer.pkl" if entry.cache_dir is not None else None
        if beside is not None and beside.is_file():
            found.append((beside, f"dataset[{index}].cache_dir"))
    path, key = found[0] if found else (None, "")
    if path is not None and end_id is None:
        native.set("tokenizer", {"kind": "huggingface", "path": str(path)}, key)
        return
    if path is not None:
        native.say(f"{key}: the tokenizer is not used, because model.cross_sample_token_id says what ends documents")
    if native.has(PRETRAINED) and not native.has("model.vocab_size"):
        return  # the model's own tokenizer
    native.set("tokenizer", {"kind": "ids", "vocab_size": theirs.model.vocab_size}, "model.vocab_size")
    if end_id is not None:
        native.set("tokenizer.end_id", end_id, "model.cross_sample_token_id")


def _loss(theirs: File, native: NativeBuilder) -> None:
    """Set which targets do not count in the loss."""
    collator = theirs.dataset_collator
    ids, keys = list(collator.ignore_token_ids or ()), ["dataset_collator.ignore_token_ids"]
    if not ids:
        keys.clear()
    if collator.ignore_index >= 0:
        keys.append("dataset_collator.ignore_index")
        ids += [] if collator.ignore_index in ids else [collator.ignore_index]
    if ids:
        native.set("loss.ignore_token_ids", ids, *keys)
    first, last = collator.ignore_token_range or (None, None)
    if first is not None or last is not None:
        bounds = [first or 0, theirs.model.vocab_size - 1 if last is None else last]
        native.set("loss.ignore_token_range", bounds, "dataset_collator.ignore_token_range")


def _folder(theirs: File, native: NativeBuilder) -> None:
    """Set the run's folder; if the file gives output_root, a relative one is inside it."""
    folder, root = local_path(theirs.output_dir), local_path(theirs.output_root)
    if native.has("output_root") and not folder.is_relative_to(root):
        folder = root / folder
    native.set("runs_dir", str(folder.parent), "output_dir", "output_root")
    native.set("name", folder.name or "run", "output_dir")


def _trackers(theirs: File, native: NativeBuilder) -> None:
    args = theirs.training_args
    trackers: list[dict[str, Any]] = []
    for kind, enabled in (("mlflow", args.mlflow), ("wandb", args.wandb), ("tensorboard", args.tensorboard)):
        if enabled:
            trackers.append({"kind": kind})
        if enabled and kind == "wandb" and args.wandb_host:
            trackers[-1]["arguments"] = {"settings": {"base_url": args.wandb_host}}
    if trackers:
        native.set("track", trackers, *(f"{ARGS}.{tracker['kind']}" for tracker in trackers))


def _training(theirs: File, native: NativeBuilder) -> None:
    """Set training, by the trainer that the file is for."""
    trainer = trainer_of(native.given.document.values)
    _refuse_others(native, trainer)
    native.set("sample.prompts", [])
    native.set("checkpoint.keep_best", False)
    if trainer == "deepspeed":
        deepspeed_rules(theirs, native)
    elif trainer == "huggingface":
        huggingface_rules(theirs, native)
    else:
        lightning_rules(theirs, native)
    if theirs.training_args.timeout is not None:
        native.set("parallel.timeout_seconds", float(theirs.training_args.timeout), f"{ARGS}.timeout")
    if not native.get("data.validation_sources"):  # without held-out data there is nothing to validate on
        native.set("evaluate.every", None)
        native.set("evaluate.at_end", False)


def _refuse_others(native: NativeBuilder, trainer: str) -> None:
    """Refuse the arguments of other trainers than the file's."""
    micro_batch = f"{ARGS}.train_micro_batch_size_per_gpu"
    for key, steps, _ in native.given.items():
        owner = owner_of(key.path)
        if owner not in ("", trainer) and not (key.path == micro_batch and trainer == "deepspeed"):
            native.refuse(show(steps), f"is for trainer: {owner}, and this file is for {trainer}; leave it out")
    if trainer == "deepspeed" and native.has(ARGUMENTS):
        native.refuse(ARGUMENTS, "is for trainer: huggingface or lightning; leave it out")
    if trainer == "deepspeed" and native.has(micro_batch):
        instead = f"{DS}.train_micro_batch_size_per_gpu"
        native.refuse(micro_batch, f"belongs in ds_config when trainer is deepspeed; set {instead}")


DIALECT = Dialect(
    "phyagi",
    "PhyAGI",
    schema=File,
    normalize=normalize,
    applies=applies,
    rules=_rules,
    back=back,
    writes=writes,
    stand_in={"output_dir": "missing", "dataset[0].cache_dir": "missing.npy"},
)
