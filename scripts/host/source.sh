#!/bin/bash
# source.sh [base]: prints the directory of the pristine kernel tree: KSRC if that is set,
# else the Debian source package named in kernel.source, fetched and unpacked into the
# cache; or of the kernel named in base.source. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
pin=${1:-kernel}
# shellcheck source=../pins/kernel.source
. "$REPO/scripts/pins/$pin.source"

series=${version%%-*}
package=linux-source-${series%.*}

series_of() { # TREE
	awk -F ' *= *' '$1 == "VERSION" { v = $2 } $1 == "PATCHLEVEL" { print v "." $2; exit }' "$1/Makefile" 2>/dev/null
}

if [[ ${KSRC-} && $pin == kernel ]]; then
	[[ $(series_of "$KSRC") == "$SERIES" ]] ||
		die "$KSRC is not a Linux $SERIES tree (found: $(series_of "$KSRC" || true)); give one of that series as KSRC"
	[[ -e $KSRC/.git || ! -e $KSRC/.config ]] ||
		die "$KSRC has been built in; run 'make mrproper' there, or give a git tree, of which only tracked files are taken"
	printf '%s\n' "$KSRC"
	exit
fi

# The newest that is there stands in for a pinned one that is gone.
unpacked() { find "$CACHE" -maxdepth 1 -type d -name "$package-*" ! -name '*.tmp' | sort -V | tail -n 1; }

apt_dir=$CACHE/apt
apt() {
	mkdir -p "$apt_dir/lists/partial" "$apt_dir/archives/partial"
	apt-get -q -o Dir::State="$apt_dir" -o Dir::State::Lists="$apt_dir/lists" -o Dir::State::status=/var/lib/dpkg/status \
		-o Dir::Cache="$apt_dir" -o APT::Sandbox::User=root "$@"
}

fetch() {
	local deb got
	cd "$CACHE"
	say "fetching the kernel source $version (170 MB)"
	if ! { apt update && { apt download "$package=$version" || { touch "$CACHE/pinned-is-gone" && apt download "$package"; }; }; } \
		>"$CACHE/source.log" 2>&1; then
		rm -f pinned-is-gone
		tail -n 5 "$CACHE/source.log" >&2
		die "$package could not be fetched; check the network (log: $CACHE/source.log), or build on your own tree with KSRC=/path/to/linux"
	fi
	deb=$(find . -maxdepth 1 -name "${package}_*.deb" | sort -V | tail -n 1)
	if [[ -e pinned-is-gone ]]; then
		rm -f pinned-is-gone
		note "note: $version is no longer on the mirror; taking the newest of the series, ${deb##*/}"
		version=$(dpkg-deb -f "$deb" Version)
	else
		got=$(sha256sum <"$deb" | cut -d ' ' -f 1)
		if [[ $got != "$sha256" ]]; then
			rm -f "$deb"
			die "the checksum of ${deb##*/} is $got, not $sha256 as in scripts/pins/$pin.source; run this again, and if it stays so do not use that mirror"
		fi
	fi
	say "unpacking the kernel source"
	rm -rf "$package.tmp"
	mkdir "$package.tmp"
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz" | tar -xJ -C "$package.tmp" --strip-components=1
	# Kernel trees are hard links to these files: nobody is to write to them.
	find "$package.tmp" -type f -exec chmod a-w {} +
	mv "$package.tmp" "$package-$version"
	rm -f "$deb"
}

if [[ ! -d $CACHE/$package-$version && -z $(unpacked) ]]; then
	(
		lock "$CACHE/source.lock"
		[[ -d $CACHE/$package-$version || -n $(unpacked) ]] || fetch
	)
fi
if [[ -d $CACHE/$package-$version ]]; then
	printf '%s\n' "$CACHE/$package-$version"
else
	unpacked
fi
