//! Which Closes can be built from what was sealed: every set of reports, honest and lying, put before the judge of
//! `dwcp-log` itself, and of what passes only that whose log can be shown and holds the last Anchor. Rules can be switched
//! off here, around the judge and never in it. It knows nothing of how the logs came about: that is `sealing`.

use dwcp_base::Mutants;
use dwcp_base::{
    ClusterId, ConfigurationId, Epoch, Hash, Incarnation, Position, Quorum, ReplicaId, Sequence,
};
use dwcp_log::chain::VirtualLog;
use dwcp_log::close::{Bench, Close, CloseProof, CloseRefusal, VoicesRefusal, choose};
use dwcp_log::collection::Collection;
use dwcp_log::place::{Index, Place, Term};
use dwcp_log::seal::{Sealed, Signed, Speaker};
use dwcp_log::segment::{AnchorPoint, Open, Protocol, Segment};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::keys::{KeyedHash, vote_key};

/// Entries a log of the model can hold.
pub const LOG_MAX: usize = 4;
const FORGED: u8 = 0x80;
/// The entry that says that its leader appends nothing after it.
pub const MARKER: u8 = 0x40;
const TERM: u8 = 0x3f;
const EPOCH: Epoch = Epoch(1);

/// A segment's log. An honest entry is known by its term and index (a term has one leader, who appends only); what a liar
/// made up differs from every honest entry of its term and index.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Log {
    len: u8,
    entries: [u8; LOG_MAX],
}

impl Log {
    #[must_use]
    pub fn len(&self) -> u8 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn with(mut self, entry: u8) -> Self {
        self.entries[usize::from(self.len)] = entry;
        self.len += 1;
        self
    }

    #[must_use]
    pub fn prefix(&self, len: u8) -> Self {
        self.entries().iter().take(len.into()).fold(Self::default(), |log, entry| log.with(*entry))
    }

    #[must_use]
    pub fn starts_with(&self, other: &Self) -> bool {
        self.entries().starts_with(other.entries())
    }

    /// The term of its last entry; 0 when it is empty.
    #[must_use]
    pub fn term(&self) -> u8 {
        self.entries().last().map_or(0, |entry| entry & TERM)
    }

    /// What lies up to and with its first Marker.
    #[must_use]
    pub fn marked(&self) -> Option<Self> {
        let before = self.entries().iter().position(|entry| entry & MARKER != 0)?;
        Some(self.entries().iter().take(before + 1).fold(Self::default(), |log, entry| log.with(*entry)))
    }

    /// Raft section 5.4.1, for the model's own elections.
    #[must_use]
    pub fn is_as_good_as(&self, other: &Self) -> bool {
        (self.term(), self.len) >= (other.term(), other.len)
    }

    fn entries(&self) -> &[u8] {
        &self.entries[..self.len.into()]
    }

    fn place(&self) -> Place {
        let mut log = base();
        for entry in self.entries() {
            log.append(&Hash::of(&[*entry]));
        }
        Place { index: Index(self.len.into()), term: Term(self.term().into()), chain: log.chain }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |entry: &u8| match entry & !TERM {
            0 => "",
            MARKER => "m",
            _ => "!",
        };
        let words: Vec<String> =
            self.entries().iter().map(|entry| format!("{}{}", entry & TERM, kind(entry))).collect();
        write!(f, "[{}]", words.join(" "))
    }
}

fn base() -> VirtualLog {
    VirtualLog { position: Position(100), chain: Hash::of(b"what came before the segment") }
}

/// A rule that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slip {
    /// The longest log is taken, whatever its term.
    LongestLog,
    /// So many reports suffice.
    Reports(usize),
    /// Who sealed goes on voting.
    SealedVotes,
    /// Who sealed goes on taking entries and saying so.
    SealedAppends,
    /// The last Anchor is not looked at.
    BelowAnchor,
    /// A log longer than the last Anchor is taken to hold it, and nobody looks into the log.
    AnchorByIndexAlone,
    /// A Close that was prepared before the last Anchor holds behind it.
    AnchorOfThePrepare,
    /// Nobody asks to see the log.
    CloseWithoutData,
    /// A leader counts who holds an entry of an earlier term (Raft section 5.4.2 forbids it). Not a rule of closing, but
    /// closing rests on it.
    EarlierTermCounts,
    /// Who holds a Marker goes on appending and acknowledging after it.
    MarkerIgnored,
    /// A Marker ends the segment when anybody holds it, committed or not.
    MarkerUncommitted,
    /// Who names a log that nobody shows is believed all the same.
    NobodyDoubted,
}

