//! Hunts for rules of segments and of switching: who may end one and where, who may take part, what a label says, who decides
//! by which clock. And hunts for rules of sessions and disks once more, where protocols switch.
//!
//! `mutants` says what a hunt is and runs them.

use crate::mutants::{Hunt, MEMBERS_CRASH, MEMBERS_PART, hunt, with};
use crate::puppet::Trick;
use dwcp_base::Mutant;

/// Segment follows segment, and much of what was said in one arrives in the next: acknowledgements reach a leader whose own
/// words reach nobody, and it dies on that.
const WORDS_STRAY: &[(&str, u64)] = &[
    ("n", 3),
    ("mode", 2),
    ("mode_order_ms", 300),
    ("delay_us", 10_000),
    ("jitter_us", 10_000),
    ("drop_pm", 100),
    ("stray_pm", 600),
    ("duplicate_pm", 600),
    ("one_way_pm", 1_000),
    ("partition_ms", 300),
    ("partition_long_ms", 300),
    ("election_ms", 150),
    ("crash_ms", 2_000),
    ("down_ms", 300),
    ("think_ms", 10),
    ("commands_max", 1),
    ("pipeline_depth", 8),
];

/// The root's first primary lies, members wait for Anchors, and segments end by order.
const BORDERS: &[(&str, u64)] = &[
    ("n", 4),
    ("liars", 1),
    ("liars_first", 1),
    ("mode", 2),
    ("mode_order_ms", 4_000),
    ("anchored_pm", 600),
    ("think_ms", 30),
    ("election_ms", 200),
    ("leader_reads_pm", 0),
    ("tricks", Trick::AnchorHeldBack.bit()),
];

