#!/bin/bash
# Prints the name of a file with the configuration of Debian's arm64 kernel, which is
# fetched into the cache if it is not there. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=../pins/debian-config.source
. "$REPO/scripts/pins/debian-config.source"

package=linux-config-$SERIES
out=$CACHE/$package-$version
work=$out.tmp

apt() { apt_arm64 "$work/apt" "$@"; }

fetch() {
	local got deb
	rm -rf "$work"
	mkdir -p "$work" "$LOGS"
	cd "$work"
	say "fetching the configuration of Debian's arm64 kernel, $version (1 MB)"
	if ! { apt update && { apt download "$package=$version" || { touch gone && apt download "$package"; }; }; } \
		>"$LOGS/debian-config.log" 2>&1; then
		tail -n 5 "$LOGS/debian-config.log" >&2
		die "$package could not be fetched; check the network (log: $LOGS/debian-config.log)"
	fi
	deb=$(find . -maxdepth 1 -name "${package}_*.deb")
	if [[ -e gone ]]; then
		note "note: $version is no longer on the mirror; taking the newest of the series, ${deb##*/}"
	else
		got=$(sha256sum <"$deb" | cut -d ' ' -f 1)
		[[ $got == "$sha256" ]] ||
			die "the checksum of ${deb##*/} is $got, not $sha256 as in scripts/pins/debian-config.source; run this again, and if it stays so do not use that mirror"
	fi
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package/config.arm64_none_arm64.xz" | xz -dc >config
	rm -rf "$out"
	mkdir "$out"
	mv config "$out/"
	rm -rf "$work"
}

if [[ ! -d $out ]]; then
	(
		lock "$CACHE/debian-config.lock"
		if [[ ! -d $out ]]; then fetch; fi
	) >&2
fi
printf '%s\n' "$out/config"
