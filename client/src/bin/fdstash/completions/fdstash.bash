# Completion of fdstash for bash: the command itself tells what a word may become.

_fdstash() {
    local IFS=$' \t\n' i word raw=${COMP_WORDS[COMP_CWORD]} line kept
    local -a words=()
    # bash ends words at = and : too; the command does not.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i > 1)) && { [[ $word == [=:]* ]] || [[ ${COMP_WORDS[i - 1]} == [=:] ]]; }; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
    done
    # What stands before the part that is to be replaced.
    word=${words[${#words[@]} - 1]}
    [[ $raw == [=:] ]] && raw=
    kept=${word%"$raw"}
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == $'\t'* ]]; then
            _fdstash_command "${line#$'\t'}"
            return
        fi
        COMPREPLY+=("${line%%$'\t'*}")
    done < <("${COMP_WORDS[0]}" complete bash -- "${words[@]}" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    # More is to come behind a folder, and behind the = of an option.
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[/=] ]] && compopt -o nospace
}

# Behind --: a command line of its own, whose words begin behind so many.
_fdstash_command() {
    local i offset
    # Counted as bash does.
    for ((i = 1; i <= COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -- ]] && break
    done
    offset=$((i + 1))
    if declare -F _command_offset >/dev/null; then
        _command_offset "$offset"
    elif declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$offset"
    elif ((COMP_CWORD == offset)); then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -c -- "${COMP_WORDS[COMP_CWORD]}")
    else
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
    fi
}

complete -F _fdstash fdstash
