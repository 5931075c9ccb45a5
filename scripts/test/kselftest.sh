#!/bin/bash
# kselftest.sh [PROGRAM|FIXTURE|FIXTURE[.VARIANT].TEST]: builds the kernel's self-tests of
# iommufd and runs them, or some, on build/VARIANT/Image. Those that upstream has are
# run as they are upstream ("pristine"), which old user space stands for, and as
# patched here ("tree"). Unless SMP says on how many CPUs, those of the SMMUv3 path
# that depend on that are run on 1 and 4 as well ("smp1" and "smp4"; not on the C
# kernel, nor if only some are asked for).
# Ends with "N passed, N failed". Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

variant=${VARIANT:-rust}
only=${1:-*} filter=''
out=$BUILD/kselftest
name=kselftest-$variant
tests=tools/testing/selftests/iommu

# What upstream's own source has, with the headers of the tree: an old program has to
# build with new ones.
build_pristine() { # PROGRAM
	local source
	source=$(cat "$BUILD/linux.base")
	mkdir -p "$out/root/kselftest/pristine"
	# shellcheck disable=SC2086 # several flags
	aarch64-linux-gnu-gcc -static -Wall -O2 -Wno-unused-function -isystem "$out/headers/include" \
		-I"$source/tools/testing/selftests" -D_GNU_SOURCE= \
		-o "$out/root/kselftest/pristine/$1" "$source/$tests/$1.c" -lcap -lpthread
}

build_all() {
	local program
	rm -rf "$out/root" "$out/headers"
	"$REPO/scripts/host/image.sh" "$variant" -s INSTALL_HDR_PATH="$out/headers" headers_install
	for program in iommufd iommufd_fail_nth; do build_pristine "$program"; done
	# Static, as the guest has no libraries, and without the sources' tree being written to.
	make -s -C "$BUILD/linux/tools/testing/selftests" TARGETS=iommu ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- \
		O="$out/build" KHDR_INCLUDES="-isystem $out/headers/include" USERCFLAGS=-Werror USERLDFLAGS=-static \
		FORCE_TARGETS=1 INSTALL_PATH="$out/install" install
	mkdir -p "$out/root/kselftest/tree"
	find "$out/install/iommu" -type f -executable -exec cp -t "$out/root/kselftest/tree" {} +
	touch "$out/built"
}

# They are the same for all variants, and depend on nothing else.
up_to_date() {
	[[ -e $out/built ]] &&
		[[ ! $(find "$BUILD/linux/$tests" "$BUILD/linux/tools/testing/selftests/vfio/lib" "$BUILD/linux/include/uapi/linux" "$BUILD/linux.base" -newer "$out/built") ]]
}

# Two devices, so that there are two VMs behind the same SMMU. The C kernel lets
# the page allocator warn of an array that user space made too large. On the
# other one, tests turn guests' commands into zeroes for the SMMU to object to.
allow='arm-smmu-v3\.[^:]*: CMDQ error at index 0x[0-9a-f]+ \(cons 0x01[0-9a-f]{6}\): '
allow+='illegal command, command 0x0{16} 0x0{16}, replaced by CMD_SYNC'
[[ $variant != c ]] || allow='__alloc_frozen_pages'
allow+=${ALLOW:+|$ALLOW}

boot() { # NAME JOB
	ALLOW=$allow NAME=$1 FILES=$out/root RUN=$2 TIMEOUT=${TIMEOUT:-900} \
		QEMU_ARGS="-device edu,dma_mask=0xffffffffffff ${QEMU_ARGS-}" "$REPO/scripts/host/boot.sh" >/dev/null
}

# A line for each program: passed, failed, skipped. One that did not tell its
# totals, in which nothing passed, or whose exit status does not fit them, has
# failed. A line of its own for the boot: programs that are expected to fail must not
# hide an error of the kernel.
count() { # NAME STATUS-OF-BOOT KERNEL-LOG PROGRAM...
	local log=$LOGS/$1.log rc=$2 kernel=$3
	shift 3
	awk -v programs="$*" -v rc="$rc" -v kernel="$kernel" '
		/^--- [a-z0-9_]+\/[a-z_0-9]+$/ { program = $2; fail[program] = 1 }
		/^# Totals:/ {
			split($0, word, /[: ]+/)
			for (i in word) if (word[i] ~ /^(pass|fail|skip|error)$/) count[word[i]] = word[i + 1]
			pass[program] = count["pass"]; skip[program] = count["skip"]; fail[program] = count["fail"] + count["error"]
		}
		/^--- status / && $3 != 0 && $3 != 4 && !fail[program] { fail[program] = 1 }
		END {
			n = split(programs, list, " ")
			for (i = 1; i <= n; i++) {
				p = list[i]
				if (!(p in fail) || !pass[p] && !fail[p]) fail[p] = 1
				printf "%s %d %d %d\n", p, pass[p], fail[p], skip[p]
			}
			printf "%s %d %d 0\n", kernel, !rc, !!rc
		}' "$log" >>"$LOGS/$name.counts"
}

