"""The door for Python: `import quintet`, its functions beside the commands, and the pages that show them."""

from __future__ import annotations

import doctest
import inspect
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet import api
from quintet.evaluate import language_model
from quintet.libraries import is_installed

REPOSITORY = Path(__file__).resolve().parents[1]
SPEED = re.compile(r"^(speed/|time/|system/)")
SECTIONS: dict[str, Any] = {
    "tokenizer": {"kind": "byte"},
    "sample": {"max_tokens": 8},
    "checkpoint": {"every": 2, "keep": 2},
}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(train: Callable[..., str]) -> quintet.Run:
    """A run of three steps that the command line has made."""
    return quintet.Run(train(model={}, **SECTIONS))


def test_importing_it_imports_nothing_else() -> None:
    loaded = "import sys; before = set(sys.modules); import quintet; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in found} - sys.stdlib_module_names == {"quintet"}
    assert len(found) < 50, found


def test_what_there_is_is_listed_and_described() -> None:
    assert dir(quintet) == quintet.__all__ == sorted(quintet.__all__)
    for name in quintet.__all__:
        assert name.startswith("__") or inspect.getdoc(getattr(quintet, name)), name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        quintet.trian  # noqa: B018


def test_functions_with_the_name_of_a_package_stay_functions() -> None:
    show = "import sys, quintet, quintet.plan, quintet.train.intervals as intervals"
    show += "; print(intervals, sys.modules['quintet.plan'])"
    show += "".join(f"; print(quintet.{name}.__name__, quintet.{name}.__doc__[:5])" for name in ("train", "plan"))
    found = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    modules, *functions = found.splitlines()
    assert "module 'quintet.train.intervals'" in modules
    assert "module 'quintet.plan'" in modules
    assert functions == [f"{name} {getattr(api, name).__doc__[:5]}" for name in ("train", "plan")]


def test_a_config_is_that_of_the_command_line(run: quintet.Run) -> None:
    config = quintet.load_config("tiny.yaml", {"train.steps": 5, "name": "o'clock: #1", "data.validation": 0.1})
    assert (config.train.steps, config.name, config.data.validation) == (5, "o'clock: #1", 0.1)
    assert quintet.load_config(["tiny.yaml"], ["train.steps=5"]).train.steps == 5
    assert quintet.load_config(run.folder) == run.config == quintet.load_config("tiny.yaml")
    with pytest.raises(quintet.UserError, match=r"command line.*train\.stesp.*did you mean.*steps"):
        quintet.load_config("tiny.yaml", {"train.stesp": 5})


def test_a_text_by_itself_is_one_of_several() -> None:
    example = Path(__file__).parents[1] / "examples/quickstart.yaml"
    assert quintet.load_config(example, "train.steps=70").train.steps == 70
    assert quintet.load_config(str(example), ["train.steps=70"]) == quintet.load_config([example], {"train.steps": 70})
    with pytest.raises(quintet.UserError, match="lr"):
        quintet.load_config(example, "lr")


def test_check_finds_what_the_command_finds(run: quintet.Run, command: Command) -> None:
    _, out, _ = command("check", "tiny.yaml")
    assert f"{quintet.check(quintet.load_config('tiny.yaml'))}\n" == out
    wrong = quintet.load_config("tiny.yaml", {"data.sources": [{"kind": "text", "path": "nowhere"}]})
    assert "not on this machine: " in str(quintet.check(wrong))
    _, _, err = command("check", "tiny.yaml", "data.sources=[{kind: text, path: nowhere}]", "--strict")
    with pytest.raises(quintet.UserError) as refused:
        quintet.check(wrong, strict=True)
    assert [f"error: {one}" for one in refused.value.problems] == err.splitlines()  # pyright: ignore


