#!/bin/bash
# vmm-same.sh [--page] [VM...]: boots the same Linux on the emulated machine itself and in
# VMs of L1, raises the same errors at its command queue, and puts side by side what it
# prints. Ends with a table and "N passed, N failed"; fails if any did. The VMs are:
#
#	rust	by vsmmu-vmm, on the Rust kernel: what counts, and always there
#	c	the same on the C kernel, where rows must be different, or they do not look
#	debian	as rust, but the Linux is the kernel of Debian's stable release
#	qemu	by Debian's unmodified QEMU, on the Rust kernel: for comparison only
#
# --page writes the table into docs/vmm.md. Runs in the build root. Settings, all from the
# environment:
#
#	QEMU		an emulator whose SMMU fails on demand (the one that qemu.sh builds)
#	TIMEOUT		seconds after which each of the machines is ended (300)
#
# The Linux is build/c/Image. It prints what it finds in its registers. While
# CPUs are busy, time is counted in instructions, 8 ns each, so that no CMD_SYNC times out
# because this machine is busy.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

page=
if [[ ${1-} == --page ]]; then
	page=$REPO/docs/vmm.md
	shift
fi
# All of them, and those in which Linux must see what there is to see.
vms=(rust) exact=(rust)
for vm; do
	case $vm in
	rust) ;;
	c | qemu) vms+=("$vm") ;;
	debian) vms+=("$vm") exact+=("$vm") ;;
	*) die "there is no VM $vm; there are: rust, c, debian, qemu" ;;
	esac
done
[[ ${QEMU-} ]] || QEMU=$("$REPO/scripts/host/qemu.sh")
export QEMU
[[ -e $BUILD/c/Image ]] || die "$BUILD/c/Image, the kernel of the VM, does not exist; run: make image VARIANT=c"
program=$BUILD/cargo/aarch64-unknown-linux-gnu/release

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$LOGS" "$work"/l1/vmm "$work"/l2/{bin,dev,vsmmu}

head -c 16M /dev/urandom >"$work/parts"
for ((part = 0; part < 16; part++)); do
	dd if="$work/parts" bs=1M skip=$part count=1 status=none | md5sum | cut -c1-32
done >"$work/l2/sums"

cp /bin/busybox "$work/l2/bin/"
install -m 755 "$REPO/scripts/guest/init" "$work/l2/init"
cp "$REPO/scripts/guest/plan" "$work/l2/"
cp "$REPO/scripts/guest/same" "$work/l2/same"
echo ". /same" >"$work/l2/job"
cp "$program/vsmmu-faults" "$work/l2/vsmmu/"
pack() { (cd "$1" && find . -mindepth 1 -print0 | cpio --quiet -0 -o -H newc -R 0:0); }
pack "$work/l2" >"$work/l1/vmm/initrd"
cp "$REPO/scripts/guest/plan" "$work/l1/"
cp "$BUILD/c/Image" "$work/l1/vmm/"
# Whoever prints to the console does not serve interrupts meanwhile. What IPv6 sends is
# sent by any CPU, see scripts/guest/same.
append='iommu.strict=1 loglevel=1 ipv6.disable=1'
echo "console=ttyAMA0 panic=-1 kunit.enable=0 $append" >"$work/l1/vmm/append"

# machine NAME: prints arguments for an emulator with the devices.
machine() {
	cp "$work/parts" "$work/$1.img"
	truncate -s 32M "$work/$1.img"
	printf '%s ' -icount shift=3 -qmp "unix:$work/$1.qmp,server=on,wait=off" -chardev "socket,id=monitor,path=$work/$1.qmp" \
		-device pci-serial,chardev=monitor -global arm-smmuv3.x-ats=on \
		-drive "if=none,id=disk,format=raw,file=$work/$1.img" -device nvme,drive=disk,serial=disk,addr=10 \
		-device pcie-root-port,id=rp0 \
		-device virtio-net-pci,bus=rp0,ats=on,iommu_platform=on,disable-legacy=on,romfile=
}

