"""The notebooks: how they are committed, and that they run in order, from both directories, to the end."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import skimage.data
import yaml
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from test_suite import fetches

from fer_utils.files import ROOT
from fer_utils.recipe import Recipe
from fer_utils.runs import Run
from fer_utils.sources import synthetic
from fer_utils.suite import NOTEBOOKS, SUITE

ALL = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
each = pytest.mark.parametrize("name", ALL)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def declared(name: str) -> list[ast.AnnAssign]:
    (cell,) = (cell for cell in code(name) if "parameters" in cell.metadata.get("tags", []))
    nodes = ast.parse(cell.source).body
    assert all(isinstance(node, ast.AnnAssign) for node in nodes), "each parameter is written `name: type = literal`"
    return [node for node in nodes if isinstance(node, ast.AnnAssign)]


# -- as they are committed --


def test_the_notebooks_of_the_suite_are_there() -> None:
    assert set(SUITE) <= set(ALL)


@each
def test_committed_without_outputs_and_with_the_kernel_of_any_python(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5), "cells want ids"
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in code(name):
        assert cell.outputs == [], cell.source
        assert cell.execution_count is None, cell.source
        assert set(cell.metadata) <= {"tags"}, cell.source


@each
def test_the_parameters_can_be_read_by_papermill_and_agree_with_the_recipe(name: str) -> None:
    nodes = declared(name)
    inspected = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
    assert list(inspected) == [node.target.id for node in nodes if isinstance(node.target, ast.Name)]
    for node, (parameter, told) in zip(nodes, inspected.items(), strict=True):
        assert node.value is not None
        default = ast.literal_eval(node.value)
        assert told["inferred_type_name"] in ("int", "float", "bool", "str"), parameter
        assert told["help"], f"{parameter} has no comment"
        if parameter in Recipe.model_fields:
            assert default is None, f"{parameter}: None is 'as the recipe says'"
            assert told["inferred_type_name"] == as_text(Recipe.model_fields[parameter].annotation), parameter
        elif default is not None:
            assert type(default).__name__ == told["inferred_type_name"], parameter


def as_text(kind: Any) -> str:
    """The type by which a notebook declares a field of the recipe: what is no number or truth value is text."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    (option,) = (option for option in options if option is not type(None))
    if get_origin(option) is Literal:
        return type(get_args(option)[0]).__name__
    return option.__name__ if option in (int, float, bool) else "str"


@each
def test_the_cells_stand_in_the_usual_order(name: str) -> None:
    title, setup, parameters, check, *_ = read(name).cells
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert "remove_input" in setup.metadata.tags
    assert '"google.colab" in sys.modules' in setup.source
    assert parameters.metadata.tags == ["parameters"]
    assert parameters.source.startswith("# parameters:")
    assert "check_parameters(In, globals()" in check.source
    assert "torch" not in check.source


@each
def test_cells_are_at_most_15_lines(name: str) -> None:
    for cell in code(name):
        tags = cell.metadata.get("tags", [])
        lines = [line for line in cell.source.splitlines() if not re.match(r"import |from |%|$", line)]
        if "parameters" not in tags:
            # Cells without a visible input write the sentence that reads a figure, and are no code that one reads.
            assert len(lines) <= (20 if "remove_input" in tags else 15), cell.source
            assert len(cell.source.splitlines()) <= 20, cell.source


@each
def test_every_address_of_the_repository_is_the_one_in_pyproject(name: str) -> None:
    source = "\n".join(cell.source for cell in read(name).cells)
    path = REPOSITORY.removeprefix("https://github.com/")
    badges = re.findall(r"https://colab\.research\.google\.com/github/([^)\s\"]+)", source)
    assert badges == [f"{path}/blob/main/notebooks/{name}.ipynb"]
    assert set(re.findall(r"https://github\.com/[\w.-]+/[\w-]+", source)) <= {REPOSITORY}
    assert f"git+{REPOSITORY}" in read(name).cells[1].source


