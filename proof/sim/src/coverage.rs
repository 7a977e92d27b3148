//! What a run went through, counted, and how much of it a thousand seeds must show. A simulator that never sees a view
//! change proves nothing about view changes.

use crate::trick::Trick;

macro_rules! counts {
    ($($name:ident: $minimum:literal, $about:literal;)*) => {
        /// Counts of one run, or summed over many.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Coverage {
            $(pub $name: u64),*
        }

        impl std::ops::AddAssign<&Self> for Coverage {
            fn add_assign(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl Coverage {
            /// Name, count, minimum per 1,000 seeds of the profile `mixed`, meaning.
            #[must_use]
            pub fn rows(&self) -> Vec<(&'static str, u64, u64, &'static str)> {
                vec![$((stringify!($name), self.$name, $minimum, $about)),*]
            }
        }

        impl Coverage {
            /// What fell below its minimum, scaled to this many seeds.
            #[must_use]
            pub fn shortfalls(&self, seeds: u64) -> Vec<String> {
                self.rows()
                    .into_iter()
                    .filter_map(|(name, count, minimum, _)| {
                        let due = minimum * seeds / 1000;
                        (count < due).then(|| format!("{name}: {count}, and {seeds} seeds must show {due}"))
                    })
                    .collect()
            }
        }

        #[cfg(test)]
        impl Coverage {
            /// Just what a thousand seeds must show, and one less of what is called so.
            #[must_use]
            pub fn enough_but_for(lacking: &str) -> Self {
                let mut enough = Self { $($name: $minimum),* };
                $(if stringify!($name) == lacking {
                    enough.$name -= 1;
                })*
                enough
            }
        }

        impl std::fmt::Display for Coverage {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                for (name, count, minimum, about) in self.rows() {
                    writeln!(f, "  {name:<24} {count:>10}   min {minimum:>7}/1000 seeds   {about}")?;
                }
                Ok(())
            }
        }
    };
}
pub(crate) use counts;

