#!/bin/bash
# kselftest.sh [PROGRAM]: builds the kernel's self-tests of iommufd and runs them
# on build/VARIANT/Image. Those that upstream has are run as they are upstream
# ("pristine"), which old user space stands for, and as patched here ("tree").
# Unless SMP says on how many CPUs, those of the SMMUv3 path that depend on that
# are run on 1 and 4 as well ("smp1" and "smp4"; not on the C kernel).
# Ends with "N passed, N failed". Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

variant=${VARIANT:-rust}
only=${1-}
out=$BUILD/kselftest
name=kselftest-$variant
tests=tools/testing/selftests/iommu

build() { # ORIGIN SOURCE-TREE PROGRAM
	mkdir -p "$out/root/kselftest/$1"
	# Uses the headers of the tree: an old program has to build with new ones.
	# shellcheck disable=SC2086 # several flags
	aarch64-linux-gnu-gcc -static -Wall -O2 -Wno-unused-function -isystem "$out/headers/include" \
		-I"$2/tools/include" -I"$2/tools/testing/selftests" -D_GNU_SOURCE= \
		-o "$out/root/kselftest/$1/$3" "$2/$tests/$3.c" -lcap -lpthread
}

build_all() {
	local program
	rm -rf "$out"
	"$REPO/scripts/image.sh" "$variant" -s INSTALL_HDR_PATH="$out/headers" headers_install
	for program in iommufd iommufd_fail_nth; do
		build pristine "$(cat "$BUILD/linux.base")" "$program"
	done
	for program in iommufd iommufd_fail_nth iommufd_arm_smmuv3; do
		build tree "$BUILD/linux" "$program"
	done
	touch "$out/built"
}

# They are the same for all variants, and depend on nothing else.
up_to_date() {
	[[ -e $out/built ]] &&
		[[ ! $(find "$BUILD/linux/$tests" "$BUILD/linux/include/uapi/linux" "$BUILD/linux.base" -newer "$out/built") ]]
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
		QEMU_ARGS="-device edu,dma_mask=0xffffffffffff ${QEMU_ARGS-}" "$REPO/scripts/boot.sh" >/dev/null
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

rm -f "$LOGS/$name.counts"
up_to_date || logged kselftest-build "building the self-tests" build_all || die "correct what the compiler says above and run this again"
# Where wrong answers are expected under load, a short load shows them.
stress=20
[[ $variant != c ]] || stress=5
# shellcheck disable=SC2016 # expanded in the guest
job='echo 512 >/proc/sys/vm/nr_hugepages
export IOMMUFD_SMMUV3_SECONDS='$stress'
cd /kselftest
for program in */'${only:-*}'; do echo "--- $program"; $program; echo "--- status $?"; done'
say "kselftest: running the self-tests on the $variant kernel (some minutes)"
rc=0
boot "$name" "$job" || rc=$?
# shellcheck disable=SC2046,SC2086 # a pattern, and several words
count "$name" $rc kernel-log $(cd "$out/root/kselftest" && echo */${only:-*})
logs=("$LOGS/$name.log")

# shellcheck disable=SC2053 # a pattern
if [[ ! ${SMP-} && $variant != c && iommufd_arm_smmuv3 == ${only:-*} ]]; then
	for cpus in 1 4; do
		say "kselftest: some of them once more, with SMP=$cpus"
		job='export IOMMUFD_SMMUV3_SECONDS=10
			echo "--- smp'$cpus'/iommufd_arm_smmuv3"
			/kselftest/tree/iommufd_arm_smmuv3 -f killed -f stress -f injected -f gerror -f neighbours
			echo "--- status $?"'
		rc=0
		SMP=$cpus boot "$name-smp$cpus" "$job" || rc=$?
		count "$name-smp$cpus" $rc "smp$cpus/kernel-log" "smp$cpus/iommufd_arm_smmuv3"
		logs+=("$LOGS/$name-smp$cpus.log")
	done
fi

while read -r program passed failed skipped; do
	printf '    %-30s %4d passed %4d failed %4d skipped\n' "$program" "$passed" "$failed" "$skipped" >&2
done <"$LOGS/$name.counts"
sed -n 's/^not ok [0-9]* /failed: /p; s/^ok [0-9]* \(.*\) # SKIP/skipped: \1:/p' "${logs[@]}" | sort | uniq |
	sed 's/^/        /' >&2
awk '{ passed += $2; failed += $3 } END { print passed + 0 " passed, " failed + 0 " failed"; exit failed != 0 || !passed }' \
	"$LOGS/$name.counts"
