# ---- as many nodes as there are: a job that asks for a range gets what is free when it starts
WANTED={{ nodes }} RANKS_PER_NODE={{ profile.num_ranks }}
PATIENCE={{ wait_seconds }} # seconds that a start with fewer waits for more, before ranks start
USABLE=({{ usable | join(" ") }}) # numbers of nodes whose ranks can share the batch
usable() { # NUMBER: the largest of them that is not above it
  local each best=$FEWEST
  for each in "${USABLE[@]}"; do ((each > $1)) || best=$each; done
  echo "$best"
}
within_reach() { # nodes that this job has, or could have if it asked again
  local left_out own= free=idle
  if [ -n "${SLURM_JOB_RESERVATION-}" ]; then # it gets nodes of this one and no others
    free=resv
    patiently scontrol -o show reservation "$SLURM_JOB_RESERVATION"
    own=$(scontrol show hostnames "$(field Nodes <<<"$ANSWER")")
  fi
  patiently scontrol -o show job "$SLURM_JOB_ID"
  left_out=$(field ExcNodeList <<<"$ANSWER" | grep -vxF '(null)')
  patiently sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --states="$free" --format='%N %t'
  ANSWER=$(awk -v free="$free" '{ sub(/~$/, "", $2) } $2 == free { print $1 }' <<<"$ANSWER") # no resv that is down too
  [ -z "$own" ] || ANSWER=$(grep -xFf <(echo "$own") <<<"$ANSWER")
  { allocated; without "${left_out:+$(scontrol show hostnames "$left_out")}" <<<"$ANSWER"; } | sort -u | grep -c .
}
wait_for_nodes() { # a node that was lost is often back within minutes; asking again then costs one more start
  local deadline=$((SECONDS + PATIENCE)) there
  log "$(allocated | wc -l) nodes of $WANTED: waiting up to $PATIENCE s for more"
  event wait_for_nodes
  there=$(within_reach)
  while [ "$there" -lt "$WANTED" ] && [ "$SECONDS" -lt "$deadline" ] && [ "$term$stopping" = 00 ]; do
    pause 5
    there=$(within_reach)
  done
  [ "$term$stopping" = 00 ] && [ "$(usable "$there")" -gt "$NODES" ] || return 0
  requeue grow "$there nodes are there by now; starts again to use them"
}
has_just_tried() { [ "$(tail -n 2 "$RUN/slurm/attempts" | sed -n '1s/.* //p')" = grow ]; } # and others were faster
use_nodes() { # the first of those that this job has, as many as can share the batch
  local have
  have=$(allocated | wc -l)
  NODES=$(usable "$have")
  [ "$have" -ge "$WANTED" ] || [ "$PATIENCE" = 0 ] || has_just_tried || wait_for_nodes
  LAUNCH+=(--nodes="$NODES" --ntasks="$((NODES * RANKS_PER_NODE))" --ntasks-per-node="$RANKS_PER_NODE")
  [ "$NODES" -lt "$WANTED" ] || return 0
  [ "$NODES" -eq "$have" ] || LAUNCH+=(--nodelist="$(all_nodes | join)")
  log "goes on with $NODES nodes; $WANTED are wanted, it has $have"
  event fewer_nodes "\"wanted\": $WANTED, \"have\": $have, \"use\": $NODES"
}
