# Each target is a line that anyone could type. `make suite` is the one to begin with.
#
#   make suite [DATA=PATH] [EPOCHS=N] [RECIPE=NAME] [OUT=DIR]    notebooks 01 to 05, their HTML and a trained model
#              [SET="NAME=VALUE ..."]                            the notebooks' other parameters; no spaces in a VALUE
#   make test      the tests (FER_DATA=PATH adds those on real faces)
#   make lint      ruff and mypy
#   make bench     every benchmark: a table, and the ratio that matters
#   make lab       JupyterLab on the notebooks
#   make lock      requirements.lock anew from pyproject.toml (UPGRADE=--upgrade: the newest versions)

PYTHON ?= python3
# Plain `=`: a variable of the environment that happens to be called DATA changes nothing.
DATA = synthetic
EPOCHS = 5
RECIPE = fast
OUT =
SET =
UPGRADE =

.PHONY: suite test lint bench lab lock

suite: .venv/installed
	.venv/bin/python -m fer_utils.suite --data "$(DATA)" --epochs "$(EPOCHS)" --recipe "$(RECIPE)" $(if $(OUT),--out "$(OUT)") $(foreach item,$(SET),--set '$(subst ','\'',$(item))')

test: .venv/installed
	.venv/bin/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

lint: .venv/installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

bench: .venv/installed
	status=0; for program in $$(grep -l '^if __name__' benchmarks/*.py); do echo "== $$program"; .venv/bin/python "$$program" || status=1; done; exit $$status

lab: .venv/installed
	.venv/bin/jupyter lab notebooks

# The build backend goes in too, so that the package itself installs without fetching anything.
lock: .venv/installed
	.venv/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" \
	| .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" --all-extras $(UPGRADE) --output-file requirements.lock pyproject.toml -

.venv/installed: requirements.lock pyproject.toml setup.py fer_utils/sources/_numbers.c
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
