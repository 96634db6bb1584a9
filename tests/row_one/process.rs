//! Processes that talk in lines: what the test says to its children, and what they say to it.

use std::{
    fmt::Display,
    io::{self, BufRead, Write},
    process::Stdio,
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use crate::world::LIMIT;

/// What lines begin with that are meant for the test. The test harness of the child prints others.
const MARK: &str = "> ";

/// A child of the test. It is killed when it is dropped, and ends by itself when the test is gone, with its standard input.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts one of the ignored tests of this binary in a process of its own.
    pub(crate) fn start(main: &str, variables: &[(&'static str, String)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", main, "--ignored", "--nocapture"])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines }
    }

    pub(crate) async fn tell(&mut self, what: &str) {
        self.stdin
            .write_all(format!("{what}\n").as_bytes())
            .await
            .unwrap();
        self.stdin.flush().await.unwrap();
    }

    /// What it says next.
    pub(crate) async fn hear(&mut self) -> String {
        let hearing = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(said) = line.strip_prefix(MARK) {
                    return said.to_owned();
                }
            }
            panic!("the process ended without a word: {:?}", self.child.wait().await);
        };
        timeout(LIMIT, hearing).await.expect("it says something")
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().unwrap().cast_signed();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Kills it, wherever it is.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until it has ended, which it is to do in order.
    pub(crate) async fn end(mut self) {
        drop(self.stdin);
        let status = timeout(LIMIT, self.child.wait()).await;
        let status = status.expect("it ends").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// Says something to the test.
pub(crate) fn say(what: impl Display) {
    // The harness may be in the middle of a line.
    let mut out = io::stdout().lock();
    writeln!(out, "\n{MARK}{what}").unwrap();
    out.flush().unwrap();
}

/// What the test says, until it is gone.
pub(crate) fn told() -> UnboundedReceiver<String> {
    let (sender, receiver) = unbounded_channel();
    // A thread of its own, which a runtime does not wait for.
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_err() || sender.send(line.unwrap()).is_err() {
                break;
            }
        }
    });
    receiver
}
