#!/usr/bin/env bash
# Gives the tests a real Docker Engine of their own, with runc, gVisor, images and registries; `down` takes it away again.
#
#   scripts/setup-test-host.sh [up]           install what is missing, start what does not run, say what there is
#   scripts/setup-test-host.sh down [--purge] stop it and restore the host's firewall and sysctls; --purge: caches too
#   scripts/setup-test-host.sh env            KEY=value lines for a shell and for the tests
#   scripts/setup-test-host.sh packages       install what is missing and start nothing
#   scripts/setup-test-host.sh status         what there is; ends with 0 if the daemon answers, else with 3
#   scripts/setup-test-host.sh kill-daemon    kill -9 of dockerd; its containers are not told
#   scripts/setup-test-host.sh start-daemon   the daemon again, as it was configured
#
# STACYVM_TEST_HOST: where everything is kept (/var/tmp/stacyvm-test-host).
# STACYVM_TEST_LIVE_RESTORE: 1 or 0 makes containers survive the daemon or not; a daemon that is configured otherwise is
# started again. Unset leaves it as it is, at first 0.
#
# Ends with 3 and "docker: not available: why" where there can be no Docker Engine. Packages that were installed stay.
set -euo pipefail

script=$(realpath "${BASH_SOURCE[0]}")
state=${STACYVM_TEST_HOST:-/var/tmp/stacyvm-test-host}
socket=$state/docker.sock
# A bridge and addresses that no other Docker Engine on this host uses.
bridge=svmtest0
subnets='10\.213\.'
# All containers live below this cgroup, so that what a dead daemon left can be found.
cgroup=test-host
open=127.0.0.1:15000
closed=127.0.0.1:15001
gvisor=20240729
unset DOCKER_HOST DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CONFIG
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }
stop_here() { # why there is no Docker Engine
  [ ! -O "$state" ] || printf '%s\n' "$*" >"$state/unavailable"
  say "docker: not available: $*"
  exit 3
}
within() { # seconds, command that is tried until it succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}
client() { timeout "${patience:-120}" docker --config "$state/client" --host "unix://$socket" "$@"; }
has_image() { client image inspect "$1" >/dev/null 2>&1; }

# --- processes of ours: a pid alone may be another's by now, so its start time is kept with it

started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
pid_of() { # name; prints the pid of a process of ours that is alive
  local pid start
  { read -r pid start <"$state/$1.pid"; } 2>/dev/null || return 1
  [ -n "$start" ] && [ "$(started "$pid")" = "$start" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null || return 1
  printf '%s\n' "$pid"
}
alive() { pid_of "$1" >/dev/null; }
gone() { ! alive "$1"; }
spawn() { # name, command…
  local name=$1
  shift
  (
    # Whoever waits for the end of a pipe of ours shall not wait for a daemon.
    for fd in "/proc/$BASHPID/fd"/*; do
      fd=${fd##*/}
      [ "$fd" -le 2 ] || eval "exec $fd>&-"
    done
    exec setsid "$@" >>"$state/$name.log" 2>&1 </dev/null
  ) &
  printf '%s %s\n' $! "$(started $!)" >"$state/$name.pid"
}
end() { # name: asked to stop, and killed if it does not
  local pid
  if pid=$(pid_of "$1"); then
    kill "$pid" 2>/dev/null || true
    within 15 gone "$1" || { kill -9 "$pid" 2>/dev/null || true; within 5 gone "$1"; }
  fi
  rm -f "$state/$1.pid"
}

# --- packages

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); } # command, package that brings it
install() ( # apt-get arguments and packages; no package starts a service
  guard=/usr/sbin/policy-rc.d
  [ ! -e $guard ] || mv $guard $guard.test-host
  trap '[ -e $guard.test-host ] && mv $guard.test-host $guard || rm -f $guard' EXIT
  printf '#!/bin/sh\nexit 101\n' >$guard
  chmod 755 $guard
  DEBIAN_FRONTEND=noninteractive timeout 900 apt-get install -y -qq --no-install-recommends "$@" >>"$state/apt.log" 2>&1
)
packages() {
  missing=()
  need dockerd docker.io
  need docker docker-cli
  need containerd containerd
  need runc runc
  need iptables-save iptables
  need ip iproute2
  need curl curl
  need debootstrap debootstrap
  need docker-registry docker-registry
  need htpasswd apache2-utils
  need bwrap bubblewrap
  need tmux tmux
  need less less
  { command -v busybox && ! ldd "$(command -v busybox)"; } >/dev/null 2>&1 || missing+=(busybox-static)
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || return 0
  timeout 300 apt-get update -qq >>"$state/apt.log" 2>&1 || true
  # Where the client has no package of its own, it comes with the daemon.
  apt-cache show docker-cli >/dev/null 2>&1 || missing=("${missing[@]/#docker-cli/docker.io}")
  say "installing ${missing[*]}"
  install "${missing[@]}" && return 0
  local package # one that cannot be had shall not keep the others away
  for package in "${missing[@]}"; do install "$package" || true; done
}
mirror() { # the host's own Debian mirror, or everybody's
  local uri
  # shellcheck disable=SC2016 # the $(…) are apt's
  uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
    awk '$1 ~ /debian\/?$/ && $2 == "bookworm" { print $1; exit }') || true
  printf '%s\n' "${uri:-http://deb.debian.org/debian/}"
}
gvisor_is_new() { [[ $(runsc --version 2>/dev/null) =~ 20[0-9]{6} ]] && [ "${BASH_REMATCH[0]}" -ge $gvisor ]; }
# Sets no_gvisor where there is none. bookworm's own is too old; its backport is had without a change of apt's sources.
gvisor_package() {
  local mirror private
  no_gvisor=
  ! gvisor_is_new || return 0
  command -v apt-get >/dev/null || { no_gvisor="runsc $gvisor is not installed and this host has no apt-get"; return; }
  if ! grep -qx 'VERSION_CODENAME=bookworm' /etc/os-release; then
    install runsc || true
    gvisor_is_new || no_gvisor="this host's packages have no runsc $gvisor or later"
    return 0
  fi
  mirror=$(mirror)
  private=$(mktemp -d)
  chmod 755 "$private" # apt reads the lists as a user of its own
  mkdir -p "$private/lists/partial"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm-backports main\n' \
    "$mirror" >"$private/sources.list"
  local apt=(-o "Dir::Etc::sourcelist=$private/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$private/lists"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  say "installing runsc from bookworm-backports"
  if timeout 120 apt-get "${apt[@]}" update -qq >>"$state/apt.log" 2>&1; then install "${apt[@]}" runsc || true; fi
  rm -rf "$private"
  gvisor_is_new || no_gvisor="runsc $gvisor could not be installed from bookworm-backports (see $state/apt.log)"
}

# --- what the daemon changes on the host

# In this order: writing the first sets the next ones.
sysctls() {
  local file
  for file in /proc/sys/net/ipv{4/ip_forward,{4,6}/conf/{all,default,*}/{forwarding,accept_redirects}} \
    /proc/sys/net/bridge/bridge-nf-call-ip{,6}tables /proc/sys/kernel/keys/root_max{keys,bytes}; do
    [ ! -e "$file" ] || printf '%s %s\n' "$file" "$(cat "$file")"
  done
}
boot() { cat /proc/sys/kernel/random/boot_id; }
save_host() { # before the daemon's first start since `down` or since the host's start
  [ "$(cat "$state/saved/boot" 2>/dev/null)" != "$(boot)" ] || return 0
  ! ip link show $bridge >/dev/null 2>&1 ||
    stop_here "the bridge $bridge is of another test host, or was left by one that was removed without \`down\`"
  rm -rf "$state/saved" "$state"/*.pid
  mkdir "$state/saved"
  iptables-save >"$state/saved/iptables"
  ip6tables-save >"$state/saved/ip6tables" 2>/dev/null || true
  sysctls >"$state/saved/sysctls"
  local path
  for path in /etc/docker /etc/docker/key.json /run/docker /run/containerd; do
    [ -e $path ] || printf '%s\n' $path
  done >"$state/saved/absent"
  boot >"$state/saved/boot"
}
bridges() { ip -o -4 address | awk -v ours="^$subnets" '$4 ~ ours { print $2 }'; }
restore_firewall() { # iptables or ip6tables; rules that others made since then stay
  local saved=$state/saved/$1 now ours table
  touch "$saved"
  now=$("$1-save" 2>/dev/null) || return 0
  ours=$({ printf '%s\n' "$subnets" $bridge && bridges; } | paste -sd'|')
  grep -q DOCKER "$saved" || ours="$ours|DOCKER"
  printf '%s\n' "$now" | awk -v ours="$ours" '
    /^\*/ { table = $0 }
    !now { known[table $0]; if (/^:/) policy[table $1] = $2; next }
    /^:/ && (table $1) in policy { $2 = policy[table $1] }
    /^:/ && !((table $1) in policy) { if ($1 ~ ours) next; if ($2 != "-") $2 = "ACCEPT" }
    /^-A/ && !((table $0) in known) && $0 ~ ours { next }
    { print }' "$saved" now=1 - | "$1-restore" --wait 5
  # Tables that were not there and now hold nothing; where there is no nft to take them away they do no harm.
  "$1-save" 2>/dev/null |
    awk '/^\*/ { table = substr($0, 2); used = 0 } /^-A|^:.* -/ { used = 1 } /^COMMIT/ && !used { print table }' |
    while read -r table; do
      grep -q "^\*$table" "$saved" || nft delete table "${1%tables}" "$table" 2>/dev/null || true
    done
}
restore_host() {
  local path value
  [ "$(cat "$state/saved/boot" 2>/dev/null)" = "$(boot)" ] || return 0
  restore_firewall iptables
  restore_firewall ip6tables
  while read -r path value; do
    [ ! -e "$path" ] || [ "$(cat "$path")" = "$value" ] || printf '%s\n' "$value" >"$path"
  done <"$state/saved/sysctls"
  if grep -qx /etc/docker/key.json "$state/saved/absent"; then rm -f /etc/docker/key.json; fi
  # Sockets of shims that were killed; directories that others use by now are not empty.
  if grep -qx /run/containerd "$state/saved/absent"; then
    for path in /run/containerd/s/*; do grep -qF "$path" /proc/net/unix || rm -f "$path"; done
  fi
  while read -r path; do [ ! -d "$path" ] || find "$path" -depth -type d -empty -delete; done <"$state/saved/absent"
  rm -rf "$state/saved"
}

# --- the daemon
#
# containerd runs on its own, as it does on every real host: the daemon can be killed and is back in a moment. A containerd
# that dockerd starts would outlive it, and a new daemon refuses to start beside that one.

answers() { [ "$(curl --silent --max-time 1 --unix-socket "$socket" http://docker/_ping 2>/dev/null)" = OK ]; }
daemon_runs() { alive dockerd && alive containerd && answers; }
configure() { # ends with 1 if the file was as it should be
  local live=${STACYVM_TEST_LIVE_RESTORE:-} new=$state/daemon.json.new gvisor_entry=
  if [ -z "$live" ]; then grep -q '"live-restore": true' "$state/daemon.json" 2>/dev/null && live=1; fi
  # gVisor's own network stack needs more of the host than test hosts allow; the "host" network it is given is the container's
  # namespace. kata-runtime is a second name for runc: it proves that the name that is asked for reaches the daemon.
  if [ -z "$no_gvisor" ]; then
    gvisor_entry="\"runsc\": {\"path\": \"$(command -v runsc)\", \"runtimeArgs\": [\"--platform=systrap\", \"--network=host\"]},"
  fi
  # 127.0.0.0/8 is always among the insecure registries.
  cat >"$new" <<JSON
{
  "hosts": ["unix://$socket"],
  "data-root": "$state/root",
  "exec-root": "$state/exec",
  "pidfile": "$state/dockerd.pidfile",
  "containerd": "$state/containerd.sock",
  "exec-opts": ["native.cgroupdriver=cgroupfs"],
  "cgroup-parent": "/$cgroup",
  "bridge": "$bridge",
  "default-address-pools": [{"base": "10.213.128.0/17", "size": 24}],
  "log-level": "warn",
  "live-restore": $([ "${live:-0}" = 1 ] && echo true || echo false),
  "runtimes": {
    $gvisor_entry
    "kata-runtime": {"path": "$(command -v runc)"}
  }
}
JSON
  cat >"$state/containerd.toml" <<TOML
version = 2
root = "$state/containerd"
state = "$state/containerd-run"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.tracing"]
[grpc]
address = "$state/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "$state/containerd-opt"
TOML
  if cmp -s "$new" "$state/daemon.json"; then rm "$new"; return 1; fi
  mv "$new" "$state/daemon.json"
}
containerd_answers() {
  [ -S "$state/containerd.sock" ] && timeout 5 ctr --address "$state/containerd.sock" version >/dev/null 2>&1
}
start_containerd() {
  ! { alive containerd && containerd_answers; } || return 0
  end containerd
  rm -f "$state/containerd.sock"
  spawn containerd containerd --config "$state/containerd.toml"
  within 10 containerd_answers
}
answers_or_ended() { answers || gone dockerd; }
start_dockerd() {
  ! answers || return 0
  end dockerd
  rm -f "$state/dockerd.pidfile" "$socket"
  if ! ip link show $bridge >/dev/null 2>&1; then
    ip link add name $bridge type bridge
    ip address add 10.213.0.1/24 dev $bridge
    ip link set $bridge up
  fi
  spawn dockerd dockerd --config-file "$state/daemon.json"
  within 15 answers_or_ended
  answers
}
start_daemon() { start_containerd && within 15 start_dockerd; }
last_words() { tail -n 1 "$state/dockerd.log" 2>/dev/null | grep -o 'msg=.*\|^failed.*' | tail -c 300; }

# --- images and registries

import() { # directory, name, docker import's arguments…
  local tree=$1 name=$2
  shift 2
  tar -C "$tree" -c . | client import "$@" - "$name" >/dev/null
}
busybox_tree() { # directory
  mkdir -p "$1"/{bin,sbin,usr/bin,usr/sbin,etc,dev,proc,sys,root,home,var,tmp}
  chmod 1777 "$1/tmp"
  chmod 700 "$1/root"
  cp "$(command -v busybox)" "$1/bin/busybox"
  chroot "$1" /bin/busybox --install -s
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$1/etc/passwd"
  printf 'root:x:0:\nnobody:x:65534:\n' >"$1/etc/group"
}
python_tree() { # the cached archive of a small Debian with Python
  [ ! -s "$state/cache/python.tar" ] || return 0
  command -v debootstrap >/dev/null || { say "stacyvm-test/python: not available: debootstrap is missing"; return 1; }
  local tree=$work/python
  say "building stacyvm-test/python"
  if ! timeout 600 debootstrap --variant=minbase --include=python3-minimal bookworm "$tree" "$(mirror)" \
    >"$state/debootstrap.log" 2>&1; then
    say "stacyvm-test/python: not available: debootstrap failed (see $state/debootstrap.log)"
    return 1
  fi
  rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
  mkdir -p "$state/cache"
  tar -C "$tree" -cf "$state/cache/python.tar.new" .
  mv "$state/cache/python.tar.new" "$state/cache/python.tar"
}
images() {
  if ! has_image alpine:latest; then
    busybox_tree "$work/alpine"
    import "$work/alpine" alpine:latest --change 'CMD ["/bin/sh"]'
    made+=(alpine)
  fi
  if ! has_image stacyvm-test/distroless:latest; then
    mkdir "$work/distroless"
    cp "$(command -v busybox)" "$work/distroless/app"
    ln "$work/distroless/app" "$work/distroless/busybox" # the name under which it runs applets
    import "$work/distroless" stacyvm-test/distroless:latest
    made+=(stacyvm-test/distroless)
  fi
  if ! has_image stacyvm-test/python:latest && python_tree; then
    client import --change 'ENV GREETING=hello' \
      --change 'ENV PATH=/opt/extra:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
      "$state/cache/python.tar" stacyvm-test/python:latest >/dev/null
    made+=(stacyvm-test/python)
  fi
}
registry_answers() { # address; the closed one asks for a password
  local status
  status=$(curl --silent --max-time 2 --output /dev/null --write-out '%{http_code}' "http://$1/v2/") || true
  [ "$status" = 200 ] || [ "$status" = 401 ]
}
registry() { # name, address, lines of its configuration
  ! { alive "$1" && registry_answers "$2"; } || return 0
  end "$1"
  if registry_answers "$2"; then no_registry="another process serves $2"; return 1; fi
  printf '%s\n' 'version: 0.1' 'log: {level: error, accesslog: {disabled: true}}' \
    "storage: {filesystem: {rootdirectory: $state/$1}, delete: {enabled: true}}" "http: {addr: $2}" "${@:3}" >"$state/$1.yml"
  spawn "$1" docker-registry serve "$state/$1.yml"
  within 10 registry_answers "$2" || { no_registry="nothing answers on $2 (see $state/$1.log)"; return 1; }
}
stored() { # address, image; on the open registry or with the password
  curl --silent --fail --max-time 5 --output /dev/null --config "$state/curl.conf" \
    --header 'Accept: application/vnd.docker.distribution.manifest.v2+json' "http://$1/v2/stacyvm-test/$2/manifests/1"
}
publish() { # name of an image here, address, its name there; the name here goes, so that a pull has work to do
  client tag "$1" "$2/stacyvm-test/$3:1"
  client push --quiet "$2/stacyvm-test/$3:1" >/dev/null
  client rmi "$2/stacyvm-test/$3:1" >/dev/null
}
registries() { # sets no_registry where there is none
  no_registry=
  command -v docker-registry >/dev/null || { no_registry="docker-registry is not installed"; return; }
  command -v htpasswd >/dev/null || { no_registry="htpasswd is not installed"; return; }
  [ -s "$state/curl.conf" ] || (
    umask 077
    head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$state/registry-password"
    htpasswd -iBc "$state/htpasswd" tester <"$state/registry-password" 2>/dev/null
    printf 'user = "tester:%s"\n' "$(cat "$state/registry-password")" >"$state/curl.conf"
  )
  registry registry-open $open || return 0
  registry registry-auth $closed "auth: {htpasswd: {realm: stacyvm-test, path: $state/htpasswd}}" || return 0
  if ! stored $open alpine || ! stored $closed alpine; then
    # Not the layer that alpine:latest has, which no pull would have to fetch.
    [ -d "$work/alpine" ] || busybox_tree "$work/alpine"
    echo 'came from a registry' >"$work/alpine/etc/registry"
    import "$work/alpine" stacyvm-test/published:latest --change 'CMD ["/bin/sh"]'
    client login --username tester --password-stdin $closed <"$state/registry-password" >/dev/null 2>&1
    publish stacyvm-test/published $open alpine
    publish stacyvm-test/published $closed alpine
    client rmi stacyvm-test/published >/dev/null
    made+=("$open/stacyvm-test/alpine:1" "$closed/stacyvm-test/alpine:1")
  fi
  if ! stored $open big; then
    local layer
    mkdir "$work/big"
    for layer in 1 2 3; do head -c 12M /dev/urandom >"$work/big/layer$layer"; done
    printf 'FROM alpine:latest\nCOPY layer1 /big/\nCOPY layer2 /big/\nCOPY layer3 /big/\n' >"$work/big/Dockerfile"
    tar -C "$work/big" -c . | curl --silent --max-time 120 --unix-socket "$socket" --data-binary @- \
      --header 'Content-Type: application/x-tar' 'http://docker/build?t=stacyvm-test/big&forcerm=1' >/dev/null
    publish stacyvm-test/big $open big
    client rmi stacyvm-test/big >/dev/null
    made+=("$open/stacyvm-test/big:1")
  fi
}

# --- what there is

probe() { # runtime; prints what is wrong with it
  local out
  out=$(patience=30 client run --rm --network none --runtime "$1" alpine:latest echo works 2>&1) || true
  [ "$out" = works ] || printf '%s' "${out:-it printed nothing}" | tail -n 1
}
probe_runtimes() { # one line each: name, and what is wrong
  [ ! -s "$state/runtimes" ] || return 0
  local runtime
  for runtime in runc runsc kata-runtime; do
    if [ $runtime = runsc ] && [ -n "$no_gvisor" ]; then say "runsc $no_gvisor"; else say "$runtime $(probe $runtime)"; fi
  done >"$state/runtimes"
}
working() { sed -n 's/^\([^ ]*\) $/\1/p' "$state/runtimes" | paste -sd' '; }
wrong() { sed -n "s/^$1 //p" "$state/runtimes"; }
line() { if [ -z "$2" ]; then say "$1: available${3:+ ($3)}"; else say "$1: not available: $2"; fi; }
write_env() {
  {
    printf 'STACYVM_TEST_DOCKER_HOST=%q\n' "unix://$socket"
    printf 'STACYVM_TEST_RUNTIMES="%s"\n' "$(working)"
    # A host with a real Kata will say so here.
    printf 'STACYVM_TEST_KATA=alias\n'
    [ -n "$no_registry" ] || printf '%s=%q\n' STACYVM_TEST_REGISTRY $open STACYVM_TEST_REGISTRY_AUTH $closed \
      STACYVM_TEST_REGISTRY_USER tester STACYVM_TEST_REGISTRY_PASSWORD_FILE "$state/registry-password"
    printf 'STACYVM_TEST_HOST_SCRIPT=%q\n' "$script"
  } >"$state/env.new"
  mv "$state/env.new" "$state/env"
}
summary() {
  line docker "$(wrong runc)" "unix://$socket"
  line runsc "$(wrong runsc)"
  line kata "none is installed; kata-runtime is a second name for runc"
  line registry "$no_registry" "$open; $closed asks for a password"
}

# --- subcommands

own_state() { # nobody else may have laid a trap in a directory that root writes to
  [ -d "$state" ] || (umask 077 && mkdir -p "$state") || stop_here "$state cannot be created"
  if [ ! -O "$state" ] || [ -L "$state" ]; then stop_here "$state belongs to another user"; fi
  chmod 0700 "$state"
}
lock() { # one at a time
  exec 9>"$state/lock"
  flock -w 900 9 || { say "another setup of $state does not end" >&2; exit 1; }
}
root() { [ "$(id -u)" = 0 ] || stop_here "it needs root"; }
up() {
  root
  own_state
  lock
  local program
  packages
  for program in dockerd docker containerd runc iptables-save ip curl busybox; do
    command -v $program >/dev/null || stop_here "$program is missing and could not be installed (see $state/apt.log)"
  done
  gvisor_package
  save_host
  made=()
  work=$(mktemp -d "$state/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  if configure || ! daemon_runs; then
    end dockerd
    rm -f "$state/runtimes"
    if ! start_daemon; then
      take_down
      stop_here "dockerd does not start: $(last_words)"
    fi
    say "started dockerd $(client version --format '{{.Server.Version}}')"
  fi
  images
  registries
  probe_runtimes
  rm -f "$state/unavailable"
  write_env
  [ ${#made[@]} -eq 0 ] || say "made ${made[*]}"
  summary
}
cgroups() { find /sys/fs/cgroup -maxdepth 2 -type d -name $cgroup 2>/dev/null || true; }
kill_containers() { # what a daemon that cannot be asked left behind: shims, then everything in our cgroup
  local pid
  for pid in /proc/[0-9]*; do
    if tr '\0' ' ' 2>/dev/null <"$pid/cmdline" | grep -q "^[^ ]*containerd-shim.* -address $state/"; then
      kill -9 "${pid#/proc/}" 2>/dev/null || true
    fi
  done
  cgroups | while read -r path; do
    find "$path" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done | sort -u | while read -r pid; do kill -9 "$pid" 2>/dev/null || true; done
}
take_down() {
  local path
  end dockerd
  end containerd # before the shims, for whose sake it would start others
  kill_containers
  end registry-open
  end registry-auth
  awk -v state="$state/" 'index($5, state) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
    while read -r path; do umount --lazy "$path" || true; done
  cgroups | while read -r path; do find "$path" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
  restore_host
  for path in $(bridges); do ip link delete "$path" || true; done
  rm -rf "$state"/{env,daemon.json,runtimes,unavailable,exec,containerd-run,dockerd.pidfile} "$state"/*.sock* "$state"/work.*
}
down() { # --purge
  root
  [ -d "$state" ] || return 0
  own_state
  lock
  local container
  if [ -e "$state/saved" ]; then
    # A daemon that was killed comes back for this, to take its own rules and networks away.
    if daemon_runs || start_daemon; then
      for container in $(client ps --all --quiet); do client rm --force --volumes "$container" >/dev/null || true; done
      client network prune --force >/dev/null || true
    fi
    take_down
  fi
  if [ "${1:-}" = --purge ]; then rm -rf "$state"; fi
}

case ${1:-up} in
  up) up ;;
  down) down "${2:-}" ;;
  packages)
    root
    own_state
    lock
    packages
    ;;
  env) cat "$state/env" 2>/dev/null || { say "run $0 up first" >&2; exit 3; } ;;
  status)
    if [ -e "$state/unavailable" ]; then say "docker: not available: $(cat "$state/unavailable")"; exit 3; fi
    if ! daemon_runs || [ ! -s "$state/runtimes" ]; then say "docker: not available: not started; run $0 up"; exit 3; fi
    no_registry=
    registry_answers $open && registry_answers $closed || no_registry="it does not answer"
    summary
    ;;
  kill-daemon)
    pid=$(pid_of dockerd) || { say "dockerd does not run" >&2; exit 1; }
    kill -9 "$pid"
    within 5 gone dockerd
    ;;
  start-daemon)
    [ -e "$state/saved" ] || { say "run $0 up first" >&2; exit 1; }
    lock
    start_daemon || { say "dockerd does not start: $(last_words)" >&2; exit 1; }
    ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$script" >&2; exit 2 ;;
esac
