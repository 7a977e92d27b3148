//! The store under each replica, with somebody who watches its leases: what every entry of the log does to them, told by
//! comparing the store before and after, whether it is executed for the first time or again.
//!
//! Changes nothing of what the store does, and nothing of a history. `leases` hands on what is noted here.

use bytes::Bytes;
use dwcp_base::Hash;
use dwcp_state::kv::{EventKind, FrozenKv, Kv, KvBody, KvCommand, KvReply, Range};
use dwcp_state::{Context, MachineRefusal, QueryError, RestoreError, StateMachine};
use std::sync::{Arc, Mutex};

/// What was seen of leases, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// The leases of the snapshot that the store was built from, until somebody has taken note.
    pub restored: Option<Vec<u64>>,
    /// One per entry.
    pub turns: Vec<Turn>,
    /// The leases there were when it was last looked.
    held: Vec<u64>,
}

/// One entry. `position` and `log_time_ms` are known where it had commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub position: Option<u64>,
    pub log_time_ms: Option<u64>,
    pub expiry_ms: u64,
    pub ended: Vec<u64>,
    pub begun: Vec<u64>,
    pub revoked: Vec<u64>,
    pub strayed: Vec<u64>,
    pub vanished: Vec<(Vec<u8>, u64)>,
}

/// A store that may be watched.
#[derive(Clone, Debug)]
pub struct Store {
    kv: Kv,
    /// Shared by copies, of which only one executes entries.
    notes: Option<Arc<Mutex<Notes>>>,
}

fn without(these: &[u64], those: &[u64]) -> Vec<u64> {
    these.iter().copied().filter(|id| !those.contains(id)).collect()
}

impl Store {
    #[must_use]
    pub fn new(quota_bytes: u64, watched: bool) -> Self {
        Self { kv: Kv::new(quota_bytes), notes: watched.then(Arc::default) }
    }

    #[must_use]
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    /// What was seen since the last time.
    #[must_use]
    pub fn take_notes(&self) -> Option<Notes> {
        let mut notes = self.notes.as_ref()?.lock().expect("nobody panics with it");
        let (restored, turns) = (notes.restored.take(), std::mem::take(&mut notes.turns));
        Some(Notes { restored, turns, held: Vec::new() })
    }

    /// The leases there are now.
    #[must_use]
    pub fn leases(&self) -> Vec<u64> {
        let body = self.ask(&KvCommand::LeaseList);
        let Some(KvBody::LeaseList { ids }) = body else { return Vec::new() };
        ids.into_iter().filter_map(|id| u64::try_from(id).ok()).collect()
    }

    fn ask(&self, question: &KvCommand) -> Option<KvBody> {
        let bytes = self.kv.query(&question.encode()).ok()?;
        KvReply::decode(&bytes).ok().map(|reply| reply.body)
    }

    /// Keys deleted since this revision, each with the lease it had then.
    fn vanished_since(&self, revision: u64) -> Vec<(Vec<u8>, u64)> {
        let Ok(events) = self.kv.events_since(revision + 1) else { return Vec::new() };
        let gone = events.filter(|event| event.kind == EventKind::Delete).map(|event| event.kv.key);
        gone.map(|key| {
            let before = Range { key: key.clone(), revision, ..Range::default() };
            let lease = match self.ask(&KvCommand::Range(before)) {
                Some(KvBody::Range { kvs, .. }) => kvs.first().map_or(0, |record| record.lease),
                _ => 0,
            };
            (key.to_vec(), u64::try_from(lease).unwrap_or(u64::MAX))
        })
        .collect()
    }
}

impl StateMachine for Store {
    type Frozen = FrozenKv;
    const NAME: &'static str = Kv::NAME;

    fn version(&self) -> u32 {
        self.kv.version()
    }

