#!/bin/bash
# vmm.sh [PHASE...]: boots build/VARIANT/Image as L1, which hosts a virtual machine of
# Debian's unmodified QEMU, L2, that drives an NVMe, and a network device with ATS,
# through its own vSMMU. L2 runs the phases that are named, or all. Ends with a table
# and "N passed, N failed"; fails if any did. Runs in the build root. Settings, all from
# the environment:
#
#	VARIANT		which kernel: rust (default) or c
#	QEMU		an emulator for L1 whose SMMU fails on demand (the one that qemu.sh builds)
#	QEMU_ARGS	more arguments for it
#	TIMEOUT		seconds after which L1 is ended (900)
#
# L2's kernel is the C one, build/c/Image, whichever L1's is.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

variant=${VARIANT:-rust}
[[ ${QEMU-} ]] || QEMU=$("$REPO/scripts/host/qemu.sh")
export QEMU
root=$("$REPO/scripts/host/vmm-root.sh")
[[ -e $BUILD/c/Image ]] || die "$BUILD/c/Image, the kernel of L2, does not exist; run: make image VARIANT=c"
phases='clean errors lost-va lost-asid lost-cd'
# shellcheck disable=SC2086 # one argument a phase
(($#)) || set -- $phases
for phase; do
	[[ " $phases " == *" $phase "* ]] || die "there is no phase $phase; there are: $phases"
done
name=vmm-$variant
log=$LOGS/$name.log

declare -A mnemonic=(
	[0x01]=PREFETCH_CFG [0x03]=CFGI_STE [0x04]=CFGI_ALL [0x05]=CFGI_CD [0x06]=CFGI_CD_ALL [0x10]=TLBI_NH_ALL
	[0x11]=TLBI_NH_ASID [0x12]=TLBI_NH_VA [0x28]=TLBI_S12_VMALL [0x2a]=TLBI_S2_IPA [0x30]=TLBI_NSNH_ALL
	[0x40]=ATC_INV [0x46]=CMD_SYNC [abt]=CERROR_ABT [ill]=CERROR_ILL [atc-inv-sync]=CERROR_ATC_INV_SYNC
)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$LOGS" "$work"/l1/vmm "$work"/l2/{bin,dev}

# L2's disk: in the first half 16 parts of 2 MB that L2 reads, in the second what it writes.
head -c 32M /dev/urandom >"$work/guest.img"
truncate -s 64M "$work/guest.img"
for ((part = 0; part < 16; part++)); do
	dd if="$work/guest.img" bs=2M skip=$part count=1 status=none | md5sum | cut -c1-32
done >"$work/l2/sums"
head -c 4M /dev/urandom >"$work/host.img"
head -c 512k "$work/host.img" | md5sum | cut -c1-32 >"$work/l1/vmm/sum"

printf '%s\n' "$@" >"$work/l2/phases"
cp /bin/busybox "$work/l2/bin/"
install -m 755 "$REPO/scripts/guest/init" "$work/l2/init"
cp "$REPO/scripts/guest/l2" "$work/l2/job"
(cd "$work/l2" && find . -mindepth 1 -print0 | cpio --quiet -0 -o -H newc -R 0:0) >"$work/l1/vmm/l2.cpio"
cp "$BUILD/c/Image" "$work/l1/vmm/"
echo 'console=ttyAMA0 acpi=force panic=-1 kunit.enable=0 iommu.strict=1 loglevel=4' >"$work/l1/vmm/append"

args="-M virtualization=on -m 3G -qmp unix:$work/qmp,server=on,wait=off -chardev socket,id=monitor,path=$work/qmp"
args+=" -device pci-serial,chardev=monitor"
args+=" -drive if=none,id=guest,format=raw,file=$work/guest.img -device nvme,drive=guest,serial=guest,addr=10"
# Behind a root port, as it would have no ATS without one.
args+=" -global arm-smmuv3.x-ats=on -device pcie-root-port,id=rp0"
args+=" -device virtio-net-pci,bus=rp0,ats=on,iommu_platform=on,disable-legacy=on,romfile="
args+=" -drive if=none,id=host,format=raw,file=$work/host.img -device nvme,drive=host,serial=host,addr=11"
# What L1 says of errors, which it has looked at by phases.
allow='arm-smmu-v3.*(CMDQ error|unexpected|GERROR|retrying|failed)'

say "vmm: the $variant kernel hosts a virtual machine; phases: $*"
start=$SECONDS rows=$work/rows counts=$work/counts phase=end
: >"$rows"
: >"$counts"
rc=0
row() { # PHASE STATUS WHAT SEEN: a line of the table; STATUS is 0 if it is as it should be
	printf '%s|%s|%s|%s\n' "$1" "$2" "$3" "$4" >>"$rows"
	[[ $2 == 0 ]] || note "$3: FAILED ($4)"
}
# Its lines come as they are printed: what is going on, and what has been found.
while IFS='|' read -r kind a b c; do
	case $kind in
	phase)
		phase=$a
		note "$a ($((SECONDS - start)) s)"
		;;
	row)
		row "$phase" "$a" "$b" "$c"
		;;
	count) printf '%s|%s|%s\n' "$a" "${mnemonic[$b]-$b}" "$c" >>"$counts" ;;
	note) note "$a" ;;
	esac
