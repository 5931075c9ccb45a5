#!/bin/bash
# bench.sh [--report]: counts the instructions that invalidations take, on the C
# and on the Rust kernel, shows a table and leaves what it is made of in
# build/bench/*.json. Fails if anything takes more on the Rust kernel; with
# --report it does not. Runs in the build root.
#
# In QEMU with -icount, time is the number of instructions: how fast the machine is
# that runs this does not matter, and medians are the same each time.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

report=''
case ${1-} in
--report) report=1 ;;
'') ;;
*) die "usage: bench.sh [--report]" ;;
esac

out=$BUILD/bench
# The kernel's benchmark of the DMA API averages in units of 100 ns, which is too
# coarse for instructions of 1 ns. With longer ones, more timer interrupts get into
# its figures: with 2^4 ns there is one in 250,000 instructions, and what it says
# differs from run to run by some of those that are left of 100 ns, 7.
dma_shift=4

# measure VARIANT SMP SHIFT WHAT COMMAND: an instruction takes 2^SHIFT ns. Prints a
# JSON object a line.
measure() {
	local name=bench-$1-smp$2-$4
	note "$1 kernel, $2 CPU$([[ $2 == 1 ]] || echo s): $4"
	# Each unmapping is to have its invalidation. The counter that the kernel takes
	# for the time has 62.5 MHz on this CPU if not told otherwise: 16 ns a tick.
	NAME=$name VARIANT=$1 SMP=$2 RUN=$5 APPEND="iommu.strict=1 iommu.passthrough=0 ${APPEND-}" \
		QEMU_ARGS="-cpu neoverse-n1,cntfrq=1000000000 -icount shift=$3,sleep=off ${QEMU_ARGS-}" \
		"$REPO/scripts/boot.sh" >"$out/$name.log" || {
		cat "$out/$name.log" >&2
		die "$name did not run to its end, see above"
	}
	jq -c --argjson smp "$2" '. + {smp: $smp}' "$out/$name.log"
}

measure_all() { # VARIANT
	# shellcheck disable=SC2016 # expanded in the guest
	local bind='echo dma_map_benchmark >"/sys/bus/pci/devices/$EDU/driver_override" && echo "$EDU" >/sys/bus/pci/drivers_probe'
	measure "$1" 1 $dma_shift dma-map "$bind && /vsmmu/vsmmu-bench dma-map --ns-per-instruction $((1 << dma_shift))"
	measure "$1" 1 0 ioctls "/vsmmu/vsmmu-bench ioas-map && /vsmmu/vsmmu-bench invalidate"
	# Only there can a command be made illegal behind the checks.
	[[ $1 == rust ]] || return 0
	ALLOW='CMDQ error' measure "$1" 1 0 error "/vsmmu/vsmmu-bench error"
	ALLOW='CMDQ error' measure "$1" 4 0 error "/vsmmu/vsmmu-bench error"
}

for variant in c rust; do "$REPO/scripts/image.sh" $variant; done
"$REPO/scripts/initrd.sh"
rm -rf "$out"
mkdir -p "$out" "$LOGS"
say "counting instructions"
for variant in c rust; do
	measure_all $variant >"$out/$variant.lines"
	jq -s . "$out/$variant.lines" >"$out/$variant.json"
done
rm -f "$out"/*.lines "$out"/*.log

# A row for each case of the Rust kernel, which has all of them.
rows=$(jq -rn --slurpfile c "$out/c.json" --slurpfile rust "$out/rust.json" '
	def key: [.id, .n, .smp];
	def figure: if . == null then "-" else .median // .average end;
	def each: if . == null or .n == 1 then "" else (figure / .n * 10 | round / 10) end;
	(reduce $c[0][] as $case ({}; .[$case | key | tojson] = $case)) as $c |
	$rust[0][] | . as $rust | $c[key | tojson] as $c |
	[
		.id + (if .n > 1 then ", \(.n) commands" else "" end) + (if .smp > 1 then ", \(.smp) CPUs" else "" end),
		($c | figure), ($rust | figure), ($c | each), ($rust | each),
		(if .syncs == null then "" else "\(.commands) + \(.syncs)" end)
	] | @tsv')

awk -F '\t' '
	BEGIN {
		line = "%-40s %8s %8s %7s   %7s %7s   %s\n"
		printf "\n" line, "instructions", "C", "Rust", "Rust/C", "C each", "Rust", "commands + CMD_SYNCs"
	}
	{ printf line, $1, $2, $3, $2 == "-" ? "-" : sprintf("%.2f", $3 / $2), $4, $5, $6 }
' <<<"$rows"
# Timer interrupts hit the longer ones, and where in the queue a batch begins makes
# a small difference.
jq -rn --slurpfile c "$out/c.json" --slurpfile rust "$out/rust.json" '
	[$c[0], $rust[0]] | to_entries | map(.key as $i | .value[] | select(.min != .median) |
		"    \(["C", "Rust"][$i]): \(.id), n = \(.n): \(.min) at least, median \(.median), \(.max) at most") |
	if length > 0 then "\nNot the same number in most of the calls (the median is in the table):", .[] else empty end'

slower=$(awk -F '\t' '$2 != "-" && sprintf("%.2f", $3 / $2) + 0 > 1 { print "    " $1 }' <<<"$rows")
[[ $rows ]] || die "nothing was measured"
if [[ $slower ]]; then
	printf '\nThe Rust kernel takes more for:\n%s\n' "$slower" >&2
	[[ $report ]] || exit 1
fi
