//! Judges: from what clients and replicas noted down, was the promise kept?
//!
//! Input is a `History` of plain numbers and bytes, built by hand or read from JSON lines; output is findings with reasons. The judges
//! know no crate of the cluster, so no mistake can hide in code shared by the judge and the judged. Start at `judge_all`, or call the
//! judge you need:
//!
//! | judge | question |
//! |---|---|
//! | `prefix` | do honest replicas agree on every entry of the root at every place? |
//! | `one_log` | is there one virtual log, whichever protocol extended it, and does it keep what Anchors cover? |
//! | `digest` | do they hold the same state at the same place? |
//! | `sign_once` | did an honest identity ever sign two things for one slot? |
//! | `silence` | did an honest member speak in a segment before its Open, or after it had sealed it? |
//! | `stop` | was a segment that nobody ordered to end complained of by enough members? |
//! | `exactly_once` | was every acknowledged command executed once, with the result its client got? |
//! | `read_back` | by the clients' journals and a final read alone: what was lost, what was doubled? |
//! | `label` | did an acknowledgement claim more than the policy allows, or than the root's certificates cover? |
//! | `decision` | did replicas that executed one prefix decide alike about protocols? |
//! | `watch` | are changes told alike by all, in one order, and as they were acknowledged? |
//! | `lease` | does each lease end once, for all at one place, when its time has come by the log's clock, and no sooner by any clock? |
//! | `live` | did every command finish once the faults stopped? |
//! | `bounds` | did memory stay within the window, whatever peers said? |
//! | `linear`, `register` | is there one order, in real time, that explains every reply? |
//!
//! State sync has words and a judge of its own, in `sync`: is each value what the changes amount to, did nothing acknowledged get
//! lost, were conflicts counted and liars stopped, and are all equal in the end?

pub mod bounds;
pub mod decision;
pub mod digest;
pub mod exactly_once;
pub mod history;
pub mod label;
pub mod lease;
pub mod linear;
pub mod lines;
pub mod live;
pub mod model;
pub mod one_log;
pub mod operation;
pub mod prefix;
pub mod read_back;
pub mod register;
pub mod rehearsal;
#[cfg(test)]
mod sample;
pub mod sign_once;
pub mod silence;
pub mod stop;
pub mod sync;
mod text;
mod verdict;
pub mod watch;

use std::collections::HashSet;

pub use history::{ClientJournal, Command, CommandId, History, Label, Outcome, ReplicaJournal, Reply};
pub use live::Calm;
pub use model::Start;
pub use operation::{Answer, Interval, KeyValue, Operation};
pub use verdict::{Budget, Finding, Findings, Judge, Verdict};

/// What the judges must be told about a run.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Liars tolerated by the policy.
    pub f: u32,
    pub start: Start,
    /// None: the run had no calm, liveness is not judged.
    pub calm: Option<Calm>,
    /// Every record under the read-back prefixes, read at the end. None: not judged.
    pub read_back: Option<Vec<KeyValue>>,
    /// A store without revisions is judged key by key.
    pub has_revisions: bool,
    /// Stale reads are answered outside the log; so are linearizable ones, unless they are ordered.
    pub reads_are_logged: bool,
    /// Slots that a replica may hold ahead of what it has executed. None: not judged.
    pub slots_max: Option<u64>,
    /// Voices that stop a segment. None: not judged.
    pub quorum: Option<u32>,
    /// Nothing failed and nobody lied, however much there was to do.
    pub faultless: bool,
    /// A member may lie (or its disk about syncs) though the policy says `crash`: what is acknowledged under that label may be
    /// lost. Lost `byzantine` ones are violations all the same.
    pub members_may_lie: bool,
    /// Commands whose last answer, refusals included, came under the label `crash`. Looked at only if members may lie.
    pub crash_answers: HashSet<CommandId>,
    /// Keys under this prefix are written by clients that say two things under one number. None: there are none.
    pub unread: Option<Vec<u8>>,
    /// What clients asked about leases. None: not judged.
    pub leases: Option<lease::Terms>,
    /// What the cluster should have come to in the calm and did not, as whoever drove it saw: judged as liveness.
    pub unfinished: Vec<String>,
    pub budget: Budget,
}

impl Terms {
    pub fn new(f: u32) -> Self {
        Self {
            f,
            start: Start::empty(1),
            calm: None,
            read_back: None,
            has_revisions: true,
            reads_are_logged: true,
            slots_max: None,
            quorum: None,
            faultless: false,
            members_may_lie: false,
            crash_answers: HashSet::new(),
            unread: None,
            leases: None,
            unfinished: Vec::new(),
            budget: Budget::default(),
        }
    }
}

/// The findings of every judge that was asked, in the order of `Judge::ALL`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    pub findings: Vec<Finding>,
    /// Commands acknowledged to honest clients, reads included.
    pub acknowledged: u64,
    /// The larger of what the read-back and the log show.
    pub lost: u64,
    pub doubled: u64,
    /// Commands whose `crash` acknowledgement did not hold, because a member lied. Not violations.
    pub lost_to_liars: u64,
    /// Entries that honest replicas executed and that are not part of the log, because a member lied.
    pub discarded: u64,
    /// What became of leases.
    pub leases: lease::Counts,
    /// The search ended without an answer. Not a pass.
    pub undecided: bool,
}

