//! What rests on what members said in exchanges is agreed to before it is ordered.
//!
//! Members hear of each other at different times, and a liar may tell each of them something else. So whoever finds a floor or
//! an end asks first (`dwcp_log::consent`), and only what a quorum has signed is ordered. Nobody's word, and nobody's
//! silence, can make a slot of the root one that honest replicas do not prepare.
//!
//! The root's primary asks. When nothing comes of that for long, the others do: what is agreed to they hand to everybody, and a
//! primary that does not order it then is one that does not serve a request.
//!
//! ```text
//!   primary ── SyncAsk ──▶ all ── SyncConsent ──▶ primary ──▶ root entry
//!   another, after a while: the same, then ── SyncAgreed ──▶ all; the primary orders it, or the view is left
//! ```

use crate::io::Class;
use crate::replica::{Outbox, Replica};
use crate::sync::{FLOOR_BYTES_MAX, SyncRoom};
use crate::wire::PeerMessage;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Mutant, Now, ReplicaId, Signature, Ticket, decode};
use dwcp_crdt::Floor;
use dwcp_log::consent::{Ground, Question, consent};
use dwcp_log::{Agreed, Matter, RootEntry, Stance};
use dwcp_state::StateMachine;
use dwcp_sync::{Cut, End};

/// Longest encoding of where a member stands.
const STAND_BYTES_MAX: usize = 128;
/// After so many intervals of exchanges in which nothing came of a matter that waits, the member after the primary asks about
/// it; each further one so many later.
const ASK_INSTEAD_INTERVALS: (u64, u64) = (16, 8);
/// What was handed to everybody is waited for so long. There is nothing that could keep an honest primary from ordering it.
const HANDED_INTERVALS: u64 = 64;

/// What is asked, what was answered, and what others agreed to. At most one of each matter and member.
#[derive(Debug, Default)]
pub(crate) struct Consulting {
    /// The question under way of each matter.
    asking: BTreeMap<Matter, Asking>,
    /// What a quorum agreed to and somebody else than the primary asked.
    handed: BTreeMap<Matter, Handed>,
    /// So far the matter has come; and since when there has been more to ask, as far as this replica can tell.
    waits: BTreeMap<Matter, (u64, Micros)>,
    next_look: Micros,
    /// Members that are not the primary are answered once in an interval.
    answered: BTreeMap<(ReplicaId, Matter), Micros>,
}

/// A question, and its times.
#[derive(Debug)]
struct Asking {
    question: Question,
    /// The member that it proves to lie.
    convicts: Option<ReplicaId>,
    since: Micros,
    next_send: Micros,
    /// Given up then: whoever does not agree by now has heard something else.
    until: Micros,
}

/// Waits to be ordered.
#[derive(Debug)]
struct Handed {
    agreed: Agreed,
    /// It has an effect while the matter has come so far.
    after: u64,
    since: Micros,
}

fn entry(matter: Matter, agreed: Agreed) -> RootEntry {
    match matter {
        Matter::Floor => RootEntry::Floor(Box::new(agreed)),
        Matter::End => RootEntry::Evidence(Box::new(agreed)),
    }
}

impl SyncRoom {
    /// Questions asked from elsewhere, or for too long; and about an end that a quorum does not suffice for after everybody could
    /// ask everybody for what he lacks of it, or that somebody's store is beyond, so that another has its turn.
    fn forget_questions(&mut self, now: Now, ground: Ground, quorum: usize) {
        let patience = self.setup.timing.exchange_interval.times(self.round_of_exchanges());
        let farther = self.consulting.asking.get(&Matter::End).is_some_and(|asking| {
            decode::<End>(&asking.question.bytes).is_ok_and(|end| self.has_farther(&end.cut))
        });
        if farther {
            self.consulting.asking.remove(&Matter::End);
        }
        let mut vain = Vec::new();
        self.consulting.asking.retain(|matter, asking| {
            let is_vain = *matter == Matter::End
                && asking.question.consents.len() >= quorum
                && now.mono.since(asking.since) >= patience;
            vain.extend(is_vain.then(|| asking.question.bytes.clone()));
            asking.question.ground == ground && now.mono < asking.until && !is_vain
        });
        for bytes in vain {
            if let Ok(end) = decode::<End>(&bytes) {
                self.asked_in_vain(end.cut);
            }
        }
    }

