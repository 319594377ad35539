"""The transformer's weights in the forms of Hugging Face's families of models, in and out, by tables of names."""

from quintet.model.families.architecture import ADAPTABLE, architecture, differences
from quintet.model.families.exported import Exported, export_weights
from quintet.model.families.files import checkpoint_digest, find_checkpoint, positions_of, read_config
from quintet.model.families.pretrained import Start, fitted, pretrained_weights
from quintet.model.families.settings import model_section

__all__ = [
    "ADAPTABLE",
    "Exported",
    "Start",
    "architecture",
    "checkpoint_digest",
    "differences",
    "export_weights",
    "find_checkpoint",
    "fitted",
    "model_section",
    "positions_of",
    "pretrained_weights",
    "read_config",
]
