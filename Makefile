# The front door. `make demo` shows a clone, `make test` proves it; both install what they need on Debian 12, as root.

PREFIX ?= /usr/local
DESTDIR ?=
SECONDS_EACH ?= 60
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')

.PHONY: help build demo test bench lint docs fuzz install uninstall clean

help:
	@echo 'make demo     two lab hosts, a machine, a clone, its boot: about a minute after the build'
	@echo 'make test     everything is tested, on real libvirt hosts in namespaces (as root)'
	@echo 'make bench    kvm-clone against scp, rsync, zstd, qemu-img and nbdcopy, on lab hosts (as root, minutes)'
	@echo 'make lint     format, clippy, documentation, spelling, the tree itself'
	@echo 'make docs     rustdoc, and the book where mdbook is installed'
	@echo 'make fuzz     the decoders of what comes from outside, $(SECONDS_EACH) s each'
	@echo 'make build    optimised programs in target/release'
	@echo 'make install  to PREFIX=$(PREFIX), below DESTDIR where it is set'

build: packages
	cargo build --locked --release -p kvm-clone
	# The agent runs on hosts of any distribution, hence links to nothing that it finds there.
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release -p kvm-clone-agent --target $(TRIPLE)

demo: packages
	scripts/demo

test: packages
	scripts/test

bench: packages
	scripts/bench

lint: packages
	scripts/lint

docs: packages
	scripts/docs

fuzz:
	scripts/fuzz $(SECONDS_EACH)

install: build
	install -D -m 0755 target/release/kvm-clone '$(DESTDIR)$(PREFIX)/bin/kvm-clone'
	install -D -m 0755 'target/$(TRIPLE)/release/kvm-clone-agent' '$(DESTDIR)$(PREFIX)/libexec/kvm-clone-agent'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/bin/kvm-clone' '$(DESTDIR)$(PREFIX)/libexec/kvm-clone-agent'

clean:
	cargo clean

.PHONY: packages
packages:
	@scripts/install-packages
