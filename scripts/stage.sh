#!/usr/bin/env bash
# stage.sh NAME COMMAND...: runs a stage and says how long it took.
#
# The stage gets a process group of its own, and a signal ends the whole group: compilers started by cargo or go go with it.
set -uo pipefail
name=$1
shift
started=$EPOCHREALTIME
printf '\n==> %s\n' "$name" >&2

signalled=
forward() {
    signalled=yes
    kill -TERM -- "-$child" 2>/dev/null
}
set -m
"$@" </dev/null &
child=$!
set +m
trap forward INT TERM HUP

wait "$child"
status=$?
# A signal ends `wait` early; the stage is over only when its process is.
while [ -n "$signalled" ] && kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done

verdict=took
[ "$status" -eq 0 ] || verdict="FAILED (exit $status) after"
[ -z "$signalled" ] || verdict="was interrupted after"
awk -v name="$name" -v verdict="$verdict" -v from="$started" -v to="$EPOCHREALTIME" \
    'BEGIN { gsub(",", ".", from); gsub(",", ".", to); printf "==> %s %s %.1f s\n", name, verdict, to - from }' >&2
[ -z "$signalled" ] || exit 130
exit "$status"
