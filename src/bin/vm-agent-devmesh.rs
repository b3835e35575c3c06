//! The development mesh as a program: prints where it listens and runs until it is interrupted.

use std::io::Write;
use std::time::Duration;

use vm_agent::devmesh::Mesh;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mesh = Mesh::start().await?;
    mesh.add_group("vms/client");
    mesh.grant("vms", "client");
    let token = mesh.token("vms", "client", "istio-ca", Duration::from_secs(3600));
    let about = serde_json::json!({
        "istiod": mesh.address().to_string(),
        "kubernetes": format!("https://{}", mesh.kube_address()),
        "root": mesh.root_pem(),
        "token": token,
    });
    writeln!(std::io::stdout(), "{about}")?;
    tokio::signal::ctrl_c().await?;
    Ok(())
}
