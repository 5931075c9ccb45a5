#!/bin/bash
# Prints the path of a QEMU whose SMMUv3 raises command queue errors on demand:
# the Debian source package named in qemu.source with the patches of
# tools/qemu/faults, built into the cache if it is not there. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=../pins/qemu.source
. "$REPO/scripts/pins/qemu.source"

patches=$REPO/tools/qemu
mapfile -t series < <(grep '^faults/' "$patches/series")
key=$(cat "$REPO/scripts/pins/qemu.source" "$REPO/scripts/host/qemu.sh" "${series[@]/#/$patches/}" | sha256sum | cut -c1-12)
out=$CACHE/qemu-$key
# One place for whichever version, so that ccache sees the same paths.
work=$CACHE/qemu.tmp
src=$work/source

# Backports have other versions of QEMU: they are not to stand in for this one.
apt_dir=$CACHE/apt-src
apt() {
	mkdir -p "$apt_dir/lists/partial" "$apt_dir/archives/partial"
	sed -n '/-backports /!s/^deb /deb-src /p' /etc/apt/sources.list >"$apt_dir/sources.list"
	apt-get -q -o Dir::Etc::SourceList="$apt_dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State="$apt_dir" -o Dir::State::Lists="$apt_dir/lists" -o Dir::State::status=/var/lib/dpkg/status \
		-o Dir::Cache="$apt_dir" -o APT::Sandbox::User=root "$@"
}

apply() { # DIRECTORY-OF-PATCHES PATCH...
	local dir=$1 patch
	shift
	for patch; do
		patch -d "$src" -p1 -s -f --no-backup-if-mismatch <"$dir/$patch" ||
			die "$patch does not apply to QEMU $version"
	done
}

fetch() {
	local dsc got gone='' debian
	say "fetching the QEMU source $version (40 MB)"
	cd "$work"
	if ! { apt update && { apt source --download-only "qemu=$version" || { touch gone && apt source --download-only qemu; }; }; } \
		>"$LOGS/qemu-source.log" 2>&1; then
		tail -n 5 "$LOGS/qemu-source.log" >&2
		die "the source of QEMU could not be fetched; check the network (log: $LOGS/qemu-source.log)"
	fi
	[[ ! -e gone ]] || gone=1
	dsc=$(find . -maxdepth 1 -name 'qemu_*.dsc')
	if [[ $gone ]]; then
		version=$(awk '$1 == "Version:" { print $2; exit }' "$dsc")
		note "note: the QEMU in scripts/pins/qemu.source is no longer on the mirror; taking the newest of the release, $version"
	else
		got=$(sha256sum <"$dsc" | cut -d ' ' -f 1)
		[[ $got == "$sha256" ]] ||
			die "the checksum of ${dsc##*/} is $got, not $sha256 as in scripts/pins/qemu.source; run this again, and if it stays so do not use that mirror"
	fi
	awk '/^[^ ]/ { on = $1 == "Checksums-Sha256:" } on && NF == 3 { print $1 "  " $3 }' "$dsc" >sums
	if ! [[ -s sums ]] || ! sha256sum --quiet -c sums; then
		die "the checksums of the files are not those in ${dsc##*/}; run this again, and if it stays so do not use that mirror"
	fi
	say "unpacking the QEMU source"
	mkdir source
	# The sources of firmware are two thirds of the files, and nothing is built from them.
	tar -xf qemu_*.orig.tar.* -C source --strip-components=1 --exclude='*/roms/*'
	tar -xf qemu_*.debian.tar.* -C source
	mapfile -t debian < <(cd source/debian/patches && grep -vE '^(#|$)' series | xargs grep -LE '^\+\+\+ [^/]+/roms/')
	apply "$src/debian/patches" "${debian[@]}"
	apply "$patches" "${series[@]}"
}

configure() {
	# The devices of the tests; the package has no firmware to install.
	printf 'CONFIG_%s=y\n' ARM_VIRT PCIE_PORT EDU NVME_PCI VIRTIO_PCI VIRTIO_BLK VIRTIO_NET VIRTIO_RNG VIRTIO_SERIAL SERIAL_PCI \
		>"$src/configs/devices/aarch64-softmmu/vsmmu.mak"
	mkdir "$work/build"
	cd "$work/build"
	"$src/configure" --cc="$(command -v ccache >/dev/null && echo 'ccache ')gcc" --prefix="$out" \
		--target-list=aarch64-softmmu --without-default-features --without-default-devices --with-devices-aarch64=vsmmu \
		--enable-system --enable-tcg --enable-fdt=system --enable-trace-backends=log \
		--disable-docs --disable-tools --disable-debug-info --disable-download --disable-install-blobs \
		--firmwarepath=/usr/share/qemu:/usr/lib/ipxe/qemu
}

# With a status of blanks `logged` counts the lines.
compile() { NINJA_STATUS='  ' ninja -C "$work/build" qemu-system-aarch64 tests/qtest/smmuv3-faults-test; }

check() {
	cd "$work/build"
	QTEST_QEMU_BINARY=./qemu-system-aarch64 tests/qtest/smmuv3-faults-test
}

build() {
	local command
	for command in ninja meson pkg-config; do
		command -v "$command" >/dev/null || die "the build root has no $command; scripts/pins/root.packages should name what QEMU needs"
	done
	rm -rf "$work" "$out.tmp"
	mkdir -p "$work" "$LOGS"
	(fetch)
	logged qemu-config "configuring QEMU" configure || die "correct what configure says above and run this again"
	logged qemu "building QEMU" compile || die "correct what the compiler says above and run this again"
	logged qemu-test "testing the patches on QEMU" check || die "what the patches do is not what their test expects, see above"
	install -D -s -t "$out.tmp/bin" "$work/build/qemu-system-aarch64"
	mv "$out.tmp" "$out"
	rm -rf "$work"
}

if [[ ! -d $out ]]; then
	(
		lock "$CACHE/qemu.lock"
		if [[ ! -d $out ]]; then build; fi
	) >&2
fi
printf '%s\n' "$out/bin/qemu-system-aarch64"
