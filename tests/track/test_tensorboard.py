from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quintet.config.schema import RunConfig
from quintet.config.track import TensorBoardConfig
from quintet.errors import UserError
from quintet.track.tensorboard import TensorBoardTracker
from quintet.track.tracker import Tracked


def tensorboard(folder: Path, first_step: int) -> TensorBoardTracker:
    data = {"sources": [{"kind": "text", "path": "corpus"}]}
    config = RunConfig.model_validate({"name": "tiny", "data": data, "train": {"steps": 3}})
    return TensorBoardTracker(
        Tracked(config, folder, first_step, {}, print), TensorBoardConfig(kind="tensorboard"), "track[0]"
    )


def test_tensorboards_own_reader_finds_what_was_written(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = tensorboard(tmp_path, 0)
    for step in (1, 2, 3):
        first.log(step, {"validation/loss": 1.0 / step})
    first.text(2, "sample 0", "def f():\n    pass")
    first.close()
    second = tensorboard(tmp_path, 2)  # continued from step 2: the old step 3 must not show
    second.log(3, {"validation/loss": 9.0})
    second.close()
    found = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {event.step: event.value for event in found.Scalars("validation/loss")}
    assert scalars == pytest.approx({1: 1.0, 2: 0.5, 3: 9.0})
    text = found.Tensors("sample 0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    def f():\n        pass"


def test_absence_is_one_line_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'quintet\[tensorboard\]'"):
        tensorboard(tmp_path, 0)
