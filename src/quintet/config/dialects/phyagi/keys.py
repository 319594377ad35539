"""PhyAGI's keys of data, and those at the top."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.phyagi.values import bounds, name, split
from quintet.config.dialects.table import REQUIRED, Key
from quintet.config.dialects.values import Value, anything, choice, flag, listed, number, text, whole

MIXFORMER = "mixformer-sequential"
CONCATS = ("random", "sequential", "random_iterable", "random_chat")
PROVIDERS = ("lm", "stream_lm", "chat")


def _dataset(path: str, value: Value, help: str, **more: Any) -> Key:
    return Key(f"dataset[].{path}", value, help, **more)


def _beside(path: str, value: Value, help: str, *spellings: str, **more: Any) -> Key:
    """A key beside `dataset`, which the document has inside it."""
    paths = (path, *spellings)
    return Key(
        path, value, help, aliases=(*spellings, *(f"dataset[].{one}" for one in paths), *more.pop("also", ())), **more
    )


TOP = (
    Key(
        "data_root",
        text(),
        "folder of the data, for `${data_root}` in other values",
        default='${oc.env:DATA_ROOT,"/mnt/aifshared"}',
        affects=("data.sources",),
    ),
    Key(
        "output_root",
        text(),
        "folder of the outputs, for `${output_root}`; where the file gives it, a relative `output_dir` lies in it",
        default='${oc.env:OUTPUT_ROOT,"~/phyagi_results"}',
        affects=("runs_dir",),
    ),
    Key(
        "output_dir",
        text(),
        "folder of the run, which is continued when it is there already",
        default=REQUIRED,
        affects=("runs_dir", "name"),
    ),
    Key(
        "trainer",
        choice("deepspeed", "huggingface", "lightning"),
        "whose training arguments the file has; found out from their names when not given",
        documented=False,
        affects=("trainer.kind",),
    ),
)

DATA = (
    _dataset(
        "cache_dir",
        text(),
        "folder with train.npy, validation.npy and tokenizer.pkl, or one .npy file to train on",
        affects=("data.sources[].path", "data.validation_sources[].path"),
    ),
    _dataset(
        "train_file",
        text(),
        ".npy file of tokens to train on, with `NAME_labels.npy` beside it if some have no loss",
        affects=("data.sources[].path",),
    ),
    _dataset(
        "validation_file", text(), ".npy file of tokens to validate on", affects=("data.validation_sources[].path",)
    ),
    _dataset(
        "validation_split",
        split(),
        "instead of a validation file: the first tokens of the training file, so many or this part of them",
        affects=("data.validation_sources[].stop", "data.sources[].start"),
    ),
    _dataset(
        "tokenizer_file",
        text(),
        "pickled tokenizer that made the tokens; tokenizer.pkl of cache_dir when not given, or ids alone",
        affects=("tokenizer",),
    ),
    _dataset(
        "seq_len",
        whole(2),
        "tokens of a sample, the same for all datasets",
        default=2048,
        affects=("data.sequence_length",),
    ),
    _dataset(
        "shift_labels",
        flag(),
        "the last position of a sample predicts the token that follows the sample; false leaves it without a loss",
        default=False,
        affects=("data.packing.predict_next",),
    ),
    _dataset(
        "weight", number(above=0), "how often an epoch has the samples", default=1.0, affects=("data.sources[].repeat",)
    ),
    _dataset(
        "label",
        name(),
        "name of the dataset in reports; its number from 0 on when not given",
        affects=("data.sources[].label", "data.validation_sources[].label"),
    ),
    _dataset(
        "dataset_path",
        text(),
        ".npy file of tokens, for dataset_provider: stream_lm",
        documented=False,
        affects=("data.sources[].path",),
    ),
    _dataset(
        "random_mask_prob",
        number(0, 1),
        "part of the marked tokens that has no loss",
        documented=False,
        refused="cannot be followed: it takes ids above 32767 for marks, which they are in no other data; leave it out",
    ),
    _dataset(
        "ignore_token_id",
        whole(),
        "what random_mask_prob writes",
        documented=False,
        no_effect="is used by random_mask_prob alone",
    ),
    _dataset("seed", whole(), "of random_mask_prob", documented=False, no_effect="is used by random_mask_prob alone"),
    *(
        _dataset(
            path, anything(), "left from older files", documented=False, no_effect="is of no use to tokens made ready"
        )
        for path in ("use_eos_token", "original_tokenizer", "num_shards")
    ),
    _beside(
        "dataset_concat",
        choice(*CONCATS),
        "random draws from all datasets at once, and so does random_iterable; sequential takes one after the other",
        default="random",
        affects=("data.mixing",),
    ),
    _beside(
        "eval_dataset_concat",
        choice(*CONCATS),
        "null validates on each dataset by itself; any other value on all together, with the label 0",
        affects=("data.validation_sources[].label",),
    ),
    _beside(
        "dataset_provider",
        choice(*PROVIDERS),
        "lm draws samples at random; stream_lm keeps their order, of one dataset or with dataset_concat: sequential",
        default="lm",
        affects=("data.shuffle", "data.sources[].kind"),
    ),
    _beside(
        "dataset_global_weight",
        number(above=0),
        "factor on every weight",
        default=1.0,
        documented=False,
        affects=("data.sources[].repeat",),
    ),
    _beside(
        "dataset_collator.cls", choice("lm", "chat"), "class of the collator", default="lm", affects=("loss.kind",)
    ),
    _beside(
        "dataset_collator.ignore_token_ids",
        listed(whole(0)),
        "ids that are never predicted",
        affects=("loss.ignore_token_ids",),
    ),
    _beside(
        "dataset_collator.ignore_token_range",
        bounds(),
        "ids from the first to the last, both counted, that are never predicted",
        "dataset_collator.ignore_token_id_range",
        affects=("loss.ignore_token_range",),
    ),
    _beside(
        "dataset_collator.ignore_index",
        whole(),
        "value of labels that have no loss; from 0 on it is also an id that is never predicted",
        default=-100,
        also=("model.architecture.loss.ignore_index",),
        affects=("data.sources[].ignore_index", "loss.ignore_token_ids"),
    ),
)
