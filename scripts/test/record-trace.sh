#!/bin/bash
# record-trace.sh [FILE]: records the commands that a Linux guest puts into the
# command queue of its SMMUv3, for tools/vsmmu/bench: all of them, in their order,
# 16 bytes each, as they are in memory (traces/linux.bin there). Runs in the build
# root, after scripts/host/image.sh c and scripts/host/initrd.sh.
#
# What a VM's kernel sees of its SMMU is what this one sees of QEMU's with stage 1
# only, so no VM is needed. The queue has more room than the guest uses: what has
# been in it is still there when the guest is off.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

out=${1:-$REPO/tools/vsmmu/bench/traces/linux.bin}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
truncate -s 16M "$work/nvme" "$work/virtio"

# Two disks: files on one, reads and writes past the page cache on both, drivers that
# come and go, and devices that lose their translation and get it again.
# shellcheck disable=SC2016 # expanded in the guest
job='
set -e
files() { # DISK
	truncate -s 1M /image
	mke2fs -F /image
	dd if=/image of="$1" bs=64k oflag=direct
	mkdir -p /mnt
	mount -t ext4 "$1" /mnt
	dd if=/dev/zero of=/mnt/large bs=64k count=8 conv=fsync
	for i in $(seq 8); do echo $i >/mnt/$i; sync; done
	echo 3 >/proc/sys/vm/drop_caches
	cat /mnt/large /mnt/[1-9]* >/dev/null
	rm /mnt/[1-9]*
	umount /mnt
}
direct() { # DISK
	for size in 4k 16k 132k 500k; do
		dd if=$1 of=/dev/null bs=$size count=6 iflag=direct
		dd if=/dev/zero of=$1 bs=$size count=2 oflag=direct
	done
}
domain() { # DEVICE DRIVER TYPE
	echo "$1" >"/sys/bus/pci/drivers/$2/unbind"
	echo "$3" >"/sys/bus/pci/devices/$1/iommu_group/type"
	echo "$1" >"/sys/bus/pci/drivers/$2/bind"
	sleep 1
}
nvme=$(basename "$(readlink -f /sys/class/nvme/nvme0/device)")
virtio=$(basename "$(dirname "$(dirname "$(dirname "$(readlink -f /sys/block/vda)")")")")
files /dev/nvme0n1
direct /dev/nvme0n1
direct /dev/vda
for type in identity DMA DMA-FQ DMA; do
	domain "$nvme" nvme $type
	direct /dev/nvme0n1
	domain "$virtio" virtio-pci $type
	dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
done
'

# QEMU is to stay when the guest is off.
mkfifo "$work/qmp.in" "$work/qmp.out"
exec 3<>"$work/qmp.in" 4<>"$work/qmp.out"
dump() { # waits for the guest's end and has QEMU write the queue to a file
	local line base prod
	printf '{"execute":"qmp_capabilities"}\n' >&3
	while read -r line <&4; do [[ $line != *'"SHUTDOWN"'* ]] || break; done
	# The registers CMDQ_BASE (0x90) and CMDQ_PROD (0x98):
	# what was written to them last.
	last() { grep -aoiP "smmuv3_write_mmio addr: 0x$1 val:0x\K[0-9a-f]+" "$work/trace" | tail -n 1; }
	base=0x$(last 90) prod=0x$(last 98)
	# The lowest bits of CMDQ_BASE are the size of the queue. With the wrap bit set,
	# it would hold the last commands only.
	((prod >> (base & 0x1f) == 0)) || note "the queue has wrapped: have the guest do less"
	printf '{"execute":"pmemsave","arguments":{"val":%d,"size":%d,"filename":"%s"}}\n' \
		$((base & 0xfffffffffffe0)) $((prod * 16)) "$work/queue" >&3
	printf '{"execute":"quit"}\n' >&3
}
dump &
dump=$!
# shellcheck disable=SC2054 # the commas are QEMU's
args=(-global arm-smmuv3.stage=1 -no-shutdown -chardev "pipe,id=qmp,path=$work/qmp" -mon chardev=qmp,mode=control
	-trace smmuv3_write_mmio -D "$work/trace"
	-drive "if=none,id=nvme,format=raw,file=$work/nvme" -device nvme,serial=1,drive=nvme
	-drive "if=none,id=virtio,format=raw,file=$work/virtio"
	-device virtio-blk-pci,drive=virtio,iommu_platform=on,disable-legacy=on)
say "recording the commands of a guest"
NAME=record-trace VARIANT=c SMP=2 TIMEOUT=60 RUN=$job APPEND="iommu.strict=1 iommu.passthrough=0" \
	QEMU_ARGS="${args[*]}" "$REPO/scripts/host/boot.sh" >/dev/null || { tail -n 5 "$LOGS/record-trace.log" >&2; die "the guest did not run to its end, see above"; }
wait "$dump"
mkdir -p "$(dirname "$out")"
cp "$work/queue" "$out"
note "$(($(stat -c %s "$out") / 16)) commands in $out"
