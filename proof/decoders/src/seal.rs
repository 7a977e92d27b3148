//! Seals damaged messages again: payload digests, certificates and signatures are made good, so that the damage passes
//! the checks of form and reaches the fields behind them.
//!
//! Each function answers whether the bytes could be read at all; what cannot be read cannot be sealed. Which relations
//! between fields are repaired beside the signatures is drawn from the bytes, so that equal bytes seal equally.

use crate::keys::{cluster, sign, vote_key};
use crate::sync_world;
use bytes::Bytes;
use dwcp_base::{Chance, Hash, Incarnation, ReplicaId, SigningKind, decode, encode, signing_hash};
use dwcp_log::close::{Close, CloseProof};
use dwcp_log::consent::consent_hash;
use dwcp_log::entry::payload_digest;
use dwcp_log::order::OrderBody;
use dwcp_log::seal;
use dwcp_log::{Agreed, Matter, OperatorOrder, Proposal, RootEntry, SignedOrder};
use dwcp_pbft::message::{
    Certificate, Claim, Decided, Message, NewView, PreparedCertificate, Signed, SignedBody, Statement,
    ViewChange, Vote,
};
use dwcp_pbft::record::Record;
use dwcp_replica::reply::{ReplyTree, reply_signing_hash};
use dwcp_replica::{ExecutedReply, LogRecord, PeerMessage, SnapshotMeta};
use dwcp_state::{ClientFrame, SessionFrame, SessionOpen, state_digest};
use std::collections::BTreeMap;

/// Seals everything in one input, and remembers the VIEW-CHANGEs it saw, so that a NEW-VIEW after them can name them.
#[derive(Debug)]
pub struct Sealer {
    chance: Chance,
    view_changes: BTreeMap<ReplicaId, Hash>,
}

