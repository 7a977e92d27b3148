//! The border: what came in one burst is read, and the signatures it carries are verified together before anything is
//! handled. Many signatures verified at once cost a half to a third of as many verified one by one. Knows how bytes are
//! read and who must have signed them; what they mean is for `admit` and the protocol.

use crate::io::{ClientId, ClientRequest, Event, Input};
use crate::replica::{Outbox, Replica};
use crate::wire::PeerMessage;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::limits::MESSAGE_BYTES_MAX;
use dwcp_base::{Ack, Hash, Mutant, Now, PublicKey, ReplicaId, Signature, decode};
use dwcp_pbft::Signed;
use dwcp_state::{CheckedFrame, ClientFrame, StateMachine};

/// A client's frame whose bytes and signature were judged, or the reason why it is refused.
pub(crate) type ReadFrame = Result<CheckedFrame, &'static str>;

/// One input, read.
pub(crate) enum Arrival {
    Message {
        from: ReplicaId,
        message: PeerMessage,
    },
    Frame {
        client: ClientId,
        frame: ReadFrame,
        ack: Option<Ack>,
    },
    /// `frame` is `None` when its bytes were known already, so that nobody looked.
    Relayed {
        from: ReplicaId,
        to_all: bool,
        bytes: Bytes,
        frame: Option<ReadFrame>,
    },
    Other(Input),
}

/// A signature to be verified, and what becomes true when it holds.
enum Pending {
    Vote(Signed),
    /// The frame of the arrival at this place is authentic.
    Frame(usize),
}

type Item = (PublicKey, Hash, Signature);

impl<M: StateMachine> Replica<M> {
    /// Reads inputs in order and verifies what they carry.
    pub(crate) fn read_all(
        &mut self,
        now: Now,
        inputs: impl IntoIterator<Item = Input>,
        out: &mut Outbox,
    ) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let mut pending = Vec::new();
        let mut items = Vec::new();
        for input in inputs {
            match input {
                Input::Peer { from, incarnation: _, bytes } => {
                    self.last_heard.insert(from, now.mono);
                    match read_message(&bytes) {
                        Ok(message) => self.read_one(from, message, &mut arrivals, &mut pending, &mut items),
                        Err(reason) => self.refuse_peer(from, reason, out),
                    }
                }
                Input::Client { client, request: ClientRequest::Frame { bytes, ack } } => {
                    let known = self.pool.holds(&Hash::of(&bytes));
                    let frame = read_frame(bytes);
                    if let Ok(frame) = frame.as_ref()
                        && !known
                    {
                        pending.push(Pending::Frame(arrivals.len()));
                        items.push(frame.signature_item(self.cluster));
                    }
                    arrivals.push(Arrival::Frame { client, frame, ack });
                }
                input => arrivals.push(Arrival::Other(input)),
            }
        }
        self.verify(&mut arrivals, pending, &items);
        arrivals
    }

    fn read_one(
        &self,
        from: ReplicaId,
        message: PeerMessage,
        arrivals: &mut Vec<Arrival>,
        pending: &mut Vec<Pending>,
        items: &mut Vec<Item>,
    ) {
        match message {
            PeerMessage::Request { to_all, frame: bytes } => {
                let hash = Hash::of(&bytes);
                let known = self.pool.holds(&hash) || self.pool.executed_lately(&hash);
                let frame = (!known).then(|| read_frame(bytes.clone()));
                if let Some(Ok(frame)) = frame.as_ref() {
                    pending.push(Pending::Frame(arrivals.len()));
                    items.push(frame.signature_item(self.cluster));
                }
                arrivals.push(Arrival::Relayed { from, to_all, bytes, frame });
            }
            message => {
                if let PeerMessage::Pbft(message) = &message
                    && let Some((signed, key, hash)) = self.pbft.signature_ahead(message)
                {
                    pending.push(Pending::Vote(signed));
                    items.push((key, hash, signed.signature));
                }
                arrivals.push(Arrival::Message { from, message });
            }
        }
    }

    fn verify(&mut self, arrivals: &mut [Arrival], pending: Vec<Pending>, items: &[Item]) {
        if let [Pending::Vote(_)] = pending[..] {
            return; // Whoever handles it verifies it just as well.
        }
        let together = self.crypto.verify_all(items);
        for (pending, (key, hash, signature)) in pending.into_iter().zip(items) {
            let holds = together || (items.len() > 1 && self.crypto.verify(key, hash, signature));
            match pending {
                Pending::Vote(signed) if holds => self.pbft.prove(signed),
                // It is refused where it is handled.
                Pending::Vote(_) => {}
                Pending::Frame(place) if !holds => self.disown(&mut arrivals[place]),
                Pending::Frame(_) => {}
            }
        }
    }

    fn disown(&self, arrival: &mut Arrival) {
        if self.setup.mutants.on(Mutant::ClientSignatureUnchecked) {
            return;
        }
        let forged = Err("a client frame with a bad signature");
        match arrival {
            Arrival::Frame { .. } if self.setup.mutants.on(Mutant::AdmittedUnverified) => {}
            Arrival::Frame { frame, .. } => *frame = forged,
            Arrival::Relayed { frame, .. } => *frame = Some(forged),
            Arrival::Message { .. } | Arrival::Other(_) => {}
        }
    }

    /// A frame that nobody verified with its burst.
    pub(crate) fn read_alone(&self, bytes: Bytes) -> ReadFrame {
        let frame = read_frame(bytes)?;
        let (key, hash, signature) = frame.signature_item(self.cluster);
        let forged = !self.crypto.verify(&key, &hash, &signature);
        if forged && !self.setup.mutants.on(Mutant::ClientSignatureUnchecked) {
            return Err("a client frame with a bad signature");
        }
        Ok(frame)
    }

    pub(crate) fn handle(&mut self, now: Now, arrival: Arrival, out: &mut Outbox) {
        match arrival {
            Arrival::Message { from, message } => self.on_message(now, from, message, out),
            Arrival::Frame { client, frame, ack } => match frame {
                Ok(frame) => self.on_frame(now, client, frame, ack, out),
                Err(reason) => self.refuse_frame(client, reason, out),
            },
            Arrival::Relayed { from, to_all, bytes, frame } => {
                self.on_relayed(now, from, to_all, bytes, frame, out);
            }
            Arrival::Other(input) => self.on_input(now, input, out),
        }
    }

    fn refuse_frame(&mut self, client: ClientId, reason: &'static str, out: &mut Outbox) {
        self.count(reason);
        out.event(Event::Refused { from: None, reason });
        self.reply_malformed(client, reason, out);
    }
}

fn read_message(bytes: &Bytes) -> Result<PeerMessage, &'static str> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err("a message over the size limit");
    }
    decode(bytes).map_err(|_| "a malformed message")
}

/// Reads a frame's bytes. Whether it is authentic is a function of them alone: no replica can take a frame for
/// authentic that another does not.
fn read_frame(bytes: Bytes) -> ReadFrame {
    ClientFrame::decode(bytes).map_err(|_| "a malformed client frame")
}