# What the kernels say of errors is looked at line by line.
allow='arm-smmu-v3.*(CMDQ error|CMD_SYNC timeout|unexpected|GERROR|retrying|failed)'
export TIMEOUT=${TIMEOUT:-300}
declare -A ended=([bare]=0)
say "vmm: Linux on the bare machine"
NAME=same-bare VARIANT=c SMP=2 ALLOW=$allow APPEND=$append INITRD=$work/l1/vmm/initrd RUN='. /same' \
	QEMU_ARGS=$(machine bare) "$REPO/scripts/host/boot.sh" >"$work/bare" || ended[bare]=$?
for vm in "${vms[@]}"; do
	say "vmm: Linux in a VM, by $(case $vm in
	rust) echo 'vsmmu-vmm on the Rust kernel' ;;
	c) echo 'vsmmu-vmm on the C kernel' ;;
	debian) echo "vsmmu-vmm on the Rust kernel, but Debian's" ;;
	qemu) echo 'QEMU on the Rust kernel' ;;
	esac)"
	files=$work/l1 variant=rust hypervisor=vsmmu-vmm
	case $vm in
	c) variant=c ;;
	debian)
		debian=$("$REPO/scripts/host/debian-kernel.sh")
		files=$work/l1-debian
		cp -r "$work/l1" "$files"
		cp "$debian/Image" "$files/vmm/"
		pack "$debian/root" >>"$files/vmm/initrd"
		about="Debian's kernel is $(<"$debian/version")"
		pinned=$(sed -n 's/^version=//p' "$REPO/scripts/pins/debian-kernel.source")
		[[ $about == *" $pinned" ]] || about+=", not $pinned, which the mirror no longer has: what it prints may be different"
		;;
	qemu)
		files+=" $("$REPO/scripts/host/vmm-root.sh")"
		hypervisor=qemu
		;;
	esac
	ended[$vm]=0
	NAME=same-$vm VARIANT=$variant SMP=2 ALLOW=$allow FILES=$files \
		RUN="hypervisor=$hypervisor"$'\n'$(<"$REPO/scripts/guest/l1-same") \
		QEMU_ARGS="-M virtualization=on -m 3G $(machine "$vm")" "$REPO/scripts/host/boot.sh" >"$work/$vm" || ended[$vm]=$?
done

# field WHERE KIND ID: what one of the two tells.
field() { sed -n "s/^$2|$3|//p" "$work/$1" | tail -n 1; }

# prints WHERE ID: what Linux has printed, one error after the other, shortened; the number of
# the same ones if there are several, or that there are many.
prints() {
	sed -n "s/^saw|$2|//p" "$work/$1" | awk '
		function add(text) {
			if (text == last) { count++; return }
			flush()
			last = text
			count = 1
		}
		function flush() {
			if (last) all = all (all ? ", " : "") (count > 4 ? "many x " : count > 1 ? count " x " : "") last
		}
		# What comes with each error.
		/^unexpected global error reported \(0x00000001\)/ || /^retrying command fetch$/ { next }
		/^skipping command in error state:$/ { words = 2; next }
		words == 2 { add("ILL of 0x" substr($1, length($1) - 1)); words = 1; next }
		words == 1 { words = 0; next }
		/^CMDQ error \(cons 0x01......\): Illegal command$/ { next }
		/^CMDQ error \(cons 0x02......\): Abort on command fetch$/ { add("ABT"); next }
		/^CMDQ error \(cons 0x03......\): ATC invalidate timeout$/ { add("ATC"); next }
		/^event 0x10 received:$/ { next }
		/^translation fault of the disk$/ { add("F_TRANSLATION of the disk"); words = 13; next }
		# Two words that say more, and the address.
		words == 13 || words == 11 { words = words == 13 ? 12 : 0; next }
		words == 12 && /0x00000000100000..$/ { words = 11; next }
		/^event: F_TRANSLATION of the disk, ssid: 0x0 iova: 0x100000.. ipa: 0x0$/ { next }
		/^unpriv data read s1 "Input address caused fault" stag: 0x0$/ { next }
		/^CMD_SYNC timeout at / { add("CMD_SYNC timeout"); next }
		{ add($0) }
		END { flush(); print all ? all : "nothing" }'
}

