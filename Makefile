# make help lists the targets. Only deps touches apt or rustup.

CARGO      ?= cargo
RUSTC      ?= rustc
# For your own flags, as in `make build CARGO_FLAGS=--offline`.
CARGO_FLAGS ?=
TARGET     ?= $(shell uname -m)-unknown-linux-musl
DESTDIR    ?=
PREFIX     ?= /usr
LIBEXECDIR ?= $(PREFIX)/libexec
UNITDIR    ?= $(PREFIX)/lib/systemd/system
SYSCONFDIR ?= /etc
# Which virtual machines make test and make test-all run the tests in, and which one make vm opens (tests/vm/run has all).
VM_MODES     ?= v1 hybrid v2 systemd-v2
VM_MODES_ALL ?= v1 hybrid hybrid-memory-v2 hybrid-cpu-v2 v2 systemd-v1 systemd-hybrid systemd-v2
MODE         ?= v2
# Where their Debian comes from, as lines for apt; unset, from where this host gets its own, if that is bookworm.
export VM_MIRROR
# Where make check puts the tools that it has to build.
TOOLS      ?= $(CURDIR)/build/tools
# Of a package: how often this version has been packaged, by whom, and when (the commit's time, or that of the tarball's files).
REVISION   ?= 1
export MAINTAINER ?= kata-cgroup-hook maintainers <maintainers@kata-cgroup-hook.invalid>
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)
# How long make fuzz has each target run.
FUZZ_SECONDS ?= 60

# The other architecture that it is built for. rustc's own linker knows them all, and musl needs nothing of a host's; what runs here is
# run by qemu-user.
FOREIGN      := $(firstword $(filter-out $(shell uname -m),aarch64 x86_64))
ifeq ($(FOREIGN),aarch64)
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER ?= rust-lld
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER ?= qemu-aarch64-static
else
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER ?= rust-lld
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUNNER ?= qemu-x86_64-static
endif

NAME         := kata-cgroup-hook
VERSION      := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
RUST_VERSION := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2

BIN_DIR  := $(LIBEXECDIR)/oci/hooks.d
LIB_DIR  := $(LIBEXECDIR)/$(NAME)
LINK_DIR := $(PREFIX)/sbin
MAN_DIR  := $(PREFIX)/share/man/man8
BASH_DIR := $(PREFIX)/share/bash-completion/completions
ZSH_DIR  := $(PREFIX)/share/zsh/site-functions
FISH_DIR := $(PREFIX)/share/fish/vendor_completions.d
CONF_DIR := $(SYSCONFDIR)/$(NAME)
JSON_DIR := $(PREFIX)/share/containers/oci/hooks.d

# A command that is said before it is run.
DO := do_it() { echo "+ $$*"; "$$@"; }

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help deps build run test test-quick test-all check cargo-deny cargo-fuzz audit vm bench soak fuzz deb rpm packages dist install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / { n = split($$1, t, " "); for (i = 1; i <= n; i++) printf "  %-12s %s\n", t[i], $$2 }' \
		$(MAKEFILE_LIST)

