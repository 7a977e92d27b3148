//! Sessions, principals, log time and the machine as one deterministic value. Entries of the virtual log go in, in
//! order; results come out. Two states that were given equal entries have equal digests.
//!
//! Knows nothing of how entries are agreed on. A frame's signature must have been verified before `execute`.
//!
//! Departs: TOCS '02 digests a tree of copied pages; here each write brings a digest over machine and sessions up to
//! date, at a cost that does not depend on the size of the state. Covered by `the_digest_covers_the_session_table`.
//! Departs: its read-only optimisation may stall under writes; linearizable reads are ordered like writes.

use crate::carried::{Carried, Writer};
use crate::command::{AdminCommand, AdminReply, Command};
use crate::frame::{
    CheckedFrame, FrameContent, OPEN_VALID_MAX_MS, OpenReply, SessionFrame, SessionId, SessionOpen,
};
use crate::machine::{Context, QueryError, StateMachine};
use crate::outcome::{Admission, CommandResult, FrameOutcome, Outcome, Refusal};
use crate::principal::Registry;
use crate::session::{SESSION_BUCKETS, Session, SessionHead, SessionTable, Verdict};
use crate::snapshot::{FrozenState, Restorer};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::limits::EXPIRY_STEP_MAX_MS;
use dwcp_base::{ClusterId, Genesis, Hash, Hasher, LogTime, Mutant, Mutants, Position, PublicKey, encode};

/// The format of the control and session chunks.
const STATE_FORMAT: u16 = 2;

/// What chunk 0 carries.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Control {
    format: u16,
    cluster: ClusterId,
    machine_name: String,
    machine_version: u32,
    /// The version of rules that all nodes follow; the genesis starts at 1.
    cluster_version: u32,
    position: Position,
    log_time: LogTime,
    /// Advances with log time, at most `EXPIRY_STEP_MAX_MS` per entry.
    expiry_ms: u64,
    /// Commands that ran since the genesis.
    commands_executed: u64,
    registry: Registry,
    carried: Carried,
}

impl Control {
    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    pub(crate) fn readable_by(&self, machine_name: &str, machine_version: u32) -> bool {
        self.format == STATE_FORMAT
            && self.machine_name == machine_name
            && self.machine_version <= machine_version
    }
}

pub(crate) fn control_digest(bytes: &[u8]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 control");
    hasher.field(bytes);
    hasher.finish()
}

/// One hash for a whole state, from its chunks' digests.
#[must_use]
pub fn state_digest(chunk_digests: &[Hash]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 state");
    for digest in chunk_digests {
        hasher.update(&digest.0);
    }
    hasher.finish()
}

/// The replicated state.
#[derive(Clone, Debug)]
pub struct State<M> {
    control: Control,
    sessions: SessionTable,
    machine: M,
    mutants: Mutants,
}

impl<M: StateMachine> State<M> {
    /// The state before the first entry.
    #[must_use]
    pub fn new(genesis: &Genesis, machine: M, mutants: Mutants) -> Self {
        let control = Control {
            format: STATE_FORMAT,
            cluster: genesis.cluster(),
            machine_name: M::NAME.to_string(),
            machine_version: machine.version(),
            cluster_version: 1,
            position: Position::ZERO,
            log_time: LogTime(genesis.created_unix_ms),
            expiry_ms: 0,
            commands_executed: 0,
            registry: Registry::of(genesis),
            carried: Carried::default(),
        };
        Self { control, sessions: SessionTable::new(), machine, mutants }
    }

    /// Starts rebuilding a state from chunks into an empty machine.
    #[must_use]
    pub fn restore(genesis: &Genesis, empty: M, mutants: Mutants) -> Restorer<M> {
        Restorer::new(genesis, empty, mutants)
    }

    /// The version of the machine that the snapshot names stays: a node with a newer machine would otherwise have another state
    /// than the others, and than the certificate says.
    pub(crate) fn assemble(control: Control, sessions: SessionTable, machine: M, mutants: Mutants) -> Self {
        Self { control, sessions, machine, mutants }
    }

    /// Begins the entry at `position`: time moves, and what has run out by then is gone before its frames run. An entry
    /// without frames does only this.
    pub fn begin_entry(&mut self, position: Position, time: LogTime) {
        let goes_back = self.mutants.on(Mutant::LogTimeGoesBack) && time > LogTime::default();
        let now = if goes_back { time } else { self.control.log_time.max(time) };
        let step_max_ms = if self.mutants.on(Mutant::ExpiryLeaps) { u64::MAX } else { EXPIRY_STEP_MAX_MS };
        let step_ms = now.0.saturating_sub(self.control.log_time.0).min(step_max_ms);
        self.control.position = position;
        self.control.log_time = now;
        self.control.expiry_ms = self.control.expiry_ms.saturating_add(step_ms);
        self.machine.advance(self.control.expiry_ms);
        self.sessions.expire(self.control.expiry_ms);
    }

