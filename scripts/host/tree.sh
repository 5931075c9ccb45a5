#!/bin/bash
# tree.sh [NAME PATCH]: makes build/linux, the pristine kernel tree with the patches and
# the overlay of this repository on it, or brings it up to date. With a name, makes
# build/NAME, which goes no further than to that patch; none: it is the pristine tree.
#
# build/linux is a copy, so that what is edited there does not reach the pristine tree;
# see tree.py for what becomes of it. The other trees are hard links. Runs on the host,
# because these are not possible across the mounts of the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

tree=$BUILD/${1-linux}
pristine=$("$REPO/scripts/enter" scripts/host/source.sh)

# With the times of the original, for make to build nothing anew.
copy_of() { # FROM TO
	note "copying the kernel's source (1.8 GB, some 20 s)"
	rm -rf "$2.tmp"
	cp -a --reflink=auto "$1" "$2.tmp"
	chmod -R u+w "$2.tmp"
	rm -rf "$2"
	mv "$2.tmp" "$2"
}

lock "$BUILD/.lock"
if [[ ! -e $tree || $(cat "$tree.base" 2>/dev/null) != "$pristine" ]]; then
	# Objects made from another tree are neither newer nor older than this one's files.
	for config in "$BUILD"/*/.config; do
		objects=${config%/.config} of=linux
		case ${objects##*/} in c-* | on-* | off-*) of=${objects##*/} of=${of#*-} ;; esac
		[[ $of != "${tree##*/}" ]] || rm -rf "$objects"
	done
	rm -rf "$tree" "$tree.tmp" "$tree.json"
	say "making the kernel tree from $pristine"
	if [[ ! ${KSRC-} && ! ${1-} ]]; then
		copy_of "$pristine" "$tree"
	elif [[ ! ${KSRC-} ]]; then
		cp -al "$pristine" "$tree.tmp" 2>/dev/null || {
			note "by copying, which takes minutes: $CACHE is on another file system"
			rm -rf "$tree.tmp"
			cp -a --reflink=auto "$pristine" "$tree.tmp"
		}
		mv "$tree.tmp" "$tree"
	fi
	printf '%s\n' "$pristine" >"$tree.base"
fi
# One that was made of hard links.
[[ ${1-} || ${KSRC-} || $(stat -c %h "$tree/COPYING") == 1 ]] || copy_of "$tree" "$tree"
"$REPO/scripts/enter" scripts/host/tree.py ${DISCARD:+--discard} ${KSRC:+--follow} ${1+--until "$2"} "$pristine" "$tree"
