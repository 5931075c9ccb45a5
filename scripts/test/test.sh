#!/bin/bash
# test.sh [GROUP...] | list: runs the tests, or the given groups of them, two at a time
# if there are as many CPUs; or only lists the groups. SUITE=PATTERN narrows kunit.
# Ends with a table and "N passed, N failed"; fails if any did. Runs in the build
# root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

start=$SECONDS
# What the groups leave behind: GROUP.results, GROUP.matrix; and all of them
# results.xml (JUnit) and results.ktap.
out=$BUILD/test

# result NAME PASSED FAILED WHAT [LOG...]: to have looked at nothing is a failure. The
# logs are for results.py, which finds each test there.
result() {
	local passed=${2:-0} failed=$3
	((passed + failed)) || failed=1
	printf '%s\t%d\t%d\t%s\t%s\n' "$1" "$passed" "$failed" "$4" "${*:5}" >>"$out/$group.results"
	note "$1: $passed passed, $failed failed"
}

# once NAME WHAT COMMAND...: runs a command that several groups need, for the first
# of them; if it fails, that is one failed check of each.
once() {
	local name=$1 what=$2
	shift 2
	(
		flock 9
		[[ -e $out/$name.done || -e $out/$name.broken ]] || if "$@"; then touch "$out/$name.done"; else touch "$out/$name.broken"; fi
	) 9>"$out/$name.lock"
	[[ -e $out/$name.done ]] && return
	result "$group" 0 1 "$what"
	return 1
}

image() { # VARIANT
	once "image-$1" "the $1 kernel does not build" "$REPO/scripts/host/image.sh" "$1"
}

initrd() { once initrd "the user-space programs do not build" "$REPO/scripts/host/initrd.sh"; }

