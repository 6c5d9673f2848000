//! Running the programs that are measured, with errors that name what was run.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::BenchError;

/// How much of a failed program's standard error an error quotes.
const STDERR_QUOTED: usize = 2000;

/// Runs a program to its end and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, BenchError> {
    let mut command = Command::new(program);
    command.args(arguments);
    output(&mut command)
}

/// Runs a prepared command to its end and returns what it printed.
pub fn output(command: &mut Command) -> Result<String, BenchError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| start_error(command, source))?;
    printed(&line(command), output)
}

/// Starts a program whose output is read when it has ended, by [`finish`].
pub fn start(command: &mut Command) -> Result<Running, BenchError> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| start_error(command, source))?;
    Ok(Running {
        line: line(command),
        child: Some(child),
    })
}

/// A program in the background; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Option<Child>,
}

impl Running {
    /// Waits until the program listens on a TCP port of its network namespace.
    pub fn listening(self, port: u16, limit: Duration) -> Result<Self, BenchError> {
        let what = format!("listener on port {port}");
        self.ready(limit, &what, |id| listens(id, port))
    }

    /// Waits until the program, by its process id, is seen to be ready; `what` is not there before.
    pub fn ready(
        mut self,
        limit: Duration,
        what: &str,
        is_ready: impl Fn(u32) -> bool,
    ) -> Result<Self, BenchError> {
        let deadline = Instant::now() + limit;
        loop {
            let child = self
                .child
                .as_mut()
                .expect("only finish and drop take the child");
            if is_ready(child.id()) {
                return Ok(self);
            }
            let ended = !matches!(child.try_wait(), Ok(None));
            if ended || Instant::now() > deadline {
                let line = self.line.clone();
                // A program that ended says why by its status and what it wrote.
                self.finish(Duration::ZERO)?;
                return Err(BenchError::Failed {
                    command: line,
                    status: format!("no {what}"),
                    stderr: String::new(),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the program's own end, at most so long, and returns what it printed.
    pub fn finish(mut self, limit: Duration) -> Result<String, BenchError> {
        let deadline = Instant::now() + limit;
        let mut child = self
            .child
            .take()
            .expect("only finish and drop take the child");
        loop {
            match child.try_wait() {
                Ok(Some(_)) => break,
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => {
                    self.child = Some(child);
                    return Err(BenchError::Failed {
                        command: self.line.clone(),
                        status: format!("no end within {limit:?}"),
                        stderr: String::new(),
                    });
                }
            }
        }
        let output = child.wait_with_output().map_err(BenchError::io(format!(
            "reading the output of {}",
            self.line
        )))?;
        printed(&self.line, output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is reaped here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A program that answers each line of its standard input with a figure; dropping it ends it.
#[derive(Debug)]
pub struct Asked {
    line: String,
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Asked {
    /// Starts the program.
    pub fn start(command: &mut Command) -> Result<Self, BenchError> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| start_error(command, source))?;
        let answers = child.stdout.take().expect("it was asked for");
        Ok(Self {
            line: line(command),
            child,
            answers: BufReader::new(answers),
        })
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks, and waits for the figure.
    pub fn ask(&mut self, question: &str) -> Result<f64, BenchError> {
        let stdin = self.child.stdin.as_mut().expect("it was asked for");
        // A program that has ended says why by its status and what it wrote: see below.
        let _ = writeln!(stdin, "{question}");
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .map_err(BenchError::io(format!(
                "reading an answer of {}",
                self.line
            )))?;
        if answer.is_empty() {
            return Err(self.ended());
        }
        answer.trim().parse().map_err(|_| BenchError::Output {
            program: self.line.clone(),
            output: answer,
        })
    }

    /// Why the program ended, which has closed its standard output.
    fn ended(&mut self) -> BenchError {
        let mut stderr = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            // What can't be read can't be told; the status is.
            let _ = pipe.read_to_string(&mut stderr);
        }
        BenchError::Failed {
            command: self.line.clone(),
            status: match self.child.wait() {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            stderr: stderr.trim().to_owned(),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process's network namespace has a TCP listener on a port, by `proc_net_tcp(5)`.
fn listens(process: u32, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let table = format!("/proc/{process}/net/{table}");
        std::fs::read_to_string(table)
            .unwrap_or_default()
            .lines()
            .skip(1)
            .any(|line| {
                let mut columns = line.split_whitespace().skip(1);
                let local = columns.next().unwrap_or_default();
                local.ends_with(&suffix) && columns.nth(1) == Some(LISTEN)
            })
    })
}

fn printed(line: &str, output: Output) -> Result<String, BenchError> {
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let from = stderr.len().saturating_sub(STDERR_QUOTED);
        let from = (from..stderr.len())
            .find(|&at| stderr.is_char_boundary(at))
            .unwrap_or(0);
        return Err(BenchError::Failed {
            command: line.to_owned(),
            status: output.status.to_string(),
            stderr: stderr[from..].trim().to_owned(),
        });
    }
    String::from_utf8(output.stdout).map_err(|error| BenchError::Output {
        program: line.to_owned(),
        output: String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn start_error(command: &Command, source: std::io::Error) -> BenchError {
    BenchError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
        remedy: "install it, or run this part in the virtual machine of hack/vm, which has it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Asked {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Asked::start(&mut command).expect("every machine has a shell")
    }

    #[test]
    fn a_program_is_asked_again_and_again() {
        let mut asked =
            shell("while read -r side; do [ $side = ours ] && echo 2.5 || echo 7; done");
        let figures = ["ours", "peer", "ours"].map(|side| asked.ask(side).expect("an answer"));
        assert_eq!(figures, [2.5, 7.0, 2.5]);
    }

    #[test]
    fn a_program_that_ends_instead_of_answering_is_quoted() {
        let error = shell("echo no such device >&2; exit 3").ask("ours");
        let told = error.expect_err("it ended").to_string();
        assert!(
            told.contains("no such device") && told.contains('3'),
            "{told}"
        );
        let error = shell("echo much").ask("ours").expect_err("no figure");
        assert!(matches!(error, BenchError::Output { .. }), "{error}");
    }
}
