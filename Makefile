# What a person or CI asks of a fresh clone. Needs python3 (3.11 or newer), make and, for the tests, root on Debian.
# Every target makes what it needs first; stamp files in .venv keep a second run quick.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

#: systemd boots in namespaces for the tests of deploy/, where our package is built and installed (adduser, python3-venv);
#: the brokers are started by the tests themselves, on loopback
PACKAGES := adduser curl dbus iproute2 openssl python3-venv rabbitmq-server redis-server systemd util-linux

.PHONY: help demo test faults soak vm sim check lint types rooms docs bench deb lock clean

help:
	@echo "make demo [ARGS=--exit]   a tour on this machine, without a server"
	@echo "make test [ARGS=...]      the tests (pytest's arguments in ARGS)"
	@echo "make faults | soak        the long tests"
	@echo "make vm                   limits, on a kernel that has them: user-mode Linux"
	@echo "make sim                  presence and placement for 10 to 10,000 simulated branches, as tables"
	@echo "make check                ruff, mypy, the rooms' import contracts, the documentation"
	@echo "make docs                 the documentation alone, into docs/_build/html"
	@echo "make bench [ARGS=...]     beside supervisord, circus, pm2, and placements, into tests/bench/results.md"
	@echo "make deb                  the Debian package, into dist/"
	@echo "make lock                 new versions into requirements/*.txt"

demo: .venv/.demo
	$(BIN)/branchd demo $(ARGS)

test: .venv/.dev .venv/.packages
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "not faults and not soak and not vm" $(ARGS)

faults soak: .venv/.dev .venv/.packages
	$(BIN)/pytest -m $@ $(ARGS)

vm: .venv/.dev deb
	sh .ci/packages e2fsprogs mmdebstrap user-mode-linux
	$(BIN)/pytest -m vm $(ARGS) tests/vm

sim: .venv/.dev
	$(BIN)/python -m tests.simulation $(ARGS)

check: lint types rooms docs

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.dev
	$(BIN)/mypy

rooms: .venv/.dev
	$(BIN)/lint-imports

docs: .venv/.dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env docs docs/_build/html

bench: .venv/.dev .venv/.bench
	$(BIN)/python -m tests.bench $(ARGS)

# For this release of Debian, into dist/.
deb:
	sh .ci/packages python3-venv
	sh deploy/debian/build

# Hashes, no address of where a package came from, and all Pythons from 3.11 on in one file. The others take demo.txt's versions.
lock: | .venv/bin/python
	$(BIN)/python -m pip install -qq uv
	$(BIN)/uv pip compile pyproject.toml $(LOCK) --extra demo --group build --output-file requirements/demo.txt
	$(BIN)/uv pip compile pyproject.toml $(LOCK) --constraints requirements/demo.txt --output-file requirements/package.txt
	$(BIN)/uv pip compile --group build $(LOCK) --constraints requirements/demo.txt --output-file requirements/build.txt
	$(BIN)/uv pip compile pyproject.toml $(LOCK) --extra demo --group build --group lint --group test --group docs \
	  --group bench --constraints requirements/demo.txt --output-file requirements/dev.txt
LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --custom-compile-command "make lock"

clean:
	rm -rf .venv dist docs/_build

# branchd itself goes in last, editable, and builds with the locked hatchling.
.venv/.demo .venv/.dev: .venv/.%: requirements/%.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -qq --require-hashes --requirement $<
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	touch $@

# branchd as people have it, and pm2, which comes from npm.
.venv/.bench: requirements/demo.txt pyproject.toml $(shell find branchd -name '*.py' -o -name '*.sql') | .venv/bin/python
	test -x .venv/bench/bin/python || $(PYTHON) -m venv .venv/bench
	.venv/bench/bin/python -m pip install -qq --require-hashes --requirement $<
	.venv/bench/bin/python -m pip install -qq --no-deps --no-build-isolation --force-reinstall .
	command -v npm >/dev/null || sh .ci/packages npm
	npm install --silent --no-audit --no-fund --prefix .venv/pm2 pm2@7.0.4
	touch $@

# Debian's python3 comes without ensurepip, which venv needs.
.venv/bin/python:
	$(PYTHON) -c "import ensurepip" || sh .ci/packages python3-venv
	$(PYTHON) -m venv .venv

.venv/.packages: Makefile .ci/packages | .venv/bin/python
	sh .ci/packages $(PACKAGES)
	touch $@
