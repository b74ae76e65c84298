# ---- what happens, for people (the job's log) and programs (events/job-ATTEMPT.jsonl, slurm/attempts)
restart=${SLURM_RESTART_COUNT:-0}
attempt=$SLURM_JOB_ID.$restart
export SHARDLINE_ATTEMPT=$attempt PYTHONUNBUFFERED=1
MARKS=$RUN/slurm/marks-$attempt # what ranks leave there says why they ended: see slurm/rank.py
LOG=$RUN/slurm/train-$SLURM_JOB_ID.log
heard=$(stat -c %s "$LOG" 2>/dev/null || echo 0) # its bytes of earlier starts
stopping=0 term=0 asker= ranks=
mkdir -p "$RUN/slurm" "$RUN/logs" "$RUN/events"
touch "$RUN/slurm/attempts"
log() { echo "$(date '+%F %T') [$attempt] $*" >&2; }
words() { echo "${*//[^A-Za-z0-9_.,:;()+\/\[\] -]/?}"; } # for a JSON string
event() { # EVENT [MORE KEYS]
  echo "{\"time\": $(date +%s.%N), \"event\": \"$1\", \"job\": $SLURM_JOB_ID, \"restart\": $restart${2:+, $2}}" \
    >>"$RUN/events/job-$attempt.jsonl"
}
note() { echo "$1 $attempt $2" >>"$RUN/slurm/attempts"; }
newest() { cat "$RUN/checkpoints/latest" 2>/dev/null || echo none; }
marked() { [ -e "$MARKS/$1" ]; }
blamed() { # CAUSE: nodes that ranks left a mark of
  ls "$MARKS" 2>/dev/null | sed -n "s/^$1-//p" | grep -xFf <(all_nodes)
}
allocated() { scontrol show hostnames "$SLURM_JOB_NODELIST"; } # needs no controller
all_nodes() { allocated | head -n "$NODES"; } # those that this start uses
join() { paste -sd,; }
without() { grep -vxFf <(echo "$1"); } # LINES: those of stdin that are not among them
taken_over() { # whether a later start holds the run (see training/fence.py)
  local job count
  IFS=. read -r job count 2>/dev/null <"$RUN/attempt" || return 1
  [[ "$job $count" =~ ^[0-9]+\ [0-9]+$ ]] || return 1
  ((job > SLURM_JOB_ID || (job == SLURM_JOB_ID && count > restart)))
}
leave_if_taken_over() {
  taken_over || return 0
  log "a later start holds the run by now: this one says no more"
  exit 1
}
end() { # REASON MESSAGE
  log "$2"
  leave_if_taken_over
  note end "$1"
  event job_end "\"reason\": \"$1\", \"message\": \"$(words "$2")\""
}

# ---- Slurm's controller, which may be away for minutes: it restarts, or its host does
ANSWER=
pause() { sleep "$1" & wait $!; } # ends early when a signal comes
controller_is_up() { timeout --kill-after=5 60 scontrol ping 2>/dev/null | grep -q ' is UP'; }
patiently() { # COMMAND...: its output goes to ANSWER; tried again while the controller is away; 1 when it is refused
  local refusals=0 said="" deadline=$((SECONDS + ${SHARDLINE_CONTROLLER_PATIENCE:-900}))
  while [ "$refusals" -lt 2 ]; do # twice: it may have come back between the command and the question whether it is up
    ANSWER=$(timeout --kill-after=5 60 "$@") && return 0
    if controller_is_up; then
      refusals=$((refusals + 1))
    else
      [ -n "$said" ] || log "Slurm's controller does not answer: waiting for it"
      said=1
      leave_if_taken_over
      [ "$SECONDS" -lt "$deadline" ] || break
      pause 5
    fi
    [ "$term" = 0 ] || break
  done
  ANSWER=
  return 1
}
field() { sed -n "s/.* $1=\([^ ]*\).*/\1/p"; } # NAME, of `scontrol -o show job`
restarted() { # by what `scontrol` says: whether Slurm has started the job again since
  local now
  now=$(field Restarts <<<"$1")
  [[ $now =~ ^[0-9]+$ ]] && ((now > restart))
}
leave_if_superseded() { # the job may run elsewhere by now, while this node is out of Slurm's sight
  leave_if_taken_over
  patiently scontrol -o show job "$SLURM_JOB_ID" && restarted "$ANSWER" || return 0
  log "this start is over: the job went on without it"
  exit 1
}
state() { # of the job, to ANSWER; empty when Slurm knows it no more
  patiently squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T
}