    /// How long the replicas are asked: each member asks every other once in a round of exchanges; two rounds, for
    /// messages that were lost, and one more for the question itself.
    fn hearing(&self) -> Micros {
        self.setup.timing.exchange_interval.times(3 * self.round_of_exchanges())
    }

    /// In so many intervals each member has asked every other.
    fn round_of_exchanges(&self) -> u64 {
        1 + self.open.as_ref().map_or(0, |open| open.sync.peers().count() as u64)
    }

    /// Is there something of this matter to ask about, as far as this replica knows?
    fn has_to_ask(&self, matter: Matter) -> bool {
        let Some(open) = &self.open else { return false };
        match matter {
            Matter::Floor => !open.sync.has_open_past() && open.sync.floor_candidate().is_some(),
            Matter::End => !open.sync.endings().is_empty(),
        }
    }
}

impl<M: StateMachine> Replica<M> {
    /// From the primary: floors and ends that a quorum has agreed to. Asks for what is not agreed to yet.
    pub(crate) fn next_agreed(&mut self, now: Now, out: &mut Outbox) -> Vec<RootEntry> {
        let mut entries = Vec::new();
        for matter in [Matter::End, Matter::Floor] {
            let handed = self.sync.as_mut().and_then(|room| room.consulting.handed.remove(&matter));
            let handed = handed.filter(|handed| self.is_due(matter, handed)).map(|handed| handed.agreed);
            let agreed = handed.or_else(|| self.ask_for(now, matter, out));
            entries.extend(agreed.map(|agreed| entry(matter, agreed)));
        }
        entries
    }

    /// So far a matter has come.
    fn progress(&self, matter: Matter) -> u64 {
        match matter {
            Matter::Floor => self.control.floors.number(),
            Matter::End => self.control.ends.len() as u64,
        }
    }

    /// Would it have an effect if it were ordered now?
    fn is_due(&self, matter: Matter, handed: &Handed) -> bool {
        handed.agreed.ground == self.court().ground() && handed.after == self.progress(matter)
    }

    fn handed(&self, now: Now, matter: Matter, agreed: Agreed) -> Option<Handed> {
        let after = match matter {
            Matter::Floor => decode::<Floor>(&agreed.bytes).ok()?.number.checked_sub(1)?,
            Matter::End => agreed.ground.ends,
        };
        Some(Handed { agreed, after, since: now.mono })
    }

    /// Since when the primary has had something to order that others have agreed to.
    pub(crate) fn handed_since(&self) -> Option<Micros> {
        let handed = &self.sync.as_ref()?.consulting.handed;
        let due = handed.iter().filter(|(matter, handed)| self.is_due(**matter, handed));
        due.map(|(_, handed)| handed.since).min()
    }

    /// A primary that does not ask must not keep ends and floors from everybody for ever.
    pub(crate) fn ask_instead(&mut self, now: Now, out: &mut Outbox) {
        let is_backup = self.pbft.is_active() && self.pbft.is_voter() && !self.pbft.is_primary();
        let n = u64::from(self.pbft.quorum().n());
        let turn = (n + u64::from(self.setup.me.0) - u64::from(self.pbft.primary().0)) % n;
        let Some(room) = self.sync.as_mut().filter(|room| now.mono >= room.consulting.next_look) else {
            return;
        };
        let interval = room.setup.timing.exchange_interval;
        room.consulting.next_look = now.mono.plus(interval);
        for matter in [Matter::End, Matter::Floor] {
            let come = self.progress(matter);
            let due = |handed: &Handed| {
                now.mono.since(handed.since) < interval.times(HANDED_INTERVALS) && self.is_due(matter, handed)
            };
            let stays =
                self.sync.as_ref().and_then(|room| room.consulting.handed.get(&matter)).is_some_and(due);
            let Some(room) = &mut self.sync else { return };
            if !stays {
                room.consulting.handed.remove(&matter);
            }
            let has_to_ask = room.has_to_ask(matter);
            let waits = room.consulting.waits.entry(matter).or_insert((come, now.mono));
            if waits.0 != come || !has_to_ask {
                *waits = (come, now.mono);
            }
            let (first, each) = ASK_INSTEAD_INTERVALS;
            let patience = interval.times(first + each * turn.saturating_sub(1));
            if stays || !is_backup || now.mono.since(waits.1) < patience {
                continue;
            }
            let Some(agreed) = self.ask_for(now, matter, out) else { continue };
            let message = PeerMessage::SyncAgreed { matter, agreed: agreed.clone() };
            self.send_all(&message, Class::Bulk, Ticket::ZERO, out);
            let handed = self.handed(now, matter, agreed);
            if let (Some(room), Some(handed)) = (&mut self.sync, handed) {
                room.consulting.handed.insert(matter, handed);
            }
        }
    }

