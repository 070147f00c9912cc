# All that a fresh clone needs. `make help` says what there is.

# The first Python on the PATH that is 3.11 or 3.12 and really runs (a shim may be there for a version that is not).
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3 python,$(shell $(name) -c \
	'import sys; sys.version_info[:2] in ((3, 11), (3, 12)) and print(sys.executable)' 2>/dev/null)))
HADOLINT ?= hadolint
JOBS ?= 2

BIN := .venv/bin
INSTALLED := .venv/installed

# Without its cache of compiled files every command starts three times slower.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install lint check test sweep demo lock format docker-lint clean
.DELETE_ON_ERROR:

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## .venv with all the locks list, and this project in it (GPU=1: torch's GPU build)

$(INSTALLED): $(wildcard requirements/*.txt) requirements/install.py pyproject.toml $(wildcard forecaster/model/recurrence/csrc/*.[ch])
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed, and neither is on the PATH. Name one: make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python requirements/install.py lock.txt $(if $(GPU),--gpu)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

lint: install ## format, lint, types, walls
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## what to run before a commit: lint, then the fast tests
	$(BIN)/pytest --numprocesses $(JOBS) -m "not slow and not sweep"

test: install ## every test but the rest of the long sweeps
	$(BIN)/pytest --numprocesses $(JOBS) -m "not sweep"

sweep: install ## the rest: every combination of a graph, every step of a retraining cut short, a search, many machines at once
	$(BIN)/pytest --numprocesses $(JOBS) -m sweep

demo: install ## from a series to a served forecast, on this machine
	$(BIN)/forecaster demo

format: install ## put the code in shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## renew the locks (needs uv)
	"$(PYTHON)" requirements/lock.py

docker-lint: ## the Dockerfile, by hadolint; the compose file, where Docker is
	$(HADOLINT) docker/Dockerfile
	if docker compose version >/dev/null 2>&1; then docker compose --file docker/compose.yaml config --quiet; fi

clean: ## forget what was built; .venv and .forecaster stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
