"""recipe.py: what is read, what is refused, and that a mistake is told with its place."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fer_utils import recipe as recipes
from fer_utils.recipe import Augment, Recipe, RecipeError


@pytest.fixture
def written(tmp_path: Path):
    """Write a YAML file and return its path."""

    def write(text: str, name: str = "own.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -- what is read -----------------------------------------------------------------------------------------------------


def test_every_recipe_in_the_box_is_read_under_its_own_name() -> None:
    boxed = {"fast", "dense_head", "partial_finetune", "linear_head", "custom_cnn", "one_cycle"}
    assert boxed <= set(recipes.names())
    for name in recipes.names():
        recipe = recipes.load(name)
        assert recipe.name == name
        assert recipe.description.endswith(".")


def test_every_recipe_in_the_box_says_what_it_costs_and_gives_at_its_top() -> None:
    for name in recipes.names():
        head = (recipes.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("description:")[0]
        assert head.startswith(f"# {name}: ")
        score = "Measured" if name in ("fast", "narrow", "accurate", "small") else "Reported"
        assert all(f"\n# {label}: " in head for label in ("Command", score, "Time"))
        if name != "fast":
            assert f"papermill notebooks/03_train.ipynb out.ipynb -p recipe {name} -p data PATH" in head


def test_a_recipe_of_ones_own_is_a_file(written) -> None:
    recipe = recipes.load(written("epochs: 5\nbackbone: resnet34\naugment:\n  scale: [0.5, 2]\n", "my own (2).yaml"))
    assert recipe.name == "my-own-2"
    assert (recipe.epochs, recipe.backbone, recipe.augment.scale) == (5, "resnet34", (0.5, 2.0))
    assert recipe.augment.flip == 0


def test_a_run_called_none_is_no_run(written) -> None:
    recipe = recipes.load(written("epochs: 0\nteacher: none\nstart: None\n"))
    assert (recipe.teacher, recipe.start) == (None, None)


def test_any_file_name_gives_a_name(tmp_path: Path) -> None:
    for file, name in (
        ("exp².yaml", "exp"),
        ("½.yaml", "recipe"),
        ("my own (2).yml", "my-own-2"),
        ("größe_1.yaml", "größe_1"),
    ):
        (tmp_path / file).write_text("epochs: 1\n", encoding="utf-8")
        assert recipes.load(tmp_path / file).name == name


def test_words_are_read_as_people_write_them(written) -> None:
    recipe = recipes.load(
        written("epochs: 3\nlr: 1e-3\nweight_decay: 5E-4\naugment:\n  flip: 5e-1\nlayer_lr:\n  fc: .5\nclip_norm: ~\n")
    )
    assert (recipe.lr, recipe.weight_decay, recipe.augment.flip) == (0.001, 0.0005, 0.5)
    assert recipe.layer_lr == {"fc": 0.5}
    assert recipe.clip_norm is None


def test_extends_changes_a_few_lines_of_another(written) -> None:
    base = recipes.load("fast")
    own = recipes.load(written("extends: fast\nepochs: 7\naugment:\n  rotation: 25\n", "mine.yaml"))
    assert (own.name, own.description) == ("mine", "")
    assert own.augment == base.augment.model_copy(update={"rotation": 25.0})
    kept = {"name", "description", "epochs", "augment"}
    assert own.model_dump(exclude=kept) == base.model_dump(exclude=kept)


def test_extends_follows_files_beside_the_file_and_replaces_layer_rates_whole(written) -> None:
    written("extends: partial_finetune\nlr: 0.5\n", "middle.yaml")
    own = recipes.load(written("extends: middle.yaml\nlayer_lr: {fc: 2}\n", "mine.yaml"))
    assert (own.name, own.lr, own.train_layers) == ("mine", 0.5, ("layer3", "layer4", "fc"))
    assert own.layer_lr == {"fc": 2.0}


def test_overrides_come_as_values_or_as_text() -> None:
    changes: dict[str, Any] = {
        "epochs": "7", "lr": "1e-2", "compile": "True", "head": "[100, 50]", "channels": "3", "clip_norm": "0.5",
        "augment": "{rotation: 1e1}", "betas": [0.8, 0.9], "schedule": "cosine", "seed": None, "val_fraction": "none",
    }  # fmt: skip
    recipe = recipes.load("fast", changes)
    assert (recipe.epochs, recipe.lr, recipe.compile, recipe.head) == (7, 0.01, True, (100, 50))
    assert (recipe.channels, recipe.clip_norm, recipe.betas, recipe.schedule) == (3, 0.5, (0.8, 0.9), "cosine")
    assert recipe.augment == Augment(rotation=10.0)
    assert (recipe.seed, recipe.val_fraction) == (recipes.load("fast").seed, None)


@pytest.mark.parametrize("name", recipes.names())
def test_what_is_dumped_is_parsed_again(name: str) -> None:
    recipe = recipes.load(name)
    assert recipes.parse(recipe.dump()) == recipe
    assert list(recipes.yaml.safe_load(recipe.dump())) == list(Recipe.model_fields)


@given(
    name=st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True),
    description=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
    lr=st.floats(1e-12, 1e6),
    flip=st.floats(0, 1),
)
@example(name="1e3", description="on", lr=1e-5, flip=0.0)
@example(name="010", description="~", lr=1e6, flip=1.0)
@example(name="0", description="\x85", lr=1.0, flip=0.0)
@example(name="0", description="a\u2028b\r\u2029", lr=1.0, flip=0.0)
@settings(max_examples=40, deadline=None)
def test_any_text_and_number_survives_the_file(name: str, description: str, lr: float, flip: float) -> None:
    recipe = Recipe(name=name, description=description, lr=lr, augment=Augment(flip=flip), epochs=1)
    assert recipes.parse(recipe.dump()) == recipe


def test_backbones_are_torchvisions_without_importing_it() -> None:
    assert recipes.backbones() == ("custom_cnn", *torchvision.models.list_models(module=torchvision.models))


def test_nothing_here_imports_torch() -> None:
    code = "import sys; from fer_utils import recipe; recipe.load('dense_head'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- what is refused, with its line -----------------------------------------------------------------------------------

WRONG = {
    "unknown key": ("epochs: 1\nrotation: 3\n", 2, ["unknown field 'rotation'", "known: name"]),
    "misspelt key": ("epochs: 1\n\nbatchsize: 3\n", 3, ["did you mean batch_size?"]),
    "unknown nested key": ("epochs: 1\naugment:\n  flip: 1\n  flop: 1\n", 4, ["'flop'", "did you mean flip?"]),
    "text for a number": ("lr: fast\nepochs: 1\n", 1, ["lr", "number", "'fast'"]),
    "number for a choice": ("epochs: 1\nschedule: 3\n", 2, ["schedule", "one_cycle", "got 3"]),
    "fraction for a whole number": ("epochs: 1.5\n", 1, ["epochs", "integer", "1.5"]),
    "yes for true": ("epochs: 1\ncompile: yes\n", 2, ["compile", "boolean", "'yes'"]),
    "octal look": ("epochs: 010\n", 1, ["epochs", "'010'"]),
    "not finite": ("epochs: 1\nlr: .inf\n", 2, ["lr"]),
    "overflow": ("epochs: 1\nlr: 1e999\n", 2, ["lr", "finite"]),
    "out of range": ("epochs: 1\naugment: {flip: 1.5}\n", 2, ["augment.flip", "1.5"]),
    "range upside down": ("epochs: 1\naugment:\n  rotation: 3\n  scale: [2, 1]\n", 4, ["augment.scale", "[2.0, 1.0]"]),
    "three for a pair": ("epochs: 1\nbetas: [1, 2, 3]\n", 2, ["betas", "2 items"]),
    "betas of 1": ("epochs: 1\nbetas: [0.9, 1]\n", 2, ["betas"]),
    "more than the face": ("epochs: 1\naugment:\n  erasing: {scale: [0.5, 1.5]}\n", 3, ["augment.erasing.scale"]),
    "unknown backbone": ("epochs: 1\nbackbone: resnet81\n", 2, ["'resnet81'", "did you mean resnet18?", "vgg16"]),
    "no validation to watch": ("epochs: 1\nval_fraction: 0\nschedule: plateau\n", 2, ["schedule plateau", "line 3"]),
    "two ends": ("epochs: 9\nkeep_epoch: 3\nearly_stopping: 3\n", 3, ["keep_epoch", "early_stopping", "line 2"]),
    "no validation to stop by": ("epochs: 1\nval_fraction: 0\nearly_stopping: 3\n", 3, ["early_stopping", "line 2"]),
    "stem of no ResNet": ("backbone: vgg16\nepochs: 1\nstem: 3x3s1\n", 3, ["stem", "vgg16", "line 1"]),
    "stem of no ImageNet": ("epochs: 1\nweights: imagenet\nstem: 3x3s2\n", 3, ["7×7", "3x3s2", "line 2"]),
    "width of no ImageNet": ("epochs: 1\nweights: imagenet\nwidth: 0.5\n", 3, ["width 1 only", "line 2"]),
    "custom_cnn of no ImageNet": ("epochs: 1\nweights: imagenet\nbackbone: custom_cnn\n", 3, ["weights imagenet"]),
    "SiLU of no ImageNet": ("epochs: 1\nweights: imagenet\nactivation: silu\n", 3, ["trained with ReLU"]),
    "SiLU of no ResNet": ("backbone: vgg16\nepochs: 1\nactivation: silu\n", 3, ["set activation relu"]),
    "shortcut of no ImageNet": ("epochs: 1\nweights: imagenet\nshortcut: average\n", 3, ["strided shortcuts"]),
    "shortcut of no ResNet": ("backbone: vgg16\nepochs: 1\nshortcut: average\n", 3, ["set shortcut strided"]),
    "zeros overwritten": ("epochs: 1\nweights: imagenet\nzero_init_residual: true\n", 3, ["overwritten"]),
    "teacher of mixed faces": ("epochs: 1\nmixup: 0.2\nteacher: a\n", 2, ["no mixup"]),
    "start and weights": ("epochs: 1\nweights: imagenet\nstart: a\n", 2, ["start a brings its own weights"]),
    "no start": ("epochs: 1\nstart: ' , '\n", 2, ["start names no run"]),
    "norm of members": ("epochs: 1\nmembers: 2\nclip_norm: 1\n", 3, ["one norm over all", "set clip_norm to null"]),
    "teacher of nothing": ("epochs: 0\nteacher: a\n", 1, ["epochs 0 trains nothing"]),
    "sam of members": ("epochs: 1\nmembers: 2\nsam: 0.1\n", 2, ["set sam to 0"]),
    "a start twice": ("epochs: 1\nstart: a,b,a\n", 2, ["start a,b,a names a run twice"]),
    "teacher of no name": ("epochs: 1\nteacher: ' , '\n", 2, ["names no run"]),
    "negative layer rate": ("epochs: 1\nlayer_lr: {fc: -1}\n", 2, ["layer_lr"]),
    "layer of nothing": ("epochs: 1\nhead: [10, 0]\n", 2, ["head"]),
    "key given twice": ("epochs: 1\nlr: 0.1\nlr: 0.2\n", 3, ["lr is given twice"]),
    "nested key given twice": ("epochs: 1\naugment:\n  flip: 0\n  flip: 1\n", 4, ["augment.flip is given twice"]),
    "list of mappings": ("epochs: 1\nhead: [{a: 1}]\n", 2, ["head"]),
    "alias": ("epochs: &e [1]\nhead: *e\n", 2, ["aliases"]),
    "endless alias": ("augment: &e\n  flip: *e\n", 2, ["aliases"]),
    "list as a key": ("epochs: 1\n? [a]\n: 1\n", 2, ["a word"]),
    "extends a number": ("extends: 3\nepochs: 1\n", 1, ["extends", "3"]),
    "extends nobody": ("epochs: 1\nextends: fats\n", 2, ["unknown recipe 'fats'", "did you mean fast?"]),
    "extends no file": ("epochs: 1\nextends: other.yaml\n", 2, ["other.yaml", "no such file"]),
    "tag": ("epochs: !!python/name:os.getcwd x\n", 1, ["not valid YAML", "python/name"]),
    "no YAML": ("epochs: 1\nlr: a: b\n", 2, ["not valid YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_with_its_line(written, case: str) -> None:
    text, line, words = WRONG[case]
    path = written(text)
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"line {line}" in message
    for word in words:
        assert word in message


def test_several_mistakes_are_told_at_once_each_with_its_line(written) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.load(written("epochs: -1\nlr: 0\nbogus: 1\n"))
    told = [line.split(", line ")[1].split(": ") for line in str(caught.value).splitlines()]
    assert sorted((number, about) for number, about, *_ in told) == [
        ("1", "epochs"),
        ("2", "lr"),
        ("3", "unknown field 'bogus', known"),
    ]


def test_a_mistake_in_the_extended_file_is_told_with_that_file(written) -> None:
    base = written("epochs: 1\nlr: -3\n", "base.yaml")
    with pytest.raises(RecipeError, match=r"base\.yaml, line 2: lr"):
        recipes.load(written("extends: base.yaml\nseed: 1\n"))
    assert recipes.load(written("extends: base.yaml\nlr: 3\n")).lr == 3
    assert base.is_file()


def test_files_that_extend_each_other_are_refused(written, tmp_path: Path) -> None:
    # The second goes by a roundabout path, so that the same file has ever new names.
    written("extends: b.yaml\n", "a.yaml")
    written(f"extends: ../{tmp_path.name}/a.yaml\n", "b.yaml")
    with pytest.raises(RecipeError, match=r"circle: a -> b -> a"):
        recipes.load(tmp_path / "a.yaml")
    with pytest.raises(RecipeError, match=r"circle: self -> self"):
        recipes.load(written("extends: self.yaml\nepochs: 1\n", "self.yaml"))


@pytest.mark.parametrize("text", ["", "- 1\n", "fast", "null"])
def test_what_is_no_mapping_is_no_recipe(written, text: str) -> None:
    with pytest.raises(RecipeError, match="mapping of fields"):
        recipes.load(written(text))


@pytest.mark.parametrize(
    "value",
    ["!!int abc", "!!float abc", "!!bool abc", "!!timestamp abc", "9" * 5000, "[" * 3000],
    ids=lambda text: text[:16],
)
def test_a_value_that_yaml_cannot_make_is_refused(written, value: str) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        recipes.load(written(f"epochs: 1\nlr: {value}\n"))
    with pytest.raises(RecipeError, match=r"parameter head: .* is not YAML"):
        recipes.load("fast", {"head": f"[{value}]"})


def test_a_recipe_that_is_a_set_is_refused(written) -> None:
    with pytest.raises(RecipeError, match="mapping of fields"):
        recipes.load(written("!!set {epochs, lr}\n"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as text"):
        recipes.load(path)
    with pytest.raises(RecipeError, match="no such file"):
        recipes.load(tmp_path / "none.yaml")


def test_a_missing_field_and_an_unknown_recipe_are_told(written) -> None:
    with pytest.raises(RecipeError, match="epochs"):
        recipes.load(written("lr: 1\n"))
    with pytest.raises(RecipeError, match=r"unknown recipe 'fsat', did you mean fast\?.*path of a \.yaml file"):
        recipes.load("fsat")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epochs", "many", "parameter epochs: expected a whole number, got 'many'"),
        ("lr", float("nan"), "parameter lr"),
        ("lr", -1, "parameter lr"),
        ("channels", "2", "parameter channels.*1 or 3"),
        ("channels", True, "parameter channels.*1 or 3"),
        ("channels", 1.0, "parameter channels.*1 or 3"),
        ("seed", 2**63, "parameter seed"),
        ("augment", "{rotation: 500}", "parameter augment.*augment.rotation"),
        ("augment", "{rotation: ", "parameter augment.*YAML"),
        ("layer_lr", [1], "parameter layer_lr"),
        ("bacbone", "vgg16", "did you mean backbone"),
        ("width", "0.5", "parameter width"),
    ],
)
def test_a_wrong_override_is_told_by_its_name(name: str, value: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipes.load("dense_head", {name: value})


def test_a_run_of_another_version_is_no_recipe_of_this_one() -> None:
    with pytest.raises(RecipeError, match=r"recipe, line \d+: unknown field 'optimiser'"):
        recipes.parse(recipes.load("fast").dump().replace("optimizer:", "optimiser:"))


def test_recipes_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipes.load("fast").epochs = 3  # type: ignore[misc]


# -- the parameters of a notebook -------------------------------------------------------------------------------------

DECLARED = """# parameters: what to train
data: str = "auto"  # which faces
recipe: str = None  # a name or a file
run: str = None  # one that is there
weights: str = None  # to begin with
epochs: int = None  # passes
lr: float = None  # rate
clip_norm: float = None  # bound
compile: bool = None  # faster
head: str = None  # layers
device: str = "auto"  # where
resume: str = "auto"  # go on
rows: int = 5  # of the grid
which: str = "best"  # checkpoint
"""


def run_cells(injected: str = "", kinds: dict[str, Any] | None = None) -> dict[str, Any]:
    """Do what a notebook does: run the declaring cell, papermill's cell if any, then check."""
    cells = ["", "# a title", DECLARED, *([f"# Parameters\n{injected}"] if injected else [])]
    values: dict[str, Any] = {}
    for cell in cells:
        exec(cell, values)
    return recipes.check_parameters(cells, values, kinds)