/// Where a Close can end the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    pub place: Place,
    /// `None` when nobody has such a log.
    pub log: Option<Log>,
}

/// A question: what honest replicas sealed, logs that end with a Marker that was seen committed, and the last Anchor.
type Asked = (Vec<Log>, Vec<Log>, Log);

/// The judge's bench, and what was judged before: there are many states and few different questions.
pub struct Closing {
    pub quorum: Quorum,
    pub slip: Option<Slip>,
    /// What the liar can say: ends of logs it can show, true or made up, and of logs that nobody has.
    lies: Vec<(Signed<Sealed>, Tail)>,
    /// Bounded by the logs and Anchors that a model can have.
    judged: Mutex<HashMap<Asked, Arc<Vec<Tail>>>>,
    /// The same for what is collected.
    collected: Mutex<HashMap<(Vec<Log>, Log), bool>>,
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing")
            .field("quorum", &self.quorum)
            .field("slip", &self.slip)
            .finish_non_exhaustive()
    }
}

fn report(id: u8, last: Place) -> Signed<Sealed> {
    let speaker =
        Speaker { id: ReplicaId(id), incarnation: Incarnation(0), configuration: ConfigurationId(1) };
    Signed::new(Sealed { epoch: EPOCH, speaker, last }, CLUSTER, &KeyedHash::of(id))
}

const CLUSTER: ClusterId = ClusterId([9; 32]);

/// Every log of at most `entries` entries whose terms never fall.
fn logs(terms: u8, entries: u8) -> Vec<Log> {
    let mut all = vec![Log::default()];
    let mut at = 0;
    while let Some(log) = all.get(at).copied() {
        if log.len() < entries {
            all.extend((log.term().max(1)..=terms).map(|term| log.with(term)));
        }
        at += 1;
    }
    all
}

impl Closing {
    /// With `f = 1` the replica with the highest id lies.
    ///
    /// # Panics
    /// When there is no such cluster.
    #[must_use]
    pub fn new(n: u8, f: u8, terms: u8, entries: u8, slip: Option<Slip>) -> Self {
        let quorum = Quorum::new(n.into(), Some(f)).expect("models have possible sizes");
        let mut claims = Vec::new();
        if f > 0 {
            let honest = logs(terms, entries);
            let longer = honest.iter().filter(|log| log.len() < entries).flat_map(|log| {
                (log.term().max(1)..=terms + 1).map(|term| log.with(term | FORGED)).collect::<Vec<_>>()
            });
            let shown: Vec<Log> = honest.iter().copied().chain(longer).collect();
            claims.extend(shown.into_iter().map(|log| Tail { place: log.place(), log: Some(log) }));
            for (term, index) in (1..=terms + 1).flat_map(|term| (1..=entries + 1).map(move |i| (term, i))) {
                let chain = Hash::of(b"the end of a log that nobody has");
                let place = Place { index: Index(index.into()), term: Term(term.into()), chain };
                claims.push(Tail { place, log: None });
            }
        }
        let lies = claims.into_iter().map(|tail| (report(n - 1, tail.place), tail)).collect();
        Self { quorum, slip, lies, judged: Mutex::default(), collected: Mutex::default() }
    }

    /// Every end that some valid Close can name when these are the logs that honest replicas sealed.
    ///
    /// # Panics
    /// When another thread of the checker did.
    #[must_use]
    pub fn possible(&self, mut sealed: Vec<Log>, marked: Vec<Log>, anchored: Log) -> Arc<Vec<Tail>> {
        sealed.sort();
        let asked = (sealed, marked, anchored);
        if let Some(tails) = self.judged.lock().expect("no thread panicked").get(&asked) {
            return tails.clone();
        }
        let tails = Arc::new(self.judge_all(&asked));
        self.judged.lock().expect("no thread panicked").insert(asked, tails.clone());
        tails
    }

