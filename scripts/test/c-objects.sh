#!/bin/bash
# c-objects.sh: proves that with the options off the kernel is the one without the
# patches: compares the objects of drivers/iommu/ made from both. Ends with "N passed,
# N failed", an object each. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

# Those that are meant to differ, and why.
declare -A differs=(
	[drivers/iommu/iommufd/selftest.o]="the mock driver, for tests only: its error codes, and the descriptor of a DMA buffer"
)

# All that is in an object: sections, relocations, symbols. The name of an initcall has
# the number of the line in it that it is defined in, which moves with lines above.
contents() { # OBJECT
	llvm-objdump --full-contents --reloc --syms "$1" |
		awk '/^Contents of section / { names = /\.(strtab|symtab|shstrtab):$/ } /^(RELOCATION|SYMBOL)/ { names = 0 } !names && !/file format/' |
		sed -E 's/(__initcall__kmod_[a-z0-9_]*__[0-9]+_)[0-9]+/\1LINE/'
}

same() { # OBJECT
	cmp -s "$BUILD/c-pristine/$1" "$BUILD/c-linux/$1" ||
		diff <(contents "$BUILD/c-pristine/$1") <(contents "$BUILD/c-linux/$1") >/dev/null
}

objects_of() { (cd "$BUILD/$1" && find drivers/iommu -name '*.o' | sort); }

for variant in c-pristine c-linux; do "$REPO/scripts/host/image.sh" "$variant"; done

passed=0 failed=0
while read -r object; do
	if [[ ! -e $BUILD/c-pristine/$object || ! -e $BUILD/c-linux/$object ]]; then
		wrong="is made from one of the trees only"
	elif same "$object"; then
		wrong=${differs[$object]+"does not differ any longer; take it off the list in scripts/test/c-objects.sh"}
	else
		wrong=${differs[$object]-"differs with the options off; see what a patch changes, or list it in scripts/test/c-objects.sh"}
		[[ ! ${differs[$object]-} ]] || { note "$object differs: $wrong" && wrong=''; }
	fi
	if [[ $wrong ]]; then
		failed=$((failed + 1))
		printf 'FAIL  %s %s\n' "$object" "$wrong"
	else
		passed=$((passed + 1))
	fi
done < <({ objects_of c-pristine && objects_of c-linux; } | sort -u)
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0 && passed > 20))
