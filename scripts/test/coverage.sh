#!/bin/bash
# coverage.sh [PART...]: which lines the tests in user space reach: those of the driver's
# own files that tools/verify compiles, and those of tools/vsmmu; the given parts of that
# only. Prints a table by file. Fails if there is a line of the command queue or of the
# sanitiser that none reaches and for which docs/coverage.md has no reason, or a reason
# for one that is reached. Runs in the build root.
#
# Lines are counted by the compiler (-Cinstrument-coverage), whose LLVM is the one of the
# tools that read the counts.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

out=$BUILD/coverage
driver=$REPO/drivers/iommu/arm/arm-smmu-v3

# run WHAT DIRECTORY COMMAND...: runs it with its counts in $out/WHAT.
run() {
	local what=$1 directory=$2
	shift 2
	rm -rf "${out:?}/$what"
	# shellcheck disable=SC2016 # expanded by the inner one
	LLVM_PROFILE_FILE="$out/$what/%p-%m.profraw" \
		logged "coverage-$what" "coverage: $what" bash -c 'cd "$0" && "$@"' "$directory" "$@"
}

# lines WHAT FILES PROGRAM...: which lines of FILES (a pattern) PROGRAMs have run, as
# FILE LINE COUNT.
lines() {
	local what=$1 files=$2 program
	local -a objects=()
	shift 2
	for program; do objects+=(-object "$program"); done
	llvm-profdata-22 merge -sparse -o "$out/$what/all.profdata" "$out/$what"/*.profraw
	llvm-cov-22 export -format lcov -instr-profile "$out/$what/all.profdata" "${objects[@]}" |
		awk -F '[:,]' -v files="$files" '/^SF:/ { file = substr($0, 4) } /^DA:/ && file ~ files { print file, $2, $3 }'
}

# The programs that cargo made for tests of a workspace.
test_programs() { # DIRECTORY ARGUMENTS...
	local directory=$1
	shift
	(cd "$directory" && cargo test "$@" --no-run --message-format json 2>/dev/null) |
		jq -r 'select(.profile.test == true and .executable != null) | .executable'
}

# The unit tests but those with threads, which wait for each other's counts.
part_queue() {
	local -a arguments=(--release --locked --package verify-queue --lib) programs
	run queue "$REPO/tools/verify" cargo test "${arguments[@]}" -- --skip concurrent
	mapfile -t programs < <(test_programs "$REPO/tools/verify" "${arguments[@]}")
	lines queue "^$driver/(cmd|cmdq|error_log|hw|ring|streams).rs$" "${programs[@]}"
}

# A few schedules of the scenarios that make verify plays.
part_schedules() {
	local program=$CARGO_TARGET_DIR/model/queue-shuttle
	run schedules "$REPO/tools/verify" bash -c "
		cargo build --profile model --locked --package verify-queue --features shuttle &&
			$program random 6000 && $program pct 6000"
	lines schedules "^$driver/(cmd|cmdq|error_log|hw|ring|streams).rs$" "$program"
}

part_sanitiser() {
	run sanitiser "$REPO/tools/verify" cargo run --release --locked --package verify-sanitiser -- brief
	lines sanitiser "^$driver/(cmd|sanitise).rs$" "$CARGO_TARGET_DIR/release/verify-sanitiser"
}

part_userspace() {
	local -a programs
	run userspace "$REPO/tools/vsmmu" cargo test --locked --workspace
	mapfile -t programs < <(test_programs "$REPO/tools/vsmmu" --locked --workspace)
	lines userspace "^$REPO/tools/vsmmu/[a-z/_]*src/" "${programs[@]}"
}

(($#)) || set -- queue schedules sanitiser userspace
KERNEL_SOURCE=$("$REPO/scripts/host/source.sh")
export KERNEL_SOURCE DRIVER_SOURCE=$driver CARGO_TARGET_DIR=$out/cargo RUSTFLAGS=-Cinstrument-coverage
# What runs besides, such as build scripts, is not looked at.
export LLVM_PROFILE_FILE=$out/other/%m.profraw
lock "$BUILD/.coverage.lock"
mkdir -p "$out"
for part; do
	declare -F "part_$part" >/dev/null || die "there is no part $part; use: queue schedules sanitiser userspace"
	rm -f "$out/$part.lines"
	"part_$part" >"$out/$part.new"
	mv "$out/$part.new" "$out/$part.lines"
done
"$REPO/scripts/test/coverage.py" "$REPO" "${@/#/$out/}"
