"""The trained models in the box: float16 weights in ``fer_utils/weights``, each with a generated card.

    python -m fer_utils.box RUN fast [--data DATA]         put a run's best network into the box as ``fast``
    python -m fer_utils.box --check [NAME] [--data DATA]   score the models in the box and hold them against their cards
    python -m fer_utils.box --unpack NAME RUN              lay a model of the box out as a run: a teacher, or for 04

``box.json`` lists the models with their SHA-256 and every score; a card is a function of its entry there.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from fer_utils import models
from fer_utils import recipe as recipes
from fer_utils.emotions import EMOTIONS
from fer_utils.export import Engine, ExportError, TorchEngine, of_run, open_file, write_safetensors
from fer_utils.faces import SIZE, Part, Splits
from fer_utils.files import expanded, make_writable, refusal, sha256, write_json, write_text
from fer_utils.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from fer_utils.runs import Run

MAX_BYTES: Final = 25_000_000
"""Most that a model in the box may weigh."""
WEIGHTS: Final = Path(__file__).resolve().parent / "weights"
"""Where the models in the box lie, with a card each and ``box.json``, which lists them."""


@dataclass(frozen=True)
class Boxed:
    """A model in the box: what ``box.json`` holds of it under its name.

    Attributes:
        file: name of the safetensors file beside ``box.json``.
        bytes: its size.
        sha256: of its bytes, in hexadecimal.
        parameters: how many the network has.
        temperature: fitted on validation faces.
        scores: by set of faces (``test``, ``test_clean``, ...) what ``evaluation.measure`` found, ``correct`` added.
        data: source, fingerprint and counts of the faces.
        training: recipe in full, seed, epochs, command, commit, versions and machine; under ``parts`` the same of each
            network that it was put together from.
    """

    file: str
    bytes: int
    sha256: str
    parameters: int
    temperature: float
    scores: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]


def listed(folder: Path | None = None) -> dict[str, Boxed]:
    """Return the models in the box by name, the default first.

    Raises:
        ExportError: the box is empty or its list is damaged; says what to do.
    """
    path = (folder or WEIGHTS) / "box.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {name: Boxed(**values) for name, values in known.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise ExportError(
            "there is no trained model in the box: train one with 03_train.ipynb and name its run (--model RUN, or "
            "Classifier.from_run(run))"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged ({error}): fetch the repository again") from error


def entry(name: str | None = None, folder: Path | None = None) -> tuple[str, Boxed]:
    """Return name and entry of a model in the box, by default the first.

    Raises:
        ExportError: the box is empty or has no model of that name; says what to do.
    """
    known = listed(folder)
    chosen = name or next(iter(known))
    if chosen not in known:
        raise ExportError(f"there is no model {chosen!r} in the box; it has {', '.join(known)}")
    return chosen, known[chosen]


def open_model(name: str | None = None, device: str | None = "cpu", folder: Path | None = None) -> Engine:
    """Read a model in the box, once the SHA-256 of its file has been found to be the one in ``box.json``.

    Raises:
        ExportError: the box is empty, has no such model, or the file is missing or was altered.
        DeviceError: the device is not there.
    """
    _, known = entry(name, folder)
    path = (folder or WEIGHTS) / known.file
    if not path.is_file():
        raise ExportError(f"{path} is missing: fetch the repository again")
    found = sha256(path)
    if found != known.sha256:
        raise ExportError(
            f"{path} was altered or damaged: its SHA-256 is {found}, box.json says {known.sha256}. Fetch it again"
        )
    return open_file(path, device)


def put(
    run: Run, splits: Splits, name: str, folder: Path | None = None, *, log: Callable[[str], None] = lambda line: None
) -> Boxed:
    """Put a run's best network into the box: float16 weights, ``box.json`` and a model card.

    The scores are those of the float16 weights computed in float32, as whoever loads the file gets them; the
    temperature is fitted to them on validation faces. The first model put into a box is its default.

    Args:
        run: with a ``best.ckpt``.
        splits: the faces that it was trained on, validation and test labelled.
        name: of the model: letters, digits, dots, hyphens.
        folder: the box; None is the package's.
        log: takes a line for each step.

    Raises:
        ExportError: the faces are not those of the training, the name is none, the box cannot be written to, or the
            file is larger than ``MAX_BYTES``.
        CheckpointError: the run's checkpoint cannot be used.
    """
    from fer_utils import runs

    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise ExportError(f"{name!r} is no name for a model: use letters, digits, dots and hyphens")
    folder = folder or WEIGHTS
    file = folder / f"{name}.safetensors"
    engine = of_run(run)
    description = engine.description
    known = run.read_json("env.json")
    if known["data"]["fingerprint"] != splits.fingerprint():
        raise ExportError(
            f"{run.path} was trained on other faces (fingerprint {known['data']['fingerprint']}, these have "
            f"{splits.fingerprint()}): its scores on these would mean nothing. Give its own with --data"
        )
    if not (splits.val.labelled and splits.test.labelled):
        raise ExportError(f"{splits.location}: a card needs labelled validation and test faces")
    try:
        make_writable(folder)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written to ({error.strerror}): name another box (--box)") from None
    log("scoring validation and test faces")
    halved = engine.model.half().float()
    for key, tensor in halved.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"{run.path}: weight {key} is not finite in float16, in which the box keeps them")
    scored = score(TorchEngine(halved, replace(description, temperature=1.0)), splits)
    temperature = float(scored["temperature"]["none"])
    description = replace(description, temperature=temperature)
    # The size is known before anything is replaced.
    weight = sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in halved.state_dict().values())
    if weight > MAX_BYTES:
        raise ExportError(
            f"{file} would weigh {weight / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}: use a smaller network"
        )
    write_safetensors(file, halved, description, torch.float16)
    made = Boxed(
        file.name,
        file.stat().st_size,
        sha256(file),
        models.count_parameters(halved),
        temperature,
        scored["scores"],
        {key: known["data"][key] for key in ("source", "synthetic", "rule", "fingerprint", "faces")},
        {
            "recipe": description.recipe.model_dump(mode="json"),
            **_origin(known, description.recipe, description.epoch),
            "parts": known.get("parts", []),
            "exported_by": runs.git_state(),
        },
    )
    held = listed(folder) if (folder / "box.json").is_file() else {}
    entries = {key: asdict(value) for key, value in {**held, name: made}.items()}
    write_json(folder / "box.json", {"schema_version": runs.SCHEMA_VERSION, "models": entries})
    write_text(folder / f"{name}.md", card(name, made))
    log(f"{file}: {made.bytes / 1e6:.1f} MB, SHA-256 {made.sha256}")
    return made


def unpack(name: str | None, path: str | Path, folder: Path | None = None) -> Run:
    """Lay a model of the box out as a run, much as its training left it: to teach others, or to be evaluated by 04.

    The run has the recipe, the weights, the temperature and what the box knows of the training. How its epochs went and
    where its faces lay is not known: there is no history, and whoever evaluates it names the faces or lets ``auto``
    find them.

    Args:
        name: of the model; None is the box's default.
        path: where the run is made.
        folder: the box; None is the package's.

    Raises:
        ExportError: the box has no such model, or its file was altered; or there is something at ``path``.
    """
    from fer_utils import checkpoint
    from fer_utils.runs import Run

    chosen, model = entry(name, folder)
    engine = open_model(chosen, folder=folder)
    if not isinstance(engine, TorchEngine):
        raise ExportError(f"{model.file} holds no network that PyTorch can train with: fetch the repository again")
    if expanded(path).exists():
        raise ExportError(f"{path} is there already: name a new directory for the run")
    description, told, source = engine.description, model.training, model.data["source"]
    on_gpu = told["device"].startswith("cuda")
    run = Run.create(path)
    with ExitStack() as undo:
        # What is half-written would be in the way of a second try.
        undo.callback(shutil.rmtree, run.path)
        run.write_recipe(description.recipe)
        run.write_json(
            "env.json",
            {
                **{key: told[key] for key in ("git", "versions", "device", "precision")},
                "parts": told.get("parts", []),
                "temperature": model.temperature,
                "python": "unknown",
                "platform": "unknown",
                "threads": None,
                "machine": "unknown" if on_gpu else told["machine"],
                "gpu": told["machine"] if on_gpu else None,
                "data": {
                    **model.data,
                    "location": source if source in ("synthetic", "kaggle") else "auto",
                    "converted": 0,
                    "skipped": [],
                },
            },
        )
        # Last, since a run counts as trained once it has this file.
        checkpoint.save(
            run.file("best.ckpt"),
            checkpoint.model_state(engine.model, description.preprocessing, description.recipe, description.epoch),
        )
        undo.pop_all()
    return run


def score(engine: Engine, splits: Splits) -> dict[str, Any]:
    """Return what ``evaluation.measure`` says of an engine on the validation and test faces, in a single view.

    Each set's scores gain ``correct``, the number of faces whose label is right.
    """
    import pandas as pd

    from fer_utils import evaluation
    from fer_utils.audit import audit

    found = audit(splits)
    tables = []
    parts: tuple[Part, ...] = ("val", "test")
    for part in parts:
        table = evaluation.about_faces(splits, part, found)
        table[evaluation.columns()] = engine(splits[part].images)
        tables.append(table)
    measured = evaluation.measure(pd.concat(tables, ignore_index=True))
    for views in measured["scores"].values():
        views["none"]["correct"] = int(np.trace(np.array(views["none"]["confusion"])))
    measured["scores"] = {name: views["none"] for name, views in measured["scores"].items()}
    return measured


def _origin(known: dict[str, Any], recipe: Recipe, epoch: int) -> dict[str, Any]:
    """Where a run's network is from, by its env.json: the command, the code and the machine of its training."""
    return {
        "epoch": epoch,
        "command": _command(recipe),
        "git": known["git"],
        "versions": known["versions"],
        "machine": known.get("gpu") or known["machine"],
        "device": known["device"],
        "precision": known["precision"],
    }


