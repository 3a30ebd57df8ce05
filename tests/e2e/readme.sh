#!/usr/bin/env bash
# Runs the commands of README.md unchanged and in order, from the root of the project.
#
# Each block fenced as ```sh is a bash script, and must succeed. A comment on the line before a block changes that:
#   <!-- runs until stopped -->   the block starts a service, which runs until the last block has ended
#   <!-- not run here: WHERE -->  the block needs more than README says; WHERE runs it
# A README without a block that runs is a failure. Blocks fenced otherwise (```text, ```json, ```ini …) are not commands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Seconds until a service of the README listens, compilation included.
START_SECONDS=900
work=$(mktemp -d)
services=()
stop() {
  for group in "${services[@]}"; do kill -TERM -- "-$group" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT
fail() { echo "README.md: $*" >&2; exit 1; }

# one file for each block: 01.run, 02.service, 03.skip …
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
        [ $SECONDS -lt $START_SECONDS ] || fail "the service does not listen after $START_SECONDS s: $(tail -n 20 "$log")"
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
