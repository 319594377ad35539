"""The run-file snippets of the guide are valid and have the parameters that it says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from quintet.config.model import TransformerConfig
from quintet.model.count import count_parameters

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "model.md"


def test_the_shapes_in_the_guide_have_the_parameters_that_it_says() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    snippets = re.findall(r"with ([\d,]+) parameters:\n\n```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 2
    for count, snippet in snippets:
        config = TransformerConfig.model_validate(yaml.safe_load(snippet)["model"])
        assert config.vocab_size is not None
        assert config.context_length is not None
        total = count_parameters(config, config.vocab_size, config.context_length).total
        assert total == int(count.replace(",", ""))
