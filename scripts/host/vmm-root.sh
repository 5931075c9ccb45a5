#!/bin/bash
# Prints a directory with Debian's unmodified QEMU for arm64, in the version of
# vmm.source, with the libraries that it needs and the firmware of its virtual
# machines: what is added to the initrd of a kernel that is to host some. It is
# fetched into the cache if it is not there. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=../pins/vmm.source
. "$REPO/scripts/pins/vmm.source"

key=$(cat "$REPO/scripts/pins/vmm.source" "$REPO/scripts/host/vmm-root.sh" | sha256sum | cut -c1-12)
out=$CACHE/vmm-root-$key
work=$CACHE/vmm-root.tmp
firmware=/usr/share/qemu-efi-aarch64/QEMU_EFI.fd

apt() {
	apt_arm64 "$work/apt" -o Dir::Etc::Preferences="$work/apt/prefs" -o Dir::Etc::PreferencesParts=/dev/null "$@"
}

# copy FILE: the program or library, and the libraries that it needs, from the
# unpacked packages to where they are looked for.
copy() {
	local needed
	[[ ! -e $out.tmp/$1 ]] || return 0
	install -D -s --strip-program=aarch64-linux-gnu-strip "$work/root/$1" "$out.tmp/$1"
	for needed in $(readelf -d "$work/root/$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
		[[ -e $work/root/$libs/$needed ]] || die "the packages have no $needed, which $1 needs"
		copy "$libs/$needed"
	done
}

fetch() {
	local deb found
	rm -rf "$work" "$out.tmp"
	mkdir -p "$work"/{root,apt} "$LOGS"
	printf 'Package: qemu-system-*\nPin: version %s\nPin-Priority: 1000\n\n' "$version" >"$work/apt/prefs"
	# Should that version be gone, the newest of the backports.
	printf 'Package: %s\nPin: release n=trixie-backports\nPin-Priority: %d\n\n' 'qemu-system-*' 900 '*' 100 >>"$work/apt/prefs"
	say "fetching QEMU $version for arm64 (60 MB with all that it needs)"
	if ! { apt update && apt install --yes --download-only qemu-system-arm; } >"$LOGS/vmm-root.log" 2>&1; then
		tail -n 5 "$LOGS/vmm-root.log" >&2
		die "the packages could not be fetched; check the network (log: $LOGS/vmm-root.log)"
	fi
	for deb in "$work"/apt/archives/*.deb; do
		dpkg-deb -x "$deb" "$work/root"
		case ${deb##*/} in qemu-system-arm_*) found=$(dpkg-deb -f "$deb" Version) ;; esac
	done
	dpkg --compare-versions "$found" ge 1:11.1 ||
		die "the mirror has QEMU $found, and only 11.1 and later have an accelerated vSMMU; put a version that it has into scripts/pins/vmm.source"
	[[ $found == "$version" ]] ||
		note "note: the QEMU in scripts/pins/vmm.source is no longer on the mirror; taking the newest of the backports, $found"
	libs=usr/lib/aarch64-linux-gnu
	copy usr/bin/qemu-system-aarch64
	install -D -m 644 "$firmware" "$out.tmp/$firmware"
	ln -s usr/lib "$out.tmp/lib"
	mkdir -p "$out.tmp/usr/lib" "$out.tmp/etc"
	ln -s "${libs#usr/lib/}/ld-linux-aarch64.so.1" "$out.tmp/usr/lib/"
	printf '/%s\n' "$libs" >"$out.tmp/etc/ld.so.conf"
	mv "$out.tmp" "$out"
	rm -rf "$work"
}

if [[ ! -d $out ]]; then
	(
		lock "$CACHE/vmm-root.lock"
		if [[ ! -d $out ]]; then fetch; fi
	) >&2
fi
printf '%s\n' "$out"
