//! How a role ends: a sentence for the person, a code for the script.

use std::fmt::Display;
use std::process::ExitCode;

/// Why a role ended without doing what was asked. The sentence says what was attempted on what,
/// why it failed and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    code: u8,
}

impl Failure {
    /// It ran and the outcome is wrong, or something failed underway.
    pub(crate) fn failed(sentence: impl Display) -> Self {
        Failure {
            sentence: sentence.to_string(),
            code: 1,
        }
    }

    /// The command line, the configuration or the input is at fault.
    pub(crate) fn usage(sentence: impl Display) -> Self {
        Failure {
            sentence: sentence.to_string(),
            code: 2,
        }
    }

    /// This machine cannot do what was asked.
    pub(crate) fn unable(sentence: impl Display) -> Self {
        Failure {
            sentence: sentence.to_string(),
            code: 3,
        }
    }

    /// A signal asked for the end.
    pub(crate) fn interrupted() -> Self {
        Failure {
            sentence: "interrupted".into(),
            code: 130,
        }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// A child has already said why.
    pub(crate) fn silent(code: u8) -> Self {
        Failure {
            sentence: String::new(),
            code,
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Says the sentence on stderr and gives the code.
pub(crate) fn report(failure: Failure) -> ExitCode {
    if !failure.sentence.is_empty() {
        eprintln!("trackbed: {failure}");
    }
    ExitCode::from(failure.code())
}
