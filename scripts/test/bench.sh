#!/bin/bash
# bench.sh [--config debian] [--report] [--update] [GROUP...]: measures invalidations on the C and on the Rust
# kernel, all that there is or the given groups, and shows tables. Figures, pictures
# and a page with all of it are in build/bench. Fails if a target is not met; with
# --report it does not. Runs in the build root.
#
# With --config debian, the kernels have the options of Debian's that change code, see
# scripts/config/debian.config, and targets are only reported. With --update, what was
# measured of host, ioctl, trace and waiting goes into scripts/test/bench.figures.json.
#
#	host		instructions of the host's own mapping and unmapping
#	ioctl		instructions of a call, by kind and number of commands
#	trace		the same for the commands of a recorded guest
#	error		the same for a command that is illegal to the SMMU
#	relay		ioctls, CMD_SYNCs and nanoseconds for the trace through a VMM's relay
#	counts		CMD_SYNCs and register accesses of a call
#	waiting		nanoseconds of a call, with an SMMU that takes its time
#	memory		bytes that a call allocates
#	stack		bytes of stack
#	throughput	commands per second, of several threads
#
# bench.sh --check [--update]: compares the instructions of a few cases with
# scripts/test/bench.expected.json, or writes that. Ends with "N passed, N failed".
#
# In QEMU with -icount, time is the number of instructions: how fast the machine is
# that runs this does not matter, and medians are the same each time, to within a
# per cent. Only the throughput is in real time.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

usage="usage: bench.sh [--config debian] [--report] [--update] [GROUP...] | bench.sh --check [--update]"
every=(host ioctl trace error relay counts waiting memory stack throughput)
groups=() check='' report_only='' update='' config=''
while (($#)); do
	case $1 in
	--config)
		[[ ${2-} == debian ]] || die "there is no configuration ${2-}; there is: debian"
		config=$2
		shift
		;;
	--report) report_only=1 ;;
	--update) update=1 ;;
	--check) check=1 ;;
	-*) die "$usage" ;;
	*)
		[[ " ${every[*]} " == *" $1 "* ]] || die "there is no group $1; there are: ${every[*]}"
		groups+=("$1")
		;;
	esac
	shift
