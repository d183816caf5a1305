# Completion of nbdkit(1) for bash. Options and their values come from "nbdkit --help", parameters from "nbdkit --help" with
# the plugin and the filters that have been typed. The built-in plugins and filters are named here, those that are files are
# looked for in plugindir and filterdir.

_nbdkit_plugins='
    cc data eval example1 example2 example3 file floppy full info iso linuxdisk memory nbd null
    ondemand ones partitioning pattern random sh sparse-random split tmpdisk vhd zero'
_nbdkit_filters='
    blocksize blocksize-policy bzip2 cache cacheextents checkwrite count cow ddrescue delay error evil
    exitlast exitwhen exportname extentlist fua gzip indexed-gzip ip limit log luks lzip map multi-conn
    nocache noextents nofilter noparallel nozero offset openonce partition pause protect qcow2dec rate
    readahead readonly retry retry-request rotational scan spinning stats swab tar time-limit
    tls-fallback truncate xor xz zstd'

# Prints the names of all plugins, or filters.
_nbdkit_names() {
    local what=$1 directory file list=_nbdkit_${1}s IFS=$' \n'
    printf '%s\n' ${!list}
    directory=$("$nbdkit" --dump-config 2>/dev/null | sed -n "s/^${what}dir=//p")
    for file in "$directory"/nbdkit-*-"$what".so "$directory"/nbdkit-*-"$what"; do
        [[ -e $file ]] || continue
        file=${file##*/nbdkit-}
        printf '%s\n' "${file%-"$what"*}"
    done
}

# Prints what may stand for an argument that the help writes as $1.
_nbdkit_values() {
    local spec=$1 word IFS=$'|\n'
    case $spec in
    USER) compgen -u -- "$cur" ;;
    GROUP) compgen -g -- "$cur" ;;
    FILTER) compgen -W "$(_nbdkit_names filter)" -- "$cur" ;;
    '<BOOL>'*) compgen -W 'true|false' -- "$cur" ;;
    *'|'*)
        for word in $spec; do
            [[ $word != [a-z0-9-]* ]] || compgen -W "$word" -- "$cur"
        done
        ;;
    esac
    case $spec in
    *PATH* | *path* | *FILE* | *DIR* | *SOCKET* | SCRIPT) compgen -f -- "$cur" ;;
    esac
}

_nbdkit() {
    local nbdkit=${COMP_WORDS[0]} cur key i word line plugin
    local -a words filters
    local -A spaced equals

    # bash makes words of equals signs: put them together again.
    for ((i = 1; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((${#words[@]})) && [[ $word == = || (${COMP_WORDS[i - 1]} == = && ${words[-1]} == *=) ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    cur=${words[-1]}

    while IFS= read -r line; do
        [[ $line =~ ^\ +(-(.),\ )?--([a-z0-9-]+)(=|\ )?([^\ ]*) ]] || continue
        word=--${BASH_REMATCH[3]}
        if [[ ${BASH_REMATCH[4]} == = ]]; then
            equals[$word]=${BASH_REMATCH[5]}
        else
            spaced[$word]=${BASH_REMATCH[5]}
            [[ -z ${BASH_REMATCH[2]} ]] || spaced[-${BASH_REMATCH[2]}]=${BASH_REMATCH[5]}
        fi
    done < <("$nbdkit" --help 2>/dev/null)

    # The plugin is the first word that is neither an option nor an option's argument.
    for ((i = 0; i < ${#words[@]} - 1; i++)); do
        case ${words[i]} in
        --filter=*/*) ;;
        --filter=*) filters+=("${words[i]}") ;;
        -*) [[ -z ${spaced[${words[i]}]} ]] || ((i++)) ;;
        *) plugin=${plugin:-${words[i]}} ;;
        esac
    done

    COMPREPLY=()
    word=
    ((${#words[@]} < 2)) || word=${words[-2]}
    if [[ $word == -* && -n ${spaced[$word]} ]]; then
        mapfile -t COMPREPLY < <(_nbdkit_values "${spaced[$word]}")
    elif [[ $cur == --*=* ]]; then
        key=${cur%%=*} cur=${cur#*=}
        mapfile -t COMPREPLY < <(_nbdkit_values "${equals[$key]}")
    elif [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${!spaced[*]} ${equals[*]+${!equals[*]}}" -- "$cur")
        for i in "${!COMPREPLY[@]}"; do
            [[ -z ${equals[${COMPREPLY[i]}]} ]] || COMPREPLY[i]+='='
        done
    elif [[ -z $plugin ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_nbdkit_names plugin)" -- "$cur"; compgen -f -- "$cur")
    else
        key=${cur%%=*}
        # Code in a file that was only typed is not loaded.
        [[ $plugin == */* ]] || while IFS= read -r line; do
            [[ $line =~ ^\[?([A-Za-z][A-Za-z0-9_|-]*)=\]?([^\ ]*) ]] || continue
            for word in ${BASH_REMATCH[1]//|/ }; do
                if [[ $cur != *=* ]]; then
                    [[ $word != "$cur"* ]] || COMPREPLY+=("$word=")
                elif [[ $word == "$key" ]]; then
                    mapfile -t COMPREPLY < <(cur=${cur#*=} && _nbdkit_values "${BASH_REMATCH[2]}")
                    break 2
                fi
            done
        done < <("$nbdkit" --help "${filters[@]}" "$plugin" </dev/null 2>/dev/null | sed '1,/^Please read/d')
        if [[ $cur != *=* ]] && ((!${#COMPREPLY[@]})); then
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        fi
    fi
    [[ ${COMPREPLY[0]} != *= ]] || compopt -o nospace 2>/dev/null
}

complete -o filenames -F _nbdkit nbdkit
