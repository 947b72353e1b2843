"""The suite's own machinery, on small notebooks written here; the real ones run in test_notebooks."""

import base64
import html.parser
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fer_utils import runs, suite, training
from fer_utils.faces import Splits
from fer_utils.recipe import Recipe, RecipeError
from fer_utils.runs import Run, RunError

PARAMETERS = """# parameters: what the suite may set
data: str = "auto"  # faces
recipe: str = "fast"  # recipe
epochs: int = None  # epochs
run: str = None  # the run
out: str = None  # where to make one
"""


class Fetches(html.parser.HTMLParser):
    """Every address that a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._raw = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "background") or (
                name == "href" and tag in ("link", "base", "use")
            ):
                self.found += [value] if value and not value.startswith(("data:", "#")) else []
            if name == "style" and value:
                self.handle_css(value)
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "style":
            self.handle_css(data)
        elif self._raw == "script":
            self.found += re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+/[^\s\"'`]*", data)

    def handle_css(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        addresses = re.findall(r"url\(\s*[\"']?([^\"')]+)", text) + re.findall(r"@import\s+[\"']([^\"']+)", text)
        self.found += [address for address in addresses if not address.startswith(("data:", "#"))]


def fetches(page: str) -> list[str]:
    parser = Fetches()
    parser.feed(page)
    return parser.found


def write(path: Path, *cells: nbformat.NotebookNode) -> Path:
    notebook = new_notebook(cells=list(cells))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def parameters(source: str = PARAMETERS) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": ["parameters"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two notebooks: the first leaves what it was given in the run, the second reads it."""
    write(
        tmp_path / "notebooks" / "1_first.ipynb",
        new_markdown_cell("# First"),
        parameters(PARAMETERS + "lr: float = None  # rate\n"),
        new_markdown_cell("## What it was given"),
        new_code_cell(
            "import json, pathlib\n"
            "given = dict(data=data, recipe=recipe, epochs=epochs, lr=lr, cwd=str(pathlib.Path.cwd()))\n"
            "pathlib.Path(run, 'given.json').write_text(json.dumps(given))\n"
            "print('epoch 1 of 1')"
        ),
    )
    write(
        tmp_path / "notebooks" / "2_second.ipynb",
        new_markdown_cell("# Second"),
        parameters("# parameters: the run only\nrun: str = None  # the run\n"),
        new_code_cell("import json, pathlib\ngiven = json.loads(pathlib.Path(run, 'given.json').read_text())"),
        new_code_cell("if given['data'] == 'kaggle':\n    raise ValueError('no such face')\nprint('seen')"),
    )
    return tmp_path / "notebooks"


def told(lines: list[str]) -> str:
    return "\n".join(lines)


def test_notebooks_run_in_order_on_one_run_in_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other data is about, and is not what the suite takes.
    monkeypatch.setenv("FER_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    run = suite.run_notebooks(
        out="here", parameters={"lr": "1e-3"}, names=("1_first", "2_second"), folder=folder, log=lines.append
    )
    assert run.path == tmp_path / "here"
    given = json.loads(run.file("given.json").read_text())
    assert given == {"data": "synthetic", "recipe": "fast", "epochs": 5, "lr": "1e-3", "cwd": str(tmp_path)}
    seen = nbformat.read(run.file("2_second.ipynb"), 4).cells[-1].outputs[0].text
    assert seen == "seen\n"
    assert all(run.has(f"{name}.html") for name in ("1_first", "2_second"))
    # What is told: each notebook, its cells by heading, and what the notebook prints.
    assert re.search(
        r"\[1/2\] 1_first.*What it was given .1 of 2 cells done..*epoch 1 of 1.*\[2/2\] 2_second",
        told(lines),
        re.DOTALL,
    )
    assert all(re.match(r" *\d+:\d\d  ", line) for line in lines)
    # What differs from the recipe is part of what is told.
    assert re.search(r"set: lr=1e-3$", told(lines), re.MULTILINE)
    assert lines[0].endswith("2 notebooks, data synthetic, recipe fast, 5 epochs")