def _command(recipe: Recipe, out: str | None = None) -> str:
    """The command that trains this recipe; what differs from the one in the box of its name is given as parameters."""
    changed = recipes.changes(recipe)
    name = f"{recipe.name}.yaml" if changed is None else recipe.name
    given = {key: shlex.quote(value) for key, value in (changed or {}).items()}
    if recipe.epochs == 0:
        # 03 trains; what is only put together is so from the command line.
        told = " ".join(f"{key}={value}" for key, value in given.items())
        return f"python -m fer_utils.training --data DATA --recipe {name}{' --set ' if told else ''}{told}"
    command = f"papermill notebooks/03_train.ipynb out.ipynb -p data DATA -p recipe {name}"
    if out is not None:
        given["out"] = shlex.quote(out)
    return " ".join([command, *(f"-p {key} {value}" for key, value in given.items())])


def _trained(recipe: dict[str, Any], origin: dict[str, Any]) -> str:
    """A sentence or two on how a network was trained; ``origin`` is a part's, or what the box holds of a training."""
    git, machine = origin["git"], origin.get("gpu") or origin["machine"]
    return (
        f"Seed {recipe['seed']}, batches of {recipe['batch_size']}; weights of epoch {origin['epoch']} of the "
        f"{recipe['epochs']} that the recipe has. Commit `{git['commit'] or 'unknown'}`"
        f"{', with uncommitted changes' if git['dirty'] else ''}; torch {origin['versions']['torch']}, "
        f"{origin['device']} ({machine}), {origin['precision']}."
    )


