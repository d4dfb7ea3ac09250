# make demo: see it work.  make test: every check and test.
# Both install what they miss, as root on Debian or Ubuntu; elsewhere they say what to install.

CARGO ?= cargo
# For clippy and rustfmt, which are no part of every Rust.
LINTS = cargo-clippy cargo-fmt

.PHONY: all demo test lint unit clean

all:
	@tests/need cc cargo
	$(CARGO) build --workspace --release

demo:
	@tests/need cc cargo qemu-img
	@echo "Building, which takes a minute or two the first time ..."
	@$(CARGO) build --quiet --release --package fdstashd --package fdstash --example vmm --bins
	@target/release/examples/vmm --fdstashd target/release/fdstashd --dir target

test:
	@tests/need cc cargo $(LINTS) qemu-img python3 setpriv systemd-socket-activate
	$(MAKE) lint
	$(MAKE) unit

# The gates that need no daemon. STRICT=1 makes an error of every warning: for continuous integration,
# whose Rust is known, since each version warns of something else.
WARNINGS = $(if $(STRICT),--deny warnings)
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- $(WARNINGS)
	$(CARGO) clippy --package fdstash --no-default-features -- $(WARNINGS)
	RUSTDOCFLAGS="$(WARNINGS)" $(CARGO) doc --workspace --no-deps --document-private-items

# The programs first: the end-to-end tests run them.
unit:
	$(CARGO) build --workspace --bins --examples
	$(CARGO) test --workspace

clean:
	$(CARGO) clean