    /// A quorum agreed to what a member asked about that is not the primary.
    pub(crate) fn on_agreed(
        &mut self,
        now: Now,
        from: ReplicaId,
        matter: Matter,
        agreed: Agreed,
        out: &mut Outbox,
    ) {
        if agreed.bytes.len() > FLOOR_BYTES_MAX {
            return self.refuse_peer(from, "a floor that is too long", out);
        }
        let Some(room) = &self.sync else { return };
        let has_one = room.consulting.handed.get(&matter).is_some_and(|handed| self.is_due(matter, handed));
        let handed = self.handed(now, matter, agreed);
        let Some(handed) = handed.filter(|handed| !has_one && self.is_due(matter, handed)) else {
            return; // Late, or once more.
        };
        let agreed = &handed.agreed;
        if self.court().consents(matter, &agreed.bytes).judge(matter, agreed).is_err() {
            return self.refuse_peer(from, "a floor or an end that no quorum agreed to", out);
        }
        self.count("floors and ends handed over");
        if let Some(room) = &mut self.sync {
            room.consulting.handed.insert(matter, handed);
        }
    }

    fn ask_for(&mut self, now: Now, matter: Matter, out: &mut Outbox) -> Option<Agreed> {
        let me = self.setup.me;
        let ground = self.court().ground();
        let mut room = self.sync.take()?;
        room.forget_questions(now, ground, self.pbft.quorum().q());
        let around = self.surroundings();
        if !room.consulting.asking.contains_key(&matter)
            && let Some(bytes) =
                room.find(now, matter, &around, self.setup.mutants.on(Mutant::RoomAsksUnheard))
        {
            let convicts = if matter == Matter::End { self.court().convicted_by(&bytes) } else { None };
            let (question, until) = (Question::new(bytes, ground), now.mono.plus(room.hearing()));
            let asking = Asking { question, convicts, since: now.mono, next_send: now.mono, until };
            room.consulting.asking.insert(matter, asking);
        }
        let asking = room.consulting.asking.get(&matter);
        let Some((asked, convicts)) = asking.map(|asking| (asking.question.bytes.clone(), asking.convicts))
        else {
            self.sync = Some(room);
            return None;
        };
        let court = self.court().consents_without(convicts);
        let faults = court.faults();
        let has_voice = self.pbft.is_voter() && !court.convicted.contains(&me);
        let said = room.consulting.asking.get(&matter).and_then(|asking| asking.question.consents.get(&me));
        let is_said = said.is_some_and(|(stance, _)| *stance == Stance::Agrees);
        let unheard = self.setup.mutants.on(Mutant::RoomAsksUnheard).then(|| (Stance::Agrees, Bytes::new()));
        let own = if is_said { None } else { unheard.or_else(|| room.judge(matter, &asked, &around)) };
        self.sync = Some(room);
        let quorum = self.pbft.quorum();
        let room = self.sync.as_mut()?;
        let interval = room.setup.timing.exchange_interval;
        let asking = room.consulting.asking.get_mut(&matter)?;
        if let Some((stance, _)) = own.filter(|_| has_voice) {
            let content = asking.question.content;
            let signature = consent(self.cluster, matter, ground, content, stance, me, &*self.crypto);
            asking.question.consents.insert(me, (stance, signature));
        }
        // Who has not answered yet may stand farther, with what others count on.
        let has_heard = matter == Matter::Floor
            || asking.question.consents.len() >= usize::from(quorum.n())
            || now.mono.since(asking.since) >= interval;
        if self.setup.mutants.on(Mutant::RoomOrdersUnasked)
            || (has_heard && asking.question.is_agreed(matter, quorum.q(), faults))
        {
            let agreed = asking.question.agreed();
            room.consulting.asking.remove(&matter);
            return Some(agreed);
        }
        if asking.next_send <= now.mono {
            asking.next_send = now.mono.plus(interval);
            let bytes = asking.question.bytes.clone();
            self.send_all(&PeerMessage::SyncAsk { matter, ground, bytes }, Class::Bulk, Ticket::ZERO, out);
        }
        None
    }

