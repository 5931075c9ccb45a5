#!/bin/bash
# run.sh [PATTERN]: builds everything and runs the demo on the emulated machine, or the
# rows of it with the pattern in their ids. Its table and its exit status are the
# demo's. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

"$REPO/scripts/host/image.sh" "${VARIANT:-rust}"
"$REPO/scripts/host/initrd.sh"
say "booting the ${VARIANT:-rust} kernel on an emulated machine with an SMMUv3 and an edu device"
# On the C kernel the page allocator warns of an array that user space made too large.
[[ ${VARIANT:-rust} != c ]] || export ALLOW=${ALLOW:-__alloc_frozen_pages}
NAME=run RUN="/vsmmu/vsmmu-demo${1:+ --only $1}" exec "$REPO/scripts/host/boot.sh"
