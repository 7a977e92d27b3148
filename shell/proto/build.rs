//! Compiles the service definition without an installed `protoc`: `protox` is a protocol buffer compiler in Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=dwcp/v3/dwcp.proto");
    let descriptors = protox::compile(["dwcp/v3/dwcp.proto"], ["."])?;
    // `bytes` keeps frames as slices of the received buffer instead of copying each of them.
    tonic_prost_build::configure().build_transport(false).bytes(".").compile_fds(descriptors)?;
    Ok(())
}