# ---- other jobs of this run
later_jobs() { # of the chain, which are still waiting
  [ -e "$RUN/slurm/chain" ] && patiently squeue --noheader --me --states=PENDING --format=%A || return 0
  sed "0,/^$SLURM_JOB_ID\$/d" "$RUN/slurm/chain" | grep -xFf <(echo "$ANSWER")
}
drop_later_jobs() { for job in $(later_jobs); do patiently scancel --quiet "$job"; done; }
give_up() { # REASON STATUS MESSAGE
  leave_if_superseded
  end "$1" "$3"
  drop_later_jobs
  exit "$2"
}

# ---- signals: USR1 is Slurm's warning before the time limit; TERM means that Slurm ends or moves the job by itself
ask_ranks() { # to save, again and again, as what is just starting up hears nothing; srun passes it on by itself
  [ -n "$ranks" ] && [ -z "$asker" ] || return 0
  until taken_over || ! kill -USR1 "$ranks" 2>/dev/null; do sleep 10; done &
  asker=$!
}
trap 'stopping=1; log "USR1: the time limit is near, the ranks save"; ask_ranks' USR1
trap 'term=1; log TERM' TERM
await() { # PID: its exit status, whatever signals come meanwhile
  local status
  while :; do
    wait "$1"
    status=$?
    kill -0 "$1" 2>/dev/null || return "$status"
  done
}

# ---- starting again
start_again() { [ "$REQUEUE" = 1 ] && patiently scontrol requeue "$SLURM_JOB_ID"; }
requeue() { # REASON MESSAGE
  leave_if_superseded
  end "$1" "$2"
  if ! start_again && [ "$term" = 0 ]; then
    if [ -n "$(later_jobs)" ]; then
      log "the next job of the chain goes on"
    else
      log "Slurm does not requeue this job; submit it again"
    fi
    exit 1
  fi
  for ((i = 0; i < 300 && !term; i++)); do pause 1; done
  exit 1
}
requeue_without() { # REASON MESSAGE NODE...: Slurm takes exclusions for pending jobs only, as this one is once requeued
  leave_if_superseded
  local reason=$1 message=$2 before all
  shift 2
  patiently scontrol -o show job "$SLURM_JOB_ID"
  before=$(field ExcNodeList <<<"$ANSWER" | grep -vxF '(null)')
  all=$(printf '%s\n' "$@" | join)${before:+,$before}
  patiently sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --states=idle,alloc,mix,comp --format=%N
  if [ "$(sort -u <<<"$ANSWER" | without "$(scontrol show hostnames "$all")" | wc -w)" -lt "$FEWEST" ]; then
    give_up broken_nodes 1 "$message; partition $SLURM_JOB_PARTITION has not $FEWEST others, so the job stops"
  fi
  end "$reason" "$message; it goes on without"
  for job in $(later_jobs); do patiently scontrol update JobId="$job" ExcNodeList="$all"; done
  start_again || [ "$term" = 1 ] || exit 1
  for ((i = 0; i < 100; i++)); do
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$all" 2>/dev/null && break
    sleep 0.1
  done
  exit 1
}

