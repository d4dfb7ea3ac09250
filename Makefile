# make demo, make demo-qemu: see it work.  make test: every check and test.  make, then make install: use it.
# The first three install what they miss, as root on Debian or Ubuntu; elsewhere they say what to install.

CARGO ?= cargo
# For clippy and rustfmt, which are no part of every Rust.
LINTS = cargo-clippy cargo-fmt

# The crate imago needs a later Rust than all else. Where there is none, what needs it is not tested.
IMAGO_CARGO = cargo-1.87
IMAGO := $(if $(shell tests/need -n $(IMAGO_CARGO)),--features fdstash-tests/imago)

.PHONY: all demo demo-qemu test docs lint deny unit fuzz header reference bench peers contender soak deb install uninstall clean

all:
	@tests/need cc cargo
	$(CARGO) build --release --package fdstashd --package fdstash-c --lib --bins
	$(CARGO) $(COMMAND)

# The dynamic linker would take as long as all else that a call by the command takes, so it is linked
# statically, where there is a C library for that.
STATIC = $(if $(shell echo 'int main(void) { return 0; }' | $(CC) -static-pie -o /dev/null -x c - 2>&1),,\
	-C target-feature=+crt-static)
COMMAND = rustc --release --package fdstash --bin fdstash -- $(STATIC)

SHOWN = $(or $(CARGO_TARGET_DIR),target)/demo
demo:
	@tests/need cc $(IMAGO_CARGO) qemu-img
	@echo "Building, which takes a minute or two the first time ..."
	@$(CARGO) build --quiet --profile demo --package fdstashd --package fdstash --bins
	@$(CARGO) build --quiet --profile demo --package fdstash --features imago --example vmm
	@mkdir -p target
	@$(SHOWN)/examples/vmm --fdstashd $(SHOWN)/fdstashd --dir target

demo-qemu:
	@tests/need cc cargo qemu-img qemu-io qemu-system-x86_64
	@echo "Building, which takes a minute or two the first time ..."
	@$(CARGO) build --quiet --profile demo --package fdstashd --package fdstash --bins
	@$(CARGO) build --quiet --profile demo --package fdstash-tests --example qemu
	@$(SHOWN)/examples/qemu

test:
	@tests/need cc cargo $(LINTS) pkg-config valgrind qemu-img qemu-io qemu-system-x86_64 chattr \
		python3 setpriv nsenter systemd systemd-socket-activate \
		libvirtd virsh python3-libvirt c++ s6-fdholder-daemon zsh fish mandoc \
		nginx curl python3-systemd python3-prometheus-client python3-yaml pgrep socat logrotate jq \
		dpkg-shlibdeps dbus-daemon systemd-logind
	$(MAKE) lint
	$(MAKE) deny
	$(MAKE) unit
	$(MAKE) fuzz SECONDS=5

# The book, into target/book. Its links are checked by a test, without mdBook.
docs:
	@tests/need python3
	@tests/mdbook build --dest-dir $(or $(CARGO_TARGET_DIR),target)/book

# The gates that need no daemon. STRICT=1 makes an error of every warning: for continuous integration,
# whose Rust is known, since each version warns of something else.
WARNINGS = $(if $(STRICT),--deny warnings)
lint:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets $(if $(IMAGO),--all-features) -- $(WARNINGS)
	$(CARGO) clippy --package fdstash --no-default-features -- $(WARNINGS)
	RUSTDOCFLAGS="$(WARNINGS)" $(CARGO) doc --workspace $(if $(IMAGO),--all-features) --no-deps \
		--document-private-items

# Known vulnerabilities, licences, and where what we use comes from.
deny:
	@tests/need cargo python3
	@tests/deny

# Each target over its corpus (fuzz/), and then for so many seconds over what it makes of that.
SECONDS = 600
fuzz:
	@tests/need c++ cargo
	@fuzz/run $(SECONDS)

# The programs first: the end-to-end tests run them, also one that dies at every step. Where there is no
# varlinkctl that passes descriptors on, and none can be had, what needs it is not tested.
STEPS = $(or $(CARGO_TARGET_DIR),target)/crash-steps
unit:
	@tests/varlinkctl $(or $(CARGO_TARGET_DIR),target)/varlinkctl || echo "tests/varlinkctl.rs will skip its tests"
	$(CARGO) build --workspace $(IMAGO) --lib --bins --examples
	$(CARGO) build --package fdstashd --features crash-steps --target-dir $(STEPS)
	$(CARGO) test --workspace $(IMAGO)

