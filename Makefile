# SPDX-License-Identifier: GPL-2.0
# Everything that builds, boots and checks. Only scripts/enter runs on the host;
# it sets up the build root when needed and runs the rest in there.

MAKEFLAGS += --no-print-directory
VARIANT ?= rust
export DISCARD VARIANT DEBUG CMD INITRD APPEND SMP QEMU_ARGS RUN KSRC BIND TIMEOUT QEMU LONG

.PHONY: coverage patch-refresh rust-analyzer tree trees help run test image boot shell kunit kselftest faults vmm bench bench-check verify fuzz fuzz-ioctl modular x86_64 c-objects series series-check series-base series-check-full lint docs rustdoc clean distclean
.DEFAULT_GOAL := help

help: ## this list
	@echo 'usage: make TARGET [SETTING=value...]'
	@echo
	@sed -n 's/^\([a-z0-9_-]*\):.*## /\1\t/p' Makefile | expand -t 12 | sed 's/^/  /'
	@echo
	@sed -n 's/^# \([A-Z_]*\) : /\1\t/p' Makefile | expand -t 12 | sed 's/^/  /'

# VARIANT : which kernel: rust (default), c, the same with the Rust options off, or debug-NAME, see DEBUG
# DEBUG : for test: the NAME of a file in scripts/config/debug, the kernel of which checks more than the Rust kernel and takes its place
# KSRC : build on your own kernel tree of the same series, which is left as it is
# RUN : for boot: a command to run in the guest instead of giving a shell
# INITRD : for boot: your own initrd
# APPEND : for boot: more kernel parameters
# SMP : for boot: number of CPUs
# QEMU_ARGS : for boot: more arguments for QEMU
# TIMEOUT : for boot: seconds after which the guest is ended
# ONLY : which groups (test), checks (lint), rows (run, faults), suites or tests (kunit), programs, fixtures or tests (kselftest), phases (vmm), parts (bench, coverage, verify) or patches (series-check-full); list, for test: what there is
# PATCH : for patch-refresh: which patch
# DISCARD : for tree: 1 to drop what was edited in build/linux
# LONG : for verify: 1 for the long tier, which takes an hour
# REPORT : for bench: 1 to only report, not to fail where a target is missed
# CONFIG : for bench: debian, for kernels with the options of Debian's that change code
# UPDATE : for bench-check: 1 to write what is expected from now on; for bench: the figures of docs/performance.md; for series-base: docs/base.md; for vmm: the table of docs/vmm.md
# RUNS : for fuzz: how many guests
# OPS : for fuzz-ioctl: how many ioctls (200000); controls: show that mistakes are found; or replay and a file
# SEED : for fuzz-ioctl: what the programs are made from (1)
# CMD : for shell: the command
# BIND : more host directories to be seen in the build root

run: tree ## builds everything and shows the demo's table on an emulated machine
	@scripts/enter scripts/host/run.sh $(ONLY)

trees: tree
	@scripts/host/tree.sh pristine none
	@scripts/host/tree.sh am none
	@scripts/host/tree.sh at-prepare smmuv3-prepare-cmdq.patch
	@scripts/host/tree.sh at-cmdq smmuv3-cmdq.patch

ifeq ($(ONLY),list)
test:
	@scripts/enter scripts/test/groups.py list
else
test: $(if $(DEBUG),tree,trees) ## all tests; ends with "N passed, N failed"
	@scripts/enter scripts/test/groups.py $(ONLY)
endif

image: tree ## builds the kernel: build/VARIANT/Image
	@scripts/enter scripts/host/image.sh $(VARIANT)

boot: image ## boots the kernel, with a shell on its console
	@scripts/enter scripts/host/initrd.sh
	@scripts/enter scripts/host/boot.sh

tree: ## makes the kernel tree build/linux: pristine kernel, patches, new files
	@scripts/host/tree.sh

patch-refresh: ## takes what was edited in build/linux into PATCH, a file of patches/
	@scripts/enter sh -c 'scripts/host/patch_refresh.py "$$(basename "$(PATCH)")" "$$(cat build/linux.base)" build/linux'
	@scripts/host/tree.sh

rust-analyzer: tree ## makes rust-project.json, for editors with rust-analyzer
	@scripts/enter scripts/host/rust-analyzer.sh

shell: ## runs CMD in the build root, where this directory has the same path
	@if [ -n "$$CMD" ]; then scripts/enter bash -c "$$CMD"; else scripts/enter bash; fi

kunit: tree ## the unit tests, in the booted kernel
	@SUITE='$(ONLY)' scripts/enter scripts/test/groups.py kunit

