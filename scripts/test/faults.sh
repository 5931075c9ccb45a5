#!/bin/bash
# faults.sh [CONFIGURATION|PATTERN...]: boots build/VARIANT/Image on an emulated SMMU
# that fails on demand, once for each configuration (all), and has vsmmu-faults try
# all kinds of failure there, or the rows with one of the patterns in their id. Ends
# with a table and "N passed, N failed"; fails if any did. The counts of each
# configuration are also in build/logs/faults-VARIANT.counts. Runs in the build
# root. Settings, all from the environment:
#
#	VARIANT		which kernel: rust (default) or c, where rows that may hang it are
#			left out and many others fail
#	PROGRAM		another program than vsmmu-faults, by whose name the files then are
#	QEMU		an emulator that fails on demand (the one that qemu.sh builds)
#	QEMU_ARGS	more arguments for it
#	TIMEOUT		seconds after which a guest is ended (900)
#
# faults.sh worst: measures what one guest or device can do to the others at worst, on
# both kernels, which it builds, and prints a table. Fails where the Rust kernel is
# worse than the C one, or misses a limit of its own.
#
# faults.sh kexec [VARIANT...]: has the Rust kernel give way to another one, by kexec,
# while an error of the command queue is active, and tries that one's queue (rust c).
#
# Time is counted in instructions there, so that it does not depend on the machine: 32 ns
# each, so that a CPU that polls for a second does not emulate many, and none for waiting
# when nothing is to be done.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=machine.sh
. "$REPO/scripts/test/machine.sh"

