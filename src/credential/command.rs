//! A program that prints a token: no shell, a clean environment, its whole process group ended in
//! time, and of what it prints no more than a token can have.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{Token, TokenError};
use crate::base::backoff::Retry;
use crate::base::clock::parse_rfc3339;
use crate::base::printable::is_printable;
use crate::base::program::{self, Group};

/// A program that printed no token. Never holds what it printed as one.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It does not end.
    #[error("{program} did not end within {limit:?}")]
    Late {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// It says that it failed.
    #[error("{program} ended with {status}{said}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of its standard error.
        said: String,
    },
    /// It printed more than any token has.
    #[error("{program} printed more than {limit} bytes")]
    TooLarge {
        /// The program.
        program: String,
        /// The limit.
        limit: usize,
    },
    /// What it printed is no token.
    #[error("what {program} printed is neither a token nor an ExecCredential with one")]
    Rubbish {
        /// The program.
        program: String,
        /// What is wrong with it as a token.
        #[source]
        source: TokenError,
    },
}

impl CommandError {
    /// Whether it can pass by itself.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Late { .. } | Self::Failed { .. } => Retry::Soon,
            Self::Start { .. } | Self::TooLarge { .. } | Self::Rubbish { .. } => Retry::Later,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Start { .. } => {
                "credential.command must name an executable program by its absolute path, or by \
                 its name if it is in one of the usual directories"
            }
            Self::Late { .. } | Self::Failed { .. } => {
                "run the program of credential.command by hand, as the agent's user and with no \
                 environment but PATH"
            }
            Self::TooLarge { .. } | Self::Rubbish { .. } => {
                "the program of credential.command must print a JSON Web Token, or an \
                 ExecCredential of client.authentication.k8s.io with status.token, and nothing else"
            }
        };
        Some(hint.to_owned())
    }
}

/// `client.authentication.k8s.io` `ExecCredential`, the part with the token.
#[derive(Deserialize)]
struct ExecCredential {
    kind: String,
    status: ExecStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    token: SecretString,
    expiration_timestamp: Option<String>,
}

/// Runs the program once. Dropping the future ends it and all that it started.
pub(super) async fn obtain(argv: &[String]) -> Result<Token, CommandError> {
    let program = argv.first().cloned().unwrap_or_default();
    let output = match timeout(LIMIT, run(&program, argv.get(1..).unwrap_or_default())).await {
        Ok(output) => output?,
        Err(_) => return Err(CommandError::Late { program, limit: LIMIT }),
    };
    if output.len() > OUTPUT_BYTES {
        return Err(CommandError::TooLarge { program, limit: OUTPUT_BYTES });
    }
    parse(&output).map_err(|source| CommandError::Rubbish { program, source })
}

/// A token, bare or in an ExecCredential.
fn parse(output: &[u8]) -> Result<Token, TokenError> {
    if let Ok(found) = serde_json::from_slice::<ExecCredential>(output)
        && found.kind == "ExecCredential"
    {
        let token = Token::parse(found.status.token.expose_secret())?;
        let end = found.status.expiration_timestamp.as_deref().and_then(parse_rfc3339);
        return Ok(match end {
            Some(end) => token.ending(end),
            None => token,
        });
    }
    Token::parse(std::str::from_utf8(output).unwrap_or_default())
}

async fn run(program: &str, arguments: &[String]) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let start = |source| CommandError::Start { program: program.to_owned(), source };
    let mut child = program::command(program, arguments).spawn().map_err(start)?;
    let _group = Group::of(&child);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let one_more = u64::try_from(OUTPUT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let (status, out, err) =
        tokio::join!(child.wait(), beginning(out, one_more), beginning(err, QUOTE_BYTES));
    let status = status.map_err(start)?;
    if status.success() {
        return Ok(out);
    }
    let said = quoted(&err);
    Err(CommandError::Failed { program: program.to_owned(), status, said })
}

/// What it says first; the rest is read and dropped.
async fn beginning<R: AsyncRead + Unpin>(source: Option<R>, limit: u64) -> Zeroizing<Vec<u8>> {
    let capacity = usize::try_from(limit).unwrap_or_default();
    // Without growing, so that no copy is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    if let Some(mut source) = source {
        (&mut source).take(limit).read_to_end(&mut bytes).await.ok();
        tokio::io::copy(&mut source, &mut tokio::io::sink()).await.ok();
    }
    bytes
}

/// One line of it, without control characters, after a colon.
fn quoted(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let words = text.split(|letter: char| letter.is_whitespace() || !is_printable(letter));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let line: String = words.join(" ").chars().take(QUOTE_CHARS).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

/// Longer than any call to a service that makes tokens.
const LIMIT: Duration = Duration::from_secs(10);
/// Tokens are one or two kilobytes.
const OUTPUT_BYTES: usize = 64 << 10;
/// What is quoted of its standard error.
const QUOTE_BYTES: u64 = 1024;
const QUOTE_CHARS: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::trouble::chain;
    use crate::credential::tests::jwt;

    async fn shell(script: &str) -> Result<Token, CommandError> {
        obtain(&["sh", "-c", script].map(str::to_owned)).await
    }

    #[tokio::test]
    async fn a_program_prints_a_token_or_an_exec_credential() {
        let token = jwt("istio-ca", 4000);
        shell(&format!("echo {token}")).await.unwrap();
        let credential = format!(
            "{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\
             \"status\":{{\"token\":\"{token}\",\"expirationTimestamp\":\"1970-01-01T00:50:00Z\"}}}}"
        );
        let token = shell(&format!("echo '{credential}'")).await.unwrap();
        let end = token.expires_at().unwrap();
        assert_eq!(crate::base::clock::unix_seconds(end), 3000, "the earlier end counts");
    }

    #[tokio::test]
    async fn a_program_that_fails_prints_rubbish_or_is_not_there_is_said() {
        let cases = [
            ("echo 'no  quota' >&2; exit 3", "exit status: 3: no quota"),
            ("echo secret", "it has not three parts"),
            ("true", "it is empty"),
            ("head -c 100000 /dev/zero", "more than 65536 bytes"),
        ];
        for (script, words) in cases {
            let error = chain(&shell(script).await.err().unwrap());
            assert!(error.contains(words) && !error.contains("secret"), "{error} / {words}");
        }
        let error = obtain(&["/nonexistent/program".to_owned()]).await.err().unwrap();
        assert!(chain(&error).contains("cannot run /nonexistent/program: No such file"));
    }

    #[tokio::test]
    async fn a_program_sees_nothing_of_the_agents_environment() {
        let token = jwt("istio-ca", 4000);
        let script = format!("test \"$(env | grep -vc '^PWD\\|^SHLVL\\|^_')\" = 1 && echo {token}");
        shell(&script).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_hangs_is_ended() {
        let error = shell("sleep 1000").await.err().unwrap();
        assert!(matches!(error, CommandError::Late { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_output_panics(output in prop::collection::vec(any::<u8>(), 0..200), text in ".*") {
            drop(parse(&output));
            drop(parse(format!("{{\"kind\":\"ExecCredential\",\"status\":{{\"token\":{text:?}}}}}").as_bytes()));
        }
    }
}
