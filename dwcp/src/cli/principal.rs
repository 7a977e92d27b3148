//! `dwcp principal`: who may be a client, and what each may do. The registry is replicated state: it is read and changed by
//! ordered commands, and only admins may change it. Keys are made by `dwcp keygen --principal`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dwcp_base::PublicKey;
use dwcp_base::configuration::{Principal, Role};
use dwcp_client::{AdminCommand, AdminReply};
use serde::Deserialize;
use serde_json::json;

use super::cluster::{ClusterArgs, Link, runtime};
use super::init::RoleWord;
use super::output::{Failure, Outcome, paint_words, print_json, print_line, table};

/// List clients' identities; let one in or shut one out
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp keygen --out keys --principal ann --role writer > ann.toml     (on ann's machine; the secret key stays there)
  dwcp principal add ann.toml                                         (an admin, with the public block)
  dwcp principal list
  dwcp principal remove ann                                           (ends ann's sessions)

ann's client file is a copy of yours that names her key instead:
  [[principal]]
  name = \"ann\"
  key_file = \"keys/ann.key\"")]
pub struct PrincipalArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: PrincipalCommand,
}

#[derive(Debug, Subcommand)]
enum PrincipalCommand {
    /// Show names, roles and public keys
    #[command(after_help = "Example:\n  dwcp principal list")]
    List,
    /// Let in whoever holds the keys of these public blocks; an existing name gets the new key or role
    #[command(after_help = "Example:\n  dwcp principal add ann.toml")]
    Add {
        /// Public blocks that `dwcp keygen --principal` printed
        file: PathBuf,
    },
    /// Shut out; its sessions end
    #[command(after_help = "Example:\n  dwcp principal remove ann")]
    Remove {
        /// As `list` shows it
        name: String,
    },
}

pub fn run(args: &PrincipalArgs, json: bool) -> Outcome {
    let added = match &args.command {
        PrincipalCommand::Add { file } => read_blocks(file)?,
        _ => Vec::new(),
    };
    let config = args.cluster.config()?;
    runtime()?.block_on(async {
        let link = Link::connect(config)?;
        match &args.command {
            PrincipalCommand::List => match link.admin(AdminCommand::PrincipalList).await? {
                AdminReply::Principals(principals) => show(&principals, json),
                _ => Err(another_answer()),
            },
            PrincipalCommand::Add { .. } => {
                for Principal { name, key, role } in added {
                    let put = AdminCommand::PrincipalPut { name: name.clone(), key, role };
                    let AdminReply::PrincipalPut { sessions_ended } = link.admin(put).await? else {
                        return Err(another_answer());
                    };
                    told("added", &name, sessions_ended, json)?;
                }
                Ok(())
            }
            PrincipalCommand::Remove { name } => {
                let remove = AdminCommand::PrincipalRemove { name: name.clone() };
                let AdminReply::PrincipalRemoved { sessions_ended } = link.admin(remove).await? else {
                    return Err(another_answer());
                };
                told("removed", name, sessions_ended, json)
            }
        }
    })
}

fn another_answer() -> Failure {
    Failure::refused("the cluster answered something else: use a client of its version")
}

fn told(what: &str, name: &str, sessions_ended: u32, json: bool) -> Outcome {
    if json {
        return print_json(&json!({ "principal": name, what: true, "sessions_ended": sessions_ended }));
    }
    print_line(format!("{name} {what}, {sessions_ended} sessions ended"))
}

fn show(principals: &[Principal], json: bool) -> Outcome {
    if json {
        let object = |principal: &Principal| {
            let key = hex::encode(principal.key.0);
            json!({ "name": principal.name, "role": word(principal.role), "key": key })
        };
        return print_json(&json!({ "principals": principals.iter().map(object).collect::<Vec<_>>() }));
    }
    let mut rows = table(&["name", "role", "key"]);
    for principal in principals {
        rows.add_row([principal.name.clone(), word(principal.role).into(), hex::encode(principal.key.0)]);
    }
    print_line(paint_words(&rows.to_string(), &[]))
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Reader => "reader",
        Role::Writer => "writer",
        Role::Admin => "admin",
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Blocks {
    principal: Vec<Block>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    name: String,
    role: RoleWord,
    key: String,
}

fn read_blocks(path: &Path) -> Outcome<Vec<Principal>> {
    let refuse = |why: String| {
        Failure::usage(format!(
            "{} holds no public block ({why}): give what `dwcp keygen --principal NAME --role ROLE` printed",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    let blocks: Blocks = toml::from_str(&text).map_err(|error| refuse(error.message().to_string()))?;
    let read = |block: Block| {
        let key = hex::decode(&block.key).ok().and_then(|key| key.try_into().ok()).map(PublicKey);
        let key =
            key.ok_or_else(|| refuse(format!("the key of {} is not 64 hexadecimal digits", block.name)))?;
        Ok(Principal { name: block.name, key, role: block.role.into() })
    };
    blocks.principal.into_iter().map(read).collect()
}