# rows GROUP PROGRAM VARIANT SMP [COMMANDS BEFORE]: each row of the program's table
# is a check.
rows() {
	local log=$LOGS/$1.log rc=0 counts what
	what="$2, $3 kernel, $4 CPU$([[ $4 == 1 ]] || echo s)"
	say "$1: $what"
	NAME=$1 VARIANT=$3 SMP=$4 RUN="${5-}/vsmmu/$2" "$REPO/scripts/host/boot.sh" >/dev/null || rc=$?
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log" | tail -n 1)
	if [[ ! $counts ]] || { ((rc)) && [[ ${counts#* } == 0 ]]; }; then
		result "$1" "${counts% *}" "$((${counts#* } + 1))" "$2 did not run to its end, or the kernel reported an error: $log"
		return
	fi
	((!rc)) || grep -iE '\bfail' "$log" | head -n 20 >&2
	result "$1" "${counts% *}" "${counts#* }" "$what" "$log"
}

# on_c NAME LOG: the tests on the C kernel that must fail there are those of
# scripts/test/fails-on-c.NAME, and no others. If nothing failed there, they would not look.
on_c() {
	local log=$LOGS/$1-on-c.log counts
	"$REPO/scripts/test/results.py" on-c "$REPO/scripts/test/fails-on-c.$1" "$2" >"$log" || grep '^FAIL' "$log" >&2 || true
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log")
	counts=${counts:-0 1}
	result "$group" "${counts% *}" "${counts#* }" "on the C kernel those of scripts/test/fails-on-c.$1 fail, and no others" "$log"
}

group_userspace() {
	local what="unit tests of the user-space programs" counts rc=0
	logged cargo-test "userspace: $what" env CARGO_TARGET_DIR="$BUILD/cargo" \
		bash -c "cd '$REPO/tools/vsmmu' && cargo test --workspace --locked --no-fail-fast" || rc=1
	counts=$(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$LOGS/cargo-test.log")
	# A program that dies does not tell of its tests.
	[[ $counts != *' 0' ]] || counts="${counts% *} $rc"
	result userspace "${counts% *}" "${counts#* }" "$what" "$LOGS/cargo-test.log"
	local example
	for example in blocking asynchronous; do
		what="the relay's example, $example"
		rc=0
		logged "relay-$example" "userspace: $what" env CARGO_TARGET_DIR="$BUILD/cargo" \
			bash -c "cd '$REPO/tools/vsmmu' && cargo run --locked -p vsmmu-relay --example $example" || rc=1
		result userspace $((1 - rc)) $rc "$what"
	done
}

# Every suite of the kernel's tests that is built in is run; those of the new
# files have to be among them.
group_kunit() {
	local log=$LOGS/kunit.kernel.log json suites='' missing='' counts suite
	image rust && initrd || return 0
	say "kunit: the unit tests in the kernel"
	if ! NAME=kunit RUN=true APPEND="kunit.enable=1 kunit.autorun=1${SUITE:+ kunit.filter_glob=$SUITE}" "$REPO/scripts/host/boot.sh"; then
		result kunit 0 1 "the kernel did not boot through its unit tests, or reported an error: $log"
		return
	fi
	json=$(sed 's/\r$//' "$log" | (cd "$BUILD/linux" && python3 tools/testing/kunit/kunit.py parse --json) | tee "$LOGS/kunit.log" |
		sed -n '/^{/,/^}/p') || true # it fails if a test has
	counts=$(jq -r '[.. | .test_cases? // [] | .[].status] | "\(map(select(. == "PASS")) | length) \(map(select(. == "FAIL" or . == "ERROR")) | length)"' <<<"$json")
	counts=${counts:-0 0}
	[[ ${SUITE-} ]] || suites=$(grep -rhoP '^#\[kunit_tests\(\K\w+' "$REPO/rust" "$REPO/drivers" || true)
	for suite in $suites; do
		jq -e --arg suite "$suite" '[.. | .name? // empty] | index($suite)' <<<"$json" >/dev/null || missing+=" $suite"
	done
	if [[ ${counts#* } != 0 || $missing ]]; then grep -aE 'FAILED|ERROR' "$LOGS/kunit.log" >&2 || true; fi
	[[ ! $missing ]] || counts="${counts% *} $((${counts#* } + 1))"
	jq -r '.. | objects | select(.test_cases? | length > 0) | .name as $suite | .test_cases[] | select(.status != "SKIP")
		| "\(if .status == "PASS" then "ok  " else "FAIL" end)  \($suite).\(.name)"' <<<"$json" >"$LOGS/kunit-cases.log"
	result kunit "${counts% *}" "${counts#* }" "unit tests in the kernel${missing:+, but these suites did not run:$missing}" \
		"$LOGS/kunit-cases.log"
}

group_demo() {
	image rust && initrd || return 0
	rows demo-smp1 vsmmu-demo rust 1
	rows demo-smp4 vsmmu-demo rust 4
}

# The same rows on the C code, much of which is not as the contract says.
group_c() {
	local rc=0
	image c && initrd || return 0
	say "c: the demo on the C kernel, where rows must fail"
	NAME=demo-c VARIANT=c SMP=1 ALLOW='__alloc_frozen_pages' RUN='/vsmmu/vsmmu-demo --json' "$REPO/scripts/host/boot.sh" >/dev/null || rc=$?
	# 1 is that rows have failed.
	result c $((rc == 1)) $((rc != 1)) "the demo runs to its end there, and the kernel reports no error"
	on_c demo "$LOGS/demo-c.log"
}

# The kernel's own self-tests of iommufd, on both kernels. Upstream's pass on
# both; much of what is new fails on the C kernel.
group_kselftest() {
	local variant program passed_here failed_here skipped log
	image rust && image c && initrd || return 0
	for variant in rust c; do
		VARIANT=$variant "$REPO/scripts/test/kselftest.sh" >/dev/null || true
		if [[ ! -e $LOGS/kselftest-$variant.counts ]]; then
			result kselftest 0 1 "the self-tests did not run on the $variant kernel"
			continue
		fi
		while read -r program passed_here failed_here skipped; do
			echo "$program $variant $passed_here $failed_here $skipped" >>"$out/$group.matrix"
			[[ $variant == rust || $program == kernel-log ]] || continue
			# The machine has all that the new ones need.
			[[ $program != tree/iommufd_arm_smmuv3_* || ${SMP-} ]] || failed_here=$((failed_here + skipped))
			case $program in
			*kernel-log) log='' ;;
			smp*) log=$LOGS/kselftest-$variant-${program%%/*}.log#$program: ;;
			*) log=$LOGS/kselftest-$variant.log#$program: ;;
			esac
			result kselftest "$passed_here" "$failed_here" "$program, $variant kernel ($skipped skipped)" "$log"
		done <"$LOGS/kselftest-$variant.counts"
	done
	on_c kselftest "$LOGS/kselftest-c.log"
}

# An SMMU that fails on demand: with one CPU and with four, with a large and a
# small queue, polling registers and memory. make faults has the combinations.
# The C kernel tells nobody of an error.
group_faults() {
	local name good bad what variant
	image rust && image c && initrd || return 0
	rm -f "$LOGS"/faults-{rust,c}.counts "$LOGS/faults-c-smp4.log"
	VARIANT=rust "$REPO/scripts/test/faults.sh" smp1 small4 msi4 >/dev/null || true
	for name in smp1 small4 msi4; do
		read -r good bad what < <(sed -n "s/^$name //p" "$LOGS/faults-rust.counts" 2>/dev/null) || true
		[[ $bad ]] || what='there is no emulator that fails on demand, or it does not run'
		result faults "${good:-0}" "${bad:-1}" "an SMMU that fails on demand, rust kernel, $name${what:+ ($what)}" "$LOGS/faults-rust-$name.log"
	done
	# Without the rows that time a call twenty times, of which the worst has more.
	VARIANT=c "$REPO/scripts/test/faults.sh" smp4 ill-{0,1,2,5,6,op,each,forever} two-ill sync-ill atc-forever-5 none >/dev/null || true
	on_c faults "$LOGS/faults-c-smp4.log"
	# The host's own invalidations are lost on neither.
	for variant in rust c; do
		good='' bad='' what=''
		VARIANT=$variant "$REPO/scripts/test/faults.sh" pages4 unmap- >/dev/null || true
		read -r name good bad what < <(cat "$LOGS/faults-$variant.counts" 2>/dev/null) || true
		result faults "${good:-0}" "${bad:-1}" "unmappings that the SMMU cannot fetch, $variant kernel, pages4${what:+ ($what)}"
	done
	what=$("$REPO/scripts/test/faults.sh" worst) || true
	grep 'FAILED$' <<<"$what" >&2 || true
	read -r good bad < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' <<<"$what") || good='' bad=''
	result faults "${good:-0}" "${bad:-1}" "the worst that one can do to the others, against the C kernel"
}

# Instructions are exact, so that a change which costs some shows.
group_bench() {
	local log=$LOGS/bench-check.log what="instructions of invalidations, as in scripts/test/bench.expected.json" counts
	say "bench: $what"
	"$REPO/scripts/test/bench.sh" --check 2>&1 | tee "$log" | grep -vE '^(ok  |[0-9]+ passed)' >&2 || true
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log")
	counts=${counts:-0 1}
	result bench "${counts% *}" "${counts#* }" "$what" "$log"
}

# A VMM that embeds the relay, with a guest that reacts to errors as Linux does: on
# both kernels, and where the SMMU fails on demand.
group_relay() {
	local name good bad what
	image rust && image c && initrd || return 0
	rows relay-rust vsmmu-guest rust 2
	rows relay-c vsmmu-guest c 2
	rm -f "$LOGS/guest-rust.counts"
	PROGRAM=vsmmu-guest VARIANT=rust "$REPO/scripts/test/faults.sh" smp4 >/dev/null || true
	read -r name good bad what < <(cat "$LOGS/guest-rust.counts" 2>/dev/null) || true
	result relay "${good:-0}" "${bad:-1}" "vsmmu-guest, an SMMU that fails on demand${what:+ ($what)}" "$LOGS/guest-rust-smp4.log"
}

# A real VMM: Debian's QEMU, hosted by the kernel under test, whose guest drives an
# NVMe through its own vSMMU. With invalidations lost on the way its checks have to
# notice, or they do not look. On the C kernel, which loses errors, none are raised.
group_vmm() {
	local variant counts
	local -A phases=([rust]='' [c]='clean lost-va lost-asid lost-cd')
	image rust && image c && initrd || return 0
	for variant in rust c; do
		# shellcheck disable=SC2086 # one argument a phase
		VARIANT=$variant "$REPO/scripts/test/vmm.sh" ${phases[$variant]} >"$LOGS/vmm-$variant.table" || true
		counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$LOGS/vmm-$variant.table" | tail -n 1)
		counts=${counts:-0 0}
		result vmm "${counts% *}" "${counts#* }" "QEMU with a vSMMU on the $variant kernel: ${phases[$variant]:-all phases}"
		[[ ${counts#* } == 0 ]] || note "the table is $LOGS/vmm-$variant.table"
	done
}

# The same Linux on the bare machine and in a VM, where it sees the same errors.
group_same() {
	local counts log=$LOGS/vmm-same.table
	image rust && image c && initrd || return 0
	"$REPO/scripts/test/vmm-same.sh" c >"$log" || true
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log")
	counts=${counts:-0 1}
	[[ ${counts#* } == 0 ]] || grep -A 9 '^FAIL' "$log" | grep -v '^ok' >&2 || true
	result same "${counts% *}" "${counts#* }" "Linux on the bare machine and in a VM by vsmmu-vmm: $log" "$log"
}

# What is checked exhaustively or proved in user space; each row of its table is a check.
group_verify() {
	local log=$LOGS/verify.log counts
	"$REPO/scripts/test/verify.sh" >"$log" || true
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log")
	counts=${counts:-0 1}
	[[ ${counts#* } == 0 ]] || cat "$log" >&2
	result verify "${counts% *}" "${counts#* }" "exhaustive checks and proofs, the quick tier of make verify: $log" "$log"
}

group_modular() {
	local root=$BUILD/modular/root
	image modular && initrd || return 0
	rm -rf "$root"
	if ! logged modules "installing the modules" "$REPO/scripts/host/image.sh" modular -s INSTALL_MOD_PATH="$root" modules_install; then
		result modular 0 1 "the modules cannot be installed"
		return
	fi
	rm -f "$root"/lib/modules/*/build
	FILES=$root rows modular vsmmu-demo modular 2 'modprobe -a arm_smmu_v3 iommufd vfio_pci && '
}

group_c_objects() {
	local log=$LOGS/c-objects.log what="objects of C as without the patches, with the options off" counts
	say "c_objects: $what"
	"$REPO/scripts/test/c-objects.sh" 2>&1 | tee "$log" | grep '^FAIL' >&2 || true
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log")
	counts=${counts:-0 1}
	result c_objects "${counts% *}" "${counts#* }" "$what" "$log"
}

# The mails of make series. What is built at three points of the series is the queue's
# hooks in C, the queue, and at the end the queue without what is for guests.
group_series() {
	local log=$LOGS/series.log what="the series applies, gives the same tree, and builds at three points" counts
	say "series: $what"
	"$REPO/scripts/test/series-check.sh" 2>&1 | tee "$log" | grep -A 25 '^FAIL' >&2 || true
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log")
	counts=${counts:-0 1}
	result series "${counts% *}" "${counts#* }" "$what" "$log"
}

group_docs() {
	local log=$LOGS/docs-group.log what="the new pages of the kernel's documentation, by its Sphinx, without warnings"
	say "docs: $what"
	if "$REPO/scripts/host/docs.sh" >"$log" 2>&1; then
		result docs 1 0 "$what"
	else
		cat "$log" >&2
		result docs 0 1 "$what"
	fi
}

group_x86_64() {
	image x86_64 || return 0
	result x86_64 1 0 "the ioctl handler compiles for x86_64 without warnings"
}

# The long ones first, so that none is left over in the end.
declare -A what=(
	[kselftest]="self-tests of iommufd, upstream's and new ones, on both kernels"
	[faults]="rows on an SMMU that fails on demand"
	[vmm]="QEMU with a vSMMU and a Linux guest, on both kernels"
	[same]="Linux on the bare machine and in a VM, side by side"
	[verify]="exhaustive checks and proofs in user space"
	[demo]="the demo's table, with one and four CPUs"
	[modular]="the demo on a kernel of modules"
	[kunit]="unit tests in the kernel"
	[relay]="a VMM that embeds the relay, on both kernels"
	[c]="the demo on the C kernel, where rows must fail"
	[bench]="instructions of invalidations"
	[series]="the mails: they apply, give the same tree, build at three points"
	[x86_64]="compile test of the ioctl handler"
	[c_objects]="objects with the options off"
	[userspace]="unit tests of the user-space programs"
	[docs]="the kernel's documentation"
)
all=(kselftest faults vmm same verify demo modular kunit relay c bench series x86_64 c_objects userspace docs)
if [[ ${1-} == list ]]; then
	for group in "${all[@]}"; do printf '%-10s %s\n' "$group" "${what[$group]}"; done
	exit
fi
(($#)) || set -- "${all[@]}"
for group in "$@"; do
	declare -F "group_$group" >/dev/null || die "there is no group $group; use: ${all[*]}"
done
# Each once, as it has its logs for itself.
mapfile -t groups < <(printf '%s\n' "$@" | awk '!seen[$0]++')
set -- "${groups[@]}"
at_a_time=$(($(nproc) < 2 ? 1 : 2))

lock "$BUILD/.test.lock"
rm -rf "$out"
mkdir -p "$LOGS" "$out"
for group in "$@"; do
	while (($(jobs -rp | wc -l) >= at_a_time)); do wait -n || true; done
	(
		begin=$SECONDS
		"group_$group"
		# Of the processes that it has waited for, in seconds.
		times >"$out/$group.times"
		cpu=$(awk -F '[ms ]+' 'NR == 2 { printf "%d", $1 * 60 + $2 + $3 * 60 + $4 }' "$out/$group.times")
		printf '%s\t%d\t%d\n' "$group" $((SECONDS - begin)) "$cpu" >"$out/$group.end"
	) &
done
wait

for group in "$@"; do
	[[ -e $out/$group.end && -e $out/$group.results ]] || result "$group" 0 1 "the group did not run to its end, see above"
done
"$REPO/scripts/test/results.py" write "$out" || note "there is no $out/results.xml"
echo
(cd "$out" && cat "${@/%/.results}") | awk -F '\t' '{ printf "%-10s %4d passed %4d failed   %s\n", $1, $2, $3, $4 }'
echo
# Self-tests by kernel: passed, failed, skipped.
if [[ -e $out/kselftest.matrix ]]; then awk '
	NF == 5 { if (!($1 in seen)) { seen[$1] = 1; order[++n] = $1 } cell[$1, $2] = sprintf("%d / %d / %d", $3, $4, $5) }
	END {
		printf "%-34s %18s %18s\n", "pass / fail / skip", "rust", "c"
		for (i = 1; i <= n; i++) printf "%-34s %18s %18s\n", order[i], cell[order[i], "rust"], cell[order[i], "c"]
		print ""
	}' "$out/kselftest.matrix"; fi
printf '%-34s %18s %18s\n' seconds passed 'of CPU time'
sort -t $'\t' -k 2,2nr "$out"/*.end | awk -F '\t' '{ printf "%-34s %18d %18d\n", $1, $2, $3 }'
echo
printf 'in %d min %d s; logs are in %s, each test in %s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) "$LOGS" "$out/results.xml"
read -r passed failed < <(cd "$out" && cat "${@/%/.results}" | awk -F '\t' '{ p += $2; f += $3 } END { print p + 0, f + 0 }')
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 0))
