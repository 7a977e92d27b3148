//! What clients ask for: puts of values never used twice, counters and lists changed by compare-and-swap, reads of one
//! key and of all, deletes, and keys on leases.
//!
//! Values tell who wrote them, so that the judges can tell a lost write from a doubled one.

use crate::client::Client;
use crate::world::World;
use check::read_back;
use check::{Answer, Interval, KeyValue, Operation};
use dwcp_state::kv::KvCommand;

/// Keys of each kind, shared by all clients.
const UNIQUE_KEYS: u64 = 6;
const COUNTERS: u64 = 3;
const LISTS: u64 = 2;
const FREE_KEYS: u64 = 4;
/// Tags a list may hold before its clients turn to the next.
const LIST_TAGS_MAX: u64 = 40;

impl World {
    /// The commands of a client's next frame.
    pub fn next_operations(&mut self, ix: usize) -> Vec<Operation> {
        let (commands_max, value_max, leases_pm) =
            (self.dials.commands_max, self.dials.value_bytes_max, self.dials.leases_pm);
        let client = &mut self.clients[ix];
        if client.lies {
            return (0..2).map(|_| client.lying_put()).collect();
        }
        let count = client.chance.between(1, commands_max);
        let mut operations: Vec<Operation> = Vec::new();
        let mut lease: Option<u64> = None;
        let mut ttl = 0;
        for _ in 0..count {
            if leases_pm > 0 && lease.is_none() && client.chance.per_mille(leases_pm) {
                let id = (client.number as u64 + 1) * 1_000_000 + client.leases;
                client.leases += 1;
                let ttl_s = client.chance.between(2, 8);
                let grant = KvCommand::LeaseGrant { id: i64::try_from(id).expect("small"), ttl_s };
                operations.push(Operation::Opaque(grant.to_command().to_vec()));
                let key = format!("lease/{}/{}", client.number, client.leases);
                operations.push(Operation::Put {
                    key: key.into_bytes(),
                    value: b"kept".to_vec(),
                    lease: id,
                    want_prev: false,
                });
                lease = Some(id);
                ttl = ttl_s;
                continue;
            }
            operations.push(client.next_operation(value_max));
        }
        // Whoever lends looks at what became of it.
        if leases_pm > 0 && lease.is_none() && client.leases > 0 {
            let key = format!("lease/{}/{}", client.number, client.leases);
            operations.push(Operation::range(check::Interval::key(key)));
        }
        if let Some(lease) = lease {
            self.will_expire(lease, ttl);
        }
        if self.dials.lease_life_pm > 0 {
            operations.extend(self.lease_operations(ix));
        }
        operations
    }
}

impl Client {
    fn tag(&mut self) -> String {
        self.tags += 1;
        format!("{}.{}", self.number, self.tags)
    }

    fn lying_put(&mut self) -> Operation {
        let key = format!("lie/{}", self.chance.below(3));
        Operation::put(key, self.tag())
    }

    fn next_operation(&mut self, value_max: u64) -> Operation {
        match self.chance.below(100) {
            0..30 => {
                let key = format!("unique/{}", self.chance.below(UNIQUE_KEYS));
                let mut value = self.tag().into_bytes();
                let padding = self.chance.below(value_max + 1);
                value.resize(value.len() + usize::try_from(padding).expect("small"), b'.');
                if self.chance.per_mille(200) {
                    Operation::put_prev(key, value)
                } else {
                    Operation::put(key, value)
                }
            }
            30..50 => {
                let key = format!("counter/{}", self.chance.below(COUNTERS)).into_bytes();
                match self.seen.get(&key) {
                    Some(seen) => read_back::increment(&key, seen.as_ref()),
                    None => Operation::get(key),
                }
            }
            50..65 => {
                let shelf = self.tags / LIST_TAGS_MAX;
                let key = format!("append/{shelf}/{}", self.chance.below(LISTS)).into_bytes();
                let tag = self.tag();
                match self.seen.get(&key) {
                    Some(seen) => read_back::append(&key, seen.as_ref(), &tag),
                    None => Operation::get(key),
                }
            }
            65..75 => Operation::get(format!("unique/{}", self.chance.below(UNIQUE_KEYS))),
            75..80 => Operation::Range {
                over: Interval::between("counter/", "counter0"),
                revision: 0,
                limit: self.chance.below(3),
                stale: false,
            },
            80..92 => Operation::put(format!("free/{}", self.chance.below(FREE_KEYS)), self.tag()),
            92..97 => Operation::delete(format!("free/{}", self.chance.below(FREE_KEYS))),
            _ => Operation::DeleteRange { over: Interval::between("free/", "free0"), want_prev: true },
        }
    }

    /// Remembers what an answer shows of the keys that are changed by compare-and-swap, and hands the reader its catch.
    pub fn learn(&mut self, operation: &Operation, revision: u64, answer: &Answer) {
        match (operation, answer) {
            (Operation::Range { over, .. }, Answer::Range { records, .. }) => {
                if self.reader {
                    self.read.get_or_insert_default().extend(records.iter().cloned());
                } else if over.is_single() {
                    self.seen.insert(over.key.clone(), records.first().cloned());
                }
            }
            (Operation::Txn { then, .. }, Answer::Txn { succeeded, answers }) => {
                let Some(Operation::Put { key, value, .. }) = then.first() else { return };
                if *succeeded {
                    let before = self.seen.get(key).cloned().flatten();
                    let record = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: before.as_ref().map_or(revision, |record| record.create_revision),
                        mod_revision: revision,
                        version: before.as_ref().map_or(1, |record| record.version + 1),
                        lease: 0,
                    };
                    self.seen.insert(key.clone(), Some(record));
                } else if let Some(Answer::Range { records, .. }) = answers.first() {
                    self.seen.insert(key.clone(), records.first().cloned());
                }
            }
            _ => {}
        }
    }
}
