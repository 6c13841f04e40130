# `make help` shows what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(KEYWRIGHT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/keywright)
CARGO_DENY := 0.20.2
export PATH := $(CACHE)/cargo-deny-$(CARGO_DENY)/bin:$(PATH)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: testbed ## Watch a key being issued, used, refused, expired and revoked on a real control plane (KEEP=1 leaves it running)
	cargo build --locked
	@KEEP=$(KEEP) tests/demo.sh "$$(tests/testbed/build.sh)" target/debug/keywright

.PHONY: test
test: format lint policy unit integration documentation ## Run everything that CI runs
	@echo "all of it passed"

.PHONY: format
format: ## Check the format (cargo fmt mends it)
	cargo fmt --check

.PHONY: lint
lint: ## Check with clippy, warnings as errors
	cargo clippy --locked --all-targets -- -D warnings

.PHONY: policy
policy: $(CACHE)/cargo-deny-$(CARGO_DENY)/bin/cargo-deny ## Check dependencies' licences, sources and duplicates
	cargo-deny --locked check --hide-inclusion-graph bans licenses sources

.PHONY: advisories
advisories: $(CACHE)/cargo-deny-$(CARGO_DENY)/bin/cargo-deny ## Check dependencies against the RustSec advisories (fetches them)
	cargo-deny --locked check advisories

.PHONY: unit
unit: ## Run the tests that need nothing but this machine
	cargo test --locked --lib --bins

.PHONY: integration
integration: testbed ## Run the tests on a real control plane
	cargo test --locked --test it

.PHONY: documentation
documentation: ## Build the documentation, with its warnings as errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

.PHONY: bench
bench: testbed ## Measure writes and time per key; the report is in target/bench
	cargo bench --locked --bench issue

.PHONY: crds
crds: ## Generate the CustomResourceDefinitions from the types
	cargo run --locked --quiet -- crds --output-directory crds/

.PHONY: testbed
testbed: ## Build etcd, Kubernetes and helm for the tests (ten minutes, once)
	@tests/testbed/tools.sh
	@tests/testbed/build.sh >/dev/null

$(CACHE)/cargo-deny-$(CARGO_DENY)/bin/cargo-deny:
	@echo "installing cargo-deny $(CARGO_DENY), once"
	CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked --quiet --root $(CACHE)/cargo-deny-$(CARGO_DENY) cargo-deny@$(CARGO_DENY)
