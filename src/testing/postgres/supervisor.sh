# shellcheck shell=sh
# Watches over one server: sh supervisor.sh HOME END_SIGNAL PROGRAM [ARGUMENT…]
#
# Orders come by standard input, one per line, each answered by one line:
#   start                 starts the program; answers with its process id
#   signal NAME ID…       sends a signal; answers "sent"
# When standard input ends, because whoever gave the orders is gone, the program is ended and HOME removed.
#
# HOME/pid holds the process id of the program started last, HOME/exit its exit status once it has ended.

home=$1
end=$2
# The processes that were sent STOP and not yet CONT.
halted=
shift 2

alive() { [ -s "$home/pid" ] && ! [ -e "$home/exit" ]; }

finish() {
    trap '' HUP INT TERM
    if alive; then
        kill -s "$end" "$(cat "$home/pid")" 2>/dev/null
        # A stopped process takes note of no other signal than this one and KILL.
        # shellcheck disable=SC2086 # several ids
        kill -s CONT "$(cat "$home/pid")" $halted 2>/dev/null
        turns=0
        while alive; do
            turns=$((turns + 1))
            if [ "$turns" -eq 200 ]; then kill -s KILL "$(cat "$home/pid")" 2>/dev/null; fi
            sleep 0.02 2>/dev/null || sleep 1
        done
    fi
    # A server that was killed has left this file and, in its seventh line, a System V memory segment.
    if [ -s "$home/data/postmaster.pid" ]; then
        # shellcheck disable=SC2046 # two words: its key and its id
        set -- $(sed -n 7p "$home/data/postmaster.pid")
        [ -n "${2-}" ] && ipcrm -m "$2" >/dev/null 2>&1
    fi
    cd / && rm -rf "$home"
}

trap 'finish; exit 0' HUP INT TERM

main() {
    while read -r order rest; do
        case $order in
        start)
            rm -f "$home/pid" "$home/exit"
            (
                "$@" </dev/null >>"$home/log" 2>&1 &
                echo "$!" >"$home/pid"
                echo "$!"
                exec >/dev/null
                # When the orders' giver dies while the program is stopped, the system sends HUP to all of this group.
                trap '' HUP INT TERM
                wait "$!"
                echo "$?" >"$home/exit"
            ) </dev/null &
            ;;
        signal)
            # shellcheck disable=SC2086 # the name and several ids
            kill -s $rest 2>/dev/null
            case $rest in
            STOP*) halted="$halted ${rest#STOP}" ;;
            CONT* | KILL*) halted= ;;
            esac
            echo sent
            ;;
        esac
    done
    finish
}

# In one line with its exit, because the shell must not read on in a file that is gone by then.
main "$@"; exit 0
