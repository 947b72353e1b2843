"""The house: dependencies agree wherever they are named, modules import downwards, nothing of one machine is in git."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fer_utils.files import ROOT

# Each module imports only from those before it.
ORDER = (
    "files emotions faces sources audit recipe augment preprocessing devices convolution models muon runs checkpoint "
    "metrics prediction training evaluation comparison explain export box pictures detection inference plots report "
    "suite"
).split()

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def declared() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *(r for e in extras for r in e)]
    return [Requirement(line) for line in lines]


def locked() -> dict[str, tuple[Requirement, int]]:
    """Requirement and number of hashes by name."""
    entries = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)
    found = {}
    for entry in entries:
        if entry.strip() and not entry.startswith("#"):
            requirement = Requirement(entry.split("\\")[0].split("\n")[0])
            found[canonicalize_name(requirement.name)] = (
                requirement,
                len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)),
            )
    return found


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_each_declared_dependency_is_locked_at_a_version_in_its_range(requirement: Requirement) -> None:
    pin, _ = locked()[canonicalize_name(requirement.name)]
    version = str(pin.specifier).removeprefix("==")
    assert Version(version) in requirement.specifier
    assert pin.marker is None, "a direct dependency is installed everywhere"


def test_every_locked_version_is_exact_and_has_hashes() -> None:
    assert len(locked()) > 100
    for name, (requirement, hashes) in locked().items():
        assert re.fullmatch(r"==[\w.!+]+", str(requirement.specifier)), name
        assert hashes, name


def test_the_lock_names_no_address() -> None:
    assert not re.findall(r"https?:|file:|--(?:extra-)?index|--find-links|--trusted-host", LOCK)


def test_every_third_party_import_is_declared() -> None:
    # Distributions whose import name is another.
    names = {
        "sklearn": "scikit-learn",
        "skimage": "scikit-image",
        "PIL": "pillow",
        "yaml": "PyYAML",
        "pytorch_grad_cam": "grad-cam",
        "cv2": "opencv-python-headless",
    }
    through = {"packaging"}  # pytest's own; only tests use it
    dependencies = {canonicalize_name(requirement.name) for requirement in declared()}
    missing: set[str] = set()
    for path in [
        *(ROOT / "fer_utils").rglob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "tests").glob("*.py"),
    ]:
        local = {"fer_utils", "conftest", *(p.stem for p in path.parent.glob("*.py"))}
        tops = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - through - local
        missing |= {
            f"{top} in {path.name}" for top in tops if canonicalize_name(names.get(top, top)) not in dependencies
        }
    assert not missing


def test_environment_yml_repeats_no_dependency() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert [re.split(r"[<>=]", item)[0] for item in plain] == ["python", "pip"]
    assert plain[0] == f"python{PROJECT['project']['requires-python']}"
    assert pip == ["-e .[dev]"]
    assert "dev" in PROJECT["project"]["optional-dependencies"]


def test_make_suite_defaults_to_five_epochs_on_drawn_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_DATA", "/somewhere/fer2013")
    monkeypatch.setenv("DATA", "elsewhere")
    assert '--data "synthetic" --epochs "5" --recipe "fast"' in make("suite")


def test_make_suite_passes_on_what_it_is_given() -> None:
    command = make("suite", "DATA=my faces", "EPOCHS=30", "RECIPE=own.yaml", "OUT=a run")
    assert '--data "my faces" --epochs "30" --recipe "own.yaml" --out "a run"' in command


def test_make_suite_passes_on_the_quotes_of_a_value() -> None:
    given = """augment={"flip":0.5,'rotation':5}"""
    assert shlex.split(make("suite", f"SET={given} seed=1"))[-4:] == ["--set", given, "--set", "seed=1"]


def test_make_installs_what_the_lock_pins_and_nothing_else() -> None:
    installs = [line for line in make("--always-make", "test").splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation -e ." in installs[1]


def test_make_tells_when_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    version = "import sys; sys.version_info = (3, 9, 2, 'final', 0); sys.version = '3.9.2 (main)'; exec(sys.argv[2])"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{version}" "$@"\n')
    old.chmod(0o755)
    # In a directory of its own, where there is no .venv yet.
    (tmp_path / "fer_utils" / "sources").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "setup.py", "fer_utils/sources/_numbers.c"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "3.9.2" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "fer_utils").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_import_only_from_those_above_them(path: Path) -> None:
    own = path.relative_to(ROOT / "fer_utils").with_suffix("").parts[0]
    below = [] if own == "__init__" else ORDER[ORDER.index(own) + 1 :]
    found = {name.split(".")[1] for name in imported(path) if name.startswith("fer_utils.")}
    wrong = found & set(ORDER if own == "__init__" else below)
    assert not wrong, f"{path.name} imports from below it: {', '.join(sorted(wrong))}"
    assert found - {"__version__"} <= set(ORDER)


def packed(scratch: Path, **environment: str) -> set[str]:
    """What is in the wheel of the package."""
    # A copy, since building leaves files beside the sources.
    source = scratch / "source"
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(ROOT / "fer_utils", source / "fer_utils", ignore=built)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [*pip, "--wheel-dir", str(scratch), str(source)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, **environment})
    (wheel,) = scratch.glob("fer_utils-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_package_carries_its_recipes_and_its_types(tmp_path: Path) -> None:
    kept = [p for p in (ROOT / "fer_utils").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    found = packed(tmp_path)
    assert {str(p.relative_to(ROOT)) for p in kept} <= found
    assert "fer_utils/py.typed" in found


def test_without_a_compiler_the_package_is_complete_but_for_what_is_compiled(tmp_path: Path) -> None:
    found = packed(tmp_path, CC="false", CXX="false")
    assert not [name for name in found if name.endswith((".so", ".pyd"))]
    assert {"fer_utils/py.typed", "fer_utils/sources/numbers.py"} <= found


def test_git_holds_no_path_of_one_machine_and_nothing_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    home = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt)/\w|[A-Z]:\\\\Users")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        # Only a trained network in the box may be large.
        assert path.stat().st_size < (25_000_000 if path.suffix == ".safetensors" else 5_000_000), name
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert not home.search(text), name


def test_the_pre_commit_checks_are_valid_and_installed() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    programs = {
        hook["entry"].split()[0].removeprefix(".venv/bin/") for repo in config["repos"] for hook in repo["hooks"]
    }
    assert {"ruff", "mypy", "nbstripout"} <= programs
    assert programs <= {requirement.name for requirement in declared()}


def make(*arguments: str) -> str:
    """What make would run."""
    # Where `make test` runs this, make would print which directory it enters.
    command = ["make", "--no-print-directory", "-n", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def imported(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from fer_utils import recipe` names a module, `from fer_utils.recipe import load` does not.
            yield from (".".join([*base, alias.name]) for alias in node.names) if len(base) == 1 else (".".join(base),)