def test_plan_and_prepare_say_what_the_commands_say(run: quintet.Run, command: Command) -> None:
    config = quintet.load_config("tiny.yaml")
    _, out, _ = command("plan", "tiny.yaml", "--devices", "2", "--json")
    assert quintet.plan(config, devices=2).values() == json.loads(out)
    prepared = quintet.prepare(config, quiet=True)
    _, out, _ = command("prepare", "tiny.yaml")
    assert f"training: {prepared.train.tokens:,} tokens" in out
    parameters = sum(one.numel() for one in quintet.load(run).model.parameters())
    assert quintet.plan(config, devices=2).parameters == parameters


def contents(folder: Path) -> dict[str, Any]:
    """What a run folder holds, without speeds, times and its own name."""
    found: dict[str, Any] = {}
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = file.relative_to(folder).as_posix()
        if name == "metrics.jsonl":
            records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            found[name] = [{key: one for key, one in record.items() if not SPEED.match(key)} for record in records]
        elif name.endswith((".json", "run.yaml")):
            text = file.read_text("utf-8").replace(folder.name, "name")
            # torch gives each of its checkpoints an id, which is in one of the files that have a checksum.
            found[name] = re.sub(r'"(seconds|[a-z_]*time)": [\d.e-]+|"sha256": "\w+"', "", text)
        elif name != "report.html" and file.name != ".metadata":
            found[name] = file.read_bytes().replace(folder.name.encode(), b"name")
    return found


@pytest.mark.usefixtures("known_peak")
def test_a_run_of_a_script_is_that_of_the_command_line(run: quintet.Run) -> None:
    made = quintet.train(quintet.load_config("tiny.yaml", {"name": "made"}), quiet=True, report=False)
    ours, theirs = contents(made.folder), contents(run.folder)
    assert list(ours) == list(theirs)
    assert len([name for name in ours if "checkpoints/" in name]) > 2
    for name in ours:
        assert ours[name] == theirs[name], name
    assert (made.step, made.signal, made.checkpoints) == (3, None, [2, 3])
    again = quintet.train(quintet.load_config(made.folder, {"train.steps": 4}), quiet=True, report=False)
    assert (again.step, again.progress and again.progress.step) == (4, 4)


def test_metrics_are_those_that_were_written(run: quintet.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = {one["step"]: one["train/loss"] for one in records if "train/loss" in one}
    validation = next(one["validation/loss"] for one in records if "validation/loss" in one)
    if is_installed("pandas"):
        frame = run.metrics
        assert frame["train/loss"].to_dict() == losses
        assert frame["validation/loss"].dropna().to_dict() == {3: validation}
    monkeypatch.setattr("quintet.results.is_installed", lambda module: module != "pandas")
    rows = run.metrics
    assert {row["step"]: row["train/loss"] for row in rows} == losses
    assert rows[-1]["validation/loss"] == validation


def test_a_notebook_shows_the_curve(run: quintet.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    shown = run._repr_html_()
    assert "<svg" in shown
    assert f"step 3, validation loss {run.progress.validation_loss:.4f}" in shown  # pyright: ignore
    monkeypatch.setattr("quintet.results.is_installed", lambda module: False)
    assert "<svg" not in run._repr_html_()


def test_texts_are_those_of_the_command(run: quintet.Run, command: Command) -> None:
    model = quintet.load(run)
    _, out, _ = command("generate", "tiny", "--prompt", "the cat", "--max-tokens", "12", "--seed", "7")
    text = model.generate("the cat", max_tokens=12, seed=7)
    assert f"the cat{text}\n" == out
    assert "".join(model.stream("the cat", max_tokens=12, seed=7)) == text
    prompts = ["the", "a dog saw", ""]
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    _, out, _ = command("generate", "tiny", *asked, "--json", "--max-tokens", "12", "--seed", "7", "--batch-size", "2")
    told = [json.loads(line)["text"] for line in out.splitlines()]
    assert model.generate(prompts, batch_size=2, max_tokens=12, seed=7) == told
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(quintet.UserError, match="top_p: must be at most 1, found 2"):
        model.generate("the", top_p=2)


def test_losses_are_those_of_the_command(run: quintet.Run, command: Command) -> None:
    model = quintet.load(run)
    _, out, _ = command("evaluate", "tiny", "--json")
    told = json.loads(out)
    assert model.loss() == told["validation/loss"]
    assert model.bits_per_byte() == told["validation/bits_per_byte"]
    texts = ["the cat sat under the mat", "naïve dog"]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), "utf-8")
    _, out, _ = command("evaluate", "tiny", "--text", "texts.jsonl", "--json")
    told = json.loads(out)["all"]
    assert model.bits_per_byte(texts) == pytest.approx(told["bits_per_byte"], rel=1e-12)
    nats = told["bits_per_byte"] * math.log(2) * told["bytes"] / told["tokens"]
    assert model.loss(texts) == pytest.approx(nats, rel=1e-12)
    logits = model.logits([256, *b"the cat"]).log_softmax(-1)  # 256 ends the document before
    closed = -logits[:-1].gather(1, torch.tensor([*b"the cat"])[:, None]).mean().item()
    assert model.loss("the cat") == pytest.approx(closed, rel=1e-5)
    with pytest.raises(quintet.UserError, match="hold no token"):
        model.loss([])


