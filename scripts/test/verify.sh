#!/bin/bash
# verify.sh [PART...]: checks parts of the driver exhaustively, or by proof, in user space; the
# given parts of that only. With LONG=1 there are more inputs. Ends with a table and "N passed, N
# failed"; fails if any did. Runs in the build root.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

tier=$([[ ${LONG-} ]] && echo long || echo quick)
# Every part leaves its rows here: what, bound, states or inputs, seconds, ok or FAILED.
out=$BUILD/verify/rows
verify=$REPO/tools/verify

row() { # WHAT BOUND INPUTS SECONDS RESULT
	(IFS=$'\t' && printf '%s\n' "$*")
}

cargo_build() { # NAME ARGUMENTS...
	local name=$1
	shift
	logged "verify-build-$name" "verify: building the checks ($name)" \
		bash -c "cd '$verify' && cargo build --locked $*"
}

# The prover's Python packages, in an environment of their own in the cache.
python() {
	local list=$verify/sanitiser/requirements.txt env
	env=$CACHE/prover-$(sha256sum <"$list" | cut -c1-12)
	(
		lock "$CACHE/prover.lock"
		[[ ! -d $env ]] || exit 0
		rm -rf "$env.tmp"
		# Two of the packages are built here, by the setuptools of the list.
		logged prover "fetching the prover (500 MB)" bash -c "
			set -e
			python3 -m venv '$env.tmp'
			'$env.tmp/bin/pip' install --require-hashes -r <(grep '^setuptools=' '$list')
			'$env.tmp/bin/pip' install --require-hashes --no-build-isolation -r '$list'" &&
			mv "$env.tmp" "$env"
	) >&2 && "$env/bin/python3" "$@"
}

part_sanitiser() {
	cargo_build x86_64 --release --package verify-sanitiser && "$CARGO_TARGET_DIR/release/verify-sanitiser" "$tier"
}

# On the architecture of the kernel.
part_proof() {
	local target=aarch64-unknown-linux-gnu
	cargo_build arm64 --release --package verify-sanitiser --lib --target $target &&
		python "$verify/sanitiser/prove.py" "$CARGO_TARGET_DIR/$target/release/libverify_sanitiser.so" \
			verify_rust verify_reference
}

part_faults() {
	python "$verify/sanitiser/faults.py" "$tier" 2>"$LOGS/verify-faults.found" || {
		tail -n 20 "$LOGS/verify-faults.found" >&2
		return 1
	}
}

