"""Values of environment variables and credentials are not written to files, and a run continues with its variables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers import Command, contents, run_values, write_corpus

from quintet.config.describe import plain, walk
from quintet.config.dump import differences, dump_run_config
from quintet.config.load import Loaded, Reading, load_run_config
from quintet.config.secrets import check_secrets, hidden
from quintet.errors import UserError, is_secret, one_line, without_secrets

SECRET = "s3cr3t-of-the-environment"
LOGIN = "https://me:a-literal-secret@host/a.jsonl?b=1&token=another-literal"
TOKEN = "hf_" + "abcdefghij" * 3


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Loaded]:
    monkeypatch.setenv("KEY_OF_OURS", SECRET)
    monkeypatch.setenv("ROOT", str(tmp_path))

    def loaded(sections: dict[str, Any], *overrides: str, name: str = "run.yaml") -> Loaded:
        file = tmp_path / name
        file.write_text(yaml.safe_dump(run_values(name="it") | sections))
        return load_run_config([file], list(overrides))

    return loaded


def test_a_value_of_the_environment_is_written_as_its_interpolation(
    load: Callable[..., Loaded], tmp_path: Path
) -> None:
    arguments = {"project": "p", "notes": "${oc.env:KEY_OF_OURS}", "group": "g-${oc.env:KEY_OF_OURS}-${train.steps}"}
    data = {
        "sources": [{"kind": "text", "path": "${data.cache_dir}/texts/\\${x}"}],
        "cache_dir": "${oc.env:ROOT,data}/cache",
    }
    config = load({"track": [{"kind": "wandb", "arguments": arguments}], "data": data, "seed": 3}).config
    assert config.track[0].arguments["notes"] == SECRET
    text = dump_run_config(config)
    assert SECRET not in text
    assert str(tmp_path) not in text
    values = yaml.safe_load(text)
    assert values["track"][0]["arguments"] == {
        "project": "p",
        "notes": "${oc.env:KEY_OF_OURS}",
        "group": f"g-${{oc.env:KEY_OF_OURS}}-{config.train.steps}",
    }
    assert values["data"]["cache_dir"] == "${oc.env:ROOT}/cache"  # it was set at the start, and is needed from then on
    assert (
        values["data"]["sources"][0]["path"] == ["${oc.env:ROOT}/cache/texts/\\${x}"]
        or values["data"]["sources"][0]["path"] == "${oc.env:ROOT}/cache/texts/\\${x}"
    )
    (again := tmp_path / "again.yaml").write_text(text)
    assert load_run_config([again]).config == config
    longer = config.model_copy(update={"seed": 4})
    assert SECRET not in dump_run_config(longer)


def test_a_default_is_written_where_the_environment_says_nothing(load: Callable[..., Loaded]) -> None:
    config = load({"runs_dir": "${oc.env:NOT_SET_AT_ALL,elsewhere}"}).config
    assert yaml.safe_load(dump_run_config(config))["runs_dir"] == "elsewhere"


def test_credentials_are_masked_and_must_be_given_again(load: Callable[..., Loaded], tmp_path: Path) -> None:
    arguments = {"project": "p", "settings": {"api_key": "0123456789"}, "notes": f"see {TOKEN}"}
    track = [{"kind": "mlflow", "tracking_uri": LOGIN}, {"kind": "wandb", "arguments": arguments}]
    config = load({"track": track}).config
    text = dump_run_config(config)
    for secret in ("a-literal-secret", "another-literal", "0123456789", TOKEN):
        assert secret in str(plain(config))
        assert secret not in text
        assert secret not in str(hidden(config))
    assert "https://***@host/a.jsonl?b=1&token=***" in text
    (again := tmp_path / "again.yaml").write_text(text)
    other = load_run_config([again]).config
    assert differences(other, config) == []
    check_secrets(config)
    with pytest.raises(UserError, match=r"track\[0\].tracking_uri: has \*\*\* in place of a secret") as raised:
        check_secrets(other)
    assert len(raised.value.problems) == 2


def test_no_key_of_a_run_file_is_taken_for_a_secret() -> None:
    assert [one.path for one in walk() if is_secret(one.name)] == []
    for name in ("pad_token", "token_ids", "tokens", "eos_token", "key", "tokenizer"):
        assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (LOGIN, "https://***@host/a.jsonl?b=1&token=***"),
        ("s3://bucket/a@b and postgresql://u:p@h:1/d", "s3://bucket/a@b and postgresql://***@h:1/d"),
        (f"{TOKEN}, no such model", "***, no such model"),
        (
            "https://h/x?X-Amz-Credential=A&X-Amz-Signature=b&c=d",
            "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***&c=d",
        ),
        ("what is a token=1? &token=2", "what is a token=1? &token=2"),
        ("lost OUR-SECRET-VALUE here", "lost *** here"),
    ],
)
def test_messages_have_no_secrets(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setenv("MY_API_KEY", "OUR-SECRET-VALUE")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "what is a token")
    assert without_secrets(text) == shown
    assert "secret" not in one_line(OSError(text))


def test_a_dialects_files_keep_the_interpolation_and_their_copies_no_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTPUT_ROOT", f"/nowhere/{SECRET}")
    file = Path(__file__).parents[2] / "examples/vectorlm/config.yaml"
    loaded = load_run_config([file], [], Reading(dialect="vectorlm"))
    assert SECRET in str(plain(loaded.config))
    text = dump_run_config(loaded.config)
    assert SECRET not in text
    assert "${oc.env:OUTPUT_ROOT}" in text
    (again := tmp_path / "again.yaml").write_text(text)
    assert load_run_config([again]).config == loaded.config


def test_a_continued_run_needs_its_environment_variables_and_names_missing_ones(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORPUS_OF_OURS", str(write_corpus(tmp_path / f"corpus-{SECRET}")))
    data = {"sources": [{"kind": "text", "path": "${oc.env:CORPUS_OF_OURS}"}], "sequence_length": 32, "cache_dir": "c"}
    Path("run.yaml").write_text(yaml.safe_dump(run_values(name="it", data=data, train={"steps": 2})))
    code, _, err = command("train", "run.yaml")
    assert code == 0, err
    for name, content in contents(tmp_path / "runs/it").items():
        assert SECRET.encode() not in content, name
    assert command("train", "runs/it", "train.steps=3")[0] == 0
    monkeypatch.delenv("CORPUS_OF_OURS")
    code, _, err = command("train", "runs/it", "train.steps=4")
    assert code == 2
    assert "the environment variable CORPUS_OF_OURS is not set" in err
    assert "Traceback" not in err
    code, _, err = command("runs")
    assert (code, err) == (0, "")