counts! {
    commands_acknowledged: 100_000, "commands whose client believes the answer";
    commands_refused: 0, "commands refused by the ordered log";
    slots_executed: 100_000, "slots executed, summed over replicas";
    checkpoints: 2_000, "stable checkpoints, summed over replicas";
    view_changes: 12_000, "views entered above 0, summed over replicas";
    views_asked: 1_000, "VIEW-CHANGEs begun";
    new_views_with_gaps: 600, "views entered with null requests in them";
    new_views_carrying: 100, "views entered that re-propose slots";
    state_transfers: 180, "state transfers finished";
    transfers_resumed: 30, "state transfers that went on with chunks fetched before a crash";
    snapshots_saved: 1_000, "snapshots written";
    donors_dropped: 6, "donors caught lying";
    donors_left: 4, "times that a replica left a donor whose chunks have no end";
    parts_without_end: 300, "parts of such chunks";
    chunks_asked_in_vain: 1_000_000, "questions for chunks by which a liar kept donors busy";
    restarts: 1_000, "replicas that recovered from their disk";
    restarts_in_view_change: 750, "of these, in the middle of a view change";
    crashes_at_tickets: 200, "crashes before, at and after a sync, and between effects";
    crashes_between_effects: 50, "of these, between two effects of one sync";
    records_lost: 100, "records not yet synced that a crash lost";
    torn_writes: 120, "writes that a crash cut at some byte, and the store's scanner dropped";
    torn_tails_told: 120, "of these, told by the store's warning";
    lost_syncs: 12, "crashes that lost what a lying disk had claimed";
    disks_wiped: 20, "blank disks";
    bits_flipped: 35, "disks of which a bit flipped";
    disks_damaged: 35, "of these, refused at start";
    chunks_damaged: 15, "of these, for a chunk of a snapshot";
    disks_full: 20, "replicas that stopped at a full disk";
    disks_slow: 50, "periods of a slow disk";
    members_replaced: 40, "new incarnations in force, by the operator's order";
    members_readmitted: 90, "of these, with a vote again";
    partitions: 500, "partitions";
    one_way_partitions: 50, "of these, one-way";
    pauses: 200, "replicas stopped and continued";
    messages_lost: 10_000, "messages dropped";
    messages_doubled: 5_000, "messages duplicated";
    retries_answered: 100_000, "retries answered from the session table";
    frames_retried: 500, "frames a client sent again";
    clients_died: 20, "clients that died with a frame in flight";
    forgeries_refused: 300_000, "messages and frames refused by honest replicas";
    liars: 100, "replicas that lied";
    lies_told: 2_000, "messages a puppet altered, withheld, invented or held back";
    lies_equivocated: 1500, "of these: two payloads for one slot, and votes for both";
    lies_withheld: 50_000, "votes that did not leave";
    lies_split_proofs: 14_000, "VIEW-CHANGEs with P and Q sets altered for their receiver";
    lies_replayed: 14_000, "messages of old views and epochs, again";
    lies_censored: 2400, "frames of one client not heard";
    lies_delayed: 3000, "proposals that left at 0.9 of the view timer";
    lies_donated: 800, "chunks altered, emptied or without end";
    lies_flooded: 5800, "bursts of far-future votes and garbage";
    twins: 10, "replicas run twice under one key";
    equivocations: 20, "slots for which a lying primary proposed two payloads";
    wrong_clocks: 20, "replicas with a clock far off";
    segments_opened: 1_000, "segments opened";
    closed_by_marker: 650, "segments that ended in order, with a Marker";
    markers_missed: 260, "segments whose ordered end fell to the collection";
    closed_by_force: 190, "segments closed though nobody had ordered it";
    tails_cut: 20, "replicas whose log of a segment was cut at its Close";
    deferred_executed: 160, "batches executed after the segment during which the root had ordered them";
    entries_executed: 700_000, "entries of segments executed, summed over replicas";
    anchors: 36_000, "Anchors in effect";
    anchored_acks: 26_500, "acknowledgements for which a client waited until an Anchor or the root covered them";
    leader_reads: 12_000, "reads answered by a segment's leader";
    modes_ordered: 1_000, "mode orders in effect";
    hand_overs: 400, "of these, of the mode in force while a segment was open";
    leaders_seen: 8_500, "leaders of segments, as replicas saw them come";
    suspicions: 2_100, "replicas that complained of a segment";
    slept_over_epochs: 30, "replicas that were down while three segments opened";
    retries_across_epochs: 12_500, "retries answered in another epoch than they ran in";
    rolled_back: 0, "replicas that took back what they had executed of a segment, for somebody lied";
    anchors_diverged: 0, "replicas that an Anchor told that theirs is another state";
    lost_to_liars: 0, "acknowledgements under the label crash that a liar cost";
    discarded: 0, "entries executed that a liar kept from being part of the log";
    both_killed: 180, "deaths of the root's primary and the segment's leader at one moment";
    both_killed_apart: 100, "of these, of two replicas that were up";
    sealed_wiped: 4, "disks lost between a seal and its Close";
    sealed_by_lie: 0, "segments that a member's word alone ended, while no honest one had said that it is sealed";
    led_anew_while_ending: 40, "segments that got another leader while they were to end";
    led_anew_over_marker: 20, "of these, while the leader before had proposed a Marker that was not committed";
    older_after_younger: 4_500, "commands that ran first after a younger one of their session had run in the root";
    older_from_segment: 15, "of these, commands that a segment had taken and not kept";
    seals_falsified: 5_000, "SEALEDs of logs that are not there, or cannot be the end";
    epochs_replayed: 4_000, "messages of earlier epochs, again";
    storms_met: 65, "segments of which a liar complained all the time";
    policies_ordered: 60, "policy orders in effect";
    convergent_frames: 18_000, "writes of convergent values that made a frame";
    convergent_refused: 0, "of others, those that changed nothing or were refused";
    told_by_log: 9_000, "writers told that the log has their frame";
    told_by_gossip: 8_000, "writers told that it is durable";
    told_on_several: 2_000, "of these, on more than one replica";
    fallbacks: 6_500, "writes that left the log's road for gossip";
    frames_by_log: 65_000, "frames that the log delivered, summed over replicas";
    frames_by_both: 27_000, "of these, others' frames that gossip had brought before";
    floors_committed: 5_000, "floors committed";
    ends_decided: 50, "ends of origins decided";
    members_excluded: 20, "members that state sync was ordered to go on without";
    false_stores: 4, "offers and parts of convergent stores in which a liar changed a value";
    forks: 8, "liars that signed two histories of convergent values";
    convictions: 40, "replicas that came to hold a proof against one of them";
    forks_ended: 7, "ends of such origins decided";
    acks_withheld: 1_000, "messages in which a liar said that it had not applied what it had";
    heads_falsified: 1_500, "messages in which a liar claimed frames, or to have dropped some";
    origins_forged: 800, "convergent frames in others' names";
    ends_falsified: 100, "ends of origins that liars asked about, handed over or said nothing about";
    withholders_named: 10, "times that a replica named a liar that does not acknowledge";
    withholders_excluded: 2, "of those members, without whom state sync was ordered to go on";
    floors_missed: 1_400, "collection floors committed in slots that a replica skipped with a snapshot of the root";
    stores_fetched: 90, "convergent stores that replicas took from others";
    leases_granted: 5_000, "leases granted";
    leases_kept: 900, "keep-alives that took effect";
    leases_revoked: 180, "leases that a client revoked";
    leases_expired: 4_500, "leases that ran out";
    expired_in_segment: 2_300, "of these, while a segment was open, at an entry of it";
    expired_near_switch: 700, "of these, within eight positions of where a segment begins or ends";
    expired_elsewhere: 1_400, "of these, in another epoch than they were last kept alive in";
    keeps_returned: 15, "keep-alives asked for while a segment was open that ran elsewhere, for it had been sealed";
    keeps_proposed_in_vain: 0, "keep-alives that a leader had proposed in a segment and that ran elsewhere";
    leases_restored: 1_000, "times that a replica went on from a snapshot with leases in it";
    lease_log_unseen: 0, "positions of the log of which no honest replica told what became of leases";
    real_signatures: 10, "runs with Ed25519";
    histories_of_1: 30, "histories of one replica";
    histories_of_3: 60, "of three";
    histories_of_4: 250, "of four";
    histories_of_5: 110, "of five";
    histories_of_7: 60, "of seven";
}

