# Two targets do everything a newcomer needs: `make demo` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
export STACYVM_BIN ?= $(CURDIR)/target/debug/stacyvm

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what building and testing need (toolchain, musl target, C compiler)
	@scripts/setup-build.sh

demo: setup ## build, then run a Python program in an isolated sandbox and show that nothing stays behind
	@$(CARGO) build --quiet --release -p stacyvm
	@scripts/demo.sh target/release/stacyvm

build: setup ## the release binary, target/release/stacyvm
	$(CARGO) build --release -p stacyvm

test: setup ## everything that CI runs: unit, conformance, end-to-end, SDK and smoke tests, leak check
	@scripts/test.sh

lint: setup ## formatting, clippy, dependency policy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --quiet --workspace --all-targets --features stacyvm-e2e/docker -- -D warnings
	@scripts/check-dependencies.sh

bench: build ## figures with ratios against other tools, in one run; starts the test host, if it can, for those of containers
	@if [ -z "$$STACYVM_TEST_DOCKER_HOST" ] && scripts/setup-test-host.sh up; then \
	  set -a; eval "$$(scripts/setup-test-host.sh env)"; set +a; \
	fi; target/release/stacyvm bench

openapi: ## regenerate openapi/v1.json
	$(CARGO) run --quiet -p xtask -- openapi

soak: setup ## 1,000 sandboxes with networks come and go; nothing may be left (slow)
	STACYVM_TEST_CYCLES=500 $(CARGO) test -p stacyvm-provider-native --test network -- nothing_is_left_of_many

volume: build ## 10 GiB through exec and through files, both ways, past the release binary; it must not grow (slow)
	STACYVM_BIN=$(CURDIR)/target/release/stacyvm STACYVM_TEST_VOLUME_MIB=10240 \
	  $(CARGO) test -p stacyvm-e2e --test volume -- --test-threads=1 --nocapture

fuzz: setup ## ten minutes for each parser of what comes from outside; needs a nightly compiler and cargo-fuzz (slow)
	@command -v cargo-fuzz >/dev/null || { echo "fuzz: cargo install --locked cargo-fuzz, and rustup toolchain install nightly"; exit 1; }
	@for target in manifest archive layout; do \
	  mkdir -p fuzz/corpus/$$target && \
	  $(CARGO) +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- -max_total_time=$${FUZZ_SECONDS:-600} || exit 1; \
	done

leak-check: ## list everything of ours that this host still holds
	$(CARGO) run --quiet -p xtask -- leak-check

clean: ## remove build output
	$(CARGO) clean

.PHONY: help setup demo build test lint bench openapi soak volume fuzz leak-check clean
