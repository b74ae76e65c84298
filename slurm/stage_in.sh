# ---- the Python environment, from one archive to the disk of each node
unpack() { # ARCHIVE PLACE: on a node. Whoever is first renames it into place; what is there already is used as it is
  local aside=$2.$SLURM_JOB_ID.tmp status
  [ ! -d "$2" ] || return 0
  rm -rf "$aside"
  mkdir -p "$aside" && tar -xf "$1" -C "$aside" && sync -f "$aside" && { mv -T "$aside" "$2" 2>/dev/null || [ -d "$2" ]; }
  status=$?
  rm -rf "$aside"
  return "$status"
}
stage_in() { # an archive has its own folder by its digest, so that one in use is never changed
  local answered silent why place said=$RUN/slurm/stage-in-$attempt
  place={{ profile.stage_in.to | expand }}/$(sha256sum <{{ profile.stage_in.archive | quote }} | cut -c1-32)
  timeout --kill-after=10 {{ profile.stage_in.timeout_seconds }} "${LAUNCH[@]}" --kill-on-bad-exit=0 --wait=0 \
    --ntasks="$NODES" --ntasks-per-node=1 "$BASH" -c "$(declare -f unpack)"'; unpack "$@" && printenv SLURMD_NODENAME' - \
    {{ profile.stage_in.archive | quote }} "$place" >"$said" &
  await $!
  answered=$(cat "$said")
  rm -f "$said"
  silent=$(without "$answered" <<<"$(all_nodes)")
  PYTHON=$place/{{ profile.stage_in.python | quote }}
  [ -n "$silent" ] && [ "$term$stopping" = 00 ] || return 0
  leave_dead_nodes
  [ "$term" = 0 ] || return 0
  why="did not unpack "{{ profile.stage_in.archive | quote }}", see the last lines above"
  [ -n "$answered" ] || give_up mistake 2 "the nodes $why"
  for node in $silent; do event unhealthy "\"node\": \"$(words "$node")\", \"why\": \"$(words "$why")\""; done
  remember unhealthy "$why" $silent
  requeue_without unhealthy "$(join <<<"$silent") $why" $silent
}
