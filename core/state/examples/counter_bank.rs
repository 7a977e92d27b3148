//! A state machine of one's own: a bank of counters with transfers, replicated by the same sessions, snapshots and
//! digests as the built-in store. It implements `SmallMachine`: its whole state is one chunk.
//!
//! `cargo run -p dwcp-state --example counter_bank`

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{LogTime, Position, decode, encode};
use dwcp_state::{Context, MachineRefusal, QueryError, Small, SmallMachine, StateMachine};
use std::collections::BTreeMap;

/// Counters by name. Bounded by `ACCOUNTS_MAX`; an account beyond it is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct CounterBank {
    balances: BTreeMap<String, u64>,
}

const ACCOUNTS_MAX: usize = 10_000;

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

impl CounterBank {
    fn balance(&self, name: &str) -> u64 {
        self.balances.get(name).copied().unwrap_or(0)
    }

    fn may_hold(&self, name: &str) -> Result<(), MachineRefusal> {
        if self.balances.len() < ACCOUNTS_MAX || self.balances.contains_key(name) {
            return Ok(());
        }
        Err(MachineRefusal::new(TOO_MANY, "the bank is full: use an account that exists"))
    }
}

impl SmallMachine for CounterBank {
    const NAME: &'static str = "counter bank";

    /// Everything is checked before anything changes: a refused command leaves no trace.
    fn apply(&mut self, _: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal> {
        let too_much = || MachineRefusal::new(TOO_MUCH, "the balance would overflow: transfer less");
        let now = match decode(command).map_err(|_| MachineRefusal::new(MALFORMED, "not a bank command"))? {
            BankCommand::Deposit { to, amount } => {
                self.may_hold(&to)?;
                let now = self.balance(&to).checked_add(amount).ok_or_else(too_much)?;
                self.balances.insert(to, now);
                now
            }
            BankCommand::Transfer { from, to, amount } => {
                self.may_hold(&to)?;
                let left = self.balance(&from).checked_sub(amount).ok_or_else(|| {
                    MachineRefusal::new(TOO_LITTLE, "the balance is too small: deposit first")
                })?;
                if from != to {
                    let now = self.balance(&to).checked_add(amount).ok_or_else(too_much)?;
                    self.balances.insert(to, now);
                    self.balances.insert(from, left);
                    left
                } else {
                    self.balance(&from)
                }
            }
            BankCommand::Balance { of } => self.balance(&of),
        };
        Ok(Bytes::from(encode(&now)))
    }

    fn read_only(&self, command: &[u8]) -> bool {
        matches!(decode(command), Ok(BankCommand::Balance { .. }))
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        match decode(query) {
            Ok(BankCommand::Balance { of }) => Ok(Bytes::from(encode(&self.balance(&of)))),
            Ok(BankCommand::Deposit { .. } | BankCommand::Transfer { .. }) => Err(QueryError::NotReadOnly),
            Err(_) => Err(QueryError::Malformed),
        }
    }

    fn save(&self) -> Vec<u8> {
        encode(self)
    }

    fn load(&self, bytes: &[u8]) -> Option<Self> {
        decode(bytes).ok()
    }
}

fn run(bank: &mut Small<CounterBank>, command: &BankCommand) -> Result<u64, MachineRefusal> {
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
    let mut bank = Small::new(CounterBank::default());
    let transfer = |amount| BankCommand::Transfer { from: "ann".into(), to: "bob".into(), amount };
    for command in [BankCommand::Deposit { to: "ann".into(), amount: 10 }, transfer(4), transfer(40)] {
        match run(&mut bank, &command) {
            Ok(balance) => println!("{command:?}: balance {balance}"),
            Err(refusal) => println!("{command:?}: refused, {refusal}"),
        }
    }
    println!("digest {:?}", bank.chunk_digest(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_state::{FrozenMachine, RestoreError};

    fn deposit(bank: &mut Small<CounterBank>, to: &str, amount: u64) -> Result<u64, MachineRefusal> {
        run(bank, &BankCommand::Deposit { to: to.into(), amount })
    }

    fn transfer(
        bank: &mut Small<CounterBank>,
        from: &str,
        to: &str,
        amount: u64,
    ) -> Result<u64, MachineRefusal> {
        run(bank, &BankCommand::Transfer { from: from.into(), to: to.into(), amount })
    }

    #[test]
    fn transfers_move_and_never_make_or_lose_anything() {
        let mut bank = Small::new(CounterBank::default());
        assert_eq!(deposit(&mut bank, "ann", 10), Ok(10));
        assert_eq!(transfer(&mut bank, "ann", "bob", 4), Ok(6));
        assert_eq!(transfer(&mut bank, "ann", "ann", 6), Ok(6));
        let before = bank.machine().clone();
        assert_eq!(transfer(&mut bank, "ann", "bob", 7).unwrap_err().code, TOO_LITTLE);
        assert_eq!(deposit(&mut bank, "bob", u64::MAX).unwrap_err().code, TOO_MUCH);
        assert_eq!(bank.machine(), &before);
        assert_eq!(before.balances.values().sum::<u64>(), 10);
    }

    #[test]
    fn a_copy_made_from_its_chunk_has_its_digest_and_balances() {
        let mut bank = Small::new(CounterBank::default());
        deposit(&mut bank, "ann", 10).unwrap();
        let (digest, frozen) = (bank.chunk_digest(0), bank.freeze());
        deposit(&mut bank, "ann", 1).unwrap();
        assert_ne!(bank.chunk_digest(0), digest);
        let mut copy = Small::new(CounterBank::default());
        let chunk = frozen.chunk(0).unwrap();
        assert_eq!(copy.restore_chunk(0, &chunk[1..], &digest), Err(RestoreError::Digest { index: 0 }));
        copy.restore_chunk(0, &chunk, &digest).unwrap();
        copy.restore_finish().unwrap();
        assert_eq!((copy.machine().balance("ann"), copy.chunk_digest(0)), (10, digest));
    }
}
