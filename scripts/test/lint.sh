#!/bin/bash
# lint.sh [CHECK...]: checks the sources, or does the given checks only. Ends
# with "N passed, N failed"; fails if any did. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

tree=$BUILD/linux
mapfile -t patches < <(sed -n "s|^[^#[:space:]]|$REPO/patches/&|p" "$REPO/patches/series")
mapfile -t patched < <(cat /dev/null "${patches[@]}" | sed -n 's|^+++ b/||p' | sort -u)
mapfile -t new < <("$REPO/scripts/host/tree.py" --list)
passed=0 failed=0

check() { # NAME WHAT
	local rc=0 log=$LOGS/lint-$1.log start=$SECONDS
	"check_$1" >"$log" 2>&1 </dev/null || rc=$?
	if ((rc)); then
		failed=$((failed + 1))
		printf 'FAIL  %s (%d s)\n' "$2" $((SECONDS - start))
		tail -n 40 "$log" | sed 's/^/      /'
		printf '      all of it is in %s; only this check: make lint ONLY=%s\n' "$log" "$1"
	else
		passed=$((passed + 1))
		printf 'ok    %s (%d s)\n' "$2" $((SECONDS - start))
	fi
}

of_type() { # SUFFIX FILES...: those that end so, as paths in the kernel
	local suffix=$1 file
	shift
	for file in "$@"; do [[ $file != *"$suffix" ]] || printf '%s\n' "$file"; done
}

check_shellcheck() {
	cd "$REPO"
	shellcheck -x scripts/enter scripts/*.sh scripts/*/*.sh .ci/run && shellcheck -s busybox scripts/guest/*
}

# The programs of the scripts that have types and tests of their own.
check_python() {
	cd "$REPO/scripts/test"
	mypy --strict --cache-dir "$BUILD/mypy" results.py results_test.py runner.py runner_test.py groups.py groups_test.py coverage.py coverage_test.py debian_options.py debian_options_test.py ioctl_coverage.py &&
		./results_test.py && ./runner_test.py && ./groups_test.py && ./coverage_test.py && ./debian_options_test.py && ./pages_test.py && ../host/tree_test.py &&
		cd "$REPO/tools/testing/syzkaller" && mypy --strict --cache-dir "$BUILD/mypy" check.py &&
		./check.py "$tree"/include/uapi/linux/{iommufd,vfio}.h
}

check_codespell() {
	local texts
	cd "$REPO"
	mapfile -t texts < <(find README.md Makefile Kconfig docs scripts patches tools/vsmmu tools/verify -type f ! -name Cargo.lock ! -name 'LICENSE*')
	# Names in registers and C identifiers look like misspelt words.
	codespell -L ist,inout,te,hist,sid,asid,ans,crate,mis "${texts[@]}" "${new[@]/#/$tree/}"
}

# What git am and a maintainer need.
check_series() {
	local patch file wrong=0
	for patch in "${patches[@]}"; do
		grep -q '^From: .*' "$patch" || { echo "$patch: no From: line"; wrong=1; }
		grep -qE '^Subject: (\[PATCH[^]]*\] )?.+: .+' "$patch" || { echo "$patch: no Subject: line, or none of the form 'subsystem: what'"; wrong=1; }
		grep -q '^Signed-off-by: ' "$patch" || { echo "$patch: no Signed-off-by: line"; wrong=1; }
		awk '/^$/ { body = 1; next } /^(---|diff --git|Signed-off-by:)/ { exit } body { n++ } END { exit !n }' "$patch" ||
			{ echo "$patch: no commit message"; wrong=1; }
	done
	for file in "$REPO"/patches/*.patch; do
		[[ " ${patches[*]} " == *" $file "* || ! -e $file ]] || { echo "$file: not in patches/series"; wrong=1; }
	done
	return $wrong
}

# What is sent. Not asked for: FILE_PATH_CHANGES, as MAINTAINERS is one patch for the
# whole series, and UNKNOWN_COMMIT_ID, as the kernel source comes without its history.
# In single patches: EMBEDDED_FILENAME, as the file that is sourced is called like the
# one that does so; BIT_MACRO, of a number that is only moved; how lines are broken in
# tracepoints, as no macro call of theirs passes. And in self-tests, which are user
# space: BIT_MACRO, which they do not have, and MACRO_ARG_REUSE, as their harness'
# macros are all like that.
check_checkpatch() {
	local rc=0 mail ignore mails=$BUILD/checkpatch
	GIT_AUTHOR_NAME=Somebody GIT_AUTHOR_EMAIL=somebody@example.org \
		"$REPO/scripts/host/series.py" "$(cat "$tree.base")" "$mails" || return
	cd "$tree"
	for mail in "$mails"/*.patch; do
		[[ $mail != */0000-* ]] || continue
		ignore=FILE_PATH_CHANGES,UNKNOWN_COMMIT_ID
		! grep -q '^+++ b/drivers/iommu/Kconfig$' "$mail" || ignore+=,EMBEDDED_FILENAME
		! grep -q '^+++ b/drivers/iommu/iommufd/iommufd_private.h$' "$mail" || ignore+=,BIT_MACRO
		! grep -q '^+++ b/include/trace/' "$mail" || ignore+=,OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT
		! grep -q '^+++ b/tools/testing/' "$mail" || ignore+=,BIT_MACRO,MACRO_ARG_REUSE
		scripts/checkpatch.pl --quiet --strict --show-types --ignore "$ignore" "$mail" || rc=1
	done
	return $rc
}

