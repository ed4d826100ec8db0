# A fresh machine needs only two commands: make repro, make test. Each creates .venv from the lock if it is missing.

SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# DVC runs the first python on PATH
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
# .venv/ready sets the same for a `dvc` that make does not run
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/site
# Python is started for each stage, and hundreds of times by the tests: without bytecode it compiles everything each time
unexport PYTHONDONTWRITEBYTECODE
RECIPE ?=
SOURCE ?=
ONLY ?=
FAULTS ?=
NAME :=
ON := dvc
PORT ?= 5000
FOLDER ?=
# empty in an unpacked zip of the repository
GIT := $(shell [ -e .git ] && echo .git || git rev-parse --git-dir 2> /dev/null)

.PHONY: help scm repro test fast lint mutants kills faults fuzz whole bench bench-quick study ui docs audit licences lock clean

help: ## prints this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1	/'

repro: scm .venv/installed ## runs the whole workflow; with RECIPE=paper, SOURCE=ilsvrc2012 or both, as a separate experiment
	@if [ -z "$(GIT)" ]; then dvc config --local core.no_scm true
	elif grep -qs no_scm .dvc/config.local; then dvc config --local --unset core.no_scm; fi
	if [ -n "$(RECIPE)$(SOURCE)" ]; then python -m pipeline run $(addprefix --recipe ,$(RECIPE)) $(addprefix --source ,$(SOURCE))
	else dvc repro && { python -m pipeline runs --last 5 || true; }; fi

test: lint ## runs lint and all tests, in two processes
	@pytest -n 2 --dist loadfile --no-loadscope-reorder

fast: .venv/installed ## runs the fast tests, a minute
	@pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: .venv/installed ## runs ruff and mypy, and checks which package imports which
	@ruff check
	ruff format --check
	mypy
	lint-imports --no-cache --no-logo

mutants: .venv/installed ## breaks the code line by line and checks that a test fails
	@python tests/mutants.py

kills: .venv/installed ## kills every stage again and again and compares the outs
	@python tests/kills.py

faults: .venv/installed ## runs the tests of docs/faults.md that are slow or need network namespaces; FAULTS="tests/test_network.py": one file
	@pytest -n 2 --dist loadfile --faults -m faults $(FAULTS)

fuzz: .venv/installed ## feeds the readers 20,000 damaged files and 10,000 drawn data sets
	@python tests/fuzz.py --cases 20000 --seed 0
	@pytest -q -m slow --hypothesis-profile=fuzz tests/pipeline/sources/test_drawn.py

whole: .venv/installed ## runs the whole workflow with each recipe at full width, and on a small set from each source
	@pytest -n 2 --dist loadfile tests/whole --whole

bench: .venv/installed benchmarks/.env/ready ## measures all speeds beside other projects'; FOLDER=a folder of JPEGs, otherwise drawn ones
	@python -m benchmarks $(FOLDER) --peers benchmarks/.env/bin/python

bench-quick: .venv/installed benchmarks/.env/ready ## the same in ten minutes on 2 cores
	@python -m benchmarks $(FOLDER) --quick --peers benchmarks/.env/bin/python

study: scm .venv/installed ## NAME=ablations: does the missing runs of a study and prints its table; ONLY="one-column no-dropout"; ON=memory
	@python -m studies $(NAME) $(ONLY) --on $(ON)

ui: .venv/installed ## serves MLflow's pages at http://127.0.0.1:$(PORT)
	@python -m pipeline tracking ui --port $(PORT)

docs: .venv/installed ## makes the site of README, docs/ and studies/ in docs/_build/html; a warning is an error
	@sphinx-build -E -W --keep-going -q -b html -c docs -d docs/_build/doctrees . docs/_build/html
	echo "docs/_build/html/index.html"

audit: ## asks PyPI for advisories on the locked packages, except those that docs/advisories.csv gives a reason for
	@# It needs PyPI, so .ci/run does not run it; a test checks the lock against the answers kept in docs/advisories.csv.
	@# pip-audit has its own environment, so that it is not audited itself. --strict: a package without an answer fails
	if [ ! -x .audit/bin/pip-audit ]; then
		rm -rf .audit
		python3 -m venv .audit
		.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	fi
	known=$$(awk -F, 'NR > 1 && $$3 == "" {print "--ignore-vuln " $$2}' docs/advisories.csv)
	.audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock $$known

licences: .venv/installed ## writes docs/licences.csv anew: the licences that the locked packages state
	@python docs/licences.py

lock: ## writes requirements.lock and that of the peers anew from pyproject.toml (needs uv)
	@uv pip compile --generate-hashes --universal --python-version 3.11 --group dev pyproject.toml \
		--no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock
	uv pip compile --generate-hashes --universal --python-version 3.11 --group peers \
		--no-emit-index-url --no-annotate --no-header --quiet --output-file benchmarks/requirements.lock

scm: # a zip of the repository has no git: said before anything is installed
	@if [ -z "$(GIT)" ]; then
		init="git init && git add -A && git commit -m 'as unpacked'"
		if [ -n "$(RECIPE)$(SOURCE)" ] || [ "$(filter study,$(MAKECMDGOALS))" ]; then
			echo "make: this folder has no git, which an experiment of DVC needs. Run: $$init" >&2; exit 1
		fi
		echo "make: this folder has no git: the run is recorded as of no commit, and there are no experiments. For both: $$init"
	fi

clean: ## removes the environment and work in progress, but no archive and no run
	@rm -rf .venv work

repro fast lint mutants kills faults fuzz whole bench bench-quick study ui docs licences: .venv/ready

.venv/ready: .venv/installed .dvc/site.pth .dvc/rwlock.py .dvc/alexnet
	@packages=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	cp .dvc/rwlock.py "$$packages/alexnet_rwlock.py"
	cp .dvc/site.pth "$$packages"
	install -m 755 .dvc/alexnet .venv/bin/alexnet
	touch $@

# an environment of their own: their packages ask for other versions than ours
benchmarks/.env/ready: benchmarks/requirements.lock .venv/installed
	@echo "making benchmarks/.env: some minutes, 8 GB"
	.venv/bin/python -m venv --clear benchmarks/.env
	benchmarks/.env/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	touch $@

.venv/installed: requirements.lock
	@if [ -L .venv ]; then
		echo "make: .venv is a link to $$(readlink .venv), which making an environment here would empty. Remove the link: rm .venv" >&2
		exit 1
	fi
	python=
	for each in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do
		if "$$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then python=$$each; break; fi
	done
	if [ -z "$$python" ]; then
		echo "make: no Python 3.11, 3.12 or 3.13 found. Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1
	fi
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
		echo "make: $$python cannot make environments. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1
	fi
	echo "making .venv with $$("$$python" --version): some minutes, 7 GB"
	"$$python" -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@
