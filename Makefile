# The only way anything is run here. `make help` lists what there is.
SHELL := /bin/bash
CARGO ?= cargo
PEERS := $(or $(VM_AGENT_PEERS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vm-agent/peers)
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vm-agent/tools
ARGS ?=
# The tiers of `make test`, the quick ones first.
TIERS = check test-unit test-hermetic test-kubectl test-envoy test-demo test-page test-mesh test-istio test-chaos test-vm
# What the embedded mesh's demonstration and tests run with.
DEBUG = ENVOY=$(or $(ENVOY),$(PEERS)/bin/envoy) VM_AGENT=$(CURDIR)/target/debug/vm-agent DEVMESH=$(CURDIR)/target/debug/vm-agent-devmesh
export VM_AGENT_PEERS := $(PEERS)

.PHONY: help demo demo-istio test check test-unit test-hermetic test-kubectl test-envoy test-demo test-page test-mesh test-istio test-chaos test-vm bench bench-names fuzz gen build debug envoy package peers root tiers

help: ## Show this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: envoy debug ## Three VMs in a mesh in one minute, then you play (ARGS=--once: it ends by itself)
	@$(DEBUG) python3 demo/demo.py $(ARGS)

demo-istio: root peers build ## The same with the real istiod and Kubernetes API; it cleans up (minutes the first time; root)
	@python3 tests/istio/demo.py $(ARGS)

test: ## Run all tiers, also after one has failed; peers are fetched and built as needed (root)
	@tests/tiers.sh $(TIERS)

# What `make test` runs, for those who check that all of it ran.
tiers:
	@echo $(TIERS)

check: ## Formatting, lints, and what the dependencies may be
	@echo "== tier: check"
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --features devmesh -- -D warnings
	$(CARGO) clippy --locked -- -D warnings
	@[ -x $(TOOLS)/bin/cargo-deny ] || $(CARGO) install --locked --debug --root $(TOOLS) cargo-deny@0.20.2
	$(TOOLS)/bin/cargo-deny --locked check licenses bans sources

test-unit: ## Unit tests, the architecture's rules, fresh generated code
	@echo "== tier: unit"
	$(CARGO) test --locked --no-fail-fast --features devmesh --lib --test architecture --test proto_bootstrap

test-hermetic: ## The whole agent against fakes that speak the real protocols
	@echo "== tier: hermetic (devmesh)"
	$(CARGO) test --locked --no-fail-fast --features devmesh --test agent --test fleet --test registration --test bundle --test cli --test commands --test credential --test facts --test doctor --test service

test-kubectl: ## The stock kubectl against the development mesh
	@echo "== tier: kubectl (devmesh)"
	$(CARGO) build --locked --features devmesh
	python3 tests/demo/kubectl.py $(ARGS)

test-envoy: ## The agent that is shipped: its bootstrap and supervision with the real Envoy, and what is not in it
	@echo "== tier: real Envoy"
	@tests/istio/peers.sh envoy
	$(CARGO) test --locked --test shipped
	ENVOY=$(PEERS)/bin/envoy $(CARGO) test --locked --test envoy -- --ignored

test-demo: envoy debug ## The demonstrations hold what they show (root)
	@echo "== tier: demonstrations"
	@$(DEBUG) python3 demo/demo.py --once
	@$(MAKE) --no-print-directory demo-istio ARGS=--once

test-page: envoy debug ## The web pages in a real browser
	@echo "== tier: pages"
	@tests/istio/peers.sh chromium
	$(DEBUG) python3 tests/page/suite.py $(ARGS)

test-mesh: root peers build ## The tests that hold on istiod and on the development mesh, on the latter (root)
	@echo "== tier: real Envoy and kubectl, development mesh"
	$(CARGO) build --locked --features devmesh
	@python3 tests/istio/suite.py --list-both
	MESH=devmesh python3 tests/istio/suite.py $(ARGS)

test-istio: root peers build ## The agent against the real istiod, kube-apiserver and Envoy (root)
	@echo "== tier: real control plane"
	python3 tests/istio/suite.py $(ARGS)

test-chaos: root peers build ## Faults by chance and on top of each other under load; every lost request is judged (ARGS="--minutes 60 --seed 7"; root)
	@echo "== tier: chaos"
	python3 tests/chaos/selfcheck.py
	python3 tests/chaos/suite.py $(ARGS)

test-vm: root peers package ## The package on machines that boot: systemd, cloud-init, upgrades, power loss (root)
	@if missing=$$(tests/vm/able.sh); then \
		echo "== tier: booted VMs" && tests/vm/root.sh && python3 tests/vm/suite.py $(ARGS); \
	else \
		echo "== tier not run: booted VMs: this machine has $$missing"; \
	fi

bench: root peers build ## The agent beside the real pilot-agent: memory, time to certificate, time to ready (root)
	python3 benches/compare.py $(ARGS)

bench-names: root peers build ## DNS answers beside the real pilot-agent's (root; needs dnsperf)
	python3 benches/names.py $(ARGS)

fuzz: ## Fuzz the parsers of foreign bytes, ARGS seconds each [600] (needs nightly Rust and cargo-fuzz)
	cd fuzz && for target in fuzz_targets/*.rs; do \
		$(CARGO) +nightly fuzz run $$(basename $$target .rs) -- -max_total_time=$(or $(ARGS),600) \
			-rss_limit_mb=1024 -timeout=10 || exit 1; done

gen: ## Make the generated protocol code and the configuration reference again
	PROTO_WRITE=1 $(CARGO) test --locked --test proto_bootstrap
	$(CARGO) build --locked
	target/debug/vm-agent config reference > docs/configuration.md

package: build ## Make the Debian and RPM packages in target/package (VERSION=1.2.3 for another version)
	packaging/package.sh

build: ## Build the agent for release
	$(CARGO) build --locked --release

# What is built for tests anyway: the release takes minutes.
debug:
	@$(CARGO) build --locked --features devmesh --bin vm-agent --bin vm-agent-devmesh

envoy:
	@[ -n "$(ENVOY)" ] || tests/istio/peers.sh envoy

peers:
	@tests/istio/peers.sh

root:
	@[ "$$(id -u)" = 0 ] || { echo "root is needed to make network namespaces: run it with sudo" >&2; exit 1; }