def test_logits_are_those_of_the_exported_model(run: quintet.Run) -> None:
    transformers = pytest.importorskip("transformers")
    model = quintet.load(run.folder)
    assert model.export("exported").architecture == "LlamaForCausalLM"
    theirs = transformers.AutoModelForCausalLM.from_pretrained("exported").eval()
    ids = transformers.AutoTokenizer.from_pretrained("exported")("the cat sat", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = theirs(ids).logits
    torch.testing.assert_close(model.logits(ids), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.logits("the cat sat"), expected[0], rtol=1e-5, atol=1e-5)
    exported = quintet.load("exported")
    torch.testing.assert_close(exported.logits(ids), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(quintet.UserError, match="holds nothing out"):
        exported.loss()
    with pytest.raises(quintet.UserError, match="is no run"):
        exported.export("again")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [{"heads": 2}, {"heads": 4, "kv_heads": 2, "qk_norm": "head", "bias": True}])
def test_narrow_weights_give_the_same_bits_and_take_half_of_the_memory(
    train: Callable[..., str], tmp_path: Path, heads: dict[str, Any], tied: bool
) -> None:
    shape = {"layers": 3, "width": 32, "attention": heads, "tie_embeddings": tied}
    folder = train(model=shape, **SECTIONS)
    wide, narrow = (quintet.load(folder, precision="bf16", weights=weights) for weights in ("wide", "narrow"))
    assert torch.equal(wide.logits("import os"), narrow.logits("import os"))
    assert wide.generate("import", max_tokens=20, seed=3) == narrow.generate("import", max_tokens=20, seed=3)
    assert wide.loss() == narrow.loss()
    assert wide.loss(["def main(): pass"]) == narrow.loss(["def main(): pass"])
    kept = sum(one.nbytes for name, one in wide.model.named_parameters() if "norm" in name or "embedding" in name)
    halved = sum(one.nbytes for one in wide.model.parameters()) - kept
    assert sum(one.nbytes for one in narrow.model.parameters()) == kept + halved // 2
    for model, name in ((wide, "wide"), (narrow, "narrow")):
        model.export(tmp_path / name)
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("wide", "narrow")]
    assert written[0] == written[1]


