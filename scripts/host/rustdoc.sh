#!/bin/bash
# rustdoc.sh: makes the documentation of the Rust code, into build/rustdoc: that of the
# kernel's crates by the kernel's own target, of which messages count that name a new or
# changed file, and that of the drivers with their private items, of which all count. Runs
# in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

out=/build/lint
drivers=(drivers/iommu/iommufd/hwpt_invalidate drivers/iommu/arm/arm-smmu-v3/arm_smmu_v3_rust)
mapfile -t patches < <(sed -n "s|^[^#[:space:]]|$REPO/patches/&|p" "$REPO/patches/series")
mapfile -t ours < <("$REPO/scripts/host/tree.py" --list; sed -n 's|^+++ b/||p' "${patches[@]}")

logged rustdoc-build "rustdoc: building what is documented" "$REPO/scripts/host/image.sh" lint rust/ "${drivers[@]/%/.o}"
logged rustdoc "rustdoc: the kernel's crates" "$REPO/scripts/host/image.sh" lint rustdoc
files=$(printf '%s|' "${ours[@]}")
if grep -E -B 3 -A 8 "(${files%|}):[0-9]+" "$LOGS/rustdoc.log" >&2; then die "rustdoc warns, see above"; fi

rm -rf "$BUILD/rustdoc"
mkdir -p "$BUILD/rustdoc"
cp -r "$out/Documentation/output/rust/rustdoc/." "$BUILD/rustdoc"
# With the flags of the compiler, but for those that say what it makes.
driver() { # OBJECT WITHOUT SUFFIX
	local command flags
	command=$(sed -n 's/^savedcmd_[^ ]* := \(.* rustc .*\.rs\) ;.*/\1/p' "$out/${1%/*}/.${1##*/}.o.cmd")
	flags=$(sed -E 's/ (--emit=[^ ]*|--out-dir [^ ]*|--crate-type [^ ]*|--remap-path-scope=[^ ]*)//g; s/ rustc / rustdoc /' <<<"$command")
	[[ $command && $flags != "$command" ]] || die "the command of $1 is not what was expected: $out/${1%/*}/.${1##*/}.o.cmd"
	# Its parts are quoted for a shell.
	(cd "$out" && RUSTC_BOOTSTRAP=1 bash -c "$flags --document-private-items -Drustdoc::all -Arustdoc::private_doc_tests -Arustdoc::private_intra_doc_links \
		-Cunsafe-allow-abi-mismatch=fixed-x18 --output $BUILD/rustdoc")
}
for name in "${drivers[@]}"; do
	logged "rustdoc-${name##*/}" "rustdoc: $name.rs" driver "$name"
done
note "the pages are $BUILD/rustdoc/kernel/index.html and $BUILD/rustdoc/arm_smmu_v3_rust/index.html"