# The KUnit tests of the command queue, with its own code. Those with threads take a minute.
part_queue() {
	local log=$LOGS/verify-queue.log start=$SECONDS skip=() passed
	[[ $tier == long ]] || skip=(--skip concurrent)
	if (cd "$verify" && cargo test --release --locked --package verify-queue --lib -- "${skip[@]}") >"$log" 2>&1; then
		passed=$(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1/p' "$log")
		row "command queue: KUnit tests in user space" "$([[ $tier == long ]] && echo all || echo "all but those with threads")" "$passed tests" $((SECONDS - start)) ok
	else
		grep -A 30 '^failures:' "$log" >&2 || tail -n 30 "$log" >&2
		return 1
	fi
}

# The same code under the schedules of a model checker.
part_schedules() {
	local log=$LOGS/verify-schedules.log count=60000 kind
	[[ $tier != long ]] || count=1000000
	cargo_build schedules --profile model --package verify-queue --features shuttle || return
	for kind in random pct; do
		"$CARGO_TARGET_DIR/model/queue-shuttle" $kind $count 1 2>"$log" || {
			grep -E 'panicked at|^queue: ' -A 1 "$log" >&2
			return 1
		}
	done
}

# The same code under all orders, in what is small enough for that.
part_loom() {
	local log=$LOGS/verify-loom.log
	cargo_build loom --profile model --package verify-queue --features loom || return
	"$CARGO_TARGET_DIR/model/queue-loom" "$tier" 2>"$log" || {
		grep -E 'panicked at|^queue: ' -A 1 "$log" >&2
		return 1
	}
}

# Mistakes in the command queue, which the parts about it have to find.
part_mutations() {
	local log=$LOGS/verify-mutations.found
	if ! python3 "$verify/queue/mutations_test.py" >"$log" 2>&1 ||
		! python3 "$verify/queue/mutations.py" "$tier" 2>"$log"; then
		tail -n 20 "$log" >&2
		return 1
	fi
}

# libFuzzer, with the instrumentation that cargo-fuzz asks for, of which the compiler that builds
# the kernel has all but the sanitizers.
part_fuzz() {
	local runs=500000 log=$LOGS/verify-fuzz.log target=x86_64-unknown-linux-gnu start
	[[ $tier != long ]] || runs=200000000
	local CARGO_TARGET_DIR=$CARGO_TARGET_DIR/fuzz
	local flags=(--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1
		-Cllvm-args=-sanitizer-coverage-{level=4,inline-8bit-counters,pc-table,trace-compares})
	export RUSTFLAGS=${flags[*]}
	cargo_build fuzz --release --package verify-fuzz --target $target || return
	start=$SECONDS
	# Nine bytes for the SMMU and the guest, and commands.
	if "$CARGO_TARGET_DIR/$target/release/verify-fuzz" -seed=1 -runs=$runs -max_len=$((9 + 63 * 16)) \
		-artifact_prefix="$LOGS/verify-fuzz-" >"$log" 2>&1; then
		row "sanitiser: blocks of up to 63, by libFuzzer" "seed 1, $(sed -n 's/.*DONE *\(cov: [0-9]*\).*/\1/p' "$log")" \
			$runs $((SECONDS - start)) ok
	else
		tail -n 40 "$log" >&2
		return 1
	fi
}

# litmus WHAT FOLDER ARGUMENTS...: runs the litmus tests of a folder, each of which has to end as
# it says itself.
litmus() {
	local what=$1 folder=$2 root file text expected states=0 start=$SECONDS bad=0
	local -A results=([Never]=0 [Sometimes]=0)
	shift 2
	root=$("$REPO/scripts/host/herd-root.sh") || return
	for file in "$folder"/*.litmus; do
		expected=$(sed -n 's/^ \* Result: //p' "$file")
		text=$("$root/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$root/x86_64-linux-gnu" \
			"$root/herd7" -set-libdir "$root/herd" "$@" "$file" 2>&1) || true
		printf '%s\n' "$text" >>"$LOGS/verify-litmus.log"
		if [[ $expected && $(sed -n 's/^Observation [^ ]* \([A-Za-z]*\) .*/\1/p' <<<"$text") == "$expected" ]]; then
			results[$expected]=$((results[$expected] + 1))
			states=$((states + $(sed -n 's/^States //p' <<<"$text")))
		else
			bad=$((bad + 1))
			note "${file##*/} is not $expected: $LOGS/verify-litmus.log"
		fi
	done
	row "litmus tests: $what" "${results[Never]} forbidden, ${results[Sometimes]} that must not be" "$states states" \
		$((SECONDS - start)) "$( ((bad == 0 && results[Never] && results[Sometimes])) && echo ok || echo FAILED)"
	((bad == 0))
}

part_litmus() {
	rm -f "$LOGS/verify-litmus.log"
	(cd "$KERNEL_SOURCE/tools/memory-model" &&
		litmus "the kernel's memory model" "$REPO/Documentation/litmus-tests/arm-smmu-v3" -conf linux-kernel.cfg)
	litmus "the memory model of arm64" "$verify/litmus"
}

all=(litmus sanitiser proof faults queue schedules loom mutations)
[[ $tier != long ]] || all+=(fuzz)
(($#)) || set -- "${all[@]}"
for part in "$@"; do
	declare -F "part_$part" >/dev/null || die "there is no part $part; use: litmus sanitiser proof faults queue schedules loom mutations fuzz"
done

KERNEL_SOURCE=$("$REPO/scripts/host/source.sh")
export KERNEL_SOURCE DRIVER_SOURCE=$REPO/drivers/iommu/arm/arm-smmu-v3 CARGO_TARGET_DIR=$BUILD/verify
lock "$BUILD/.verify.lock"
rm -rf "$out"
mkdir -p "$out" "$LOGS"
for part in "$@"; do
	say "verify: $part"
	("part_$part") >"$out/$part" || {
		# What ends without a row is one that failed.
		grep -q 'FAILED$' "$out/$part" || row "$part" "" "" "" FAILED >>"$out/$part"
	}
done

echo
(cd "$out" && cat "$@") | awk -F '\t' '
	BEGIN { printf "%-56s %-62s %18s %8s  %s\n", "what", "bound", "states or inputs", "seconds", "result" }
	{ printf "%-56s %-62s %18s %8s  %s\n", $1, $2, $3, $4, $5; if ($5 == "ok") passed++; else failed++ }
	END { printf "\n%d passed, %d failed\n", passed, failed; exit failed || !passed }'
