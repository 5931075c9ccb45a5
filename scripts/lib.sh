# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the scripts that source this one
# Sourced by the other scripts: paths, messages, locks, logged steps.

set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/vsmmu
BUILD=$REPO/build
LOGS=$BUILD/logs
SERIES=7.3

say() { printf '%s\n' "==> $*" >&2; }
note() { printf '%s\n' "    $*" >&2; }
die() {
	printf '%s\n' "error: $*" >&2
	exit 1
}

# lock NAME-OF-LOCK-FILE: holds it until this (sub)shell ends.
lock() {
	local fd
	mkdir -p "$(dirname "$1")"
	exec {fd}>>"$1"
	if ! flock -n "$fd"; then
		note "waiting for another make that holds $1"
		flock "$fd"
	fi
}

# objects LOG: how many lines of a kernel or cargo build's log made something.
objects() {
	grep -cE '^ +([A-Z]+( [A-Z])? |Compiling )' "$1" || true
}

# logged NAME WHAT COMMAND...: runs it with its output in build/logs/NAME.log,
# tells every 20 seconds how far it is, and shows the errors in the log if it fails.
logged() {
	local name=$1 what=$2 log=$LOGS/$1.log pid rc=0 start=$SECONDS next=20
	shift 2
	mkdir -p "$LOGS"
	say "$what"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if ((SECONDS - start >= next)); then
			next=$((next + 20))
			note "$name: $((SECONDS - start)) s, $(objects "$log") objects"
		fi
	done
	wait "$pid" || rc=$?
	if ((rc)); then
		{
			printf '%s\n' "--- from $log"
			# What went wrong may be far above what else was running at that moment.
			grep -m 8 -nE -A 6 '(^|[ :])(fatal )?error(\[|:)|undefined (symbol|reference)' "$log" || tail -n 30 "$log"
			printf '%s\n' "--- $what failed (status $rc); the whole log is in $log"
		} | sed "s|/build/linux/|build/linux/|g" >&2
		return "$rc"
	fi
	((SECONDS - start < 5)) || note "done in $((SECONDS - start)) s"
}

# apt_arm64 DIRECTORY ARGUMENT...: apt-get as on an arm64 machine on which nothing is
# installed, and whose state is in there.
apt_arm64() {
	local dir=$1
	shift
	mkdir -p "$dir"/{lists/partial,archives/partial}
	: >"$dir/status"
	apt-get -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Install-Recommends=false \
		-o Dir::State="$dir" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir" -o APT::Sandbox::User=root "$@"
}
