#!/bin/sh
# Prints what the installed programs contain of other authors: each crate with its license and the texts that come with it.
# Where crates are: cargo's home, or vendor/.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
home=${CARGO_HOME:-$HOME/.cargo}

crates=$($cargo tree --locked --offline --edges normal,build --prefix none --format '{p}|{l}' \
    -p nbdkitd -p nbdkit-worker -p nbdkit-spawner -p nbdkit-ext2-filter |
    sed -n 's/ (\*)$//; s/^\([^ ]*\) v\([^ |]*\)[^|(]*|\(.*\)$/\1 \2 \3/p' | LC_ALL=C sort -u)
[ -n "$crates" ]

echo "$crates" | while read -r name version license; do
    [ "$license" != "${license#*[A-Za-z]}" ] || { echo "$0: $name: no license" >&2; exit 1; }
    printf '%s\n\n%s %s: %s\n' "-----" "$name" "$version" "$license"
    directory=
    for candidate in "$home"/registry/src/*/"$name-$version" vendor/"$name-$version" vendor/"$name"; do
        [ ! -d "$candidate" ] || directory=$candidate
    done
    [ -n "$directory" ] || { echo "$0: $name: no source" >&2; exit 1; }
    for text in "$directory"/LICENSE* "$directory"/LICENCE* "$directory"/COPYING* "$directory"/NOTICE*; do
        [ ! -f "$text" ] || { echo; cat "$text"; }
    done
done
