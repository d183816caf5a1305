#!/bin/sh
# Prints assignments for a release build: `eval "$(scripts/release-flags.sh)"`. Added to what the caller's variables have.
#
# - Paths: file names are in panics and in line tables. Source directory, target directory, cargo's home and the toolchain become
#   names that are the same on every machine, so that the same source makes the same bytes in any directory.
# - CFLAGS for the code in C: paths likewise, stack protector, _FORTIFY_SOURCE. rustc makes programs position independent with
#   RELRO, BIND_NOW and stack probes by itself; a stack protector and CET are not in its stable releases, nor is the standard
#   library built with them.
set -eu
export LC_ALL=C
source=$(realpath "$(dirname "$0")/..")
target=$(realpath -m "${CARGO_TARGET_DIR:-$source/target}")
home=$(realpath -m "${CARGO_HOME:-$HOME/.cargo}")
rustc=${RUSTC:-rustc}
sysroot=$($rustc --print sysroot)
commit=$($rustc -vV | sed -n 's/^commit-hash: //p')

rust= c=
# The last one that fits counts, for rustc and for gcc: from the general to the particular.
remap() {
    case "$1" in
    *" "*) echo "$0: a path with a blank: $1" >&2; exit 1 ;;
    esac
    rust="$rust --remap-path-prefix=$1=$2"
    c="$c -ffile-prefix-map=$1=$2"
}
remap "$home" /usr/src/cargo
# A directory for each registry; its name depends on how the registry is reached.
for registry in "$home"/registry/src/*/; do
    [ -d "$registry" ] || continue
    remap "${registry%/}" /usr/src/crates
    # What a link leads to is the directory that rustc says it ran in.
    real=$(realpath "$registry")
    [ "$real" = "${registry%/}" ] || remap "$real" /usr/src/crates
done
remap "$sysroot/lib/rustlib/src/rust" "/rustc/$commit"
remap "$source" /usr/src/nbdkitd
# Vendored crates, as `cargo vendor` puts them there.
remap "$source/vendor" /usr/src/crates
remap "$target" /usr/src/target

quote() {
    printf "%s='%s'; export %s\n" "$1" "$2" "$1"
}
quote RUSTFLAGS "${RUSTFLAGS:-}$rust"
quote CFLAGS "${CFLAGS:--fstack-protector-strong -D_FORTIFY_SOURCE=2}$c"