    /// Somebody asks: the primary, or once in a while another. Whoever cannot agree yet says nothing: it is asked again.
    pub(crate) fn on_ask(
        &mut self,
        now: Now,
        from: ReplicaId,
        (matter, ground): (Matter, Ground),
        bytes: &Bytes,
        out: &mut Outbox,
    ) {
        if bytes.len() > FLOOR_BYTES_MAX {
            return self.refuse_peer(from, "a question that is too long", out);
        }
        let asks = self.pbft.is_active() && self.pbft.is_voter() && self.may_ask(now, from, matter);
        let blind = match matter {
            Matter::Floor => self.setup.mutants.on(Mutant::RoomFloorUnchecked),
            Matter::End => self.setup.mutants.on(Mutant::RoomEndUnchecked),
        };
        let says = match &self.sync {
            _ if !asks || self.court().ground() != ground => None,
            _ if blind => Some((Stance::Agrees, Bytes::new())),
            Some(room) => room.judge(matter, bytes, &self.surroundings()),
            None => None,
        };
        let Some((stance, stands)) = says else { return self.count("questions not answered") };
        let content = Hash::of(bytes);
        let signature = consent(self.cluster, matter, ground, content, stance, self.setup.me, &*self.crypto);
        let answer = PeerMessage::SyncConsent { matter, ground, content, stance, signature, stands };
        self.send_one(from, &answer, Class::Request, out);
    }

    fn may_ask(&mut self, now: Now, from: ReplicaId, matter: Matter) -> bool {
        if self.pbft.primary() == from {
            return true;
        }
        let Some(room) =
            self.sync.as_mut().filter(|_| self.control.configurations.latest().member(from).is_some())
        else {
            return false;
        };
        let half = Micros(room.setup.timing.exchange_interval.0 / 2);
        let next = room.consulting.answered.entry((from, matter)).or_default();
        let may = now.mono >= *next;
        if may {
            *next = now.mono.plus(half);
        }
        may
    }

    /// Somebody agrees.
    pub(crate) fn on_consent(
        &mut self,
        from: ReplicaId,
        (matter, ground, content): (Matter, Ground, Hash),
        (stance, signature): (Stance, Signature),
        stands: &[u8],
        out: &mut Outbox,
    ) {
        let asked = |asking: &&Asking| {
            let question = &asking.question;
            let said = question.consents.get(&from).map(|(stance, _)| *stance);
            // Who lacked something may have got it since.
            let is_news = said.is_none_or(|said| said != Stance::Agrees && stance == Stance::Agrees);
            (question.ground, question.content) == (ground, content) && is_news
        };
        let asking = self.sync.as_ref().and_then(|room| room.consulting.asking.get(&matter));
        let asking = asking.filter(asked).map(|asking| (asking.question.bytes.clone(), asking.convicts));
        let Some((bytes, convicts)) = asking else {
            return; // Late, or twice.
        };
        let court = self.court().consents_without(convicts);
        if court.ground() != ground || court.convicted.contains(&from) {
            return;
        }
        if !court.counts(matter, content, (from, stance), &signature) {
            return self.refuse_peer(from, "a consent that does not count", out);
        }
        let Some(room) = &mut self.sync else { return };
        let Some(asking) = room.consulting.asking.get_mut(&matter) else { return };
        asking.question.consents.insert(from, (stance, signature));
        if matter == Matter::End
            && stands.len() <= STAND_BYTES_MAX
            && let (Ok(asked), Ok(cut)) = (decode::<End>(&bytes), decode::<Cut>(stands))
            && cut.origin == asked.cut.origin
        {
            room.note_stand(from, cut);
        }
    }
}
