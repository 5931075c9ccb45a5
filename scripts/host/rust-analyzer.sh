#!/bin/bash
# rust-analyzer.sh: makes rust-project.json at the top of the repository, for editors. Its
# paths are the host's: files of ours are those here, the kernel's are in build/linux.
# Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

"$REPO/scripts/host/image.sh" rust
logged rust-analyzer "describing the kernel's crates" "$REPO/scripts/host/image.sh" rust rust-analyzer ||
	die "the kernel's own target rust-analyzer fails, see above"
mapfile -t ours < <("$REPO/scripts/host/tree.py" --list | grep '\.rs$')
script="s|\"/usr/|\"${VSMMU_INSIDE:-}/usr/|g"
for file in "${ours[@]}"; do script+=$'\n'"s|\"/build/linux/$file\"|\"$REPO/$file\"|g"; done
script+=$'\n'"s|/build/linux|$BUILD/linux|g"$'\n'"s|/build/rust|$BUILD/rust|g"
sed "$script" "$BUILD/rust/rust-project.json" >"$REPO/rust-project.json"
note "$REPO/rust-project.json: $(jq '.crates | length' "$REPO/rust-project.json") crates; open the repository in an editor with rust-analyzer"
