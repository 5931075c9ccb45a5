# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the scripts that source this one
# Sourced by the tests on an SMMU that fails on demand.

# What the driver says of the errors, which here are no faults of its own.
machine_says='arm-smmu-v3.*(CMDQ error|CMD_SYNC timeout|unexpected|GERROR|retrying|failed)'

# machine MONITOR MODEL: prints arguments for QEMU, where an instruction takes 32 ns.
machine() {
	local slot
	printf '%s ' -icount shift=5,sleep=off -global arm-smmuv3.x-ats=on ${2:+-global "arm-smmuv3.$2"}
	# The emulator's monitor is at the other end of a serial port of the machine's.
	printf '%s ' -qmp "unix:$1,server=on,wait=off" -chardev "socket,id=monitor,path=$1" \
		-device pci-serial,chardev=monitor -device edu,dma_mask=0xffffffffffff
	# The network devices are behind root ports, as without one they would have no ATS.
	for slot in 1 2; do
		printf '%s ' -device "pcie-root-port,id=rp$slot,slot=$slot" \
			-device "virtio-net-pci,bus=rp$slot,ats=on,iommu_platform=on,disable-legacy=on,romfile="
	done
}
