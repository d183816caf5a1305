#!/bin/sh
# Builds the Debian packages from what is in this tree, into a directory: usage: deb.sh DIRECTORY
# The same tree makes the same packages: their files are dated as the last commit, or as the last entry of debian/changelog.
set -eu
[ $# = 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/.."

version=$(sed -n '1s/.*(\(.*\)-[^-]*).*/\1/p' packaging/debian/changelog)
grep -qx "version = \"$version\"" Cargo.toml ||
    { echo "$0: packaging/debian/changelog is of version $version, and Cargo.toml of another" >&2; exit 1; }

source=$out/nbdkitd-$version
rm -rf "$source"
mkdir "$source"
if [ -e .git ]; then
    git ls-files -z --cached --others --exclude-standard | tar -c --null -T - --ignore-failed-read | tar -x -C "$source"
    : "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
else
    tar -c --exclude=./target --exclude="$out" . | tar -x -C "$source"
    : "${SOURCE_DATE_EPOCH:=$(dpkg-parsechangelog -l packaging/debian/changelog -S Timestamp)}"
fi
export SOURCE_DATE_EPOCH
mv "$source/packaging/debian" "$source/debian"
# Files that are installed as they are keep their dates.
find "$source" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

# Beside the source, so that the next build compiles what has changed.
export CARGO_TARGET_DIR="$out/objects"

# Rust may come from elsewhere than Debian, which dpkg cannot know; install-packages.sh has seen to the others.
checks=
dpkg-query -W -f '${db:Status-Status}' rustc 2>/dev/null | grep -qx installed || checks=-d
cd "$source"
dpkg-buildpackage $checks -b -us -uc --buildinfo-option=-u"$out"
ls -l "$out"/*.deb