def test_parameters_come_back_with_their_types() -> None:
    assert run_cells() == {
        "data": "auto", "recipe": None, "run": None, "weights": None,
        "epochs": None, "lr": None, "clip_norm": None, "compile": None, "head": None,
        "device": "auto", "resume": "auto", "rows": 5, "which": "best",
    }  # fmt: skip
    injected = (
        'epochs = "3"\nlr = "1e-3"\ncompile = "true"\nhead = "[100]"\nrows = "2"\nresume = "false"\ndevice = "cuda:1"'
    )
    given = run_cells(injected)
    assert (given["epochs"], given["lr"], given["compile"], given["head"], given["rows"]) == (3, 0.001, True, [100], 2)
    assert (given["resume"], given["device"]) == (False, "cuda:1")
    assert run_cells("epochs = 3\nlr = 1\nhead = [100, 20]")["head"] == [100, 20]
    # papermill makes numbers of these; one item is a list of one.
    assert run_cells("data = 7\nhead = 100") == run_cells("data = '7'\nhead = '100'")
    assert run_cells("head = 100")["head"] == [100]


def test_the_text_none_turns_a_field_off_where_none_leaves_it_to_the_recipe() -> None:
    given = run_cells('recipe = "partial_finetune"\nclip_norm = "none"')
    assert recipes.load("partial_finetune").clip_norm == 1.0
    assert recipes.load("partial_finetune", {"clip_norm": given["clip_norm"]}).clip_norm is None
    assert run_cells("clip_norm = None")["clip_norm"] is None


