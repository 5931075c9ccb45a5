#!/bin/bash
# initrd.sh: builds the user-space programs and the initrd (build/initrd.cpio)
# and the replacement ACPI table (build/acpi.cpio); with INITRD set, which takes
# that initrd's place, only the latter. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

export CARGO_TARGET_DIR=$BUILD/cargo
target=aarch64-unknown-linux-gnu

cross_build() { cd "$REPO/tools/vsmmu" && cargo build --release --locked --target "$target"; }

pack() { # DIRECTORY: prints it as a cpio archive
	(cd "$1" && find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0)
}

mkdir -p "$BUILD"
lock "$BUILD/.initrd.lock"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! iasl -p "$work/IORT" "$REPO/scripts/config/iort.asl" >"$work/iasl.log" 2>&1; then
	cat "$work/iasl.log" >&2
	die "scripts/config/iort.asl does not compile, see above"
fi
mkdir -p "$work/acpi/kernel/firmware/acpi"
cp "$work/IORT.aml" "$work/acpi/kernel/firmware/acpi/"
pack "$work/acpi" >"$BUILD/acpi.cpio.tmp"
mv "$BUILD/acpi.cpio.tmp" "$BUILD/acpi.cpio"
[[ ! ${INITRD-} ]] || exit 0

mkdir -p "$work/root/bin" "$work/root/dev" "$work/root/vsmmu"

if [[ -e $REPO/tools/vsmmu/Cargo.toml ]]; then
	logged userspace "building the user-space programs" cross_build ||
		die "correct what the compiler says above and run this again"
	find "$BUILD/cargo/$target/release" -maxdepth 1 -type f -executable -exec cp -t "$work/root/vsmmu" {} +
fi
cp /bin/busybox "$work/root/bin/"
cp "$REPO/scripts/guest/init" "$work/root/init"
chmod +x "$work/root/init"
pack "$work/root" >"$BUILD/initrd.cpio.tmp"
mv "$BUILD/initrd.cpio.tmp" "$BUILD/initrd.cpio"
