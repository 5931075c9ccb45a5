#!/bin/bash
# series-check.sh [full [PATCH...]]: checks the series as a maintainer would: the mails
# apply to the pristine tree, and that gives the tree that is built here, as far as
# each of some patches and to the end; at these patches the kernel builds. In the full
# form it builds after each patch, or after the given ones, with the options off and with
# those on that there are by then, with W=1 and clippy; that takes hours. Ends with
# "N passed, N failed". Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

pristine=$(cat "$BUILD/linux.base")
mails=$BUILD/series-check
am=$BUILD/am
mapfile -t patches < <(grep -v '^#' "$REPO/patches/series" | grep .)
passed=0 failed=0

check() { # WHAT COMMAND...
	local what=$1 start=$SECONDS log=$LOGS/series-check.log
	shift
	if "$@" >"$log" 2>&1 </dev/null; then
		passed=$((passed + 1))
		printf 'ok    %s (%d s)\n' "$what" $((SECONDS - start))
	else
		failed=$((failed + 1))
		printf 'FAIL  %s (%d s)\n' "$what" $((SECONDS - start))
		tail -n 25 "$log" | sed 's/^/      /'
	fi
}

# Applies the mails to the pristine tree, of which git is told the files that they
# change. A file that is to be new must not be there, known to git or not.
apply() {
	local all files
	GIT_AUTHOR_NAME=Somebody GIT_AUTHOR_EMAIL=somebody@example.org \
		"$REPO/scripts/host/series.py" "$pristine" "$mails" || return
	all=("$mails"/*.patch)
	mapfile -t files < <(sed -n 's|^--- a/||p' "${all[@]}" | sort -u | while read -r file; do
		[[ ! -e $pristine/$file ]] || echo "$file"
	done)
	cd "$am" || return
	if git rev-parse -q --verify base; then
		git am --abort || true
		git reset -q --hard base || return
	fi
	rm -rf .git
	export GIT_COMMITTER_NAME=Somebody GIT_COMMITTER_EMAIL=somebody@example.org
	export GIT_AUTHOR_NAME=Somebody GIT_AUTHOR_EMAIL=somebody@example.org
	git init -q -b series &&
		git add -f -- "${files[@]}" &&
		git commit -q -m base &&
		git tag base &&
		git am -q --whitespace=error "${all[@]:1}"
}

# same PATCH TREE: what the mails make of the pristine tree up to that patch is what
# is in the other one, byte for byte.
same() {
	local commit tree=$2 file mode
	commit=$(git -C "$am" log --format=%H --reverse base..series | sed -n "$(number "$1")p")
	while read -r file; do
		mode=$(git -C "$am" ls-tree "$commit" "$file" | cut -d ' ' -f 1)
		if [[ ! $mode ]]; then
			[[ ! -e $tree/$file ]] || { echo "$tree/$file is in no mail so far" && return 1; }
			continue
		fi
		git -C "$am" show "$commit:$file" | cmp - "$tree/$file" || return
		if [[ $mode == 100755 ]]; then [[ -x $tree/$file ]]; else [[ ! -x $tree/$file ]]; fi || return
	done < <(git -C "$am" diff --name-only base series)
	jq -r '.touched[]' "$tree.json" | while read -r file; do
		git -C "$am" cat-file -e "$commit:$file" || { echo "$file is in no mail" && return 1; }
	done
}

same_at() { # PATCH: makes the tree first
	"$REPO/scripts/host/tree.py" --until "$1" "$pristine" "$BUILD/at" && same "$1" "$BUILD/at"
}

number() { # PATCH: where it is in the series
	local i
	for i in "${!patches[@]}"; do
		[[ ${patches[i]} != "$1" ]] || echo $((i + 1))
	done
}

# clean VARIANT: builds with W=1 and clippy, and fails if a message names a file of the
# series. As warnings are not errors here, what the kernel's own files have does not matter.
clean() {
	local log=$LOGS/series-$1.log ours
	"$REPO/scripts/host/image.sh" "$1" W=1 CLIPPY=1 CONFIG_WERROR= rust/ drivers/iommu/ >"$log" 2>&1 || {
		tail -n 25 "$log"
		return 1
	}
	ours=$(git -C "$am" diff --name-only base series | paste -sd '|')
	! grep -nE -B 3 -A 8 "($ours):[0-9]+" "$log"
}

rm -rf "$mails"
check "git am on a pristine tree" apply
check "the tree is the one that is built" same "${patches[-1]}" "$BUILD/linux"
if [[ ${1-} == full ]]; then
	shift
	(($#)) || set -- "${patches[@]}"
	for patch; do
		[[ $(number "$patch") ]] || die "there is no patch $patch in patches/series"
		check "$patch: the tree is the same" same_at "$patch"
		check "$patch: builds with the options off" clean off-at
		[[ ! -e $BUILD/at/drivers/iommu/Kconfig.rust ]] || check "$patch: builds with the options on" clean on-at
	done
else
	for variant in c-at-prepare on-at-cmdq; do
		tree=$BUILD/${variant#*-}
		patch=smmuv3-${tree##*-}
		[[ $patch != *-prepare ]] || patch+=-cmdq
		check "$patch: the tree is the same" same "$patch.patch" "$tree"
		check "$patch: builds" "$REPO/scripts/host/image.sh" "$variant"
	done
	check "the end: builds with the command queue alone" "$REPO/scripts/host/image.sh" cmdq
fi
printf '%d passed, %d failed\n' "$passed" "$failed"
((!failed))
