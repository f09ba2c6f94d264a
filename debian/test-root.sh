#!/usr/bin/env bash
# Make OUTPUT.tar, a Debian with what the package depends on, for its test; left alone while it is the same.
set -euo pipefail
cd "$(dirname "$0")"
output=$1
depends=$(sed -n '/^Depends:/,/^Recommends:/p' control | sed 's/^Depends://; /^Recommends/d; s/([^)]*)//g' |
	tr -d ' \n')
inputs=$(echo "$depends" | cat - "$0" | sha256sum | cut -d ' ' -f 1)
exec 9>"$output.lock"
flock 9
[ ! -e "$output" ] || [ "$(cat "$output.inputs" 2>/dev/null)" != "$inputs" ] || exit 0
options=()
while read -r line; do
	options+=(--aptopt="$line")
done < <(apt-config dump --no-empty Acquire |
	grep -v '^Acquire::\(GzipIndexes\|CompressionTypes\|Languages\)')
mirrors() {
	apt-get indextargets --format '$(ORIGIN) $(SIGNED_BY) $(REPO_URI) $(CODENAME) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' |
		awk '$1 == "Debian" && $4 ~ "^trixie($|-)" && $3 ~ /^https?:/ {
			print "deb [signed-by=" $2 "]", $3, $5, $6
		}' | sort -u
}
sources=$(mirrors)
[ -n "$sources" ] || { apt-get update >/dev/null && sources=$(mirrors); }
mmdebstrap --quiet --variant=minbase --format=tar --include="$depends" "${options[@]}" \
	--aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	trixie "$output.new" - <<<"$sources"
mv "$output.new" "$output"
echo "$inputs" >"$output.inputs"