impl Judgement {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && !self.undecided
    }

    /// Judges that found something, each once.
    pub fn judges(&self) -> Vec<Judge> {
        let mut judges: Vec<Judge> = self.findings.iter().map(|finding| finding.judge).collect();
        judges.dedup();
        judges
    }
}

/// The clients' journals with every answer under the label `crash` taken for none: it may have come of a lie.
pub fn doubt_crash_answers(clients: &[ClientJournal], crash: &HashSet<CommandId>) -> Vec<ClientJournal> {
    let mut clients = clients.to_vec();
    for command in clients.iter_mut().flat_map(|journal| &mut journal.commands) {
        let doubtful = match &command.outcome {
            Outcome::Ok { label: Label::Crash, returned_at_us, .. } => Some(*returned_at_us),
            Outcome::Refused { returned_at_us, .. } if crash.contains(&command.id) => Some(*returned_at_us),
            Outcome::Ok { .. } | Outcome::Refused { .. } | Outcome::Unknown { .. } => None,
        };
        if let Some(at_us) = doubtful {
            command.outcome = Outcome::Unknown { gave_up_at_us: Some(at_us) };
        }
    }
    clients
}

pub fn judge_all(history: &History, terms: &Terms) -> Judgement {
    let mut judgement = Judgement::default();
    let History { clients, replicas } = history;
    let doubted = terms.members_may_lie.then(|| doubt_crash_answers(clients, &terms.crash_answers));
    let believed = doubted.as_ref().unwrap_or(clients);
    let mut take = |findings: Findings| judgement.findings.extend(findings.iter().cloned());
    take(prefix::judge(replicas));
    let log = one_log::judge(replicas, terms.members_may_lie);
    take(log.findings);
    let discarded = log.discarded;
    let is_logged = |command: &Command| match &command.operation {
        Operation::Range { stale, .. } => !stale && terms.reads_are_logged,
        Operation::Opaque(_) => {
            terms.reads_are_logged
                || terms.leases.as_ref().is_none_or(|asked| !asked.looks.contains_key(&command.id))
        }
        _ => true,
    };
    // Without any replica's journal there is no log to look into, and the clients' own evidence must do.
    let once = (!replicas.is_empty()).then(|| exactly_once::judge(believed, replicas, &discarded, is_logged));
    take(once.as_ref().map(|once| once.findings.clone()).unwrap_or_default());
    let discards = |epoch: u64, index: u64, chain| discarded.contains(&(epoch, index, chain));
    let honest = replicas.iter().filter(|journal| journal.honest && terms.members_may_lie);
    let taken_back = honest.flat_map(|journal| journal.taken_back(discards)).collect();
    let read_back = |records: &Vec<KeyValue>| read_back::judge_besides(believed, records, &taken_back);
    let tally = terms.read_back.as_ref().map(read_back);
    take(tally.as_ref().map(|tally| tally.findings.clone()).unwrap_or_default());
    take(sign_once::judge(replicas));
    take(silence::judge(replicas));
    take(terms.quorum.map(|quorum| stop::judge(replicas, quorum, terms.faultless)).unwrap_or_default());
    take(decision::judge(replicas));
    take(watch::judge(believed, replicas, terms.unread.as_deref()));
    let leases = terms.leases.as_ref().map(|asked| lease::judge(replicas, &discarded, asked, terms.calm));
    take(leases.as_ref().map(|report| report.findings.clone()).unwrap_or_default());
    take(digest::judge(replicas));
    take(terms.calm.map(|calm| live::judge(clients, calm).findings).unwrap_or_default());
    let mut unfinished = Findings::default();
    terms.unfinished.iter().for_each(|reason| unfinished.push(Judge::Live, reason.clone(), vec![]));
    take(unfinished);
    take(label::judge(clients, terms.f));
    take(label::judge_truth(clients, replicas, &discarded, terms.f));
    take(terms.slots_max.map(|slots_max| bounds::judge(replicas, slots_max)).unwrap_or_default());
    let find_order = |clients: &[ClientJournal]| {
        if terms.has_revisions {
            linear::judge_beside_a_log(clients, &terms.start, terms.budget, replicas)
        } else {
            register::judge_clients(clients, &terms.start, terms.budget)
        }
    };
    // An order that explains every answer explains those that are beyond doubt; as a rule nobody lied with success, and with
    // all answers it is found sooner.
    let verdict = match find_order(clients) {
        Verdict::Violation { .. } if doubted.is_some() => find_order(believed),
        verdict => verdict,
    };
    match verdict {
        Verdict::Linearizable => {}
        Verdict::Violation { reason, evidence } => {
            judgement.findings.push(Finding { judge: Judge::Linear, reason, evidence });
        }
        Verdict::BudgetExceeded { .. } => judgement.undecided = true,
    }
    let is_acknowledged = |command: &&Command| matches!(command.outcome, Outcome::Ok { .. });
    judgement.acknowledged = history.honest_commands().filter(is_acknowledged).count() as u64;
    judgement.discarded = discarded.len() as u64;
    judgement.leases = leases.map(|report| report.counts).unwrap_or_default();
    if terms.members_may_lie {
        let crash = exactly_once::judge(clients, replicas, &discarded, is_logged);
        judgement.lost_to_liars = crash.lost_crash;
    }
    let (tally, once) = (tally.unwrap_or_default(), once.unwrap_or_default());
    judgement.lost = tally.lost.max(once.lost());
    judgement.doubled = tally.doubled.max(once.doubled);
    judgement
}
