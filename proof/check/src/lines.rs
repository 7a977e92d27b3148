//! Histories as files: one JSON object a line, appended as things happen, so that a killed process leaves a journal that can be judged.
//!
//! A call takes two lines, its invocation and its outcome; an invocation without an outcome is a command of unknown outcome. A last
//! line without its newline is what a killed writer leaves and is dropped; any other line that does not parse is an error with its
//! number. Several files are read into one `History` one after the other. The field names are the format: see the type `Line`.

use crate::history::{
    ClientJournal, Command, CommandId, History, Outcome, ReplicaEvent, ReplicaJournal, Stamped,
};
use crate::operation::Operation;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, BufRead, Write};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Client { client: u64, honest: bool },
    Invoked { client: u64, id: CommandId, at_us: u64, operation: Operation },
    Finished { client: u64, id: CommandId, outcome: Outcome },
    Replica { replica: u32, incarnation: u64, honest: bool, founding: bool },
    Event { replica: u32, incarnation: u64, at_us: u64, event: ReplicaEvent },
}

impl Line {
    /// Writes the line and its newline in one call, so that lines of several writers to one pipe or file do not mix.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        to.write_all(&bytes)
    }
}

#[derive(Debug)]
pub enum ReadError {
    Io(io::Error),
    Line { number: u64, reason: String },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot read the journal: {error}"),
            Self::Line { number, reason } => {
                write!(f, "journal line {number}: {reason}; remove or repair that line")
            }
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Line { .. } => None,
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl History {
    pub fn write_lines(&self, mut to: impl Write) -> io::Result<()> {
        for journal in &self.clients {
            let client = journal.client;
            Line::Client { client, honest: journal.honest }.write(&mut to)?;
            for command in &journal.commands {
                let (id, at_us, operation) = (command.id, command.invoked_at_us, command.operation.clone());
                Line::Invoked { client, id, at_us, operation }.write(&mut to)?;
                Line::Finished { client, id, outcome: command.outcome.clone() }.write(&mut to)?;
            }
        }
        for journal in &self.replicas {
            let ReplicaJournal { replica, incarnation, honest, founding, .. } = *journal;
            Line::Replica { replica, incarnation, honest, founding }.write(&mut to)?;
            for Stamped { at_us, event } in &journal.events {
                Line::Event { replica, incarnation, at_us: *at_us, event: event.clone() }.write(&mut to)?;
            }
        }
        Ok(())
    }

    pub fn read_lines(from: impl BufRead) -> Result<Self, ReadError> {
        let mut reader = Reader::default();
        reader.read(from)?;
        Ok(reader.finish())
    }
}

/// Collects the lines of one or several files.
#[derive(Debug, Default)]
pub struct Reader {
    history: History,
    clients: HashMap<u64, usize>,
    replicas: BTreeMap<(u32, u64), usize>,
    /// Commands invoked and not finished yet.
    open: HashMap<(u64, CommandId), usize>,
    torn: u64,
}

impl Reader {
    pub fn read(&mut self, mut from: impl BufRead) -> Result<(), ReadError> {
        let mut bytes = Vec::new();
        let mut number = 0;
        loop {
            bytes.clear();
            number += 1;
            if from.read_until(b'\n', &mut bytes)? == 0 {
                return Ok(());
            }
            let whole = bytes.last() == Some(&b'\n');
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&bytes) {
                Ok(line) => self.take(line).map_err(|reason| ReadError::Line { number, reason })?,
                Err(_) if !whole => self.torn += 1,
                Err(error) => return Err(ReadError::Line { number, reason: error.to_string() }),
            }
        }
    }

    /// Last lines that were cut short and dropped.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    pub fn finish(self) -> History {
        self.history
    }

    fn client(&mut self, client: u64) -> usize {
        let clients = &mut self.history.clients;
        *self.clients.entry(client).or_insert_with(|| {
            clients.push(ClientJournal::new(client));
            clients.len() - 1
        })
    }

    fn take(&mut self, line: Line) -> Result<(), String> {
        match line {
            Line::Client { client, honest } => {
                let place = self.client(client);
                self.history.clients[place].honest = honest;
            }
            Line::Invoked { client, id, at_us, operation } => {
                let place = self.client(client);
                let commands = &mut self.history.clients[place].commands;
                if self.open.insert((client, id), commands.len()).is_some() {
                    return Err(format!("command {id} of client {client} is invoked twice"));
                }
                let outcome = Outcome::Unknown { gave_up_at_us: None };
                commands.push(Command { id, invoked_at_us: at_us, operation, outcome });
            }
            Line::Finished { client, id, outcome } => {
                let place = self.client(client);
                let Some(command) = self.open.remove(&(client, id)) else {
                    return Err(format!(
                        "command {id} of client {client} finishes without an open invocation"
                    ));
                };
                self.history.clients[place].commands[command].outcome = outcome;
            }
            Line::Replica { replica, incarnation, honest, founding } => {
                let next = self.history.replicas.len();
                if self.replicas.insert((replica, incarnation), next).is_some() {
                    return Err(format!("replica {replica}, incarnation {incarnation}, is introduced twice"));
                }
                self.history.replicas.push(ReplicaJournal::new(replica, incarnation, honest, founding));
            }
            Line::Event { replica, incarnation, at_us, event } => {
                let Some(place) = self.replicas.get(&(replica, incarnation)) else {
                    return Err(format!("replica {replica}, incarnation {incarnation}, was not introduced"));
                };
                self.history.replicas[*place].note(at_us, event);
            }
        }
        Ok(())
    }
}