def card(name: str, model: Boxed) -> str:
    """Return the model card of a model in the box as Markdown, made from ``box.json`` alone."""
    from fer_utils.evaluation import SET_TITLES

    recipe = model.training["recipe"]
    synthetic = model.data["synthetic"]
    test = model.scores["test"]

    def percent(score: dict[str, float]) -> str:
        return f"{score['value']:.2%} ({score['low']:.2%} to {score['high']:.2%})"

    def rate(score: dict[str, float | None]) -> str:
        # An emotion without faces has no recall.
        return "–" if score["value"] is None else f"{score['value']:.1%}"

    members = f"{recipe['members']} side by side, each " if recipe.get("members", 1) > 1 else ""
    lines = [
        f"# {name}: facial emotion recognition, trained on FER2013"
        if not synthetic
        else f"# {name}: synthetic faces only",
        "",
        f"Seven emotions ({', '.join(EMOTIONS)}) from a grey 48×48 face. {recipe['description']}",
        "",
    ]
    if synthetic:
        lines += [
            "**Trained and scored on drawn faces: it has never seen a real one, and its scores measure nothing.**",
            "",
        ]
    lines += [
        "| | |",
        "|---|---|",
        f"| file | `{model.file}`, {model.bytes:,} bytes, float16 weights, computed in float32 |",
        f"| SHA-256 | `{model.sha256}` |",
        f"| network | {members}{recipe['backbone']}, stem {recipe['stem']}, width {recipe['width']:g}, "
        f"{model.parameters:,} parameters |",
        f"| input | grey {SIZE}×{SIZE} face with an equalised histogram, as FER2013's have, resized to "
        f"{recipe['image_size']} px |",
        f"| calibration temperature | {model.temperature:.4f}, fitted on validation faces |",
        f"| use | `Classifier.pretrained({name!r})`, `python -m fer_utils.inference PHOTO --model {name}` |",
        "",
        "## Scores",
        "",
        "One view, no test-time augmentation, in float32, with 95% bootstrap intervals. `Classifier` scales its "
        "answers by the temperature.",
        "",
        "| faces | right | accuracy | balanced accuracy | macro F1 | NLL, scaled | calibration error | scaled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, held in model.scores.items():
        scaled = held["scaled"]
        lines.append(
            f"| {SET_TITLES[key]} | {held['correct']:,} of {held['faces']:,} | {percent(held['accuracy'])} | "
            f"{percent(held['balanced_accuracy'])} | {percent(held['macro_f1'])} | {scaled['nll']['value']:.3f} | "
            f"{held['ece']['value']:.3f} | {scaled['ece']['value']:.3f} |"
        )
    lines += ["", "| emotion | test faces | recall | precision |", "|---|---|---|---|"]
    for emotion in EMOTIONS:
        rates = test["per_class"][emotion]
        lines.append(f"| {emotion} | {rates['support']:,} | {rate(rates['recall'])} | {rate(rates['precision'])} |")
    faces = ", ".join(f"{count:,} {part}" for part, count in model.data["faces"].items())
    held = model.data["faces"]["train"]
    drawn = recipes.drawn(recipe.get("train_faces"), held)
    some = f" It learned from about {drawn:,} of the {held:,} training faces." if drawn else ""
    parts = model.training.get("parts", [])
    trained = [_trained(recipe, model.training)]
    if parts:
        trained = [
            "It was put together from trained runs and not trained further: its logits are the mean of its networks'.",
            *(f"`{part['run']}`: {_trained(part['recipe'], part)}" for part in parts),
        ]
    settled = all(each["recipe"].get("keep_epoch") for each in parts or [model.training])
    chosen = "Epoch and temperature were chosen on validation faces, so the validation scores are a little too good; "
    if settled:
        chosen = (
            "The epoch was settled before training. Where that was done on faces that are validation faces here, which "
            "the recipe's file tells, their scores are a little too good. The temperature alone was fitted on "
            "validation faces, and "
        )
    lines += [
        "",
        "Clean faces have no exact copy among those that the network was trained on or chosen by. "
        f"{chosen}test faces chose nothing. This prints the scores of this file and holds them against this card:",
        "",
        "```",
        f"python -m fer_utils.box --check {name} --data DATA",
        "```",
        "",
        "## Training",
        "",
        f"- Data: {model.data['source']}, {faces}; {model.data['rule'].rstrip('.')}. "
        f"Fingerprint `{model.data['fingerprint']}`.{some}",
        *(f"- {line}" for line in trained),
        "",
        "```",
        *(_command(Recipe.model_validate_json(json.dumps(part["recipe"])), part["run"]) for part in parts),
        model.training["command"],
        "```",
        "",
        "## Limits",
        "",
        "- It tells how a face looks to the people who labelled FER2013, not what somebody feels. People agree with "
        "these labels on about 65 ± 5% of the faces (Goodfellow et al. 2013, arXiv:1307.0414).",
        "- FER2013 is web photos found by emotion words: posed, acted and watermarked, of unknown people. About 5% are "
        "exact copies, and some labels are wrong.",
        "- Disgust is 1.5% of the faces; what is said of it rests on few.",
        "- How it does on people of different age, gender or skin was not tested: FER2013 does not tell them.",
        "- Faces in photos are found by a frontal detector: faces in profile, turned or half hidden are often missed. "
        "`Classifier` equalises them; whoever runs an export does so first (OpenCV's `equalizeHist`).",
        "- Not for decisions about people: hiring, policing, schooling, medicine, credit, or watching them unasked.",
        "",
    ]
    return "\n".join(lines)


def check(
    name: str | None = None,
    data: str | None = None,
    folder: Path | None = None,
    *,
    log: Callable[[str], None] = lambda line: None,
) -> bool:
    """Score a model of the box anew and hold the result against its card.

    Args:
        name: of the model; None is the box's default.
        data: the faces that it was trained on; None is what ``auto`` finds.
        folder: the box; None is the package's.
        log: takes each line of the report.

    Returns:
        True when on every set of faces the number of right ones is the card's, give or take one, the loss is the card's
        to 0.001, and the card says what ``box.json`` does. Where the test part of these faces is both of the
        challenge's halves, the card may be of either; the sets that it does not have are told too.

    Raises:
        ExportError: the box has no such model, or its file was altered.
        SourceError: the faces cannot be read.
    """
    from fer_utils import sources
    from fer_utils.evaluation import SET_TITLES

    folder = folder or WEIGHTS
    chosen, model = entry(name, folder)
    engine = open_model(chosen, folder=folder)
    recipe = engine.description.recipe
    splits = sources.load(data or "auto", val_fraction=recipe.val_fraction, split_seed=recipe.split_seed)
    log(f"{chosen}: SHA-256 {model.sha256}, as listed; faces from {splits.source} {splits.location}")
    right: bool = splits.fingerprint() == model.data["fingerprint"]
    if not right:
        log(f"these faces have fingerprint {splits.fingerprint()}, the card's {model.data['fingerprint']}: other faces")
    scored = score(engine, splits)["scores"]
    # The card may be of one of the challenge's halves, where the test part of these faces is both.
    places = ["test"]
    if "public" not in model.scores:
        places += [place for place in ("public", "private") if place in scored]
    placed = {place: _against(model.scores, scored, place) for place in places}
    place = next((place for place, agrees in placed.items() if all(agrees.values())), places[0])
    log(f"{'faces':28} {'right, card':>15} {'right, found':>15}")
    for (key, agrees), told in zip(placed[place].items(), model.scores.values(), strict=True):
        if key not in scored:
            log(f"{SET_TITLES[key]:28} there are none")
        else:
            told_text, found_text = (f"{held['correct']:,} of {held['faces']:,}" for held in (told, scored[key]))
            log(f"{SET_TITLES[key]:28} {told_text:>15} {found_text:>15}{'' if agrees else '  differs'}")
        right &= agrees
    for key in [key for key in scored if key not in placed[place]]:
        accuracy = scored[key]["accuracy"]
        interval = f"{accuracy['value']:.2%} ({accuracy['low']:.2%} to {accuracy['high']:.2%})"
        log(
            f"{SET_TITLES[key]:28} {'not there':>15} {scored[key]['correct']:,} of {scored[key]['faces']:,}, {interval}"
        )
    there = folder / f"{chosen}.md"
    if not there.is_file() or there.read_text(encoding="utf-8") != card(chosen, model):
        log(f"{chosen}.md does not say what box.json does")
        right = False
    log(f"the numbers of {chosen}'s card are {'reproduced' if right else 'NOT reproduced'}")
    return right


def _against(told: dict[str, Any], found: dict[str, Any], place: str) -> dict[str, bool]:
    """Return for each set of a card, its test part taken for ``place``, whether the scores found are the card's."""
    agrees = {}
    for name, held in told.items():
        key = name.replace("test", place, 1)
        scores = found.get(key)
        # The file's probabilities are scaled already.
        agrees[key] = (
            scores is not None
            and scores["faces"] == held["faces"]
            and abs(scores["correct"] - held["correct"]) <= 1
            and abs(scores["nll"]["value"] - held["scaled"]["nll"]["value"]) < 1e-3
        )
    return agrees


def _checked(name: str, data: str | None, folder: Path) -> int:
    """Check a model for a command line, and return its exit status: 2 where there is no such file to check."""
    try:
        return 0 if check(name, data, folder, log=print) else 1
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill or check the box, or make a run of a model in it.

    Returns:
        0; 1 where a card's numbers are not reproduced; 2 where nothing could be done.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.box",
        description="Put a run's best network into the box, score the models there and check their cards, or lay one "
        "out as a run.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="RUN NAME",
        help="with --check only the model's NAME, all without it; with --unpack first its NAME, then the RUN to make",
    )
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--check", action="store_true", help="score the models anew and hold them against their cards")
    doing.add_argument("--unpack", action="store_true", help="make a run of a model: a teacher, or for 04")
    parser.add_argument("--data", help="the faces of the training; by default where the run says, or what `auto` finds")
    parser.add_argument("--box", type=expanded, default=WEIGHTS, metavar="DIR", help="another box than the package's")
    given = parser.parse_args(arguments)
    if not given.check and len(given.what) != 2:
        order = "a model, and the run to make of it" if given.unpack else "a run, and what its model is to be called"
        parser.error(f"name {order}")

    from fer_utils import evaluation
    from fer_utils.checkpoint import CheckpointError
    from fer_utils.runs import Run, RunError
    from fer_utils.sources import SourceError

    try:
        if given.check:
            names = given.what or list(listed(given.box))
            if not names:
                raise ExportError(f"{given.box} holds no model")
            # Every model is checked, whatever the first ones say.
            return max([_checked(name, given.data, given.box) for name in names])
        if given.unpack:
            name, path = given.what
            print(unpack(name, path, given.box).path)
            return 0
        run = Run.choose(given.what[0])
        put(run, evaluation.faces_of(run, given.data), given.what[1], given.box, log=print)
    except (ExportError, CheckpointError, RunError, SourceError, RecipeError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # as of a disk that is full
        print(refusal(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