# data WHERE ID: what has become of what it has read and written, with the error and afterwards.
data() {
	local both
	both="$(field "$1" io "$2|during") $(field "$1" io "$2|after")"
	case $both in
	'good good good good') echo right ;;
	*wrong*) echo wrong ;;
	*) echo unknown ;;
	esac
}

# counted WHERE ID: the same as numbers of errors, as registers would have them.
counted() {
	sed -n "s/^saw|$2|CMDQ error (cons 0x\(..\)......): .*/\1/p" "$work/$1" | sort | uniq -c |
		awk '{ kind["01"] = "ill"; kind["02"] = "abt"; kind["03"] = "atc-inv-sync" }
			{ all = all (all ? ", " : "") $1 " x " kind[$2] } END { print all ? all : "nothing" }'
}

in_order() { tr -s ',' '\n' <<<"$1" | sed 's/^ //' | sort | paste -sd ,; }

passed=0 failed=0 table=$work/table
: >"$table"
checks=()
check() { # WHAT [WRONG...]
	if (($# == 1)); then
		passed=$((passed + 1))
		checks+=("ok    $1")
	else
		failed=$((failed + 1))
		checks+=("FAIL  $1")
		shift
		checks+=("${@/#/      }")
	fi
}

# row ID WHAT BARE [VM WHY]: what Linux should print on the bare machine and in the VM. If that
# is not the same, there must be a reason.
row() {
	local id=$1 what=$2 want_bare=$3 want_vm=${4-$3} why=${5-} where cell cells=() wrong=()
	[[ $(prints bare "$id") == "$want_bare" ]] || wrong+=("on the bare machine: $(prints bare "$id"), not $want_bare")
	[[ $(prints rust "$id") == "$want_vm" ]] || wrong+=("in the VM: $(prints rust "$id"), not $want_vm")
	# Linux has seen what there was to see, and it was the same errors.
	[[ $(in_order "$(field bare raised "$id")") == "$(in_order "$(counted bare "$id")")" ]] ||
		wrong+=("on the bare machine the SMMU has raised $(field bare raised "$id"), and Linux has seen $(counted bare "$id")")
	[[ $(in_order "$(field rust shown "$id")") == "$(in_order "$(counted rust "$id")")" ]] ||
		wrong+=("the VMM has shown $(field rust shown "$id"), and Linux has seen $(counted rust "$id")")
	[[ $id == atc || $(field bare raised "$id") == "$(field rust raised "$id")" ]] ||
		wrong+=("the SMMU has raised $(field bare raised "$id") on the bare machine, and $(field rust raised "$id") below the VM")
	[[ ! -e $work/debian || $(prints debian "$id") == "$want_vm" ]] ||
		wrong+=("Debian's in the VM: $(prints debian "$id"), not $want_vm")
	for where in bare "${exact[@]}"; do
		[[ $(data "$where" "$id") == right ]] || wrong+=("data, $where: $(data "$where" "$id")")
	done
	for where in bare "${vms[@]}"; do
		cell=$(prints "$where" "$id")
		# Which it is, is by chance there.
		[[ $where != c ]] || cell=$(sed -E 's/^(([0-9]+|many) x )?CMD_SYNC timeout$/nothing/' <<<"$cell")
		case $(data "$where" "$id") in
		wrong) cell+='; data wrong' ;;
		unknown) cell='not seen' ;;
		esac
		cells+=("$cell")
	done
	(IFS='|' && echo "$what|${cells[*]}|$why") >>"$table"
	check "$what" "${wrong[@]}"
	[[ ! -e $work/c || $(data c "$id") == unknown || $(prints c "$id") == "$want_vm" ]] || different=$((different + 1))
}

