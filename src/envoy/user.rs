//! Whom Envoy runs as.

use nix::unistd::{Group, User, geteuid};
use serde::{Deserialize, Serialize};

/// A user and group by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyUser {
    /// User.
    pub uid: u32,
    /// Primary group; there is no other.
    pub gid: u32,
}

/// A user that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("there is no user {found:?} on this machine")]
pub struct UserError {
    /// The setting.
    pub found: String,
}

/// The user that a setting names, by name or number; without one `istio-proxy` where it exists, and
/// otherwise Istio's number for it, which needs no account. `None` when we are not root: Envoy then
/// runs as we do.
///
/// # Errors
/// When the setting names no user of this machine.
pub fn resolve_user(setting: Option<&str>) -> Result<Option<ProxyUser>, UserError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let by_name = |name: &str| User::from_name(name).ok().flatten();
    let Some(setting) = setting else {
        let account = by_name(ACCOUNT);
        return Ok(Some(
            account.map_or(ProxyUser { uid: NUMBER, gid: NUMBER }, |user| user_of(&user)),
        ));
    };
    if let Some(user) = by_name(setting) {
        return Ok(Some(user_of(&user)));
    }
    let uid: u32 = setting.parse().map_err(|_| UserError { found: setting.to_owned() })?;
    let account = User::from_uid(uid.into()).ok().flatten();
    let group = Group::from_gid(uid.into()).ok().flatten().map(|group| group.gid.as_raw());
    Ok(Some(
        account.map_or_else(|| ProxyUser { uid, gid: group.unwrap_or(uid) }, |user| user_of(&user)),
    ))
}

fn user_of(user: &User) -> ProxyUser {
    ProxyUser { uid: user.uid.as_raw(), gid: user.gid.as_raw() }
}

/// The account of Istio's packages, and the number that its capture rules exempt.
const ACCOUNT: &str = "istio-proxy";
const NUMBER: u32 = 1337;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_does_not_exist_is_named() {
        if geteuid().is_root() {
            let error = resolve_user(Some("no-such-user")).unwrap_err();
            assert!(error.to_string().contains("no-such-user"));
            assert_eq!(
                resolve_user(Some("4242")).unwrap(),
                Some(ProxyUser { uid: 4242, gid: 4242 })
            );
        } else {
            assert_eq!(resolve_user(Some("no-such-user")).unwrap(), None);
        }
    }
}