done < <(NAME=$name VARIANT=$variant SMP=2 QEMU_ARGS="$args ${QEMU_ARGS-}" ALLOW=$allow TIMEOUT=${TIMEOUT:-900} \
	FILES="$root $work/l1" RUN=$(<"$REPO/scripts/guest/l1") "$REPO/scripts/host/boot.sh")
wait $! || rc=$?

row end $rc "L1 runs to its end, with nothing bad in its log" "status $rc"
for what; do
	grep -q "^$what|" "$rows" || row "$what" 1 "L2 runs this phase" "it has not"
done
# The C kernel has no statistics; on the other one they must not go missing.
[[ $variant == c ]] || grep -q "^end|[^|]*|L1's statistics" "$rows" ||
	row end 1 "L1's statistics are those of the physical SMMU" "there are none"

if [[ " $* " == *' clean '* ]]; then
	# The disk, from outside: L2 has copied parts 0 to 3.
	wrong=0
	for ((part = 0; part < 4; part++)); do
		[[ $(dd if="$work/guest.img" bs=2M skip=$((part + 16)) count=1 status=none | md5sum | cut -c1-32) == \
			"$(sed -n $((part + 1))p "$work/l2/sums")" ]] || wrong=$((wrong + 1))
	done
	row clean $wrong "on the disk is what L2 has written" "$wrong of 4 x 2 MB wrong"
	# Without them the test has not looked at what it is for.
	for what in CFGI_CD TLBI_NH_ASID TLBI_NH_VA ATC_INV; do
		n=$(awk -F '|' -v what=$what '$1 == "clean" && $2 == what { print $3 }' "$counts")
		row clean $((${n:-0} == 0)) "the physical SMMU gets $what" "${n:-0}"
	done
fi

printf '\n%-9s | %-53s | %-38s | ok\n%s\n' "$variant" "what was looked at" "what was seen" "$(printf '%.0s-' {1..111})"
while IFS='|' read -r phase status what seen; do
	printf '%-9s | %-53s | %-38s | %s\n' "$phase" "$what" "$seen" "$([[ $status == 0 ]] && echo ok || echo FAILED)"
done < <(for phase in "$@" end; do awk -F '|' -v phase="$phase" '$1 == phase' "$rows"; done)
printf '\nwhat the physical SMMU has consumed and raised'
printf '%s|' "$@" | awk -F '|' -v counts="$counts" '{
	phases = NF - 1
	for (i = 1; i <= phases; i++) printf "%10s", $i
	while ((getline line <counts) > 0) {
		split(line, field, "|")
		if (!(field[2] in seen)) { seen[field[2]] = 1; name[++n] = field[2] }
		sum[field[2], field[1]] += field[3]
	}
	for (j = 1; j <= n; j++) {
		printf "\n%-46s", name[j]
		for (i = 1; i <= phases; i++) printf "%10d", sum[name[j], $i]
	}
	print ""
}'
passed=$(grep -c '^[^|]*|0|' "$rows" || true) failed=$(grep -vc '^[^|]*|0|' "$rows" || true)
((!failed)) || note "all messages, of L1, L2 and its QEMU: $log and ${log%.log}.kernel.log"
printf '\n%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 0))
