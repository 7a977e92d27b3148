//! A state machine of one's own for a state that may grow large: a bank of accounts with transfers, replicated by the same
//! sessions, snapshots and digests as the built-in store. It implements `StateMachine` itself: many chunks, digests that
//! follow each write at a cost that does not depend on the bank's size, and snapshots that share what does not change. A
//! machine that stays small implements `SmallMachine` instead; `dwcp/examples/counter_bank.rs` does.
//!
//! `cargo run -p dwcp-state --example counter_bank`

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::lthash::LtHash;
use dwcp_base::{Hash, Hasher, LogTime, Position, decode, encode};
use dwcp_state::{
    Context, FrozenMachine, MachineRefusal, QueryError, RestoreError, SnapshotError, StateMachine,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Accounts are spread over so many chunks by their names, behind chunk 0, the head. Part of the format.
const SHARES: u32 = 64;
const ACCOUNTS_MAX: u64 = 1_000_000;
const NAME_BYTES_MAX: usize = 64;

#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
enum BankCommand {
    Deposit { to: String, amount: u64 },
    Transfer { from: String, to: String, amount: u64 },
    Balance { of: String },
}

const MALFORMED: u16 = 1;
const TOO_LITTLE: u16 = 2;
const TOO_MUCH: u16 = 3;
const TOO_MANY: u16 = 4;

/// What holds for the whole bank, so that chunks which do not belong together are found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Head {
    /// At most `ACCOUNTS_MAX`.
    accounts: u64,
    /// All balances together: none overflows while this does not.
    total: u64,
}

// Ordered, so that equal banks are equal bytes on every node.
type Balances = BTreeMap<String, u64>;

/// The accounts of one chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Share {
    /// Held by snapshots as well: the first write after a freeze copies it.
    balances: Arc<Balances>,
    /// Of everything in `balances`.
    set: LtHash,
}

fn share_of(name: &str) -> u32 {
    u32::from(Hash::of(name.as_bytes()).0[0]) % SHARES
}

fn element(name: &str, balance: u64) -> Hasher {
    let mut hasher = Hasher::new("counter bank account");
    hasher.field(name.as_bytes()).field(&balance.to_le_bytes());
    hasher
}

impl Share {
    /// Costs two elements of the set, however many there are. No balance is no account: banks that have the same are the same,
    /// whatever they had before.
    fn set(&mut self, name: &str, balance: u64) {
        let balances = Arc::make_mut(&mut self.balances);
        let before = if balance == 0 { balances.remove(name) } else { balances.insert(name.into(), balance) };
        if let Some(before) = before {
            self.set.remove(&element(name, before));
        }
        if balance > 0 {
            self.set.add(&element(name, balance));
        }
    }

