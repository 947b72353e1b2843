"""One page that says what a run is worth, and its model card.

Both are made from what the run holds: recipe, environment, history, metrics and figures. The page carries its pictures
and its style in itself, needs no script, fetches nothing, and opens from disk, on a phone too.
"""

from __future__ import annotations

import base64
import datetime as dt
import html
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from fer_utils import evaluation, metrics
from fer_utils import recipe as recipes
from fer_utils.emotions import EMOTIONS
from fer_utils.evaluation import HALF_SETS, SET_TITLES, VIEW_TITLES, Evaluation
from fer_utils.files import ROOT, write_text
from fer_utils.recipe import Recipe
from fer_utils.runs import Run

PAGE: Final = "report.html"
CARD: Final = "MODEL_CARD.md"

NOT_TESTED: Final = (
    "Bias: whether it errs more for one age, gender or skin colour. FER2013 does not tell any of them.",
    "Other pictures: it was scored on one data set's small grey faces, not on video, profiles, or a camera of yours.",
    "Feelings: a label is the expression that people perceived in a photo, not what the person felt.",
)
"""What no score of this suite says anything about."""

_SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "How good it is": ("accuracies", "confusion_matrix", "per_class", "precision_recall"),
    "How sure one may be of it": ("reliability", "coverage"),
    "What it gets wrong": ("prediction_samples", "confused_pairs", "confident_mistakes", "suspect_labels"),
    "Where it looks": ("attention", "attention_sanity"),
    "How it was trained": ("loss_curve", "accuracy_curve", "learning_rate", "first_filters", "confusion_matrix_train"),
    "What it was trained on": (
        "class_distributions",
        "sample_faces",
        "mean_faces",
        "pixel_statistics",
        "leakage",
        "exact_copies",
        "near_copies",
        "conflicting_labels",
        "blank_images",
    ),
    "What the network saw": ("augment_alone", "augment_together", "augment_mixed"),
}
_LEFT_OUT: Final = ("train_distribution", "val_distribution", "test_distribution")
"""Figures that another one of the page shows as well."""

_SENTENCES: Final = {
    "confusion_matrix": "Rows are labels, columns predictions; the diagonal is right.",
    "per_class": "The whiskers are 95% intervals: the fewer faces an emotion has, the less is known of it.",
    "precision_recall": "Each emotion against all others, from the surest prediction to the last.",
    "prediction_samples": "Drawn at random, neither the best nor the worst; probabilities before any temperature.",
    "confident_mistakes": "Each above the training face whose pixels correlate with it most, mirrored or not.",
    "suspect_labels": "Found by confident learning (Northcutt et al. 2021). They stay in every score.",
    "attention": "Of each label the surest right prediction and the surest wrong one; bright is what speaks for it.",
    "attention_sanity": "With random weights a map has to change, or it says nothing about what was learned.",
    "loss_curve": "Training loss is of augmented faces, so it may lie above that of validation.",
    "accuracy_curve": "The epoch with the best validation accuracy is evaluated, unless the recipe names one.",
    "learning_rate": "As the schedule planned it, and as each epoch ended.",
    "first_filters": "The kernels of the first convolution.",
    "confusion_matrix_train": "Of the training faces: no score.",
    "class_distributions": "The emotions are far from equally frequent.",
    "sample_faces": "Drawn at random from the training faces.",
    "mean_faces": "The mean over all faces of an emotion, and how it differs from the mean of all.",
    "pixel_statistics": "The parts should look alike here: where they do not, a score says less.",
    "leakage": "A test face with a copy in training may be known by heart; clean scores leave such faces out.",
    "exact_copies": "Byte for byte the same pixels.",
    "near_copies": "The same photo, moved, mirrored or compressed anew.",
    "conflicting_labels": "The same picture under different labels: no network can be right about all of them.",
    "blank_images": "Pictures without a face in them.",
    "augment_alone": "Each operation of the recipe alone, on the same faces.",
    "augment_together": "All operations together: what the network saw, another draw in each epoch.",
    "augment_mixed": "Faces blended with one another.",
}


