#!/bin/bash
# tree.sh [NAME PATCH]: makes build/linux, the pristine kernel tree with the patches and
# the overlay of this repository on it, or brings it up to date. With a name, makes
# build/NAME, which goes no further than to that patch; none: it is the pristine tree.
#
# Runs on the host, because hard links from the cache, which make this a matter
# of seconds, are not possible across the mounts of the build root.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

tree=$BUILD/${1-linux}
pristine=$("$REPO/scripts/enter" scripts/source.sh)

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
	if [[ ! ${KSRC-} ]]; then
		cp -al "$pristine" "$tree.tmp" 2>/dev/null || {
			note "by copying, which takes minutes: $CACHE is on another file system"
			rm -rf "$tree.tmp"
			cp -a --reflink=auto "$pristine" "$tree.tmp"
		}
		mv "$tree.tmp" "$tree"
	fi
	printf '%s\n' "$pristine" >"$tree.base"
fi
"$REPO/scripts/enter" scripts/tree.py ${KSRC:+--follow} ${1+--until "$2"} "$pristine" "$tree"
