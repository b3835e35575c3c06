#!/usr/bin/env bash
# Makes the disk that all VMs of this tier start from: a small Debian with systemd and cloud-init, as a cloud's image has
# them. It goes beside the peers and is made anew when this file changes.
set -euo pipefail
PEERS=${VM_AGENT_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/vm-agent/peers}
ROOT=$PEERS/vm-root
RELEASE=bookworm
PACKAGES=(
  systemd systemd-sysv systemd-resolved dbus libpam-systemd udev cloud-init
  iproute2 iptables nftables conntrack iputils-ping procps kmod
  ca-certificates curl openssl python3 sudo less logrotate faketime
)
STAMP="$RELEASE ${PACKAGES[*]} $(sha256sum "$0" | cut -c1-16)"

say() { printf 'vm-root: %s\n' "$*" >&2; }

# What runs the VMs, on this machine.
host_packages() {
  local missing=() pair
  for pair in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container dnsmasq:dnsmasq-base dpkg-deb:dpkg lintian:lintian; do
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

mirror() {
  local found
  found=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $RELEASE" | head -n 1)
  echo "${found:-http://deb.debian.org/debian/}"
}

# Like an image of a cloud: services enabled, no identity of its own.
finish() {
  local root=$1
  systemctl --root="$root" --quiet enable systemd-networkd systemd-networkd-wait-online systemd-resolved \
    cloud-init-local cloud-init cloud-config cloud-final
  ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
  mkdir -p "$root/var/log/journal" "$root/etc/systemd/network/10-cloud-init-eth0.network.d"
  cat >"$root/etc/cloud/cloud.cfg.d/90-tests.cfg" <<'CFG'
datasource_list: [NoCloud, None]
locale: C.UTF-8
apt: {preserve_sources_list: true}
package_update: false
package_upgrade: false
CFG
  # cloud-init 22.4 does not write accept-ra, and without it each boot waits for a router that does not exist.
  printf '[Network]\nIPv6AcceptRA=no\n' >"$root/etc/systemd/network/10-cloud-init-eth0.network.d/tests.conf"
  # Timers of the image would change files while a test looks at them.
  systemctl --root="$root" --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer man-db.timer \
    logrotate.timer e2scrub_all.timer fstrim.timer
  : >"$root/etc/machine-id"
  rm -rf "$root"/etc/hostname "$root"/var/lib/dbus/machine-id "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
}

host_packages
[ "$(cat "$ROOT.stamp" 2>/dev/null)" = "$STAMP" ] && exit 0
[ "$(id -u)" = 0 ] || { say "root is needed to make the VMs' disk: run it with sudo"; exit 1; }
say "making the VMs' disk (a minute, the first time)"
mkdir -p "$PEERS"
rm -rf "$ROOT" "$ROOT.new" "$ROOT.stamp"
included=$(IFS=,; echo "${PACKAGES[*]}")
nice mmdebstrap --variant=minbase --mode=root --include="$included" "$RELEASE" "$ROOT.new" "deb $(mirror) $RELEASE main" >"$ROOT.log" 2>&1 ||
  { tail -n 20 "$ROOT.log" >&2; say "mmdebstrap failed; its whole log is $ROOT.log"; exit 1; }
finish "$ROOT.new"
chmod 755 "$ROOT.new"
mv "$ROOT.new" "$ROOT"
echo "$STAMP" >"$ROOT.stamp"
say "ready in $ROOT, $(du -sm "$ROOT" | cut -f1) MB"
