#!/usr/bin/env bash
# Link the pages of the documentation, and the files they point at, into a directory for mkdocs.
set -euo pipefail
cd "$(dirname "$0")/.."
pages=${1:-build/site/pages}
rm -rf "$pages"
git ls-files --cached --others --exclude-standard -- ./*.md docs examples deploy images LICENSE |
  while read -r path; do
    install -d "$pages/$(dirname "$path")"
    ln -s "$PWD/$path" "$pages/$path"
  done