# Makes the C library's header anew; a test compares it with the source.
header:
	FDSTASH_WRITE_HEADER=1 $(CARGO) test --package fdstash-c --test header

# Makes docs/man and docs/reference anew; tests compare them with the help texts, the interface file and
# the policy's example.
reference:
	FDSTASH_WRITE_REFERENCE=1 $(CARGO) test --package fdstash --package fdstashd \
		--package fdstash-reference --bins --test pages reference

# Measures on this machine, beside the kernel's own cost in the same run. The table comes last.
bench: measured
	$(CARGO) bench --package fdstash-proto --package fdstash-stash --package fdstashd --benches
	$(CARGO) bench --package fdstash-tests
	@$(MAKE) --no-print-directory peers

# The table alone, in half a minute, also into a file: TABLE=README.md. `tests/need s6-fdholder-daemon`
# installs what s6's column takes, which is left out where it is not there.
peers: measured
	@$(BUILT)/examples/peers $(if $(TABLE),--table $(TABLE))

# With -s it says nothing but the command line of who takes part in measurements for fdstash.
contender: measured
	@echo $(abspath $(BUILT)/examples/contender)

.PHONY: measured
measured:
	@tests/need cc cargo
	@$(CARGO) build --quiet --release --package fdstashd --package fdstash-tests --bins \
		--example contender --example peers
	@$(CARGO) --quiet $(COMMAND)

# As many calls as a day has, if nothing is said: what is left of them must be nothing. Takes an hour or less.
CALLS =
soak:
	@tests/need cc cargo
	$(CARGO) build --release --package fdstashd --package fdstash-tests --bins --example soak
	$(BUILT)/examples/soak $(CALLS)

# The Debian packages, into target/debian: the daemon and the command, the C library, and its header.
deb: all
	@tests/need dpkg-shlibdeps
	@debian/build $(BUILT)/../debian