    fn judge_all(&self, (sealed, marked, anchored): &Asked) -> Vec<Tail> {
        let honest: Vec<(Signed<Sealed>, Tail)> = (0..)
            .zip(sealed)
            .map(|(id, log)| (report(id, log.place()), Tail { place: log.place(), log: Some(*log) }))
            .collect();
        let segment = self.segment(anchored);
        let mut tails: Vec<Tail> = Vec::new();
        for log in marked {
            let tail = Tail { place: log.place(), log: Some(*log) };
            let holds = Self::prepared_at(*anchored).any(|last| {
                let anchor = self.number(&last);
                let close = Close { epoch: EPOCH, tail: tail.place, anchor, proof: CloseProof::Marker };
                self.can_prepare(&tail, &last) && self.holds_at(&segment, &close)
            });
            if holds {
                tails.push(tail);
            }
        }
        for members in 0..1_usize << honest.len() {
            let of_them: Vec<_> =
                (0..honest.len()).filter(|at| members >> at & 1 == 1).map(|at| honest[at]).collect();
            for lie in std::iter::once(None).chain(self.lies.iter().map(Some)) {
                let words: Vec<_> = of_them.iter().chain(lie).copied().collect();
                let reports: Vec<Signed<Sealed>> = words.iter().map(|(report, _)| *report).collect();
                let named: BTreeMap<_, Tail> =
                    words.iter().map(|(_, tail)| (tail.place.chain.0, *tail)).collect();
                for tail in named.into_values() {
                    let allowed = !tails.contains(&tail)
                        && Self::prepared_at(*anchored).any(|last| {
                            self.can_prepare(&tail, &last)
                                && self.judge(&segment, &tail.place, self.number(&last), &reports)
                        });
                    if allowed {
                        tails.push(tail);
                    }
                }
            }
        }
        tails
    }

    /// Whether a primary that hears all these reports, and whatever the liar says beside them, comes to a Close that the judge
    /// lets pass, by `dwcp-log`'s own collection: it fetches the log that was chosen, and doubts who named it when nobody has
    /// it.
    ///
    /// # Panics
    /// When another thread of the checker did.
    #[must_use]
    pub fn is_collected(&self, mut sealed: Vec<Log>, anchored: Log) -> bool {
        sealed.sort();
        let asked = (sealed, anchored);
        if let Some(outcome) = self.collected.lock().expect("no thread panicked").get(&asked) {
            return *outcome;
        }
        let lies = std::iter::once(None).chain(self.lies.iter().map(Some));
        let outcome = lies.flat_map(|lie| [(lie, true), (lie, false)]).all(|(lie, is_shown)| {
            let shown_by_liar = lie.and_then(|(_, tail)| tail.log).filter(|_| is_shown);
            self.collects(&asked.0, lie.map(|(report, _)| *report), shown_by_liar, &asked.1)
        });
        self.collected.lock().expect("no thread panicked").insert(asked, outcome);
        outcome
    }

    fn collects(
        &self,
        sealed: &[Log],
        lie: Option<Signed<Sealed>>,
        shown_by_liar: Option<Log>,
        anchored: &Log,
    ) -> bool {
        let segment = self.segment(anchored);
        let is_shown = |place: &Place| {
            let mut logs = sealed.iter().copied().chain(shown_by_liar);
            let len = u8::try_from(place.index.0).unwrap_or(u8::MAX);
            logs.any(|log| log.starts_with(anchored) && log.len() >= len && log.prefix(len).place() == *place)
        };
        let mut reports = Collection::new();
        (0..).zip(sealed).for_each(|(id, log)| reports.insert(report(id, log.place())));
        lie.into_iter().for_each(|lie| reports.insert(lie));
        // Each round leaves somebody out, or closes.
        for _ in 0..=self.quorum.n() {
            let close = self.bench(|bench| reports.close(bench, &segment, is_shown));
            let Some(close) = close else { return false };
            if is_shown(&close.tail) {
                return self.on_bench(&segment, &close).is_ok();
            }
            if self.slip != Some(Slip::NobodyDoubted) {
                reports.doubt(&close.tail, self.bench(|bench| bench.reports_needed(&segment)));
            }
        }
        false
    }

    fn segment(&self, anchored: &Log) -> Segment {
        let members = (0..self.quorum.n()).map(ReplicaId).collect();
        let open = Open { protocol: Protocol::Raft, first_leader: None, members };
        let mut segment = Segment::new(EPOCH, Sequence(1), base(), Hash::ZERO, open);
        if !anchored.is_empty() && self.slip != Some(Slip::BelowAnchor) {
            let Place { index, term, chain } = anchored.place();
            let number = self.number(anchored);
            segment.anchor = AnchorPoint { number, index, term, chain, state: Hash::ZERO };
        }
        segment
    }