@pytest.mark.parametrize(
    ("injected", "words"),
    [
        ("epoch = 3", r"unknown parameter 'epoch', did you mean epochs\?"),
        ("bogus = 3", "unknown parameter 'bogus', known: data, recipe"),
        ('epochs = "three"', "parameter epochs: expected a whole number, got 'three'"),
        ("epochs = 3.5", "parameter epochs: expected a whole number, got 3.5"),
        ("epochs = True", "parameter epochs: expected a whole number, got True"),
        ("epochs = -3", "parameter epochs.*-3"),
        ("lr = 'fast'", "parameter lr: expected a number, got 'fast'"),
        ("data = True", "parameter data: expected text, got True"),
        ("epochs = -1", r"^parameter epochs: Input should"),
        ("rows = 'x'", "parameter rows: expected a whole number"),
        ("device = 'gpu'", "parameter device: expected one of: auto, cpu"),
        ("resume = 'perhaps'", "parameter resume: expected true or false or one of: auto"),
        ("which = 'first'", "parameter which: expected one of: best, last, got 'first'"),
        ("recipe = 'fsat'", "unknown recipe 'fsat'"),
        ("recipe = 'custom_cnn'\nhead = '[-1]'", "parameter head: head holds layer sizes"),
    ],
)
def test_a_wrong_parameter_is_told_by_its_name(injected: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        run_cells(injected, {"which": Literal["best", "last"]})


def test_parameters_are_held_against_the_recipe_of_the_run_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipes.load("linear_head").dump())
    # ImageNet's weights do not fit the stem of fast, and do fit this run's.
    assert run_cells(f"run = {str(tmp_path)!r}\nweights = 'imagenet'")["weights"] == "imagenet"
    with pytest.raises(RecipeError, match="parameter weights: weights imagenet"):
        run_cells("weights = 'imagenet'")
    with pytest.raises(RecipeError, match=r"parameter epochs.*-3"):
        run_cells(f"run = {str(tmp_path)!r}\nepochs = -3")


