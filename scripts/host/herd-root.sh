#!/bin/bash
# Prints a directory with Debian's herd7, in the version of herd.source, the C
# library that it needs, which is newer than the build root's, and its models. It is
# fetched into the cache if it is not there. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=../pins/herd.source
. "$REPO/scripts/pins/herd.source"

key=$(cat "$REPO/scripts/pins/herd.source" "$REPO/scripts/host/herd-root.sh" | sha256sum | cut -c1-12)
out=$CACHE/herd-root-$key
work=$CACHE/herd-root.tmp

# As if on a machine on which nothing is installed yet.
apt() {
	apt-get -q -o APT::Architectures::=amd64 -o APT::Install-Recommends=false \
		-o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State="$work/apt" -o Dir::State::status="$work/apt/status" -o Dir::Cache="$work/apt" \
		-o APT::Sandbox::User=root "$@"
}

fetch() {
	local deb found log=$LOGS/herd-root.log libs=usr/lib/x86_64-linux-gnu
	rm -rf "$work" "$out.tmp"
	mkdir -p "$work"/{root,apt/lists/partial,apt/archives/partial} "$LOGS"
	: >"$work/apt/status"
	awk -v suite="$suite" '{ print "deb", $2, suite, "main"; exit }' "$CACHE/sources.list" >"$work/sources.list"
	say "fetching herd7 $version (43 MB with all that it needs)"
	if ! { apt update && { apt install --yes --download-only "herdtools7=$version" || apt install --yes --download-only herdtools7; }; } \
		>"$log" 2>&1; then
		tail -n 5 "$log" >&2
		die "the package herdtools7 could not be fetched from the suite $suite; check the network (log: $log)"
	fi
	for deb in "$work"/apt/archives/*.deb; do
		dpkg-deb -x "$deb" "$work/root"
		case ${deb##*/} in herdtools7_*) found=$(dpkg-deb -f "$deb" Version) ;; esac
	done
	[[ $found == "$version" ]] ||
		note "note: the herd7 in scripts/pins/herd.source is no longer on the mirror; taking the newest, $found"
	mkdir -p "$out.tmp"
	mv "$work/root/usr/bin/herd7" "$work/root/usr/share/herdtools7/herd" "$work/root/$libs" "$out.tmp"
	mv "$out.tmp" "$out"
	rm -rf "$work"
}

if [[ ! -d $out ]]; then
	(
		lock "$CACHE/herd-root.lock"
		if [[ ! -d $out ]]; then fetch; fi
	) >&2
fi
printf '%s\n' "$out"
