"""Run the notebooks in order on one run and render each to HTML.

    python -m fer_utils.suite                                          the drawn faces in the box, five epochs
    python -m fer_utils.suite --data PATH --epochs 30                  FER2013 in any layout
    python -m fer_utils.suite --recipe fast --set lr=1e-3 seed=1

The notebooks run with papermill, each in a kernel of its own, and hand results on only through the run's directory. The
pages carry everything that they show: no script, style or picture is fetched from anywhere.
"""

from __future__ import annotations

import argparse
import datetime as dt
import difflib
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert.exporters import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from fer_utils import recipe as recipes
from fer_utils import report, runs, sources, training
from fer_utils.devices import DeviceError
from fer_utils.evaluation import SET_TITLES, load_evaluation
from fer_utils.files import ROOT, expanded, write_text
from fer_utils.models import ModelError
from fer_utils.recipe import Recipe, RecipeError
from fer_utils.runs import Run, RunError
from fer_utils.sources import SourceError
from fer_utils.training import TrainingError

NOTEBOOKS: Final = ROOT / "notebooks"
SUITE: Final = ("01_explore", "02_augment", "03_train", "04_evaluate", "05_predict")
"""The notebooks of the suite, in order."""

_HTML_TEMPLATE: Final = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
"""
"""JupyterLab's look without the scripts, which nbconvert's own templates fetch from content networks."""

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_WEB_PICTURE: Final = re.compile(r"!\[([^\]]*)\]\(https?://[^)]*\)|<img\b[^>]*\bsrc=[\"']https?://[^>]*>")


class SuiteError(RuntimeError):
    """The suite cannot go on; the message says where it stopped, why, and what there is to look at."""


def run_notebooks(
    data: str = "synthetic",
    *,
    epochs: int | None = 5,
    recipe: str = "fast",
    out: str | Path | None = None,
    parameters: Mapping[str, str] | None = None,
    names: Sequence[str] = SUITE,
    folder: Path = NOTEBOOKS,
    log: Callable[[str], None] = print,
) -> Run:
    """Run the notebooks ``names`` of ``folder`` in order on one run.

    Args:
        data: what the notebooks take: ``synthetic``, ``auto``, ``kaggle`` or a path, relative to the working directory.
        epochs: epochs of the training; None is "as the recipe says".
        recipe: name or path of the recipe.
        out: the run's directory; None makes one under ``outputs/`` whose name tells data, recipe and time.
        parameters: further parameters by name, as text; each goes to every notebook that declares it.
        names: notebooks, without their suffix.
        folder: where they are.
        log: takes each line that tells what is being done.

    Returns:
        The run: executed notebooks, their HTML and what they made.

    Raises:
        RecipeError: a parameter is unknown or has a wrong value; nothing has been run or written.
        SourceError: there are no faces at ``data``; nothing has been run or written.
        DeviceError: ``device`` is not there; nothing has been run or written.
        ModelError, TrainingError: 03 could not train this; nothing has been run or written.
        RunError: ``out`` holds something else, or another training or one of other faces; nothing has been run or
            written.
        SuiteError: a notebook failed. The message names it and where its executed part lies.
    """
    tell = _Teller(log)
    declared = {name: _declared(folder / f"{name}.ipynb") for name in names}
    given = {"data": data, "recipe": recipe, "epochs": epochs, **(parameters or {})}
    wanted = _check(given, declared, reserved=("run", "out"))
    # A further parameter of the same name has the last word.
    data, recipe = str(given["data"]), str(given["recipe"])
    taken: dict[str, Any] = {}
    for name in names:
        asked = {key: given[key] for key in declared[name] if key in given}
        taken |= _check_as_it_does(folder / f"{name}.ipynb", asked)
    # As 03 does it, before 01 and 02 write: devices, layers, and a run that holds another training.
    how = {key: taken[key] for key in ("device", "processes", "resume") if key in taken}
    out = None if out is None else expanded(out)
    training.check(wanted, out=out, **how)
    held = Run.open(out) if out is not None and (out / "run.json").is_file() else None
    if (held and held.has("env.json")) or wanted.teacher or wanted.starts:
        # Whether these runs were trained on the same faces, only the faces tell; the notebooks find them in the cache.
        splits = sources.load(
            data,
            val_fraction=wanted.val_fraction,
            split_seed=wanted.split_seed,
            on_bad=taken.get("on_bad") or "raise",
        )
        training.check_faces(wanted, splits)
        if held:
            held.for_faces(splits.fingerprint())

    if out is None:
        label = re.sub(r"[^\w.-]+", "-", f"{Path(data).stem or data}-{Path(recipe).stem}")
        out = runs.OUTPUTS / f"suite-{label}-{dt.datetime.now():%Y%m%d-%H%M%S}"
    # Absolute, since the notebooks may be told of it from another directory.
    run = Run.create(out.resolve())
    given |= {"run": str(run.path), "out": str(run.path)}
    tell.line(f"{len(names)} notebooks, data {data}, recipe {recipe}, {recipes.length(wanted)}")
    if parameters:
        tell.line(f"set: {', '.join(f'{name}={value}' for name, value in parameters.items())}")
    tell.line(f"run: {run.path}")
    for number, name in enumerate(names, start=1):
        tell.line(f"[{number}/{len(names)}] {name}")
        accepted = {key: value for key, value in given.items() if key in declared[name] and value is not None}
        if "run" in accepted:
            accepted.pop("out", None)
        target = run.file(f"{name}.ipynb")
        _execute(folder / target.name, target, accepted, tell)
        write_text(target.with_suffix(".html"), render(target))
        tell.line(f"[{number}/{len(names)}] {name} done: {target.with_suffix('.html')}")
    return run


def render(notebook: Path) -> str:
    """Return an executed notebook as one HTML page that fetches nothing.

    Cells tagged ``remove_input`` show only their output. Pictures from the web, such as a badge, become their text.
    """
    node = nbformat.read(notebook, as_version=4)
    for cell in node.cells:
        if cell.cell_type == "markdown":
            cell.source = _WEB_PICTURE.sub(lambda found: found.group(1) or "", cell.source)
    exporter = HTMLExporter(raw_template=_HTML_TEMPLATE, embed_images=True)
    exporter.register_preprocessor(
        TagRemovePreprocessor(remove_input_tags={"remove_input"}, enabled=True), enabled=True
    )
    page, _ = exporter.from_notebook_node(
        node, resources={"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    )
    return str(page)


def headline(run: Run) -> list[str]:
    """Return the numbers of an evaluated run that one looks for first, a line for each set of faces."""
    found = load_evaluation(run)
    lines = []
    for name, title in SET_TITLES.items():
        # A set without faces or without labels has no scores.
        if name in found.metrics["scores"]:
            scores, faces = found.measured(name).scores, found.metrics["faces"][name]
            accuracy = scores["accuracy"]
            lines.append(
                f"{title:28} accuracy {accuracy.value:6.2%} [{accuracy.low:.2%} to {accuracy.high:.2%}], "
                f"macro F1 {scores['macro_f1'].value:6.2%}, loss {scores['nll'].value:.3f}, {faces:,} faces"
            )
    banner = ["The faces are synthetic: these numbers measure nothing."] if found.metrics["data"]["synthetic"] else []
    note = [found.metrics["note"]] if found.metrics["note"] else []
    return [*banner, *note, *lines]


class _Teller:
    """Lines with the time since the start. As papermill's output file it passes on what a notebook prints, indented."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.start = time.monotonic()
        self._rest = ""

    def line(self, text: str) -> None:
        seconds = int(time.monotonic() - self.start)
        self.log(f"{seconds // 60:3d}:{seconds % 60:02d}  {text}")

    def write(self, text: str) -> int:
        # A message may end in the middle of a line; of a line that a progress bar rewrites, the last state counts.
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self.line(f"    {line.rsplit(chr(13), 1)[-1]}")
        return len(text)

    def flush(self) -> None:
        """Nothing waits but the beginning of a line."""


