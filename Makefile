# podroute: `sudo make demo` shows the main job, `sudo make test` runs the whole suite. Both install what they need.
SHELL := /bin/sh
VENV := .venv/bin
# Agents and commands are started hundreds of times: half of what a start costs is compiling, where nothing may be kept.
unexport PYTHONDONTWRITEBYTECODE
# What a benchmark ends with, whether its goals are met or missed.
BENCHMARKS_PAGE = status=$$?; python -m benchmarks.page; exit $$status
export PATH := $(CURDIR)/$(VENV):$(PATH)
# Most tests wait for routers and timers: there are more processes than CPUs.
WORKERS ?= 3
PYTEST := python -m pytest -n $(WORKERS) --durations=25
# The tests of what is compiled that need neither root nor long tables.
PLAIN := tests/unit/test_bgp_*.py tests/unit/test_routes_*.py tests/wire/test_bgp_differential.py tests/wire/test_bgp_fuzz.py

.PHONY: help demo install uninstall compiled image lab-down test test-plain unit lab big-lab lint format conformance interop fuzz flood hammer
.PHONY: hammer-fib bench-bgp bench-cni bench-fib bench-ipam scenarios setup setup-tests venv lock clean
help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

demo: setup  ## the main job: two racks, four nodes, eight pods, real ToR routers (KEEP=1 leaves it up)
	@python -m labs.demo $(if $(KEEP),--keep)

install:  ## install this checkout on this machine, as docs/install.md says; starts nothing
	@sh agent/install.sh

uninstall:  ## take what `make install` installed away again; configuration and state stay
	@sh agent/install.sh --remove

lab-down: setup  ## remove the lab that `make demo KEEP=1` left up
	@python -m labs.demo --down

compiled: venv  ## compile the hot modules with mypyc; without it, all runs as plain Python (needs gcc and python3-dev)
	@python -m config.compiling

test: setup-tests lint compiled test-plain  ## the whole suite: lint, unit, wire, kernel, labs with real routers and runtimes (WORKERS=3)
	@$(PYTEST) tests

test-plain: venv  ## what is compiled, tried as plain Python; seconds
	@PODROUTE_PURE=1 python -m pytest -q -n $(WORKERS) $(PLAIN)

unit: venv  ## the tests that need no root; seconds
	@$(PYTEST) tests/unit tests/wire

lab: setup-tests compiled  ## the tests that build networks: kernel, real routers, real runtimes
	@$(PYTEST) tests/kernel tests/interop tests/runtime

scenarios: setup-tests compiled  ## every promise in a lab with traffic through it, onto one page: scenarios.html (SCENARIOS=names)
	@python -m labs.scenarios $(SCENARIOS)

image: setup-tests  ## build the agent's container image and run it as docs/cni.md says; minutes
	@PODROUTE_IMAGE=1 python -m pytest -q tests/runtime/test_runtime_image.py

big-lab: setup-tests compiled  ## the lab of forty nodes: up, converged, every pod reaches every other, down
	@PODROUTE_BIG=1 python -m pytest tests/interop/test_labs_topologies.py -k forty

conformance: setup-tests compiled  ## the BGP conformance suite at podroute, FRR, BIRD and GoBGP, into docs/conformance-bgp.md; minutes
	@mkdir -p build
	@python -m tests.conformance.bgp.compare --page docs/conformance-bgp.md --json build/conformance-bgp.json

interop: setup-tests compiled  ## the speaker with FRR, BIRD and GoBGP, into docs/interop.md
	@INTEROP_PAGE=docs/interop.md python -m pytest -q tests/interop/test_bgp_matrix.py tests/interop/test_bgp_features.py \
		tests/interop/test_bgp_protection.py tests/interop/test_bgp_helping.py

fuzz: venv  ## fuzz everything that reads a peer's octets (SECONDS=60)
	@python -m tests.wire.fuzz_bgp $(or $(SECONDS),60)

hammer: setup-tests compiled  ## twenty nodes on one store, and whole agents, killed at random for a minute each (SECONDS=60)
	@python -m tests.ipam_hammer sqlite $(or $(SECONDS),60)
	@python -m tests.ipam_hammer etcd $(or $(SECONDS),60)
	@python -m tests.agents_hammer $(or $(SECONDS),60)
	@IPAM_EXAMPLES=$(or $(EXAMPLES),100) python -m pytest -q --timeout 1800 tests/unit/test_ipam_machine.py

hammer-fib: setup-tests compiled  ## 10,000 routes that flap for 20 s, SIGKILL in a load of 500,000 (SECONDS=20 ROUTES=500000)
	@FLAP_SECONDS=$(or $(SECONDS),20) KILL_ROUTES=$(or $(ROUTES),500000) python -m pytest -q --timeout 1800 -s \
		tests/kernel/test_routes_bad_cases.py tests/kernel/test_routes_leftovers.py tests/kernel/test_agent_bad_cases.py
	@ROUTES_EXAMPLES=$(or $(EXAMPLES),3000) python -m pytest -q --timeout 1800 tests/unit/test_routes_machine.py

flood: setup-tests compiled  ## 5,000 connections a second from strangers for half a minute (SECONDS=30): no session is lost
	@FLOOD_SECONDS=$(or $(SECONDS),30) python -m pytest -q tests/kernel/test_bgp_strangers.py

bench-ipam: setup-tests compiled  ## addresses, claims and a full node, beside host-local (BENCH=options)
	@python -m benchmarks.ipam $(BENCH); $(BENCHMARKS_PAGE)

lint: venv  ## ruff, mypy --strict, import contracts
	@ruff check --quiet . && ruff format --quiet --check . && mypy && lint-imports --no-logo

format: venv  ## apply the house's format
	@ruff check --quiet --fix .; ruff format --quiet .

bench-bgp: setup-tests compiled  ## the speaker beside BIRD, FRR and GoBGP on the same input (BENCH=options)
	@python -m benchmarks.bgp $(BENCH); $(BENCHMARKS_PAGE)

bench-cni: setup-tests compiled  ## ADD and DEL beside Debian's ptp and bridge plugins (BENCH=options)
	@python -m benchmarks.cni $(BENCH); $(BENCHMARKS_PAGE)

bench-fib: setup-tests compiled  ## routes into the kernel: podroute, BIRD and FRR side by side (QUICK=1: small tables; BENCH=options)
	@python -m benchmarks.fib $(if $(QUICK),--quick) $(BENCH); $(BENCHMARKS_PAGE)

setup:  ## install what the demo needs (Debian packages, virtual environment)
	@sh labs/setup.sh

setup-tests:  ## install what the tests need: also the routers and runtimes that podroute is tried with
	@sh labs/setup.sh --tests

venv:
	@sh labs/setup.sh --no-packages

lock: venv  ## write requirements.lock anew from setup.cfg
	@sh labs/setup.sh --lock

clean:  ## remove the virtual environment and caches
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info build .compiled
	@find . -name __pycache__ -prune -exec rm -rf {} +