    fn digest(&self) -> Hash {
        self.set.digest()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CounterBank {
    head: Head,
    /// Chunk `at + 1` is share `at`.
    shares: Vec<Share>,
}

impl Default for CounterBank {
    fn default() -> Self {
        Self { head: Head::default(), shares: vec![Share::default(); SHARES as usize] }
    }
}

impl CounterBank {
    fn balance(&self, name: &str) -> u64 {
        self.shares[share_of(name) as usize].balances.get(name).copied().unwrap_or(0)
    }

    fn set(&mut self, name: &str, balance: u64) {
        let before = self.balance(name);
        self.head.accounts = self.head.accounts + u64::from(balance > 0) - u64::from(before > 0);
        self.shares[share_of(name) as usize].set(name, balance);
    }

    fn may_hold(&self, name: &str) -> Result<(), MachineRefusal> {
        let is_new = self.balance(name) == 0;
        if name.len() > NAME_BYTES_MAX || (is_new && self.head.accounts >= ACCOUNTS_MAX) {
            let why = "the bank is full, or the name is too long: use an account that exists";
            return Err(MachineRefusal::new(TOO_MANY, why));
        }
        Ok(())
    }

    /// Everything is checked before anything changes: a refused command leaves no trace.
    fn carry_out(&mut self, command: BankCommand) -> Result<u64, MachineRefusal> {
        match command {
            BankCommand::Deposit { to, amount } => {
                self.may_hold(&to)?;
                let total = self.head.total.checked_add(amount);
                let total = total
                    .ok_or_else(|| MachineRefusal::new(TOO_MUCH, "the bank would overflow: deposit less"))?;
                let now = self.balance(&to) + amount;
                self.head.total = total;
                self.set(&to, now);
                Ok(now)
            }
            BankCommand::Transfer { from, to, amount } => {
                self.may_hold(&to)?;
                let left = self.balance(&from).checked_sub(amount).ok_or_else(|| {
                    MachineRefusal::new(TOO_LITTLE, "the balance is too small: deposit first")
                })?;
                self.set(&from, left);
                let now = self.balance(&to) + amount;
                self.set(&to, now);
                Ok(self.balance(&from))
            }
            BankCommand::Balance { of } => Ok(self.balance(&of)),
        }
    }
}

/// A snapshot: all chunks as they were, written out one at a time while the bank goes on.
#[derive(Clone, Debug)]
struct FrozenBank {
    head: Head,
    shares: Arc<[Arc<Balances>]>,
}

impl FrozenMachine for FrozenBank {
    fn chunk(&self, index: u32) -> Result<Vec<u8>, SnapshotError> {
        let Some(at) = index.checked_sub(1) else { return Ok(encode(&self.head)) };
        self.shares.get(at as usize).map(|share| encode(&**share)).ok_or(SnapshotError::NoSuchChunk { index })
    }
}

fn head_digest(head: &Head) -> Hash {
    let mut hasher = Hasher::new("counter bank head");
    hasher.field(&encode(head));
    hasher.finish()
}

/// The share that a chunk's bytes are. Whoever gave them may lie: nothing is believed but what the digest covers.
fn read_share(index: u32, at: u32, bytes: &[u8], expected: &Hash) -> Result<Share, RestoreError> {
    let accounts: Vec<(String, u64)> = decode(bytes).map_err(|_| RestoreError::Digest { index })?;
    let mut set = LtHash::default();
    accounts.iter().for_each(|(name, balance)| set.add(&element(name, *balance)));
    let belongs = |(name, balance): &(String, u64)| share_of(name) == at && *balance > 0;
    let ascends = accounts.windows(2).all(|pair| pair[0].0 < pair[1].0) && accounts.iter().all(belongs);
    let share = Share { balances: Arc::new(accounts.into_iter().collect()), set };
    if share.digest() != *expected {
        return Err(RestoreError::Digest { index });
    }
    // The order of a set's elements is not in its digest.
    if ascends { Ok(share) } else { Err(RestoreError::Malformed { index }) }
}

impl StateMachine for CounterBank {
    type Frozen = FrozenBank;

    const NAME: &'static str = "counter bank";

    fn version(&self) -> u32 {
        1
    }

    fn apply(&mut self, _: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal> {
        let command = decode(command).map_err(|_| MachineRefusal::new(MALFORMED, "not a bank command"))?;
        self.carry_out(command).map(|balance| Bytes::from(encode(&balance)))
    }

    fn read_only(&self, command: &[u8]) -> bool {
        matches!(decode(command), Ok(BankCommand::Balance { .. }))
    }

    /// Nothing here waits for time.
    fn advance(&mut self, _: u64) {}

    fn next_expiry(&self) -> Option<u64> {
        None
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        match decode(query) {
            Ok(BankCommand::Balance { of }) => Ok(Bytes::from(encode(&self.balance(&of)))),
            Ok(BankCommand::Deposit { .. } | BankCommand::Transfer { .. }) => Err(QueryError::NotReadOnly),
            Err(_) => Err(QueryError::Malformed),
        }
    }

    fn chunk_count(&self) -> u32 {
        1 + SHARES
    }

    fn chunk_digest(&mut self, index: u32) -> Hash {
        match index.checked_sub(1) {
            None => head_digest(&self.head),
            Some(at) => self.shares.get(at as usize).map_or(Hash::ZERO, |share| share.digest()),
        }
    }

    fn freeze(&mut self) -> FrozenBank {
        let shares = self.shares.iter().map(|share| share.balances.clone()).collect();
        FrozenBank { head: self.head, shares }
    }

    fn restore_chunk(&mut self, index: u32, bytes: &[u8], expected: &Hash) -> Result<(), RestoreError> {
        match index.checked_sub(1) {
            None => {
                let head = decode(bytes).map_err(|_| RestoreError::Digest { index })?;
                if head_digest(&head) != *expected {
                    return Err(RestoreError::Digest { index });
                }
                self.head = head;
            }
            Some(at) => {
                let share = self.shares.get_mut(at as usize).ok_or(RestoreError::NoSuchChunk { index })?;
                *share = read_share(index, at, bytes, expected)?;
            }
        }
        Ok(())
    }

    /// The one thing that no chunk shows alone.
    fn restore_finish(&mut self) -> Result<(), RestoreError> {
        let balances = || self.shares.iter().flat_map(|share| share.balances.values());
        let accounts = balances().count() as u64;
        let total = balances().try_fold(0, |sum: u64, balance| sum.checked_add(*balance));
        let found = total.map(|total| Head { accounts, total });
        if found == Some(self.head) { Ok(()) } else { Err(RestoreError::Inconsistent) }
    }
}

fn run(bank: &mut CounterBank, command: &BankCommand) -> Result<u64, MachineRefusal> {
    let context = Context {
        position: Position(1),
        log_time: LogTime(0),
        expiry_ms: 0,
        principal: "teller",
        role: dwcp_base::configuration::Role::Writer,
    };
    bank.apply(&context, &encode(command)).map(|reply| decode(&reply).expect("the bank answers a balance"))
}

fn main() {
    let mut bank = CounterBank::default();
    let transfer = |amount| BankCommand::Transfer { from: "ann".into(), to: "bob".into(), amount };
    for command in [BankCommand::Deposit { to: "ann".into(), amount: 10 }, transfer(4), transfer(40)] {
        match run(&mut bank, &command) {
            Ok(balance) => println!("{command:?}: balance {balance}"),
            Err(refusal) => println!("{command:?}: refused, {refusal}"),
        }
    }
    for index in [0, 1 + share_of("ann"), 1 + share_of("bob")] {
        println!("digest of chunk {index} {:?}", bank.chunk_digest(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::Chance;

    fn deposit(bank: &mut CounterBank, to: &str, amount: u64) -> Result<u64, MachineRefusal> {
        run(bank, &BankCommand::Deposit { to: to.into(), amount })
    }

    fn transfer(bank: &mut CounterBank, from: &str, to: &str, amount: u64) -> Result<u64, MachineRefusal> {
        run(bank, &BankCommand::Transfer { from: from.into(), to: to.into(), amount })
    }

    fn digests(bank: &mut CounterBank) -> Vec<Hash> {
        (0..bank.chunk_count()).map(|index| bank.chunk_digest(index)).collect()
    }

    /// After so many deposits and transfers, some of them refused and some that empty an account.
    fn busy(seed: u64, commands: u64) -> CounterBank {
        let mut chance = Chance::new(seed);
        let mut bank = CounterBank::default();
        for _ in 0..commands {
            let (from, to) = (format!("a{}", chance.below(300)), format!("a{}", chance.below(300)));
            let _ = if chance.per_mille(300) {
                deposit(&mut bank, &to, chance.below(5))
            } else {
                let amount = if chance.per_mille(500) { bank.balance(&from) } else { chance.below(5) };
                transfer(&mut bank, &from, &to, amount)
            };
        }
        bank
    }

    /// The chunks of a bank in an order that is not theirs, each into the copy.
    fn restored(bank: &mut CounterBank) -> CounterBank {
        let (digests, frozen) = (digests(bank), bank.freeze());
        let mut copy = CounterBank::default();
        for index in (0..=SHARES).rev() {
            let chunk = frozen.chunk(index).unwrap();
            copy.restore_chunk(index, &chunk, &digests[index as usize]).unwrap();
        }
        copy
    }

    #[test]
    fn transfers_move_and_never_make_or_lose_anything() {
        let mut bank = CounterBank::default();
        assert_eq!(deposit(&mut bank, "ann", 10), Ok(10));
        assert_eq!(transfer(&mut bank, "ann", "bob", 4), Ok(6));
        assert_eq!(transfer(&mut bank, "ann", "ann", 6), Ok(6));
        let before = bank.clone();
        assert_eq!(transfer(&mut bank, "ann", "bob", 7).unwrap_err().code, TOO_LITTLE);
        assert_eq!(deposit(&mut bank, "bob", u64::MAX).unwrap_err().code, TOO_MUCH);
        assert_eq!(deposit(&mut bank, &"c".repeat(65), 1).unwrap_err().code, TOO_MANY);
        assert_eq!(bank, before);
        assert_eq!(bank.head, Head { accounts: 2, total: 10 });
        bank.head.accounts = ACCOUNTS_MAX;
        assert_eq!(deposit(&mut bank, "carl", 1).unwrap_err().code, TOO_MANY);
        assert_eq!(deposit(&mut bank, "bob", 1), Ok(5), "who is there may have more");
    }

    #[test]
    fn a_question_reads_and_never_writes() {
        let mut bank = CounterBank::default();
        deposit(&mut bank, "ann", 10).unwrap();
        let balance = encode(&BankCommand::Balance { of: "ann".into() });
        let deposit = encode(&BankCommand::Deposit { to: "ann".into(), amount: 1 });
        assert_eq!(bank.query(&balance), Ok(encode(&10_u64).into()));
        assert_eq!((bank.read_only(&balance), bank.read_only(&deposit)), (true, false));
        assert_eq!(bank.query(&deposit), Err(QueryError::NotReadOnly));
        assert_eq!(bank.query(&balance[1..]), Err(QueryError::Malformed));
    }

    #[test]
    fn digests_that_followed_every_write_are_those_of_a_bank_written_once() {
        for seed in 0..8 {
            let mut bank = busy(seed, 2_000);
            assert!(bank.head.accounts > 10 && bank.head.accounts < 290, "some are empty: {:?}", bank.head);
            let mut once = CounterBank::default();
            for (name, balance) in bank.shares.iter().flat_map(|share| share.balances.iter()) {
                deposit(&mut once, name, *balance).unwrap();
            }
            assert_eq!(digests(&mut bank), digests(&mut once), "seed {seed}");
        }
    }

    #[test]
    fn a_copy_made_from_its_chunks_has_their_digests_and_goes_on_alike() {
        let mut bank = busy(1, 2_000);
        let mut copy = restored(&mut bank);
        copy.restore_finish().unwrap();
        assert_eq!(copy, bank);
        for bank in [&mut bank, &mut copy] {
            deposit(bank, "a7", 3).unwrap();
            transfer(bank, "a7", "new", 3).unwrap();
        }
        assert_eq!(digests(&mut copy), digests(&mut bank));
    }

    #[test]
    fn a_snapshot_stays_as_it_was_while_the_bank_goes_on() {
        let mut bank = busy(2, 500);
        let (frozen, before) = (bank.freeze(), digests(&mut bank));
        let chunks = || (0..=SHARES).map(|index| frozen.chunk(index).unwrap()).collect::<Vec<_>>();
        let then = chunks();
        for name in 0..300 {
            deposit(&mut bank, &format!("a{name}"), 1).unwrap();
        }
        assert!(digests(&mut bank).iter().zip(&before).all(|(now, before)| now != before), "all changed");
        assert_eq!(chunks(), then);
        assert_eq!(frozen.chunk(SHARES + 1), Err(SnapshotError::NoSuchChunk { index: SHARES + 1 }));
    }

    #[test]
    fn a_chunk_that_is_not_the_one_that_was_promised_is_refused_and_changes_nothing() {
        let mut bank = busy(3, 2_000);
        let (digests, frozen) = (digests(&mut bank), bank.freeze());
        let mut copy = CounterBank::default();
        let empty = copy.clone();
        for index in 0..=SHARES {
            let (good, digest) = (frozen.chunk(index).unwrap(), &digests[index as usize]);
            let mut rows = vec![good[1..].to_vec(), [&good[..], &[0]].concat(), Vec::new()];
            rows.extend((0..good.len()).map(|at| {
                let mut bad = good.clone();
                bad[at] ^= 1;
                bad
            }));
            rows.push(frozen.chunk((index + 1) % (SHARES + 1)).unwrap());
            for bad in rows {
                assert_eq!(copy.restore_chunk(index, &bad, digest), Err(RestoreError::Digest { index }));
            }
        }
        // Under a digest of its own: in another order, under another number, of an account that has nothing.
        let largest = bank.shares.iter().zip(1..).max_by_key(|(share, _)| share.balances.len()).unwrap();
        let (share, index) = (largest.0, largest.1);
        let mut accounts: Vec<(String, u64)> =
            share.balances.clone().iter().map(|(a, b)| (a.clone(), *b)).collect();
        accounts.swap(0, 1);
        let malformed = |index| Err(RestoreError::Malformed { index });
        let swapped = copy.restore_chunk(index, &encode(&accounts), &share.digest());
        assert_eq!(swapped, malformed(index));
        let other = index % SHARES + 1;
        let bytes = frozen.chunk(index).unwrap();
        assert_eq!(copy.restore_chunk(other, &bytes, &share.digest()), malformed(other));
        let mut set = LtHash::default();
        set.add(&element(&accounts[0].0, 0));
        let nothing = Share { set, ..Share::default() };
        let bytes = encode(&vec![(accounts[0].0.clone(), 0_u64)]);
        assert_eq!(copy.restore_chunk(index, &bytes, &nothing.digest()), malformed(index));
        assert_eq!(
            copy.restore_chunk(SHARES + 1, &[], &Hash::ZERO),
            Err(RestoreError::NoSuchChunk { index: SHARES + 1 })
        );
        assert_eq!(copy, empty, "nothing of them is kept");
    }

    #[test]
    fn chunks_of_two_banks_make_none() {
        let (mut bank, mut other) = (busy(4, 2_000), busy(5, 2_000));
        for index in [0, 1 + share_of("a1")] {
            let mut copy = restored(&mut bank);
            let (digest, foreign) = (other.chunk_digest(index), other.freeze().chunk(index).unwrap());
            assert_ne!(digest, bank.chunk_digest(index));
            copy.restore_chunk(index, &foreign, &digest).unwrap();
            assert_eq!(copy.restore_finish(), Err(RestoreError::Inconsistent));
        }
    }
}