# ---- nodes that do not answer
PROBE=(timeout --kill-after=5 60 srun --export=ALL --overlap --ntasks-per-node=1 --kill-on-bad-exit=0)
refusal() { # FILE: why srun starts nothing at all, by its own words there; that is no node's fault
  grep -ahm1 'srun: fatal: \|srun: error: Unable to create step\|srun: unrecognized option\|srun: invalid option' "$1" \
    2>/dev/null | grep -v 'completing or completed'
}
look_for_dead_nodes() { # to DEAD, a line each; to REFUSAL why nobody could be asked. One srun asks them all
  local all number answered silent said=$RUN/slurm/probe-$attempt
  DEAD= REFUSAL=
  all=$(allocated)
  number=$(wc -l <<<"$all")
  answered=$("${PROBE[@]}" --nodes="$number" --ntasks="$number" printenv SLURMD_NODENAME 2>"$said")
  silent=$(without "$answered" <<<"$all")
  [ -n "$answered" ] || REFUSAL=$(refusal "$said")
  rm -f "$said"
  [ -n "$silent" ] && [ -z "$REFUSAL" ] || return 0
  if [ "$(wc -l <<<"$silent")" -le 64 ]; then # a dead node may have kept others from answering: each is asked alone
    DEAD=$(xargs -P 16 -n 1 "$BASH" -c '"${@:1:$#-1}" --nodes=1 --ntasks=1 --nodelist="${!#}" true >/dev/null 2>&1 ||
      echo "${!#}"' - "${PROBE[@]}" <<<"$silent" | sort)
  else
    DEAD=$silent
  fi
}
leave_dead_nodes() { # Slurm moves the job off dead nodes; requeueing it before Slurm has seen them leaks their GPUs (22.05)
  local dead="" patience
  [ "$term" = 0 ] || return 0
  state
  if [ "$ANSWER" = RUNNING ]; then
    look_for_dead_nodes
    [ -z "$REFUSAL" ] || log "no node could be asked whether it lives: $REFUSAL"
    [ -n "$DEAD" ] || return 0
    dead=$(join <<<"$DEAD")
    event node_lost "\"nodes\": \"$(words "$dead")\""
    remember lost "did not answer" $DEAD
  fi
  patiently scontrol show config
  patience=$(sed -n 's/^SlurmdTimeout *= \([0-9]*\).*/\1/p' <<<"$ANSWER")
  patience=$((${patience:-300} * 2 + 60))
  log "${dead:-a node} does not answer: waiting up to $patience s for Slurm to move the job"
  for ((i = 0; i < patience && !term; i++)); do
    leave_if_taken_over
    pause 1
  done
}
# ---- whether to start again: each cause has so many restarts that bring no newer checkpoint
told() { grep -qis -- "$1" "$RUN/events/error-$attempt-"*.jsonl; } # PATTERN, by a rank in its last words
srun_said() { tail -c "+$((heard + 1))" "$LOG" 2>/dev/null | grep -a '^srun: \|^slurmstepd'; }
cause() { # why the ranks broke, by what they, srun and Slurm's daemons on the nodes left
  if srun_said | grep -qi 'oom.kill\|out of memory' || told 'out of memory\|OutOfMemory\|MemoryError'; then
    echo out_of_memory
  elif ls "$MARKS" 2>/dev/null | grep -q '^hang' || told 'got nowhere for'; then
    echo hang
  elif srun_said | grep -m1 ': task' | grep -q ': Killed$'; then # others are killed by srun, once one has ended
    echo killed
  elif ! grep -qs "\"event\": \"start\".*\"attempt\": \"$attempt\"" "$RUN/events.jsonl"; then
    echo start
  else
    echo broken
  fi
}
fruitless() { # CAUSE: how many starts in a row began at the newest checkpoint and ended by it, this one among them
  local kind what began="" count=0 now
  now=$(newest)
  while read -r kind _ what; do
    case $kind in
      submit) count=0 began="" ;;
      begin)
        [ "$began $1" != "$now node_lost" ] || count=$((count + 1)) # the one before went with its node
        began=$what
        [ "$began" = "$now" ] || count=0
        ;;
      end)
        [ "$began $1" != "$now $what" ] || count=$((count + 1))
        began=""
        ;;
    esac
  done <"$RUN/slurm/attempts"
  [ "$began" != "$now" ] || count=$((count + 1))
  echo "$count"
}
in_words() { # CAUSE
  case $1 in
    broken) echo "the ranks broke" ;;
    corrupt) echo "a node computed something else than the others" ;;
    hang) echo "the ranks hung" ;;
    killed) echo "a rank was killed" ;;
    node_lost) echo "a node was lost" ;;
    out_of_memory) echo "memory ran out" ;;
    start) echo "the ranks ended before they began to train" ;;
    time) echo "the time limit came" ;;
  esac
}
refuse_crash_loop() { # CAUSE
  local allowed=${RESTARTS[$1]}
  [ "$(fruitless "$1")" -le "$allowed" ] || give_up crash_loop 1 "$(in_words "$1"), and $allowed restarts after that brought \
no newer checkpoint than $(newest): giving up; see $RUN/logs, mend, submit again"
}

