//! Dispatch: one arm per message, one call per arm.

use crate::message::{Message, Vote};
use crate::output::Output;
use crate::state::{Application, Pbft};
use dwcp_base::{Now, ReplicaId};

impl Pbft {
    /// A message came over a link whose other end proved to be `from`.
    pub fn on_message(
        &mut self,
        now: Now,
        from: ReplicaId,
        message: Message,
        application: &mut dyn Application,
        out: &mut Output,
    ) {
        if !self.is_introduced() && calls_for_votes(&message) {
            return self.keep_for_later(from, self.view, message);
        }
        match message {
            Message::PrePrepare { proposal, payload } => {
                self.on_pre_prepare(now, from, proposal, payload, application, out);
            }
            Message::Vote(signed) => match signed.statement.claim.vote {
                Vote::Prepare | Vote::Commit => self.on_slot_vote(now, from, signed, out),
                Vote::Checkpoint => self.on_checkpoint(now, from, signed, out),
                Vote::PrePrepare => self.refuse(from, "a pre-prepare without its payload", out),
            },
            Message::ViewChange(signed) => self.on_view_change(now, from, signed, application, out),
            Message::NewView(signed) => self.on_new_view(now, from, signed, application, out),
            Message::FetchViewChange { hash } => self.on_fetch_view_change(from, hash, out),
            Message::Standing(standing) => self.on_standing(now, from, standing, out),
            Message::FetchPayload { sequence, digest } => {
                self.on_fetch_payload(now, from, sequence, digest, out)
            }
            Message::Payload { sequence, payload } => self.on_payload(now, from, sequence, payload, out),
            Message::FetchDecided { from: first } => self.on_fetch_decided(now, from, first, out),
            Message::Decided(decided) => self.on_decided(now, from, decided, out),
            Message::Stable(certificate) => self.on_stable(now, from, certificate, out),
            Message::Reminder(signed) => {
                self.on_reminder(from, &signed, out);
            }
            Message::Introduce { boot } => self.on_introduce(now, from, boot, out),
            Message::Introduction(introduction) => {
                self.on_introduction(now, from, &introduction, application, out);
            }
        }
        self.note_pace(now);
    }
}

/// Whether handling it may make us sign something that an older life of ours may have contradicted.
fn calls_for_votes(message: &Message) -> bool {
    match message {
        Message::PrePrepare { .. } | Message::ViewChange(_) | Message::NewView(_) => true,
        Message::Vote(signed) => signed.statement.claim.vote != Vote::Checkpoint,
        Message::FetchViewChange { .. }
        | Message::Standing(_)
        | Message::FetchPayload { .. }
        | Message::Payload { .. }
        | Message::FetchDecided { .. }
        | Message::Decided(_)
        | Message::Stable(_)
        | Message::Reminder(_)
        | Message::Introduce { .. }
        | Message::Introduction(_) => false,
    }
}
