# `make help` shows what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(KEYWRIGHT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/keywright)
CARGO_DENY := 0.20.2
CARGO_FUZZ := 0.13.2
FUZZ := --locked --manifest-path fuzz/Cargo.toml
SECONDS ?= 5
DELETIONS ?= 5000
BENCH_VERIFIER := --manifest-path benches/verifier/Cargo.toml --target-dir target/bench-verifier
TARGET := $(shell uname -m)-unknown-linux-gnu
# For the demo, and only if it is an argument: a KUBECONFIG in the environment is there for other things.
CLUSTER = $(if $(filter command,$(firstword $(origin KUBECONFIG))),$(KUBECONFIG))
NGINX = $(firstword $(wildcard /usr/sbin/nginx $(CACHE)/nginx/usr/sbin/nginx))
PROGRAM := target/$(TARGET)/dist/keywright
BUILD_DIST := RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile dist --target $(TARGET) --target-dir target
export PATH := $(CACHE)/cargo-deny-$(CARGO_DENY)/bin:$(CACHE)/cargo-fuzz-$(CARGO_FUZZ)/bin:$(PATH)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Watch a key being issued, used, refused, expired and revoked (NODE=1: in Pods; KEEP=1 leaves it running)
	@KEEP=$(KEEP) NODE=$(NODE) CLUSTER="$(CLUSTER)" IMAGE="$(IMAGE)" tests/demo.sh

.PHONY: test
test: announce format lint chart-lint policy unit instructions corpus fuzz integration browser e2e documentation ## Run everything that CI runs
	@echo "all of it passed"

.PHONY: announce
announce:
	@tests/announce.sh cargo-deny-$(CARGO_DENY)="check dependencies' licences" cargo-fuzz-$(CARGO_FUZZ)="run the fuzzer"

.PHONY: format
format: ## Check the format (cargo fmt mends it)
	cargo fmt --check --all
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path benches/verifier/Cargo.toml

.PHONY: lint
lint: ## Check with clippy, warnings as errors
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --package keywright-core --all-targets -- -D warnings
	@packages=$$(cargo tree --locked --package keywright-core --edges normal --prefix none | sort -u | wc -l); \
		[ "$$packages" -lt 70 ] || { echo "keywright-core is built of $$packages packages, not fewer than 70: cargo tree -p keywright-core"; exit 1; }
	cargo clippy $(FUZZ) --target-dir target --all-targets -- -D warnings
	cargo clippy --locked --manifest-path benches/verifier/Cargo.toml --target-dir target --all-targets -- -D warnings

.PHONY: chart-lint
chart-lint: testbed ## Check the rendered chart with kube-score, in several sets of values
	tests/lint/chart.sh "$$(tests/testbed/build.sh)/helm"

.PHONY: policy
policy: $(CACHE)/cargo-deny-$(CARGO_DENY)/bin/cargo-deny ## Check dependencies' licences, sources and duplicates
	cargo-deny --locked check --hide-inclusion-graph bans licenses sources
	cargo-deny --locked --manifest-path fuzz/Cargo.toml --config deny.toml check sources
	cargo-deny --locked --manifest-path benches/verifier/Cargo.toml --config deny.toml check sources

.PHONY: advisories
advisories: $(CACHE)/cargo-deny-$(CARGO_DENY)/bin/cargo-deny ## Check dependencies against the RustSec advisories (fetches them)
	cargo-deny --locked check advisories

.PHONY: unit
unit: ## Run the tests that need nothing but this machine
	cargo test --locked --package keywright-core --lib
	cargo test --locked --package kubectl-keywright --lib
	cargo test --locked --lib --bins --test allocations

.PHONY: mutants
mutants: testbed ## Break the program on purpose, in each of the ways in tests/mutants, and see that a test notices (NAMES="a b" for some)
	@tests/testbed/tools.sh base clocks
	@tests/mutants.sh $(NAMES)

.PHONY: soak
soak: testbed ## Search larger worlds of the fence, revoke DELETIONS=5000 keys while everything is disturbed, and others while verifiers restart with 50,000 records (an hour)
	cargo test --locked --release --package keywright-core --lib -- fence::tests::model --ignored --nocapture
	KEYWRIGHT_DELETIONS=$(DELETIONS) KEYWRIGHT_RECORDS=50000 cargo test --locked --test it -- chaos:: --nocapture --test-threads 1

.PHONY: instructions
instructions: ## Count the instructions of the verifier's work beside reviewed ones (WRITE=1 writes them anew, for review)
	@tests/testbed/tools.sh base instructions
	$(BUILD_DIST) --package keywright-instructions
	target/$(TARGET)/dist/keywright-instructions

.PHONY: corpus
corpus: ## Try every input that fuzzing has saved
	cargo test $(FUZZ) --target-dir target

.PHONY: fuzz
fuzz: $(CACHE)/cargo-fuzz-$(CARGO_FUZZ)/bin/cargo-fuzz ## Look for inputs that break something, SECONDS=5 a target (TARGETS="key record" for some)
	@tests/testbed/tools.sh base fuzz
	@fuzz/run.sh $(SECONDS) $(TARGETS)

.PHONY: integration
integration: testbed ## Run the tests on a real control plane
	@tests/testbed/tools.sh base proxies clocks
	cargo build --locked --bin keywright
	cargo test --locked --package kubectl-keywright --test it
	cargo test --locked --test it

