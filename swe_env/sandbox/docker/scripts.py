"""The bash programs that run inside containers; nothing else but bash is needed there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

PATIENT = [
    "bash", "--noprofile", "--norc", "-p", "-c", "trap '' HUP INT QUIT TERM USR1 USR2; read -r _",
]  # fmt: skip
"""A container's first process: it reaps orphans, and ends when its standard input does, which is
when the program that started it has ended, however it did."""

SHELL = ["bash", "--noprofile", "--norc"]

# What is ours in the agent's shell: descriptors 94 to 97 (bash takes 63 and down), the variables
# __swe_* and the function __swe_done. A record on the second stream starts with a NUL and the
# command's token.
_COUNTERS = (
    "__swe_m=() __swe_p=(); if [[ $__swe_c != 0 ]]; then "
    "for __swe_f in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do "
    'if [[ -r $__swe_f ]]; then builtin mapfile -t __swe_m <"$__swe_f"; fi; done; '
    "for __swe_f in /sys/fs/cgroup/pids.events /sys/fs/cgroup/pids/pids.events; do "
    'if [[ -r $__swe_f ]]; then builtin mapfile -t __swe_p <"$__swe_f"; fi; done; fi; '
)
"""How often the container's limits struck, read where the command failed."""
_UP = "builtin read -r __swe_t __swe_f </proc/uptime; "
_EASY_TO_KILL = "{ builtin echo 500 >/proc/self/oom_score_adj; } 2>/dev/null; "

_HELLO = (
    "exec 96>&1 97>&2 2>&1; shopt -s expand_aliases; "
    # What ctrl+c does to bash itself: without it a loop would go on with its next turn, and `read`
    # with waiting. While a command runs 97 is closed, and only then is the input not the script.
    "trap '{ [[ -e /dev/fd/97 ]] || exec </dev/null; break 9999; } 2>/dev/null' INT; "
    + _EASY_TO_KILL
    + "{ cd @CWD@ || cd @WORKDIR@ || cd /; } 2>/dev/null; "
    # Reports the exit code, whether the shell's output still goes to us (not 0; "!" keeps `set -e`
    # out of it), the limits' counters and the folder.
    "__swe_done() { __swe_c=$2; ! [[ /dev/fd/1 -ef /dev/fd/96 && /dev/fd/94 -ef /dev/fd/96 ]]; "
    "__swe_s=$?; "
    + _COUNTERS
    + 'builtin printf "\\0%s E %s\\t%s\\t%s\\t%s\\t%s\\0" "$1" "$__swe_c" "$__swe_s" '
    '"${__swe_m[*]-}" "${__swe_p[*]-}" "$PWD" >&97; builtin printf %s "$1" >&96; }; '
    + _UP
    + 'builtin printf "\\0%s S %s %s\\0" @TOKEN@ "$__swe_t" $$ >&97; __swe_done @TOKEN@ 0 94>&2\n'
)
# At top level, so that `declare`, `break` or `return` mean what they always mean. The report is a
# line of its own, so that an alias that the command made is in force there and not first at the
# next command, and goes through the same two words. The empty line stays in the pipe until bash
# asks for its next command: one that has read it and not reported is beyond help (see `UNREAD`).
_LINE = (
    "{ @BEFORE@"
    + _UP
    + 'builtin printf "\\0%s S %s %s\\0" @TOKEN@ "$__swe_t" $$ >&97; } 2>/dev/null; '
    "builtin eval @COMMAND@ <@STDIN@ 96>&- 97>&-\n"
    '{ builtin eval __swe_done @TOKEN@ "$?"; @AFTER@} 94>&2 2>/dev/null\n\n'
)
ALL_READ = 3
UNREAD = [
    "bash", "--noprofile", "--norc", "-p", "-c",
    f"exec 3</proc/$1/fd/0 || exit 1; read -r -t 0 -u 3 || exit {ALL_READ}", "sh",
]  # fmt: skip
"""Ends with `ALL_READ` when a shell, whose number follows, has read all it was given."""
# A pipe that `FEED` finds by the shell's number, and that nothing else can name. What a command
# leaves in it goes with it.
_OPEN = (
    "exec 95</dev/null; __swe_f=/tmp/.swe-env-@TOKEN@; command mkfifo -m 600 $__swe_f && "
    "exec 95<>$__swe_f; command rm -f $__swe_f; "
)
_CLOSE = "exec 95<&-; "
FEED = ["bash", "--noprofile", "--norc", "-p", "-c", "read -r _; exec cat >/proc/$1/fd/95", "sh"]
"""Copies its standard input to the standard input of what runs in a shell, whose number follows."""

