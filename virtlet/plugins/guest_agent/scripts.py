"""What runs in the guest, and what it finds in its environment.

The scripts are POSIX shell, with the tools of busybox or any distribution. Their variables have a
prefix, because the command's environment is that of the script, and one the script assigns to would
reach the command with the script's value.
"""

from collections.abc import Mapping

from virtlet.model.vm import VmConfig

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where container runtimes look for programs, too, when nothing else is said."""
SCRIPT_ENVIRONMENT = (f"PATH={PATH}", "LC_ALL=C")
"""For our own scripts."""

KILL = """\
# Arguments: process ids. Kills them, their descendants and the sessions that any of them leads.
# All are stopped first, so that nothing gets away by forking.
kill -STOP "$@" 2>/dev/null
doomed=" $* "
grown=yes
while [ "$grown" ]; do
    grown=
    for stat in /proc/[0-9]*/stat; do
        { read -r line <"$stat"; } 2>/dev/null || continue
        pid=${stat#/proc/}
        pid=${pid%/stat}
        case $doomed in *" $pid "*) continue ;; esac
        # After the name, which is in parentheses: state, parent, group, session.
        set -- ${line##*) }
        case $doomed in
        *" $2 "* | *" $4 "*)
            kill -STOP "$pid" 2>/dev/null
            doomed=" $pid$doomed"
            grown=yes
            ;;
        esac
    done
done
# Children first: the kernel lets stopped ones go on whose parents have died.
kill -KILL $doomed 2>/dev/null
"""
NOT_CONFIGURED = 98
"""Exit code of CONFIGURED."""
CONFIGURED = f"""\
# Says whether the guest still applies its seed. The first file is made by a command of the seed,
# after all that the pod asks for and before the owner's commands; the others are cloud-init's.
for done in /run/virtlet/configured /run/cloud-init/result.json /run/cloud-init/disabled; do
    [ ! -e "$done" ] || exit 0
done
[ ! -d /run/cloud-init ] || exit {NOT_CONFIGURED}
"""
READS = 256
"""Reads that make up one part of the output."""
KEEP = f"""\
# Arguments: the session's directory, "pipe" or "tty". Takes the command's output to files of some
# size, out.0, out.1 and so on, of which two are there at most: a line in out.ack lets go of the
# older one. Ends when no process has the output open any more, with the code of a command that
# has a terminal.
keep() {{
    exec 5<>"$1.ack" <"$1"
    part=0
    while :; do
        if [ $part -ge 2 ]; then
            read -r line <&5
            rm -f "$1.$((part - 2))"
        fi
        dd of="$1.$part" bs=4096 count={READS} 2>/dev/null
        [ -s "$1.$part" ] || return
        part=$((part + 1))
    done
}}

cd "$1" || exit
keep out &
[ "$2" = tty ] || keep err &
wait
[ "$2" = tty ] || exit 0
code=137
{{ read -r code <code; }} 2>/dev/null
exit $code
"""
NO_HELPER, FAILED, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127
"""Exit codes of PREPARE."""
PREPARE = f"""\
# Arguments: directory of all sessions, the beginning of our sessions' names, this one's name, the
# command's PATH, the command, "tty" or "pipe", names of sessions of ours that have ended. Input:
# the launcher of a command with a terminal. Makes the session's directory, removes what sessions
# left behind that have ended, and prints the terminal's helper.
umask 077
base=$1 ours=$2 name=$3 path=$4 command=$5 kind=$6
shift 6
ended=" $* "

look_for() {{
    set -f
    case $1 in
    */*) candidates=$1 ;;
    *)
        candidates=
        IFS=:
        for place in $path; do candidates="$candidates:${{place:-.}}/$1"; done
        ;;
    esac
    IFS=:
    answer={NOT_FOUND}
    for candidate in $candidates; do
        [ -f "$candidate" ] || continue
        [ ! -x "$candidate" ] || return 0
        answer={NOT_EXECUTABLE}
    done
    return $answer
}}

has() {{ command -v "$1" >/dev/null 2>&1; }}

helper() {{
    if has script; then
        echo script
    elif has python3; then
        echo python3
    elif has busybox && busybox telnetd --help >/dev/null 2>&1; then
        echo telnetd
    else
        return {NO_HELPER}
    fi
}}

(look_for "$command") || exit
[ "$kind" = pipe ] || helper || exit
mkdir -p "$base" && cd "$base" || exit {FAILED}
for old in *; do
    [ -d "$old" ] || continue
    case $old in
    "$ours"-*) case $ended in *" $old "*) ;; *) continue ;; esac ;;
    esac
    # Its caller is gone. What has another start time is another process of that number.
    if read -r pid started <"$old/pid" && read -r stat <"/proc/$pid/stat"; then
        set -- ${{stat##*) }}
        [ "${{20}}" != "$started" ] || left="$left $pid"
    fi 2>/dev/null
    rm -rf "$old"
done
mkdir "$name" && cd "$name" && mkfifo in out err out.ack err.ack || exit {FAILED}
[ "$kind" = pipe ] || {{ cat >run && chmod 700 run; }} || exit {FAILED}
cat >keep <<'END' || exit {FAILED}
{KEEP}END
[ "$left" ] || exit 0
set -- $left
exec >/dev/null
{KILL}
exit 0
"""
RUN = """\
# Arguments: the session's directory, what the command reads ("null", "pipe", or "hold" for a pipe
# that never ends), its PATH, the command. Becomes the command, so that nothing of ours stands
# beside it in the guest's list of processes, with its output to `keep`.
_virtlet_dir=$1 _virtlet_input=$2 _virtlet_path=$3
shift 3
# The time of its start, too, which tells it from a later process of the same number.
(
    read -r stat </proc/$$/stat
    pid=$$
    set -- ${stat##*) }
    echo "$pid ${20}"
) >"$_virtlet_dir/pid"
umask 022
# The input first: out.0 shows the manager that the command has it.
case $_virtlet_input in
null) exec </dev/null ;;
pipe) exec <"$_virtlet_dir/in" ;;
hold) exec 0<>"$_virtlet_dir/in" ;;
esac
exec >"$_virtlet_dir/out"
case $_virtlet_input in
hold) exec 2>&1 ;;
*) exec 2>"$_virtlet_dir/err" ;;
esac
PATH=$_virtlet_path
exec "$@"
"""
NO_TERMINAL_YET = 99
"""Exit code of RESIZE."""
RESIZE = f"""\
# Arguments: the session's directory, columns, rows.
read -r terminal <"$1/tty" || exit {NO_TERMINAL_YET}
exec stty -F "$terminal" cols "$2" rows "$3"
"""
REMOVE = """\
# Argument: the session's directory.
rm -rf "$1"
"""


def environment_of(vm: VmConfig, more: Mapping[str, str], *, tty: bool) -> dict[str, str]:
    """What a command finds: the usual, then the container's variables, then `more`.

    The agent's own environment is a service manager's and not passed on.
    """
    usual = {"PATH": PATH, "HOME": "/root"}
    if tty:
        usual["TERM"] = "xterm"
    return {**usual, **dict(vm.envs), **more}


def as_list(environment: Mapping[str, str]) -> list[str]:
    """In the form of the agent: `NAME=value`."""
    return [f"{name}={value}" for name, value in environment.items()]
