//! The process between us and a server.

use std::{
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{ClusterError, ServerLog, account::Account, home::write_private, locate};

const SCRIPT: &str = include_str!("supervisor.sh");

/// How long the clean-up at the end may take before it is given up: Postgres kills its own children after 5 s, the
/// script kills Postgres after 4 s of its own counting, and removing files takes the rest.
const FINISH: Duration = Duration::from_secs(30);

/// A shell that is the server's parent and holds the reading end of a pipe from here. See the module's contract.
#[derive(Debug)]
pub(super) struct Supervisor {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    home: PathBuf,
    server: Option<u32>,
    log_from: usize,
}

/// A server's program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) file: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) libraries: Option<OsString>,
    /// What ends it at once and still lets it take its children along.
    pub(super) end: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Cont,
    Hup,
    Int,
    Kill,
    Quit,
    Stop,
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Self::Cont => "CONT",
            Self::Hup => "HUP",
            Self::Int => "INT",
            Self::Kill => "KILL",
            Self::Quit => "QUIT",
            Self::Stop => "STOP",
        }
    }
}

impl Supervisor {
    /// Starts the supervisor, not yet the server. From here on the directory goes when this value does.
    pub(super) fn new(home: &Path, account: &Account, program: &Program) -> Result<Self, ClusterError> {
        let script = home.join("supervisor.sh");
        write_private(&script, SCRIPT, account)?;
        let mut command = locate::command(Path::new("/bin/sh"), program.libraries.clone());
        command
            .arg(script)
            .arg(home)
            .arg(program.end.name())
            .arg(&program.file)
            .args(&program.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Out of the terminal's reach: Ctrl-C is for the test process, whose end then ends the server in order.
            .process_group(0);
        let mut child = account
            .apply(&mut command, home)
            .spawn()
            .map_err(ClusterError::io("start a shell to watch over the server"))?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().expect("the standard output is piped");
        Ok(Self {
            child,
            orders,
            answers: BufReader::new(answers),
            home: home.into(),
            server: None,
            log_from: 0,
        })
    }

    /// Starts the server's program.
    pub(super) fn start(&mut self) -> Result<u32, ClusterError> {
        self.log_from = fs::metadata(self.home.join("log"))
            .ok()
            .and_then(|log| usize::try_from(log.len()).ok())
            .unwrap_or(0);
        let id = self
            .order("start")?
            .trim()
            .parse()
            .map_err(|_| ClusterError::SupervisorGone)?;
        self.server = Some(id);
        Ok(id)
    }

    /// Sends a signal to other processes of the server's user and then to the server. The server is last, because
    /// its sessions notice its death and would say so to their clients.
    pub(super) fn signal(&mut self, signal: Signal, others: &[u32]) -> Result<(), ClusterError> {
        // Not yet collected, and so not somebody else's process id, until the exit file is there.
        let Some(server) = self.running() else {
            return Ok(());
        };
        let mut order = format!("signal {}", signal.name());
        for process in others.iter().chain([&server]) {
            order.push_str(&format!(" {process}"));
        }
        self.order(&order).map(drop)
    }

    /// The server's process, if it runs.
    pub(super) fn running(&self) -> Option<u32> {
        self.server.filter(|_| !self.home.join("exit").exists())
    }

    /// What the server has written since it was started last.
    pub(super) fn log(&self) -> ServerLog {
        let log = fs::read(self.home.join("log")).unwrap_or_default();
        ServerLog::new(&String::from_utf8_lossy(
            log.get(self.log_from..).unwrap_or_default(),
        ))
    }

    /// Waits until the server has ended.
    pub(super) fn wait_for_exit(&self, what: &'static str, limit: Duration) -> Result<(), ClusterError> {
        self.wait(what, limit, || self.running().is_none().then_some(Ok(())))
    }

    /// Asks again and again until there is an outcome.
    pub(super) fn wait<T>(
        &self,
        what: &'static str,
        limit: Duration,
        mut outcome: impl FnMut() -> Option<Result<T, ClusterError>>,
    ) -> Result<T, ClusterError> {
        let began = Instant::now();
        loop {
            if let Some(outcome) = outcome() {
                return outcome;
            }
            if began.elapsed() > limit {
                return Err(ClusterError::TimedOut {
                    what,
                    limit,
                    log: self.log(),
                });
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn order(&mut self, order: &str) -> Result<String, ClusterError> {
        let mut answer = String::new();
        let mut exchange = || -> io::Result<usize> {
            let orders = self.orders.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
            writeln!(orders, "{order}")?;
            self.answers.read_line(&mut answer)
        };
        match exchange() {
            Ok(length) if length > 0 => Ok(answer),
            _ => Err(ClusterError::SupervisorGone),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // This is the whole order to finish: the same that the system gives when this process dies.
        self.orders = None;
        let began = Instant::now();
        while began.elapsed() < FINISH {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
    }
}