def test_what_is_set_is_what_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    lines: list[str] = []
    given = {"data": "synthetic:400", "recipe": "narrow", "epochs": "1"}
    run = suite.run_notebooks(parameters=given, names=("1_first",), folder=folder, log=lines.append)
    assert lines[0].endswith("1 notebooks, data synthetic:400, recipe narrow, 1 epoch")
    assert run.path.name.startswith("suite-synthetic-400-narrow-")
    assert json.loads(run.file("given.json").read_text())["recipe"] == "narrow"


def test_a_failing_notebook_stops_the_suite_and_says_where(folder: Path, tmp_path: Path) -> None:
    write(folder / "3_third.ipynb", parameters("# parameters: none\n"), new_code_cell("1"))
    with pytest.raises(suite.SuiteError) as caught:
        suite.run_notebooks(
            "kaggle", out=tmp_path / "run", names=("1_first", "2_second", "3_third"), folder=folder, log=lambda _: None
        )
    partly = tmp_path / "run" / "2_second.ipynb"
    assert "2_second.ipynb failed in cell" in str(caught.value)
    assert "ValueError: no such face" in str(caught.value)
    assert str(partly) in str(caught.value)
    assert "\x1b" not in str(caught.value)
    cells = nbformat.read(partly, 4).cells
    assert any("no such face" in str(cell.get("outputs")) for cell in cells)
    assert not (tmp_path / "run" / "3_third.ipynb").exists()