    /// What a gateway should do with a frame, judged by this replica's state as it is. Changes nothing. The replica may
    /// be behind: a refusal here says what execution would say here and now.
    ///
    /// # Errors
    /// Why ordering the frame would be in vain.
    pub fn admit(&self, frame: &CheckedFrame) -> Result<Admission, Refusal> {
        match frame.content() {
            FrameContent::Open(open) => {
                let known = self.judge_open(frame.session(), open, &frame.signer())?;
                Ok(match known {
                    Some((at, reply)) => Admission::AllExecuted(vec![open_result(at, Ok(reply))]),
                    None => Admission::Fresh,
                })
            }
            FrameContent::Commands(commands) => {
                let session = self.sessions.live(frame.session()).ok_or(Refusal::SessionExpired)?;
                let mut results = Vec::with_capacity(commands.commands.len());
                for sequence in frame.sequences() {
                    match session.judge(sequence, commands.low_water, self.mutants) {
                        Verdict::New if self.sessions.may_store() => return Ok(Admission::Fresh),
                        Verdict::New => return Err(Refusal::SessionTableFull),
                        Verdict::Known(position, outcome) => {
                            results.push(CommandResult { sequence, position, outcome });
                        }
                    }
                }
                Ok(Admission::AllExecuted(results))
            }
        }
    }

    /// Runs a frame of the entry that was begun last. Each command runs at most once; one that ran before is answered
    /// with what came of it then.
    pub fn execute(&mut self, frame: &CheckedFrame) -> FrameOutcome {
        let outcome = self.run_frame(frame);
        self.control.commands_executed += outcome.ran.iter().filter(|ran| **ran).count() as u64;
        outcome
    }

    /// The entry that was begun last carries these changes of convergent state.
    pub fn carry(&mut self, writer: Writer, first: u64, last: u64) {
        self.control.carried.add(writer, first, last);
    }

    /// What the log has carried of convergent state.
    #[must_use]
    pub fn carried(&self) -> &Carried {
        &self.control.carried
    }

    fn run_frame(&mut self, frame: &CheckedFrame) -> FrameOutcome {
        let session = frame.session();
        match frame.content() {
            FrameContent::Open(open) => {
                let known = self.sessions.get(session).is_some();
                let result = self.open(session, open, &frame.signer());
                let ran = vec![!known && result.is_ok()];
                let opened = self.sessions.get(session).filter(|_| result.is_ok());
                let position = opened.map_or(self.control.position, |opened| opened.head.opened_at);
                FrameOutcome { session, first: 0, results: vec![open_result(position, result)], ran }
            }
            FrameContent::Commands(commands) => {
                let (results, ran) = self.run_commands(session, commands);
                FrameOutcome { session, first: commands.first, results, ran }
            }
        }
    }

    /// `Some` when the session is open already, with the entry that opened it.
    fn judge_open(
        &self,
        id: SessionId,
        open: &SessionOpen,
        signer: &PublicKey,
    ) -> Result<Option<(Position, OpenReply)>, Refusal> {
        let role = match self.control.registry.get(&open.principal) {
            Some((key, role)) if key == *signer => role,
            _ => return Err(Refusal::PrincipalUnknown),
        };
        if let Some(session) = self.sessions.get(id) {
            let head = &session.head;
            if head.principal != open.principal || head.key != open.session_key {
                return Err(Refusal::SessionKeyTaken);
            }
            if head.ended {
                return Err(Refusal::SessionExpired);
            }
            return Ok(Some((head.opened_at, OpenReply { session: id, ttl_ms: head.ttl_ms })));
        }
        let log_time_ms = self.control.log_time.0;
        let latest_ms = log_time_ms.saturating_add(OPEN_VALID_MAX_MS);
        if open.valid_until_ms < log_time_ms || open.valid_until_ms > latest_ms {
            return Err(Refusal::OpenNotValid { log_time_ms, valid_until_ms: open.valid_until_ms });
        }
        if !self.sessions.has_room(role == Role::Admin) {
            return Err(Refusal::SessionsFull);
        }
        Ok(None)
    }

    fn open(&mut self, id: SessionId, open: &SessionOpen, signer: &PublicKey) -> Result<OpenReply, Refusal> {
        if let Some((_, reply)) = self.judge_open(id, open, signer)? {
            let latest_ms = self.control.log_time.0.saturating_add(OPEN_VALID_MAX_MS);
            if open.valid_until_ms <= latest_ms {
                self.sessions.reopen(id, open.valid_until_ms, self.control.expiry_ms);
            }
            return Ok(reply);
        }
        let head = SessionHead {
            principal: open.principal.clone(),
            key: open.session_key,
            ttl_ms: open.ttl_ms,
            valid_until_ms: open.valid_until_ms,
            deadline_ms: self.control.expiry_ms.saturating_add(open.ttl_ms),
            opened_at: self.control.position,
            low_water: 1,
            highest: 0,
            ended: false,
        };
        self.sessions.insert(id, Session::new(head));
        Ok(OpenReply { session: id, ttl_ms: open.ttl_ms })
    }