_WRAP = (
    "IFS= read -r __swe_k; exec 9>&2 4>&1 2>/dev/null; "
    + _EASY_TO_KILL
    + _UP
    + 'printf "\\0%s S %s %s\\0" "$__swe_k" "$__swe_t" $$ >&9; '
    '( exec 2>&4 @CHANNEL@ 4>&- 9>&-; cd "$1" || exit 126; shift; exec "$@" ); '
    "__swe_c=$?; " + _COUNTERS + 'printf "\\0%s E %s\\t1\\t%s\\t%s\\t\\0" "$__swe_k" '
    '"$__swe_c" "${__swe_m[*]}" "${__swe_p[*]}" >&9; printf %s "$__swe_k" >&4'
)

KILL = r"""
since=$1 signal=$2 also=" $3 " spared=" $4 " deadline=$((SECONDS + 10)) stopped=" "
while (( SECONDS < deadline )); do
  declare -A parent=() keep=()
  candidates=()
  for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    IFS= read -r -d "" stat <"$folder/stat" || [[ $stat ]] || continue
    set -f; fields=(${stat##*) }); set +f
    stat=
    [[ ${fields[0]-} && ${fields[0]} != [ZX] ]] || continue
    parent[$pid]=${fields[1]}
    if [[ $pid == 1 || $pid == $$ || $pid == "$PPID" || $spared == *" $pid "* ]]; then continue
    elif (( fields[19] < since )) && [[ $also != *" $pid "* ]]; then keep[$pid]=1
    else candidates+=("$pid"); fi
  done
  victims=() fresh=()
  for pid in "${candidates[@]}"; do
    up=${parent[$pid]}
    while [[ $up && $up != 0 && ! ${keep[$up]-} ]]; do up=${parent[$up]-}; done
    [[ $up && $up != 0 ]] && continue
    victims+=("$pid")
    [[ $stopped == *" $pid "* ]] || fresh+=("$pid")
  done
  (( ${#victims[@]} )) || exit 0
  # All are stopped before any is signalled: what is stopped cannot start a successor.
  if (( ${#fresh[@]} )); then
    kill -STOP "${fresh[@]}"; stopped+="${fresh[*]} "
    continue
  fi
  kill -"$signal" "${victims[@]}"
  [[ $signal == KILL ]] || { kill -CONT "${victims[@]}"; exit 0; }
done 2>/dev/null
exit 1
"""
"""Ends what was started since a tick of the boot clock: arguments are that tick, the signal, pids
that are meant though they are older (a shell), and pids to leave alone. Processes that are older
are left alone with all of theirs."""


def hello(token: str, cwd: str, workdir: str) -> bytes:
    """What a new shell is told first."""
    return _fill(_HELLO, TOKEN=token, CWD=shlex.quote(cwd), WORKDIR=shlex.quote(workdir))


def line(
    command: str, token: str, stdin: bytes, env: Mapping[str, str], *, fed: bool = False
) -> bytes:
    """What runs a command in the shell and reports its end.

    With `fed` the command's standard input is a pipe that stays open, not `stdin`.
    """
    if "\0" in command:
        command = command.replace("\0", "")
    if env:
        names = " ".join(shlex.quote(f"{name}={value}") for name, value in env.items())
        command = f"export {names}\n{command}"
    source = "/dev/null"
    if fed:
        source = "&95"
    elif stdin:
        octal = "".join(f"\\0{byte:03o}" for byte in stdin)
        source = f" <(builtin printf %b '{octal}' 96>&- 97>&-)"
    template = _LINE.replace("@BEFORE@", _OPEN if fed else "").replace(
        "@AFTER@", _CLOSE if fed else ""
    )
    return _fill(template, TOKEN=token, COMMAND=shlex.quote(command), STDIN=source)


def _fill(template: str, **parts: str) -> bytes:
    text = re.sub("@([A-Z]+)@", lambda match: parts[match.group(1)], template)
    return text.encode("utf-8", "surrogateescape")


def wrapped(argv: list[str], workdir: str, *, channel: bool) -> list[str]:
    """The argument list that runs `argv` as a process of its own and reports its end.

    It waits for a line with its token, so that nothing is written before anybody reads, and so
    that no other process can know the token. What follows is the command's standard input.
    """
    script = _WRAP.replace("@CHANNEL@", "3>&9" if channel else "")
    return ["bash", "--noprofile", "--norc", "-p", "-c", script, "sh", workdir, *argv]
