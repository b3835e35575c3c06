//! Whether the entry could be applied, asked of the API server without changing it. Never writes.

use serde_json::Value;

use super::course::{VITAL, taken};
use super::direct::{Direct, RegisterError, is_with_machine};
use super::removal::is_of;
use super::tenant::{self, Tenant};
use super::{entry, object};
use crate::kube::{KubeError, Object};

impl Direct {
    /// Asks the API server to apply the entry as a dry run, which passes authorization, admission
    /// and the ownership of fields.
    ///
    /// # Errors
    /// With the reason for which [`Direct::run`] could not register this machine.
    pub async fn check(&self) -> Result<(), RegisterError> {
        let Self { client, config, .. } = self;
        let workload = self.workload.borrow().clone();
        let (object, wanted) = (object(&workload), entry(&workload, &config.machine));
        let manager = config.machine.field_manager();
        let Err(error) = client.apply_dry_run(&object, &wanted, &manager).await else {
            return Ok(());
        };
        let conflicts = error.conflicts();
        if conflicts.is_empty() {
            let account = workload.id.service_account().as_str();
            return Err(self.foreign(&object, account, error).await);
        }
        if conflicts.iter().any(is_with_machine) {
            let live = client.get(&object).await?;
            return match tenant::tenant(&live, client.server_time(), config.take_over_after) {
                Tenant::Alive(how) => Err(taken(&object, &address(&live), how)),
                Tenant::Gone(_) => Ok(()),
            };
        }
        // Fields that others own are left to them, except where the entry is not this machine's yet.
        let vital = conflicts.iter().any(|one| VITAL.contains(&one.field.as_str()));
        if config.force || !vital || is_of(&client.get(&object).await?, &config.machine) {
            return Ok(());
        }
        let entry = format!("{}/{}", object.namespace, object.name);
        Err(RegisterError::Contested { entry, fields: conflicts.to_vec() })
    }

    /// The refusal of an apply, in the terms of the entry that is there where it has another
    /// service account: admission policies refuse that.
    async fn foreign(&self, object: &Object, account: &str, error: KubeError) -> RegisterError {
        let live = match error.code() {
            Some(403 | 422) => self.client.get(object).await.unwrap_or_default(),
            _ => return error.into(),
        };
        let theirs = live.pointer("/spec/serviceAccount").and_then(Value::as_str);
        match theirs.filter(|theirs| *theirs != account) {
            None => error.into(),
            Some(theirs) => RegisterError::OtherAccount {
                entry: format!("{}/{}", object.namespace, object.name),
                theirs: theirs.to_owned(),
                ours: account.to_owned(),
                is_own: is_of(&live, &self.config.machine),
                source: error,
            },
        }
    }
}

fn address(live: &Value) -> String {
    let address = live.pointer("/spec/address").and_then(Value::as_str);
    address.unwrap_or("an unknown address").to_owned()
}