# ---- nodes that fail, for all runs of this site: `shardline submit` leaves out those that do so again and again
remember_node() { # CAUSE WHY NODE; no job ends for want of this file
  (
    umask 002 # a group may share the file
    mkdir -p "$(dirname "$NODES_FILE")" && touch "$NODES_FILE" || exit 1
    torn=$(tail -c1 "$NODES_FILE") newline=$'\n' # what is left of a line stays a line of its own
    echo "${torn:+$newline}{\"time\": $(date +%s.%N), \"node\": \"$(words "$3")\", \"cause\": \"$1\", \
\"why\": \"$(words "$2")\", \"run\": \"$(words "$RUN")\", \"job\": $SLURM_JOB_ID}" >>"$NODES_FILE"
  ) 2>/dev/null || log "$NODES_FILE: not written, so $3 is not remembered to have failed ($1)"
}
befell_all() { [ "$1" -ge "$NODES" ] && [ "$NODES" -gt 1 ]; } # NUMBER: of nodes; then it is no node's fault
remember() { # CAUSE WHY NODE...
  local cause=$1 why=$2 node
  shift 2
  befell_all "$#" || for node in "$@"; do remember_node "$cause" "$why" "$node"; done
}
lost_nodes() { # that Slurm told srun of
  local said
  said=$(srun_said | sed -n 's/^srun: error: Node failure on //p' | join)
  [ -z "$said" ] || scontrol show hostnames "$said"
}
ended_by_slurm() { # after TERM: a lost node, preemption, scancel or scontrol requeue
  local lost
  lost=$(lost_nodes)
  [ -n "$lost" ] || { end terminated "Slurm ended the job"; exit 143; }
  remember lost "Slurm lost it" $lost
  end node_lost "Slurm moves the job off $(join <<<"$lost")"
  exit 143
}
remember_lost_nodes() { # of the start before, which Slurm ended or which went with its node: those that are down by now
  local before nodes
  before=$RUN/events/job-$SLURM_JOB_ID.$((restart - 1)).jsonl
  [ -e "$before" ] && ! grep '"event": "job_end"' "$before" | grep -qv '"terminated"\|"node_lost"' || return 0
  nodes=$(sed -n 's/.*"event": "job_start".*"nodes": "\([^"]*\)".*/\1/p' "$before")
  patiently sinfo --noheader --Node --nodes="$nodes" --states=down --format=%N
  remember lost "it took a start of the job along" $(sort -u <<<"$ANSWER")
}
refuse_two_jobs() {
  local other
  other=$(sed -n 's/^\([0-9]*\)\.[0-9]*$/\1/p' "$RUN/attempt" 2>/dev/null)
  [ -n "$other" ] && [ "$other" != "$SLURM_JOB_ID" ] || return 0
  patiently "$BASH" -c 'squeue --noheader --jobs="$1" --states=RUNNING --format=%A 2>/dev/null' - "$other"
  [ -z "$ANSWER" ] || give_up refused 1 "job $other is training this run already"
}
