//! Labels: an acknowledgement may call itself `byzantine` only where at least one liar is tolerated.

use crate::history::{ClientJournal, Label, Outcome};
use crate::verdict::{Findings, Judge};

/// `f` is the number of liars the cluster's policy tolerated during the history.
pub fn judge(clients: &[ClientJournal], f: u32) -> Findings {
    let mut findings = Findings::default();
    if f >= 1 {
        return findings;
    }
    for journal in clients.iter().filter(|journal| journal.honest) {
        for command in &journal.commands {
            if let Outcome::Ok { label: Label::Byzantine, returned_at_us, .. } = &command.outcome {
                let reason = format!("command {} was labelled byzantine with f = 0", command.id);
                let evidence = format!("client {}, acknowledged at {returned_at_us} us", journal.client);
                findings.push(Judge::Label, reason, vec![evidence]);
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_label_byzantine_needs_a_tolerated_liar() {
        let mut clients = sample::cluster().clients;
        assert!(judge(&clients, 1).is_empty());
        assert!(judge(&clients, 0).has("labelled byzantine with f = 0"));
        clients[0].honest = false;
        assert!(judge(&clients, 0).is_empty(), "a liar may claim anything");
        clients[0].honest = true;
        for command in &mut clients[0].commands {
            if let Outcome::Ok { label, .. } = &mut command.outcome {
                *label = Label::Crash;
            }
        }
        assert!(judge(&clients, 0).is_empty());
    }
}
