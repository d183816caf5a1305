#!/bin/sh
# Builds the Debian packages that scenarios install: the first version, and for an upgrade a second
# one of the same sources, whose number of the build is another (NBDKIT_VERSION_EXTRA).
# usage: packages.sh DIRECTORY 1 | 2
# Packages of version N are in DIRECTORY/N then.
set -eu
here=$(realpath "$(dirname "$0")")
top=$(realpath "$here/../..")
mkdir -p "$1"
directory=$(realpath "$1")
log=$directory/build.log

# Moves the packages that packaging/deb.sh has made to the directory of version $1.
collect() {
    rm -rf "${directory:?}/$1"
    mkdir "$directory/$1"
    for name in nbdkitd nbdkitd-filter-ext2; do
        mv "$directory/${name}_"*"-$1_"*.deb "$directory/$1/"
    done
    rm -f "$directory"/*.deb
}

# Builds the second version, from a copy of the tree with one more entry in its changelog.
second() {
    tree=$directory/second
    rm -rf "$tree"
    mkdir "$tree"
    (cd "$top" && tar -c --exclude=./.git --exclude=./target --exclude="$directory" .) | tar -x -C "$tree"
    changelog=$tree/packaging/debian/changelog
    sed -n '1s/-1)/-2)/p' "$changelog" > "$directory/changelog"
    printf '\n  * Another build.\n\n' >> "$directory/changelog"
    sed -n '/^ -- /{p;q}' "$changelog" >> "$directory/changelog"
    echo >> "$directory/changelog"
    cat "$changelog" >> "$directory/changelog"
    mv "$directory/changelog" "$changelog"
    # The same directory for what is compiled, where some of it is there already.
    # Last, since its status is this function's.
    NBDKIT_VERSION_EXTRA=second "$tree/packaging/deb.sh" "$directory"
}

# Whether the packages of version $1 are there and of the present sources.
current() {
    [ -e "$directory/$1/complete" ] && [ "$(cat "$directory/$1/complete")" = "$sources" ]
}

cd "$top"
sources=$(find . \( -name .git -o -path ./target -o -path ./tests -o -path "$directory" \) -prune -o -type f -print0 | sort -z |
    xargs -0 sha256sum | sha256sum)
for version in 1 2; do
    [ "$version" -le "$2" ] || continue
    current "$version" && continue
    echo "making packages of version $version: some minutes"
    scripts/install-packages.sh package
    if [ "$version" = 1 ]; then packaging/deb.sh "$directory"; else second; fi > "$log" 2>&1 ||
        { echo "$0: no packages, see $log: $(tail -1 "$log")" >&2; exit 1; }
    rm -rf "$directory/second"
    collect "$version"
    echo "$sources" > "$directory/$version/complete"
done