kselftest: image ## the kernel's own self-tests of iommufd, on VARIANT
	@scripts/enter scripts/host/initrd.sh
	@scripts/enter scripts/test/kselftest.sh $(ONLY)

faults: tree ## tests on an SMMU that fails on demand, VARIANT only; ONLY=worst: worst cases of both kernels; ONLY=kexec: from one kernel to the next
	@scripts/enter scripts/host/image.sh $(VARIANT)
	@scripts/enter scripts/host/initrd.sh
	@[ "$(ONLY)" != kexec ] || for variant in rust c; do scripts/enter scripts/host/image.sh $$variant || exit; done
	@scripts/enter scripts/test/faults.sh $(ONLY)

vmm: tree ## runs VMMs on VARIANT: QEMU, with a passed-through NVMe; then a small one (ONLY=same)
	@scripts/enter scripts/host/image.sh $(VARIANT)
	@for variant in rust c; do [ $(VARIANT) = $$variant ] || scripts/enter scripts/host/image.sh $$variant; done
	@scripts/enter scripts/host/initrd.sh
	@[ "$(ONLY)" = same ] || scripts/enter scripts/test/vmm.sh $(ONLY)
	@[ "$(or $(ONLY),same)" != same ] || scripts/enter scripts/test/vmm-same.sh $(if $(UPDATE),--page) c debian qemu

bench: tree ## measures invalidations on both kernels: tables, and a page in build/bench
	@scripts/enter scripts/test/bench.sh $(if $(CONFIG),--config $(CONFIG)) $(if $(REPORT),--report) $(if $(UPDATE),--update) $(ONLY)

bench-check: tree ## counts instructions of a few cases; fails if there are more than expected
	@scripts/enter scripts/test/bench.sh --check $(if $(UPDATE),--update)

verify: ## checks parts of the driver exhaustively or by proof; ends with a table
	@scripts/enter scripts/test/verify.sh $(ONLY)

coverage: ## a table of the lines of the driver and of tools/vsmmu that tests in user space reach
	@scripts/enter scripts/test/coverage.sh $(ONLY)

fuzz: ## has libFuzzer play guests to the relay, RUNS of them
	@scripts/enter scripts/test/fuzz.sh $(RUNS)

fuzz-ioctl: tree ## fuzzes the ioctls on VARIANT, with an SMMU that fails; VARIANT=kcov: by coverage
	@for variant in $(if $(filter controls,$(OPS)),rust c,$(VARIANT)); do scripts/enter scripts/host/image.sh $$variant || exit; done
	@scripts/enter scripts/host/initrd.sh
	@scripts/enter scripts/test/fuzz-ioctl.sh $(or $(OPS),200000) $(SEED)

modular: tree ## builds with iommufd and the drivers as modules, and runs the demo on that
	@scripts/enter scripts/test/groups.py modular

x86_64: tree ## compile test of the ioctl handler on another architecture
	@scripts/enter scripts/test/groups.py x86_64

c-objects: trees ## shows that with the options off the objects are those of the pristine kernel
	@scripts/enter scripts/test/c-objects.sh

series: tree ## writes the series as mails to build/series, in the name of git's user.name
	@GIT_AUTHOR_NAME="$${GIT_AUTHOR_NAME-$$(git config user.name)}" \
	GIT_AUTHOR_EMAIL="$${GIT_AUTHOR_EMAIL-$$(git config user.email)}" \
	scripts/enter sh -c 'scripts/host/series.py "$$(cat build/linux.base)" build/series'

series-check: trees ## checks the series: applies, gives the same tree, builds at three points, checkpatch
	@scripts/enter scripts/test/groups.py series
	@scripts/enter scripts/test/lint.sh checkpatch

series-check-full: trees ## the same after each patch, with W=1 and clippy; takes hours
	@scripts/host/tree.sh at none
	@scripts/enter scripts/test/series-check.sh full $(ONLY)

series-base: ## tells why the series is not for the kernel before: docs/base.md
	@scripts/enter sh -c 'scripts/test/series_base.py $(if $(UPDATE),--update) "$$(scripts/host/source.sh)" "$$(scripts/host/source.sh base)"'

lint: tree ## all checks of the sources; ends with "N passed, N failed"
	@scripts/enter scripts/test/lint.sh $(ONLY)

docs: tree ## the new pages of the kernel's documentation, by its Sphinx: build/docs/html
	@scripts/enter scripts/host/docs.sh

rustdoc: tree ## the documentation of the Rust code, private items included: build/rustdoc
	@scripts/enter scripts/host/rustdoc.sh

clean: ## removes what was built
	rm -rf build

distclean: clean ## removes the cache as well: build root, kernel source, ccache
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/vsmmu"