def write(run: Run) -> Path:
    """Write ``report.html`` and ``MODEL_CARD.md`` into an evaluated run, and return the page's path.

    Raises:
        RunError: the run lacks its recipe, environment or metrics, or another version of the suite wrote it.
        EvaluationError: its predictions are missing or do not fit its metrics.
    """
    about = _About.of(run)
    write_text(run.file(CARD), _card(about))
    page = run.file(PAGE)
    write_text(page, _page(about))
    return page


# -- what is told -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _About:
    """Everything that both texts are made from."""

    run: Run
    recipe: Recipe
    found: Evaluation
    env: dict[str, Any]
    history: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> _About:
        recipe, env = run.recipe, run.read_json("env.json")
        return cls(run, recipe, evaluation.load_evaluation(run), env, run.history())

    @property
    def data(self) -> dict[str, Any]:
        """The faces that were evaluated."""
        data: dict[str, Any] = self.found.metrics["data"]
        return data

    @property
    def title(self) -> str:
        place = Path(self.data["location"]).name or self.data["location"]
        what = {"synthetic": "synthetic faces", "kaggle": "FER2013 from Kaggle"}.get(self.data["source"], place)
        return f"{self.recipe.name} on {what}"

    @property
    def scores(self) -> Mapping[str, Any] | None:
        """The single view's scores of the set to quote; None where nothing has labels."""
        name = self.found.headline_set
        held: Mapping[str, Any] | None = self.found.metrics["scores"][name]["none"] if name else None
        return held

    @property
    def scaled(self) -> bool:
        """Whether a temperature was fitted for the single view."""
        return "none" in self.found.metrics["temperature"]

    def real(self) -> str:
        """How real the data is, in a sentence."""
        if self.data["synthetic"]:
            return "Drawn by a generator, to try the suite without data: no number here says anything about real faces."
        return "Real photos as in FER2013: 48×48 pixels, grey, each labelled with the expression that people perceived."

    def description(self) -> str:
        return _sentence(self.recipe.description or "a recipe of one's own, in full in recipe.yaml")

    def counts(self) -> str:
        faces = self.data["faces"]
        return ", ".join(f"{faces[part]:,} {part}" for part in ("train", "val", "test"))

    def training(self) -> str:
        """What was trained for how long, in a sentence or two."""
        epoch = self.found.metrics["checkpoint"]["epoch"]
        if self.recipe.epochs == 0:
            parts = self.env.get("parts") or []
            if not parts:
                weights = {"imagenet": "ImageNet weights", "none": "random weights"}[self.recipe.weights]
                return f"Nothing was trained: the network has {weights}."
            each = [
                f"{part['run']} ({recipes.in_epochs(part['recipe']['epochs'])}, seed {part['recipe']['seed']}; its "
                f"epoch {part['epoch']})"
                for part in parts
            ]
            return f"Put together from trained runs and not trained further: {', '.join(each)}."
        # A model that was unpacked from the box knows what it was to be, and not how its training went.
        known = len(self.history) > 0
        epochs = len(self.history) if known else self.recipe.trained_epochs
        told = recipes.in_epochs(epochs)
        if drawn := recipes.drawn(self.recipe.train_faces, self.env["data"]["faces"]["train"]):
            told += f" of about {drawn:,} training faces"
        told += f", seed {self.recipe.seed}; the network is that of epoch {epoch}"
        if self.recipe.keep_epoch is not None:
            told += ", settled before training"
        elif known and self.history["val_accuracy"].notna().any():
            told += ", the best on validation faces"
        duration = f"{self.duration()} " if known else ""
        return f"{told}. Trained {duration}on {self.machine()}."

    def duration(self) -> str:
        seconds = float(self.history["total_seconds"].iloc[-1])
        if seconds >= 5400:
            return f"{seconds / 3600:.1f} hours"
        if seconds >= 90:
            return f"{seconds / 60:.0f} minutes"
        return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"

    def machine(self) -> str:
        device = self.env["device"]
        threads = {None: "", 1: ", 1 thread"}.get(self.env["threads"], f", {self.env['threads']} threads")
        where = f"{self.env['machine']}{threads}" if device == "cpu" else device
        return f"{where} in {self.env['precision']}"

    def pairs(self) -> pd.DataFrame:
        if self.scores is None:
            return pd.DataFrame()
        return metrics.confused_pairs(np.array(self.scores["confusion"], dtype=np.int64))

    def rarest(self) -> str:
        """The rarest emotion and its share of the reported faces, or the emotions that none of them has."""
        if self.scores is None:
            return ""
        support = {emotion: int(self.scores["per_class"][emotion]["support"]) for emotion in EMOTIONS}
        if absent := [emotion for emotion in EMOTIONS if not support[emotion]]:
            return f"none of the faces is labelled {' or '.join(absent)}: nothing is known of how it does there"
        emotion = min(support, key=lambda name: support[name])
        share = support[emotion] / self.scores["faces"]
        return (
            f"{emotion} makes up {share:.1%} of the faces ({support[emotion]:,}): little is known of how it does on it"
        )

    def whole(self) -> str:
        """The score on all faces of the part beside that on the clean ones, in a sentence; empty where they are one."""
        held, found = self.scores, self.found
        if held is None or found.headline_set == found.part:
            return ""
        whole = found.metrics["scores"][found.part]["none"]
        copies = whole["faces"] - held["faces"]
        if not copies:
            return "None of these faces has a copy among those that it learned from or was chosen by."
        return (
            f"On all {whole['faces']:,} it is {whole['accuracy']['value']:.1%}: {copies:,} of them have a copy among "
            "the faces that it learned from or was chosen by, and are left out above."
        )

    def calibration(self) -> str:
        held = self.scores
        if held is None:
            return "Not measured."
        told = f"Calibration error {held['ece']['value']:.3f} as trained"
        chance = held["ece_if_calibrated"]
        if held["scaled"] is not None:
            temperature = self.found.metrics["temperature"]["none"]
            told += (
                f", {held['scaled']['ece']['value']:.3f} at temperature {temperature:.2f}, fitted on validation faces"
            )
            chance = held["scaled"]["ece_if_calibrated"]
        return f"{told}. Chance alone shows {chance:.3f} with so many faces."

    def not_tested(self) -> list[str]:
        told = list(NOT_TESTED)
        if self.data["synthetic"]:
            told.insert(0, "Real faces: all of these are drawn.")
        told.append("Luck of the seed: the intervals are for this one training; another seed varies on top of them.")
        missing = [VIEW_TITLES[view] for view in VIEW_TITLES if view not in self.found.views]
        if missing:
            told.append(f"Test-time augmentation: {' and '.join(missing)}.")
        if "test" not in self.found.metrics["scores"]:
            why = "not all of them have labels" if self.found.metrics["faces"]["test"] else "there are none"
            told.append(f"Test faces: {why}, so scores are of validation faces.")
        return told

    def commands(self) -> list[str]:
        """The commands that give this run again, as they are typed at the repository's root."""
        there = _from_root(self.run.path)
        again = shlex.quote(f"{there}-again")
        changed = recipes.changes(self.recipe)
        # A recipe of one's own lies in the run alone.
        named = self.recipe.name if changed is not None else f"{there}/recipe.yaml"
        data = _as_given(evaluation.data_of(self.run))
        words = ["python -m fer_utils.training", f"--data {shlex.quote(data)}"]
        words += [f"--recipe {shlex.quote(named)}"]
        words += [f"--set {shlex.quote(f'{name}={value}')}" for name, value in (changed or {}).items()]
        skipped = bool(self.env["data"]["skipped"])
        words += ["--on-bad skip"] if skipped else []
        skipping = " -p on_bad skip" if skipped else ""
        return [
            " ".join([*words, f"--out {again}"]),
            f"papermill notebooks/04_evaluate.ipynb out.ipynb -p run {again}{skipping}{self._evaluated()}",
        ]

    def _evaluated(self) -> str:
        """The parameters of 04 by which it was evaluated, where they are not its own."""
        found = self.found.metrics
        added = [view for view in self.found.views if view != "none"]
        views = "all" if len(added) == len(VIEW_TITLES) - 1 else added[0] if added else "none"
        told = "" if views == "flip" else f" -p tta {views}"
        if self.found.part == "val" and "test" in found["scores"]:
            told += " -p part val"
        if found["bootstrap"]["seed"] != self.recipe.seed:
            told += f" -p seed {found['bootstrap']['seed']}"
        if found["precision"] != self.env["precision"]:
            told += f" -p precision {found['precision']}"
        if not self.data["of_the_training"]:
            told += f" -p data {shlex.quote(_as_given(evaluation.place_of(self.data)))} -p other_data true"
        return told

    def other(self) -> str:
        """A warning where the faces are not those of the training; nothing where they are."""
        if self.data["of_the_training"]:
            return ""
        return (
            "These are not the faces that the run was trained on: which of them have copies among those that it saw is "
            "not known."
        )

    def commit(self) -> str:
        git = self.env["git"]
        if not git["commit"]:
            return "unknown: it was not run from a git checkout"
        return f"{git['commit'][:12]}{' with local changes' if git['dirty'] else ''}"

    def environment(self) -> list[tuple[str, str]]:
        versions = ", ".join(f"{name} {version}" for name, version in self.env["versions"].items() if version)
        return [
            ("machine", self.machine()),
            ("platform", f"{self.env['platform']}, Python {self.env['python']}"),
            ("versions", versions),
            ("commit", self.commit()),
            ("data fingerprint", self.data["fingerprint"]),
        ]


