#!/bin/bash
# Runs the fuzz targets under libFuzzer, one after the other, for so many seconds each:
#
#     scripts/fuzz.sh [SECONDS [TARGET...]]
#
# What reaches new code is kept in FUZZ_DIR (target/fuzz); what crashes is named there. FUZZ_MERGE=1 afterwards replaces
# fuzz/corpus by the smallest inputs that reach as much. Exit status 3: there is no C++ compiler for libFuzzer.

set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
cargo=${CARGO:-cargo}
work=${FUZZ_DIR:-$PWD/target/fuzz}
most=50
host=$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')

if ! command -v "${CXX:-c++}" > /dev/null; then
    echo "fuzz: there is no C++ compiler (${CXX:-c++}) to build libFuzzer with" >&2
    exit 3
fi

# The instrumentation of cargo-fuzz, but for the sanitizer: these flags are stable, and nearly all of the code is safe.
flags="--cfg fuzzing -Cpasses=sancov-module"
for option in -sanitizer-coverage-level=4 -sanitizer-coverage-inline-8bit-counters -sanitizer-coverage-pc-table \
    -sanitizer-coverage-trace-compares -simplifycfg-branch-fold-threshold=0; do
    flags+=" -Cllvm-args=$option"
done
flags+=" -Ccodegen-units=1"
mkdir -p "$work"
# With a target, so that build scripts and macros are not instrumented.
RUSTFLAGS=$flags $cargo build --locked --release --target "$host" --manifest-path fuzz/Cargo.toml --target-dir "$work/build"
programs=$work/build/$host/release

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for source in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$source" .rs)")
    done
fi

status=0
printf '%-22s %12s %8s %9s %8s  %s\n' target executions edges features inputs result
for target in "${targets[@]}"; do
    found=$work/$target
    log=$work/$target.log
    mkdir -p "$found"
    result=ok
    "$programs/$target" -max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$work/$target-" "$found" "fuzz/corpus/$target" > "$log" 2>&1 || {
        result="FAILED, see $log"
        status=1
    }
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    reached=$(grep -a -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1 || true)
    read -r _ edges _ features <<< "${reached:-cov: 0 ft: 0}"
    printf '%-22s %12s %8s %9s %8s  %s\n' "$target" "${executions:-?}" "$edges" "$features" \
        "$(find "$found" -type f | wc -l)" "$result"
    if [ "${FUZZ_MERGE:-0}" = 1 ]; then
        merged=$work/$target.merged
        rm -rf "$merged"
        mkdir -p "$merged"
        # By edges alone, without how often: a tenth of the inputs for the same code.
        "$programs/$target" -set_cover_merge=1 -use_counters=0 -max_len=2048 "$merged" "$found" "fuzz/corpus/$target" \
            >> "$log" 2>&1
        # The seeds stay, and what crashed once; then as many others as there is room for, from the smallest to the largest.
        find "fuzz/corpus/$target" -type f ! -name 'seed-*' ! -name 'found-*' -delete
        room=$((most - $(find "fuzz/corpus/$target" -type f | wc -l)))
        all=$(find "$merged" -type f | wc -l)
        find "$merged" -type f -printf '%s %p\n' | sort -n |
            awk -v room=$room -v all="$all" 'all <= room || int(NR * room / all) > int((NR - 1) * room / all) { print $2 }' |
            xargs -r cp -t "fuzz/corpus/$target/"
    fi
done
exit $status