def test_a_kernel_that_dies_is_told(folder: Path, tmp_path: Path) -> None:
    write(folder / "1_first.ipynb", parameters(), new_code_cell("import os\nos._exit(9)"))
    with pytest.raises(suite.SuiteError, match=r"1_first\.ipynb: its kernel died"):
        suite.run_notebooks(out=tmp_path / "run", names=("1_first",), folder=folder, log=lambda _: None)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lerning_rate": "1"}, "unknown parameter 'lerning_rate'"),
        ({"epoch": "1"}, "did you mean epochs"),
        ({"lr": "fast"}, "parameter lr: expected a number, got 'fast'"),
        ({"lr": "-1"}, "lr"),
        ({"recipe": "fsat"}, "did you mean fast"),
        ({"run": "elsewhere"}, "--out"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    folder: Path, tmp_path: Path, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        suite.run_notebooks(out=tmp_path / "run", parameters=parameters, names=("1_first",), folder=folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tta": "foo"}, "parameter tta: expected one of: none, flip, ten_crop, all, got 'foo'"),
        ({"detect": "maybe"}, "parameter detect: expected one of: auto, yes, no"),
        ({"on_bad": "ignore"}, "parameter on_bad: expected one of: raise, skip"),
        ({"processes": "two"}, "parameter processes: expected a whole number"),
        ({"epochs": "0"}, "expected at least 1"),
    ],
)
def test_what_a_later_notebook_would_refuse_is_told_before_the_first_runs(
    tmp_path: Path, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        suite.run_notebooks("synthetic:300", out=tmp_path / "run", parameters=parameters)
    assert not (tmp_path / "run").exists()


def test_another_training_than_the_run_holds_is_told_before_the_first_runs(
    tiny_recipe: Recipe, synthetic_splits: Splits, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_recipe.dump())
    run = Run.create(tmp_path / "run")
    training.fit(tiny_recipe, synthetic_splits, run, device="cpu", log=lambda _: None)
    before = sorted(run.path.iterdir())
    epochs = tiny_recipe.epochs + 1
    with pytest.raises(RunError, match=rf"another recipe \(epochs {tiny_recipe.epochs} there, {epochs} here\)"):
        suite.run_notebooks("synthetic:600", epochs=epochs, recipe=str(tmp_path / "tiny.yaml"), out=run.path)
    for mistake, message in (
        ({"resume": "false"}, "holds a training already"),
        ({"processes": "0"}, "processes: expected at least 1"),
    ):
        with pytest.raises((RunError, training.TrainingError), match=message):
            suite.run_notebooks(
                "synthetic:600",
                epochs=tiny_recipe.epochs,
                recipe=str(tmp_path / "tiny.yaml"),
                out=run.path,
                parameters=mistake,
            )
    with pytest.raises(RunError, match="resume true continues a training"):
        suite.run_notebooks("synthetic:600", parameters={"resume": "true"})
    assert sorted(run.path.iterdir()) == before


def test_other_faces_than_those_of_a_training_are_told_before_the_first_runs(
    tiny_recipe: Recipe, synthetic_splits: Splits, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_recipe.dump())
    run = Run.create(tmp_path / "run")
    training.fit(tiny_recipe, synthetic_splits, run, device="cpu", log=lambda _: None)
    run.file("01_explore.ipynb").write_text("as it was executed")
    before = {path: path.stat().st_mtime_ns for path in [*tmp_path.iterdir(), *run.path.iterdir()]}
    given = {"epochs": tiny_recipe.epochs, "recipe": str(tmp_path / "tiny.yaml")}
    with pytest.raises(RunError, match="run was trained on other faces or another cut of them"):
        suite.run_notebooks("synthetic:500", out=run.path, **given)
    # Nor may they be those of a teacher: it would give this training's test faces away.
    with pytest.raises(training.TrainingError, match=f"teacher {run.path} was trained on other faces"):
        suite.run_notebooks("synthetic:500", out=tmp_path / "new", parameters={"teacher": str(run.path)}, **given)
    assert {path: path.stat().st_mtime_ns for path in [*tmp_path.iterdir(), *run.path.iterdir()]} == before
    # The same faces go on in it.
    same = {"data": "synthetic:600", "out": run.path, "folder": folder, "names": ("1_first",)}
    assert suite.run_notebooks(**same, **given, log=lambda _: None).has("given.json")


def test_a_directory_that_holds_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is no run"):
        suite.run_notebooks(out=tmp_path, names=("1_first",), folder=folder, log=lambda _: None)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_missing_notebook_is_told(tmp_path: Path) -> None:
    with pytest.raises(suite.SuiteError, match=r"there is no notebook .*1_first\.ipynb"):
        suite.run_notebooks(out=tmp_path / "run", names=("1_first",), folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "lr"], "--set takes NAME=VALUE"),
        (["--set", "no_such=1"], "unknown parameter 'no_such'"),
        (["--epochs", "many"], "parameter epochs: expected a whole number"),
        (["--recipe", "no_such"], "unknown recipe 'no_such'"),
        (["--data", "/no/such/faces", "--out", "OUT"], "/no/such/faces is not there. Expected"),
        (["--set", "device=cuda:99", "--out", "OUT"], "cuda:99"),
    ],
)
def test_the_command_line_tells_mistakes_with_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    try:
        code = suite.main([str(out) if word == "OUT" else word for word in arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


# -- pages --

_PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


def test_a_page_fetches_nothing_and_keeps_code_pictures_and_tables(tmp_path: Path) -> None:
    widget = {"state": {}, "version_major": 2, "version_minor": 0}
    badge = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/nb)"
    picture = new_output("display_data", data={"image/png": _PNG, "text/plain": "figure"})
    notebook = write(
        tmp_path / "page.ipynb",
        new_markdown_cell(f"# Faces\n\n{badge}\n\n<img src='https://pictures.example/a.png' width=3> and $x^2$"),
        new_code_cell(
            "secret_setup = 1", metadata={"tags": ["remove_input"]}, outputs=[new_output("stream", text="told")]
        ),
        new_code_cell("shown = 2", outputs=[picture]),
        new_code_cell("graph", outputs=[new_output("display_data", data={"text/vnd.mermaid": "graph TD; A-->B"})]),
    )
    node = nbformat.read(notebook, 4)
    node.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": widget}
    nbformat.write(node, notebook)
    page = suite.render(notebook)
    assert fetches(page) == []
    text = re.sub(r"<[^>]+>", "", page)
    assert "Open in Colab" in text
    assert "told" in text
    assert "shown" in text
    assert "secret_setup" not in text
    assert _PNG in page


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/require.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/a.css">',
        "<img src=http://pictures.example/a.png>",
        "<style>@import 'https://fonts.example/a.css';</style>",
        "<style>p { background: url(https://fonts.example/a.woff) }</style>",
        '<p style="background: url(a.png)">',
        '<script>load("https://cdn.example/mathjax/latest.js")</script>',
    ],
)
def test_the_check_finds_what_a_page_would_fetch(page: str) -> None:
    assert fetches(page)