impl Coverage {
    /// The count of the family that a trick belongs to, of those that have one.
    pub(crate) fn family(&mut self, trick: Trick) -> Option<&mut u64> {
        Some(match trick {
            Trick::Equivocate => &mut self.lies_equivocated,
            Trick::Withhold => &mut self.lies_withheld,
            Trick::SplitViewChange | Trick::MixProofs | Trick::OldProofs => &mut self.lies_split_proofs,
            Trick::Replay => &mut self.lies_replayed,
            Trick::OldEpochs => &mut self.epochs_replayed,
            Trick::FalseSealed | Trick::LowSeal => &mut self.seals_falsified,
            Trick::Censor => &mut self.lies_censored,
            Trick::Delay => &mut self.lies_delayed,
            Trick::LieAsDonor | Trick::ForgetSessions | Trick::EndlessDonor => &mut self.lies_donated,
            Trick::Flood => &mut self.lies_flooded,
            Trick::WithholdAcks => &mut self.acks_withheld,
            Trick::FalseHeads => &mut self.heads_falsified,
            Trick::ForgeOrigins => &mut self.origins_forged,
            Trick::FalseEnds | Trick::LowEnds => &mut self.ends_falsified,
            _ => return None,
        })
    }

    /// A history of so many replicas begins.
    pub(crate) fn note_replicas(&mut self, n: u64) {
        match n {
            1 => self.histories_of_1 += 1,
            3 => self.histories_of_3 += 1,
            4 => self.histories_of_4 += 1,
            5 => self.histories_of_5 += 1,
            7 => self.histories_of_7 += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_minimum_can_be_missed() {
        assert_eq!(Coverage::enough_but_for("").shortfalls(1_000), [""; 0]);
        for (name, _, minimum, _) in Coverage::default().rows().into_iter().filter(|row| row.2 > 0) {
            let short = Coverage::enough_but_for(name).shortfalls(1_000);
            let said = format!("{name}: {}, and 1000 seeds must show {minimum}", minimum - 1);
            assert_eq!(short, [said]);
        }
    }

    #[test]
    fn only_what_no_run_within_the_budget_need_show_has_no_minimum() {
        let rows = Coverage::default().rows();
        let free: Vec<&str> = rows.iter().filter(|row| row.2 == 0).map(|row| row.0).collect();
        assert_eq!(
            free,
            [
                "commands_refused",
                "rolled_back",
                "anchors_diverged",
                "lost_to_liars",
                "discarded",
                "sealed_by_lie",
                "convergent_refused",
                "keeps_proposed_in_vain",
                "lease_log_unseen"
            ]
        );
    }
}
