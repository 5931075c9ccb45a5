#!/bin/bash
# run.sh: builds everything and runs the demo on the emulated machine. Its table
# and its exit status are the demo's. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

"$REPO/scripts/image.sh" "${VARIANT:-rust}"
"$REPO/scripts/initrd.sh"
say "booting the ${VARIANT:-rust} kernel on an emulated machine with an SMMUv3 and an edu device"
NAME=run RUN=/vsmmu/vsmmu-demo exec "$REPO/scripts/boot.sh"
