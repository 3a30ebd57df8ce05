#!/usr/bin/env bash
# Runs the commands of README.md word for word, in order, from the root of the project.
#
# Every block fenced as ```sh is a bash script of its own, and must succeed. Two comments on the line before a block change that:
#   <!-- runs until stopped -->   the block is a service: it stays up for the blocks that follow, from its "msg=listening" on
#   <!-- not run here: WHO -->    the block needs something more; WHO runs it
# A README without a block that runs is a failure. Blocks fenced otherwise (```text, ```json, ```ini …) are not commands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Seconds until a service of the README must be up: it may have to be compiled first.
START_SECONDS=900
work=$(mktemp -d)
services=()
stop() {
  for group in "${services[@]}"; do kill -TERM -- "-$group" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT
fail() { echo "README.md: $*" >&2; exit 1; }

# one file per block: 01.run, 02.service, 03.skip …
[ -f README.md ] || fail "missing"
awk -v work="$work" '
  /^```/ && inside     { inside = 0; close(file); kind = "run"; next }
  inside               { print > file; next }
  /^```sh[ \t]*$/      { inside = 1; file = sprintf("%s/%02d.%s", work, ++count, kind ? kind : "run"); printf "" > file; next }
  /^```/               { inside = 1; file = "/dev/null"; next }
  /<!-- runs until stopped -->/ { kind = "service"; next }
  /<!-- not run here[ :]/       { kind = "skip"; next }
  NF                   { kind = "run" }
' README.md

count=0
for block in "$work"/*; do
  [ -f "$block" ] || continue
  case $block in
    *.skip) continue ;;
    *.service)
      printf -- '-- README.md, left running:\n%s\n' "$(cat "$block")"
      log=$block.log
      : >"$log"
      setsid bash -euo pipefail "$block" >"$log" 2>&1 </dev/null &
      services+=($!)
      until grep -q "msg=listening" "$log"; do
        kill -0 $! 2>/dev/null || fail "the service ended: $(tail -n 20 "$log")"
        [ $SECONDS -lt $START_SECONDS ] || fail "the service is not up after $START_SECONDS s: $(tail -n 20 "$log")"
        sleep 0.2
      done
      ;;
    *)
      printf -- '-- README.md:\n%s\n' "$(cat "$block")"
      bash -euo pipefail "$block" </dev/null || fail "this block failed: $(cat "$block")"
      ;;
  esac
  count=$((count + 1))
done
[ $count -gt 0 ] || fail "no block of commands that runs"
echo "README.md: $count blocks of commands, all passed"
