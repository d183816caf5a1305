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
DATADIR     ?= $(PREFIX)/share
MANDIR      ?= $(DATADIR)/man
EXAMPLEDIR  ?= $(DATADIR)/doc/nbdkitd/examples
BASHCOMPDIR ?= $(DATADIR)/bash-completion/completions
ZSHCOMPDIR  ?= $(DATADIR)/zsh/site-functions
FISHCOMPDIR ?= $(DATADIR)/fish/vendor_completions.d
SYSCONFDIR  ?= /etc
# What the listener becomes if root has started it, and if there is such a user: see --listener-user.
LISTENER_USER ?= nbdkit-listener
UNITDIR     ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
# Profiles for AppArmor go where a distribution has it; APPARMORDIR= installs none.
APPARMORDIR ?= $(if $(wildcard /etc/apparmor.d),$(SYSCONFDIR)/apparmor.d)
CARGO       ?= cargo
RUSTC       ?= rustc
CARGOFLAGS  ?= --locked
# Installed programs have no symbols: a worker cannot read its own file to print a backtrace, and a panic names its line without
# them. What gdb needs stays in target/release. STRIP= leaves them in, for packagers, whose tools split them off.
STRIP       ?= strip

# Baked into the programs: where the listener finds the worker, and the worker plugins; and what --dump-config says.
export NBDKIT_BINDIR = $(BINDIR)
export NBDKIT_SBINDIR = $(SBINDIR)
export NBDKIT_LIBDIR = $(LIBDIR)
export NBDKIT_INCLUDEDIR = $(INCLUDEDIR)
export NBDKIT_LIBEXECDIR = $(LIBEXECDIR)
export NBDKIT_MANDIR = $(MANDIR)
export NBDKIT_SYSCONFDIR = $(SYSCONFDIR)
export NBDKIT_PLUGINDIR = $(PLUGINDIR)
export NBDKIT_FILTERDIR = $(FILTERDIR)
export NBDKIT_LISTENER_USER = $(LISTENER_USER)

TARGET  = $(or $(CARGO_TARGET_DIR),target)
RELEASE = $(TARGET)/release
VM_DIRECTORY = $(abspath $(TARGET))/vm
GUESTFS_DIRECTORY = $(abspath $(TARGET))/guestfs-test

# What is installed for each built-in plugin and filter: see plugins/built-in.
BUILT_IN_FILE ?= $(RELEASE)/libnbdkit_built_in.so

# What is installed depends on the directories that were built in: "make install" compares.
BUILT_FOR = $(RELEASE)/built-for
SETTINGS  = $(BINDIR) $(SBINDIR) $(LIBDIR) $(LIBEXECDIR) $(INCLUDEDIR) $(PLUGINDIR) $(FILTERDIR) $(MANDIR) $(SYSCONFDIR) $(LISTENER_USER)

# Release builds get paths that are the same on every machine, and flags for the code in C: see scripts/release-flags.sh.
RELEASE_FLAGS = flags=$$(CARGO_TARGET_DIR='$(abspath $(TARGET))' RUSTC='$(RUSTC)' scripts/release-flags.sh) && eval "$$flags"

.PHONY: all build built-in modules run test surroundings vm-test guestfs-test policies bench red-team listener-user fuzz fuzz-sessions lint reproducible deb rpm install check-built install-files clean

all: build

build:
	@rm -f $(BUILT_FOR)
	$(RELEASE_FLAGS) && $(CARGO) build $(CARGOFLAGS) --release -p nbdkitd -p nbdkit-worker -p nbdkit-spawner --bins
	$(MAKE) --no-print-directory built-in
	@echo "$(SETTINGS)" > $(BUILT_FOR)

# The file that stands for a built-in module, a shared library of a few kilobytes. PROFILE= makes it in target/debug.
built-in: PROFILE ?= --release
built-in:
	$(if $(PROFILE),$(RELEASE_FLAGS) &&) $(CARGO) rustc $(CARGOFLAGS) $(PROFILE) -p nbdkit-built-in --crate-type cdylib -- \
	    -C panic=abort -C strip=symbols -C link-arg=-nostdlib

