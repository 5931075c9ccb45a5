#!/bin/bash
# Prints a directory with the arm64 kernel of Debian's stable release, in the version of
# pins/debian-kernel.source or, should the mirror no longer have that, in its newest:
# Image, version, and root/, which has those of its modules that the VM of vmm-same.sh
# needs. It is fetched into the cache if it is not there. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=../pins/debian-kernel.source
. "$REPO/scripts/pins/debian-kernel.source"

key=$(cat "$REPO/scripts/pins/debian-kernel.source" "$REPO/scripts/host/debian-kernel.sh" | sha256sum | cut -c1-12)
out=$CACHE/debian-kernel-$key
work=$CACHE/debian-kernel.tmp
modules=(nvme virtio_net)

fetch() {
	local name found all release module
	rm -rf "$work"
	mkdir -p "$work"/{all,out/root} "$LOGS"
	cd "$work"
	say "fetching the kernel $version of Debian's stable release (95 MB)"
	# The first package has nothing but the name of the second.
	if ! {
		apt_arm64 "$work/apt" update && {
			apt_arm64 "$work/apt" download "linux-image-arm64=$version" || apt_arm64 "$work/apt" download linux-image-arm64
		} && name=$(dpkg-deb -f linux-image-arm64_*.deb Depends | sed 's/ .*//') &&
			found=$(dpkg-deb -f linux-image-arm64_*.deb Version) &&
			apt_arm64 "$work/apt" download "$name=$found"
	} >"$LOGS/debian-kernel.log" 2>&1; then
		tail -n 5 "$LOGS/debian-kernel.log" >&2
		die "the package could not be fetched; check the network (log: $LOGS/debian-kernel.log)"
	fi
	[[ $found == "$version" ]] ||
		note "note: the kernel in scripts/pins/debian-kernel.source is no longer on the mirror; taking the newest of the release, $found"
	printf '%s\n' "$found" >out/version
	dpkg-deb -x "$name"_*.deb all
	cp all/boot/vmlinuz-* out/Image
	release=$(basename all/usr/lib/modules/*)
	all=all/usr/lib/modules/$release
	depmod -b "$work/all/usr" "$release"
	# With those that they depend on.
	for module in "${modules[@]}"; do
		grep -oE "^[^:]*/$module\.ko\.xz: .*" "$all/modules.dep" | tr -d : | tr ' ' '\n'
	done | sort -u | while read -r file; do
		mkdir -p "out/root/lib/modules/$release/$(dirname "$file")"
		xz -dc "$all/$file" >"out/root/lib/modules/$release/${file%.xz}"
	done
	depmod -b "$work/out/root" "$release" 2>>"$LOGS/debian-kernel.log"
	rm -rf "$out"
	mv "$work/out" "$out"
	rm -rf "$work"
}

if [[ ! -d $out ]]; then
	(
		lock "$CACHE/debian-kernel.lock"
		if [[ ! -d $out ]]; then fetch; fi
	) >&2
fi
printf '%s\n' "$out"