    /// The results, and which of the commands ran now.
    fn run_commands(&mut self, id: SessionId, frame: &SessionFrame) -> (Vec<CommandResult>, Vec<bool>) {
        self.sessions.raise_low_water(id, frame.low_water);
        let mut ran = Vec::with_capacity(frame.commands.len());
        let mut results = Vec::with_capacity(frame.commands.len());
        for (sequence, command) in (frame.first..).zip(&frame.commands) {
            ran.push(false);
            let here = self.control.position;
            let (position, outcome) = match self.sessions.live(id) {
                None => (here, Outcome::Refused(Refusal::SessionExpired)),
                Some(session) => match session.judge(sequence, frame.low_water, self.mutants) {
                    Verdict::Known(position, outcome) => (position, outcome),
                    Verdict::New => {
                        ran.pop();
                        ran.push(true);
                        let principal = session.head.principal.clone();
                        (here, self.run_new(id, &principal, sequence, command))
                    }
                },
            };
            results.push(CommandResult { sequence, position, outcome });
        }
        // Only new commands keep a session alive: replaying old frames must not.
        if ran.contains(&true) && self.sessions.live(id).is_some() {
            self.sessions.touch(id, self.control.expiry_ms);
        }
        (results, ran)
    }

    fn run_new(&mut self, id: SessionId, principal: &str, sequence: u64, bytes: &Bytes) -> Outcome {
        let Some((_, role)) = self.control.registry.get(principal) else {
            return Outcome::Refused(Refusal::SessionExpired);
        };
        let (read_only, result) = match Command::decode(bytes) {
            Err(_) => (false, Err(Refusal::Malformed)),
            Ok(command) => {
                let read_only = match &command {
                    Command::Machine(command) => self.machine.read_only(command),
                    Command::Admin(command) => command.read_only(),
                    Command::CloseSession | Command::Nothing => false,
                };
                if !read_only && !self.sessions.may_store() && command != Command::CloseSession {
                    return Outcome::Refused(Refusal::SessionTableFull);
                }
                (read_only, self.run_command(id, principal, role, &command, read_only))
            }
        };
        let outcome = match result {
            Ok(bytes) => Outcome::Done(bytes),
            Err(refusal) => Outcome::Refused(refusal),
        };
        // A read stores nothing: asked again, it reads again. Refused writes are stored too, because their client was
        // told "not applied" and the same frame must not apply them when it comes again.
        if !read_only && self.sessions.live(id).is_some() {
            self.sessions.store(id, sequence, self.control.position, &outcome);
        }
        outcome
    }

    fn run_command(
        &mut self,
        id: SessionId,
        principal: &str,
        role: Role,
        command: &Command,
        read_only: bool,
    ) -> Result<Bytes, Refusal> {
        match command {
            Command::Machine(_) if role == Role::Reader && !read_only => Err(Refusal::Forbidden { role }),
            Command::Admin(_) if role != Role::Admin => Err(Refusal::Forbidden { role }),
            Command::Machine(command) => {
                let context = Context {
                    position: self.control.position,
                    log_time: self.control.log_time,
                    expiry_ms: self.control.expiry_ms,
                    principal,
                    role,
                };
                self.machine.apply(&context, command).map_err(Refusal::Machine)
            }
            Command::Admin(command) => {
                let reply = self.run_admin(command)?;
                Ok(Bytes::from(encode(&reply)))
            }
            Command::CloseSession => {
                self.sessions.end(id, self.control.log_time.0, self.control.expiry_ms);
                Ok(Bytes::new())
            }
            Command::Nothing => Ok(Bytes::new()),
        }
    }

    fn run_admin(&mut self, command: &AdminCommand) -> Result<AdminReply, Refusal> {
        let (log_time_ms, expiry_ms) = (self.control.log_time.0, self.control.expiry_ms);
        match command {
            AdminCommand::PrincipalPut { name, key, role } => {
                let new_key = self.control.registry.put(name, *key, *role).map_err(Refusal::Principal)?;
                let sessions_ended =
                    if new_key { self.sessions.end_all(name, log_time_ms, expiry_ms) } else { 0 };
                Ok(AdminReply::PrincipalPut { sessions_ended })
            }
            AdminCommand::PrincipalRemove { name } => {
                self.control.registry.remove(name).map_err(Refusal::Principal)?;
                let sessions_ended = self.sessions.end_all(name, log_time_ms, expiry_ms);
                Ok(AdminReply::PrincipalRemoved { sessions_ended })
            }
            AdminCommand::ClusterVersionSet { version } => {
                let now = self.control.cluster_version;
                if *version != now && Some(*version) != now.checked_add(1) {
                    return Err(Refusal::ClusterVersion { version: now });
                }
                self.control.cluster_version = *version;
                Ok(AdminReply::ClusterVersion { version: *version })
            }
            AdminCommand::PrincipalList | AdminCommand::ClusterVersion => Ok(self.read_admin(command)),
        }
    }

