//! What runs of state sync went through, counted, and how much of it a thousand seeds must show.

use crate::coverage::counts;

counts! {
    frames_written: 0, "frames written";
    changes_written: 0, "changes in them";
    writes_refused: 0, "writes refused by what was there";
    writes_blocked: 0, "writes refused by sync: below a floor, own frames missing, ended";
    acknowledged: 0, "frames acknowledged as durable";
    by_log: 0, "frames that the log ordered";
    by_log_again: 0, "of these, once more";
    pushed_late: 0, "frames pushed because the log did not answer";
    known_again: 0, "frames that came to a node that had them";
    held: 0, "looks at a node whose store held something back";
    gaps: 0, "looks at a node that had applied changes behind a gap";
    looks: 0, "looks at what a node shows, judged by the model";
    conflicts: 0, "conflicts counted at the end, each run once";
    clashes: 0, "looks at a node that showed a clash of kinds";
    impure: 0, "resolutions that depended on order, and were not believed";
    exchanges: 0, "exchanges";
    audits: 0, "steps of audits";
    crashes: 0, "crashes";
    crashes_at_tickets: 0, "of these, before, at and after a sync, and between effects";
    records_lost: 0, "records not yet synced that a crash lost";
    torn_writes: 0, "records torn by a crash";
    own_frames_lost: 0, "restarts that forgot frames of their own";
    restarts: 0, "nodes that came back from their disk";
    disks_wiped: 0, "disks lost for good";
    incarnations: 0, "nodes that came back as their next incarnation";
    snapshots_saved: 0, "snapshots saved";
    snapshots_gone: 0, "snapshots installed because frames were gone";
    snapshots_branch: 0, "snapshots installed because another branch was decided";
    snapshots_floor: 0, "snapshots installed by nodes below a floor";
    snapshots_refused: 0, "snapshots that were not taken";
    floors: 0, "floors committed";
    floors_refused: 0, "floors that too few agreed to";
    tombstones_collected: 0, "keys whose tombstones went at a floor";
    partitions: 0, "partitions";
    one_way_partitions: 0, "of these, one-way";
    messages_lost: 0, "messages dropped";
    messages_doubled: 0, "messages duplicated";
    liars: 0, "nodes that lied";
    lies_told: 0, "messages that a liar altered, invented or repeated";
    equivocations: 0, "origins that signed two histories";
    frozen: 0, "nodes that held a proof";
    halts: 0, "origins halted before their end was decided";
    cuts: 0, "decisions where an origin ends";
    withholders_named: 0, "times that a node named one who does not acknowledge";
    withholders_excluded: 0, "of these, excluded by the operator";
    forged: 0, "frames refused: signature";
    malformed: 0, "messages refused: no message, or beyond a limit";
    clock_ahead: 0, "frames refused: too far in the future";
    frozen_refused: 0, "frames refused: their origin contradicted itself";
    false_heads: 0, "promises that were not kept";
    many_origins: 0, "runs with 16 or more origins";
    most_origins: 0, "runs with 64 origins";
    real_signatures: 0, "runs with Ed25519";
}
