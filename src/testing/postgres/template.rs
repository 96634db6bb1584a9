//! What `initdb` makes, made once and copied.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use secrecy::{ExposeSecret, SecretString};

use super::{
    ClusterError, ServerLog,
    account::Account,
    home::{Base, write_private},
    locate::{self, Server},
};

/// The superuser of every cluster.
pub(super) const SUPERUSER: &str = "postgres";

/// The server that a standby is to follow.
#[derive(Clone, Debug)]
pub(super) struct Primary {
    pub(super) sockets: PathBuf,
    pub(super) port: u16,
    pub(super) password: SecretString,
}

/// Templates are made anew each day, because systems clean `/tmp` file by file, by age, and a template with holes
/// would make broken clusters. The oldest such habit is 10 days.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Days after which nobody copies from a template any more, so that it can go.
const KEPT_DAYS: u64 = 2;

/// Makes `data` in the home and returns the superuser's password, by copying the day's template.
pub(super) fn copy(
    base: &Base,
    home: &Path,
    account: &Account,
    server: &Server,
) -> Result<SecretString, ClusterError> {
    let template = find_or_make(base, account, server)?;
    let mut copy = locate::command(Path::new("cp"), None);
    copy.arg("-Rp").arg(template.join("data")).arg(home.join("data"));
    run(
        account.apply(&mut copy, home),
        "copy the template of a cluster",
        ClusterError::Start,
    )?;
    read_password(&template)
}

/// Makes `data` in the home and returns the superuser's password, by an `initdb` of its own.
pub(super) fn initialise(
    home: &Path,
    account: &Account,
    server: &Server,
) -> Result<SecretString, ClusterError> {
    let mut random = [0_u8; 24];
    getrandom::fill(&mut random)
        .map_err(std::io::Error::other)
        .map_err(ClusterError::io("choose a password"))?;
    let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    write_private(&home.join("password"), &password, account)?;

    let mut initdb = locate::command(&server.program("initdb"), server.libraries());
    initdb
        .arg("--pgdata")
        .arg(home.join("data"))
        .arg("--pwfile")
        .arg(home.join("password"))
        .args(["--username", SUPERUSER])
        // Nothing here has to survive the machine.
        .arg("--no-sync")
        .args(["--auth", "scram-sha-256"])
        // The same order and the same messages on every machine.
        .args(["--locale", "C", "--encoding", "UTF8"])
        // A cluster is copied per test, and a segment of the usual 16 MB is most of an empty one.
        .args(["--wal-segsize", "1"]);
    run(
        account.apply(&mut initdb, home),
        "run initdb",
        ClusterError::Initdb,
    )?;
    Ok(SecretString::from(password))
}

/// Makes `data` in the home as a copy of a running server that follows it.
pub(super) fn follow(
    primary: &Primary,
    home: &Path,
    account: &Account,
    server: &Server,
) -> Result<(), ClusterError> {
    let mut backup = locate::command(&server.base_backup()?, server.libraries());
    backup
        .arg("--pgdata")
        .arg(home.join("data"))
        .arg("--host")
        .arg(&primary.sockets)
        .args(["--port", &primary.port.to_string()])
        .args(["--username", SUPERUSER, "--no-password"])
        .env("PGPASSWORD", primary.password.expose_secret())
        // Where it is to read on, in its own settings.
        .arg("--write-recovery-conf")
        .args(["--wal-method", "stream", "--checkpoint", "fast", "--no-sync"]);
    run(
        account.apply(&mut backup, home),
        "run pg_basebackup",
        ClusterError::Backup,
    )
    .map(drop)
}

fn find_or_make(base: &Base, account: &Account, server: &Server) -> Result<PathBuf, ClusterError> {
    // One at a time, in this process and in others; the system unlocks it however a holder ends.
    let lock = File::create(base.path().join("lock"))
        .and_then(|lock| lock.lock().map(|()| lock))
        .map_err(ClusterError::io("lock the directory of templates"))?;
    let today = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / DAY.as_secs());
    let template = base
        .path()
        .join(format!("template-{today}-{}", key(account, base, server)?));
    if !template.exists() {
        remove_old(base, today);
        let new = base.directory("new-", account)?;
        initialise(new.path(), account, server)?;
        // Whole or not at all, also when this process is killed here.
        fs::rename(new.path(), &template).map_err(ClusterError::io("put the template in its place"))?;
    }
    drop(lock);
    Ok(template)
}

/// Tells apart what one `initdb` makes from what another makes.
fn key(account: &Account, base: &Base, server: &Server) -> Result<String, ClusterError> {
    let mut version = locate::command(&server.program("postgres"), server.libraries());
    version.arg("--version");
    let version = run(
        account.apply(&mut version, base.path()),
        "run postgres as the server's user",
        ClusterError::Start,
    )?;
    let mut hasher = DefaultHasher::new();
    (version, server.program("initdb")).hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn remove_old(base: &Base, today: u64) {
    for entry in fs::read_dir(base.path()).into_iter().flatten().flatten() {
        let made = entry.file_name().to_str().and_then(|name| {
            name.strip_prefix("template-")?
                .split('-')
                .next()?
                .parse::<u64>()
                .ok()
        });
        if made.is_some_and(|day| day.saturating_add(KEPT_DAYS) <= today) {
            // Best effort: it is only space, and the next day's first test tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn read_password(template: &Path) -> Result<SecretString, ClusterError> {
    fs::read_to_string(template.join("password"))
        .map(SecretString::from)
        .map_err(ClusterError::io("read the template's password"))
}

/// Runs a command to its end and returns what it printed; what it printed is also the error.
fn run(
    command: &mut Command,
    doing: &str,
    failed: impl FnOnce(ServerLog) -> ClusterError,
) -> Result<String, ClusterError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(ClusterError::io(doing))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(failed(ServerLog::new(&format!("{printed}\n{complaint}"))))
}
