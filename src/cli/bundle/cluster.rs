//! The operator's way into the cluster.

use std::path::PathBuf;

use crate::cli::exit::{Exit, Failure};
use crate::kube::{Chosen, Kubeconfigs, from_kubeconfigs};

/// Which cluster, and as whom.
#[derive(Debug, clap::Args)]
pub(super) struct Cluster {
    /// The kubeconfig [default: those of $KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Its context [default: the current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl Cluster {
    /// The API server, and who we are to it. A program that the kubeconfig names is run.
    pub(super) async fn choose(&self) -> Result<Chosen, Failure> {
        let chosen = from_kubeconfigs(&self.files(), self.context.as_deref()).await;
        chosen.map_err(|error| {
            let hint = error.hint();
            Failure::new(Exit::Configuration, error).hint(hint)
        })
    }

    fn files(&self) -> Kubeconfigs {
        if let Some(path) = &self.kubeconfig {
            return Kubeconfigs::Named(path.clone());
        }
        let listed = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty());
        let paths: Vec<PathBuf> = match listed {
            Some(list) => std::env::split_paths(&list).filter(|path| path != "").collect(),
            None => {
                let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
                vec![home.join(".kube/config")]
            }
        };
        Kubeconfigs::Listed(paths)
    }
}