def test_every_field_of_a_recipe_is_a_parameter_of_03() -> None:
    told = {node.target.id for node in declared("03_train") if isinstance(node.target, ast.Name)}
    assert set(Recipe.model_fields) - told == {"name", "description"}


@each
def test_the_title_cell_tells_a_papermill_command_that_works(name: str) -> None:
    commands = re.findall(r"^\s*(papermill .+)$", read(name).cells[0].source, flags=re.MULTILINE)
    assert commands, "the first cell gives the exact papermill command"
    known = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
    for command in commands:
        assert command.startswith(f"papermill notebooks/{name}.ipynb ")
        assert set(re.findall(r" -[pr] (\S+)", command)) <= set(known)


# -- as they run --


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one's own that trains in a moment."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text("extends: fast\nwidth: 0.125\nbatch_size: 64\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def suite_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The suite from the repository's root: its run and what it printed."""
    out = tmp_path_factory.mktemp("suite") / "run"
    command = [
        sys.executable,
        "-m",
        "fer_utils.suite",
        "--data",
        "synthetic:600",
        "--epochs",
        "2",
        "--recipe",
        str(tiny),
    ]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return Run.open(out), done.stdout


def complete(run: Run, epochs: int, name: str = "tiny") -> None:
    """What a run holds after 01 to 04."""
    assert run.recipe.name == name
    assert list(run.history().epoch) == list(range(1, epochs + 1))
    for file in ("audit.json", "env.json", "best.ckpt", "last.ckpt", "metrics.json", "predictions.parquet"):
        assert run.has(file), file
    assert len(list((run.path / "figures").glob("*.png"))) >= 10
    faces = run.read_json("env.json")["data"]["faces"]
    predictions = pd.read_parquet(run.file("predictions.parquet"))
    assert predictions["split"].value_counts()["test"] == faces["test"]


def test_the_suite_runs_from_the_root(suite_run: tuple[Run, str]) -> None:
    run, printed = suite_run
    complete(run, epochs=2)
    assert run.read_json("env.json")["data"]["synthetic"]
    # What is being done, all along: notebooks, cells, the training's line per epoch.
    for number, name in enumerate(SUITE, start=1):
        assert f"[{number}/{len(SUITE)}] {name}" in printed
    assert re.search(r"\(\d+ of \d+ cells done\)", printed)
    assert len(re.findall(r"epoch +\d+", printed)) >= 2
    # And in the end where the report is.
    assert printed.splitlines()[-1] == f"report: {run.file('report.html')}"


def test_no_page_of_the_suite_fetches_anything(suite_run: tuple[Run, str]) -> None:
    run, _ = suite_run
    pages = sorted(run.path.glob("*.html"))
    assert [page.stem for page in pages] == [*SUITE, "report"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert fetches(text) == [], page.name
        assert "data:image/png;base64," in text, page.name


def test_synthetic_faces_are_called_so_on_every_page(suite_run: tuple[Run, str]) -> None:
    run, _ = suite_run
    pages = sorted(run.path.glob("0*.html"))
    assert len(pages) == len(SUITE)
    for page in pages:
        # What a notebook says, not the comments in its cells.
        said = "This network has only seen drawn faces." if page.name.startswith("05") else "A generator drew them"
        assert said in re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")), page.name


def test_no_cell_of_the_suite_warns(suite_run: tuple[Run, str]) -> None:
    run, _ = suite_run
    for name in SUITE:
        for cell in nbformat.read(run.file(f"{name}.ipynb"), 4).cells:
            for output in cell.get("outputs", []):
                assert output.get("name") != "stderr", f"{name}: {output.text}"


def test_each_notebook_runs_from_its_own_directory_with_every_way_to_give_parameters(
    tiny: Path, tmp_path: Path
) -> None:
    run, values = tmp_path / "run", tmp_path / "values.yaml"
    # Figures that an earlier call left, of other faces or another recipe, are not taken for those of this one.
    figures = Run.create(run).path / "figures"
    figures.mkdir()
    for name in ("near_copies", "augment_mixed", "mine"):
        (figures / f"{name}.png").write_bytes(b"of an earlier call")
    values.write_text(yaml.safe_dump({"run": str(run), "data": "synthetic:600", "recipe": str(tiny), "epochs": 1}))
    ways = {
        "01_explore": ["-p", "data", "synthetic:600", "-p", "out", str(run), "-p", "near", "false"],
        "02_augment": ["-y", f'{{data: "synthetic:600", run: "{run}", recipe: "{tiny}"}}'],
        "03_train": ["-f", str(values)],
        "04_evaluate": ["-r", "run", str(run), "-p", "train_matrix", "true"],
        "05_predict": ["-p", "run", str(run)],
    }
    assert tuple(ways) == SUITE
    for name, parameters in ways.items():
        command = [sys.executable, "-m", "papermill", f"{name}.ipynb", str(tmp_path / "out.ipynb"), "--no-progress-bar"]
        done = subprocess.run(
            [*command, *parameters], cwd=NOTEBOOKS, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    complete(Run.open(run), epochs=1)
    assert (figures / "confusion_matrix_train.png").is_file()
    assert [path.stem for path in figures.iterdir() if path.read_bytes() == b"of an earlier call"] == ["mine"]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        *(
            (name, {"dta": "synthetic"} if name != "04_evaluate" else {"rnu": "a"}, "unknown parameter")
            for name in SUITE
        ),
        ("03_train", {"epochs": "many"}, "parameter epochs: expected a whole number"),
        ("03_train", {"learning_rate": 0.1}, "unknown parameter 'learning_rate'"),
        ("03_train", {"recipe": "fsat"}, "did you mean fast"),
        ("01_explore", {"on_bad": "ignore"}, "one of: raise, skip"),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported_or_data_is_read(
    name: str, parameters: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A torch that cannot be imported, and no data: whichever is touched first would be the error.
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FER_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", tmp_path / "out.ipynb", parameters, progress_bar=False)
    assert caught.value.ename == "RecipeError"
    assert message in caught.value.evalue
    assert next(iter(parameters)) in caught.value.evalue or message.startswith("did you mean")


@pytest.mark.parametrize("kind", ["folder", "parquet", "csv"])
def test_05_answers_folders_and_tables(kind: str, suite_run: tuple[Run, str], tmp_path: Path) -> None:
    faces = synthetic.generate(600).test.images[:5]
    if kind == "folder":
        source, expected = tmp_path / "folder", 7
        source.mkdir()
        for number, face in enumerate(faces):
            Image.fromarray(face).save(source / f"{number}.png")
        shutil.copy(Path(skimage.data.__file__).parent / "astronaut.png", source)
        (source / "<b>.jpg").write_text("no picture")
    else:
        source, expected = tmp_path / f"df_test.{kind}", 5
        rows = faces.reshape(5, -1)
        if kind == "csv":
            pd.DataFrame({"pixels": [" ".join(map(str, row)) for row in rows]}).to_csv(source, index=False)
        else:
            pd.DataFrame({"image": [row.astype(float).tolist() for row in rows]}).to_parquet(source)
    out = tmp_path / "out"
    given = {"input": str(source), "run": str(suite_run[0].path), "out": str(out)}
    done = papermill.execute_notebook(NOTEBOOKS / "05_predict.ipynb", tmp_path / "05.ipynb", given, progress_bar=False)
    table = pd.read_parquet(out / "predictions.parquet")
    numbers = np.load(out / "test_prediction.npy")
    assert len(numbers) == expected
    assert table["error"].ne("").sum() == (kind == "folder")
    assert np.isin(numbers, range(-1, 7)).all()
    assert (numbers == -1).sum() == (kind == "folder")
    assert {path.stem for path in out.glob("*.png")} == {*(f"picture_{n}" for n in range(1, 5)), "faces", "emotions"}
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    tables = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    # A file's name is text, whatever it looks like: in the table, and in the one of what could not be read.
    assert tables.count("&lt;b&gt;.jpg") == 2 * (kind == "folder")
    assert "<b>" not in tables
    # No browser, no button.
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds


def test_05_removes_its_figures_of_an_earlier_call_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("picture_1.png", "picture_12.png", "faces.png", "emotions.png", "picture_of_me.png", "faces.txt"):
        Image.fromarray(synthetic.generate(300).test.images[0]).save(out / name, "png")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    notebook, done = NOTEBOOKS / "05_predict.ipynb", tmp_path / "05.ipynb"
    # What is looked at is not overwritten.
    given = {"input": str(out), "run": "fast", "out": str(out), "shown": 1}
    with pytest.raises(PapermillExecutionError, match="is part of the input, and a figure would take its place"):
        papermill.execute_notebook(notebook, done, given, progress_bar=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    given["input"] = str(out / "picture_of_me.png")
    papermill.execute_notebook(notebook, done, given, progress_bar=False)
    answers = {"predictions.parquet", "predictions.csv", "test_prediction.npy"}
    assert {path.name for path in out.iterdir()} == {"picture_1.png", "picture_of_me.png", "faces.txt", *answers}
    assert (out / "picture_1.png").read_bytes() != before["picture_1.png"]


@pytest.mark.real
def test_the_suite_runs_on_the_real_faces(real_data: Path, tmp_path: Path) -> None:
    # Small faces and a narrow network: 28,709 of them in some seconds.
    recipe, out = tmp_path / "small.yaml", tmp_path / "run"
    recipe.write_text("extends: fast\nwidth: 0.0625\nbatch_size: 256\nimage_size: 24\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "fer_utils.suite",
        "--data",
        str(real_data),
        "--epochs",
        "1",
        "--recipe",
        str(recipe),
    ]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.open(out)
    complete(run, epochs=1, name="small")
    assert not run.read_json("env.json")["data"]["synthetic"]
    assert done.stderr == ""
    assert "synthetic" not in re.sub(r"<[^>]+>", "", run.file("report.html").read_text(encoding="utf-8")).lower()


def test_06_compares_runs_on_the_faces_of_their_training(
    suite_run: tuple[Run, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing but the run tells which faces these are.
    monkeypatch.delenv("FER_DATA", raising=False)
    given = {"runs": str(suite_run[0].path), "out": str(tmp_path / "out")}
    done = papermill.execute_notebook(NOTEBOOKS / "06_compare.ipynb", tmp_path / "06.ipynb", given, progress_bar=False)
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["recipe"].tolist() == ["tiny"]
    accuracy = suite_run[0].read_json("metrics.json")["scores"]["test"]["none"]["accuracy"]["value"]
    assert float(table["accuracy"][0]) == pytest.approx(100 * accuracy, abs=0.05)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("There is one system" in output.get("data", {}).get("text/markdown", "") for output in outputs)


def test_06_trains_recipes_and_compares_them(tiny: Path, tmp_path: Path) -> None:
    given = {"recipes": f"{tiny},custom_cnn", "seeds": 1, "epochs": 1, "data": "synthetic:600", "image_size": 32}
    given |= {"out": str(tmp_path / "out")}
    papermill.execute_notebook(NOTEBOOKS / "06_compare.ipynb", tmp_path / "06.ipynb", given, progress_bar=False)
    assert sorted(pd.read_csv(tmp_path / "out" / "comparison.csv")["recipe"].str.split(" ").str[0]) == [
        "custom_cnn",
        "tiny",
    ]
    for name in ("learning_curves", "recalls", "disagreement"):
        assert (tmp_path / "out" / f"{name}.png").is_file()