# One that is no program is a fixture, which a program has.
fixture=${only%%.*}
if [[ ! -e $BUILD/linux/$tests/$only.c ]] && owner=$(grep -lE "^FIXTURE\($fixture\)" "$BUILD/linux/$tests"/*.c 2>/dev/null); then
	only=$(basename "$owner" .c)
	case ${1-} in
	*.*.*) filter="-r $1" ;;
	*.*)
		# With each variant, if the fixture has some.
		filter=$(sed -nE "s/^FIXTURE_VARIANT_ADD\($fixture, (\w+)\).*/-r $fixture.\1.${1#*.}/p" "$owner" | tr '\n' ' ')
		filter=${filter:--r $1}
		;;
	*) filter="-f $fixture" ;;
	esac
fi

rm -f "$LOGS/$name.counts"
up_to_date || logged kselftest-build "building the self-tests" build_all || die "correct what the compiler says above and run this again"
# Where wrong answers are expected under load, a short load shows them.
stress=20
[[ $variant != c ]] || stress=5
# shellcheck disable=SC2016 # expanded in the guest
devices='
for device in /sys/bus/pci/devices/*; do
	[ "$(cat $device/vendor $device/device | tr -d "\n")" = 0x12340x11e8 ] || continue
	echo vfio-pci >$device/driver_override
	echo ${device##*/} >/sys/bus/pci/drivers_probe
	edus="$edus ${device##*/}"
done
'
# shellcheck disable=SC2016
job=$devices'echo 512 >/proc/sys/vm/nr_hugepages
export IOMMUFD_SMMUV3_SECONDS='$stress'
cd /kselftest
for program in */'$only'; do
	echo "--- $program"
	case $program in *smmuv3*) $program '$filter' $edus ;; *) $program '$filter' ;; esac
	echo "--- status $?"
done'
say "kselftest: running the self-tests on the $variant kernel (some minutes)"
rc=0
boot "$name" "$job" || rc=$?
# shellcheck disable=SC2046,SC2086 # a pattern, and several words
count "$name" $rc kernel-log $(cd "$out/root/kselftest" && compgen -G "*/$only")
logs=("$LOGS/$name.log")

if [[ ! ${SMP-} && $variant != c && $only == '*' ]]; then
	programs='killed stress errors'
	for cpus in 1 4; do
		say "kselftest: some of them once more, with SMP=$cpus"
		# shellcheck disable=SC2016 # expanded in the guest
		job=$devices'export IOMMUFD_SMMUV3_SECONDS=10
			for subject in '$programs'; do
				echo "--- smp'$cpus'/iommufd_arm_smmuv3_$subject"
				/kselftest/tree/iommufd_arm_smmuv3_$subject $edus
				echo "--- status $?"
			done'
		rc=0
		SMP=$cpus boot "$name-smp$cpus" "$job" || rc=$?
		# shellcheck disable=SC2046,SC2086 # several words
		count "$name-smp$cpus" $rc "smp$cpus/kernel-log" $(printf "smp$cpus/iommufd_arm_smmuv3_%s " $programs)
		logs+=("$LOGS/$name-smp$cpus.log")
	done
fi

while read -r program passed failed skipped; do
	printf '    %-34s %4d passed %4d failed %4d skipped\n' "$program" "$passed" "$failed" "$skipped" >&2
done <"$LOGS/$name.counts"
sed -n 's/^not ok [0-9]* /failed: /p; s/^ok [0-9]* \(.*\) # SKIP/skipped: \1:/p' "${logs[@]}" | sort | uniq |
	sed 's/^/        /' >&2
awk '{ passed += $2; failed += $3 } END { print passed + 0 " passed, " failed + 0 " failed"; exit failed != 0 || !passed }' \
	"$LOGS/$name.counts"
