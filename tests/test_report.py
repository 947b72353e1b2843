"""The page and the model card of a run: what they say is true, and nothing is fetched."""

import base64
import dataclasses
import html
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as reference
from matplotlib.figure import Figure

from fer_utils import checkpoint, evaluation, metrics, report
from fer_utils import recipe as recipes
from fer_utils.emotions import EMOTIONS
from fer_utils.evaluation import EvaluationError
from fer_utils.faces import Faces, Splits
from fer_utils.files import ROOT
from fer_utils.plots import evaluation as figures
from fer_utils.recipe import Recipe
from fer_utils.runs import Run, RunError
from fer_utils.sources import synthetic
from fer_utils.training import fit


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def splits() -> Splits:
    return synthetic.generate(500, seed=4)


@pytest.fixture(scope="module")
def trained(splits: Splits, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs") / "a run")
    fit(tiny_recipe.model_copy(update={"seed": 3}), splits, run, device="cpu", log=silent)
    found = evaluation.evaluate(run, splits, device="cpu", draws=50)
    run.save_figure("accuracies", figures.accuracies(found.accuracies(), found.note, people=False), dpi=40)
    run.save_figure("my_own", figures.per_class(found.measured("test"), found.note), dpi=40)
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of the run, without figures, that a test may change."""
    copy = Run.create(tmp_path / "copy")
    for name in ("recipe.yaml", "env.json", "history.csv", "best.ckpt", "metrics.json", "predictions.parquet"):
        copy.file(name).write_bytes(trained.file(name).read_bytes())
    return copy


class Page(HTMLParser):
    """What a page shows, fetches and links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        held = dict(attrs)
        self.sources += [held[name] or "" for name in ("src", "srcset", "data", "poster") if name in held]
        if "href" in held:
            (self.links if tag == "a" else self.sources).append(held["href"] or "")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["style"]:
            self.style += data
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_fetches_nothing_and_holds_every_figure(trained: Run) -> None:
    path = report.write(trained)
    assert path == trained.file("report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", page.style)
    assert all(source.startswith("data:") for source in page.sources)
    assert not [link for link in page.links if re.match(r"[a-z]+:|//", link)], "links lead beside the page only"
    pictures = [source.partition(",")[2] for source in page.sources if source.startswith("data:image/png;base64,")]
    held = [path.read_bytes() for path in (trained.path / "figures").glob("*.png")]
    assert sorted(base64.b64decode(picture) for picture in pictures) == sorted(held)
    assert "width=device-width" in path.read_text(encoding="utf-8")


def test_the_first_screen_says_what_matters_and_says_it_right(trained: Run) -> None:
    page = report.write(trained).read_text(encoding="utf-8")
    first = Page(page[: page.index("<h2>")]).text
    table = pd.read_parquet(trained.file("predictions.parquet"))
    rows = table[(table["split"] == "test") & table["clean"]]
    predicted = rows[[f"p_{emotion}" for emotion in EMOTIONS]].to_numpy().argmax(axis=1)
    accuracy = reference.accuracy_score(rows["target"], predicted)
    assert f"{accuracy:.1%} of {len(rows):,} faces" in first
    assert re.search(r"95% interval \d+\.\d% to \d+\.\d%", first)
    whole = table[table["split"] == "test"]
    copies = len(whole) - len(rows)
    assert copies > 0
    assert f"On all {len(whole):,} it is" in first
    assert f"{copies:,} of them have a copy" in first

    confusion = reference.confusion_matrix(rows["target"], predicted, labels=range(7))
    np.fill_diagonal(confusion, 0)
    label, taken_for = np.unravel_index(confusion.argmax(), (7, 7))
    assert f"{EMOTIONS[label]} taken for {EMOTIONS[taken_for]} : {confusion.max():,} faces" in first
    assert "Synthetic faces." in first
    assert trained.recipe.description in first
    assert re.search(r"Calibration error 0\.\d{3} as trained, 0\.\d{3} at temperature", first)
    assert "What was not tested" in first
    assert "Bias: " in first
    assert "65 ± 5%" not in first  # people were never asked about drawn faces


def test_how_sure_is_told_as_those_are_told_who_ask_the_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluation.load_evaluation(run)
    scaled = found.probabilities("test_clean", scaled=True)
    assert not np.allclose(scaled, found.probabilities("test_clean"))
    asked: list[np.ndarray] = []
    coverage = metrics.coverage
    monkeypatch.setattr(metrics, "coverage", lambda *given: (asked.append(given[0]), coverage(*given))[1])
    run.save_figure("coverage", Figure((1, 1)), dpi=20)
    assert "How sure is told at the temperature" in report.write(run).read_text(encoding="utf-8")
    cells = json.loads((ROOT / "notebooks" / "04_evaluate.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "metrics.coverage(" in "".join(cell["source"])]
    held = found.metrics["scores"]["test_clean"]["none"]
    scope = {"found": found, "chosen": "test_clean", "held": held, "note": "", "targets": found.targets("test_clean")}
    scope |= {"probabilities": found.probabilities("test_clean"), "metrics": metrics, "evaluation": evaluation}
    exec(source, scope | {"plots": figures, "show": lambda *_: None})
    assert len(asked) == 2
    assert all(np.array_equal(each, scaled) for each in asked)


def test_long_names_do_not_widen_the_page(trained: Run) -> None:
    page = Page(report.write(trained).read_text(encoding="utf-8"))
    assert re.search(r"^h1, p, li \{ overflow-wrap: anywhere; \}$", page.style, re.MULTILINE)


def test_on_paper_nothing_is_folded_away_and_no_heading_stands_alone(trained: Run) -> None:
    style = Page(report.write(trained).read_text(encoding="utf-8")).style
    printed = style.partition("@media print {")[2]
    # Nobody can unfold a sheet of paper: the scores of the other sets, of each emotion, and the recipe are printed.
    assert "details::details-content { content-visibility: visible; }" in printed
    # A heading stays with what is below it, which a figure as high as the page would not let it.
    assert "h2, summary { break-after: avoid; }" in printed
    assert "figure, .card, tr { break-inside: avoid; }" in printed
    assert "figure img { max-height: 19cm; }" in printed


@pytest.mark.parametrize(("seconds", "told"), [(0.6, "1 second"), (1.6, "2 seconds"), (90, "2 minutes")])
def test_durations_are_told_in_words(seconds: float, told: str, run: Run) -> None:
    run.history().assign(total_seconds=seconds).to_csv(run.file("history.csv"), index=False)
    assert f"Trained {told} on " in report.write(run).read_text(encoding="utf-8")


def test_code_is_hidden_and_the_notebooks_are_linked(run: Run) -> None:
    run.file("04_evaluate.html").write_text("<p>code</p>")
    page = Page(report.write(run).read_text(encoding="utf-8"))
    assert "import " not in page.text
    assert page.links == ["04_evaluate.html", "MODEL_CARD.md"]


def test_the_model_card_tells_use_limits_scores_and_environment(trained: Run) -> None:
    report.write(trained)
    card = trained.file("MODEL_CARD.md").read_text(encoding="utf-8")
    for heading in ("Intended use", "Limits", "Data", "Scores", "How to get it again"):
        assert f"\n## {heading}\n" in card
    assert "Synthetic faces" in card
    assert "not what the person felt" in card
    assert "Not for judging a person" in card
    for row in evaluation.load_evaluation(trained).table("test_clean")["single view"]:
        assert row in card
    env = trained.read_json("env.json")
    assert f"torch {env['versions']['torch']}" in card
    assert env["data"]["fingerprint"] in card
    for line in card.splitlines():
        if line.startswith("|"):
            assert line.count("|") >= 3


def test_the_page_tells_an_epoch_that_was_settled_from_one_that_validation_chose(run: Run) -> None:
    assert ", the best on validation faces" in report.write(run).read_text(encoding="utf-8")
    run.write_recipe(run.recipe.model_copy(update={"keep_epoch": 2}))
    page = report.write(run).read_text(encoding="utf-8")
    assert ", settled before training" in page
    assert "the best on validation faces" not in page


def test_it_tells_that_only_some_of_the_training_faces_were_learned_from(run: Run) -> None:
    for train_faces, told in ((None, ""), (100, " of about 100 training faces"), (10**6, "")):
        run.write_recipe(run.recipe.model_copy(update={"train_faces": train_faces}))
        report.write(run)
        for name in ("report.html", "MODEL_CARD.md"):
            assert re.search(rf"\d epochs?{told}, seed ", run.file(name).read_text(encoding="utf-8"))


def test_emotions_without_faces_are_told(run: Run, splits: Splits) -> None:
    seen = np.flatnonzero(~np.isin(splits.test.targets, [EMOTIONS.index("disgust"), EMOTIONS.index("sad")]))
    fewer = dataclasses.replace(splits, test=splits.test.select(seen))
    evaluation.evaluate(run, fewer, device="cpu", draws=20, other_data=True)
    page = Page(report.write(run).read_text(encoding="utf-8")).text
    assert "None of the faces is labelled disgust or sad: nothing is known of how it does there." in page


def test_every_figure_of_04_has_its_place_and_a_sentence_of_its_own(run: Run) -> None:
    source = (ROOT / "notebooks" / "04_evaluate.ipynb").read_text(encoding="utf-8")
    names = set(re.findall(r'show\(\\"(\w+)\\"', source))
    assert len(names) > 10
    for name in names:
        run.save_figure(name, Figure((1, 1)), dpi=20)
    page = report.write(run).read_text(encoding="utf-8")
    assert "Further figures" not in page
    for name in names:
        assert f"<figcaption>{name.replace('_', ' ').capitalize()}.</figcaption>" not in page


def test_the_command_gives_the_same_recipe(run: Run) -> None:
    changes = {"lr": 1e-4, "head": (64, 32), "optimizer": "sgd", "nesterov": False, "dedupe": "exact"}
    for recipe in (
        run.recipe,
        recipes.load("fast"),
        recipes.load("fast", changes),
        recipes.load("fast", {"val_fraction": 0.05, "clip_norm": "none", "train_layers": ["layer4", "fc"]}),
        recipes.load("fast", {"augment": {"flip": 0.25, "scale": [0.8, 1.2]}}),
    ):
        run.write_recipe(recipe)
        report.write(run)
        command = re.search(r"^python -m fer_utils\.training .*$", run.file("MODEL_CARD.md").read_text(), re.MULTILINE)
        assert command is not None
        words = shlex.split(command[0])
        given = {words[i]: words[i + 1] for i in range(3, len(words), 2) if words[i] != "--set"}
        sets = dict(words[i + 1].split("=", 1) for i in range(3, len(words), 2) if words[i] == "--set")
        assert recipes.load(given["--recipe"], sets) == recipe
        assert given["--data"] == evaluation.data_of(run)


def test_a_recipe_of_ones_own_is_named_by_its_file(run: Run) -> None:
    run.write_recipe(recipes.load("fast").model_copy(update={"name": "mine"}))
    report.write(run)
    card = run.file("MODEL_CARD.md").read_text()
    named = re.search(r"--recipe (\S+/recipe\.yaml) --out (\S+)", card)
    assert named is not None
    assert recipes.load(named[1]) == run.recipe
    assert named[2] == f"{run.path}-again"
    assert f"-p run {run.path}-again" in card


@pytest.mark.parametrize("started", [".", "notebooks"])
def test_the_commands_are_for_the_root_wherever_the_report_was_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: str
) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "outputs").mkdir()
    run.path.rename(tmp_path / "outputs" / "a")
    monkeypatch.chdir(tmp_path / started)
    moved = Run.open("outputs/a" if started == "." else "../outputs/a")
    moved.write_recipe(recipes.load("fast").model_copy(update={"name": "mine"}))
    env = moved.read_json("env.json")
    for location, told in (
        (str(tmp_path / "data" / "fer2013"), "data/fer2013"),
        ("/elsewhere/fer2013", "/elsewhere/fer2013"),
        ("synthetic:500", "synthetic:500"),
        ("auto", "auto"),
    ):
        env["data"]["location"] = location
        moved.write_json("env.json", env)
        report.write(moved)
        card = moved.file("MODEL_CARD.md").read_text()
        assert f"--data {told} --recipe outputs/a/recipe.yaml --out outputs/a-again\n" in card
        assert "-p run outputs/a-again -p tta none\n" in card


def test_the_command_skips_what_the_training_skipped(run: Run) -> None:
    env = run.read_json("env.json")
    env["data"]["skipped"] = [{"name": "a.png", "reason": "is empty"}]
    run.write_json("env.json", env)
    report.write(run)
    card = run.file("MODEL_CARD.md").read_text()
    assert "--on-bad skip --out" in card
    assert "-p on_bad skip" in card


def test_scores_of_validation_on_request_say_nothing_false_of_the_test_faces(run: Run, splits: Splits) -> None:
    evaluation.evaluate(run, splits, part="val", device="cpu", draws=20)
    page = Page(report.write(run).read_text(encoding="utf-8")).text
    assert "have no labels" not in page
    assert "a little too good" in page


def test_missing_test_faces_are_told_of(run: Run, splits: Splits) -> None:
    nobody = Faces(splits.test.images[:0], splits.test.targets[:0], splits.test.names[:0])
    evaluation.evaluate(run, dataclasses.replace(splits, test=nobody), device="cpu", draws=20)
    page = Page(report.write(run).read_text(encoding="utf-8")).text
    assert "have no labels" not in page
    assert "There are no test faces" in page


def test_what_a_user_wrote_is_shown_as_text(run: Run) -> None:
    description = "<script>alert('x')</script> & more"
    run.write_recipe(run.recipe.model_copy(update={"description": description}))
    page = report.write(run).read_text(encoding="utf-8")
    assert "script" not in Page(page).tags
    assert html.escape(description) in page


def test_unlabelled_test_faces_are_told_of(run: Run, splits: Splits) -> None:
    blind = Faces(splits.test.images, np.full(len(splits.test), -1, np.int64), splits.test.names)
    evaluation.evaluate(run, dataclasses.replace(splits, test=blind), device="cpu", draws=20)
    page = Page(report.write(run).read_text(encoding="utf-8")).text
    assert "The test faces have no labels" in page
    assert "(validation, clean)" in page
    assert "no labels" in run.file("MODEL_CARD.md").read_text()

    evaluation.evaluate(run, dataclasses.replace(splits, test=blind), part="test", device="cpu", draws=20)
    page = Page(report.write(run).read_text(encoding="utf-8")).text
    assert "None: no face that was predicted has a label." in page


def test_other_faces_than_those_of_the_training_are_told_of(run: Run) -> None:
    other = dataclasses.replace(synthetic.generate(300, seed=8), location="synthetic:300")
    evaluation.evaluate(run, other, device="cpu", draws=20, other_data=True)
    page, card = Page(report.write(run).read_text(encoding="utf-8")).text, run.file("MODEL_CARD.md").read_text()
    for text in (page, card):
        assert "not the faces that the run was trained on" in text
        assert "-p data synthetic:300 -p other_data true" in text


def test_the_command_evaluates_as_it_was_evaluated(run: Run, splits: Splits) -> None:
    for options, told in (
        ({"tta": ("flip",), "seed": 3}, ""),
        ({"tta": ("flip", "ten_crop"), "seed": 5}, " -p tta all -p seed 5"),
        ({"tta": (), "seed": 3, "part": "val"}, " -p tta none -p part val"),
        ({"tta": (), "seed": 3, "precision": "float64"}, " -p tta none -p precision float64"),
        ({"tta": ("ten_crop",), "seed": 3}, " -p tta ten_crop"),
    ):
        evaluation.evaluate(run, splits, device="cpu", draws=20, **options)  # type: ignore[arg-type]
        report.write(run)
        (line,) = [line for line in run.file("MODEL_CARD.md").read_text().splitlines() if "04_evaluate" in line]
        assert line.endswith(f"copy-again{told}")


def test_validation_faces_that_chose_nothing_are_not_called_too_good(run: Run, splits: Splits) -> None:
    held = checkpoint.load(run.file("best.ckpt"))
    for change, good in (({"keep_epoch": 1}, False), ({}, True)):
        recipe = run.recipe.model_copy(update=change)
        checkpoint.save(run.file("best.ckpt"), {**held, "recipe": recipe.dump()})
        found = evaluation.evaluate(run, splits, part="val", device="cpu", draws=20)
        assert ("a little too good" in found.metrics["note"]) == good


def test_a_run_that_was_not_evaluated_is_refused(run: Run) -> None:
    run.file("metrics.json").unlink()
    with pytest.raises(RunError, match=r"has no metrics\.json"):
        report.write(run)
    assert not run.has("report.html")
    assert not run.has("MODEL_CARD.md")


def test_a_run_without_its_predictions_is_refused(run: Run) -> None:
    run.file("predictions.parquet").unlink()
    with pytest.raises(EvaluationError, match=r"has no predictions\.parquet"):
        report.write(run)


def test_the_card_has_the_scores_of_each_of_the_challenges_halves(run: Run, splits: Splits) -> None:
    halves = np.where(np.arange(len(splits.test)) % 3 == 0, "PublicTest", "PrivateTest")
    evaluation.evaluate(run, dataclasses.replace(splits, halves=halves), device="cpu", draws=20)
    report.write(run)
    card = run.file(report.CARD).read_text(encoding="utf-8")
    for half in ("public", "private"):
        faces = run.read_json("metrics.json")["faces"][half]
        assert f"| {evaluation.SET_TITLES[half]}: {faces:,} faces |" in card
