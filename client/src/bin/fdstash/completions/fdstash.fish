# Completion of fdstash for fish: the command itself tells what a word may become.

function __fdstash_complete
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l current (commandline --current-token --cut-at-cursor)
    # Without its quotes, as the command would get it.
    set -l unquoted (string unescape -- $current; or string unescape -- $current"'"; or string unescape -- $current'"'; or echo -- $current)
    set -l found (command $words[1] complete fish -- $words "$unquoted[1]" 2>/dev/null)
    if string match --quiet --regex '^\t' -- $found[1]
        # Behind --: a command line of its own.
        set -l before (string trim -- $found[1])
        set -l own (string escape -- $words[(math $before + 1)..-1])
        complete --do-complete (string join ' ' -- $own $current)
        return
    end
    printf '%s\n' $found
end

complete --command fdstash --no-files --arguments '(__fdstash_complete)'