# What the tests and the demo start is looked for as a command, not as a package: what is there by other means will do.
# An older toolchain is needed by make check alone, so make run and make vm do not ask for it; nor does make run for an image.
run vm: WITHOUT_RUST_VERSION = 1
run: WITHOUT_IMAGE = $(filter 0,$(shell id -u))
# What reads the manual page and the completions is needed by the tests of those alone.
run vm soak: WITHOUT_READERS = 1
# What makes packages and looks at them.
test-all packages: WITH_PACKAGERS = 1
test-all: WITH_FOREIGN = 1
bench: WITHOUT_RUST_VERSION = 1
bench: WITHOUT_IMAGE = 1
bench: WITH_BENCH = 1
deps: ## install what run, test, check and bench need, each command printed first; NO_DEPS=1 only says what is missing
	@$(DO)
	have_virtiofsd() { [ -x /usr/lib/qemu/virtiofsd ] || [ -x /usr/libexec/virtiofsd ] || command -v virtiofsd >/dev/null; }

	if ! command -v '$(firstword $(CARGO))' >/dev/null; then
		echo 'make deps: no $(CARGO): install Rust $(RUST_VERSION) or newer (https://rustup.rs)' >&2
		[ -n '$(NO_DEPS)' ] || exit 1
	fi

	on_path() { PATH="$$PATH:/usr/sbin:/sbin" command -v "$$1" >/dev/null; }

	packages=()
	command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86)
	command -v strace >/dev/null || packages+=(strace)
	command -v cc >/dev/null || packages+=(gcc libc6-dev)
	if [ -n '$(WITH_BENCH)' ]; then
		command -v musl-gcc >/dev/null || packages+=(musl-tools)
		command -v valgrind >/dev/null || packages+=(valgrind)
	fi
	have_virtiofsd || packages+=(virtiofsd)
	if [ -z '$(WITHOUT_READERS)' ]; then
		on_path mandoc || packages+=(mandoc)
		on_path zsh || packages+=(zsh)
		on_path fish || packages+=(fish)
	fi
	if [ -n '$(WITH_PACKAGERS)' ]; then
		on_path rpmbuild || packages+=(rpm)
		on_path lintian || packages+=(lintian)
		on_path rpmlint || packages+=(rpmlint)
	fi
	if [ -n '$(WITH_FOREIGN)' ]; then
		on_path 'qemu-$(FOREIGN)-static' || packages+=(qemu-user-static)
	fi
	# The virtual machines' image is made of Debian's packages, as any user.
	if [ -z '$(WITHOUT_IMAGE)' ]; then
		on_path mmdebstrap || packages+=(mmdebstrap)
		on_path fakeroot || packages+=(fakeroot)
		on_path newuidmap || packages+=(uidmap)
		on_path mke2fs || packages+=(e2fsprogs)
		[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
	fi
	if [ $${#packages[@]} -gt 0 ] && [ -n '$(NO_DEPS)' ]; then
		echo "make deps: missing (Debian and Ubuntu packages): $${packages[*]}"
	elif [ $${#packages[@]} -gt 0 ]; then
		if ! command -v apt-get >/dev/null; then
			echo "make deps: no apt-get here; install what these Debian packages hold, or use NO_DEPS=1: $${packages[*]}" >&2
			exit 1
		fi
		as_root=()
		if [ "$$(id -u)" -ne 0 ]; then
			if ! command -v sudo >/dev/null; then
				echo "make deps: as root, please (or NO_DEPS=1): apt-get install $${packages[*]}" >&2
				exit 1
			fi
			as_root=(sudo)
		fi
		do_it "$${as_root[@]}" apt-get update -q
		# virtiofsd is a package of its own in newer releases; in older ones QEMU's common files hold it.
		for i in "$${!packages[@]}"; do
			if [ "$${packages[i]}" = virtiofsd ] && ! LC_ALL=C apt-cache policy virtiofsd | grep -q 'Candidate: [^(]'; then
				packages[i]=qemu-system-common
			fi
		done
		do_it "$${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$${packages[@]}"
	fi

	for target in $(TARGET) $(if $(WITH_FOREIGN),$(FOREIGN)-unknown-linux-musl); do
		if libdir=$$($(RUSTC) --print target-libdir --target "$$target" 2>/dev/null) && [ -d "$$libdir" ]; then
			:
		elif [ -n '$(NO_DEPS)' ] || ! command -v rustup >/dev/null; then
			echo "make deps: missing: Rust target $$target (without it, the binary is linked with the C library of this host)"
		else
			do_it rustup target add "$$target" || echo "make deps: no $$target to be had; the binary will be linked with this host's C library"
		fi
	done

	if [ -n '$(WITHOUT_RUST_VERSION)' ] || { command -v rustup >/dev/null && rustup toolchain list | grep -q '^$(RUST_VERSION)-'; }; then
		:
	elif [ -n '$(NO_DEPS)' ] || ! command -v rustup >/dev/null; then
		echo 'make deps: missing: Rust toolchain $(RUST_VERSION) (make check tries whether the sources still compile with it)'
	else
		do_it rustup toolchain install $(RUST_VERSION) --profile minimal --no-self-update ||
			echo 'make deps: no Rust $(RUST_VERSION) to be had; make check will say so'
	fi

build: ## make build/kata-cgroup-hook, static (musl) where the Rust target is installed
	@$(DO)
	target=(--target $(TARGET))
	below=$(TARGET)/
	if ! libdir=$$($(RUSTC) --print target-libdir --target $(TARGET) 2>/dev/null) || [ ! -d "$$libdir" ]; then
		echo 'make build: Rust target $(TARGET) is not installed (make deps does it): linking with this host'\''s C library instead'
		target=() below=
	fi
	# The same bytes wherever it is built: a panic's message holds the path of its source, which depends on where cargo keeps the crates.
	crates=$$($(CARGO) metadata --locked $(filter --offline --frozen,$(CARGO_FLAGS)) --format-version 1 | grep -o '"manifest_path":"[^"]*"' |
		sed -n 's|"manifest_path":"\(.*\)/[^/]*/Cargo.toml"|\1|p' | sort -u)
	while read -r dir; do RUSTFLAGS+=" --remap-path-prefix=$$dir=/crates"; done <<<"$$crates"
	export RUSTFLAGS
	do_it $(CARGO) build --release --locked $(CARGO_FLAGS) "$${target[@]}"
	out=$$($(CARGO) metadata --no-deps --offline --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
	mkdir -p build
	install -m 0755 "$$out/$${below}release/$(NAME)" build/$(NAME).new
	mv -f build/$(NAME).new build/$(NAME)

run: deps build ## the demonstration: a real QEMU placed and released, shown as a tree; without root in a virtual machine (MODE)
	@if [ "$$(id -u)" -eq 0 ]; then
		$(CARGO) run --quiet --locked --example demo -- build/$(NAME)
		exit
	fi
	echo 'make run: as this user, in a virtual machine with cgroup mode $(MODE)'
	$(CARGO) build --quiet --locked --profile vm --target $(TARGET) --example demo
	out=$$($(CARGO) metadata --no-deps --offline --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
	job=$$(mktemp -d)
	trap 'rm -rf "$$job"' EXIT
	install -D build/$(NAME) "$$job/bin/$(NAME)"
	install "$$out/$(TARGET)/vm/examples/demo" "$$job/bin/demo"
	printf '#!/bin/sh\ndemo /job/bin/$(NAME)\n' >"$$job/run"
	chmod +x "$$job/run"
	tests/vm/run '$(MODE)' "$$job"

test: deps ## the tests on this host and in virtual machines with cgroup v1, hybrid, v2, and v2 under systemd
	@$(DO)
	$(call HERE_AND_IN_VMS,$(VM_MODES))

test-all: export KCH_PACKAGES = $(CURDIR)/build/packages
test-all: deps packages ## the same, every other way a host can have its cgroups, the packages, the other architecture
	@$(DO)
	do_it $(CARGO) test --locked --lib --target $(FOREIGN)-unknown-linux-musl
	$(call HERE_AND_IN_VMS,$(VM_MODES_ALL))

test-quick: ## the tests on this host; what cannot run here says "skipped:" and why
	$(HERE)

HERE = $(CARGO) test --locked --no-fail-fast$(if $(CI), -- --show-output)
IN_VMS = env KCH_VM_MODES='$(1)' $(CARGO) test --locked --test vm

# The tests here often wait: meanwhile the programs for the virtual machines are built. What is wrong with those is said when they are
# to be run.
define HERE_AND_IN_VMS
	do_it $(CARGO) test --locked --no-run
	$(call IN_VMS,$(1)) -- --list >/dev/null 2>&1 &
	here=0
	do_it $(HERE) || here=$$?
	wait
	[ "$$here" -eq 0 ] || exit "$$here"
	do_it $(call IN_VMS,$(1))$(if $(CI), -- --show-output)
endef

check: cargo-deny ## format, lints, the oldest Rust promised, dependencies and their licences
	@$(DO)
	do_it $(CARGO) fmt --check
	do_it $(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	do_it $(CARGO) clippy --all-targets --locked -- -D warnings
	if command -v rustup >/dev/null && rustup toolchain list | grep -q '^$(RUST_VERSION)-'; then
		do_it rustup run $(RUST_VERSION) cargo check --locked
	else
		echo 'skipped: no Rust $(RUST_VERSION) toolchain'
	fi
	export PATH="$(TOOLS)/bin:$$PATH"
	do_it $(CARGO) deny --locked check bans licenses sources

# Built without optimisation: that takes a fraction of the time, and a run is under a second either way.
cargo-deny: TOOL = cargo-deny@$(CARGO_DENY_VERSION)
cargo-fuzz: TOOL = cargo-fuzz@$(CARGO_FUZZ_VERSION)
cargo-deny cargo-fuzz:
	@$(DO)
	export PATH="$(TOOLS)/bin:$$PATH"
	if ! command -v $@ >/dev/null; then
		export CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
		do_it $(CARGO) install --quiet --locked --root '$(TOOLS)' $(TOOL)
	fi

audit: cargo-deny ## known vulnerabilities in the dependencies (fetches the RustSec database)
	@export PATH="$(TOOLS)/bin:$$PATH"
	if ! $(CARGO) deny --locked fetch db; then
		echo 'make audit: the advisory database could not be fetched, so nothing was audited' >&2
		exit 1
	fi
	$(CARGO) deny --locked check --disable-fetch advisories

vm: deps build ## a root shell in a virtual machine with the hook at hand: make vm MODE=systemd-v2
	@job=$$(mktemp -d)
	trap 'rm -rf "$$job"' EXIT
	install -D build/$(NAME) "$$job/bin/$(NAME)"
	tests/vm/run '$(MODE)' "$$job"

soak: deps ## random lives of sandboxes on this host's cgroups, for KCH_SOAK_SECONDS (300); KCH_SOAK_SEED repeats one
	@KCH_SOAK_SECONDS="$${KCH_SOAK_SECONDS:-300}" $(CARGO) test --locked --test soak -- --nocapture

# Without a sanitizer a stable toolchain will do: what is looked for are broken promises, in a program without unsafe code. What is
# found on the way stays in build/fuzz, to be gone on from; the corpus in the sources is added to by hand. Many targets make files for
# each input, which memory takes faster than a disk. First those made-up hosts that are placed must be placed to the end: whatever else is
# checked of a host is checked on the way. Of the hundreds of words that libFuzzer recommends in the end, nobody makes use.
fuzz: cargo-fuzz ## every fuzz target in fuzz/ for FUZZ_SECONDS (60) each
	@export PATH="$(TOOLS)/bin:$$PATH"
	if [ -w /dev/shm ]; then
		export TMPDIR=$$(mktemp -d -p /dev/shm)
		trap 'rm -rf "$$TMPDIR"' EXIT
	fi
	$(CARGO) fuzz build -s none
	shopt -s extglob
	export KCH_FUZZ_WHOLE=1
	said=$$($(CARGO) fuzz run -s none host fuzz/corpus/host/!(impostor-*|refused-*) 2>&1) || { echo "$$said"; exit 1; }
	unset KCH_FUZZ_WHOLE
	for target in $$($(CARGO) fuzz list); do
		corpora=("build/fuzz/$$target" "fuzz/corpus/$$target")
		if [ "$$target" = state ]; then corpora+=(tests/fixtures/states); fi
		mkdir -p "build/fuzz/$$target"
		echo "=== $$target"
		$(CARGO) fuzz run -s none "$$target" "$${corpora[@]}" -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -verbosity=0 -print_funcs=0 -print_final_stats=1 2>&1 |
			sed -u '/^###### Recommended dictionary/,/^###### End of recommended dictionary/d'
	done

# deb and rpm install nothing, they say what is missing: make deps is for who runs and tests.
needs = for command in $(1); do \
	command -v "$$command" >/dev/null || { echo "make $@: no $$command here (Debian package: $(2))" >&2; exit 1; }; done

# A package is for hosts of all kinds: what needs the C library of this one is for none of them.
static = if grep -aqE '/ld-(linux|musl)[^/]*[.]so' build/$(NAME); then \
	echo 'make $@: build/$(NAME) is not static: make deps, make build' >&2; exit 1; fi

deb: build ## build/kata-cgroup-hook_VERSION-REVISION_ARCHITECTURE.deb (REVISION, MAINTAINER)
	@$(call needs,dpkg-deb,dpkg)
	$(static)
	packaging/deb/build '$(VERSION)-$(REVISION)' '$(TARGET)'

rpm: build ## build/kata-cgroup-hook-VERSION-REVISION.ARCHITECTURE.rpm (REVISION)
	@$(call needs,rpmbuild,rpm)
	$(static)
	packaging/rpm/build '$(VERSION)-$(REVISION)' '$(TARGET)'

# Two revisions of each for the tests, and a second build of the first, which must be the same.
packages: deps build
	@$(static)
	rm -rf build/packages
	mkdir -p build/packages
	for revision in 2 1 1; do
		packaging/deb/build "$(VERSION)-$$revision" '$(TARGET)'
		packaging/rpm/build "$(VERSION)-$$revision" '$(TARGET)'
		for package in build/$(NAME)[-_]"$(VERSION)-$$revision"[._]*; do
			copy=build/packages/$${package##*/}
			[ ! -e "$$copy" ] || cmp "$$package" "$$copy"
			cp "$$package" "$$copy"
		done
	done

# The hook is linked with musl, and so is what it is measured against. The records are kept on a tmpfs, as they are below /run.
# With MODE= it is done in a virtual machine, as others have their cgroups: there the ratios count, and no time.
ifneq ($(origin MODE),file)
bench: WITHOUT_IMAGE =
bench: BENCH_IN_VM = 1
endif
bench: deps build ## what a run of the hook costs beside the kernel's share of it, KCH_BENCH_RUNS (50) of each (MODE): a table, JSON and SVG in build/bench
	@$(DO)
	mkdir -p build/bench
	for program in floor launch crowd; do
		do_it musl-gcc -O2 -static -Wall -Wextra -o "build/bench/$$program" "benches/$$program.c"
	done
	if [ -n '$(BENCH_IN_VM)' ]; then
		job=$$(mktemp -d)
		trap 'rm -rf "$$job"' EXIT
		program=$$($(CARGO) bench --quiet --locked --profile vm --target $(TARGET) --bench hook --no-run \
			--message-format=json | sed -n 's/.*"executable":"\([^"]*hook-[0-9a-f]*\)".*/\1/p')
		mkdir "$$job/bin" "$$job/bench"
		cp "$$program" "$$job/bin/measure"
		cp build/$(NAME) "$$job/bin"
		cp build/bench/floor build/bench/launch build/bench/crowd "$$job/bench"
		cat >"$$job/run" <<-'EOF'
			#!/bin/sh
			export TMPDIR=/dev/shm KCH_BENCH_RUNS=$(or $(KCH_BENCH_RUNS),50)
			cp -r /job/bench /tmp && measure /job/bin/$(NAME) /tmp/bench || exit
			for kind in json svg; do echo "=== $$kind"; cat /tmp/bench/bench.$$kind; done
		EOF
		chmod +x "$$job/run"
		VM_TIMEOUT=7200 tests/vm/run '$(MODE)' "$$job" | tee "$$job/said" | sed -u '/^=== json/,$$d'
		sed -n '/^=== json/,/^=== svg/{/^===/!p}' "$$job/said" >'build/bench/bench.$(MODE).json'
		sed '1,/^=== svg/d' "$$job/said" >'build/bench/bench.$(MODE).svg'
		exit
	fi
	if [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi
	do_it $(CARGO) bench --quiet --locked --profile dev --bench hook -- build/$(NAME) build/bench

dist: ## the committed sources and all dependencies as build/kata-cgroup-hook-VERSION.tar.gz, which builds offline
	@name=$(NAME)-$(VERSION)
	rm -rf build/dist
	mkdir -p "build/dist/$$name/.cargo"
	git archive --format=tar HEAD | tar -x -C "build/dist/$$name"
	cd "build/dist/$$name"
	$(CARGO) vendor --quiet --locked --versioned-dirs vendor >/dev/null
	cat > .cargo/config.toml <<-'EOF'
		[source.crates-io]
		replace-with = "vendored"
		[source.vendored]
		directory = "vendor"
	EOF
	cd ..
	tar --sort=name --mtime="@$$(git log -1 --format=%ct)" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw -c "$$name" |
		gzip -9n > "../$$name.tar.gz.new"
	mv -f "../$$name.tar.gz.new" "../$$name.tar.gz"
	cd ..
	rm -rf dist
	ls -l "$$name.tar.gz"

# What is installed beside the binary and the JSON files, as FILE:PLACE.
FILES := $(foreach unit,$(wildcard packaging/systemd/*),$(unit):$(UNITDIR)/$(notdir $(unit))) \
	docs/$(NAME).8:$(MAN_DIR)/$(NAME).8 \
	packaging/completions/$(NAME).bash:$(BASH_DIR)/$(NAME) \
	packaging/completions/_$(NAME):$(ZSH_DIR)/_$(NAME) \
	packaging/completions/$(NAME).fish:$(FISH_DIR)/$(NAME).fish
JSONS := $(foreach json,$(wildcard hooks.d/*.json),$(json):$(JSON_DIR)/$(notdir $(json)))

# An engine acts on a hook's JSON file the moment it appears: so each file appears whole, and the binary before them.
install: ## install what build made (DESTDIR, PREFIX, LIBEXECDIR, SYSCONFDIR, UNITDIR); builds nothing
	@if [ ! -x build/$(NAME) ]; then
		echo 'make install: there is no build/$(NAME): run make build first' >&2
		exit 1
	fi
	# put MODE FILE PLACE: by a rename, and with the paths that were chosen in it where it is text.
	put() {
		local place='$(DESTDIR)'"$$3"
		install -d "$${place%/*}"
		install -m "$$1" "$$2" "$$place.new"
		case $$2 in build/*) ;; *)
			sed 's|/usr/libexec/|$(LIBEXECDIR)/|; s|/usr/share/containers/oci/hooks\.d|$(JSON_DIR)|; s|/usr/sbin|$(LINK_DIR)|
				s|/usr/lib/systemd/system/|$(UNITDIR)/|' "$$2" >"$$place.new" ;;
		esac
		mv -fT "$$place.new" "$$place"
		echo "$$place"
	}
	put 0755 build/$(NAME) '$(BIN_DIR)/$(NAME)'
	install -d '$(DESTDIR)$(LINK_DIR)'
	ln -sfnr '$(DESTDIR)$(BIN_DIR)/$(NAME)' '$(DESTDIR)$(LINK_DIR)/$(NAME).new'
	mv -fT '$(DESTDIR)$(LINK_DIR)/$(NAME).new' '$(DESTDIR)$(LINK_DIR)/$(NAME)'
	put 0755 packaging/retire '$(LIB_DIR)/retire'
	put 0755 packaging/containerd/base-spec '$(LIB_DIR)/base-spec'
	for file in $(FILES); do put 0644 "$${file%%:*}" "$${file#*:}"; done
	if [ ! -e '$(DESTDIR)$(CONF_DIR)/config.toml' ]; then
		put 0644 packaging/config.toml '$(CONF_DIR)/config.toml'
	fi
	for json in $(JSONS); do put 0644 "$${json%%:*}" "$${json#*:}"; done

# Under a DESTDIR nobody runs it. The timer's link in /etc is systemctl's.
uninstall: ## release every sandbox and remove what install installed, except a configuration that was changed
	@if [ -z '$(DESTDIR)' ] && [ -x '$(LIB_DIR)/retire' ]; then
		'$(LIB_DIR)/retire'
		if [ -d /run/systemd/system ]; then systemctl disable $(NAME)-reconcile.timer || true; fi
	fi
	for file in $(JSONS) $(FILES); do rm -fv '$(DESTDIR)'"$${file#*:}"; done
	if cmp -s packaging/config.toml '$(DESTDIR)$(CONF_DIR)/config.toml'; then
		rm -fv '$(DESTDIR)$(CONF_DIR)/config.toml'
		rmdir '$(DESTDIR)$(CONF_DIR)'
	fi
	rm -fv '$(DESTDIR)$(LIB_DIR)'/{retire,base-spec} '$(DESTDIR)$(LINK_DIR)/$(NAME)' '$(DESTDIR)$(BIN_DIR)/$(NAME)'
	rmdir '$(DESTDIR)$(LIB_DIR)' 2>/dev/null || true

clean: ## remove build/ and what cargo made
	rm -rf build
	$(CARGO) clean
