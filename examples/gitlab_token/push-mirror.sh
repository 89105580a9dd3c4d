#!/bin/sh
# git asks this script for the password; the token is in no URL and in no file.
set -eu
if [ "${1-}" ]; then
  printf '%s\n' "$JOBPASS_TOKEN"
  exit
fi
GIT_ASKPASS=$(pwd)/push-mirror.sh git push "https://jobpass@gitlab.acme.example/mirrors/api.git" "$GITHUB_REF_NAME"