# What is a file of its own because it brings a library in C: the ext2 filter, which needs libext2fs-dev. Not part of
# "build"; what has been made is installed.
modules:
	$(RELEASE_FLAGS) && $(CARGO) build $(CARGOFLAGS) --release -p nbdkit-ext2-filter

# Makes a small ext4 image with a file in it, serves it, and has a real client read that file back.
run:
	scripts/install-packages.sh run
	$(MAKE) --no-print-directory build
	scripts/demo.sh $(RELEASE)/nbdkit

# Tests with the programs of "make listener-user".
WITH_LISTENER_USER = NBDKIT_TEST_PROGRAMS=$(abspath $(TARGET))/listener-user $(CARGO) test $(CARGOFLAGS) -p nbdkit-tests

# Every test: units, the protocol with a raw client, real clients, side by side with Debian's nbdkit, and in a machine that boots.
test:
	scripts/install-packages.sh test
	scripts/unpack-guestfs-plugin.sh $(or $(CARGO_TARGET_DIR),target)/guestfs
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory policies
	$(MAKE) --no-print-directory listener-user
	$(MAKE) --no-print-directory red-team
	$(CARGO) build $(CARGOFLAGS) --workspace --bins --lib
	$(CARGO) test $(CARGOFLAGS) --workspace
	$(WITH_LISTENER_USER) --test broker --test processes --test red_team --test sandbox
	$(WITH_LISTENER_USER) --test hostile -- admission killing processes
	$(WITH_LISTENER_USER) --test options -- captive listener_user log systemd
	scripts/demo.sh $(TARGET)/debug/nbdkit
	$(MAKE) --no-print-directory vm-test VM=quick
	@echo "left out: make guestfs-test"

# The suites of attackers and hostile clients, where hardened systems, containers and older kernels take something away. Root;
# SURROUNDINGS chooses some of them.
surroundings: red-team
	$(CARGO) build $(CARGOFLAGS) --workspace --bins --lib
	CARGO="$(CARGO)" scripts/surroundings.sh $(TARGET) $(SURROUNDINGS)

# Machines that boot, with systemd, kernel clients, SELinux and others, in an emulator: see tests/vm/README.md. Root, for the image
# of the machine, which is made once. VM chooses scenarios: VM=quick, or names.
vm-test: policies
	$(CARGO) build $(CARGOFLAGS) -p nbdkitd -p nbdkit-worker -p nbdkit-spawner --bins
	$(MAKE) --no-print-directory built-in PROFILE=
	rm -rf $(VM_DIRECTORY)/payload
	$(MAKE) --no-print-directory -s install-files DESTDIR=$(VM_DIRECTORY)/payload RELEASE=$(TARGET)/debug \
	    BUILT_IN_FILE=$(TARGET)/debug/libnbdkit_built_in.so
	@tests/vm/build.sh $(VM_DIRECTORY)/machine; status=$$?; \
	if [ $$status -eq 3 ]; then echo "SKIPPED: make vm-test"; exit 0; fi; \
	[ $$status -eq 0 ] && tests/vm/run.sh $(VM_DIRECTORY)/machine $(VM_DIRECTORY)/payload $(VM)

# The tools of libguestfs and virt-v2v, of Debian 12, which start machines of their own: see
# tests/guestfs/README.md. Root, for the system that they run in, which is made once. GUESTFS chooses
# scenarios.
guestfs-test:
	$(CARGO) build $(CARGOFLAGS) -p nbdkitd -p nbdkit-worker -p nbdkit-spawner --bins
	$(MAKE) --no-print-directory built-in PROFILE=
	rm -rf $(GUESTFS_DIRECTORY)/payload
	$(MAKE) --no-print-directory -s install-files DESTDIR=$(GUESTFS_DIRECTORY)/payload RELEASE=$(TARGET)/debug \
	    BUILT_IN_FILE=$(TARGET)/debug/libnbdkit_built_in.so
	@tests/guestfs/build.sh $(GUESTFS_DIRECTORY)/machine; status=$$?; \
	if [ $$status -eq 3 ]; then echo "SKIPPED: make guestfs-test"; exit 0; fi; \
	[ $$status -eq 0 ] && tests/guestfs/run.sh $(GUESTFS_DIRECTORY)/machine $(GUESTFS_DIRECTORY)/payload $(GUESTFS)