done
[[ ! $check || ! $config ]] || die "$usage"
# Debian's kernel raises no errors for tests.
[[ ! $config ]] || every=(host ioctl trace relay counts waiting memory stack throughput)
((${#groups[@]})) || groups=("${every[@]}")
prefix=${config:+$config-}
out=$BUILD/bench${config:+-$config}${check:+-check}
expected=scripts/test/bench.expected.json
figures=$REPO/scripts/test/bench.figures.json

# The kernel's benchmark of the DMA API averages in units of 100 ns, which is too
# coarse for instructions of 1 ns. With longer ones, more timer interrupts get into
# its figures: with 2^4 ns there is one in 250,000 instructions, and what it says
# differs from run to run by some of those that are left of 100 ns, 7.
dma_shift=4
bench=/vsmmu/vsmmu-bench

# boot VARIANT GROUP SMP MACHINE COMMAND: prints what the command prints in the guest,
# a JSON object a line, with the group and the number of CPUs in each.
boot() {
	local name=bench-$prefix$1-$2 allow=${ALLOW-}
	note "$prefix$1 kernel: $2"
	# It has no memory for the longest array, and complains.
	[[ $1 != c ]] || allow=__alloc_frozen_pages
	# Each unmapping is to have its invalidation. The counter that the kernel takes
	# for the time has 62.5 MHz on this CPU if not told otherwise: 16 ns a tick.
	NAME=$name VARIANT=$prefix$1 SMP=$3 RUN=$5 APPEND="iommu.strict=1 iommu.passthrough=0 ${APPEND-}" \
		ALLOW=$allow \
		QEMU_ARGS="-cpu neoverse-n1,cntfrq=1000000000 $4 ${QEMU_ARGS-}" \
		"$REPO/scripts/host/boot.sh" >"$out/$name.log" || {
		cat "$out/$name.log" >&2
		die "$name did not run to its end, see above"
	}
	jq -c --arg group "$2" --argjson smp "$3" '. + {group: $group, smp: $smp}' "$out/$name.log"
}

# count VARIANT GROUP COMMAND [SMP]: there, a nanosecond is an instruction.
count() { boot "$1" "$2" "${4:-1}" "-icount shift=0,sleep=off" "$3"; }

# bind N: a command in the guest that gives the N-th edu to the kernel's benchmark of
# the DMA API.
# shellcheck disable=SC2016 # expanded in the guest
bind() {
	printf 'edu=$(grep -lx 0x11e8 /sys/bus/pci/devices/*/device | sed -n "%dp") && edu=${edu%%/device} && ' "$1"
	printf 'echo dma_map_benchmark >"$edu/driver_override" && echo "${edu##*/}" >/sys/bus/pci/drivers_probe && '
}

group_host() { # VARIANT
	boot "$1" host 1 "-icount shift=$dma_shift,sleep=off" "$(bind 1) $bench dma-map --ns-per-instruction $((1 << dma_shift))"
	count "$1" host "$bench ioas-map"
}

group_ioctl() { count "$1" ioctl "$bench probe && $bench invalidate"; }

group_trace() { count "$1" trace "$bench trace"; }

# Only there can a command be made illegal behind the checks.
group_error() {
	[[ $1 == rust ]] || return 0
	ALLOW='CMDQ error' count "$1" error "$bench error"
	ALLOW='CMDQ error' count "$1" error "$bench error" 4
}


# What the emulated SMMU sees between two marks: invalidations of an ASID that has no
# other use. The first pair of marks has nothing in between, which is what the marks
# themselves cost.
group_counts() {
	local trace=$out/$1.trace counter
	local events=(smmuv3_read_mmio smmuv3_write_mmio smmuv3_cmdq_opcode smmuv3_range_inval)
	rm -f "$trace"
	mkfifo "$trace"
	awk '
		/ asid=48879 / {
			if (marks++ % 2) print (marks - 2) / 2, reads + 0, writes + 0, syncs + 0
			reads = writes = syncs = 0
		}
		/^smmuv3_read_mmio / { reads++ }
		/^smmuv3_write_mmio / { writes++ }
		/^smmuv3_cmdq_opcode .*SYNC/ { syncs++ }' <"$trace" >"$out/$1.marks" &
	counter=$!
	boot "$1" counts 1 "-icount shift=0,sleep=off -D $trace $(printf -- '-trace %s ' "${events[@]}")" "$bench marks" >"$out/$1.marked"
	wait "$counter"
	jq -c --rawfile marks "$out/$1.marks" '
		($marks | split("\n") | map(select(. != "") | split(" ") | map(tonumber))) as $marks
		| . as $case | (first($marks[] | select(.[0] == $case.mark)) // error("no marks of \($case) in the trace")) as $seen
		| select($case.mark > 0)
		| . + {reads: ($seen[1] - $marks[0][1]), writes: ($seen[2] - $marks[0][2]), syncs: ($seen[3] - $marks[0][3])}' \
		"$out/$1.marked"
}

# What the SMMU takes for a command, for a CMD_SYNC and for a read of a register, in ns.
# CMD_SYNC: the patch "dma-contiguous: provide the ability to reserve per-numa CMA" (HiSilicon,
# to linux-iommu, 21 August 2020) says that an idle SMMU takes 240 ns for one if the queue is
# in its own node's memory, and 560 ns if it is in another's. In a queue that others use, it
# comes after theirs: the series "iommu/arm-smmu-v3: Improve cmdq lock efficiency" (Huawei, on
# the same day) has 36,000 mappings and unmappings a second for each of 32 CPUs, so that one
# takes 28 us. The others follow from that. There and back again between CPU and SMMU are
# twice in those 240 or 560 ns, once for PROD and the signal and once for the fetch; a read of
# a register is there and back again, 120 or 280 ns. Four commands fit in a cache line, so that
# the remote queue costs each a quarter of 320 ns more; the nearby one is prefetched.
declare -A latencies=([instant]="0 0 0" [fast]="20 240 120" [slow]="100 28000 280")

# timed VARIANT GROUP SMMU COMPLETION COMMAND: the same with such an SMMU, which counts.
timed() {
	local -x QEMU=${QEMU-} TIMEOUT=${TIMEOUT:-900}
	local command sync read work args
	local -A msi=([MSI]=on [CONS]=off)
	[[ $QEMU ]] || QEMU=$("$REPO/scripts/host/qemu.sh")
	work=$(mktemp -d)
	read -r command sync read <<<"${latencies[$3]}"
	args="-icount shift=0,sleep=off -global arm-smmuv3.x-msi=${msi[$4]}"
	args+=" -global arm-smmuv3.x-cmd-latency-ns=$command -global arm-smmuv3.x-sync-latency-ns=$sync"
	args+=" -global arm-smmuv3.x-read-latency-ns=$read"
	# The monitor, which has the counters, is at the other end of a serial port.
	args+=" -qmp unix:$work/monitor,server=on,wait=off -chardev socket,id=monitor,path=$work/monitor"
	args+=" -device pci-serial,chardev=monitor"
	boot "$1" "$2-$3-$4" 1 "$args" "$5" |
		jq -c --arg group "$2" --arg smmu "$3" --arg completion "$4" --argjson latencies "[$command, $sync, $read]" '
		. + {$group, ns: .median, $smmu, $completion, $latencies} | del(.median, .min, .max, .as_min)'
	rm -rf "$work"
}

group_waiting() { # VARIANT
	local smmu completion cases
	cases="$bench --emulator invalidate --mix va --n 1 --n 8 --n 64 --n 4096"
	# Some thousand calls, and it takes long to emulate a CPU that waits.
	cases+=" && $bench --emulator --calls 1 trace && $bench --emulator ioas-map"
	for smmu in fast slow; do
		for completion in MSI CONS; do timed "$1" waiting $smmu $completion "$cases"; done
	done
}

group_relay() { # VARIANT
	local smmu
	for smmu in instant fast slow; do timed "$1" relay $smmu MSI "$bench --emulator relay"; done
}

group_memory() {
	count "$1" memory "$bench memory --mix va"
}

group_stack() {
	note "$1 kernel: stack"
	"$report" stack "$BUILD/$prefix$1/vmlinux" | jq -c '. + {group: "stack", smp: 1}'
}

group_throughput() {
	local edu="-device edu,dma_mask=0xffffffffffff"
	boot "$1" throughput 4 "$edu $edu" "$(bind 3) $bench throughput"
}

# The cases that a change is most likely to show in.
group_check() {
	count "$1" check "$bench invalidate --n 1 --n 64 --n 4096 && $bench trace && $bench relay && $bench ioas-map"
}

for variant in c rust; do "$REPO/scripts/host/image.sh" "$prefix$variant"; done
if [[ $config ]]; then
	"$REPO/scripts/test/debian_options.py" "$REPO/scripts/config/debian.config" \
		"$("$REPO/scripts/host/debian-config.sh")" "$BUILD/${prefix}rust" >&2 ||
		die "scripts/config/debian.config is not what Debian's kernel has, see above; correct it"
fi
"$REPO/scripts/host/initrd.sh"
build_report() {
	cd "$REPO/tools/vsmmu" && CARGO_TARGET_DIR=$BUILD/cargo cargo build --locked -p vsmmu-bench-report
}
logged bench-report "building the program that makes the tables" build_report ||
	die "correct what the compiler says above and run this again"
report=$BUILD/cargo/debug/vsmmu-bench-report

rm -rf "$out"
mkdir -p "$out" "$LOGS"
[[ ! $check ]] || groups=(check)
say "measuring: ${groups[*]}"
# Both kernels one after the other, for what depends on how busy the machine is.
for group in "${groups[@]}"; do
	for variant in c rust; do "group_$group" $variant >>"$out/$variant.lines"; done
done
for variant in c rust; do jq -s . "$out/$variant.lines" >"$out/$variant.json"; done
rm -f "$out"/*.lines "$out"/*.log "$out"/*.trace "$out"/*.mark*

# What the page shows of a configuration, in place of what it showed of the same groups.
update_figures() {
	jq -n --arg config "${config:-first}" --slurpfile c "$out/c.json" --slurpfile rust "$out/rust.json" \
		--slurpfile before <(cat "$figures" 2>/dev/null || echo '[]') '
		def key: [.group, .id, .n, .smmu, .completion];
		def figure: .ns // .median // .average;
		["host", "ioctl", "trace", "waiting"] as $groups
		| [$rust[0][] | select(.group | IN($groups[])) | select(.smp == 1 and .errno == null)
			| select(.group != "ioctl" or (.id == "ioctl: TLBI_NH_VA" and (.n | IN(1, 8, 64, 512, 4096))))
			| key as $key | . as $row | first($c[0][] | select(key == $key))
			| {config: $config} + ($row | {group, id, n} + if .smmu then {smmu, completion} else {} end)
				+ {c: figure, rust: ($row | figure)}] as $now
		| ([$now[].group] | unique) as $measured
		| [$before[0][] | select(.config != $config or (.group | IN($measured[]) | not))] + $now
		| sort_by(.config != "first")' >"$out/figures.json"
	cp "$out/figures.json" "$figures"
}

if [[ $check ]]; then
	cd "$REPO"
	"$report" check "$out" "$expected" ${update:+--update}
else
	rc=0
	"$report" show "$out" ${report_only:+--report} || rc=$?
	[[ ! $config ]] || rc=0
	[[ ! $update ]] || update_figures
	printf '\nThe same with pictures: %s\n' "$out/index.html"
	exit $rc
fi