def _as_given(data: str) -> str:
    """Return data as it is given at the repository's root."""
    # What is no path (synthetic, kaggle, auto) is never absolute.
    return _from_root(Path(data)) if Path(data).is_absolute() else data


def _from_root(path: Path) -> str:
    """Return a path as it is given at the repository's root: relative where it lies below, absolute elsewhere."""
    # A link keeps its name (outputs/ may lead to another disk), but where ".." leads is known to the file system alone.
    whole = path.resolve() if ".." in path.parts else path.absolute()
    return whole.relative_to(ROOT).as_posix() if whole.is_relative_to(ROOT) else str(whole)


# -- the page ---------------------------------------------------------------------------------------------------------

_CSS: Final = """
:root { color-scheme: light; --ink: #1d2327; --muted: #5f6368; --line: #dadce0; --accent: #0b5c8a; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: .2rem 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: .8rem; margin: 0 0 .35rem; color: var(--muted); text-transform: uppercase; letter-spacing: .05em; }
h1, p, li { overflow-wrap: anywhere; }
p { margin: .35rem 0; }
.lead { font-size: 1.05rem; }
.banner { background: #fff3cd; border-left: 5px solid #e0a800; padding: .55rem .8rem; margin: .8rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(17.5rem, 1fr)); gap: .8rem; margin-top: .9rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem .9rem; }
.card ul { margin: .2rem 0; padding-left: 1.1rem; }
.small, .card li { font-size: .92rem; }
.muted { color: var(--muted); }
.score { font-size: 2.1rem; font-weight: 700; color: var(--accent); line-height: 1.15; }
figure { background: var(--paper); border: 1px solid var(--line); border-radius: .5rem; margin: .9rem 0;
  padding: .7rem .7rem .5rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: .92rem; color: var(--muted); margin-top: .45rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--paper); font-size: .9rem; margin: .6rem 0; }
th, td { border: 1px solid var(--line); padding: .3rem .55rem; text-align: left; vertical-align: top; }
thead th { background: #eef1f4; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; overflow-x: auto;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--accent); }
a { color: var(--accent); }
@media print {
  body { background: #fff; }
  h2, summary { break-after: avoid; }
  figure, .card, tr { break-inside: avoid; }
  figure img { max-height: 19cm; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; }
  summary { list-style: none; }
}
"""