def test_parameters_are_held_against_each_of_several_recipes() -> None:
    cell = "# parameters: what\nrecipes: str = 'fast'\nruns: str = None\nweights: str = None\nepochs: int = None"

    def given(**values: Any) -> dict[str, Any]:
        return recipes.check_parameters([cell], {"recipes": "fast", "runs": None, "weights": None, **values})

    assert given(recipes="one_cycle, linear_head", weights="imagenet")["weights"] == "imagenet"
    with pytest.raises(RecipeError, match="weights imagenet"):
        given(recipes="one_cycle,fast", weights="imagenet")
    with pytest.raises(RecipeError, match="unknown recipe 'fsat'"):
        given(recipes="one_cycle,fsat")
    with pytest.raises(RecipeError, match=r"parameter epochs.*-3"):
        given(recipes="custom_cnn", epochs=-3)


def test_parameters_need_their_cell() -> None:
    with pytest.raises(RecipeError, match="from its top"):
        recipes.check_parameters(["print(1)"], {})


def test_a_cell_run_again_declares_anew() -> None:
    again = DECLARED.replace("rows: int = 5", "rows: int = 6")
    values: dict[str, Any] = {}
    for cell in (DECLARED, again):
        exec(cell, values)
    assert recipes.check_parameters([DECLARED, again], values)["rows"] == 6


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()
    assert all(len(line.split()) > 4 for line in lines)
    assert recipes.main(["one_cycle"]) == 0
    assert recipes.parse(capsys.readouterr().out) == recipes.load("one_cycle")
    assert recipes.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert "python -m fer_utils.recipe" in told
    assert "below" not in told, "nothing follows"


def test_the_command_line_refuses_in_words(written, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main([str(written("epochs: 1\nbogus: 2\n"))]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "line 2: unknown field 'bogus'" in printed.err


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fer_utils.recipe", "fast"], capture_output=True, text=True, check=True
    )
    assert recipes.parse(done.stdout) == recipes.load("fast")
