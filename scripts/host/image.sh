#!/bin/bash
# image.sh VARIANT [MAKE ARGUMENTS...]: configures and builds build/VARIANT from
# the tree that tree.sh made. Runs in the build root.
#
#	rust	arm64, the Rust path
#	c	arm64, the same with the Rust options off
#	debian-rust, debian-c	as these two, with the options of Debian's kernel
#	modular	arm64, iommufd, the SMMUv3 driver and VFIO as modules
#	lint	as rust, for make arguments that make other objects than the product's
#	x86_64	compiles drivers/iommu/iommufd/ only
#	c-TREE	compiles the C code of drivers/iommu/ in build/TREE
#	on-TREE	arm64, drivers/iommu/ in build/TREE with the Rust options that it has
#	off-TREE	the same with none of them
#	debug-NAME	as rust, with the checks of config/debug/NAME.config
#	cmdq	compiles drivers/iommu/ with the command queue in Rust and nothing else
#	kcov	as rust, with debug information, and with kcov in the objects of iommufd and
#		the SMMUv3 driver
#
# With make arguments, runs these instead of building the usual targets, and
# shows what they print.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

variant=$1
shift
out=/build/$variant
tree=/build/linux
arch=arm64
fragments=("$REPO/scripts/config/kernel.config" "$REPO/scripts/config/$variant.config")
targets=(Image)
settings=()
case $variant in
rust | c) ;;
debian-rust | debian-c)
	fragments[1]=$REPO/scripts/config/${variant#debian-}.config
	fragments+=("$REPO/scripts/config/debian.config")
	;;
lint) fragments[1]=$REPO/scripts/config/rust.config ;;
modular) targets=(Image modules) ;;
cmdq) targets=(drivers/iommu/) ;;
debug-*)
	fragments=("$REPO"/scripts/config/{kernel,rust,debug/"${variant#debug-}"}.config)
	[[ -e ${fragments[2]} ]] || die "there is no VARIANT=$variant, as there is no ${fragments[2]}"
	;;
kcov)
	fragments=("$REPO"/scripts/config/{kernel,rust,kcov}.config)
	# Make expands this in each directory.
	# shellcheck disable=SC2016
	settings=('KCOV_INSTRUMENT=$(if $(filter drivers/iommu/iommufd drivers/iommu/arm/arm-smmu-v3,$(obj)),y)')
	;;
on-* | off-*)
	tree=/build/${variant#*-} targets=(rust/ drivers/iommu/)
	mkdir -p "$out"
	fragments[1]=$out.config
	{
		echo CONFIG_WERROR=y
		if [[ $variant == on-* && -e $tree/drivers/iommu/Kconfig.rust ]]; then
			echo CONFIG_RUST_KUNIT_TESTS=y
			sed -n 's/^config \(.*\)/CONFIG_\1=y/p' "$tree/drivers/iommu/Kconfig.rust"
		fi
	} >"$out.config"
	;;
c-*) tree=/build/${variant#c-} fragments[1]=$REPO/scripts/config/c-only.config targets=(drivers/iommu/) ;;
x86_64) arch=x86_64 fragments=("$REPO/scripts/config/x86_64.config") targets=(drivers/iommu/iommufd/) ;;
*) die "there is no VARIANT=$variant; use rust or c (or modular, x86_64)" ;;
esac

kernel_make() {
	make -C "$tree" O="$out" ARCH="$arch" LLVM=-22 CC="ccache clang-22" \
		RUST_LIB_SRC=/usr/lib/rustlib/src/rust/library \
		KBUILD_BUILD_USER=vsmmu KBUILD_BUILD_HOST=vsmmu KBUILD_BUILD_VERSION=1 \
		KBUILD_BUILD_TIMESTAMP='1 Jan 2026' -j"$(nproc)" "${settings[@]}" "$@"
}

install_bindgen() {
	# The one in Debian does not understand this libclang.
	cargo install --locked --version "$(cat "$REPO/scripts/pins/bindgen.version")" bindgen-cli
}

bindgen_works() { [[ $(bindgen --version 2>/dev/null) == "bindgen $(cat "$REPO/scripts/pins/bindgen.version")" ]]; }

get_bindgen() (
	lock "$CACHE/bindgen.lock"
	bindgen_works || logged bindgen "building bindgen (2 minutes, once)" install_bindgen ||
		die "bindgen could not be built; check that the network reaches the Rust package registry, then run this again"
)

# Every option that the fragments ask for is really there.
check_config() {
	local line option wrong=0
	while read -r line; do
		case $line in
		CONFIG_*)
			option=${line%%=*}
			grep -qxF "$line" "$out/.config" && continue
			;;
		'# CONFIG_'*' is not set')
			option=${line#\# }
			option=${option%% *}
			grep -q "^$option=" "$out/.config" || continue
			;;
		*) continue ;;
		esac
		note "$line: $(grep -w "$option" "$out/.config" || echo "no such option, or what it depends on is not set")"
		wrong=1
	done <"$out/fragment"
	((!wrong)) || die "the configuration of $variant is not what scripts/config/*.config asks for, see above; add what is missing there, or correct the Kconfig"
}

configure() {
	# Of an option that stands in several fragments the last counts.
	cat "${fragments[@]}" | awk '
		{ option = "" }
		/^CONFIG_/ { option = substr($0, 1, index($0, "=") - 1) }
		/^# CONFIG_.* is not set$/ { option = $2 }
		option != "" { if (!(option in line)) order[++n] = option; line[option] = $0 }
		END { for (i = 1; i <= n; i++) print line[order[i]] }' >"$out/fragment"
	# Leaves .config alone when nothing is new.
	kernel_make -s KCONFIG_ALLCONFIG="$out/fragment" allnoconfig >"$LOGS/$variant-config.log" 2>&1 || {
		tail -n 15 "$LOGS/$variant-config.log" >&2
		die "the kernel could not be configured; see above and $LOGS/$variant-config.log"
	}
	check_config
}

mkdir -p "$out" "$LOGS"
lock "$BUILD/.lock"
bindgen_works || get_bindgen
configure
if (($#)); then
	kernel_make "$@"
else
	logged "$variant" "building the $variant kernel in build/$variant" kernel_make "${targets[@]}" ||
		die "correct what the compiler says above and run this again"
	if [[ ${targets[0]} == Image ]]; then
		cmp -s "$out/arch/arm64/boot/Image" "$out/Image" || cp "$out/arch/arm64/boot/Image" "$out/Image"
	fi
fi