def _page(about: _About) -> str:
    parts = [*_first_screen(about), *_scores(about), *_figures(about), *_end(about)]
    title = html.escape(about.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without this line a browser asks the server for an icon.
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n'
        "<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def _first_screen(about: _About) -> Iterator[str]:
    held, found = about.scores, about.found
    yield f"<h1>{html.escape(about.title)}: how good is it, and how sure are we?</h1>"
    if about.data["synthetic"]:
        yield (
            '<p class="banner"><strong>Synthetic faces.</strong> A generator drew them, so that the suite can be tried '
            "without data. No number on this page says anything about real faces.</p>"
        )
    if about.other():
        yield f'<p class="banner">{html.escape(about.other())}</p>'
    if found.metrics["note"]:
        yield f'<p class="banner">{html.escape(_sentence(found.metrics["note"]))}</p>'
    yield '<div class="cards">'
    yield _score_card(about)
    yield _card_html(
        "Data",
        f"<p><strong>{html.escape(about.counts())}</strong> faces ({html.escape(about.data['source'])}).</p>"
        f'<p class="small">{html.escape(about.real())}</p>'
        f'<p class="small muted">{html.escape(_sentence(about.data["rule"]))}</p>',
    )
    yield _card_html(
        "Recipe",
        f"<p><strong>{html.escape(about.recipe.name)}</strong>: {html.escape(about.description())}</p>"
        f'<p class="small">{html.escape(about.training())}</p>',
    )
    if held is not None:
        kinds = "".join(
            f"<li><strong>{row.target}</strong> taken for <strong>{row.predicted}</strong>: {row.faces:,} faces, "
            f"{row.share:.0%} of {row.target}</li>"
            for row in about.pairs().head(3).itertuples()
        )
        yield _card_html(
            "What it confuses most", f"<ul>{kinds}</ul><p class='small'>{html.escape(_sentence(about.rarest()))}</p>"
        )
        yield _card_html(
            "Is it right as often as it is sure?", f"<p>{html.escape(about.calibration())}</p>" + _kept(about)
        )
    items = "".join(f"<li>{html.escape(text)}</li>" for text in about.not_tested())
    yield _card_html("What was not tested", f"<ul>{items}</ul>")
    yield "</div>"


def _score_card(about: _About) -> str:
    held, found = about.scores, about.found
    name = found.headline_set
    if held is None or name is None:
        return _card_html("Score", "<p>None: no face that was predicted has a label.</p>")
    accuracy = held["accuracy"]
    body = (
        f'<p class="score">{accuracy["value"]:.1%}</p>'
        f"<p>of {held['faces']:,} faces are recognised ({html.escape(SET_TITLES[name])}); 95% interval "
        f"<strong>{accuracy['low']:.1%} to {accuracy['high']:.1%}</strong>.</p>"
    )
    if name != found.part:
        body += f'<p class="small">{html.escape(about.whole())}</p>'
    people = "" if about.data["synthetic"] else " People agree with 65 ± 5% of these labels."
    body += (
        f'<p class="small">Balanced accuracy {held["balanced_accuracy"]["value"]:.1%}, macro-F1 '
        f"{held['macro_f1']['value']:.3f}.{people}</p>"
    )
    return _card_html("Score on faces that it did not learn from", body)


def _kept(about: _About) -> str:
    """A sentence on what the surer half is worth."""
    name = about.found.headline_set
    if name is None:
        return ""
    # As sure as those are told who ask it.
    curve = metrics.coverage(about.found.probabilities(name, scaled=about.scaled), about.found.targets(name))
    half = curve.iloc[int((curve["coverage"] - 0.5).abs().to_numpy().argmin())]
    told = f"On the half of the faces that it is surer of, it is right {half['accuracy']:.1%} of the time."
    return f'<p class="small">{told}</p>'


def _scores(about: _About) -> Iterator[str]:
    found, name = about.found, about.found.headline_set
    if name is None:
        return
    yield "<h2>Every score</h2>"
    yield (
        "<p>In brackets 95% bootstrap intervals: made so, 19 out of 20 hold the score on endlessly many faces like "
        "these. Loss, Brier score and calibration error judge the probabilities; lower is better.</p>"
    )
    yield f'<div class="scroll">{_table(found.table(name))}</div>'
    for other in found.metrics["scores"]:
        if other != name:
            yield _folded(SET_TITLES[other], _table(found.table(other)))
    yield _folded("each emotion", _table(found.class_table(name)))


def _figures(about: _About) -> Iterator[str]:
    held = {path.stem: path for path in sorted((about.run.path / "figures").glob("*.png"))}
    told = {name for names in _SECTIONS.values() for name in names}
    others = tuple(name for name in held if name not in told and name not in _LEFT_OUT)
    for title, names in {**_SECTIONS, "Further figures": others}.items():
        present = [name for name in names if name in held]
        if present:
            yield f"<h2>{title}</h2>"
        for name in present:
            picture = base64.b64encode(held[name].read_bytes()).decode("ascii")
            caption = _caption(about, name)
            yield (
                f'<figure><img alt="{html.escape(name.replace("_", " "))}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )


def _caption(about: _About, name: str) -> str:
    """Return a sentence that reads a figure, with this run's numbers where there are some."""
    held = about.scores
    if held is not None and name == "accuracies":
        return (
            "Clean faces have no copy among those that the network learned from or was chosen by; the bars are 95% "
            "intervals of the faces' chance, not of the training's."
        )
    if held is not None and name == "confused_pairs" and len(about.pairs()):
        worst = about.pairs().iloc[0]
        return (
            f"Most often {worst.target} is taken for {worst.predicted}, {worst.faces:,} times. The surest of each kind."
        )
    if held is not None and name == "reliability":
        return about.calibration()
    if name == "coverage":
        told = "A program may leave the faces that the network is least sure of to a person."
        return told + (
            " How sure is told at the temperature, as 05 and exported files tell it." if about.scaled else ""
        )
    return _SENTENCES.get(name, name.replace("_", " ").capitalize() + ".")


def _end(about: _About) -> Iterator[str]:
    yield "<h2>How to get it again</h2>"
    yield f"<pre>{html.escape(chr(10).join(about.commands()))}</pre>"
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in about.environment())
    yield f'<div class="scroll"><table>{rows}</table></div>'
    yield _folded("the whole recipe", f"<pre>{html.escape(about.recipe.dump())}</pre>")
    notebooks = [path.name for path in sorted(about.run.path.glob("0*.html"))]
    if notebooks:
        links = ", ".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>' for name in notebooks)
        yield f"<p>The notebooks with their code, beside this page: {links}. In short: <a href='{CARD}'>{CARD}</a>.</p>"
    made = f"Made on {dt.date.today():%d %B %Y} from the run {about.run.path.name}."
    yield f'<p class="small muted">{html.escape(made)}</p>'


def _card_html(title: str, body: str) -> str:
    return f'<section class="card"><h3>{title}</h3>{body}</section>'


def _folded(title: str, body: str) -> str:
    return f'<details><summary>{html.escape(title)}</summary><div class="scroll">{body}</div></details>'


def _table(table: pd.DataFrame) -> str:
    shown = table.rename_axis(None)
    corner = html.escape(str(table.index.name or ""))
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in shown.columns)
    rows = "".join(
        f"<tr><th>{html.escape(str(label))}</th>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>"
        for label, row in zip(shown.index, shown.to_numpy(), strict=True)
    )
    return f"<table><thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _sentence(text: str) -> str:
    """Return ``text`` beginning with a capital and ending with a full stop."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# -- the model card ---------------------------------------------------------------------------------------------------


def _card(about: _About) -> str:
    """Return the model card in Markdown (after Mitchell et al. 2019, arXiv:1810.03993)."""
    held, name = about.scores, about.found.headline_set
    lines = [f"# Model card: {about.title}", ""]
    if about.data["synthetic"]:
        lines += ["> **Synthetic faces.** A generator drew them: no number here says anything about real faces.", ""]
    if about.other():
        lines += [f"> {about.other()}", ""]
    if about.found.metrics["note"]:
        lines += [f"> {_sentence(about.found.metrics['note'])}", ""]
    lines += [
        "## What it is",
        "",
        f"A network ({about.recipe.backbone}, {about.recipe.image_size}×{about.recipe.image_size} pixels, recipe "
        f"`{about.recipe.name}`) that gives each of {', '.join(EMOTIONS[:-1])} and {EMOTIONS[-1]} a probability for "
        f"one face. The recipe: {about.description()} {about.training()}",
        "",
        "## Intended use",
        "",
        "- Study, teaching and comparison of methods on FER2013.",
        "- Sorting or searching pictures of faces where a mistake costs nothing.",
        "",
        "Not for judging a person: not in hiring, policing, teaching, health, or anywhere a mistake costs someone "
        "something. In the European Union the AI Act (Article 5) forbids emotion recognition at work and in education, "
        "but for medical and safety reasons.",
        "",
        "## Limits",
        "",
        *([f"- {_sentence(about.rarest())}"] if held is not None else []),
        *(
            []
            if about.data["synthetic"]
            else ["- People agree with 65 ± 5% of FER2013's labels; many of them are wrong."]
        ),
        "- It takes a cut-out, roughly upright face; without one it still names an emotion.",
        "",
        "## What was not tested",
        "",
        *(f"- {text}" for text in about.not_tested()),
        "",
        "## Data",
        "",
        f"{_sentence(about.real())} {about.counts()} ({about.data['source']}). {_sentence(about.data['rule'])}",
        "",
        "## Scores",
        "",
    ]
    if held is None or name is None:
        lines += ["None: no face that was predicted has a label.", ""]
    else:
        # Of the challenge's halves too, where the test part is both.
        for whose in (name, *(half for half in HALF_SETS if half in about.found.metrics["scores"])):
            lines += [*_markdown(about.found.table(whose)), ""]
        lines += [*_markdown(about.found.class_table(name)), ""]
        lines += ["In brackets 95% bootstrap intervals over the faces.", ""]
        if about.whole():
            lines += [about.whole(), ""]
        pairs = about.pairs().head(3)
        confused = [f"{row.target} for {row.predicted} ({row.share:.0%})" for row in pairs.itertuples()]
        lines += [f"Most often it takes {', '.join(confused)}." if confused else "It made no mistake.", ""]
        lines += [about.calibration(), ""]
    lines += ["## How to get it again", "", "```", *about.commands(), "```", ""]
    lines += [f"- {label}: {text}" for label, text in about.environment()]
    return "\n".join(lines) + "\n"


def _markdown(table: pd.DataFrame) -> Iterator[str]:
    yield f"| {table.index.name or ''} | {' | '.join(map(str, table.columns))} |"
    yield "|---" * (len(table.columns) + 1) + "|"
    for label, row in zip(table.index, table.to_numpy(), strict=True):
        yield f"| {label} | {' | '.join(map(str, row))} |"