# The policies for SELinux and AppArmor, compiled with the distribution's tools.
policies:
	scripts/install-packages.sh vm
	rm -rf $(VM_DIRECTORY)/policies
	mkdir -p $(VM_DIRECTORY)/policies
	cp -r selinux $(VM_DIRECTORY)/policies/
	$(MAKE) -s -C $(VM_DIRECTORY)/policies/selinux > $(VM_DIRECTORY)/policies/log 2>&1 || { cat $(VM_DIRECTORY)/policies/log >&2; exit 1; }
	for profile in apparmor/nbdkit apparmor/nbdkit-worker; do \
	    apparmor_parser --skip-kernel-load --skip-cache -I /etc/apparmor.d -I apparmor $$profile || exit 1; \
	done

# This server, its peers and a floor side by side: about forty minutes, on a machine that does nothing else. What was measured is
# written to docs/bench, in files of this kind of machine, of which the tables in the README and docs/speed.md are made anew.
# BENCH=quick is three minutes and changes nothing; BENCHFLAGS choose, as in
# make bench BENCHFLAGS="--only 4k-read-d16,null --servers ours,nbdkit,floor --rounds 5 --seconds 1".
bench:
	scripts/install-packages.sh bench
	$(RELEASE_FLAGS) && $(CARGO) build $(CARGOFLAGS) --release --bins
	$(RELEASE)/nbdkit-bench run $(if $(BENCHFLAGS),$(BENCHFLAGS),$(if $(filter quick,$(BENCH)),--quick,--publish .))

