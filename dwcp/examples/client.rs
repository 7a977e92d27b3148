//! A program that uses a cluster: writes, reads, compares and swaps, and knows what to do when an answer is missing.
//!
//! `cargo run --release -p dwcp --example client -- trial/client.toml` (see `dwcp init --help` for the cluster)

use std::error::Error;
use std::path::Path;

use dwcp::client::store::{CompareOp, CompareTarget, Put, Txn, TxnOp};
use dwcp::client::{Client, ClientConfig, ClientError};
use dwcp::state::Fate;

/// Takes the lock `name` for `owner` if nobody has it.
async fn take_lock(client: &Client, name: &str, owner: &str) -> Result<bool, ClientError> {
    let txn = Txn::default()
        .when(name.to_string(), CompareOp::Equal, CompareTarget::Version(0))
        .then(TxnOp::Put(Put::new(name.to_string(), owner.to_string())));
    let taken = match client.kv().txn(txn).await {
        Ok(answer) => answer.succeeded,
        // It may have been applied: look before trying again.
        Err(error) if error.fate() == Fate::Unknown => {
            client.kv().get(name.to_string()).await?.value() == Some(owner.as_bytes())
        }
        Err(error) => return Err(error),
    };
    Ok(taken)
}

/// Returns whether the lock was free.
pub async fn story(client_file: &Path) -> Result<bool, Box<dyn Error>> {
    let client = Client::connect(ClientConfig::read(client_file, None)?).await?;
    let kv = client.kv();

    let put = kv.put("greeting", "hello").prev_kv().await?;
    println!("put greeting at revision {} ({})", put.revision, put.receipt);
    if let Some(before) = &put.prev_kv {
        println!("it was {:?}, version {}", before.value, before.version);
    }
    let got = kv.get("greeting").await?;
    println!("get greeting: {:?}", got.value().map(String::from_utf8_lossy));

    // A key that goes when its lease does: the lease is kept in the cluster's time.
    let lease = kv.lease_grant(0, 60).await?;
    kv.put("online/me", "yes").lease(lease.id).await?;
    println!("{} keys under online/", kv.get("online/").prefix().await?.count);

    let first = take_lock(&client, "lock", "me").await?;
    let second = take_lock(&client, "lock", "you").await?;
    println!("lock: me {first}, you {second}");
    kv.delete("lock").await?;
    kv.lease_revoke(lease.id).await?;

    client.close().await;
    Ok(first && !second)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("name the client file: trial/client.toml")?;
    story(Path::new(&file)).await?;
    Ok(())
}
