#!/bin/bash
# fuzz.sh [RUNS]: has libFuzzer play guests to the relay, and compares what they see
# with a model of the SMMU. What it learns is kept in build/fuzz. Runs in the build
# root.
#
# The compiler that builds user space has the instrumentation that cargo-fuzz asks
# for, but for the sanitizers, which code without unsafe does not need.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

target=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR=$BUILD/cargo/fuzz CXX=clang++
flags=(--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions
	-Cllvm-args=-sanitizer-coverage-{level=4,inline-8bit-counters,pc-table,trace-compares})
export RUSTFLAGS=${flags[*]}

build() { cd "$REPO/tools/vsmmu/relay/fuzz" && cargo build --release --locked --target $target; }

logged fuzz-build "building the fuzzer of the relay" build || die "correct what the compiler says above and run this again"
mkdir -p "$BUILD/fuzz"
"$CARGO_TARGET_DIR/$target/release/guest" -runs="${1:-200000}" -max_len=4096 -len_control=0 -timeout=60 \
	-artifact_prefix="$LOGS/fuzz-" -print_final_stats=1 "$BUILD/fuzz"
