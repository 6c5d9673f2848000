//! A process that serves until it is ended: by a crash, or asked to as by an upgrade.

use std::{
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long one may take to end when it is asked to; far beyond what it needs, as the machine may be busy.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// An address of loopback with a port that nobody listens on.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

/// A process with its command line and its log, which runs or does not; dropping it kills it.
pub struct Daemon {
    command: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// One that is not yet started. What it says is added to the file `log`.
    pub fn new(command: Vec<String>, log: PathBuf) -> Daemon {
        Daemon {
            command,
            environment: Vec::new(),
            log,
            child: None,
        }
    }

    /// One more flag, from the next start on.
    pub fn flag(&mut self, name: &str, value: impl ToString) {
        self.command.extend([name.to_owned(), value.to_string()]);
    }

    /// A variable of its environment, from the next start on.
    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Another program starts it, from the next start on.
    pub fn prefix(&mut self, words: &[&str]) {
        self.command
            .splice(0..0, words.iter().map(|&word| word.to_owned()));
    }

    /// It is another program with the same flags, from the next start on.
    pub fn program(&mut self, program: &Path) {
        self.command[0] = program.display().to_string();
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it runs.
    pub fn start(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "{:?} runs already", self.command);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it has ended, if it did so by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        child.try_wait().ok().flatten()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; it is reaped either way.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end, as an upgrade does, and waits until it has.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.pid().expect("it was started");
        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
        // One that has ended by itself is not reaped yet, so the id is still its own.
        kill(pid, Signal::SIGTERM).expect("it is ours");
        let deadline = Instant::now() + ENDS_WITHIN;
        loop {
            if let Some(status) = self.ended() {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < deadline, "does not end: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for it to end by itself, and gives its exit status.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        self.child.take()?.wait().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