    /// What may have been the last Anchor when honest replicas prepared a Close that is executed now: the one that is the
    /// last now, or any before it. The root's primary orders a proposal as late as it likes, and there may have been an
    /// Anchor at every entry.
    fn prepared_at(anchored: Log) -> impl Iterator<Item = Log> {
        (0..=anchored.len()).rev().map(move |len| anchored.prefix(len))
    }

    /// How many Anchors there were up to this one.
    fn number(&self, anchored: &Log) -> u64 {
        if self.slip == Some(Slip::BelowAnchor) { 0 } else { anchored.len().into() }
    }

    /// The rule that a Close names the Anchor it was prepared at, switched off: it is taken to name the last.
    fn holds_at(&self, segment: &Segment, close: &Close) -> bool {
        let unchecked = self.slip == Some(Slip::AnchorOfThePrepare);
        let anchor = if unchecked { segment.anchor.number } else { close.anchor };
        self.on_bench(segment, &Close { anchor, ..close.clone() }).is_ok()
    }

    /// Whether an honest replica would prepare it: it has seen the log, and the last Anchor is in it. A liar shows what it
    /// made up, too.
    fn can_prepare(&self, tail: &Tail, anchored: &Log) -> bool {
        let holds_anchor = match self.slip {
            Some(Slip::BelowAnchor | Slip::AnchorByIndexAlone) => true,
            _ => tail.log.is_none_or(|log| log.starts_with(anchored)),
        };
        holds_anchor && (tail.log.is_some() || self.slip == Some(Slip::CloseWithoutData))
    }

    fn judge(&self, segment: &Segment, tail: &Place, anchor: u64, reports: &[Signed<Sealed>]) -> bool {
        let unchecked = self.slip == Some(Slip::AnchorOfThePrepare);
        let anchor = if unchecked { segment.anchor.number } else { anchor };
        let close = Close { epoch: EPOCH, tail: *tail, anchor, proof: CloseProof::Reports(reports.to_vec()) };
        let judged = self.on_bench(segment, &close);
        match (self.slip, judged) {
            (Some(Slip::LongestLog), Ok(()) | Err(CloseRefusal::NotTheBest)) => {
                let lasts = reports.iter().map(|report| report.said.last);
                lasts.max_by_key(|last| (last.index, last.term)) == Some(*tail)
            }
            (Some(Slip::Reports(few)), Err(CloseRefusal::Voices(VoicesRefusal::TooFew))) => {
                reports.len() >= few && choose(reports, Mutants::default()) == Ok(Some(*tail))
            }
            (_, judged) => judged.is_ok(),
        }
    }

    fn on_bench(&self, segment: &Segment, close: &Close) -> Result<(), CloseRefusal> {
        self.bench(|bench| bench.judge_close(Some(segment), close))
    }

    fn bench<T>(&self, judge: impl FnOnce(&Bench<'_>) -> T) -> T {
        let member = |speaker: Speaker| speaker.id.0 < self.quorum.n();
        let key_of = |speaker: Speaker| member(speaker).then(|| vote_key(speaker.id.0));
        let crypto = KeyedHash::of(u8::MAX);
        judge(&Bench {
            cluster: CLUSTER,
            quorum: self.quorum,
            crypto: &crypto,
            voters: &key_of,
            gone: 0,
            mutants: Mutants::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: &[u8]) -> Log {
        entries.iter().fold(Log::default(), |log, entry| log.with(*entry))
    }

    #[test]
    fn a_log_is_known_by_its_place() {
        let mut all = logs(3, 3);
        assert_eq!(all.len(), 20, "1 + 3 + 6 + 10");
        all.push(log(&[1, 2 | FORGED]));
        let places: std::collections::BTreeSet<_> = all.iter().map(|log| log.place().chain.0).collect();
        assert_eq!(places.len(), all.len());
    }

    #[test]
    fn the_liar_names_logs_it_has_and_logs_that_nobody_has() {
        let closing = Closing::new(4, 1, 2, 2, None);
        let unshown = closing.lies.iter().filter(|(_, tail)| tail.log.is_none()).count();
        assert_eq!((closing.lies.len(), unshown), (23, 9), "6 true, 8 made up, 9 phantoms");
        let tails = closing.possible(vec![log(&[1]); 2], vec![], Log::default());
        let made_up = Some(log(&[1, 3 | FORGED]));
        assert!(tails.iter().any(|tail| tail.log == made_up), "it shows what it made up: {tails:?}");
        assert!(tails.iter().all(|tail| tail.log.is_some()));
        assert_eq!(*closing.possible(vec![log(&[1])], vec![], Log::default()), [], "two reports of three");
    }
}
