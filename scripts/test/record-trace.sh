#!/bin/bash
# record-trace.sh [FILE]: records what the four CPUs of a busy Linux guest put into the
# command queue of its SMMUv3, and when, for tools/vsmmu/bench (traces/linux.bin there).
# Runs in the build root, after scripts/host/image.sh c and scripts/host/initrd.sh.
#
# What a VM's kernel sees of its SMMU is what this one sees of QEMU's with stage 1
# only, so no VM is needed.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

out=${1:-$REPO/tools/vsmmu/bench/traces/linux.bin}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
truncate -s 4G "$work/nvme"
mkdir -p "$(dirname "$out")"

build() { cd "$REPO/tools/vsmmu" && CARGO_TARGET_DIR=$BUILD/cargo cargo build --release --locked -p vsmmu-record; }
logged record "building the plugin for QEMU that records" build || die "correct what the compiler says above and run this again"

# On each CPU eight readers, past the page cache. They start before the recording, and it
# ends before they do.
# shellcheck disable=SC2016 # expanded in the guest
job='
for cpu in 0 1 2 3; do
	for size in 4k 4k 4k 4k 4k 16k 16k 128k; do
		taskset -c $cpu dd if=/dev/nvme0n1 of=/dev/null bs=$size iflag=direct 2>/dev/null &
	done
done
sleep 2
printf "\002\n"
sleep 3
'
# shellcheck disable=SC2054 # the commas are QEMU's
args=(-global arm-smmuv3.stage=1 -plugin "$BUILD/cargo/release/libvsmmu_record.so,out=$work/trace,records=2000"
	-drive "if=none,id=nvme,format=raw,file=$work/nvme" -device nvme,serial=1,drive=nvme)
say "recording the commands of a guest with four CPUs"
NAME=record-trace VARIANT=c SMP=4 TIMEOUT=300 RUN=$job APPEND="iommu.strict=1 iommu.passthrough=0" \
	QEMU_ARGS="${args[*]}" "$REPO/scripts/host/boot.sh" >/dev/null || { tail -n 5 "$LOGS/record-trace.log" >&2; die "the guest did not run to its end, see above"; }
[[ -s $work/trace ]] || die "the guest has not queued enough; see $LOGS/record-trace.kernel.log"
cp "$work/trace" "$out"
note "$(stat -c %s "$out") bytes in $out"
