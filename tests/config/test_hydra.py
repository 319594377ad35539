"""Files with a defaults list have the values of Hydra's `compose`, each with its file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tests.helpers import refused

from quintet.config.hydra import Composed, apply_hydra_overrides, compose
from quintet.config.interpolate import resolve
from quintet.config.keypath import walk
from quintet.config.load import load_run_config
from quintet.config.read import read_document
from quintet.errors import UserError

FILES = {
    "train": """
        defaults:
          - model: small
          - optimizer: adamw
          - lr@schedule.first: warm
          - /paths/local
          - optional tasks: missing
          - _self_
        run: ${model.size}-${optimizer.lr}
        model: {heads: 4}
        steps: 10
        list: [1, 2]
        hydra: {run: {dir: elsewhere}}
        """,
    "model/small": "size: 1\nheads: 2\nlist: [1, 2, 3]\n",
    "model/large": "defaults: [small, _self_]\nsize: 9\n",
    "optimizer/adamw": "lr: 0.1\nbetas: {one: 0.9}\n",
    "optimizer/sgd": "lr: 0.5\n",
    "lr/warm": "steps: 7\n",
    "paths/local": "# @package _global_\nroots:\n  data: here\n",
    "experiment/wide": "# @package _global_\ndefaults:\n  - override /model: large\nsteps: 99\nmodel: {heads: 8}\n",
    "nested/inner": "a: 1\n",
    "alone": "defaults: [_self_]\na: 1\nhydra: {run: {dir: elsewhere}}\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import textwrap

    for name, text in FILES.items():
        file = tmp_path / f"conf/{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip("\n"))
    return tmp_path / "conf"


def composed_file(file: Path, overrides: list[str], folder: Path | None = None) -> Composed:
    return compose(read_document(file), file, overrides, folder)


def ours(folder: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    composed = composed_file(folder / f"{name}.yaml", overrides, folder)
    left = [text for text in overrides if text not in composed.used]
    document = apply_hydra_overrides(composed.document, left)
    assert document.provenance.keys() == {path for path, _ in walk(document.values)}
    return resolve(document, lambda values: values)


def theirs(folder: Path, name: str, overrides: list[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(folder), version_base=None):
        return OmegaConf.to_container(hydra_compose(name, overrides), resolve=True)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("train", []),
        ("train", ["model=large"]),
        ("train", ["optimizer=sgd", "optimizer.lr=0.25", "steps=3"]),
        ("train", ["+experiment=wide"]),
        ("train", ["+experiment=wide", "model.heads=16"]),
        ("train", ["~optimizer.betas", "++extra.deep=[1,{a: b}]", "+new='a b'"]),
        ("train", ["~optimizer", "run=x"]),
        ("alone", []),
        ("nested/inner", []),
        ("nested/inner", ["nested.a=5"]),
    ],
)
def test_the_composition_is_hydras(folder: Path, name: str, overrides: list[str]) -> None:
    assert ours(folder, name, overrides) == theirs(folder, name, overrides)


def test_each_value_knows_its_file_and_line(folder: Path) -> None:
    composed = composed_file(folder / "train.yaml", ["model=large"], folder).document
    places = {path: str(place) for path, place in composed.provenance.items()}
    assert places["model", "size"] == f"{folder}/model/large.yaml:2"
    assert places["model", "heads"] == f"{folder}/train.yaml:9"
    assert places["schedule", "first", "steps"] == f"{folder}/lr/warm.yaml:1"
    assert places["roots", "data"] == f"{folder}/paths/local.yaml:3"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=huge"], "huge"),
        (["steps=1,2"], "^command line: steps: is a sweep"),
        (["~optimizer.betta"], "^command line: optimizer.betta: .* is not there"),
        (["steps=[1"], r"^command line: 'steps=\[1' is no override of Hydra's"),
        (["model=small,large"], "sweep"),
        (["+steps=3"], r"^command line: steps: is there already, and \+ adds"),
        (["~steps=3"], "^command line: steps: is to be deleted where it is 3, and is 10"),
        (["run.x=3"], "set it as a whole"),
        (["list={a: 1}"], "a list in one place and a section in the other"),
        (["a@b=3"], "no such group"),
        (["hydra.run.dir=x"], "Hydra's jobs"),
    ],
)
def test_what_cannot_be_composed_is_refused_in_one_line(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ours(folder, "train", overrides)
    assert len(error.value.problems) == 1
    assert "\n" not in error.value.problems[0]


def test_a_missing_file_of_the_list_names_the_line(folder: Path) -> None:
    (folder / "broken.yaml").write_text("steps: 1\ndefaults:\n  - model: gone\n")
    with pytest.raises(UserError, match=r"broken.yaml:2: defaults: .*model/gone"):
        composed_file(folder / "broken.yaml", [])


def test_what_is_merged_into_a_reference_keeps_the_lines_of_both(folder: Path) -> None:
    (folder / "library.yaml").write_text("size: 1\nheads: 2\n")
    (folder / "one.yaml").write_text(
        "defaults: [library@lib.small, empty, _self_, later]\nlr: 0.5\nmodel: ${lib.small}\n"
    )
    (folder / "later.yaml").write_text("lr: ???\nmodel:\n  heads: 8\n")
    (folder / "empty.yaml").write_text("# nothing\n")
    document = composed_file(folder / "one.yaml", [], folder).document
    assert document.values["model"] == {"size": 1, "heads": 8}
    assert document.values["lr"] == 0.5
    places = {path: str(place) for path, place in document.provenance.items()}
    assert places["model", "size"] == f"{folder}/library.yaml:1"
    assert places["model", "heads"] == f"{folder}/later.yaml:3"
    assert places["lr",] == f"{folder}/one.yaml:2"


def test_a_section_given_on_the_command_line_is_merged_and_its_keys_are_the_command_lines(folder: Path) -> None:
    composed = composed_file(folder / "train.yaml", [], folder)
    document = apply_hydra_overrides(composed.document, ["optimizer={lr: 0.2}"])
    assert document.values["optimizer"] == {"lr": 0.2, "betas": {"one": 0.9}}
    assert document.provenance["optimizer", "lr"].file is None
    assert str(document.provenance["optimizer", "betas", "one"]) == f"{folder}/optimizer/adamw.yaml:2"


def test_a_file_that_is_a_list_is_the_value_of_its_package(folder: Path) -> None:
    files = {"sizes/few": "- 1\n- {a: 2}\n", "sizes/many": "[3, 4]\n", "sizes/top": "# @package _global_\n- 5\n"}
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    (folder / "lists.yaml").write_text("defaults: [sizes: few, sizes@deep.inner: many, _self_]\nb: 1\n")
    document = composed_file(folder / "lists.yaml", [], folder).document
    assert document.values == {"sizes": [1, {"a": 2}], "deep": {"inner": [3, 4]}, "b": 1}
    places = {path: str(place) for path, place in document.provenance.items()}
    assert places["sizes", 1, "a"] == f"{folder}/sizes/few.yaml:2"
    assert places["deep", "inner", 0] == f"{folder}/sizes/many.yaml:1"
    with pytest.raises(UserError, match=r"sizes/top.yaml:2: a run file is a mapping .*, this one is a list"):
        composed_file(folder / "lists.yaml", ["sizes=top"], folder)


def test_a_broken_file_of_the_defaults_list_is_named_with_its_line(folder: Path) -> None:
    (folder / "model/broken.yaml").write_text("heads: 4\nwidth 8\nlayers: 2\n")
    told = refused(composed_file, folder / "train.yaml", ["model=broken"], folder)
    assert re.match(rf"{re.escape(str(folder / 'model/broken.yaml'))}:\d: ", told), told


@pytest.mark.parametrize("entry", ['{"": x}', '{"optional ": a}', "[]", '"\\0"', "x" * 300])
def test_a_defaults_list_that_hydra_stumbles_over_is_refused_in_one_line(tmp_path: Path, entry: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"defaults: [{entry}]\ntrain: {{steps: 1}}\n")
    with pytest.raises(UserError, match=r"run.yaml:1: defaults: .*\(config folder: ") as raised:
        load_run_config([file])
    assert len(str(raised.value).splitlines()) == 1