/// None: not looked for.
pub fn hunt_for(mutant: Mutant) -> Option<Hunt> {
    use Mutant as M;
    let hunt = match mutant {
        // A leader that lies calls committed what nobody else holds; whoever vouched for it restarts under the next leader.
        M::AnchorForgotten => Hunt {
            seconds: 60,
            ..hunt(
                mutant,
                "switch",
                &[
                    ("n", 7),
                    ("f", 2),
                    ("liars", 2),
                    ("liars_first", 1),
                    ("fsync_liars", 0),
                    ("wipe_ms", 0),
                    ("mode", 2),
                    ("delay_us", 2_000),
                    ("jitter_us", 2_987),
                    ("one_way_pm", 234),
                    ("partition_ms", 3_000),
                    ("partition_long_ms", 2_776),
                    ("crash_ms", 4_000),
                    ("blackout_ms", 5_000),
                    ("down_ms", 1_500),
                    ("election_ms", 952),
                    ("anchor_ms", 414),
                    ("fast_path_ms", 0),
                    ("commands_max", 1),
                    ("value_bytes_max", 16),
                    ("convergent_ms", 0),
                    // What a liar's leader costs leaves many outcomes open: one client, or no order of them is found in time.
                    ("clients", 1),
                    ("lying_clients", 0),
                    ("in_flight_max", 1),
                    ("think_ms", 300),
                    ("leader_reads_pm", 0),
                    ("leases_pm", 0),
                    ("crash_ticket_ppm", 0),
                ],
            )
        },
        // One report of three: it need not have met the majority that committed.
        M::CloseOfFewReports => hunt(
            mutant,
            "switch",
            &with(MEMBERS_PART, &[("n", 3), ("mode", 1), ("mode_order_ms", 1_500), ("segment_calm_ms", 300)]),
        ),
        // A leader whose words reach nobody holds more entries than the one that came after it, and its report is among the first.
        M::CloseLongestLog => Hunt {
            seconds: 20,
            ..hunt(
                mutant,
                "switch",
                &with(
                    MEMBERS_PART,
                    &[
                        ("n", 3),
                        ("mode", 2),
                        ("mode_order_ms", 300),
                        ("delay_us", 5_000),
                        ("jitter_us", 5_000),
                        ("drop_pm", 200),
                        ("one_way_pm", 1_000),
                        ("partition_ms", 250),
                        ("partition_long_ms", 250),
                        ("election_ms", 80),
                        ("crash_ms", 1_000),
                        ("down_ms", 200),
                        ("think_ms", 5),
                        ("clients", 4),
                        ("in_flight_max", 4),
                        ("commands_max", 1),
                        ("pipeline_depth", 32),
                        ("append_entries_max", 2),
                        ("anchor_ms", 20),
                        ("sync_us", 500),
                    ],
                ),
            )
        },
        M::AckBeforeOpen => hunt(mutant, "switch", &with(MEMBERS_PART, &[("mode", 2), ("n", 4)])),
        M::SegmentLogReused => hunt(mutant, "switch", &with(MEMBERS_PART, WORDS_STRAY)),
        // The same, in worlds of its own: epochs are shorter still.
        M::EpochUnchecked => {
            hunt(mutant, "switch", &with(MEMBERS_PART, &with(WORDS_STRAY, &[("mode_order_ms", 200)])))
        }
        M::BaseAsProposed => {
            hunt(mutant, "orders", &[("n", 4), ("mode", 3), ("mode_order_ms", 600), ("think_ms", 10)])
        }
        M::LabelAtCommit => hunt(
            mutant,
            "orders",
            &[
                ("n", 4),
                ("mode", 2),
                ("anchor_ms", 2_000),
                ("mode_order_ms", 0),
                ("retry_ms", 300),
                ("delay_us", 2_000),
                ("jitter_us", 2_000),
            ],
        ),
        M::CalmByOwnClock => hunt(
            mutant,
            "switch",
            &with(MEMBERS_PART, &[("n", 4), ("mode", 1), ("skew_ms", 200), ("segment_calm_ms", 500)]),
        ),
        // What the root ordered while a segment was open comes behind it, with the time at which it was ordered.
        M::LogTimeGoesBack => {
            hunt(mutant, "switch", &with(MEMBERS_PART, &[("n", 4), ("mode", 1), ("lease_life_pm", 300)]))
        }
        // All are down for longer than one entry may take off a lease.
        M::ExpiryLeaps => hunt(
            mutant,
            "switch",
            &with(MEMBERS_CRASH, &[("blackout_ms", 4_000), ("down_ms", 4_000), ("lease_life_pm", 400)]),
        ),
        M::ExpiryByOwnClock => hunt(
            mutant,
            "orders",
            &[("n", 4), ("mode", 2), ("mode_order_ms", 1_500), ("skew_ms", 200), ("lease_life_pm", 300)],
        ),
        // A liar leads now and then, and its clock runs three times as fast.
        M::LogTimeRatchets => hunt(
            mutant,
            "orders",
            &[
                ("n", 4),
                ("mode", 2),
                ("mode_order_ms", 1_500),
                ("liars", 1),
                ("skew_ms", 0),
                ("lease_life_pm", 300),
                ("tricks", Trick::FastClock.bit()),
            ],
        ),
        // One liar, the root's primary and a member of the segment. Where a Close that names another Anchor is void, this one
        // tries again behind that Anchor.
        M::CloseAnchorUnchecked => {
            hunt(mutant, "orders", &with(BORDERS, &[("anchor_ms", 50), ("view_timeout_ms", 1_000)]))
        }
        M::CloseBelowAnchor => {
            hunt(mutant, "orders", &with(BORDERS, &[("anchor_ms", 100), ("view_timeout_ms", 2_000)]))
        }
        // Figure 8: leaders die soon and often, and a message holds one entry, so that old entries arrive before the new
        // leader's own.
        M::RaftCommitOldTerm => hunt(
            mutant,
            "switch",
            &with(
                MEMBERS_CRASH,
                &[
                    ("n", 5),
                    ("append_entries_max", 1),
                    ("crash_ticket_ppm", 20_000),
                    ("crash_ms", 300),
                    ("down_ms", 100),
                    ("partition_ms", 600),
                    ("partition_long_ms", 300),
                    ("drop_pm", 100),
                    ("election_ms", 60),
                    ("fast_path_ms", 10_000),
                    ("view_timeout_ms", 2_000),
                    ("pipeline_depth", 8),
                    ("mode_order_ms", 0),
                    ("delay_us", 10_000),
                    ("jitter_us", 10_000),
                    ("think_ms", 10),
                ],
            ),
        ),
        _ => return None,
    };
    Some(hunt)
}

/// Rules of sessions and disks, also where segments open and close.
pub fn again() -> Vec<Hunt> {
    use Mutant as M;
    let orders = ("mode_order_ms", 1_500);
    vec![
        hunt(M::SnapshotWithoutSessions, "transfer", &[("mode", 2), orders, ("leader_reads_pm", 0)]),
        hunt(M::NoDeduplication, "clients", &[("in_flight_max", 4), ("mode", 2), orders]),
        hunt(M::SingleSequenceSession, "clients", &[("in_flight_max", 4), ("mode", 1), orders]),
        hunt(
            M::LearnerVotes,
            "disk",
            &[("wipe_ms", 4_000), ("fsync_liars", 0), ("mode", 1), ("segment_calm_ms", 500), orders],
        ),
        hunt(
            M::WipedDiskRejoins,
            "disk",
            &[("wipe_ms", 4_000), ("fsync_liars", 0), ("mode", 2), ("segment_calm_ms", 500), orders],
        ),
    ]
}
