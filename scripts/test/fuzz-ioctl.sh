#!/bin/bash
# fuzz-ioctl.sh [OPS [SEED]]: boots build/VARIANT/Image on an emulated SMMU that fails on
# demand, and has vsmmu-ioctl-fuzz make OPS (200000) ioctls there, in programs that are
# made from SEED (1). Ends with "N passed, N failed", and with the program if the kernel
# has not behaved in one. With VARIANT=kcov it goes by coverage, and the functions that
# were reached are in a table at the end. Runs in the build root.
#
# fuzz-ioctl.sh replay FILE: only runs the program in FILE, as one was printed, and tells
# of each call.
#
# fuzz-ioctl.sh controls: shows that it finds what is wrong: answers of the C kernel, which
# does not keep the contract, and an error at one legal command in 5000, of which it does
# not know.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=machine.sh
. "$REPO/scripts/test/machine.sh"

variant=${VARIANT:-rust}
[[ ${QEMU-} ]] || QEMU=$("$REPO/scripts/host/qemu.sh")
export QEMU
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fuzz VARIANT COMMAND: runs COMMAND in the guest.
fuzz() {
	NAME=fuzz-ioctl-$1 VARIANT=$1 SMP=4 QEMU_ARGS="$(machine "$work/$1" '') ${QEMU_ARGS-}" ALLOW=$machine_says \
		RUN=$2 "$REPO/scripts/host/boot.sh"
}

# must_fail WHAT VARIANT COMMAND: passes if COMMAND finds something.
must_fail() {
	say "$1"
	TIMEOUT=${TIMEOUT:-1800} fuzz "$2" "$3" >"$work/out" || true
	if grep -a '^violation: ' "$work/out"; then
		grep -ao ' after [0-9]* ioctls' "$work/out"
		passed=$((passed + 1))
	else
		tail -n 3 "$work/out"
		failed=$((failed + 1))
	fi
}

case ${1-} in
controls)
	passed=0 failed=0
	must_fail 'control: the C kernel' c '/vsmmu/vsmmu-ioctl-fuzz --ops 20000'
	# shellcheck disable=SC2016 # the guest's
	must_fail 'control: an error at one command in 5000' rust 'cd /sys/kernel/debug/fail_guest_cmd.* &&
		echo 100 >probability && echo 5000 >interval && echo -1 >times && /vsmmu/vsmmu-ioctl-fuzz'
	printf '%d passed, %d failed\n' "$passed" "$failed"
	((!failed))
	exit
	;;
replay)
	mkdir "$work/files"
	cp "$2" "$work/files/program"
	FILES=$work/files fuzz "$variant" '/vsmmu/vsmmu-ioctl-fuzz --replay /program'
	exit
	;;
esac

ops=${1:-200000}
rc=0
# Some hundred a second on a machine that has other things to do.
TIMEOUT=${TIMEOUT:-$((600 + ops / 200))} fuzz "$variant" \
	"/vsmmu/vsmmu-ioctl-fuzz --ops $ops --seed ${2:-1} --pcs" | sed -u '/^pc /d' || rc=${PIPESTATUS[0]}
if [[ $variant == kcov ]]; then
	"$REPO/scripts/test/ioctl_coverage.py" "$BUILD/kcov/vmlinux" "$LOGS/fuzz-ioctl-kcov.log" "$REPO/docs/ioctl-coverage.md" || rc=1
fi
exit "$rc"
