#!/usr/bin/env bash
# Fetch the libraries of the chat page from the npm registry, at pinned versions, into edge/serve/web/vendor/.
#
#   bash scripts/vendor-web.sh          fetch everything again and write SHA256SUMS; git then shows what changed
#   bash scripts/vendor-web.sh --check  fetch nothing: compare the files with SHA256SUMS
#   bash scripts/vendor-web.sh --help   this text
#
# Needs npm, only to fetch; the page itself has no build step. To move a version: edit it here, run this, run
# scripts/test.sh tests/serve. Files are taken as they were published, except that the font list of KaTeX's style sheet
# loses its woff and ttf copies: every browser of the last ten years reads woff2.

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

MARKDOWN_IT=15.0.3
DOMPURIFY=3.4.18
KATEX=0.19.1
HIGHLIGHT=11.12.0
# what people ask a small model to write; anything else is shown without colours
LANGUAGES=(bash c cpp css diff dockerfile go ini java javascript json kotlin lua makefile markdown php python r ruby
  rust shell sql swift typescript xml yaml)

vendor=$root/edge/serve/web/vendor
check=no
for arg in "$@"; do
  case $arg in
    --check) check=yes ;;
    -h | --help) help && exit ;;
    *) misused "unknown option $arg" ;;
  esac
done

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }

if [ "$check" = yes ]; then
  cd -- "$vendor"
  sha256 --check --quiet SHA256SUMS || die "a vendored file is not what was fetched; run: bash scripts/vendor-web.sh"
  exit
fi
command -v npm >/dev/null || die "npm is not there; install Node.js, or leave the vendored files as they are"

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

fetch() { # fetch PACKAGE VERSION -> its folder
  mkdir -p -- "$work/$1"
  (cd -- "$work/$1" && npm pack --silent "$1@$2" >/dev/null && tar -xzf ./*.tgz) || die "cannot fetch $1 $2 from npm"
  printf '%s\n' "$work/$1/package"
}

new=$work/vendor
mkdir -p -- "$new/markdown-it" "$new/dompurify" "$new/katex/fonts" "$new/highlight/languages"

from=$(fetch markdown-it "$MARKDOWN_IT")
cp -- "$from/LICENSE" "$from/dist/browser/markdown-it.esm.min.mjs" "$new/markdown-it/"

from=$(fetch dompurify "$DOMPURIFY")
cp -- "$from/LICENSE" "$from/dist/purify.min.js" "$new/dompurify/"

from=$(fetch katex "$KATEX")
cp -- "$from/LICENSE" "$from/dist/katex.min.js" "$new/katex/"
cp -- "$from"/dist/fonts/*.woff2 "$new/katex/fonts/"
sed -E 's/,url\([^)]*\.(woff|ttf)\) format\("[a-z0-9]+"\)//g' "$from/dist/katex.min.css" >"$new/katex/katex.min.css"

from=$(fetch @highlightjs/cdn-assets "$HIGHLIGHT")
cp -- "$from/LICENSE" "$from/es/core.min.js" "$new/highlight/"
for language in "${LANGUAGES[@]}"; do
  cp -- "$from/es/languages/$language.min.js" "$new/highlight/languages/"
done

cat >"$new/README.md" <<END
# Libraries of the chat page

Fetched by \`scripts/vendor-web.sh\` from the npm registry; each folder holds its licence. Do not edit: the tests compare
every file with \`SHA256SUMS\`.

| folder | version | licence | what for |
|---|---|---|---|
| markdown-it | $MARKDOWN_IT | MIT | Markdown to HTML |
| dompurify | $DOMPURIFY | Apache-2.0 or MPL-2.0 | the last gate before anything enters the page |
| katex | $KATEX | MIT, fonts OFL-1.1 | mathematics |
| highlight | $HIGHLIGHT | BSD-3-Clause | colours in code |
END
sums=$(cd -- "$new" && find . -type f | LC_ALL=C sort | while read -r file; do sha256 "$file"; done)
printf '%s\n' "$sums" >"$new/SHA256SUMS"
chmod -R u=rwX,go=rX "$new"
rm -rf -- "$vendor"
mv -- "$new" "$vendor"
say "vendored into ${vendor#"$root"/}"
