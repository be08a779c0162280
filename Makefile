# Every target does all of its own set-up on a machine with python3, git and make: Python packages go into .venv, Debian
# packages are installed as root or with sudo where that is possible without a question. A second run is quick.

## PYTHON        the Python that makes .venv, 3.11 or newer (python3); `make clean` before changing it
## PYTEST_ARGS   more arguments for pytest, such as a path or -k NAME
## BENCH_ARGS    arguments for the bench, see `make bench BENCH_ARGS=--help`
## DEMO_ARGS     arguments for the demo, such as --keep DIR
## LIVE          "required": missing Debian packages are an error instead of skipped live tests
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=
LIVE ?=

SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.ready
BESIDE := -n auto --maxprocesses=4 --dist worksteal # so many tests at a time as there are processors

.DEFAULT_GOAL := help
.PHONY: help demo test test-long bench lint man clean

help: ## what can be made
	@sed -nE 's/^([a-z-]+):.* ## (.*)/  make \1\t\2/p' Makefile | expand -t 20
	@sed -nE 's/^## ([A-Z_]+) +(.*)/  \1=\t\2/p' Makefile | expand -t 20

demo: $(READY) ## the whole of maild on this machine, with no account and no network
	@$(BIN)/maild demo $(DEMO_ARGS)

test: lint live-packages ## lint, then all tests but the long ones; live tests use a Dovecot of their own
	$(BIN)/pytest $(BESIDE) $(PYTEST_ARGS)

test-long: lint live-packages ## the same with the long tests, and Hypothesis searching longer
	@.ci/debian "the live test of sending through Postfix" postfix || true
	@.ci/debian "the live tests on Cyrus" cyrus-common || true
	@.ci/debian "the live tests with mail readers" mutt notmuch bsdutils || true
	MAILD_HISTORIES=$${MAILD_HISTORIES:-10000} $(BIN)/pytest $(BESIDE) -m "" --hypothesis-profile=long -o faulthandler_timeout=3600 $(PYTEST_ARGS)

bench: $(READY) ## maild beside its peers: times, memory, bytes kept
	@.ci/debian "the bench" dovecot-imapd dovecot-lmtpd dovecot-pop3d isync interimap offlineimap3 mpop getmail6 fetchmail procmail || true
	@.ci/debian "the bench of sending" msmtp postfix || true
	$(BIN)/python -m tests.bench.run $(BENCH_ARGS)

lint: $(READY) ## ruff (rules and format) and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

man: $(READY) ## write config/man and config/completions anew, from the options and the config's schema
	$(BIN)/python -m maild.commands.manual config

clean: ## remove .venv, caches and build products
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find maild tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): constraints.txt pyproject.toml .ci/venv
	@.ci/venv "$(PYTHON)"
	@touch $@

.PHONY: live-packages
live-packages:
	@.ci/debian "the live tests" dovecot-imapd dovecot-pop3d dovecot-submissiond strace \
		gnome-keyring dbus-daemon dbus-bin || \
		{ echo "so those that need them are skipped"; test "$(LIVE)" != required; }