    fn read_admin(&self, command: &AdminCommand) -> AdminReply {
        match command {
            AdminCommand::PrincipalList => AdminReply::Principals(self.control.registry.list()),
            _ => AdminReply::ClusterVersion { version: self.control.cluster_version },
        }
    }

    /// A local read, as stale as this replica is. `command` is an encoded [`Command`], so that the same bytes can be
    /// read locally or be ordered. The caller has checked who asks.
    ///
    /// # Errors
    /// When it is no command, would write, or the machine refuses it.
    pub fn query(&self, command: &[u8]) -> Result<Bytes, QueryError> {
        match command.split_first() {
            // Tag 0 by the encoding of `Command`: the rest is the machine's, without a copy.
            Some((0, query)) => self.machine.query(query),
            _ => match Command::decode(&Bytes::copy_from_slice(command)) {
                Ok(Command::Admin(command)) if command.read_only() => {
                    Ok(Bytes::from(encode(&self.read_admin(&command))))
                }
                Ok(_) => Err(QueryError::NotReadOnly),
                Err(_) => Err(QueryError::Malformed),
            },
        }
    }

    #[must_use]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The position of the entry begun last.
    #[must_use]
    pub fn position(&self) -> Position {
        self.control.position
    }

    #[must_use]
    pub fn log_time(&self) -> LogTime {
        self.control.log_time
    }

    /// The expiry clock.
    #[must_use]
    pub fn expiry_ms(&self) -> u64 {
        self.control.expiry_ms
    }

    /// Commands that ran since the genesis.
    #[must_use]
    pub fn commands_executed(&self) -> u64 {
        self.control.commands_executed
    }

    #[must_use]
    pub fn cluster_version(&self) -> u32 {
        self.control.cluster_version
    }

    /// Registered principals in order of name.
    #[must_use]
    pub fn principals(&self) -> Vec<Principal> {
        self.control.registry.list()
    }

    /// Who a principal's key and role are.
    #[must_use]
    pub fn principal(&self, name: &str) -> Option<(PublicKey, Role)> {
        self.control.registry.get(name)
    }

    /// Whose live session this is, and what its principal may do.
    #[must_use]
    pub fn session_principal(&self, session: SessionId) -> Option<(&str, Role)> {
        let principal = self.sessions.live(session)?.head.principal.as_str();
        self.control.registry.get(principal).map(|(_, role)| (principal, role))
    }

    /// Sessions in the table, tombstones included.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Milliseconds until something expires; `None` when nothing does. An idle log must carry entries by then.
    #[must_use]
    pub fn wants_ticks(&self) -> Option<u64> {
        let next = [self.sessions.next_expiry(), self.machine.next_expiry()].into_iter().flatten().min();
        next.map(|next| next.saturating_sub(self.control.expiry_ms))
    }

    /// Chunks of a snapshot: control, session buckets, machine.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        1 + SESSION_BUCKETS + self.machine.chunk_count()
    }

    /// One digest per chunk. Costs what changed since it was last asked, not what the state holds.
    pub fn chunk_digests(&mut self) -> Vec<Hash> {
        let mut digests = Vec::with_capacity(self.chunk_count() as usize);
        digests.push(control_digest(&encode(&self.control)));
        for bucket in 0..SESSION_BUCKETS {
            let without = self.mutants.on(Mutant::DigestWithoutSessions);
            digests.push(if without {
                Hash::ZERO
            } else {
                self.sessions.bucket_digest(bucket, self.mutants)
            });
        }
        for index in 0..self.machine.chunk_count() {
            digests.push(self.machine.chunk_digest(index));
        }
        digests
    }

    /// One hash for the whole state.
    pub fn digest(&mut self) -> Hash {
        state_digest(&self.chunk_digests())
    }

    /// A snapshot that later entries do not change.
    pub fn freeze(&mut self) -> FrozenState<M> {
        let digests = self.chunk_digests();
        FrozenState::new(&self.control, &self.sessions, self.machine.freeze(), digests, self.mutants)
    }
}

fn open_result(position: Position, result: Result<OpenReply, Refusal>) -> CommandResult {
    let outcome = match result {
        Ok(reply) => Outcome::Done(Bytes::from(encode(&reply))),
        Err(refusal) => Outcome::Refused(refusal),
    };
    CommandResult { sequence: 0, position, outcome }
}
