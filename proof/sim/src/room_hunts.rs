//! Hunts for rules of state sync as replicas have it: what floors and ends rest on, when a writer is told, and from whom a
//! store is taken. The rules of values and of frames are hunted in the world of state sync alone.
//!
//! `mutants` says what a hunt is and runs them.

use crate::mutants::{Hunt, hunt, with};
use crate::puppet::Trick;
use dwcp_base::Mutant;

/// The root alone, a liar that is its first primary, and pushes that are lost, so that members lag behind each other.
const LIAR_LEADS: &[(&str, u64)] = &[
    ("n", 4),
    ("liars", 1),
    ("liars_first", 1),
    ("fsync_liars", 0),
    ("mode", 0),
    ("leader_reads_pm", 0),
    ("convergent_ms", 60),
    ("convergent_keys", 8),
    ("exchange_ms", 500),
    ("ack_patience_ms", 0),
    ("excluded_ms", 0),
    ("drop_pm", 150),
];

/// Disks are lost all the time, beside a liar.
const DISKS_LOST: &[(&str, u64)] =
    &[("n", 7), ("wipe_ms", 3_000), ("damage_pm", 0), ("down_ms", 500), ("checkpoint_interval", 4)];

const NOBODY_LIES: &[(&str, u64)] = &[("liars", 0), ("liars_first", 0)];

/// None: not looked for.
#[must_use]
pub fn hunt_for(mutant: Mutant) -> Option<Hunt> {
    use Mutant as M;
    let tricks = |tricks: &[Trick]| ("tricks", tricks.iter().map(|trick| trick.bit()).sum::<u64>());
    let hunt = match mutant {
        M::RoomConsentUnjudged => hunt(
            mutant,
            "convergent",
            &with(LIAR_LEADS, &[tricks(&[Trick::AsksUnheard, Trick::OrdersUnasked])]),
        ),
        M::RoomFloorUnchecked => {
            hunt(mutant, "convergent", &with(LIAR_LEADS, &[tricks(&[Trick::AsksUnheard])]))
        }
        M::RoomEndUnchecked => {
            hunt(mutant, "convergent", &with(&with(LIAR_LEADS, DISKS_LOST), &[tricks(&[Trick::AsksUnheard])]))
        }
        M::RoomEndMoves => hunt(mutant, "convergent", &with(&with(LIAR_LEADS, DISKS_LOST), NOBODY_LIES)),
        // Segments on near nodes: what the log acknowledges is pushed to nobody, so that a lost word to whoever orders
        // leaves a gap until it is sent again. The disk is lost within that time.
        M::RoomToldWithGap => hunt(
            mutant,
            "convergent",
            &with(
                &with(&with(LIAR_LEADS, DISKS_LOST), NOBODY_LIES),
                &[
                    ("n", 4),
                    ("mode", 1),
                    ("mode_order_ms", 0),
                    ("convergent_ms", 20),
                    ("exchange_ms", 2_000),
                    ("wipe_ms", 2_000),
                    ("partition_ms", 0),
                    ("slow_link_ms", 0),
                    ("delay_us", 300),
                    ("jitter_us", 500),
                ],
            ),
        ),
        // A member is excluded, writes on until it hears of it, and all stop at different places. A liar asks about the lowest, and
        // says that it stands there, too: for all who take the excluded one for a liar that is enough.
        M::RoomDoubtUnproven => hunt(
            mutant,
            "convergent",
            &with(
                LIAR_LEADS,
                &[
                    ("n", 7),
                    ("mode", 3),
                    ("mode_order_ms", 0),
                    ("convergent_ms", 20),
                    ("wipe_ms", 0),
                    ("exclude_ms", 3_000),
                    ("excluded_ms", 6_000),
                    tricks(&[Trick::FalseEnds]),
                ],
            ),
        ),
        // Nobody prepares what no quorum agreed to, so no primary gets anything ordered.
        M::RoomOrdersUnasked => hunt(mutant, "convergent", &with(LIAR_LEADS, NOBODY_LIES)),
        M::RoomToldBeforeSync => hunt(
            mutant,
            "convergent",
            &[
                ("n", 4),
                ("liars", 0),
                ("fsync_liars", 0),
                ("mode", 3),
                ("mode_order_ms", 0),
                ("convergent_ms", 40),
                ("ack_patience_ms", 0),
                ("excluded_ms", 0),
                ("sync_us", 5_000),
                ("crash_ticket_ppm", 20_000),
                ("down_ms", 200),
            ],
        ),
        M::RoomStoreOfOneDonor => {
            hunt(mutant, "convergent", &with(&with(LIAR_LEADS, DISKS_LOST), &[tricks(&[Trick::FalseStore])]))
        }
        _ => return None,
    };
    Some(hunt)
}
