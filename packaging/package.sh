#!/bin/sh
# Makes the Debian package and the RPM package in target/package/ of what target/release has.
# packaging/README.md says what is in them. VERSION=1.2.3 gives the packages another version; those
# of other versions stay.
set -eu
cd "$(dirname "$0")/.."
out=target/package
files=$out/files
tools=${XDG_CACHE_HOME:-$HOME/.cache}/vm-agent/tools
agent=target/release/vm-agent
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)}

for tool in cargo-deb@3.8.0 cargo-generate-rpm@0.21.1; do
    [ -x "$tools/bin/${tool%@*}" ] || cargo install --locked --root "$tools" "$tool"
done

# The files that both packages have, as they lie on a machine.
rm -rf "$files" "$out/debian"
put() { # FILE DIRECTORY [NAME]
    install -D -m 644 "$1" "$files/$2/${3:-$(basename "$1")}"
}
for unit in vm-agent.service vm-agent-proxy.socket vm-agent-proxy@.service vm-agent-ready.service vm-agent-ready.target vm-agent-capture.service; do
    put systemd/$unit usr/lib/systemd/system
done
put systemd/vm-agent.sysusers usr/lib/sysusers.d vm-agent.conf
put systemd/vm-agent.tmpfiles usr/lib/tmpfiles.d vm-agent.conf
# A purge removes Envoy's user if it is the one made here, which it knows by its comment.
gecos=$(sed -n 's/^u[^"]*"\([^"]*\)".*/\1/p' systemd/vm-agent.sysusers)
[ -n "$gecos" ]
mkdir -p "$out/debian"
for script in postinst prerm postrm; do
    sed "s|@GECOS@|$gecos|" "packaging/debian/$script" >"$out/debian/$script"
done
"$agent" man "$files/usr/share/man/man1"
gzip -9n "$files"/usr/share/man/man1/*.1
for shell in bash zsh fish; do
    "$agent" completions $shell >"$out/vm-agent.$shell"
done
put "$out/vm-agent.bash" usr/share/bash-completion/completions vm-agent
put "$out/vm-agent.fish" usr/share/fish/vendor_completions.d
install -D -m 644 "$out/vm-agent.zsh" "$out/zsh/_vm-agent"
doc=usr/share/doc/vm-agent
put README.md $doc
put CHANGELOG.md $doc changelog
gzip -9n "$files/$doc/changelog"
for page in docs/*.md; do
    case $page in docs/architecture.md | docs/contributing.md) ;; *) put "$page" $doc ;; esac
done
for example in packaging/kubernetes/* packaging/cloud-init/*; do
    folder=$(basename "$(dirname "$example")")
    [ ! -f "$example" ] || put "$example" "$doc/examples/$folder"
done

python3 packaging/debian/changelog.py "$version" <CHANGELOG.md >"$out/changelog"
deb=$out/vm-agent_$version-1_$(dpkg --print-architecture).deb
rpm=$out/vm-agent-$version-1.$(uname -m).rpm
"$tools/bin/cargo-deb" deb --quiet --no-build --no-strip --deb-version "$version-1" --output "$deb" >/dev/null
"$tools/bin/cargo-generate-rpm" generate-rpm --auto-req builtin \
    --set-metadata "version = \"$version\"" --output "$rpm"

# Both have the same files, but for what each distribution wants elsewhere.
apart='/usr/share/doc/vm-agent/(copyright|changelog\.Debian\.gz)$|/usr/share/licenses/|/usr/share/lintian/|/_vm-agent$'
dpkg-deb -c "$deb" | awk '$1 !~ /^d/ { sub(/^\./, "", $6); print $6 }' |
    grep -Ev "$apart" | sort >"$out/deb.files"
if command -v rpm >/dev/null; then
    rpm -qlp "$rpm" 2>/dev/null | grep -Ev "$apart" | sort >"$out/rpm.files"
    diff "$out/deb.files" "$out/rpm.files"
fi
ls -l "$deb" "$rpm"
