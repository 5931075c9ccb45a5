#!/bin/bash
# boot.sh: boots build/VARIANT/Image in QEMU, on a machine with a nesting
# SMMUv3, the replacement IORT and an edu device. Runs in the build root.
# Settings, all from the environment:
#
#	VARIANT		which kernel (rust)
#	RUN		a shell command to run in the guest: its output and its exit
#			status become this script's; the kernel's messages go to
#			build/logs/NAME.kernel.log, and an error there is status 3
#	INITRD		boot this initrd with the console on the terminal instead
#	APPEND		more kernel parameters
#	SMP		number of CPUs (2)
#	QEMU_ARGS	more arguments for QEMU
#	FILES		a directory whose content is added to the initrd
#	TIMEOUT		seconds after which the guest is ended (with RUN: 180)
#	NAME		name of the logs (boot)
#	ALLOW		pattern of kernel errors that are expected
#	QEMU		another QEMU
#
# With neither RUN nor INITRD there is a shell on the guest's console.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

image=$BUILD/${VARIANT:-rust}/Image
log=$LOGS/${NAME:-boot}.log
klog=$LOGS/${NAME:-boot}.kernel.log
mkdir -p "$LOGS"
# What an earlier run has left there is not to be taken for this one's.
[[ ! ${RUN-} ]] || for file in "$log" "$klog"; do : >"$file"; done
[[ -e $image ]] || die "$image does not exist; run: make image VARIANT=${VARIANT:-rust}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

parts=("$BUILD/acpi.cpio" "${INITRD:-$BUILD/initrd.cpio}")
if [[ ${RUN-} ]]; then
	mkdir "$work/job"
	printf '%s\n' "$RUN" >"$work/job/job"
	FILES=${FILES:+$FILES }$work/job
fi
for dir in ${FILES-}; do
	(cd "$dir" && find . -mindepth 1 -print0 | cpio --quiet -0 -o -H newc -R 0:0) >>"$work/more.cpio"
done
[[ ! -e $work/more.cpio ]] || parts+=("$work/more.cpio")
cat "${parts[@]}" >"$work/initrd"

# A CPU that is cheap to emulate and has all page sizes.
# shellcheck disable=SC2054 # the commas are QEMU's
cmd=("${QEMU:-qemu-system-aarch64}" -M virt,iommu=smmuv3,gic-version=3 -global arm-smmuv3.stage=nested
	-cpu neoverse-n1 -smp "${SMP:-2}" -m 2G -nodefaults -no-reboot -display none
	-bios /usr/share/qemu-efi-aarch64/QEMU_EFI.fd -kernel "$image" -initrd "$work/initrd"
	-device edu,dma_mask=0xffffffffffff)
# Tests that are built in are off unless a later parameter says otherwise.
append="console=ttyAMA0 acpi=force panic=-1 kunit.enable=0"
# As with PREEMPT_RT, threads handle interrupts.
[[ ${VARIANT-} != debug-* ]] || append+=" threadirqs"
[[ ! ${TIMEOUT:-${RUN:+180}} ]] || cmd=(timeout --foreground -k 5 "${TIMEOUT:-180}" "${cmd[@]}")
read -ra more <<<"${QEMU_ARGS-}"

if [[ ! ${RUN-} ]]; then
	exec "${cmd[@]}" -append "$append ${APPEND-}" -serial mon:stdio "${more[@]}"
fi

rc=0
"${cmd[@]}" -append "$append ${APPEND-}" -serial "file:$klog" -serial stdio "${more[@]}" </dev/null |
	tee "$log" | sed -u '/^vsmmu-job-exit [0-9]*$/d' || rc=${PIPESTATUS[0]}
status=$(tail -n 1 "$log" | sed -n 's/^vsmmu-job-exit \([0-9]*\)$/\1/p')

# What the kernel must not say, whatever the command's own verdict.
bad='WARNING:|BUG:|BUG [A-Za-z0-9_-]+ \(|Oops|Internal error|Kernel panic|UBSAN|KASAN|refcount_t'
bad+='|(circular locking|recursive locking|invalid wait|inconsistent lock|suspicious RCU)'
bad+='|rcu.*(stall|starved)|blocked for more than|soft lockup|hard LOCKUP'
bad+='|arm-smmu-v3.*(CMDQ error|CMD_SYNC timeout|unexpected|GERROR|retrying|failed)'
if grep -aE "$bad" "$klog" | grep -avE "${ALLOW:-^$}" >"$work/bad"; then
	sed 's/\r$//; s/^/    kernel: /' "$work/bad" | head -n 10 >&2
	printf 'error: the kernel reported an error, see %s\n' "$klog" >&2
	exit 3
fi
if [[ ! $status ]]; then
	tail -n 5 "$klog" | sed 's/\r$//; s/^/    kernel: /' >&2
	((rc != 124)) || die "the guest did not finish within ${TIMEOUT:-180} s; its last messages are above, all in $klog (TIMEOUT=n gives it longer)"
	die "the guest ended without saying how its command ended; its last messages are above, all in $klog"
fi
exit "$status"