check_rustfmt() {
	local files
	cd "$tree"
	mapfile -t files < <(of_type .rs "${new[@]}" "${patched[@]}")
	((!${#files[@]})) || rustfmt --check --edition 2021 "${files[@]}"
}

# In a build directory of its own, because other warnings mean other objects.
# With the kernel's own settings, and one more: code must suit the oldest compiler
# that the kernel builds with. The kernel's files do not all pass that, so what
# counts is whether a message names a file of ours.
check_kernel() {
	local log=$LOGS/lint-kernel-build.log ours
	# What is up to date would not be looked at.
	rm -f "$BUILD"/lint/rust/kernel.o "$BUILD"/lint/drivers/iommu/{iommufd,arm/arm-smmu-v3}/*.o
	"$REPO/scripts/host/image.sh" lint W=1 CLIPPY=1 KRUSTFLAGS=-Wclippy::incompatible_msrv \
		rust/ drivers/iommu/iommufd/ drivers/iommu/arm/arm-smmu-v3/ >"$log" 2>&1 || {
		tail -n 40 "$log"
		return 1
	}
	ours=$(printf '%s|' "${new[@]}" "${patched[@]}")
	! grep -nE -B 3 -A 8 "(${ours%|}):[0-9]+" "$log"
}

# kernel-doc has something to say about the kernel as it is: only what is new counts.
check_kerneldoc() {
	local files pristine
	pristine=$(cat "$tree.base")
	mapfile -t files < <(of_type .h "${new[@]}" "${patched[@]}" && of_type .c "${new[@]}" "${patched[@]}")
	((${#files[@]})) || return 0
	docs() {
		local file
		cd "$1"
		for file in "${files[@]}"; do
			[[ ! -e $file ]] || ./scripts/kernel-doc -none -Wall "$file" 2>&1
		done | sed -E 's/:[0-9]+/:/' | sort
	}
	docs "$pristine" >"$BUILD/kerneldoc.before"
	docs "$tree" >"$BUILD/kerneldoc.after"
	! comm -13 "$BUILD/kerneldoc.before" "$BUILD/kerneldoc.after" | grep .
}

# Tables are those of what they are made of, and the tests that pages name are there.
check_docs() {
	local test named=0 rc=0
	cd "$REPO"
	scripts/test/pages.py || rc=1
	while read -r test; do
		named=$((named + 1))
		grep -rqF -e "$test" drivers tools scripts Documentation || { echo "docs/verification.md: there is no $test"; rc=1; }
	done < <(sed -n '/^| Who /,/^$/p' docs/verification.md |
		awk -F '|' '{ n = split($5, parts, "`"); for (i = 2; i < n; i += 2) print parts[i] }')
	((named > 0)) || rc=1
	return $rc
}

check_cargofmt() {
	(cd "$REPO/tools/vsmmu" && cargo fmt --check) &&
		(cd "$REPO/tools/verify" && cargo fmt --check)
}

check_cargoclippy() {
	(cd "$REPO/tools/vsmmu" &&
		CARGO_TARGET_DIR=$BUILD/cargo bash -ec '
			cargo clippy --workspace --locked --all-targets -- -D warnings
			# What of it is for arm64 only.
			cargo clippy --package vsmmu-vmm --target aarch64-unknown-linux-gnu --locked -- -D warnings') &&
		(cd "$REPO/tools/verify" &&
			KERNEL_SOURCE=$("$REPO/scripts/host/source.sh") DRIVER_SOURCE=$REPO/drivers/iommu/arm/arm-smmu-v3 \
				CARGO_TARGET_DIR=$BUILD/verify bash -ec '
					cargo clippy --workspace --locked --all-targets -- -D warnings
					cargo clippy --package verify-queue --features shuttle --locked -- -D warnings
					cargo clippy --package verify-queue --features loom --locked -- -D warnings')
}

# What the library brings along can be used under its own terms or freer ones.
licences() {
	local free='(MIT|Apache-2\.0|BSD-3-Clause)'
	local all
	all=$(cargo tree --locked -p vsmmu-relay --all-features -e normal --prefix none -f '{p}: {l}') || return
	! grep -vE ": \\(?$free((/| OR )$free)*(\\) AND Unicode-3\.0)?( \\(\\*\\))?$" <<<"$all"
}

# The library that others can use: each combination of its features, its documentation,
# what would be published, the licences of its dependencies, and its fuzzer. That it needs no standard library shows where that
# would bring a second panic handler.
check_relay() {
	local features out=$BUILD/cargo
	local -x CARGO_TARGET_DIR=$out
	cd "$REPO/tools/vsmmu"
	for features in {iommufd,}\ {vm-memory,}\ {serde,}\ {log,}; do
		cargo clippy --locked -p vsmmu-relay --lib --no-default-features --features "$features" -- -D warnings || return 1
	done
	cargo build --locked -p vsmmu-relay --lib --no-default-features --features "serde log" &&
		rustc --edition 2024 --crate-type lib --emit metadata -o "$out/no_std.rmeta" -L "dependency=$out/debug/deps" \
			--extern "vsmmu_relay=$out/debug/libvsmmu_relay.rlib" - <<-EOF &&
			#![no_std]
			extern crate vsmmu_relay;
			#[panic_handler]
			fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
			    loop {}
			}
		EOF
		RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --all-features -p vsmmu-relay &&
		cargo package --locked --allow-dirty -p vsmmu-relay &&
		licences &&
		cd relay/fuzz && cargo fmt --check &&
		CARGO_TARGET_DIR=$out/fuzz CXX=clang++ RUSTFLAGS='--cfg fuzzing' cargo clippy --locked -- -D warnings
}

mkdir -p "$LOGS"
declare -A what=(
	[shellcheck]="shell scripts: shellcheck"
	[python]="scripts: mypy, and their tests"
	[codespell]="texts: codespell"
	[series]="patches: author, subject, message, sign-off"
	[checkpatch]="mails of the series: checkpatch --strict"
	[rustfmt]="kernel: rustfmt"
	[kernel]="kernel: W=1 and clippy, warnings are errors"
	[kerneldoc]="kernel: nothing new from kernel-doc"
	[docs]="documentation: its tables, and the tests and files that it names"
	[cargofmt]="user space: cargo fmt"
	[cargoclippy]="user space: clippy, warnings are errors"
	[relay]="the relay: features, no_std, documentation, cargo package, licences, fuzzer"
)
(($#)) || set -- shellcheck python codespell docs series checkpatch rustfmt kerneldoc cargofmt cargoclippy relay kernel
for name in "$@"; do
	check "$name" "${what[$name]}"
done
printf '%d passed, %d failed\n' "$passed" "$failed"
((!failed))
