#!/usr/bin/env bash
# Runs tiers of the test suite one after the other: tiers.sh TARGET... (targets of the Makefile). A tier that fails does
# not keep the others from running; the result and the time of each are printed at the end, and the exit status is 1
# when one failed. A tier that this machine cannot run says so itself, in a line `== tier not run: NAME: REASON`.
set -u
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
summary='' failed=0
# The tiers with the real peers need the release, which one processor builds for minutes, as do lints. Who needs it waits
# for it by cargo's own lock, and builds it again, and says why, where this failed.
case " $* " in
*" check "*" test-istio "*) "${MAKE:-make}" --no-print-directory build >/dev/null 2>&1 & ;;
esac
for tier in "$@"; do
  started=$SECONDS result=passed
  if "${MAKE:-make}" --no-print-directory "$tier" 2>&1 | tee "$log"; [ "${PIPESTATUS[0]}" != 0 ]; then
    result=FAILED failed=$((failed + 1))
  elif grep -q '^== tier not run: ' "$log"; then
    result='not run'
  fi
  summary+=$(printf '  %-16s %-8s %4d s' "$tier" "$result" $((SECONDS - started)))$'\n'
done
printf '== tiers\n%s' "$summary"
if [ "$failed" != 0 ]; then
  echo "== $failed of $# tiers failed"
  exit 1
fi
echo "== no tier failed"
