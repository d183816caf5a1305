#!/bin/sh
# Builds the RPM packages from what is in this tree, into a directory. Where the distribution is not
# one of RPM's, its packages are not asked for what the build needs. The same tree makes the same
# packages: they are dated as the last commit.
# usage: rpm.sh DIRECTORY
set -eu
[ $# = 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/.."

version=$(sed -n 's/^Version: *//p' packaging/nbdkitd.spec)
grep -qx "version = \"$version\"" Cargo.toml ||
    { echo "$0: packaging/nbdkitd.spec is of version $version, and Cargo.toml of another" >&2; exit 1; }

top=$out/top
rm -rf "$top" "$out"/*.rpm
mkdir -p "$top/SOURCES" "$top/SPECS"
if [ -e .git ]; then
    : "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
    files() { git ls-files -z --cached --others --exclude-standard; }
else
    : "${SOURCE_DATE_EPOCH:=$(stat -c %Y Cargo.lock)}"
    files() { find . -path ./target -prune -o -path "$out" -prune -o ! -type d -print0; }
fi
export SOURCE_DATE_EPOCH
files | LC_ALL=C sort -z | tar -c --null -T - --ignore-failed-read --transform "s|^\(\./\)*|nbdkitd-$version/|" \
    --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" | gzip -n > "$top/SOURCES/nbdkitd-$version.tar.gz"
cp systemd/nbdkitd.sysusers "$top/SOURCES/"
cp packaging/nbdkitd.spec "$top/SPECS/"

# Beside the source, so that the next build compiles what has changed.
export CARGO_TARGET_DIR="$out/objects"

set -- --define "_topdir $top" --define "_buildhost localhost" --define "source_date_epoch_from_changelog 0" \
    --define "clamp_mtime_to_source_date_epoch 1" --define "use_source_date_epoch_as_buildtime 1"
[ "$(rpm -E '%{?_unitdir}')" ] || set -- --load="$PWD/packaging/rpm-macros" "$@"
# What Debian calls them is not what the spec asks for; install-packages.sh has seen to them.
rpm -q rust > /dev/null 2>&1 || set -- --nodeps "$@"
[ -e /usr/share/selinux/devel/Makefile ] || set -- --without selinux "$@"
rpmbuild "$@" -ba "$top/SPECS/nbdkitd.spec"
find "$top/RPMS" "$top/SRPMS" -name '*.rpm' -exec mv -t "$out" {} +
ls -l "$out"/*.rpm
