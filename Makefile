# Two commands for a new user: "make run" and "make test". The rest is for packagers and developers.

PREFIX      ?= /usr/local
BINDIR      ?= $(PREFIX)/bin
SBINDIR     ?= $(PREFIX)/sbin
LIBDIR      ?= $(PREFIX)/lib
LIBEXECDIR  ?= $(PREFIX)/libexec/nbdkit
INCLUDEDIR  ?= $(PREFIX)/include
PLUGINDIR   ?= $(LIBDIR)/nbdkit/plugins
FILTERDIR   ?= $(LIBDIR)/nbdkit/filters
PKGCONFIGDIR ?= $(LIBDIR)/pkgconfig
MANDIR      ?= $(PREFIX)/share/man
UNITDIR     ?= $(PREFIX)/lib/systemd/system
CARGO       ?= cargo
CARGOFLAGS  ?= --locked

# Baked into the programs: where the listener finds the worker, and the worker plugins; and what --dump-config says.
export NBDKIT_BINDIR = $(BINDIR)
export NBDKIT_SBINDIR = $(SBINDIR)
export NBDKIT_LIBDIR = $(LIBDIR)
export NBDKIT_LIBEXECDIR = $(LIBEXECDIR)
export NBDKIT_MANDIR = $(MANDIR)
export NBDKIT_PLUGINDIR = $(PLUGINDIR)
export NBDKIT_FILTERDIR = $(FILTERDIR)

RELEASE = $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: all build run test fuzz lint install clean

all: build

build:
	$(CARGO) build $(CARGOFLAGS) --release --bins

# Makes a small ext4 image with a file in it, serves it, and has a real client read that file back.
run:
	scripts/install-packages.sh run
	$(MAKE) --no-print-directory build
	scripts/demo.sh $(RELEASE)/nbdkit

# Every test: units, the protocol with a raw client, real clients, and side by side with Debian's nbdkit.
test:
	scripts/install-packages.sh test
	scripts/unpack-guestfs-plugin.sh $(or $(CARGO_TARGET_DIR),target)/guestfs
	$(MAKE) --no-print-directory lint
	$(CARGO) build $(CARGOFLAGS) --workspace --bins --lib
	$(CARGO) test $(CARGOFLAGS) --workspace

# Mutated sessions against the server for some minutes; "make test" has a short run of the same. NBDKIT_FUZZ_SEED repeats one.
fuzz:
	$(CARGO) build $(CARGOFLAGS) --workspace --bins
	NBDKIT_FUZZ_SESSIONS=$(or $(NBDKIT_FUZZ_SESSIONS),100000) NBDKIT_FUZZ_SEED=$(or $(NBDKIT_FUZZ_SEED),$(shell date +%s)) \
	    $(CARGO) test $(CARGOFLAGS) -p nbdkit-tests --test hostile -- --nocapture fuzz

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGOFLAGS) --workspace --all-targets -- -D warnings

install: build
	install -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(UNITDIR)
	install -m 755 $(RELEASE)/nbdkit $(DESTDIR)$(SBINDIR)/nbdkit
	install -m 755 $(RELEASE)/nbdkit-worker $(DESTDIR)$(LIBEXECDIR)/nbdkit-worker
	install -m 644 man/*.1 $(DESTDIR)$(MANDIR)/man1/
	install -d $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(PKGCONFIGDIR) $(DESTDIR)$(PLUGINDIR) $(DESTDIR)$(FILTERDIR)
	install -m 644 include/*.h $(DESTDIR)$(INCLUDEDIR)/
	version=$$(sed -n 's/^#define NBDKIT_VERSION_STRING "\(.*\)"/\1/p' include/nbdkit-version.h); \
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e 's|@PLUGINDIR@|$(PLUGINDIR)|' -e 's|@FILTERDIR@|$(FILTERDIR)|' -e "s|@VERSION@|$$version|" \
	    include/nbdkit.pc.in > $(DESTDIR)$(PKGCONFIGDIR)/nbdkit.pc
	sed 's|@SBINDIR@|$(SBINDIR)|g' systemd/nbdkit@.service > $(DESTDIR)$(UNITDIR)/nbdkit@.service
	install -m 644 systemd/nbdkit@.socket $(DESTDIR)$(UNITDIR)/nbdkit@.socket

clean:
	$(CARGO) clean
