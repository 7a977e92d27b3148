//! TCP proxies, one for each directed link of a cluster on one machine, so that links can be cut and healed while the
//! processes run. For `dwcp demo` and tests that part real nodes.
//!
//! A node dials its peers; what it sends goes over the connections it dialled. So the proxy of the link from 0 to 1 is
//! what node 0 is told to reach node 1 by (`peer_via` of its settings). A cut link drops its connections and every new one at
//! once. What is spoken is not known here.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections of one link at once; further ones are dropped.
const CONNECTIONS_MAX: usize = 64;

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

/// See the module. The proxies end with it.
#[derive(Debug)]
pub struct LinkProxies {
    links: BTreeMap<(u8, u8), Link>,
    _running: JoinSet<()>,
}

impl LinkProxies {
    /// A proxy for every pair of these nodes, each given with the address where it listens for peers. To be called within
    /// a runtime.
    ///
    /// # Errors
    /// The system gives no port.
    pub async fn start(nodes: &[(u8, SocketAddr)]) -> io::Result<Self> {
        let (mut links, mut running) = (BTreeMap::new(), JoinSet::new());
        for (from, _) in nodes {
            for (to, target) in nodes.iter().filter(|(to, _)| to != from) {
                let listener = TcpListener::bind((target.ip(), 0)).await?;
                let (cut, is_cut) = watch::channel(false);
                links.insert((*from, *to), Link { address: listener.local_addr()?, cut });
                running.spawn(serve(listener, *target, is_cut));
            }
        }
        Ok(Self { links, _running: running })
    }

    /// The setting `peer_via` of a node.
    #[must_use]
    pub fn via(&self, from: u8) -> String {
        let own = self.links.iter().filter(|((source, _), _)| *source == from);
        own.map(|((_, to), link)| format!("{to}={}", link.address)).collect::<Vec<_>>().join(" ")
    }

    /// From now on nothing passes between these nodes and the others, in either direction.
    pub fn part(&self, side: &[u8]) {
        for ((from, to), link) in &self.links {
            link.cut.send_replace(side.contains(from) != side.contains(to));
        }
    }

    /// From now on nothing passes but between nodes of one group. Whoever stands in none is alone.
    pub fn part_into(&self, groups: &[Vec<u8>]) {
        for ((from, to), link) in &self.links {
            let is_within = groups.iter().any(|group| group.contains(from) && group.contains(to));
            link.cut.send_replace(!is_within);
        }
    }

    /// Everybody reaches everybody.
    pub fn heal(&self) {
        for link in self.links.values() {
            link.cut.send_replace(false);
        }
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, is_cut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        if *is_cut.borrow() || connections.len() >= CONNECTIONS_MAX {
            continue;
        }
        connections.spawn(carry(stream, target, is_cut.clone()));
    }
}

async fn carry(mut stream: TcpStream, target: SocketAddr, mut is_cut: watch::Receiver<bool>) {
    let Ok(mut onward) = TcpStream::connect(target).await else { return };
    let _ = (stream.set_nodelay(true), onward.set_nodelay(true));
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut stream, &mut onward) => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_cut_link_breaks_and_refuses_and_a_healed_one_carries_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let proxies = LinkProxies::start(&[(0, target), (1, target)]).await.unwrap();
        let via = proxies.via(0);
        let address: SocketAddr = via.strip_prefix("1=").unwrap().parse().unwrap();
        let echo = async || {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"x").await?;
            let mut back = [0; 1];
            stream.read_exact(&mut back).await?;
            io::Result::Ok(stream)
        };
        let mut open = echo().await.unwrap();
        proxies.part(&[0]);
        assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0, "what was open is gone");
        assert!(echo().await.is_err(), "nothing new passes");
        proxies.heal();
        assert!(echo().await.is_ok());
        proxies.part_into(&[vec![0], vec![1]]);
        assert!(echo().await.is_err());
        proxies.part_into(&[vec![1, 0]]);
        assert!(echo().await.is_ok());
        proxies.part_into(&[vec![1]]);
        assert!(echo().await.is_err(), "in no group");
    }
}