impl Sealer {
    /// A sealer for these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let seed = Hash::of(bytes);
        let seed = u64::from_le_bytes(seed.0[..8].try_into().expect("eight bytes"));
        Self { chance: Chance::new(seed), view_changes: BTreeMap::new() }
    }

    /// Three times in four a relation is repaired, else the lie stands under a good signature.
    fn repairs(&mut self) -> bool {
        self.chance.per_mille(750)
    }

    fn statement(&self, statement: &Statement) -> dwcp_base::Signature {
        let key = vote_key(statement.sender, statement.incarnation);
        sign(&key, &statement.signing_hash(cluster()))
    }

    pub fn signed(&mut self, signed: &mut Signed) {
        signed.signature = self.statement(&signed.statement);
    }

    pub fn certificate(&mut self, certificate: &mut Certificate) {
        if self.repairs() {
            certificate.vouchers.sort_by_key(|voucher| voucher.sender);
            certificate.vouchers.dedup_by_key(|voucher| voucher.sender);
        }
        let claim = certificate.claim;
        for voucher in &mut certificate.vouchers {
            voucher.signature = self.statement(&Statement {
                claim,
                sender: voucher.sender,
                incarnation: voucher.incarnation,
            });
        }
    }

    pub fn prepared(&mut self, certificate: &mut PreparedCertificate) {
        let claim = Claim { vote: Vote::Prepare, ..certificate.pre_prepare.statement.claim };
        if self.repairs() {
            for prepare in &mut certificate.prepares {
                prepare.statement.claim = claim;
            }
        }
        self.signed(&mut certificate.pre_prepare);
        for prepare in &mut certificate.prepares {
            self.signed(prepare);
        }
    }

    pub fn view_change(&mut self, body: &mut ViewChange) {
        if let Some(stable) = &mut body.stable {
            self.certificate(stable);
        }
        for prepared in &mut body.prepared {
            self.prepared(prepared);
        }
    }

    pub fn new_view(&mut self, body: &mut NewView) {
        for (sender, hash) in &mut body.view_changes {
            if let Some(known) = self.view_changes.get(sender) {
                *hash = *known;
            }
        }
        for proposal in &mut body.pre_prepares {
            self.signed(proposal);
        }
    }

    /// A body that cannot be read is signed as it is, by `from`.
    pub fn body(&mut self, kind: SigningKind, signed: &mut SignedBody, from: ReplicaId) {
        let mut signer = vote_key(from, dwcp_base::Incarnation(0));
        if kind == SigningKind::ViewChange
            && let Ok(mut body) = decode::<ViewChange>(&signed.body)
        {
            self.view_change(&mut body);
            signer = vote_key(body.sender, body.incarnation);
            signed.body = Bytes::from(encode(&body));
            self.view_changes.insert(body.sender, signed.hash());
        }
        if kind == SigningKind::NewView
            && let Ok(mut body) = decode::<NewView>(&signed.body)
        {
            self.new_view(&mut body);
            signer = vote_key(body.sender, body.incarnation);
            signed.body = Bytes::from(encode(&body));
        }
        signed.signature = sign(&signer, &signing_hash(kind, cluster(), &signed.body));
    }

    pub fn order<O: OrderBody>(&mut self, signed: &mut SignedOrder<O>) {
        if self.repairs() {
            signed.admin_key = crate::keys::admin_key();
        }
        let hash = signing_hash(O::KIND, cluster(), &encode(&signed.order));
        signed.signature = sign(&signed.admin_key, &hash);
    }

    pub fn operator_order(&mut self, order: &mut OperatorOrder) {
        match order {
            OperatorOrder::Member(order) => self.order(order),
            OperatorOrder::Mode(order) => self.order(order),
            OperatorOrder::Policy(order) => self.order(order),
            OperatorOrder::Exclude(order) => self.order(order),
        }
    }

    /// What a member says about a segment.
    fn said<T: seal::Statement>(signed: &mut seal::Signed<T>) {
        let speaker = signed.said.speaker();
        let hash = signing_hash(T::KIND, cluster(), &encode(&signed.said));
        signed.signature = sign(&vote_key(speaker.id, speaker.incarnation), &hash);
    }

    fn agreed(&mut self, matter: Matter, agreed: &mut Agreed) {
        if self.repairs() {
            agreed.consents.sort_by_key(|(by, ..)| *by);
            agreed.consents.dedup_by_key(|(by, ..)| *by);
        }
        let content = Hash::of(&agreed.bytes);
        for (by, stance, signature) in &mut agreed.consents {
            let hash = consent_hash(cluster(), matter, agreed.ground, content, *stance, *by);
            *signature = sign(&vote_key(*by, Incarnation(0)), &hash);
        }
    }

    fn stop(stop: &mut seal::StopCert) {
        stop.suspects.iter_mut().for_each(Self::said);
    }

    /// False when the bytes are no frame's.
    pub fn client_frame(&mut self, bytes: &mut Bytes) -> bool {
        let Ok(mut frame) = decode::<ClientFrame>(bytes) else { return false };
        match &mut frame {
            ClientFrame::Open { body, principal_key, signature } => {
                if decode::<SessionOpen>(body).is_err() {
                    return false;
                }
                if self.repairs() {
                    *principal_key = crate::keys::admin_key();
                }
                *signature = sign(principal_key, &signing_hash(SigningKind::SessionOpen, cluster(), body));
            }
            ClientFrame::Commands { body, signature } => {
                let Ok(content) = decode::<SessionFrame>(body) else { return false };
                *signature =
                    sign(&content.session_key, &signing_hash(SigningKind::SessionFrame, cluster(), body));
            }
        }
        *bytes = frame.encode();
        true
    }

    /// False when the bytes are no proposal; the null request is one.
    pub fn payload(&mut self, payload: &mut Bytes) -> bool {
        if payload.is_empty() {
            return true;
        }
        let Ok(mut proposal) = decode::<Proposal>(payload) else { return false };
        for entry in &mut proposal.entries {
            match entry {
                RootEntry::Batch(frames) => {
                    for frame in frames {
                        self.client_frame(frame);
                    }
                }
                RootEntry::Switch(switch) => {
                    if let Some(Close { proof: CloseProof::Reports(reports), .. }) = &mut switch.close {
                        reports.iter_mut().for_each(Self::said);
                    }
                }
                RootEntry::Decide(decide) => Self::said(&mut decide.sealed),
                RootEntry::Anchor(anchor) => anchor.votes.iter_mut().for_each(Self::said),
                RootEntry::Member(order) => self.order(order),
                RootEntry::Mode(order) => self.order(order),
                RootEntry::Policy(order) => self.order(order),
                RootEntry::Exclude(order) => self.order(order),
                RootEntry::Evidence(agreed) => self.agreed(Matter::End, agreed),
                RootEntry::Floor(agreed) => self.agreed(Matter::Floor, agreed),
                RootEntry::Noop => {}
            }
        }
        *payload = proposal.to_payload();
        true
    }

    fn decided(&mut self, decided: &mut Decided) {
        self.payload(&mut decided.payload);
        if self.repairs() {
            decided.certificate.claim.digest = payload_digest(&decided.payload);
        }
        self.certificate(&mut decided.certificate);
    }

    pub fn message(&mut self, message: &mut Message, from: ReplicaId) {
        match message {
            Message::PrePrepare { proposal, payload } => {
                self.payload(payload);
                if self.repairs() {
                    proposal.statement.claim.digest = payload_digest(payload);
                }
                self.signed(proposal);
            }
            Message::Vote(signed) | Message::Reminder(signed) => self.signed(signed),
            Message::ViewChange(signed) => self.body(SigningKind::ViewChange, signed, from),
            Message::NewView(signed) => self.body(SigningKind::NewView, signed, from),
            Message::Payload { payload, .. } => {
                self.payload(payload);
            }
            Message::Decided(slots) => slots.iter_mut().for_each(|one| self.decided(one)),
            Message::Stable(certificate) => self.certificate(certificate),
            // Nothing in these is sealed: being readable is all they need.
            Message::FetchViewChange { .. }
            | Message::Standing(_)
            | Message::FetchPayload { .. }
            | Message::FetchDecided { .. }
            | Message::Introduce { .. } => {}
            Message::Introduction(shown) => {
                shown.votes.iter_mut().for_each(|vote| self.signed(vote));
                if let Some(signed) = &mut shown.view_change {
                    self.body(SigningKind::ViewChange, signed, from);
                }
            }
        }
    }

    pub fn snapshot_meta(&mut self, meta: &mut SnapshotMeta) {
        if self.repairs() {
            meta.certificate.claim.digest = state_digest(&meta.digests);
        }
        self.certificate(&mut meta.certificate);
        meta.orders.iter_mut().for_each(|order| self.order(order));
    }

    /// What members say about convergent state; what cannot be read stays as it is.
    fn sync(&mut self, said: &mut Bytes, from: ReplicaId) {
        if let Ok(mut message) = decode::<dwcp_sync::Message>(said) {
            sync_world::seal_message(&mut message, from.0.into(), &mut self.chance);
            *said = message.to_bytes();
        }
    }

    fn sync_frame(&mut self, frame: &mut Bytes) {
        let mut bytes = frame.to_vec();
        if sync_world::seal_frame(&mut bytes, &mut self.chance) {
            *frame = Bytes::from(bytes);
        }
    }

    /// False when the bytes are no message.
    pub fn peer_message(&mut self, bytes: &mut Vec<u8>, from: ReplicaId) -> bool {
        let Ok(mut message) = decode::<PeerMessage>(bytes) else { return false };
        match &mut message {
            PeerMessage::Pbft(message) => self.message(message, from),
            PeerMessage::Request { frame, .. } => {
                return self.client_frame(frame) && replace(bytes, &message);
            }
            PeerMessage::Order(order) => self.operator_order(order),
            PeerMessage::Suspect(suspect) => Self::said(suspect),
            PeerMessage::Stop { stop, .. } => Self::stop(stop),
            PeerMessage::Sealed(sealed) => Self::said(sealed),
            PeerMessage::AnchorVote(vote) => Self::said(vote),
            PeerMessage::Offer(meta) => self.snapshot_meta(meta),
            PeerMessage::Sync(said) => self.sync(said, from),
            PeerMessage::SyncOrder { frame } => self.sync_frame(frame),
            PeerMessage::SyncOffer { base, .. } => {
                if let Ok(mut read) = decode::<dwcp_sync::Base>(base) {
                    sync_world::seal_base(&mut read);
                    *base = Bytes::from(encode(&read));
                }
            }
            PeerMessage::FetchOffer { .. }
            | PeerMessage::FetchChunk { .. }
            | PeerMessage::Chunk { .. }
            | PeerMessage::NoChunk { .. }
            | PeerMessage::Segment { .. }
            | PeerMessage::FetchEntries { .. }
            | PeerMessage::Entries { .. }
            | PeerMessage::Behind { .. }
            | PeerMessage::SyncStand { .. }
            | PeerMessage::SyncFetch { .. }
            | PeerMessage::SyncPart { .. }
            | PeerMessage::SyncAsk { .. } => {}
            PeerMessage::SyncAgreed { matter, agreed } => self.agreed(*matter, agreed),
            PeerMessage::SyncConsent { matter, ground, content, stance, signature, .. } => {
                let by = ReplicaId(u8::try_from(self.chance.below(4)).expect("four members"));
                let hash = consent_hash(cluster(), *matter, *ground, *content, *stance, by);
                *signature = sign(&vote_key(by, Incarnation(0)), &hash);
            }
        }
        replace(bytes, &message)
    }

    /// False when the bytes are no record.
    pub fn record(&mut self, bytes: &mut Vec<u8>) -> bool {
        let Some(mut record) = LogRecord::read(&Bytes::copy_from_slice(bytes)) else { return false };
        // A segment's records carry no seal.
        if let LogRecord::Root(root) = &mut record {
            self.root_record(root);
        }
        *bytes = crate::targets::messages::record_bytes(&record);
        true
    }

    fn root_record(&mut self, record: &mut Record) {
        match record {
            Record::PrePrepared { proposal, payload } => {
                if let Some(payload) = payload {
                    self.payload(payload);
                    if self.repairs() {
                        proposal.statement.claim.digest = payload_digest(payload);
                    }
                }
                self.signed(proposal);
            }
            Record::Prepared(certificate) => self.prepared(certificate),
            Record::Committed(certificate) | Record::Stable(certificate) => self.certificate(certificate),
            Record::Decided(decided) => self.decided(decided),
            Record::ViewChange(body) => self.body(SigningKind::ViewChange, body, ReplicaId(1)),
            Record::NewView(proof) => {
                for view_change in &mut proof.view_changes {
                    self.body(SigningKind::ViewChange, view_change, ReplicaId(0));
                }
                self.body(SigningKind::NewView, &mut proof.new_view, ReplicaId(0));
            }
            Record::Payload { payload, .. } => {
                self.payload(payload);
            }
        }
    }

    /// Makes a reply the only leaf of its proposal and signs it. False when the bytes are no reply.
    pub fn executed_reply(&mut self, bytes: &mut Vec<u8>) -> bool {
        let Ok(mut reply) = decode::<ExecutedReply>(bytes) else { return false };
        let tree = ReplyTree::new(vec![reply.leaf_hash()]);
        (reply.leaf_index, reply.leaf_count, reply.path) = (0, 1, tree.path(0));
        let hash = reply_signing_hash(cluster(), reply.replica, reply.incarnation, 1, tree.root());
        reply.signature = Some(sign(&vote_key(reply.replica, reply.incarnation), &hash));
        replace(bytes, &reply)
    }
}

fn replace(bytes: &mut Vec<u8>, value: &impl borsh::BorshSerialize) -> bool {
    *bytes = encode(value);
    true
}