different=0
again="the host's driver has had it fetched again"
twice="each that Linux sees, the host's driver has seen twice"
row none "no error" nothing
row stray "a device reads where nothing is mapped" "many x F_TRANSLATION of the disk"
row ill "a TLBI_NH_VA is illegal" "ILL of 0x12"
row ill-cd "a CFGI_CD is illegal" "ILL of 0x05"
row ill-3 "three TLBI_NH_VAs are illegal" "3 x ILL of 0x12"
row abt-1 "a TLBI_NH_VA cannot be fetched, once" ABT nothing "$again"
row abt-2 "a TLBI_NH_VA cannot be fetched, twice" "2 x ABT" ABT "$twice"
row abt-4 "a TLBI_NH_VA cannot be fetched, four times" "4 x ABT" "2 x ABT" "$twice"
row mixed "one is illegal, another fails twice and is illegal" \
	"ILL of 0x12, 2 x ABT, ILL of 0x12" "ILL of 0x12, ABT, ILL of 0x12" "$twice"
row stall "the queue stands still for 300 ms" nothing
row atc-1 "an ATC_INV is not answered, once" ATC nothing "the host's driver has repeated it"
row atc-2 "an ATC_INV is not answered, twice" "2 x ATC" "many x ATC" "the host then refuses that device's ATC_INVs for a time"
row atc "no ATC_INV is answered" "many x ATC"
# All of them are in the table, and nothing else has happened.
rows=$((passed + failed))
cases=$(sed -n 's/^io|\([^|]*\)|after|.*/\1/p' "$work/rust" | sort -u | wc -l)
wrong=()
((cases == rows)) || wrong+=("it has tried $cases, and there are $rows")
check "the table has all that the guest has tried" "${wrong[@]}"
# What becomes of the others, in which invalidations are lost, is not known.
for where in bare "${exact[@]}"; do
	wrong=()
	((!ended[$where])) || wrong+=("it does not, or has something bad in its log: $LOGS/same-$where.log")
	mapfile -t -O "${#wrong[@]}" wrong < <(sed -n 's/^broken|//p' "$work/$where")
	check "the machine $where runs to its end" "${wrong[@]}"
done
if [[ -e $work/c ]]; then
	wrong=()
	((different > 4)) || wrong+=("only $different of the rows are different there")
	check "the rows tell the C kernel from the Rust one" "${wrong[@]}"
fi

declare -A head=([rust]='in a VM' [debian]="Debian's kernel in a VM" [c]='in a VM on the C kernel' [qemu]='in a VM by QEMU')
heads="what the SMMU does|on the bare machine"
for vm in "${vms[@]}"; do heads+="|${head[$vm]}"; done
heads+="|why it is different"
{ echo "$heads" && cat "$table"; } | awk -F '|' '
	{
		for (i = 1; i <= NF; i++) {
			cell[NR, i] = $i
			if (length($i) > width[i]) width[i] = length($i)
		}
		columns = NF
	}
	END {
		for (j = 1; j <= NR; j++) {
			for (i = 1; i < columns; i++) printf "%-*s | ", width[i], cell[j, i]
			print cell[j, columns]
		}
	}'
if [[ $page ]] && ((!failed)); then
	{
		sed '/<!-- table begin -->/q' "$page"
		printf '\n| %s |\n' "${heads//|/ | }"
		printf '%s\n' "${heads}" | sed 's/[^|]\+/---/g; s/|/ | /g; s/.*/| & |/'
		sed 's/||/|  |/g; s/|/ | /g; s/.*/| & |/; s/  */ /g' "$table"
		echo
		sed -n '/<!-- table end -->/,$p' "$page"
	} >"$work/page"
	cp "$work/page" "$page"
fi
echo
[[ ! ${about-} ]] || printf '%s\n\n' "$about"
printf '%s\n' "${checks[@]}"
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 0))
