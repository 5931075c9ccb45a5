#!/bin/bash
# docs.sh: makes the new pages of the kernel's documentation, with the kernel's own
# Sphinx configuration, into build/docs/html. Warnings are errors. Also looks whether
# each page is in a table of contents, and whether the kernel understands the new
# files of its ABI documentation. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

tree=$BUILD/linux
source=$BUILD/docs/Documentation
html=$BUILD/docs/html

# Sphinx, in an environment of its own in the cache. Prints its directory.
sphinx() {
	local list=$REPO/scripts/pins/docs.requirements env
	env=$CACHE/sphinx-$(sha256sum <"$list" | cut -c1-12)
	(
		lock "$CACHE/sphinx.lock"
		[[ ! -d $env ]] || exit 0
		rm -rf "$env.tmp"
		logged sphinx "fetching Sphinx (30 MB)" bash -c "
			set -e
			python3 -m venv '$env.tmp'
			'$env.tmp/bin/pip' install --require-hashes --only-binary :all: -r '$list'" &&
			mv "$env.tmp" "$env"
	) >&2 && printf '%s\n' "$env"
}

env=$(sphinx) || die "Sphinx could not be fetched; check the network (log: $LOGS/sphinx.log)"
mapfile -t pages < <("$REPO/scripts/host/tree.py" --list | sed -n 's|^Documentation/\(.*\)\.rst$|\1|p')
mapfile -t abi < <("$REPO/scripts/host/tree.py" --list | grep '^Documentation/ABI/')
((${#pages[@]} && ${#abi[@]}))

# A tree of these pages alone, as others have warnings of their own. They are named
# as in the kernel's, so that references among them are the same.
rm -rf "$BUILD/docs"
mkdir -p "$source/ABI"
# What extensions look for beside the tree.
ln -s "$tree/MAINTAINERS" "$BUILD/docs"
{
	printf '%s\n' 'The new pages' '=============' '' '.. toctree::' ''
	for page in "${pages[@]}"; do
		mkdir -p "$(dirname "$source/$page")"
		cp "$tree/Documentation/$page.rst" "$source/$page.rst"
		printf '   %s\n' "$page"
		index=$tree/Documentation/$(dirname "$page")/index.rst
		grep -q "^ \+$(basename "$page")\(\.rst\)\?\$" "$index" || die "$page is in no table of contents: $index"
	done
} >"$source/index.rst"

# Run by its module: a script of the environment has the name that it was made under.
logged docs "docs: ${#pages[@]} pages, with the kernel's Sphinx configuration" \
	env srctree="$tree" PYTHONDONTWRITEBYTECODE=1 \
	"$env/bin/python3" -m sphinx -b html -w "$BUILD/docs/warnings" -c "$tree/Documentation" -d "$BUILD/docs/doctrees" \
	-D version="$SERIES" -D release="$SERIES" "$source" "$html"

# No page has a figure, for which it would want graphviz. The second is what it finds in
# the ABI documentation of others, to which it makes links.
if grep -v -e 'dot(1) not found' -e 'is defined 2 times: .*/ABI/' "$BUILD/docs/warnings" >&2; then die "Sphinx warns of the new pages"; fi

for file in "${abi[@]}"; do cp "$tree/$file" "$source/ABI"; done
logged docs-abi "docs: ${#abi[@]} file of the ABI documentation" \
	env PYTHONDONTWRITEBYTECODE=1 "$env/bin/python3" "$tree/tools/docs/get_abi.py" --dir "$source/ABI" validate
[[ ! -s $LOGS/docs-abi.log ]] || { cat "$LOGS/docs-abi.log" >&2; die "the kernel finds fault with the ABI documentation"; }
note "the pages are $html/index.html"