variant=${VARIANT:-rust}
[[ ${QEMU-} ]] || QEMU=$("$REPO/scripts/host/qemu.sh")
export QEMU
declare -A cpus=([smp1]=1 [smp4]=4 [small1]=1 [small4]=4 [msi1]=1 [msi4]=4 [pages1]=1 [pages4]=4) model=(
	[smp1]='' [smp4]=''
	# A queue of 128 entries, which two batches fill.
	[small1]=x-cmdqs=7 [small4]=x-cmdqs=7
	# CMD_SYNCs that complete with MSIs, for which the driver polls memory.
	[msi1]=x-msi=on [msi4]=x-msi=on
	# No ranges, so that the host needs many commands for a large unmapping.
	[pages1]=x-ril=off [pages4]=x-ril=off
)
program=${PROGRAM:-vsmmu-faults}
files=${program#vsmmu-}-$variant
run=/vsmmu/$program
[[ $variant != c || ${PROGRAM-} ]] || run+=' --comparison'
configurations=()
for arg; do
	if [[ ${cpus[$arg]-} ]]; then configurations+=("$arg"); else run+=" --only $arg"; fi
done
((${#configurations[@]})) || configurations=(smp1 smp4 small1 small4 msi1 msi4 pages1 pages4)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$LOGS"

# In the table, a time may differ by a tenth and 10 ms, as those who wait look at
# intervals.
worst() {
	local variant
	for variant in c rust; do "$REPO/scripts/host/image.sh" $variant; done
	for variant in c rust; do
		say "$program: the worst on the $variant kernel"
		NAME=worst-$variant VARIANT=$variant SMP=4 QEMU_ARGS="$(machine "$work/$variant" '') ${QEMU_ARGS-}" \
			ALLOW=$machine_says TIMEOUT=${TIMEOUT:-900} RUN='/vsmmu/vsmmu-faults --worst' "$REPO/scripts/host/boot.sh" >/dev/null ||
			die "the worst was not measured on the $variant kernel: $LOGS/worst-$variant.log"
	done
	awk -F '\t' '
		$1 != "worst" { next }
		FNR == NR { c[$2] = $4; next }
		{
			limit = $3
			most = limit == "c" ? c[$2] + ($5 == "ms" ? c[$2] / 10 + 10 : 0) : substr(limit, 3) + 0
			bad = limit ~ /^>=/ ? $4 < most : limit != "-" && $4 > most
			if (bad) failed++; else passed++
			printf "%-14s %-76s %6s %6s %-2s %7s  %s\n", $2, $6, c[$2], $4, $5, limit == "c" ? "C" : limit, bad ? "FAILED" : "ok"
		}
		END { printf "%d passed, %d failed\n", passed, failed; exit failed > 0 || passed == 0 }' \
		<(grep -a ^worst "$LOGS/worst-c.log") <(grep -a ^worst "$LOGS/worst-rust.log")
}

# What the second kernel does. The row at the end gives the SMMU another rule.
kexec_job() {
	cat <<-'EOF'
		passed=0 failed=0
		check() {
			if eval "$2"; then result='ok  ' passed=$((passed + 1)); else result=FAIL failed=$((failed + 1)); fi
			echo "$result  $1"
		}
		errors=$(awk '/arm-smmu-v3-gerror/ { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i } END { print n + 0 }' /proc/interrupts)
		check "the SMMU has its driver" '[ -e /sys/bus/platform/drivers/arm-smmu-v3/arm-smmu-v3.* ]'
		check "no command has timed out" '! dmesg | grep -E "arm-smmu-v3.*(timeout|failed)"'
		check "one interrupt for an error at most: $errors" '[ $errors -le 1 ]'
	EOF
	# shellcheck disable=SC2016 # for the guest
	printf 'check "DMA sees an unmapping, which the SMMU could not fetch twice" "/vsmmu/vsmmu-faults %s"\n%s\n' \
		"$1--only unmap-tlbi-abt-2" 'echo "$passed passed, $failed failed"; [ $failed = 0 ]'
}

# has_successor VARIANT: boots the Rust kernel, and from there the other one.
has_successor() {
	local files=$work/kexec-$1
	mkdir -p "$files.job" "$files/next"
	kexec_job "$([[ $1 != c ]] || echo '--comparison ')" >"$files.job/job"
	cp "$BUILD/$1/Image" "$files/next/"
	(cd "$files.job" && echo job | cpio --quiet -o -H newc -R 0:0) |
		cat "$BUILD/acpi.cpio" "$BUILD/initrd.cpio" - >"$files/next/initrd"
	say "$program: the rust kernel, and from there the $1 kernel"
	NAME=kexec-$1 VARIANT=rust SMP=1 QEMU_ARGS="$(machine "$files.monitor" '') ${QEMU_ARGS-}" ALLOW=$machine_says \
		TIMEOUT=${TIMEOUT:-900} FILES=$files RUN='/vsmmu/vsmmu-kexec --image /next/Image --initrd /next/initrd' \
		"$REPO/scripts/host/boot.sh" >/dev/null
}

if [[ ${1-} == kexec ]]; then
	shift
	(($#)) || set -- rust c
	passed=0 failed=0
	for variant; do
		rc=0
		has_successor "$variant" || rc=$?
		sed -En "s/^(ok  |FAIL)  /&from rust to $variant: /p" "$LOGS/kexec-$variant.log"
		counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$LOGS/kexec-$variant.log" | tail -n 1)
		((!rc)) || [[ ${counts#* } != 0 ]] || counts="${counts% *} 1"
		counts=${counts:-0 1}
		passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
	done
	printf '%d passed, %d failed\n' "$passed" "$failed"
	((failed == 0))
	exit
fi

if [[ ${1-} == worst ]]; then
	printf '%-14s %-76s %6s %6s %-2s %7s\n' id 'what' C Rust '' limit
	worst
	exit
fi

counts_file=$LOGS/$files.counts
: >"$counts_file"
passed=0 failed=0 latencies=''

for name in "${configurations[@]}"; do
	log=$LOGS/$files-$name.log
	args=$(machine "$work/$name" "${model[$name]}")
	say "$program: the $variant kernel, configuration $name (${cpus[$name]} CPU$([[ ${cpus[$name]} == 1 ]] || echo s)${model[$name]:+, ${model[$name]}})"
	rc=0
	NAME=$files-$name VARIANT=$variant SMP=${cpus[$name]} QEMU_ARGS="$args ${QEMU_ARGS-}" \
		ALLOW=$machine_says TIMEOUT=${TIMEOUT:-900} RUN=$run "$REPO/scripts/host/boot.sh" >/dev/null || rc=$?
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log" | tail -n 1)
	what=''
	if [[ ! $counts ]]; then
		counts='0 1' what='did not run to its end'
		# A row is printed up to its description before it runs.
		tail -n 3 "$log" >&2
	else
		((!rc)) || grep -A 4 'FAILED$' "$log" | grep -v '| ok$' | head -n 40 >&2 || true
		if ((rc > 1)) || { ((rc)) && [[ ${counts#* } == 0 ]]; }; then
			counts="${counts% *} $((${counts#* } + 1))" what='the kernel reported an error'
		fi
	fi
	passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
	printf '%s %s\n' "$name" "$counts${what:+ $what}" >>"$counts_file"
	latencies+=$(sed -n "s/^latency: /$(printf '%-8s' "$name")/p" "$log")$'\n'
done

printf '\n%-8s %7s %7s\n' "$variant" passed failed
while read -r name good bad what; do
	printf '%-8s %7d %7d  %s\n' "$name" "$good" "$bad" "$what"
done <"$counts_file"
printf '\nlatency of a call in microseconds: median, longest\n%s\n' "$(grep . <<<"$latencies" || echo none)"
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 0))