@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_weights_of_a_byte_are_rounded_within_their_step(
    train: Callable[..., str], command: Command, tmp_path: Path, weights: Any
) -> None:
    folder = train(model={"layers": 2, "width": 32, "attention": {"heads": 2, "bias": True}}, **SECTIONS)
    wide, rounded = quintet.load(folder, precision="fp32"), quintet.load(folder, precision="fp32", weights=weights)
    layers = {name: one for name, one in wide.model.named_modules() if isinstance(one, torch.nn.Linear)}
    assert len(layers) >= 2 * 4
    for name, layer in layers.items():
        held = rounded.model.get_submodule(name)
        narrow, scales = held.weight, held.scale
        assert isinstance(narrow, torch.Tensor)
        assert isinstance(scales, torch.Tensor)
        scale = scales[:, None]
        found, exact = narrow.float() * scale, layer.weight.detach()
        assert narrow.element_size() == 1
        step = scale / 2 if weights == "int8" else exact.abs() / 16 + scale * 2**-10
        assert ((found - exact).abs() <= step * 1.0001).all()
        x = torch.randn(3, exact.shape[1])
        expected = torch.nn.functional.linear(x, found, layer.bias)
        torch.testing.assert_close(held(x), expected, rtol=1e-5, atol=1e-5)
    assert 0 < abs(wide.loss() - rounded.loss()) < 0.05
    for model, name in ((wide, "wide"), (rounded, "rounded")):
        model.export(tmp_path / name)
    assert (tmp_path / "wide/model.safetensors").read_bytes() == (tmp_path / "rounded/model.safetensors").read_bytes()
    code, out, error = command("evaluate", folder, "--weights", weights, "--precision", "fp32", "--json")
    assert code == 0, error
    assert json.loads(out)["validation/loss"] == rounded.loss()


def test_a_model_is_found_by_all_its_names(run: quintet.Run) -> None:
    latest, first = quintet.load("tiny"), quintet.load(run, 2)
    weights = first.model.state_dict()
    assert str(first) == f"{run.folder} at step 2"
    for other in (quintet.load(run.folder / "checkpoints/step-000002"), run.load(2)):
        assert all(torch.equal(one, weights[name]) for name, one in other.model.state_dict().items())
    assert str(latest) == f"{run.folder} at step 3"
    with pytest.raises(quintet.UserError, match="no run there"):
        quintet.load("nothing")


class Shown(doctest.OutputChecker):
    """Compares what is shown, but for its figures, which differ between machines."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        want, got = (re.sub(r"\d[\d,.e+-]*", "0", text) for text in (want, got))
        return super().check_output(want, got, optionflags | doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


def play(blocks: list[tuple[str, str]]) -> None:
    """Run the Python ``blocks`` one after the other in one namespace, and compare what each shows with its output."""
    names: dict[str, Any] = {}
    for code, expected in blocks:
        shown = StringIO()
        with redirect_stdout(shown):
            exec(compile(code, "page", "exec"), names)
        if expected:
            assert Shown().check_output(expected, shown.getvalue(), 0), f"{code}\n{shown.getvalue()}\n{expected}"


@pytest.mark.usefixtures("known_peak")
def test_the_guide_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    text = (REPOSITORY / "docs/guide/python.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```(?:\n+```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 6
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    play(blocks)


@pytest.mark.slow
@pytest.mark.usefixtures("known_peak")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = REPOSITORY / "examples/notebook.ipynb"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    if is_installed("nbclient"):
        import nbformat  # pyright: ignore
        from nbclient import NotebookClient  # pyright: ignore

        NotebookClient(nbformat.read(file, 4), resources={"metadata": {"path": str(tmp_path)}}).execute()
        return
    cells = json.loads(file.read_text("utf-8"))["cells"]
    play([("".join(cell["source"]), "") for cell in cells if cell["cell_type"] == "code"])


def test_examples_in_docstrings_are_true(run: quintet.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path.cwd() / "examples").symlink_to(REPOSITORY / "examples")
    model = quintet.load(run)
    tried = 0
    for module in (api, language_model):
        for test in doctest.DocTestFinder().find(module, extraglobs={"getfixture": lambda name: model}):
            result = doctest.DocTestRunner(Shown()).run(test)
            assert not result.failed, test.name
            tried += result.attempted
    assert tried >= 8