def _declared(notebook: Path) -> list[str]:
    if not notebook.is_file():
        raise SuiteError(
            f"there is no notebook {notebook}: run the suite from a clone of the repository, which has them"
        )
    return list(papermill.inspect_notebook(str(notebook)))


def _check(given: Mapping[str, Any], declared: Mapping[str, Sequence[str]], reserved: Sequence[str]) -> Recipe:
    """Tell mistakes before the first notebook starts rather than when 03 reads its parameters; return the recipe."""
    known = sorted({name for names in declared.values() for name in names} - set(reserved))
    for name in given:
        if name in reserved:
            raise RecipeError(f"parameter {name} is the suite's own: use --out")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise RecipeError(f"unknown parameter {name!r}: {guess}The notebooks take: {', '.join(known)}")
    overrides = {name: value for name, value in given.items() if name in Recipe.model_fields}
    wanted = recipes.load(given["recipe"], overrides)
    if wanted.epochs < 1:
        raise RecipeError(f"epochs is {wanted.epochs}; expected at least 1, since 03 trains")
    sources.check(given["data"])
    return wanted


def _check_as_it_does(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Run a notebook's own check of its parameters, as its kernel will once the notebooks before it have run.

    Returns:
        What it takes them for; nothing where it has no such check.
    """
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    declared = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    check = [cell.source for cell in cells if "check_parameters(In" in cell.source]
    if declared and check:
        injected = [f"{name} = {value!r}" for name, value in given.items() if value is not None]
        ran = [declared[0], "\n".join(["# Parameters", *injected]), check[0]]
        names: dict[str, Any] = {"In": ran}
        for source in ran:
            exec(compile(source, notebook.name, "exec"), names)
        return dict(names["P"])
    return {}


def _execute(source: Path, target: Path, parameters: Mapping[str, Any], tell: _Teller) -> None:
    sections = _sections(source)
    # By id, since papermill adds a cell of its own.
    ids = [cell.id for cell in nbformat.read(source, as_version=4).cells if cell.cell_type == "code"]

    def started(cell: nbformat.NotebookNode, cell_index: int) -> None:
        if cell.get("id") in sections:
            tell.line(f"  {sections[cell.id]} ({ids.index(cell.id)} of {len(ids)} cells done)")

    # A kernel called python3 in the user's home may belong to another Python.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    try:
        papermill.execute_notebook(
            source,
            target,
            dict(parameters),
            progress_bar=False,
            stdout_file=tell,
            stderr_file=tell,
            on_cell_start=started,
            # Nobody else on the machine can read what goes between this process and the kernel.
            config=Config(KernelManager={"transport_encryption": "auto"}),
            # A kernel logs the interrupt that ends it as an error; what goes wrong in a cell is told by papermill.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        where = "\n".join(_ANSI.sub("", line) for line in error.traceback)
        raise SuiteError(
            f"{source.name} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n\n{where}\n\n"
            f"{source.name} failed; what ran of it: {target}"
        ) from error
    except DeadKernelError as error:
        raise SuiteError(
            f"{source.name}: its kernel died, most often for want of memory; what ran of it: {target}"
        ) from error


def _sections(notebook: Path) -> dict[str, str]:
    """Return the headings of a notebook by the id of the first code cell below each."""
    sections, heading = {}, None
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ +(.+)$", cell.source, flags=re.MULTILINE)
            heading = found[-1] if found else heading
        elif cell.cell_type == "code" and heading is not None:
            sections[cell.id], heading = heading, None
    return sections


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite from the command line; return 0, 1 when a notebook failed, or 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.suite",
        description="Run the notebooks in order on one run and render each to HTML.",
        epilog=f"Notebooks: {', '.join(SUITE)}. Recipes: {', '.join(recipes.names())}.",
    )
    parser.add_argument("--data", default="synthetic", help="synthetic, auto, kaggle or a path [synthetic]")
    parser.add_argument(
        "--epochs", default="5", metavar="N", help="epochs of the training, or recipe for the recipe's [5]"
    )
    parser.add_argument("--recipe", default="fast", metavar="NAME", help="recipe by name, or a .yaml file [fast]")
    parser.add_argument("--out", metavar="DIR", help="the run's directory [outputs/suite-DATA-RECIPE-TIME]")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="any parameters of the notebooks, passed to each that has them",
    )
    options = parser.parse_args(arguments)
    parameters = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            parser.error(f"--set takes NAME=VALUE, not {item!r}")
        parameters[name.strip()] = value.strip()
    try:
        run = run_notebooks(
            options.data,
            epochs=None if options.epochs == "recipe" else recipes.coerce("epochs", options.epochs),
            recipe=options.recipe,
            out=options.out,
            parameters=parameters,
            log=functools.partial(print, flush=True),
        )
        page = report.write(run)
        print("", *headline(run), f"report: {page}", sep="\n")
    except (RecipeError, RunError, SourceError, DeviceError, ModelError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 2
    except SuiteError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same with --out (make: OUT=) and the run above goes on where 03 stood", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