# Programs that attack themselves, for the red-team tests only: moved to a directory of their own, and never installed.
red-team:
	$(CARGO) build $(CARGOFLAGS) -p nbdkitd -p nbdkit-worker -p nbdkit-spawner --bins --features nbdkit-worker/red-team,nbdkitd/red-team
	install -d $(TARGET)/red-team
	rm -f $(TARGET)/red-team/*
	mv $(TARGET)/debug/nbdkit $(TARGET)/debug/nbdkit-worker $(TARGET)/debug/nbdkit-worker-psk $(TARGET)/red-team/
	cp $(TARGET)/debug/nbdkit-spawner $(TARGET)/red-team/

# Programs whose listener becomes another user, one that every Debian has, if root starts them: tests run them where
# NBDKIT_TEST_PROGRAMS names the directory. The usual ones are to be built after them.
listener-user: export NBDKIT_LISTENER_USER := daemon
listener-user:
	rm -rf $(TARGET)/listener-user
	$(MAKE) --no-print-directory red-team LISTENER_USER=daemon
	install -d $(TARGET)/listener-user
	mv $(TARGET)/red-team $(TARGET)/listener-user/
	$(CARGO) build $(CARGOFLAGS) -p nbdkitd -p nbdkit-worker -p nbdkit-spawner --bins
	cp $(TARGET)/debug/nbdkit $(TARGET)/debug/nbdkit-worker $(TARGET)/debug/nbdkit-worker-psk $(TARGET)/debug/nbdkit-spawner \
	    $(TARGET)/listener-user/

# Every target of fuzz/ under libFuzzer for FUZZ_SECONDS each (FUZZ_TARGETS for some of them only); "make test" replays
# the corpus. Without a C++ compiler it says so, and mutated sessions have to do.
fuzz:
	@CARGO="$(CARGO)" scripts/fuzz.sh $(or $(FUZZ_SECONDS),120) $(FUZZ_TARGETS); \
	status=$$?; [ $$status -eq 3 ] || exit $$status; \
	$(MAKE) --no-print-directory fuzz-sessions

# Mutated sessions against the running server, for some minutes, and mutations of the corpus; "make test" has a short run of both.
# NBDKIT_FUZZ_SEED repeats one.
fuzz-sessions: export NBDKIT_FUZZ_SEED := $(or $(NBDKIT_FUZZ_SEED),$(shell date +%s))
fuzz-sessions:
	$(CARGO) build $(CARGOFLAGS) --workspace --bins
	NBDKIT_FUZZ_MUTATIONS=$(or $(NBDKIT_FUZZ_MUTATIONS),20000) \
	    $(CARGO) test $(CARGOFLAGS) -p nbdkit-fuzz -- --nocapture
	NBDKIT_FUZZ_SESSIONS=$(or $(NBDKIT_FUZZ_SESSIONS),100000) \
	    $(CARGO) test $(CARGOFLAGS) -p nbdkit-tests --test hostile -- --nocapture fuzz

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGOFLAGS) --workspace --all-targets -- -D warnings
	@# The fuzzers' own lock file has all that the programs depend on.
	$(CARGO) tree $(CARGOFLAGS) --manifest-path fuzz/Cargo.toml > /dev/null

# Two builds, in two directories with a cargo home each, and their files byte by byte: some ten minutes.
reproducible:
	CARGO="$(CARGO)" MAKE="$(MAKE)" scripts/reproducible.sh

# Debian packages, in target/deb. Nothing is fetched but what cargo has not got.
deb:
	scripts/install-packages.sh package
	CARGO="$(CARGO)" packaging/deb.sh $(abspath $(TARGET))/deb

# RPM packages, in target/rpm; on Debian, too, where packaging/try-rpm.sh installs them in a root of
# their own.
rpm:
	scripts/install-packages.sh rpm
	CARGO="$(CARGO)" packaging/rpm.sh $(abspath $(TARGET))/rpm

# Installs what "make" has built, and builds nothing: root need not have cargo.
install: check-built
	$(MAKE) --no-print-directory install-files

check-built:
	@for file in $(RELEASE)/nbdkit $(RELEASE)/nbdkit-worker $(RELEASE)/nbdkit-worker-psk $(RELEASE)/nbdkit-spawner $(BUILT_IN_FILE); do \
	    [ -e $$file ] || { echo "make install: there is no $$file: run \"make\" first" >&2; exit 1; }; \
	done
	@built=$$(cat $(BUILT_FOR) 2>/dev/null) || \
	    { echo "make install: the last build is not complete: run \"make\" first" >&2; exit 1; }; \
	[ "$$built" = "$(SETTINGS)" ] || \
	    { echo "make install: built for other directories ($$built): run \"make\" with those of \"make install\"" >&2; exit 1; }

# As install, without its checks: RELEASE is where the programs are. Each built-in module gets a file where libvirt,
# scripts and people look for it. The worker knows their names; who builds for another machine gives them as
# BUILT_IN="plugin file filter cow ...". And what "make modules" has made.
install-files: BUILT_IN ?= $(shell $(RELEASE)/nbdkit-worker --built-in)
install-files:
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man3
	install -m 755 $(RELEASE)/nbdkit $(DESTDIR)$(BINDIR)/nbdkit
	install -m 755 $(RELEASE)/nbdkit-worker $(RELEASE)/nbdkit-worker-psk $(RELEASE)/nbdkit-spawner $(DESTDIR)$(LIBEXECDIR)/
	@# The first lines of plugins that are scripts say #!/usr/sbin/nbdkit, as nbdkit's manual does.
	if [ "$(SBINDIR)" != "$(BINDIR)" ] && ! [ -L "$(DESTDIR)$(SBINDIR)" ]; then \
	    install -d $(DESTDIR)$(SBINDIR); \
	    ln -sf "$$(realpath -m -s --relative-to=$(SBINDIR) $(BINDIR)/nbdkit)" $(DESTDIR)$(SBINDIR)/nbdkit; \
	fi
	install -m 644 man/*.1 $(DESTDIR)$(MANDIR)/man1/
	install -m 644 man/*.3 $(DESTDIR)$(MANDIR)/man3/
	install -d $(DESTDIR)$(BASHCOMPDIR) $(DESTDIR)$(ZSHCOMPDIR) $(DESTDIR)$(FISHCOMPDIR)
	install -m 644 completions/nbdkit.bash $(DESTDIR)$(BASHCOMPDIR)/nbdkit
	install -m 644 completions/_nbdkit $(DESTDIR)$(ZSHCOMPDIR)/_nbdkit
	install -m 644 completions/nbdkit.fish $(DESTDIR)$(FISHCOMPDIR)/nbdkit.fish
	install -d $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(PKGCONFIGDIR) $(DESTDIR)$(PLUGINDIR) $(DESTDIR)$(FILTERDIR)
	install -m 644 include/*.h $(DESTDIR)$(INCLUDEDIR)/
	version=$$(sed -n 's/^#define NBDKIT_VERSION_STRING "\(.*\)"/\1/p' include/nbdkit-version.h); \
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e 's|@PLUGINDIR@|$(PLUGINDIR)|' -e 's|@FILTERDIR@|$(FILTERDIR)|' -e "s|@VERSION@|$$version|" \
	    include/nbdkit.pc.in > $(DESTDIR)$(PKGCONFIGDIR)/nbdkit.pc
	chmod 644 $(DESTDIR)$(PKGCONFIGDIR)/nbdkit.pc
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(EXAMPLEDIR)/systemd $(DESTDIR)$(SYSCONFDIR)/nbdkit
	set -e; for unit in systemd/*.service systemd/*.socket systemd/*.slice; do \
	    sed -e 's|@BINDIR@|$(BINDIR)|g' -e 's|@EXAMPLEDIR@|$(EXAMPLEDIR)|g' $$unit > $(DESTDIR)$(UNITDIR)/$$(basename $$unit); \
	    chmod 644 $(DESTDIR)$(UNITDIR)/$$(basename $$unit); \
	done
	set -e; for example in systemd/examples/*.conf; do \
	    sed 's|@BINDIR@|$(BINDIR)|g' $$example > $(DESTDIR)$(EXAMPLEDIR)/systemd/$$(basename $$example); \
	    chmod 644 $(DESTDIR)$(EXAMPLEDIR)/systemd/$$(basename $$example); \
	done
	install -D -m 644 systemd/nbdkitd.sysusers $(DESTDIR)$(SYSUSERSDIR)/nbdkitd.conf
	install -D -m 644 systemd/nbdkitd.tmpfiles $(DESTDIR)$(TMPFILESDIR)/nbdkitd.conf
	install -m 644 systemd/etc/*.conf.example $(DESTDIR)$(SYSCONFDIR)/nbdkit/
	if [ -e packaging/nbdkit.logrotate ]; then \
	    install -D -m 644 packaging/nbdkit.logrotate $(DESTDIR)$(SYSCONFDIR)/logrotate.d/nbdkit; \
	fi
	if [ -n "$(APPARMORDIR)" ]; then \
	    install -D -m 644 -t $(DESTDIR)$(APPARMORDIR) apparmor/nbdkit apparmor/nbdkit-worker && \
	    install -D -m 644 -t $(DESTDIR)$(APPARMORDIR)/abstractions apparmor/abstractions/nbdkit-images; \
	fi
	set -e; set -- $(BUILT_IN); [ $$# -gt 0 ]; \
	while [ $$# -gt 0 ]; do \
	    case $$1 in plugin) directory=$(PLUGINDIR) ;; filter) directory=$(FILTERDIR) ;; *) exit 1 ;; esac; \
	    install -m 644 $(BUILT_IN_FILE) "$(DESTDIR)$$directory/nbdkit-$$2-$$1.so"; \
	    shift 2; \
	done
	if [ -e $(RELEASE)/libnbdkit_ext2_filter.so ]; then \
	    install -m 644 $(RELEASE)/libnbdkit_ext2_filter.so $(DESTDIR)$(FILTERDIR)/nbdkit-ext2-filter.so; \
	fi
	$(if $(STRIP),cd $(or $(DESTDIR),/) && $(STRIP) .$(BINDIR)/nbdkit .$(LIBEXECDIR)/nbdkit-* && \
	    if [ -e .$(FILTERDIR)/nbdkit-ext2-filter.so ]; then $(STRIP) .$(FILTERDIR)/nbdkit-ext2-filter.so; fi)

clean:
	$(CARGO) clean
