//! What runs of state sync went through, counted, and how much of it a thousand seeds must show.

use crate::coverage::counts;

counts! {
    frames_written: 100_000, "frames written";
    changes_written: 200_000, "changes in them";
    writes_refused: 18_000, "writes refused by what was there";
    writes_blocked: 830, "writes refused by sync: below a floor, own frames missing, ended";
    acknowledged: 98_000, "frames acknowledged as durable";
    by_log: 16_000, "frames that the log ordered";
    by_log_again: 1_400, "of these, once more";
    pushed_late: 9_000, "frames pushed because the log did not answer";
    known_again: 810_000, "frames that came to a node that had them";
    held: 90_000, "frames that a store held until what they build upon came";
    gaps: 720, "looks at a node that had applied changes behind a gap";
    looks: 31_000, "looks at what a node shows, judged by the model";
    conflicts: 22_000, "conflicts counted at the end, each run once";
    clashes: 1_700, "looks at a node that showed a clash of kinds";
    impure: 22_000, "resolutions that depended on order, and were not believed";
    exchanges: 760_000, "exchanges";
    audits: 9_900, "steps of audits";
    crashes: 1_800, "crashes";
    crashes_at_tickets: 780, "of these, before, at and after a sync, and between effects";
    records_lost: 300, "records not yet synced that a crash lost";
    torn_writes: 85, "records torn by a crash";
    own_frames_lost: 47, "restarts that forgot frames of their own";
    restarts: 1_800, "nodes that came back from their disk";
    disks_wiped: 120, "disks lost for good";
    incarnations: 120, "nodes that came back as their next incarnation";
    snapshots_saved: 28_000, "snapshots saved";
    snapshots_gone: 20, "snapshots installed because frames were gone";
    snapshots_branch: 130, "snapshots installed because another branch was decided";
    snapshots_floor: 100, "snapshots installed by nodes below a floor";
    snapshots_refused: 0, "snapshots that were not taken";
    floors: 1_100, "floors committed";
    floors_refused: 2_500, "floors that too few agreed to";
    tombstones_collected: 4_100, "keys whose tombstones went at a floor";
    partitions: 650, "partitions";
    one_way_partitions: 200, "of these, one-way";
    messages_lost: 230_000, "messages dropped";
    messages_doubled: 95_000, "messages duplicated";
    liars: 100, "nodes that lied";
    lies_told: 19_000, "messages that a liar altered, invented or repeated";
    equivocations: 37, "origins that signed two histories";
    frozen: 410, "nodes that held a proof";
    halts: 150, "origins halted before their end was decided";
    cuts: 180, "decisions where an origin ends";
    withholders_named: 10_000, "times that a node named one who does not acknowledge";
    withholders_excluded: 32, "of these, excluded by the operator";
    forged: 800, "frames refused: signature";
    malformed: 1_200, "messages refused: no message, or beyond a limit";
    clock_ahead: 26_000, "frames refused: too far in the future";
    frozen_refused: 360, "frames refused: their origin contradicted itself";
    false_heads: 3_900, "promises that were not kept";
    many_origins: 60, "runs with 16 or more origins";
    most_origins: 11, "runs with 64 origins";
    real_signatures: 8, "runs with Ed25519";
}
