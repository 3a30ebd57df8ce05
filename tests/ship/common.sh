# Shared by the scripts of this folder: changes to the project's root, keeps tools in .cache/ship, and installs Debian packages on demand.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
cache=$root/.cache/ship
mkdir -p "$cache"
name=livekit-token-service

fail() { echo "tests/ship: $*" >&2; exit 1; }
report() { printf -- '-- %s [at %s s]\n' "$*" "$SECONDS"; }

# debian COMMAND=PACKAGE…: installs each package whose command is missing, or whose file with /PATH=PACKAGE
debian() {
  local need missing=()
  for need in "$@"; do
    case $need in
      /*) [ -e "${need%%=*}" ] ;;
      *) command -v "${need%%=*}" >/dev/null ;;
    esac || missing+=("${need#*=}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]} (apt-get install; only root can)"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -q && apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$cache/apt.log" 2>&1 </dev/null ||
    { tail -n 20 "$cache/apt.log" >&2; fail "missing: Debian's ${missing[*]} (apt-get failed)"; }
}

# debian_tree: makes a small Debian 12 in $tree, with systemd and a C compiler for musl, unless it exists
tree=$cache/bookworm
debian_tree() {
  local packages=systemd,systemd-sysv,dbus,ca-certificates,gcc,libc6-dev,musl-tools
  [ "$(cat "$tree.done" 2>/dev/null)" != "$packages" ] || return 0
  debian debootstrap=debootstrap
  rm -rf "$tree" "$tree.done"
  debootstrap --variant=minbase --include="$packages" bookworm "$tree" >"$cache/debootstrap.log" 2>&1 ||
    { tail -n 20 "$cache/debootstrap.log" >&2; fail "missing: a Debian 12 (debootstrap failed)"; }
  rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/* "$tree"/usr/share/{doc,man,locale}
  echo "$packages" >"$tree.done"
  report "a Debian 12 of $(du -sm "$tree" | cut -f1) MB"
}

# static MACHINE: builds the static binary in dist/ unless it is newer than its sources
static() {
  [ -x "dist/$name-$1" ] && [ -z "$(find src Cargo.toml Cargo.lock -newer "dist/$name-$1" -print -quit)" ] || contrib/build-musl "$1"
}

# healthy HOST:PORT: waits until a service answers there
healthy() {
  local until=$((SECONDS + 30))
  until [ "$(curl -s -o /dev/null -w '%{http_code}' --max-time 2 "http://$1/healthz")" = 200 ]; do
    [ $SECONDS -lt $until ] || return 1
    sleep 0.1
  done
}

# free_port: an unused TCP port of loopback
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
