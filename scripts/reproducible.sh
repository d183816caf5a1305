#!/bin/sh
# Builds this tree twice, in two directories, with two names for cargo's home, and compares all that is installed, line tables
# included, byte by byte. Some ten minutes on two processors. usage: reproducible.sh [DIRECTORY FOR THE BUILDS]
set -eu
cd "$(dirname "$0")/.."
make=${MAKE:-make}
home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    work=$(realpath "$1")
else
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/nbdkitd-reproducible.XXXXXX")
    trap 'rm -rf "$work"' EXIT
fi

directories="a/first b/quite/another/one"
# Both copies before the first build, which takes long enough for somebody to go on editing.
for directory in $directories; do
    tree=$work/$directory
    rm -rf "$tree"
    mkdir -p "$tree/tree" "$tree/cargo"
    if [ -e .git ]; then
        git ls-files -z --cached --others --exclude-standard | tar -c --null -T - --ignore-failed-read | tar -x -C "$tree/tree"
    else
        tar -c --exclude=./target . | tar -x -C "$tree/tree"
    fi
    # The crates, under another name.
    for entry in "$home"/*; do
        case ${entry##*/} in bin) ;; *) ln -s "$entry" "$tree/cargo/" ;; esac
    done
done

# Settings of this build must not reach those.
unset MAKEFLAGS MAKELEVEL RUSTFLAGS CFLAGS 2>/dev/null || true
for directory in $directories; do
    tree=$work/$directory
    CARGO_HOME=$tree/cargo CARGO_TARGET_DIR=$tree/objects CARGO_NET_OFFLINE=true \
        $make -C "$tree/tree" build modules PREFIX=/usr
    CARGO_TARGET_DIR=$tree/objects $make -C "$tree/tree" install PREFIX=/usr STRIP= DESTDIR="$tree/installed" > /dev/null
done

diff -r --no-dereference "$work/a/first/installed" "$work/b/quite/another/one/installed"
# Neither has a path of this machine.
if grep -rlF -e "$work" -e "$home" "$work/a/first/installed"; then
    echo "$0: these have paths of this machine" >&2
    exit 1
fi
echo "the same bytes:"
cd "$work/a/first/installed"
find usr/bin usr/libexec usr/lib/nbdkit/filters/nbdkit-ext2-filter.so -type f -exec sha256sum {} +