# PREFIX=/usr for a package, which also says DESTDIR=, and SYSTEMD= for the version that it is for.
PREFIX ?= /usr/local
LIB = $(PREFIX)/lib
# Of the C library; a package's has the architecture in it.
LIBDIR ?= $(LIB)
DOC = $(PREFIX)/share/doc/fdstash
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
BUILT ?= $(or $(CARGO_TARGET_DIR),target)/release
SYSTEMD ?= $(shell systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
UNITS = fdstashd.service fdstashd.socket
# Of the system's stash alone.
METRICS = fdstashd-metrics.socket
# Of what is installed below PREFIX, every file.
INSTALLED = bin/fdstashd bin/fdstash include/fdstash.h \
	$(foreach unit,$(UNITS),lib/systemd/system/$(unit) lib/systemd/user/$(unit)) \
	$(foreach for,system user,lib/systemd/$(for)/fdstashd.service.d/before-253.conf) \
	$(foreach for,system user,lib/systemd/$(for)/fdstashd.socket.d/since-262.conf) \
	lib/systemd/system/$(METRICS) \
	lib/sysusers.d/fdstash.conf lib/tmpfiles.d/fdstash.conf \
	$(foreach doc,$(DOCS) $(BOOK),share/doc/fdstash/$(doc)) \
	$(foreach page,$(PAGES),share/man/man$(subst .,,$(suffix $(page)))/$(page)) $(COMPLETIONS)
# And below LIBDIR.
FOR_C = libfdstash.so libfdstash.so.0 pkgconfig/fdstash.pc
# The book's own pages, and what it shows.
BOOK = $(wildcard docs/*.md docs/reference/*.md docs/operators/* docs/*.svg)
DOCS = policy.toml README.md ARCHITECTURE.md SECURITY.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT org.fdstash.Stash.varlink

PAGES = $(notdir $(wildcard docs/man/*))
# Where each shell looks; Debian's own zsh would look in share/zsh/vendor-completions.
COMPLETIONS = share/bash-completion/completions/fdstash share/zsh/site-functions/_fdstash \
	share/fish/vendor_completions.d/fdstash.fish

# Builds nothing, so that root does not: run make first, as whoever you are.
install:
	@for built in fdstashd fdstash libfdstash.so; do \
	  test -x $(BUILT)/$$built || { echo "run make first" >&2; exit 1; }; done
	install -d $(addprefix $(DESTDIR),$(PREFIX)/bin $(LIB)/sysusers.d $(LIB)/tmpfiles.d $(DOC))
	install $(BUILT)/fdstashd $(BUILT)/fdstash $(DESTDIR)$(PREFIX)/bin
	@$(MAKE) --no-print-directory install-c
	@$(MAKE) --no-print-directory install-units FROM=systemd TO=$(LIB)/systemd/system
	@$(MAKE) --no-print-directory install-units FROM=systemd/user TO=$(LIB)/systemd/user
	install -m 644 systemd/$(METRICS) $(DESTDIR)$(LIB)/systemd/system
	install -m 644 systemd/sysusers.d/fdstash.conf $(DESTDIR)$(LIB)/sysusers.d
	install -m 644 systemd/tmpfiles.d/fdstash.conf $(DESTDIR)$(LIB)/tmpfiles.d
	install -m 644 $(filter-out %.varlink %.toml,$(DOCS)) proto/org.fdstash.Stash.varlink \
		systemd/policy.toml $(DESTDIR)$(DOC)
	for page in $(BOOK); do install -D -m 644 $$page $(DESTDIR)$(DOC)/$$page || exit; done
	for page in $(PAGES); do \
	  install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man$${page##*.} docs/man/$$page || exit; done
	@$(MAKE) --no-print-directory install-completions FROM=client/src/bin/fdstash/completions

.PHONY: install-completions
install-completions:
	install -D -m 644 $(FROM)/fdstash.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/fdstash
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(FROM)/_fdstash
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(FROM)/fdstash.fish

# The C library, under the name by which programs look for it and the one by which compilers do.
.PHONY: install-c
install-c:
	install -d $(addprefix $(DESTDIR),$(LIBDIR)/pkgconfig $(PREFIX)/include)
	install -m 644 $(BUILT)/libfdstash.so $(DESTDIR)$(LIBDIR)/libfdstash.so.0
	ln -sf libfdstash.so.0 $(DESTDIR)$(LIBDIR)/libfdstash.so
	install -m 644 client/c/fdstash.h $(DESTDIR)$(PREFIX)/include
	sed -e 's,@PREFIX@,$(PREFIX),' -e 's,@LIBDIR@,$(LIBDIR),' -e 's,@VERSION@,$(VERSION),' \
	  client/c/fdstash.pc.in >$(DESTDIR)$(LIBDIR)/pkgconfig/fdstash.pc
	chmod 644 $(DESTDIR)$(LIBDIR)/pkgconfig/fdstash.pc

# The units name the daemon by its path, and not by its place here.
.PHONY: install-units
install-units:
	install -d $(DESTDIR)$(TO)
	for unit in $(UNITS); do \
	  sed 's,/usr/bin/fdstashd,$(PREFIX)/bin/fdstashd,' $(FROM)/$$unit >$(DESTDIR)$(TO)/$$unit && \
	  chmod 644 $(DESTDIR)$(TO)/$$unit || exit; done
	if [ "$(or $(SYSTEMD),999)" -lt 253 ]; then \
	  install -D -m 644 -t $(DESTDIR)$(TO)/fdstashd.service.d systemd/before-253.conf; \
	else rm -f $(DESTDIR)$(TO)/fdstashd.service.d/before-253.conf; fi
	if [ "$(or $(SYSTEMD),999)" -ge 262 ]; then \
	  install -D -m 644 -t $(DESTDIR)$(TO)/fdstashd.socket.d systemd/since-262.conf; \
	else rm -f $(DESTDIR)$(TO)/fdstashd.socket.d/since-262.conf; fi

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,$(INSTALLED)) $(addprefix $(DESTDIR)$(LIBDIR)/,$(FOR_C))
	for folder in $(foreach unit,$(UNITS),$(LIB)/systemd/system/$(unit).d $(LIB)/systemd/user/$(unit).d) \
	  $(DOC)/docs/reference $(DOC)/docs/operators $(DOC)/docs $(DOC); do \
	  if [ -d $(DESTDIR)$$folder ]; then rmdir $(DESTDIR)$$folder; fi; done

clean:
	$(CARGO) clean
