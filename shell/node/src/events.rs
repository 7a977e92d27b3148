//! What the core says of itself, told once: each event becomes figures and, where somebody should read it, one line.

use dwcp_replica::Event;

use crate::logging::LIFE;
use crate::metrics::Metrics;

/// Counts an event and writes its line.
pub(crate) fn tell(event: &Event, metrics: &Metrics, wall_ms: u64) {
    match event {
        Event::ViewChangeStarted { view, reason } => {
            metrics.view_changes_started.add(1);
            tracing::warn!(%view, reason, "gives up on the primary and asks for a new view");
        }
        Event::ViewEntered { view, primary, gaps, carried } => {
            metrics.views_entered.add(u64::from(view.0 > 0));
            metrics.null_slots.add(u64::from(*gaps));
            tracing::info!(target: LIFE, %view, %primary, gaps, carried, "works in this view");
        }
        Event::Executed { sequence, position, view, commands, .. } => {
            metrics.proposals_executed.add(1);
            metrics.commands_executed.add(commands.len() as u64);
            metrics.batch_commands.observe(commands.len() as u64);
            metrics.last_executed_unix_ms.set(wall_ms);
            tracing::trace!(%sequence, %position, %view, commands = commands.len(), "executed");
        }
        Event::ModeOrdered { sequence, mode } => {
            tracing::info!(target: LIFE, %sequence, %mode, "the operator ordered a mode");
        }
        Event::SegmentOpened { epoch, sequence, base, first_leader, member } => {
            metrics.segments_opened.add(1);
            let leader = first_leader.map(|leader| leader.0);
            tracing::info!(target: LIFE, %epoch, %sequence, %base, leader, member, "a Raft segment opens");
        }
        Event::SegmentExecuted { epoch, index, position, commands, .. } => {
            metrics.entries_executed.add(1);
            metrics.commands_executed.add(commands.len() as u64);
            metrics.batch_commands.observe(commands.len() as u64);
            metrics.last_executed_unix_ms.set(wall_ms);
            tracing::trace!(%epoch, %index, %position, commands = commands.len(), "executed in the segment");
        }
        Event::DeferredExecuted { sequence, position, commands, .. } => {
            metrics.commands_executed.add(commands.len() as u64);
            tracing::debug!(%sequence, %position, commands = commands.len(), "executed what was deferred");
        }
        Event::LeaderChanged { epoch, term, leader } => {
            metrics.leader_changes.add(u64::from(leader.is_some()));
            let leader = leader.map(|leader| leader.0);
            tracing::info!(target: LIFE, %epoch, %term, leader, "who leads the segment");
        }
        Event::Suspected { epoch, reason } => {
            metrics.suspicions.add(1);
            tracing::warn!(%epoch, reason, "complains of the segment");
        }
        Event::SegmentSealed { epoch, index, term } => {
            tracing::info!(target: LIFE, %epoch, %index, %term, "takes no further part in the segment");
        }
        Event::SegmentClosed {
            epoch,
            sequence,
            tail,
            position,
            forced,
            marker,
            cut,
            rolled_back,
            deferred,
        } => {
            let closed =
                if *forced { &metrics.segments_closed_forced } else { &metrics.segments_closed_planned };
            closed.add(1);
            metrics.entries_cut.add(*cut);
            metrics.entries_rolled_back.add(*rolled_back);
            tracing::info!(
                target: LIFE, %epoch, %sequence, %tail, %position, forced, marker, cut, rolled_back, deferred,
                "the segment is closed"
            );
        }
        Event::Anchored { epoch, sequence, index, position } => {
            metrics.anchors.add(1);
            tracing::debug!(%epoch, %sequence, %index, %position, "anchored");
        }
        Event::AnchorDiverged { epoch, index } => {
            metrics.divergences.add(1);
            tracing::error!(
                %epoch, %index,
                "this replica's log or state differs from the anchored one and is fetched anew: check its memory and disk"
            );
        }
        Event::Digest { sequence, digest } => tracing::debug!(%sequence, ?digest, "state digest"),
        Event::StableCheckpoint { sequence, digest } => {
            metrics.stable_checkpoints.add(1);
            tracing::debug!(%sequence, ?digest, "stable checkpoint");
        }
        Event::Diverged { sequence, own, certified } => {
            metrics.divergences.add(1);
            tracing::error!(
                %sequence, ?own, ?certified,
                "this replica's state differs from the certified one and is fetched anew: check its memory and disk"
            );
        }
        Event::StateTransferStarted { sequence } => {
            metrics.transfers_started.add(1);
            tracing::info!(target: LIFE, %sequence, "fetches the state from its peers");
        }
        Event::ChunksTakenUp { sequence, chunks } => {
            tracing::info!(target: LIFE, %sequence, chunks, "goes on with chunks that it had fetched before");
        }
        Event::StateTransferFinished { sequence } => {
            metrics.transfers_finished.add(1);
            tracing::info!(target: LIFE, %sequence, "has fetched the state");
        }
        Event::DonorDropped { donor, sequence } => {
            metrics.donors_dropped.add(1);
            tracing::warn!(%donor, %sequence, "a donor sent what its certificate does not cover: check that replica");
        }
        Event::DonorLate { donor, sequence } => {
            tracing::debug!(%donor, %sequence, "a donor is late with a chunk; others are asked first for a while");
        }
        Event::Recovered { view, executed, stable, inside_view_change, records } => {
            tracing::info!(
                target: LIFE, %view, %executed, %stable, inside_view_change, records, "recovered from its disk"
            );
        }
        Event::MemberReplaced { id, incarnation, votes_after } => {
            metrics.members_replaced.add(1);
            tracing::info!(target: LIFE, member = %id, %incarnation, %votes_after, "member replaced");
        }
        Event::MemberReadmitted { id, incarnation } => {
            tracing::info!(target: LIFE, member = %id, %incarnation, "member votes again");
        }
        Event::RetryAnswered { session, first } => {
            metrics.retries_answered.add(1);
            tracing::debug!(?session, first, "a retry was answered without running again");
        }
        Event::OriginFrozen { origin } => {
            metrics.origins_frozen.add(1);
            tracing::warn!(
                origin,
                "contradicted itself in state sync: nothing of it is taken until its end is decided; replace that member"
            );
        }
        Event::MemberHoldsUp { member, how } => {
            metrics.holdups_named.add(1);
            tracing::warn!(
                member,
                how,
                "keeps state sync from collecting: mend it, or end its origin with `dwcp member exclude`"
            );
        }
        Event::KeysRepaired { keys } => {
            tracing::warn!(
                keys,
                "convergent keys had changed by themselves and were put right from other members: look at this machine's memory and disk"
            );
        }
        Event::Refused { from, reason } => {
            metrics.count_refusal(reason);
            tracing::debug!(from = from.map(|from| from.0), reason, "refused");
        }
    }
}
