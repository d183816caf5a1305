# Completion of nbdkit(1) for fish: see nbdkit.bash, which does the same.

set -g __nbdkit_plugins \
    cc data eval example1 example2 example3 file floppy full info iso linuxdisk memory nbd null \
    ondemand ones partitioning pattern random sh sparse-random split tmpdisk vhd zero
set -g __nbdkit_filters \
    blocksize blocksize-policy bzip2 cache cacheextents checkwrite count cow ddrescue delay error evil \
    exitlast exitwhen exportname extentlist fua gzip indexed-gzip ip limit log luks lzip map multi-conn \
    nocache noextents nofilter noparallel nozero offset openonce partition pause protect qcow2dec rate \
    readahead readonly retry retry-request rotational scan spinning stats swab tar time-limit \
    tls-fallback truncate xor xz zstd
# Options whose argument is the next word.
set -g __nbdkit_spaced

# Prints the names of all plugins, or filters.
function __nbdkit_names -a what
    set -l list __nbdkit_{$what}s
    printf '%s\n' $$list
    set -l directory (nbdkit --dump-config 2>/dev/null | string replace -rf "^$what"'dir=' '')
    set -l files $directory/nbdkit-*-$what.so $directory/nbdkit-*-$what
    string replace -rf '.*/nbdkit-(.*)-'$what'(\.so)?$' '$1' -- $files
end

# Prints what may stand for an argument that the help writes as `spec`, with `prefix` before it.
function __nbdkit_values -a spec prefix typed
    switch $spec
        case '<BOOL>*'
            printf '%s\n' $prefix{true,false}
        case '*|*'
            printf '%s\n' $prefix(string split '|' -- $spec | string match -r '^[a-z0-9-].*')
    end
    if string match -qr 'PATH|path|FILE|DIR|SOCKET|^SCRIPT' -- $spec
        printf '%s\n' $prefix(__fish_complete_path $typed)
    end
end

# Prints what has been typed of an option's argument.
function __nbdkit_argument
    commandline -ct | string replace -r '^--[a-z0-9-]+=' ''
end

# Prints plugins, or parameters of the plugin and the filters that have been typed.
function __nbdkit_operands
    set -l plugin
    set -l filters
    set -l skip
    for word in (commandline -opc)[2..-1]
        if set -q skip[1]
            set -e skip
        else if string match -q -- '--filter=*' $word
            string match -q '*/*' -- $word; or set -a filters $word
        else if string match -q -- '-*' $word
            contains -- $word $__nbdkit_spaced; and set skip 1
        else if not set -q plugin[1]
            set plugin $word
        end
    end
    set -l typed (commandline -ct)
    if not set -q plugin[1]
        __nbdkit_names plugin
        __fish_complete_path $typed
        return
    end
    # Code in a file that was only typed is not loaded.
    if not string match -q '*/*' -- $plugin
        set -l help (nbdkit --help $filters $plugin </dev/null 2>/dev/null | string collect)
        for line in (string split \n -- $help | string match -v -r '^ ')
            set -l found (string match -r '^\[?([A-Za-z][A-Za-z0-9_|-]*)=\]?([^ ]*)' -- $line)
            or continue
            for key in (string split '|' -- $found[2])
                if string match -q -- "$key=*" $typed
                    __nbdkit_values "$found[3]" $key= (string replace -- $key= '' $typed)
                    return
                end
                echo $key=
            end
        end
    end
    __fish_complete_path $typed
end

complete -c nbdkit -f -a '(__nbdkit_operands)'

for line in (nbdkit --help 2>/dev/null)
    set -l found (string match -r '^ +((?:-.(?=,))?),? *--([a-z0-9-]+)([= ]?)([^ ]*)(?: \.\.\.)? *(.*)' -- $line)
    or continue
    set -l option -l $found[3]
    test -z "$found[2]"; or set -a option -s (string sub -s 2 -- $found[2])
    test -z "$found[6]"; or set -a option -d $found[6]
    set -l spec $found[5]
    if test -z "$spec"
        complete -c nbdkit $option
        continue
    end
    if test "$found[4]" = ' '
        set -a __nbdkit_spaced --$found[3]
        test -z "$found[2]"; or set -a __nbdkit_spaced $found[2]
    end
    switch $spec
        case USER
            complete -c nbdkit $option -x -a '(__fish_complete_users)'
        case GROUP
            complete -c nbdkit $option -x -a '(__fish_complete_groups)'
        case FILTER
            complete -c nbdkit $option -x -a '(__nbdkit_names filter)'
        case '*'
            complete -c nbdkit $option -x -a "(__nbdkit_values '"(string replace -a "'" '' -- $spec)"' '' (__nbdkit_argument))"
    end
end
