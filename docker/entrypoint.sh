#!/bin/sh
# Without arguments: the profile that the image was built for. With options only: options of
# `asys-run`. Otherwise: the command that was given (asys-bench, sh, ...).
set -eu
case "${1-}" in
  "")
    case "${ASYS_PROFILE:-CONSUMER}" in
      HPC) set -- asys-run --config profile_hpc.yaml ;;
      CONSUMER) set -- asys-run --config profile_consumer.yaml ;;
      *) echo "ASYS_PROFILE=$ASYS_PROFILE; valid: CONSUMER, HPC" >&2; exit 2 ;;
    esac ;;
  -*) set -- asys-run "$@" ;;
esac
exec "$@"