    fn apply(&mut self, context: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal> {
        let result = self.kv.apply(context, command);
        if let Some(notes) = &self.notes {
            let held = self.leases();
            let mut notes = notes.lock().expect("nobody panics with it");
            let before = std::mem::replace(&mut notes.held, held.clone());
            if let Some(turn) = notes.turns.last_mut() {
                turn.position = Some(context.position.0);
                turn.log_time_ms = Some(context.log_time.0);
                turn.begun.extend(without(&held, &before));
                turn.revoked.extend(without(&before, &held));
            }
        }
        result
    }

    fn read_only(&self, command: &[u8]) -> bool {
        self.kv.read_only(command)
    }

    fn orders_any(&self, command: &[u8], wanted: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
        self.kv.orders_any(command, wanted)
    }

    fn has_key(&self, key: &[u8]) -> bool {
        self.kv.has_key(key)
    }

    fn advance(&mut self, expiry_ms: u64) {
        if self.notes.is_none() {
            return self.kv.advance(expiry_ms);
        }
        let (before, revision) = (self.leases(), self.kv.revision());
        self.kv.advance(expiry_ms);
        let held = self.leases();
        let vanished =
            if self.kv.revision() == revision { Vec::new() } else { self.vanished_since(revision) };
        let Some(notes) = &self.notes else { return };
        let mut notes = notes.lock().expect("nobody panics with it");
        let mut strayed = without(&before, &notes.held);
        strayed.extend(without(&notes.held, &before));
        strayed.extend(without(&held, &before));
        let ended = without(&before, &held);
        notes.held = held;
        notes.turns.push(Turn { expiry_ms, ended, strayed, vanished, ..Turn::default() });
    }

    fn next_expiry(&self) -> Option<u64> {
        self.kv.next_expiry()
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        self.kv.query(query)
    }

    fn chunk_count(&self) -> u32 {
        self.kv.chunk_count()
    }

    fn chunk_digest(&mut self, index: u32) -> Hash {
        self.kv.chunk_digest(index)
    }

    fn freeze(&mut self) -> FrozenKv {
        self.kv.freeze()
    }

    fn restore_chunk(&mut self, index: u32, bytes: &[u8], expected: &Hash) -> Result<(), RestoreError> {
        self.kv.restore_chunk(index, bytes, expected)
    }

    fn restore_finish(&mut self) -> Result<(), RestoreError> {
        self.kv.restore_finish()?;
        if let Some(notes) = &self.notes {
            let held = self.leases();
            let mut notes = notes.lock().expect("nobody panics with it");
            notes.held.clone_from(&held);
            notes.restored = Some(held);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::configuration::Role;
    use dwcp_base::{LogTime, Position};
    use dwcp_state::kv::Put;

    fn run(store: &mut Store, position: u64, expiry_ms: u64, commands: &[KvCommand]) {
        store.advance(expiry_ms);
        let (position, log_time) = (Position(position), LogTime(expiry_ms));
        let context = Context { position, log_time, expiry_ms, principal: "p", role: Role::Writer };
        for command in commands {
            store.apply(&context, &command.encode()).expect("nothing is refused here");
        }
    }

    #[test]
    fn every_entry_tells_what_it_did_to_leases() {
        let mut store = Store::new(1 << 20, true);
        let key = KvCommand::Put(Put { lease: 7, ..Put::new("k", "v") });
        run(&mut store, 1, 500, &[KvCommand::LeaseGrant { id: 7, ttl_s: 1 }, key]);
        run(&mut store, 2, 1_000, &[KvCommand::LeaseGrant { id: 8, ttl_s: 9 }]);
        run(&mut store, 3, 1_500, &[KvCommand::LeaseRevoke { id: 8 }]);
        let turns = store.take_notes().expect("it is watched").turns;
        assert_eq!(
            (turns[0].begun.clone(), turns[0].position, turns[0].log_time_ms),
            (vec![7], Some(1), Some(500))
        );
        assert_eq!((turns[1].begun.clone(), turns[1].ended.clone()), (vec![8], vec![]));
        assert_eq!((turns[2].ended.clone(), turns[2].revoked.clone()), (vec![7], vec![8]));
        assert_eq!(turns[2].vanished, [(b"k".to_vec(), 7)]);
        assert!(turns.iter().all(|turn| turn.strayed.is_empty()));
        assert_eq!(store.take_notes().expect("it is watched").turns, []);
    }

    #[test]
    fn a_lease_that_comes_or_goes_between_entries_is_told() {
        let mut store = Store::new(1 << 20, true);
        run(&mut store, 1, 500, &[KvCommand::LeaseGrant { id: 7, ttl_s: 1 }]);
        store.notes.as_ref().expect("it is watched").lock().expect("nobody panics").held = vec![9];
        run(&mut store, 2, 600, &[]);
        assert_eq!(store.take_notes().expect("it is watched").turns[1].strayed, [7, 9]);
    }

    #[test]
    fn a_store_that_nobody_watches_tells_nothing() {
        let mut store = Store::new(1 << 20, false);
        run(&mut store, 1, 500, &[KvCommand::LeaseGrant { id: 7, ttl_s: 1 }]);
        assert_eq!((store.take_notes(), store.leases()), (None, vec![7]));
    }
}