.PHONY: browser
browser: testbed ## Try the page of `kubectl keywright ui` in Chromium; target/screenshots has its pictures
	@tests/testbed/tools.sh base browser
	@cd crates/kubectl-keywright/tests/browser && npm ci --silent --ignore-scripts
	cargo build --locked --bin keywright
	cargo test --locked --package kubectl-keywright --test browser -- --nocapture

.PHONY: documentation
documentation: ## Build the documentation, with its warnings as errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

.PHONY: bench
bench: bench-verifier bench-decision bench-follow bench-issue bench-revocation bench-capacity ## Measure all of what follows; target/bench/report.md holds it
	@cat target/bench/{verifier,decision,follow,issue,revocation,capacity}.md > target/bench/report.md
	@echo "all of it is in target/bench/report.md"

.PHONY: bench-verifier
bench-verifier: ## Measure the verifier beside servers that decide nothing (10 minutes, on a machine that does nothing else)
	cargo build --locked --release --bin keywright
	cargo build --locked --release $(BENCH_VERIFIER)
	taskset --cpu-list 1 target/bench-verifier/release/keywright-bench-verifier report target/release/keywright target/bench

.PHONY: bench-decision
bench-decision: ## Measure the decision alone
	taskset --cpu-list 1 cargo bench --locked --bench decision

.PHONY: bench-follow
bench-follow: testbed ## Measure how fast a verifier starts, and takes in a revocation, on the real API server
	cargo build --locked --release $(BENCH_VERIFIER)
	cargo bench --locked --bench follow

.PHONY: bench-issue
bench-issue: testbed ## Measure the controller: writes and time per key
	cargo bench --locked --bench issue

.PHONY: bench-revocation
bench-revocation: testbed ## Measure issues beside many deletions that wait, and a namespace of 5,000 ApiKeys that goes
	cargo bench --locked --bench revocation

.PHONY: bench-capacity
bench-capacity: testbed ## Measure the controller's memory with many ApiKeys and tombstones, and its speed with many at once
	cargo bench --locked --bench capacity

.PHONY: image
image: ## Build the server image, and the one that the end-to-end tests work with, into target/image
	@tests/testbed/tools.sh base node
	$(BUILD_DIST) --bin keywright
	@mkdir -p target/image
	@tests/testbed/image.py target/image/keywright.tar localhost/keywright:dev --like Dockerfile \
		--file $(PROGRAM)=/keywright
	@tests/testbed/image.py target/image/workload.tar localhost/testbed/workload:v1 --user 65532:65532 --libraries \
		--file $(NGINX)=/bin/nginx --file "$$(command -v curl)=/bin/curl" --file "$$(command -v busybox)=/bin/busybox" \
		$(foreach name,sh cat sleep,--link /bin/$(name)=busybox) --folder /tmp

.PHONY: e2e
e2e: testbed image ## Run the tests on a whole cluster: chart, image and Pods on a real node (as root)
	cargo test --locked --test e2e

.PHONY: crds
crds: ## Generate the CustomResourceDefinitions from the types
	cargo run --locked --quiet -- crds --output-directory crds/

.PHONY: manifests
manifests: ## Render the chart as plain manifests, with a kustomization.yaml, into target/manifests (by helm, or the test bed's)
	@helm=$$(command -v helm || echo "$$(tests/testbed/build.sh)/helm"); charts/manifests.sh "$$helm" target/manifests
	@echo "kubectl apply -k target/manifests"

.PHONY: plugin
plugin: ## Build kubectl's plugin for Linux, macOS and Windows into target/plugin (SYSTEMS="linux-amd64 windows-arm64" for some; RELEASE=https://... HOMEPAGE=https://... for krew's manifest)
	@tests/testbed/tools.sh base cross
	@RELEASE="$(RELEASE)" HOMEPAGE="$(HOMEPAGE)" packaging/plugin.sh target/plugin $(SYSTEMS)

.PHONY: chart-readme
chart-readme: ## Generate the chart's README.md from values.yaml
	WRITE=1 cargo test --locked --quiet --test it chart::readme

.PHONY: rights
rights: testbed ## Write tests/rights.tsv anew, for review: who may do what, as the API server answers
	KEYWRIGHT_WRITE_RIGHTS=1 cargo test --locked --quiet --test it rights::rights_are_those_that_were_reviewed

.PHONY: testbed
testbed: ## Build etcd, Kubernetes, helm, containerd and CoreDNS for the tests, once
	@tests/testbed/tools.sh base
	@tests/prepare.sh control-plane helm node

$(CACHE)/cargo-deny-$(CARGO_DENY)/bin/cargo-deny:
	@echo "installing cargo-deny $(CARGO_DENY), once"
	CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked --quiet --root $(CACHE)/cargo-deny-$(CARGO_DENY) cargo-deny@$(CARGO_DENY)

$(CACHE)/cargo-fuzz-$(CARGO_FUZZ)/bin/cargo-fuzz:
	@echo "installing cargo-fuzz $(CARGO_FUZZ), once"
	CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked --quiet --root $(CACHE)/cargo-fuzz-$(CARGO_FUZZ) cargo-fuzz@$(CARGO_FUZZ)
