//! Namespaces: a network in which every node has an interface of its own and any direction between two of them can be cut,
//! and mounts that nobody else sees. Needs root; all of it is gone with this program's last process.
//!
//! ```text
//!   this program (10.77.0.254) ── bridge ─┬─ node 0 (10.77.0.1)
//!                                         ├─ node 1 (10.77.0.2)   a cut direction: frames to a station that is not there
//!                                         └─ ...
//! ```
//!
//! A cut drops frames silently, as a dead cable does: no reset, no refusal. It knows addresses, nothing of what is spoken.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Trouble;

/// Set in the environment of a program that stands in its own namespaces.
const INSIDE: &str = "DWCP_CLUSTER_INSIDE";
const BRIDGE: &str = "dwcp";
/// A station that no network has.
const NOBODY: &str = "02:00:00:00:00:99";

/// Whether this machine lets us have namespaces.
#[must_use]
pub fn is_available() -> bool {
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    rustix::process::geteuid().is_root()
        && works("unshare", &["--net", "--mount", "true"])
        && works("ip", &["-V"])
}

/// Starts this very program again in namespaces of its own, unless it stands in them already. Returns only then.
///
/// # Errors
/// A machine that gives none.
pub fn enter() -> Result<(), Trouble> {
    if std::env::var_os(INSIDE).is_some() {
        // Names of namespaces are files below this folder: ours are nobody else's.
        run("mkdir", &["-p", "/run/netns"])?;
        run("mount", &["-t", "tmpfs", "tmpfs", "/run/netns"])?;
        return run("ip", &["link", "set", "lo", "up"]);
    }
    if !is_available() {
        return Err(Trouble::Namespaces(
            "this needs root, `unshare`, `ip` and a kernel with namespaces".into(),
        ));
    }
    let program = std::env::current_exe().map_err(Trouble::io("cannot find this very program"))?;
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(Trouble::io("cannot start `unshare`")(error))
}

fn run(program: &str, args: &[&str]) -> Result<(), Trouble> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(Trouble::io(format!("cannot start `{program}`")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Trouble::Namespaces(format!("`{program} {}`: {said}", args.join(" "))))
}

/// Whether anything comes back from this address: a refused connection will do, for nobody listens there.
#[must_use]
pub fn reach(address: IpAddr) -> bool {
    // Far above what a bridge on this machine takes.
    let patience = std::time::Duration::from_secs(2);
    match std::net::TcpStream::connect_timeout(&(address, 9).into(), patience) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

/// The network of one cluster.
#[derive(Debug)]
pub struct Network {
    nodes: usize,
}

impl Network {
    /// One namespace a node, joined by a bridge. To be called once, inside ([`enter`]).
    ///
    /// # Errors
    /// What `ip` refuses.
    pub fn new(nodes: usize) -> Result<Self, Trouble> {
        run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
        run("ip", &["address", "add", "10.77.0.254/24", "dev", BRIDGE])?;
        run("ip", &["link", "set", BRIDGE, "up"])?;
        for node in 0..nodes {
            let (name, port) = (Self::namespace(node), format!("port{node}"));
            run("ip", &["netns", "add", &name])?;
            run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            run("ip", &["link", "set", &port, "master", BRIDGE, "up"])?;
            let address = format!("{}/24", Self::address(node));
            run("ip", &["-n", &name, "address", "add", &address, "dev", "eth0"])?;
            run("ip", &["-n", &name, "link", "set", "eth0", "up"])?;
            run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(Self { nodes })
    }

    /// A cut that cuts nothing would make every judgement worthless: sees one work, and be healed.
    ///
    /// # Errors
    /// What `ip` refuses, and a network that does not do what it is told.
    pub fn check(&self, program: &Path) -> Result<(), Trouble> {
        let reaches = |from: usize, to: usize| {
            let (name, address) = (Self::namespace(from), Self::address(to).to_string());
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &name]).arg(program).args(["reach", &address]);
            command.status().map(|status| status.success()).map_err(Trouble::io("cannot look at the network"))
        };
        let expect = |is_right: bool, what: &str| {
            if is_right { Ok(()) } else { Err(Trouble::Namespaces(format!("the network is broken: {what}"))) }
        };
        expect(reaches(0, 1)?, "node 0 does not reach node 1")?;
        self.cut(0, 1)?;
        expect(!reaches(0, 1)?, "a cut direction is open")?;
        expect(!reaches(1, 0)?, "answers pass a cut direction")?;
        self.heal()?;
        expect(reaches(0, 1)? && reaches(1, 0)?, "a healed direction stays cut")
    }

    #[must_use]
    pub fn address(node: usize) -> IpAddr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(node + 1).expect("at most 31")).into()
    }

    #[must_use]
    pub fn namespace(node: usize) -> String {
        format!("node{node}")
    }

    /// From now on nothing that `from` sends reaches `to`; the other direction is as it was.
    ///
    /// # Errors
    /// What `ip` refuses.
    pub fn cut(&self, from: usize, to: usize) -> Result<(), Trouble> {
        let (name, address) = (Self::namespace(from), Self::address(to).to_string());
        run(
            "ip",
            &["-n", &name, "neigh", "replace", &address, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"],
        )
    }

    /// Everybody reaches everybody.
    ///
    /// # Errors
    /// What `ip` refuses.
    pub fn heal(&self) -> Result<(), Trouble> {
        (0..self.nodes).try_for_each(|node| {
            run("ip", &["-n", &Self::namespace(node), "neigh", "flush", "nud", "permanent", "dev", "eth0"])
        })
    }
}

/// A small file system of its own below a folder, in memory.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
}

impl Volume {
    /// Mounts it over `path`, which must be a folder. To be called inside ([`enter`]).
    ///
    /// # Errors
    /// What `mount` refuses.
    pub fn mount(path: &Path, mebibytes: u64) -> Result<Self, Trouble> {
        let options = format!("size={mebibytes}m,mode=0700");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &path.to_string_lossy()])?;
        Ok(Self { path: path.into() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the space that is left.
    ///
    /// # Errors
    /// Any other failure than a full disk.
    pub fn fill(&self) -> Result<(), Trouble> {
        use std::io::{ErrorKind, Write};
        let failed = || Trouble::io("cannot fill a volume");
        let mut ballast = std::fs::File::create(self.ballast()).map_err(failed())?;
        loop {
            match ballast.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(failed()(error)),
            }
        }
    }

    /// As an operator who found something to delete.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn make_room(&self) -> Result<(), Trouble> {
        std::fs::remove_file(self.ballast()).map_err(Trouble::io("cannot make room on a volume"))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: what still uses it keeps it. The folder it hides must be free to be removed.
        let _ = run("umount", &["--lazy", &self.path.to_string_lossy()]);
    }
}
