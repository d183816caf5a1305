#!/bin/sh
# A disk of 1M in $tmpdir/disk that keeps a log of its calls in $tmpdir/log, for the tests of the sh plugin.
printf '%s ' "$@" >> "$tmpdir/log"
echo >> "$tmpdir/log"
case "$1" in
    load) : > "$tmpdir/disk" ;;
    magic_config_key) echo name ;;
    config)
        case "$2" in
            bad) echo "EINVAL bad parameter: $3" >&2; exit 1 ;;
            *) echo "$3" > "$tmpdir/$2" ;;
        esac ;;
    thread_model) echo parallel ;;
    dump_plugin) echo disk=yes ;;
    list_exports) echo INTERLEAVED; echo one; echo first; echo two; echo second ;;
    default_export) echo one ;;
    open) echo "handle of $3" ;;
    export_description) echo "disk $(cat "$tmpdir/name")" ;;
    get_size) echo 1M ;;
    block_size) echo 1 4K 1M ;;
    can_write | can_flush | can_zero | can_trim | can_extents) ;;
    can_fua | can_cache) echo native ;;
    is_rotational | can_multi_conn) exit 3 ;;
    pread) { dd if="$tmpdir/disk" skip="$4" count="$3" iflag=skip_bytes,count_bytes; cat /dev/zero; } | head -c "$3" ;;
    pwrite) dd of="$tmpdir/disk" seek="$4" conv=notrunc oflag=seek_bytes ;;
    zero) echo "EOPNOTSUPP not today" >&2; exit 1 ;;
    extents) echo "# all of it"; echo; echo 0 64K; echo 64K 1M hole,zero ;;
    trim | flush | cache | close | unload | config_complete | get_ready) ;;
    *) exit 2 ;;
esac
