#!/bin/sh
# Unpacks Debian's nbdkit-plugin-guestfs into a directory, for the test that loads it: the package cannot be installed, since
# the system emulators that it depends on conflict with qemu-utils, which other tests use. The libraries that it needs
# and that are not installed come with it.
# usage: unpack-guestfs-plugin.sh DIRECTORY
set -eu

directory=${1:?"usage: $0 DIRECTORY"}
[ ! -e "$directory/complete" ] || exit 0
mkdir -p "$directory/packages"
cd "$directory/packages"
if ! apt-get download -q nbdkit-plugin-guestfs libguestfs0 libhivex0 libyara9 libfuse2; then
    echo "$0: nbdkit-plugin-guestfs cannot be had, its test will be skipped" >&2
    exit 0
fi
for package in *.deb; do
    dpkg -x "$package" ../root
done
touch ../complete
